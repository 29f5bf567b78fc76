//! Raw values → checked ones: defaults, addresses, durations.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::{
    Config, ConfigError, FollowMode, Limits, Name, NamesConfig, StoreConfig, Validation, Warning, auth, http,
    kubo, log, mirror, naming, p2p, raw,
};
use bytesize::ByteSize;
use jiff::SignedDuration;

/// Less would hold hardly an image.
const QUOTA_BYTES_MIN: u64 = 64 << 20;
/// Stands for each name that has no entry of its own.
const ANY: &str = "*";
const RECORD_VALIDITY: &str = "8760h";
/// Readers may be away for a while, and clocks differ.
const RECORD_VALIDITY_MIN: Duration = Duration::from_secs(3600);

pub(super) fn check(raw: raw::Raw, warnings: &mut Vec<Warning>) -> Result<Config, ConfigError> {
    if !matches!(raw.version.as_str(), "" | "0.1") {
        return Err(value_error("version", &raw.version, "0.1 is expected"));
    }
    warn_of_middleware(&raw, warnings);
    let kubo = kubo::check(&raw.storage.ipfs, raw.middleware.repository.as_deref(), warnings)?;
    if kubo.is_some() {
        kubo::warn_of_node(&raw.p2p, warnings);
    }
    let storage = raw.storage.ipfs;
    let reads_only = kubo.is_some() && is_reader_of_the_predecessor(&storage);
    Ok(Config {
        log: log::check(raw.log)?,
        http: http::check(raw.http)?,
        auth: auth::check(raw.auth, warnings)?,
        store: StoreConfig {
            root_directory: root_directory(storage.rootdirectory),
            delete_enabled: raw.storage.delete.enabled.unwrap_or(true),
            quota_bytes: quota("storage.ipfs.quota", storage.quota.as_deref().unwrap_or_default())?,
        },
        validation: validation(raw.validation)?,
        names: NamesConfig {
            write_key: Some(storage.writeipnskey.unwrap_or_else(|| "self".to_owned()))
                .filter(|key| !key.is_empty() && !reads_only),
            readonly: followed(storage.readonlyipnskeys.unwrap_or_default(), storage.follow)?,
            follow_quota_bytes: quota(
                "storage.ipfs.followquota",
                storage.followquota.as_deref().unwrap_or_default(),
            )?,
            record_validity: record_validity(storage.recordvalidity.as_deref().unwrap_or(RECORD_VALIDITY))?,
        },
        naming: naming::check(storage.nameserver.as_deref(), raw.middleware.repository.as_deref())?,
        p2p: p2p::check(raw.p2p)?,
        kubo,
        pull_through: mirror::check(raw.mirror, &raw.proxy, warnings)?,
        limits: Limits::default(),
    })
}

fn warn_of_middleware(raw: &raw::Raw, warnings: &mut Vec<Warning>) {
    for entry in raw.middleware.repository.iter().flatten() {
        if entry.name.as_deref() != Some("ipfs") {
            warnings.push(Warning(
                "config key middleware.repository[].name: only ipfs is known; the entry is ignored"
                    .to_owned(),
            ));
        }
    }
}

/// Whether a file that names a Kubo says nothing of a key to write with: the predecessor then only read. Its `self` is the
/// identity of that Kubo, which may have been published under for another purpose.
fn is_reader_of_the_predecessor(storage: &raw::Ipfs) -> bool {
    let reads = storage.readonlyipnskeys.as_ref().is_some_and(|names| !names.is_empty());
    let is_for_storage = storage.ipfsapiaddress.as_ref().is_some_and(|address| !address.is_empty());
    storage.writeipnskey.is_none() && (reads || !is_for_storage)
}

fn root_directory(configured: Option<String>) -> PathBuf {
    if let Some(path) = configured.filter(|path| !path.is_empty()) {
        return path.into();
    }
    if let Some(data) = std::env::var_os("XDG_DATA_HOME").filter(|data| !data.is_empty()) {
        return PathBuf::from(data).join("shoal");
    }
    if rustix::process::getuid().is_root() {
        return "/var/lib/shoal".into();
    }
    std::env::home_dir().unwrap_or_default().join(".local/share/shoal")
}

/// What is brought here of each name: by its own entry, else by `"*"`.
fn followed(names: Vec<String>, follow: Option<raw::RawFollow>) -> Result<Vec<Name>, ConfigError> {
    let modes = match follow {
        None => BTreeMap::new(),
        Some(raw::RawFollow::All(word)) => {
            BTreeMap::from([(ANY.to_owned(), follow_mode("storage.ipfs.follow", &word)?)])
        }
        Some(raw::RawFollow::ByName(words)) => {
            let read = |(name, word): (String, String)| {
                let key = format!("storage.ipfs.follow.{name}");
                if name != ANY && !names.contains(&name) {
                    let reason = "this name is not one of storage.ipfs.readonlyipnskeys";
                    return Err(value_error(&key, &word, reason));
                }
                let mode = follow_mode(&key, &word)?;
                Ok((name, mode))
            };
            words.into_iter().map(read).collect::<Result<_, ConfigError>>()?
        }
    };
    let mode = |name: &str| modes.get(name).or_else(|| modes.get(ANY)).copied().unwrap_or_default();
    Ok(names.into_iter().map(|text| Name { follow: mode(&text), text }).collect())
}

fn follow_mode(key: &str, word: &str) -> Result<FollowMode, ConfigError> {
    match word {
        "none" => Ok(FollowMode::None),
        "" | "tags" => Ok(FollowMode::Tags),
        "all" => Ok(FollowMode::All),
        _ => Err(value_error(key, word, "none, tags or all is expected")),
    }
}

fn quota(key: &str, text: &str) -> Result<Option<u64>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = text.parse::<ByteSize>().ok().map(|size| size.as_u64());
    let wrong = || {
        let reason = "a size of 64MiB or more is expected, such as 50GiB; leave it empty for no limit";
        value_error(key, text, reason)
    };
    parsed.filter(|bytes| *bytes >= QUOTA_BYTES_MIN).map(Some).ok_or_else(wrong)
}

fn validation(raw: raw::Validation) -> Result<Validation, ConfigError> {
    let all_or_none = |key: &str, value: Option<String>, default| match value.as_deref() {
        None | Some("") => Ok(default),
        Some("all") => Ok(true),
        Some("none") => Ok(false),
        Some(other) => Err(value_error(key, other, "all or none is expected")),
    };
    let manifests = raw.manifests;
    let image_blobs = all_or_none("validation.manifests.images.blobs", manifests.images.blobs, true)?;
    let index_manifests =
        all_or_none("validation.manifests.indexes.platforms", manifests.indexes.platforms, false)?;
    let enabled = !raw.disabled.unwrap_or(false);
    Ok(Validation { image_blobs: image_blobs && enabled, index_manifests: index_manifests && enabled })
}

fn record_validity(text: &str) -> Result<Duration, ConfigError> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    let wrong = || {
        value_error(
            "storage.ipfs.recordvalidity",
            text,
            "a duration of an hour or more is expected, such as 8760h",
        )
    };
    parsed.filter(|validity| *validity >= RECORD_VALIDITY_MIN).ok_or_else(wrong)
}

pub(super) fn value_error(key: &str, value: &str, reason: &str) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), value: value.to_owned(), reason: reason.to_owned() }
}
