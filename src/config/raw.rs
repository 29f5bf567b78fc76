//! The file as it is written: distribution's schema, and our own sections beside it. Nothing is checked here but types.

use serde::Deserialize;
use serde::de::{self, Deserializer};
use serde_json::Value;

use super::auth::RawAuth;

/// The whole file. A section that is absent or empty has its defaults.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Raw {
    #[serde(deserialize_with = "version")]
    pub(super) version: String,
    #[serde(deserialize_with = "section")]
    pub(super) log: Log,
    #[serde(deserialize_with = "section")]
    pub(super) http: Http,
    #[serde(deserialize_with = "section")]
    pub(super) auth: RawAuth,
    #[serde(deserialize_with = "section")]
    pub(super) storage: Storage,
    #[serde(deserialize_with = "section")]
    pub(super) middleware: Middleware,
    #[serde(deserialize_with = "section")]
    pub(super) proxy: Proxy,
    #[serde(deserialize_with = "section")]
    pub(super) p2p: P2p,
    #[serde(deserialize_with = "section")]
    pub(super) mirror: Mirror,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    pub(super) level: Option<String>,
    pub(super) formatter: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Http {
    pub(super) addr: Option<String>,
    #[serde(deserialize_with = "section")]
    pub(super) debug: Debug,
    #[serde(deserialize_with = "section")]
    pub(super) tls: Tls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Debug {
    pub(super) addr: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tls {
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Storage {
    #[serde(deserialize_with = "section")]
    pub(super) ipfs: Ipfs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ipfs {
    pub(super) rootdirectory: Option<String>,
    pub(super) quota: Option<String>,
    pub(super) ipfsapiaddress: Option<String>,
    pub(super) writeipnskey: Option<String>,
    #[serde(deserialize_with = "list")]
    pub(super) readonlyipnskeys: Option<Vec<String>>,
    pub(super) recordvalidity: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Middleware {
    pub(super) repository: Option<Vec<RepositoryMiddleware>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RepositoryMiddleware {
    pub(super) name: Option<String>,
    #[serde(deserialize_with = "section")]
    pub(super) options: MiddlewareOptions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct MiddlewareOptions {
    pub(super) ipfsapiaddress: Option<String>,
    pub(super) ethnodeurl: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Proxy {
    pub(super) remoteurl: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct P2p {
    #[serde(deserialize_with = "list")]
    pub(super) listen: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub(super) announce: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub(super) bootstrap: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub(super) peers: Option<Vec<String>>,
    pub(super) swarmkey: Option<String>,
    pub(super) mdns: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Mirror {
    pub(super) defaultregistry: Option<String>,
    #[serde(deserialize_with = "section")]
    pub(super) registries: Value,
}

/// A key without a value is as good as none.
pub(super) fn section<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// `0.1` is a number to YAML and a word to people.
fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(version) => Ok(version),
        Value::Number(version) => Ok(version.to_string()),
        Value::Null => Ok(String::new()),
        other => Err(de::Error::custom(format!("{other} is no version: 0.1 is expected"))),
    }
}

/// A list, or one string with commas, as the predecessor's users write it.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a list of strings, or one string with commas, is expected")]
    enum List {
        Many(Vec<String>),
        One(String),
    }
    let list = match Option::<List>::deserialize(deserializer)? {
        None => return Ok(None),
        Some(List::Many(list)) => list,
        Some(List::One(words)) => words.split(',').map(str::to_owned).collect(),
    };
    let trimmed = list.iter().map(|word| word.trim().to_owned()).filter(|word| !word.is_empty());
    Ok(Some(trimmed.collect()))
}
