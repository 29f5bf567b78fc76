//! The sections `mirror` and `proxy`: which other registries are mirrored, and how each is asked.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;
use serde::de::{self, Deserializer};
use serde_json::Value;
use url::Url;
use wildmatch::WildMatch;
use zeroize::Zeroizing;

use super::check::value_error;
use super::raw::{Proxy, list, section};
use super::{ConfigError, Warning};
use crate::oci::{Host, RepoName, Tag};

const DOCKER_HUB: &str = "docker.io";
/// Where Docker Hub's registry is.
const DOCKER_HUB_URL: &str = "https://registry-1.docker.io";
const DOCKER_HUB_HOSTS: &[&str] = &["docker.io", "index.docker.io", "registry-1.docker.io"];
/// Every public registry.
const ANY: &str = "*";
const TAG_TTL: Duration = Duration::from_secs(60);
const STALE_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
const NEGATIVE_TTL: Duration = Duration::from_secs(5);

/// The keys of a registry's section, for suggestions.
pub(super) const REGISTRY_KEYS: &[&str] = &[
    "upstream",
    "username",
    "password",
    "identitytoken",
    "dockerconfig",
    "credentialhelper",
    "ca",
    "certificate",
    "key",
    "insecure",
    "httpproxy",
    "tagttl",
    "stalefor",
    "negativettl",
    "share",
    "prefetch",
];

/// The registries that are mirrored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullThrough {
    /// What a request means that names no registry.
    pub default_registry: Option<Host>,
    pub registries: BTreeMap<Host, RegistryConfig>,
    /// Any other, by its name over https.
    pub any: Option<RegistryConfig>,
}

impl PullThrough {
    /// Whether no registry is mirrored.
    pub fn is_off(&self) -> bool {
        self.registries.is_empty() && self.any.is_none()
    }

    /// Whether this registry is mirrored, by its name or by `"*"`.
    pub fn mirrors(&self, registry: &Host) -> bool {
        self.registries.contains_key(registry) || self.any.is_some()
    }
}

/// How one registry is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryConfig {
    /// Tried in this order. Empty: `https://` and the registry's name.
    pub endpoints: Vec<Url>,
    pub credentials: Credentials,
    /// PEM: authorities besides those of the system.
    pub ca: Option<PathBuf>,
    /// PEM: what we show of ourselves, and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Certificates are not checked, and redirects and token servers may have plain http.
    pub insecure: bool,
    pub http_proxy: Option<HttpProxy>,
    pub tag_ttls: TagTtls,
    /// How long a tag is served, beyond its time to live, while upstream does not answer.
    pub stale_for: Duration,
    /// How long "not there" and failures are remembered.
    pub negative_ttl: Duration,
    /// Whether peers of the mesh may have what is pulled through.
    pub share: bool,
    /// Whether all blobs of an image are fetched as soon as its manifest is asked for.
    pub prefetch: bool,
}

impl RegistryConfig {
    /// How long the answer of upstream is believed.
    pub fn tag_ttl(&self, repo: &RepoName, tag: &Tag) -> Duration {
        self.tag_ttls.of(repo, tag)
    }

    /// Whether nothing says that the registry has what is not for everybody.
    pub fn is_public(&self) -> bool {
        self.credentials == Credentials::default() && self.client_certificate.is_none()
    }

    /// The same for a list, which is as old as the tag in it that changes first.
    pub fn list_ttl(&self) -> Duration {
        self.tag_ttls.0.iter().map(|(_, ttl)| *ttl).min().unwrap_or(TAG_TTL)
    }
}

/// How a registry is told who we are; the first that is given counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub password: Option<(String, Secret)>,
    /// An OAuth2 refresh token.
    pub identity_token: Option<Secret>,
    /// `docker-credential-NAME`.
    pub helper: Option<String>,
    /// A config.json of Docker.
    pub docker_config: Option<PathBuf>,
}

/// What stands between us and a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProxy {
    /// Without the login.
    pub url: Url,
    /// Both percent-encoded, as they are in a URL.
    pub login: Option<(String, Secret)>,
}

