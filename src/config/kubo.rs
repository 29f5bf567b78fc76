//! `storage.ipfs.ipfsapiaddress` and what is beside it: the Kubo daemon that is the network instead of the embedded node.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use multibase::Base;
use url::{Host, Url};

use super::check::value_error;
use super::mirror::Secret;
use super::raw::{Ipfs, P2p, RepositoryMiddleware};
use super::{ConfigError, Warning};

const ADDRESS: &str = "storage.ipfs.ipfsapiaddress";
const AUTHORIZATION: &str = "storage.ipfs.ipfsapiauth";
const CA: &str = "storage.ipfs.ipfsapica";
/// The predecessor's second place for the same.
const OF_MIDDLEWARE: &str = "middleware.repository[].options.ipfsapiaddress";
/// Below it lie the commands of the API.
const API_PATH: &str = "api/v0/";

/// How a Kubo daemon is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KuboConfig {
    pub api: KuboApi,
    /// The value of the header `Authorization`.
    pub authorization: Option<Secret>,
    /// PEM: authorities besides those of the system.
    pub ca: Option<PathBuf>,
}

/// Where its RPC API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KuboApi {
    /// Without a login; ends with `/api/v0/`.
    Url(Url),
    Unix(PathBuf),
}

impl KuboApi {
    /// What the commands are below; over a Unix socket the host is not looked at.
    pub fn base(&self) -> Option<Url> {
        match self {
            Self::Url(url) => Some(url.clone()),
            Self::Unix(_) => format!("http://localhost/{API_PATH}").parse().ok(),
        }
    }
}

impl fmt::Display for KuboApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(url) => f.write_str(url.as_str().trim_end_matches(API_PATH).trim_end_matches('/')),
            Self::Unix(path) => write!(f, "/unix{}", path.display()),
        }
    }
}

/// `None`: the embedded node.
pub(super) fn check(
    raw: &Ipfs,
    middleware: Option<&[RepositoryMiddleware]>,
    warnings: &mut Vec<Warning>,
) -> Result<Option<KuboConfig>, ConfigError> {
    let ours = middleware.unwrap_or_default().iter().filter(|entry| entry.name.as_deref() == Some("ipfs"));
    let below =
        ours.filter_map(|entry| entry.options.ipfsapiaddress.as_deref()).find(|text| !text.is_empty());
    let own = raw.ipfsapiaddress.as_deref().filter(|text| !text.is_empty());
    let ca = raw.ipfsapica.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from);
    let secret = Some(&raw.ipfsapiauth).filter(|secret| !secret.reveal().is_empty());
    let Some((key, text)) = own.map(|text| (ADDRESS, text)).or(below.map(|text| (OF_MIDDLEWARE, text)))
    else {
        let alone = [(AUTHORIZATION, secret.is_some()), (CA, ca.is_some())];
        return match alone.iter().find(|(_, given)| *given) {
            Some((key, _)) => Err(wrong(key, &format!("it says how {ADDRESS} is asked, which is empty"))),
            None => Ok(None),
        };
    };
    if own.is_some() && below.is_some_and(|below| Some(below) != own) {
        warnings.push(Warning(format!("config key {OF_MIDDLEWARE} is ignored: {ADDRESS} serves both")));
    }
    let api = address(key, text)?;
    let authorization = secret.map(authorization).transpose()?;
    if authorization.is_some() && is_open_to_others(&api) {
        warnings.push(Warning(format!(
            "config key {AUTHORIZATION} goes over plain http to another machine: an https URL is better for {key}"
        )));
    }
    Ok(Some(KuboConfig { api, authorization, ca }))
}

/// One line for all that is configured and needs the embedded node.
pub(super) fn warn_of_node(raw: &P2p, warnings: &mut Vec<Warning>) {
    let given = [
        ("listen", raw.listen.is_some()),
        ("announce", raw.announce.is_some()),
        ("addressfilters", raw.addressfilters.is_some()),
        ("bootstrap", raw.bootstrap.is_some()),
        ("peers", raw.peers.as_ref().is_some_and(|peers| !peers.is_empty())),
        ("swarmkey", raw.swarmkey.as_ref().is_some_and(|path| !path.is_empty())),
        ("mdns", raw.mdns == Some(true)),
        ("pubsub", raw.pubsub == Some(true)),
    ];
    let keys: Vec<String> =
        given.iter().filter(|(_, given)| *given).map(|(key, _)| format!("p2p.{key}")).collect();
    if !keys.is_empty() {
        warnings.push(Warning(format!(
            "config keys {} have no effect: with {ADDRESS} the embedded node is not started, so that there is no mesh, \
             no pubsub and no mDNS of our own",
            keys.join(", ")
        )));
    }
}

