//! The section `http`: where the registry listens, what it looks like from outside, TLS.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use jiff::SignedDuration;

use super::check::value_error;
use super::{ConfigError, raw};

const ADDR: &str = "127.0.0.1:5000";
const DEBUG_ADDR: &str = "127.0.0.1:5001";
const METRICS_PATH: &str = "/metrics";
/// Pages of the debug port that the metrics may not take the place of.
const DEBUG_PAGES: &[&str] = &["/", "/status", "/healthz"];
const DRAIN_TIMEOUT: Duration = Duration::from_secs(8);
/// Headers that say where an answer ends.
const FRAMING: &[HeaderName] = &[header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
/// Longer than this nobody waits for a daemon to stop.
const DRAIN_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpConfig {
    pub net: Net,
    /// Where the registry listens: `HOST:PORT`, or the path of a Unix socket.
    pub addr: String,
    /// `HOST:PORT` of metrics, health and status; `None`: off.
    pub debug_addr: Option<String>,
    /// The page of the metrics on the debug port, without what axum takes for a pattern; `None`: off.
    pub metrics_path: Option<String>,
    /// Above `/v2/`: empty, or with a slash at its beginning and none at its end.
    pub prefix: String,
    pub urls: Urls,
    /// Set on every answer, in the place of ours.
    pub headers: HeaderMap,
    /// How long a stop waits for requests that run.
    pub drain_timeout: Duration,
    /// Whether clients with TLS may choose HTTP/2.
    pub http2: bool,
    /// `None`: plain HTTP.
    pub tls: Option<TlsConfig>,
}

/// What kind of address the registry listens at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    Tcp,
    Unix,
}

/// How `Location` and `Link` name our own paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Urls {
    /// By path alone: every client resolves that against what it asked.
    Relative,
    /// With the scheme and host that the client, or the proxy before us, used.
    OfRequest,
    /// Below this URL, which has no slash at its end and includes the prefix.
    Below(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    pub pair: TlsPair,
    /// PEM files of the authorities that client certificates must come from; empty: none are asked for.
    pub client_cas: Vec<PathBuf>,
    /// Whether a client may come without a certificate, though one it shows must be good.
    pub client_optional: bool,
    pub minimum: TlsVersion,
}

/// Below the root directory: where a self-signed pair is kept, and in there the certificate alone, for clients.
pub const SELF_SIGNED_FOLDER: &str = "tls";
pub const SELF_SIGNED_CERTIFICATE: &str = "certificate.pem";

/// Where certificate and key come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsPair {
    Files {
        certificate: PathBuf,
        key: PathBuf,
    },
    /// Made for these DNS names and IP addresses, and kept below the root directory.
    SelfSigned {
        names: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    Tls12,
    Tls13,
}

pub(super) fn check(raw: raw::Http) -> Result<HttpConfig, ConfigError> {
    let net = match raw.net.as_deref().unwrap_or("tcp") {
        "" | "tcp" => Net::Tcp,
        "unix" => Net::Unix,
        other => return Err(value_error("http.net", other, "tcp or unix is expected")),
    };
    let addr = match net {
        Net::Tcp => host_and_port("http.addr", raw.addr.as_deref().unwrap_or(ADDR))?,
        Net::Unix => socket_path(raw.addr.unwrap_or_default())?,
    };
    let debug_addr = Some(raw.debug.addr.as_deref().unwrap_or(DEBUG_ADDR)).filter(|addr| !addr.is_empty());
    let debug_addr = debug_addr.map(|addr| host_and_port("http.debug.addr", addr)).transpose()?;
    let prefix = prefix(raw.prefix.as_deref().unwrap_or_default())?;
    let host = raw.host.filter(|host| !host.is_empty()).map(|host| Host::parse(&host)).transpose()?;
    let tls = tls(raw.tls, net, &addr, host.as_ref())?;
    Ok(HttpConfig {
        net,
        addr,
        debug_addr,
        metrics_path: metrics_path(raw.debug.prometheus)?,
        urls: match host {
            Some(host) => Urls::Below(host.base(&prefix)),
            None if raw.relativeurls == Some(false) => Urls::OfRequest,
            None => Urls::Relative,
        },
        prefix,
        headers: headers(raw.headers)?,
        drain_timeout: drain_timeout(raw.draintimeout.as_deref())?,
        http2: !raw.http2.disabled.unwrap_or(false),
        tls,
    })
}

/// `:5000` means every address, as Go has it.
fn host_and_port(key: &str, addr: &str) -> Result<String, ConfigError> {
    let wrong = || value_error(key, addr, "HOST:PORT is expected, such as 127.0.0.1:5000");
    let (host, port) = addr.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().map_err(|_| wrong())?;
    Ok(if host.is_empty() { format!("0.0.0.0:{port}") } else { addr.to_owned() })
}

fn socket_path(addr: String) -> Result<String, ConfigError> {
    if addr.is_empty() || addr.ends_with('/') {
        let reason = "with http.net: unix the path of a socket is expected, such as /run/shoal/registry.sock";
        return Err(value_error("http.addr", &addr, reason));
    }
    Ok(addr)
}

fn metrics_path(raw: raw::Prometheus) -> Result<Option<String>, ConfigError> {
    let path = raw.path.unwrap_or_else(|| METRICS_PATH.to_owned());
    if !path.starts_with('/') || !is_plain(&path) || DEBUG_PAGES.contains(&path.as_str()) {
        let reason = "a path of its own is expected, such as /metrics";
        return Err(value_error("http.debug.prometheus.path", &path, reason));
    }
    Ok(Some(path).filter(|_| raw.enabled.unwrap_or(true)))
}

