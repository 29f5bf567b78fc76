//! The HTTP client of one registry: its authorities, certificate and proxy, and redirects followed by hand, so that
//! credentials stay with who they are for.

use std::path::Path;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Identity, Method, Proxy, Request, Response};
use tokio::time::timeout;
use url::Url;

use super::UpstreamError;
use super::body::innermost;
use super::public::{NotPublic, PublicOnly};
use crate::config::RegistryConfig;
use crate::oci::Host;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the request to the header of its answer, redirects included.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const REDIRECTS_MAX: usize = 10;
const IDLE_CONNECTIONS_MAX: usize = 8;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What registries of one config share: connections, and what they may lead to. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector {
    client: Client,
    guard: Option<PublicOnly>,
}

/// Asks one registry. Cheap to clone.
#[derive(Clone)]
pub(super) struct HttpClient {
    host: Host,
    connector: Connector,
    /// Plain http may follow upon https.
    insecure: bool,
}

/// A request without a body.
#[derive(Clone)]
pub(super) struct Get {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// For this host alone.
    pub(super) authorization: Option<HeaderValue>,
}

/// What registries of this config may share. Reads files: not for an asynchronous thread that serves. `name` is the key
/// below `mirror.registries` that errors lead to; `guard`: what they may lead to, if not to any place.
pub(super) fn connector(
    name: &str,
    config: &RegistryConfig,
    guard: Option<PublicOnly>,
) -> Result<Connector, UpstreamError> {
    let wrong = |error: reqwest::Error| UpstreamError::Config {
        registry: name.to_owned(),
        key: "upstream",
        reason: innermost(&error),
    };
    let guarded = |builder: ClientBuilder| match &guard {
        // A proxy looks names up itself, and is where the config says.
        Some(guard) if config.http_proxy.is_none() => builder.dns_resolver(guard.clone()),
        _ => builder,
    };
    let client = match guarded(builder(name, config)?).build() {
        // A small container may have no authorities at all: what needs none of them works.
        Err(error) if config.ca.is_none() => {
            tracing::warn!(
                registry = name,
                error = innermost(&error),
                "the system's certificate authorities cannot be used, so that no registry is trusted over https: install them, or set `ca`"
            );
            guarded(builder(name, config)?).tls_certs_only([]).build().map_err(wrong)
        }
        built => built.map_err(wrong),
    };
    Ok(Connector { client: client?, guard })
}

fn builder(name: &str, config: &RegistryConfig) -> Result<ClientBuilder, UpstreamError> {
    let wrong = |key: &'static str| {
        move |error: reqwest::Error| UpstreamError::Config {
            registry: name.to_owned(),
            key,
            reason: innermost(&error),
        }
    };
    let read = |key: &'static str, path: &Path| {
        std::fs::read(path).map_err(|error| UpstreamError::File {
            registry: name.to_owned(),
            key,
            path: path.to_owned(),
            reason: error.to_string(),
        })
    };
    let mut builder = Client::builder()
        .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_adaptive_window(true)
        .tls_danger_accept_invalid_certs(config.insecure);
    if let Some(proxy) = &config.http_proxy {
        let mut url = proxy.url.clone();
        if let Some((user, password)) = &proxy.login {
            let set = url.set_username(user).and_then(|()| url.set_password(Some(password.reveal())));
            debug_assert!(set.is_ok(), "it was taken from such a URL");
        }
        builder = builder.proxy(Proxy::all(url).map_err(wrong("httpproxy"))?);
    }
    if let Some(path) = &config.ca {
        let authorities = Certificate::from_pem_bundle(&read("ca", path)?).map_err(wrong("ca"))?;
        if authorities.is_empty() {
            let reason = format!("{} has no certificate in PEM", path.display());
            return Err(UpstreamError::Config { registry: name.to_owned(), key: "ca", reason });
        }
        builder = builder.tls_certs_merge(authorities);
    }
    if let Some((certificate, key)) = &config.client_certificate {
        let mut pem = read("certificate", certificate)?;
        pem.push(b'\n');
        pem.extend(read("key", key)?);
        builder = builder.identity(Identity::from_pem(&pem).map_err(wrong("certificate"))?);
    }
    Ok(builder)
}

impl HttpClient {
    pub(super) fn new(host: Host, connector: Connector, insecure: bool) -> Self {
        Self { host, connector, insecure }
    }

    /// Sends a request and follows redirects, without the credentials wherever another host, port or scheme is meant.
    pub(super) async fn send(&self, get: Get) -> Result<Response, UpstreamError> {
        let late = |_| UpstreamError::Timeout { host: self.host.clone(), waited: HEADER_TIMEOUT };
        timeout(HEADER_TIMEOUT, self.follow(get)).await.map_err(late)?
    }

    async fn follow(&self, mut get: Get) -> Result<Response, UpstreamError> {
        let refused = |reason: String| UpstreamError::Redirect { host: self.host.clone(), reason };
        for _ in 0..=REDIRECTS_MAX {
            let mut request = Request::new(get.method.clone(), get.url.clone());
            *request.headers_mut() = get.headers.clone();
            if let Some(authorization) = &get.authorization {
                request.headers_mut().insert(AUTHORIZATION, authorization.clone());
            }
            let response = self.execute(request).await?;
            let location = response.headers().get(LOCATION).filter(|_| response.status().is_redirection());
            let Some(location) = location else { return Ok(response) };
            let target = location.to_str().ok().and_then(|location| get.url.join(location).ok());
            let target = target.ok_or_else(|| refused("a redirect to what is no URL".to_owned()))?;
            match (get.url.scheme(), target.scheme()) {
                (_, "https") | ("http", "http") => (),
                ("https", "http") if self.insecure => (),
                (_, scheme) => return Err(refused(format!("a redirect from https to {scheme}"))),
            }
            if target.origin() != get.url.origin() {
                get.authorization = None;
            }
            get.url = target;
        }
        Err(refused(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// Sends one request, as it is.
    pub(super) async fn execute(&self, request: Request) -> Result<Response, UpstreamError> {
        let host = || self.host.clone();
        let not_public =
            |error: &NotPublic| UpstreamError::NotPublic { host: host(), reason: error.to_string() };
        if let Some(guard) = &self.connector.guard {
            guard.check(request.url()).map_err(|error| not_public(&error))?;
        }
        let failed = |error: reqwest::Error| match caused_by_guard(&error) {
            Some(error) => not_public(error),
            None => UpstreamError::Unreachable { host: host(), reason: innermost(&error) },
        };
        self.connector.client.execute(request).await.map_err(failed)
    }
}

/// What the guard said, if it is why a request failed.
fn caused_by_guard(error: &reqwest::Error) -> Option<&NotPublic> {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.into_iter().find_map(|cause| cause.downcast_ref::<NotPublic>())
}