/// Names the key and keeps the value to itself.
fn wrong(key: &str, reason: &str) -> ConfigError {
    ConfigError::Type { key: key.to_owned(), reason: reason.to_owned() }
}

fn address(key: &str, text: &str) -> Result<KuboApi, ConfigError> {
    let text = text.trim();
    if let Some(path) = text.strip_prefix("/unix/") {
        let path = path.trim_start_matches('/');
        if path.is_empty() {
            return Err(value_error(
                key,
                text,
                "the path of a socket is expected, such as /unix/run/ipfs.sock",
            ));
        }
        return Ok(KuboApi::Unix(format!("/{path}").into()));
    }
    let url = if text.starts_with('/') { multiaddr(text) } else { text.parse().ok() };
    let url = url.filter(|url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(mut url) = url else {
        let reason = "a multiaddr or URL is expected, such as /ip4/127.0.0.1/tcp/5001, /unix/run/ipfs.sock or \
                      https://kubo.example.org";
        return Err(value_error(key, text, reason));
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(key, &format!("a login has its place in {AUTHORIZATION}")));
    }
    let path = url.path().trim_end_matches('/').trim_end_matches("/api/v0").to_owned();
    url.set_path(&format!("{path}/{API_PATH}"));
    url.set_query(None);
    url.set_fragment(None);
    Ok(KuboApi::Url(url))
}

/// `/ip4`, `/ip6`, `/dns`, `/dns4` or `/dns6`, then `/tcp`, then perhaps `/http`, `/https` or `/tls/http`.
fn multiaddr(text: &str) -> Option<Url> {
    let parts: Vec<&str> = text.trim_end_matches('/').split('/').skip(1).collect();
    let (&[kind, host, "tcp", port], rest) = parts.split_first_chunk::<4>()? else { return None };
    let scheme = match rest {
        [] | ["http"] => "http",
        ["https"] | ["tls"] | ["tls", "http"] => "https",
        _ => return None,
    };
    let port: u16 = port.parse().ok()?;
    let host = match (kind, host.parse::<IpAddr>()) {
        ("ip4", Ok(ip @ IpAddr::V4(_))) => ip.to_string(),
        ("ip6", Ok(ip @ IpAddr::V6(_))) => format!("[{ip}]"),
        ("dns" | "dns4" | "dns6", Err(_)) => host.to_owned(),
        _ => return None,
    };
    format!("{scheme}://{host}:{port}/").parse().ok()
}

/// Kubo's own form: `bearer:TOKEN`, `basic:USER:PASSWORD`, or `basic:` with both in base64.
fn authorization(secret: &Secret) -> Result<Secret, ConfigError> {
    let reason =
        "bearer:TOKEN or basic:USER:PASSWORD is expected, as an AuthSecret of Kubo's API.Authorizations";
    let header = match secret.reveal().trim().split_once(':') {
        Some(("bearer", token)) if !token.is_empty() => format!("Bearer {token}"),
        Some(("basic", login)) if login.contains(':') => format!("Basic {}", Base::Base64Pad.encode(login)),
        Some(("basic", login)) if !login.is_empty() => format!("Basic {login}"),
        _ => return Err(wrong(AUTHORIZATION, reason)),
    };
    match header.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        true => Ok(Secret::new(header)),
        false => Err(wrong(AUTHORIZATION, reason)),
    }
}