/// What is not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// The error does not show it either.
impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::new(text)),
            Value::Null => Ok(Self::default()),
            _ => Err(de::Error::custom("text is expected: put it in quotes")),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Times to live by pattern. A pattern with a colon is held against `repository:tag`, one without against the tag; of
/// several that fit the longest counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagTtls(Vec<(String, Duration)>);

impl Default for TagTtls {
    fn default() -> Self {
        Self(vec![("*".to_owned(), TAG_TTL)])
    }
}

impl TagTtls {
    fn of(&self, repo: &RepoName, tag: &Tag) -> Duration {
        let full = format!("{repo}:{tag}");
        let fits = |pattern: &str| {
            WildMatch::new(pattern).matches(if pattern.contains(':') { &full } else { tag.as_str() })
        };
        let fitting = self.0.iter().filter(|(pattern, _)| fits(pattern));
        fitting.max_by_key(|(pattern, _)| pattern.len()).map_or(TAG_TTL, |(_, ttl)| *ttl)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawMirror {
    pub(super) defaultregistry: Option<String>,
    #[serde(deserialize_with = "section")]
    pub(super) registries: BTreeMap<String, Option<RawRegistry>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawRegistry {
    #[serde(deserialize_with = "list")]
    upstream: Option<Vec<String>>,
    username: Option<String>,
    password: Secret,
    identitytoken: Secret,
    dockerconfig: Option<String>,
    credentialhelper: Option<String>,
    ca: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    insecure: Option<bool>,
    httpproxy: Option<String>,
    tagttl: Option<RawTtl>,
    stalefor: Option<String>,
    negativettl: Option<String>,
    share: Option<RawShare>,
    prefetch: Option<bool>,
}

/// `no` is false to YAML.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "mesh or no is expected")]
enum RawShare {
    Flag(bool),
    Word(String),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a duration such as 60s, or patterns of tags with durations, is expected")]
enum RawTtl {
    All(String),
    ByPattern(BTreeMap<String, String>),
}

pub(super) fn check(
    mirror: RawMirror,
    proxy: &Proxy,
    warnings: &mut Vec<Warning>,
) -> Result<PullThrough, ConfigError> {
    let mut checked = PullThrough::default();
    for (name, raw) in mirror.registries {
        let key = format!("mirror.registries.{name}");
        let registry = registry(&key, raw.unwrap_or_default())?;
        if name == ANY {
            if !registry.endpoints.is_empty() {
                let reason = "leave it out: \"*\" stands for each registry by its own name";
                return Err(value_error(&format!("{key}.upstream"), registry.endpoints[0].as_str(), reason));
            }
            if registry.credentials.password.is_some() || registry.credentials.identity_token.is_some() {
                let reason = "credentials for every registry would go to whichever a client names: give those of one in its own section, or of several by dockerconfig or credentialhelper";
                return Err(value_error(&key, "username, password or identitytoken", reason));
            }
            checked.any = Some(registry);
            continue;
        }
        let host = host(&key, &name)?;
        let endpoints = match registry.endpoints {
            none if none.is_empty() => by_name(&host, registry.insecure)?,
            given => given,
        };
        checked.registries.insert(host, RegistryConfig { endpoints, ..registry });
    }
    if let Some(default) = text(mirror.defaultregistry) {
        let host = host("mirror.defaultregistry", &default)?;
        if !checked.registries.contains_key(&host) && checked.any.is_none() {
            let registry = RegistryConfig { endpoints: vec![url_of(&host)?], ..RegistryConfig::default() };
            checked.registries.insert(host.clone(), registry);
        }
        checked.default_registry = Some(host);
    }
    if let Some(remote) = text(proxy.remoteurl.clone()) {
        add_proxy(&mut checked, &remote, proxy, warnings)?;
    }
    Ok(checked)
}

/// distribution's form of a single upstream, which is what every request means.
fn add_proxy(
    checked: &mut PullThrough,
    remote: &str,
    proxy: &Proxy,
    warnings: &mut Vec<Warning>,
) -> Result<(), ConfigError> {
    let endpoint = url("proxy.remoteurl", remote)?;
    let named = match (endpoint.host_str().unwrap_or_default(), endpoint.port()) {
        (hub, None) if DOCKER_HUB_HOSTS.contains(&hub) => DOCKER_HUB.to_owned(),
        (host, Some(port)) => format!("{host}:{port}"),
        (host, None) => host.to_owned(),
    };
    let host = host("proxy.remoteurl", &named)?;
    if checked.registries.contains_key(&host) {
        warnings.push(Warning(format!(
            "config key proxy.remoteurl: mirror.registries.{host} goes before it; its credentials are ignored"
        )));
    }
    let password = text(proxy.username.clone()).map(|username| (username, proxy.password.clone()));
    let stale_for = match text(proxy.ttl.clone()).as_deref() {
        None => STALE_FOR,
        Some("0") => Duration::MAX,
        Some(ttl) => duration("proxy.ttl", ttl)?,
    };
    let endpoints = if named == DOCKER_HUB { vec![url_of(&host)?] } else { vec![endpoint] };
    let credentials = Credentials { password, ..Credentials::default() };
    let registry = RegistryConfig { endpoints, credentials, stale_for, ..RegistryConfig::default() };
    checked.registries.entry(host.clone()).or_insert(registry);
    checked.default_registry.get_or_insert(host);
    Ok(())
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            credentials: Credentials::default(),
            ca: None,
            client_certificate: None,
            insecure: false,
            http_proxy: None,
            tag_ttls: TagTtls::default(),
            stale_for: STALE_FOR,
            negative_ttl: NEGATIVE_TTL,
            share: true,
            prefetch: true,
        }
    }
}

fn registry(key: &str, raw: RawRegistry) -> Result<RegistryConfig, ConfigError> {
    let at = |name: &str| format!("{key}.{name}");
    let endpoints = raw.upstream.unwrap_or_default();
    let endpoints = endpoints.iter().map(|endpoint| url(&at("upstream"), endpoint));
    let client_certificate = match (text(raw.certificate), text(raw.key)) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        (Some(_), None) => return Err(value_error(&at("key"), "", "the key of the certificate is missing")),
        (None, Some(_)) => {
            return Err(value_error(&at("certificate"), "", "the certificate of the key is missing"));
        }
    };
    let share = match raw.share {
        None => true,
        Some(RawShare::Flag(share)) => share,
        Some(RawShare::Word(word)) => match word.as_str() {
            "" | "mesh" => true,
            "no" => false,
            other => return Err(value_error(&at("share"), other, "mesh or no is expected")),
        },
    };
    let duration_or = |name: &str, value: Option<String>, default| match text(value) {
        Some(value) => duration(&at(name), &value),
        None => Ok(default),
    };
    let tag_ttls = match raw.tagttl {
        None => TagTtls::default(),
        Some(RawTtl::All(ttl)) => TagTtls(vec![("*".to_owned(), duration(&at("tagttl"), &ttl)?)]),
        Some(RawTtl::ByPattern(patterns)) => {
            let read = |(pattern, ttl): (String, String)| {
                let ttl = duration(&format!("{}.{pattern}", at("tagttl")), &ttl)?;
                Ok((pattern, ttl))
            };
            TagTtls(patterns.into_iter().map(read).collect::<Result<_, ConfigError>>()?)
        }
    };
    let helper = text(raw.credentialhelper);
    if let Some(helper) = helper.as_deref().filter(|helper| helper.contains(['/', ' '])) {
        let reason = "a name is expected, such as pass for docker-credential-pass";
        return Err(value_error(&at("credentialhelper"), helper, reason));
    }
    Ok(RegistryConfig {
        endpoints: endpoints.collect::<Result<_, _>>()?,
        credentials: Credentials {
            password: text(raw.username).map(|username| (username, raw.password)),
            identity_token: Some(raw.identitytoken).filter(|token| !token.reveal().is_empty()),
            helper,
            docker_config: text(raw.dockerconfig).map(PathBuf::from),
        },
        ca: text(raw.ca).map(PathBuf::from),
        client_certificate,
        insecure: raw.insecure.unwrap_or(false),
        http_proxy: text(raw.httpproxy).map(|proxy| http_proxy(&at("httpproxy"), &proxy)).transpose()?,
        tag_ttls,
        stale_for: duration_or("stalefor", raw.stalefor, STALE_FOR)?,
        negative_ttl: duration_or("negativettl", raw.negativettl, NEGATIVE_TTL)?,
        share,
        prefetch: raw.prefetch.unwrap_or(true),
    })
}

fn text(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

fn host(key: &str, name: &str) -> Result<Host, ConfigError> {
    name.parse().map_err(|_| {
        value_error(
            key,
            name,
            "the name of a registry is expected, such as docker.io or registry.example:5000",
        )
    })
}

fn url_of(host: &Host) -> Result<Url, ConfigError> {
    let text = match host.as_str() {
        DOCKER_HUB => DOCKER_HUB_URL.to_owned(),
        host => format!("https://{host}"),
    };
    url("mirror.registries", &text)
}

/// Where a registry is that has no more than a name. What is insecure may have plain http too.
fn by_name(host: &Host, insecure: bool) -> Result<Vec<Url>, ConfigError> {
    let mut endpoints = vec![url_of(host)?];
    if insecure {
        endpoints.push(url("mirror.registries", &format!("http://{host}"))?);
    }
    Ok(endpoints)
}

fn url(key: &str, text: &str) -> Result<Url, ConfigError> {
    let parsed = http_url(text).filter(|url| url.username().is_empty() && url.password().is_none());
    let reason = "a URL is expected, such as https://registry.example, without a user or a query";
    parsed.ok_or_else(|| value_error(key, without_login(text), reason))
}

fn http_proxy(key: &str, text: &str) -> Result<HttpProxy, ConfigError> {
    let wrong = || {
        let reason = "the URL of a proxy is expected, such as http://proxy.example:3128";
        value_error(key, without_login(text), reason)
    };
    let mut url = http_url(text).ok_or_else(wrong)?;
    let user = Some(url.username().to_owned()).filter(|user| !user.is_empty());
    let login = user.map(|user| (user, Secret::new(url.password().unwrap_or_default().to_owned())));
    url.set_username("").and_then(|()| url.set_password(None)).map_err(|()| wrong())?;
    Ok(HttpProxy { url, login })
}

fn http_url(text: &str) -> Option<Url> {
    let plain = |url: &Url| url.has_host() && url.query().is_none() && url.fragment().is_none();
    Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && plain(url))
}

/// A password that was written into a URL must not get into a log.
fn without_login(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, rest)| rest)
}