/// Distribution wants both slashes; one that is missing is forgiven.
fn prefix(text: &str) -> Result<String, ConfigError> {
    let inner = text.trim_matches('/');
    if inner.is_empty() {
        return Ok(String::new());
    }
    if !is_plain(inner) || inner.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(value_error("http.prefix", text, "a path is expected, such as /registry/"));
    }
    Ok(format!("/{inner}"))
}

/// Whether a path needs no escaping, in a URL or in a pattern of the router.
fn is_plain(path: &str) -> bool {
    path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte))
}

/// The URL that `http.host` gives: where clients find us.
struct Host {
    scheme: String,
    authority: String,
    /// The host alone, an IPv6 address without its brackets.
    name: String,
    path: String,
}

impl Host {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong =
            || value_error("http.host", text, "a URL is expected, such as https://registry.example.org:5000");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let scheme =
            uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https")).ok_or_else(wrong)?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(wrong)?;
        if uri.query().is_some() || !is_plain(uri.path()) {
            return Err(wrong());
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            name: authority.host().trim_matches(['[', ']']).to_owned(),
            authority: authority.to_string(),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// A path of the URL stands for the prefix as clients see it, behind a proxy that rewrites say.
    fn base(&self, prefix: &str) -> String {
        let path = if self.path.is_empty() { prefix } else { &self.path };
        format!("{}://{}{path}", self.scheme, self.authority)
    }
}

fn headers(raw: raw::Headers) -> Result<HeaderMap, ConfigError> {
    let mut headers = HeaderMap::new();
    for (name, values) in raw {
        let key = format!("http.headers.{name}");
        let parsed = HeaderName::from_bytes(name.as_bytes());
        let parsed = parsed.map_err(|_| value_error(&key, &name, "this is no name of a header"))?;
        if FRAMING.contains(&parsed) {
            return Err(value_error(&key, &name, "this header is for the server to set: take it away"));
        }
        for value in values.0 {
            let value = HeaderValue::from_str(&value).map_err(|_| {
                value_error(&key, &value, "the value of a header has visible characters only")
            })?;
            headers.append(parsed.clone(), value);
        }
    }
    Ok(headers)
}

fn drain_timeout(text: Option<&str>) -> Result<Duration, ConfigError> {
    let Some(text) = text else { return Ok(DRAIN_TIMEOUT) };
    let parsed = text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok());
    let wrong = || value_error("http.draintimeout", text, "a duration of at most 1h is expected, such as 8s");
    parsed.filter(|timeout| *timeout <= DRAIN_TIMEOUT_MAX).ok_or_else(wrong)
}

fn tls(raw: raw::Tls, net: Net, addr: &str, host: Option<&Host>) -> Result<Option<TlsConfig>, ConfigError> {
    let file = |path: Option<String>| path.filter(|path| !path.is_empty()).map(PathBuf::from);
    let shown = |path: &PathBuf| path.display().to_string();
    let client_cas: Vec<PathBuf> = raw.clientcas.unwrap_or_default().into_iter().map(PathBuf::from).collect();
    let self_signed = raw.selfsigned.unwrap_or(false);
    let pair = match (file(raw.certificate), file(raw.key)) {
        (Some(certificate), _) if self_signed => {
            let reason = "it cannot stand beside http.tls.selfsigned: true; take one of the two away";
            return Err(value_error("http.tls.certificate", &shown(&certificate), reason));
        }
        (Some(certificate), Some(key)) => TlsPair::Files { certificate, key },
        (Some(certificate), None) => {
            let reason = "http.tls.key is missing: the file of its private key";
            return Err(value_error("http.tls.certificate", &shown(&certificate), reason));
        }
        (None, Some(key)) => {
            let reason = "http.tls.certificate is missing: the file of its certificate chain";
            return Err(value_error("http.tls.key", &shown(&key), reason));
        }
        (None, None) if self_signed => TlsPair::SelfSigned { names: names(net, addr, host) },
        (None, None) => {
            return match client_cas.first() {
                Some(path) => {
                    let reason = "there is no TLS without http.tls.certificate and http.tls.key";
                    Err(value_error("http.tls.clientcas[0]", &shown(path), reason))
                }
                None => Ok(None),
            };
        }
    };
    let minimum = match raw.minimumtls.as_deref().unwrap_or_default() {
        "" | "tls1.2" => TlsVersion::Tls12,
        "tls1.3" => TlsVersion::Tls13,
        other => return Err(value_error("http.tls.minimumtls", other, "tls1.2 or tls1.3 is expected")),
    };
    let client_optional = match raw.clientauth.as_deref().unwrap_or_default() {
        "" | "require-and-verify-client-cert" => false,
        "verify-client-cert-if-given" => true,
        other => {
            let reason = "require-and-verify-client-cert or verify-client-cert-if-given is expected";
            return Err(value_error("http.tls.clientauth", other, reason));
        }
    };
    Ok(Some(TlsConfig { pair, client_cas, client_optional, minimum }))
}

/// The names that a self-signed certificate is made for: this machine to itself, and what the config calls it.
fn names(net: Net, addr: &str, host: Option<&Host>) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let listening = addr.rsplit_once(':').map(|(name, _)| name.trim_matches(['[', ']']));
    let listening = listening.filter(|name| net == Net::Tcp && !matches!(*name, "0.0.0.0" | "::"));
    for name in host.map(|host| host.name.as_str()).into_iter().chain(listening) {
        // An address can be written in several ways.
        let name = name.parse().map_or_else(|_| name.to_owned(), |ip: IpAddr| ip.to_string());
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