fn is_open_to_others(api: &KuboApi) -> bool {
    let KuboApi::Url(url) = api else { return false };
    let is_here = match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "http" && !is_here
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(yaml: &str) -> Result<(Option<KuboConfig>, Vec<String>), String> {
        let raw: Ipfs = serde_saphyr::from_str(yaml).unwrap();
        let mut warnings = Vec::new();
        let checked = check(&raw, None, &mut warnings).map_err(|error| error.to_string())?;
        Ok((checked, warnings.into_iter().map(|warning| warning.0).collect()))
    }

    fn api(text: &str) -> KuboApi {
        with(&format!("ipfsapiaddress: \"{text}\"")).unwrap().0.unwrap().api
    }

    #[test]
    fn an_api_is_a_multiaddr_or_a_url() {
        assert_eq!(with("ipfsapiaddress: \"\"").unwrap().0, None);
        for (text, base) in [
            ("/ip4/127.0.0.1/tcp/5001", "http://127.0.0.1:5001/api/v0/"),
            ("/ip6/::1/tcp/5001", "http://[::1]:5001/api/v0/"),
            ("/dns4/kubo.example/tcp/443/tls/http", "https://kubo.example/api/v0/"),
            ("/dns/kubo/tcp/5001/http", "http://kubo:5001/api/v0/"),
            ("/unix/run/ipfs.sock", "http://localhost/api/v0/"),
            ("http://127.0.0.1:5001", "http://127.0.0.1:5001/api/v0/"),
            ("https://kubo.example/below/", "https://kubo.example/below/api/v0/"),
            ("https://kubo.example/api/v0", "https://kubo.example/api/v0/"),
        ] {
            assert_eq!(api(text).base().unwrap().as_str(), base, "{text}");
        }
        assert_eq!(api("/unix//run/ipfs.sock"), KuboApi::Unix("/run/ipfs.sock".into()));
        assert_eq!(api("/ip4/127.0.0.1/tcp/5001").to_string(), "http://127.0.0.1:5001");
        assert_eq!(api("/unix/run/ipfs.sock").to_string(), "/unix/run/ipfs.sock");
    }

    #[test]
    fn what_is_no_api_is_refused() {
        for text in [
            "127.0.0.1:5001",
            "/ip4/127.0.0.1",
            "/ip4/kubo/tcp/5001",
            "/ip4/127.0.0.1/tcp/x",
            "/ip4/127.0.0.1/udp/5001/quic-v1",
            "/unix/",
            "ftp://kubo",
        ] {
            let error = with(&format!("ipfsapiaddress: \"{text}\"")).unwrap_err();
            assert!(error.starts_with("config key storage.ipfs.ipfsapiaddress = "), "{error}");
        }
    }

    #[test]
    fn credentials_are_in_the_form_of_kubo_and_stay_secret() {
        for (secret, header) in [
            ("bearer:t0ken", "Bearer t0ken"),
            ("basic:user:pass", "Basic dXNlcjpwYXNz"),
            ("basic:dXNlcjpwYXNz", "Basic dXNlcjpwYXNz"),
        ] {
            let yaml = format!("{{ipfsapiaddress: /ip4/127.0.0.1/tcp/5001, ipfsapiauth: \"{secret}\"}}");
            let (config, warnings) = with(&yaml).unwrap();
            assert_eq!(config.clone().unwrap().authorization.unwrap().reveal(), header);
            assert!(!format!("{config:?}").contains(header));
            assert_eq!(warnings, Vec::<String>::new());
        }
        for yaml in [
            "{ipfsapiaddress: /ip4/127.0.0.1/tcp/5001, ipfsapiauth: hunter2}",
            "{ipfsapiaddress: /ip4/127.0.0.1/tcp/5001, ipfsapiauth: \"bearer:hunter2\\n\\u0001\"}",
            "{ipfsapiaddress: \"http://user:hunter2@127.0.0.1:5001\"}",
            "{ipfsapiauth: \"bearer:hunter2\"}",
        ] {
            let error = with(yaml).unwrap_err();
            assert!(
                error.starts_with("config key storage.ipfs.ipfsapia") && !error.contains("hunter2"),
                "{error}"
            );
        }
        let (_, warnings) =
            with("{ipfsapiaddress: /ip4/10.0.0.1/tcp/5001, ipfsapiauth: \"bearer:x\"}").unwrap();
        assert!(warnings[0].contains("plain http"), "{warnings:?}");
    }
}
