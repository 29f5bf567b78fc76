//! `daemon.json`: where the Docker engine looks for Docker Hub's images (moby, docs of `dockerd --registry-mirror`).
//! Pure.

use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstRootNode};
use serde_json::Value;

use super::{MirrorUrl, Version};

pub(in crate::cli) const CONFIG: &str = "/etc/docker/daemon.json";
/// `hosts.toml` files of all registries, as containerd has them.
pub(in crate::cli) const HOSTS_DIR: &str = "/etc/docker/certs.d";
/// That of Docker Hub, which goes before `registry-mirrors` (moby#52890).
pub(in crate::cli) const HUB_HOSTS: &str = "/etc/docker/certs.d/docker.io/hosts.toml";

const MIRRORS: &str = "registry-mirrors";
const INSECURE: &str = "insecure-registries";
/// The first Docker that has containerd's image store by default.
const STORE_SINCE: Version = Version::new(29, 0);
/// The oldest Docker that was seen to read `hosts.toml` files for that store.
const HOSTS_SINCE: Version = Version::new(28, 5);

/// What of the file concerns mirrors.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct DaemonJson {
    /// Of Docker Hub, in the order in which they are asked.
    pub(in crate::cli) mirrors: Vec<String>,
    /// Registries that are spoken to without TLS.
    pub(in crate::cli) insecure: Vec<String>,
    /// Whether images go to containerd's store; `None`: as the engine's version has it.
    containerd_store: Option<bool>,
}

impl DaemonJson {
    pub(in crate::cli) fn parse(text: &str) -> Result<Self, String> {
        let value = parse(text)?;
        let words = |key: &str| match value.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(words)) => {
                let words = words.iter().map(|word| word.as_str().map(str::to_owned));
                words.collect::<Option<Vec<_>>>().ok_or_else(|| format!("{key} is not a list of strings"))
            }
            Some(_) => Err(format!("{key} is not a list of strings")),
        };
        Ok(Self {
            mirrors: words(MIRRORS)?,
            insecure: words(INSECURE)?,
            containerd_store: value.pointer("/features/containerd-snapshotter").and_then(Value::as_bool),
        })
    }

    pub(in crate::cli) fn asks_first(&self, mirror: &MirrorUrl) -> bool {
        self.mirrors.first().is_some_and(|first| is(first, mirror))
    }

    /// Whether it speaks plain HTTP to the mirror, if it has to.
    pub(in crate::cli) fn reaches(&self, mirror: &MirrorUrl) -> bool {
        let named = || self.insecure.iter().any(|name| name == mirror.authority());
        !mirror.is_plain() || mirror.is_loopback() || named()
    }

    /// Whether an engine of this version has a store of its own, by which it asks without `ns`.
    pub(in crate::cli) fn is_classic(&self, version: Option<Version>) -> bool {
        let by_default = version.is_some_and(|version| version >= STORE_SINCE);
        !self.containerd_store.unwrap_or(by_default)
    }

    /// Whether an engine of this version reads `hosts.toml` files, and so can have mirrors of any registry.
    pub(in crate::cli) fn reads_hosts(&self, version: Option<Version>) -> bool {
        !self.is_classic(version) && version.is_none_or(|version| version >= HOSTS_SINCE)
    }
}

fn is(url: &str, mirror: &MirrorUrl) -> bool {
    url.parse().as_ref() == Ok(mirror)
}

