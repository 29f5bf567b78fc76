//! File and environment → checked [`Config`], a plain struct per part; every default and bound.
//!
//! The schema is distribution's, so that every operator knows it and the predecessor's files work, with sections of our
//! own. A value that this version cannot honour is refused, never silently ignored.

mod auth;
mod check;
mod env;
mod http;
mod kubo;
mod log;
mod mirror;
mod naming;
mod p2p;
mod raw;

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;

pub use auth::{AuthConfig, AuthMethod, TokenConfig};
pub use http::{
    HttpConfig, Net, SELF_SIGNED_CERTIFICATE, SELF_SIGNED_FOLDER, TlsConfig, TlsPair, TlsVersion, Urls,
};
pub use kubo::{KuboApi, KuboConfig};
pub use log::{LogConfig, LogLevel};
pub use mirror::{Credentials, HttpProxy, PullThrough, RegistryConfig, Secret};
pub use naming::NamingConfig;
pub use p2p::P2pConfig;

/// Every key with its default, and what each means.
pub const DEFAULT_YAML: &str = include_str!("../../config/default.yaml");

/// What the daemon runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub log: LogConfig,
    pub http: HttpConfig,
    pub auth: AuthConfig,
    pub store: StoreConfig,
    pub validation: Validation,
    pub names: NamesConfig,
    pub naming: NamingConfig,
    pub p2p: P2pConfig,
    /// The daemon that is the network; `None`: the embedded node.
    pub kubo: Option<KuboConfig>,
    pub pull_through: PullThrough,
    pub limits: Limits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    pub root_directory: PathBuf,
    /// Whether clients may delete what they pushed.
    pub delete_enabled: bool,
    /// Bytes that what was pulled through may take; `None`: no limit.
    pub quota_bytes: Option<u64>,
}

/// What of a manifest's content must be there before it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validation {
    /// The config and layers of an image, those that may not be pushed excepted.
    pub image_blobs: bool,
    /// The manifests of an index.
    pub index_manifests: bool,
}

/// What is brought here of a name before anybody asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FollowMode {
    /// Nothing: all is fetched on demand.
    None,
    /// All tags and manifests.
    #[default]
    Tags,
    /// Every blob too.
    All,
}

/// A name that is followed, as the config has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub text: String,
    pub follow: FollowMode,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesConfig {
    /// The key that is published under; `None`: a read-only daemon.
    pub write_key: Option<String>,
    /// Key names or IPNS names, in the order they are asked.
    pub readonly: Vec<Name>,
    /// Bytes of the store above which no further blob of a name is brought here; `None`: no limit.
    pub follow_quota_bytes: Option<u64>,
    pub record_validity: Duration,
}

/// What nobody has had to configure yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub uploads_max: usize,
    pub upload_idle_timeout: Duration,
    pub http: HttpLimits,
    pub p2p_connections_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            uploads_max: 1024,
            upload_idle_timeout: Duration::from_secs(3600),
            http: HttpLimits::default(),
            p2p_connections_max: 512,
        }
    }
}

/// What one listener and its connections may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    pub connections_max: usize,
    /// Handshakes of TLS that run at once; further ones wait, within their time-out.
    pub handshakes_max: usize,
    pub handshake_timeout: Duration,
    /// From the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    pub header_bytes_max: usize,
    /// Of what is read ahead of a request's body, and of what waits to be written.
    pub buffer_bytes_max: usize,
    /// A connection on which nothing is asked.
    pub idle_timeout: Duration,
    /// A request's body of which no byte comes.
    pub body_stall_timeout: Duration,
    /// An answer of which the client takes nothing.
    pub send_stall_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections_max: 12_288,
            handshakes_max: 4096,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            header_bytes_max: 64 * 1024,
            buffer_bytes_max: 512 * 1024,
            idle_timeout: Duration::from_secs(300),
            body_stall_timeout: Duration::from_secs(60),
            send_stall_timeout: Duration::from_secs(600),
        }
    }
}

/// Something in the config that is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

/// Why a config is refused: one line that names the key, the value, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read config file {}: {reason}", .path.display())]
    Read { path: PathBuf, reason: String },
    #[error("config file {} is not valid YAML: {reason}", .path.display())]
    Yaml { path: PathBuf, reason: String },
    #[error("environment variable {name} = {value:?}: {reason}")]
    Environment { name: String, value: String, reason: String },
    #[error("config key {key} is unknown{hint}")]
    UnknownKey { key: String, hint: String },
    #[error("config key {key}: {reason}")]
    Type { key: String, reason: String },
    #[error("config key {key} = {value:?}: {reason}")]
    Value { key: String, value: String, reason: String },
}