fn duration(key: &str, text: &str) -> Result<Duration, ConfigError> {
    let parsed = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    parsed.ok_or_else(|| value_error(key, text, "a duration is expected, such as 60s or 24h"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_patterns_that_fit_a_tag_the_longest_counts() {
        let seconds = |pattern: &str, s| (pattern.to_owned(), Duration::from_secs(s));
        let ttls = TagTtls(vec![
            seconds("*", 60),
            seconds("v*", 3600),
            seconds("*:latest", 0),
            seconds("library/*:latest", 5),
        ]);
        let ttl = |repo: &str, tag: &str| ttls.of(&repo.parse().unwrap(), &tag.parse().unwrap()).as_secs();
        assert_eq!(ttl("a/b", "main"), 60);
        assert_eq!(ttl("a/b", "v1.2"), 3600);
        assert_eq!(ttl("a/b", "latest"), 0);
        assert_eq!(ttl("library/alpine", "latest"), 5);
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::new("hunter2".to_owned());
        assert!(!format!("{secret:?}").contains("hunter2"));
        let refused = url("k", "https://user:hunter2@registry.example").unwrap_err();
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
        let proxy = http_proxy("k", "http://user:hunter2@proxy.example:3128").unwrap();
        assert!(!format!("{proxy:?}").contains("hunter2"), "{proxy:?}");
        let refused = http_proxy("k", "ftp://user:hunter2@proxy.example").unwrap_err();
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }
}
