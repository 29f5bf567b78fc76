//! The file as it is written: distribution's schema, and our own sections beside it. Nothing is checked here but types.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{self, Deserializer};
use serde_json::{Map, Value};

use super::auth::RawAuth;
use super::mirror::{RawMirror, Secret};

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
    pub(super) mirror: RawMirror,
    #[serde(deserialize_with = "section")]
    pub(super) validation: Validation,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Log {
    pub(super) level: Option<String>,
    pub(super) formatter: Option<String>,
    #[serde(deserialize_with = "section")]
    pub(super) fields: Map<String, Value>,
    #[serde(deserialize_with = "section")]
    pub(super) accesslog: Switch,
}

/// A section that says whether something is off.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Switch {
    pub(super) disabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Http {
    pub(super) addr: Option<String>,
    pub(super) net: Option<String>,
    pub(super) prefix: Option<String>,
    pub(super) host: Option<String>,
    pub(super) relativeurls: Option<bool>,
    #[serde(deserialize_with = "section")]
    pub(super) headers: Headers,
    pub(super) draintimeout: Option<String>,
    #[serde(deserialize_with = "section")]
    pub(super) http2: Switch,
    #[serde(deserialize_with = "section")]
    pub(super) debug: Debug,
    #[serde(deserialize_with = "section")]
    pub(super) tls: Tls,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Debug {
    pub(super) addr: Option<String>,
    #[serde(deserialize_with = "section")]
    pub(super) prometheus: Prometheus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Prometheus {
    pub(super) enabled: Option<bool>,
    pub(super) path: Option<String>,
}

/// Names of headers with their values.
pub(super) type Headers = BTreeMap<String, HeaderValues>;

/// A list, or one value alone: unlike other lists it may have commas.
#[derive(Debug)]
pub(super) struct HeaderValues(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for HeaderValues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a list of strings is expected")]
        enum Values {
            Many(Vec<String>),
            One(String),
        }
        Ok(Self(match Values::deserialize(deserializer)? {
            Values::Many(values) => values,
            Values::One(value) => vec![value],
        }))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Tls {
    pub(super) certificate: Option<String>,
    pub(super) key: Option<String>,
    #[serde(deserialize_with = "list")]
    pub(super) clientcas: Option<Vec<String>>,
    pub(super) clientauth: Option<String>,
    pub(super) minimumtls: Option<String>,
    pub(super) selfsigned: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Storage {
    #[serde(deserialize_with = "section")]
    pub(super) ipfs: Ipfs,
    #[serde(deserialize_with = "section")]
    pub(super) delete: Delete,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Delete {
    pub(super) enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ipfs {
    pub(super) rootdirectory: Option<String>,
    pub(super) quota: Option<String>,
    pub(super) ipfsapiaddress: Option<String>,
    pub(super) ipfsapiauth: Secret,
    pub(super) ipfsapica: Option<String>,
    pub(super) writeipnskey: Option<String>,
    #[serde(deserialize_with = "list")]
    pub(super) readonlyipnskeys: Option<Vec<String>>,
    pub(super) follow: Option<RawFollow>,
    pub(super) followquota: Option<String>,
    pub(super) recordvalidity: Option<String>,
    pub(super) nameserver: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "none, tags or all, or names with one of these, is expected")]
pub(super) enum RawFollow {
    All(String),
    ByName(BTreeMap<String, String>),
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
    pub(super) username: Option<String>,
    pub(super) password: Secret,
    #[serde(deserialize_with = "number_or_text")]
    pub(super) ttl: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct P2p {
    #[serde(deserialize_with = "list")]
    pub(super) listen: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub(super) announce: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub(super) addressfilters: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub(super) bootstrap: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub(super) peers: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub(super) delegatedrouters: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub(super) gateways: Option<Vec<String>>,
    pub(super) swarmkey: Option<String>,
    pub(super) mdns: Option<bool>,
    pub(super) pubsub: Option<bool>,
    pub(super) nat: Option<bool>,
    pub(super) upnp: Option<bool>,
    pub(super) relay: Option<bool>,
    #[serde(deserialize_with = "list")]
    pub(super) relays: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Validation {
    pub(super) disabled: Option<bool>,
    #[serde(deserialize_with = "section")]
    pub(super) manifests: ManifestValidation,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ManifestValidation {
    #[serde(deserialize_with = "section")]
    pub(super) images: ImageValidation,
    #[serde(deserialize_with = "section")]
    pub(super) indexes: IndexValidation,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ImageValidation {
    pub(super) blobs: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct IndexValidation {
    pub(super) platforms: Option<String>,
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

/// distribution's `0` beside its `168h`.
fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(Some(text)),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Null => Ok(None),
        other => Err(de::Error::custom(format!("{other} is neither text nor a number"))),
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