/// The engine takes plain JSON only. An empty file is an empty object.
fn parse(text: &str) -> Result<Value, String> {
    let value = if text.trim().is_empty() {
        Ok(Value::Object(serde_json::Map::new()))
    } else {
        serde_json::from_str(text)
    };
    match value {
        Ok(value) if value.is_object() => Ok(value),
        Ok(_) => Err("it is not an object".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The file with the mirror before the others; all else stays as it is written.
pub(in crate::cli) fn with_mirror(text: &str, mirror: &MirrorUrl) -> Result<String, String> {
    let found = DaemonJson::parse(text)?;
    if found.asks_first(mirror) && found.reaches(mirror) {
        return Ok(text.to_owned());
    }
    let root = CstRootNode::parse(text, &ParseOptions::default()).map_err(|error| error.to_string())?;
    let object = root.object_value_or_set();
    if !found.asks_first(mirror) {
        let mirrors = object.array_value_or_set(MIRRORS);
        let others = found.mirrors.iter().zip(mirrors.elements());
        for (_, element) in others.filter(|(url, _)| is(url, mirror)) {
            element.remove();
        }
        mirrors.insert(0, CstInputValue::String(mirror.to_string()));
    }
    if !found.reaches(mirror) {
        object.array_value_or_set(INSECURE).append(CstInputValue::String(mirror.authority().to_owned()));
    }
    let mut written = root.to_string();
    if !written.ends_with('\n') && (text.is_empty() || text.ends_with('\n')) {
        written.push('\n');
    }
    DaemonJson::parse(&written)?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mirror(text: &str) -> MirrorUrl {
        text.parse().unwrap()
    }

    #[test]
    fn keys_and_their_order_stay() {
        let text = "{\n  \"log-driver\": \"journald\",\n  \"registry-mirrors\": [\"https://old.lan\"],\n  \"bip\": \"10.0.0.1/24\"\n}\n";
        let written = with_mirror(text, &mirror("http://127.0.0.1:5000")).unwrap();
        assert_eq!(written, text.replace("[\"https", "[\"http://127.0.0.1:5000\", \"https"));
        assert_eq!(with_mirror(&written, &mirror("http://127.0.0.1:5000")).unwrap(), written);
    }

    #[test]
    fn an_empty_file_becomes_an_object() {
        for text in ["", "{}", "{}\n", " \n"] {
            let written = with_mirror(text, &mirror("http://127.0.0.1:5000")).unwrap();
            assert!(
                DaemonJson::parse(&written).unwrap().asks_first(&mirror("http://127.0.0.1:5000")),
                "{written}"
            );
        }
    }

    #[test]
    fn plain_http_to_another_machine_has_to_be_allowed() {
        let elsewhere = mirror("http://10.0.0.1:5000");
        let written = with_mirror("{}", &elsewhere).unwrap();
        assert_eq!(DaemonJson::parse(&written).unwrap().insecure, ["10.0.0.1:5000"]);
        assert_eq!(with_mirror(&written, &elsewhere).unwrap(), written);
        for there in ["https://10.0.0.1:5000", "http://127.0.0.1:5000"] {
            assert!(!with_mirror("{}", &mirror(there)).unwrap().contains("insecure"), "{there}");
        }
    }

    #[test]
    fn what_the_engine_would_not_take_is_refused() {
        for text in [
            "{",
            "[]",
            "{} // no",
            "{\"registry-mirrors\": \"x\"}",
            "{\"registry-mirrors\": [1]}",
            "{\"a\": 1,}",
        ] {
            assert!(with_mirror(text, &mirror("http://a:1")).is_err(), "{text}");
        }
    }

    #[test]
    fn hosts_files_are_for_the_store_of_containerd() {
        let json = |text: &str| DaemonJson::parse(text).unwrap();
        let (on, off) = (
            json("{\"features\": {\"containerd-snapshotter\": true}}"),
            json("{\"features\": {\"containerd-snapshotter\": false}}"),
        );
        let unsaid = json("{}");
        for (json, version, classic, hosts) in [
            (&unsaid, Some(Version::new(29, 0)), false, true),
            (&off, Some(Version::new(29, 0)), true, false),
            (&on, Some(Version::new(28, 5)), false, true),
            (&unsaid, Some(Version::new(28, 5)), true, false),
            (&on, Some(Version::new(26, 1)), false, false),
            (&on, None, false, true),
            (&unsaid, None, true, false),
        ] {
            assert_eq!(json.is_classic(version), classic, "{json:?} {version:?}");
            assert_eq!(json.reads_hosts(version), hosts, "{json:?} {version:?}");
        }
    }

    proptest! {
        #[test]
        fn mirrors_of_others_and_other_keys_stay(
            others in proptest::collection::vec("https://[a-c]", 0..4),
            ours_at in proptest::option::of(0_usize..4),
            key in "[d-z]{1,8}",
            pretty: bool,
        ) {
            let mirror = mirror("http://10.0.0.1:5000");
            let mut mirrors = others.clone();
            if let Some(at) = ours_at { mirrors.insert(at.min(others.len()), mirror.to_string()); }
            let value = serde_json::json!({key.clone(): {"x": [1, {}]}, "registry-mirrors": mirrors});
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let written = with_mirror(&text, &mirror).unwrap();
            let found: Value = serde_json::from_str(&written).unwrap();
            prop_assert_eq!(&found[&key], &value[&key]);
            let after = DaemonJson::parse(&written).unwrap();
            prop_assert!(after.asks_first(&mirror) && after.reaches(&mirror));
            prop_assert_eq!(&after.mirrors[1..], &others[..]);
            prop_assert_eq!(with_mirror(&written, &mirror).unwrap(), written);
        }
    }
}