impl Config {
    /// Reads the file, if one is given, lays the environment over it, and checks everything.
    pub fn load(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut file = match path {
            Some(path) => read(path)?,
            None => Value::Null,
        };
        let mut warnings = env::overlay(&mut file, environment)?;
        if file.is_null() {
            file = Value::Object(serde_json::Map::new());
        }
        let raw = parse(file, &mut warnings)?;
        let config = check::check(raw, &mut warnings)?;
        Ok((config, warnings))
    }
}

fn read(path: &Path) -> Result<Value, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Read { path: path.to_owned(), reason: error.to_string() })?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_saphyr::from_str(&text)
        .map_err(|error| ConfigError::Yaml { path: path.to_owned(), reason: first_line(&error.to_string()) })
}

fn parse(file: Value, warnings: &mut Vec<Warning>) -> Result<raw::Raw, ConfigError> {
    let mut ignored = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(file, &mut track);
    let parsed = serde_ignored::deserialize(tracked, |path| ignored.push(key_path(&path.to_string())));
    let raw = parsed.map_err(|error| ConfigError::Type {
        key: key_path(&track.path().to_string()),
        reason: error.to_string(),
    })?;
    for key in ignored {
        if is_of_distribution(&key) {
            warnings.push(Warning(format!("config key {key} has no meaning here and is ignored")));
            continue;
        }
        let hint = match key.strip_prefix("mirror.registries.").and_then(|below| below.rsplit_once('.')) {
            Some((_, word)) => nearest(word, mirror::REGISTRY_KEYS.iter().copied()).map(str::to_owned),
            None => nearest(&key, paths(schema()).iter().map(String::as_str)).map(str::to_owned),
        };
        let hint = hint.map(|known| format!(": did you mean {known}?")).unwrap_or_default();
        return Err(ConfigError::UnknownKey { key, hint });
    }
    Ok(raw)
}

/// serde_ignored writes a `?` where an option was.
fn key_path(path: &str) -> String {
    path.split('.').filter(|word| *word != "?").collect::<Vec<_>>().join(".")
}

/// Keys of distribution's own schema that mean nothing to this daemon.
const OF_DISTRIBUTION: &[&str] = &[
    "log.hooks",
    "log.reportcaller",
    "loglevel",
    "auth.none",
    "http.h2c",
    "http.secret",
    "http.tls.ciphersuites",
    "http.tls.letsencrypt",
    "storage.azure",
    "storage.cache",
    "storage.filesystem",
    "storage.gcs",
    "storage.inmemory",
    "storage.maintenance",
    "storage.redirect",
    "storage.s3",
    "storage.tag",
    "middleware.registry",
    "middleware.storage",
    "proxy.exec",
    "catalog",
    "health",
    "notifications",
    "policy",
    "redis",
    "reporting",
    "validation.manifests.urls",
    "validation.manifests.indexes.platformlist",
];

fn is_of_distribution(key: &str) -> bool {
    OF_DISTRIBUTION
        .iter()
        .any(|known| key == *known || key.strip_prefix(known).is_some_and(|rest| rest.starts_with('.')))
}

/// The shape of the file: [`DEFAULT_YAML`], which has every key.
fn schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> =
        LazyLock::new(|| serde_saphyr::from_str(DEFAULT_YAML).unwrap_or_default());
    &SCHEMA
}

/// The dotted names of all keys.
fn paths(value: &Value) -> Vec<String> {
    let Value::Object(keys) = value else { return Vec::new() };
    let below = |(key, value): (&String, &Value)| {
        let deeper = paths(value).into_iter().map(move |rest| format!("{key}.{rest}"));
        std::iter::once(key.clone()).chain(deeper).collect::<Vec<_>>()
    };
    keys.iter().flat_map(below).collect()
}

/// The candidate that `word` was probably meant to be.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const SIMILARITY_MIN: f64 = 0.75;
    let rated =
        candidates.map(|candidate| (strsim::normalized_damerau_levenshtein(word, candidate), candidate));
    rated
        .filter(|(rate, _)| *rate >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Reads whatever bytes as a config file: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let mut warnings = Vec::new();
    if let Ok(text) = str::from_utf8(bytes)
        && let Ok(file) = serde_saphyr::from_str(text)
        && let Ok(raw) = parse(file, &mut warnings)
    {
        let _ = check::check(raw, &mut warnings);
    }
}

#[cfg(test)]
mod auth_tests;
#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod mirror_tests;
#[cfg(test)]
mod names_tests;
#[cfg(test)]
mod p2p_tests;
#[cfg(test)]
mod tests;
