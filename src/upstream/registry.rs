//! What is asked of a registry: manifests and blobs, at its endpoints in their order.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::read::GzDecoder;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap,
    HeaderName, HeaderValue, RANGE, VIA,
};
use reqwest::{Method, Response, StatusCode};
use tokio::time::Instant;
use url::Url;

use super::body::{BlobBody, streamed, whole};
use super::client::Connector;
use super::endpoint::{Ask, Endpoint};
use super::{Refuser, UpstreamError, UpstreamStatus};
use crate::config::RegistryConfig;
use crate::oci::manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_BYTES_MAX, OCI_INDEX, OCI_MANIFEST, ParsedManifest,
};
use crate::oci::{Algorithm, Digest, Host, Reference, RepoName};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// How long an endpoint has for the header of its answer, token and redirects included …
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(10);
/// … and if another one comes after it.
const FAILOVER_TIMEOUT: Duration = Duration::from_secs(4);
/// Tries in all, each at every endpoint.
const TRIES_MAX: u32 = 2;
/// The pause before the second try, unless the registry asks for another …
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// … of at most this; the first try must not have taken longer either. Clients of a mirror have another way: only what a
/// busy registry mends by itself is worth their time.
const RETRY_BUDGET: Duration = Duration::from_secs(1);
const MANIFEST_TYPES: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
const ANY_TYPE: &str = "*/*";

pub(super) struct Registry {
    host: Host,
    config: RegistryConfig,
    endpoints: Vec<Endpoint>,
}

/// A registry, as asked for the sake of one request. Cheap to clone.
#[derive(Clone)]
pub struct Upstream {
    registry: Arc<Registry>,
    via: String,
    is_for_mesh: bool,
}

/// What the header of a manifest says; nothing of it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub digest: Option<Digest>,
    pub media_type: Option<String>,
    pub size_bytes: Option<u64>,
}

/// A manifest, whose digest was computed, and is the one that was asked for if one was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    pub media_type: Option<String>,
    pub digest: Digest,
    pub bytes: Bytes,
}

impl Registry {
    pub(super) fn new(host: Host, config: RegistryConfig, connector: &Connector) -> Self {
        let endpoint = |url: &Url| Endpoint::new(&host, url.clone(), &config, connector);
        let endpoints = config.endpoints.iter().map(endpoint).collect();
        Self { host, config, endpoints }
    }

    pub(super) fn status(&self) -> UpstreamStatus {
        UpstreamStatus {
            host: self.host.clone(),
            is_asked: self.endpoints.iter().any(Endpoint::is_asked),
            error: self.endpoints.iter().find_map(Endpoint::error),
            rate_limit: self.endpoints.iter().find_map(Endpoint::rate_limit),
        }
    }

    /// Asks the endpoints in their order. The first answer counts, also "not there".
    async fn get(&self, ask: &Ask<'_>) -> Result<Option<Response>, UpstreamError> {
        let mut tries = 1;
        loop {
            let began = Instant::now();
            let mut failure = None;
            for (n, endpoint) in self.endpoints.iter().enumerate() {
                let is_last = n + 1 == self.endpoints.len();
                let patience = if is_last { ENDPOINT_TIMEOUT } else { FAILOVER_TIMEOUT };
                // Boxed: all that is below is much larger than what waits for it.
                match Box::pin(endpoint.get(ask, patience)).await {
                    Err(error) if error.is_transient() => failure = Some(error),
                    answer => return answer,
                }
            }
            let none = || UpstreamError::Unreachable {
                host: self.host.clone(),
                reason: "it has no endpoint".into(),
            };
            let failure = failure.unwrap_or_else(none);
            let is_passing =
                matches!(failure, UpstreamError::Status { .. } | UpstreamError::Unreachable { .. });
            let pause = failure.retry_after().unwrap_or(RETRY_PAUSE);
            if tries >= TRIES_MAX || !is_passing || began.elapsed().max(pause) > RETRY_BUDGET {
                return Err(failure);
            }
            tries += 1;
            tokio::time::sleep(pause).await;
        }
    }
}

impl Upstream {
    pub(super) fn new(registry: Arc<Registry>, via: String) -> Self {
        Self { registry, via, is_for_mesh: false }
    }

    /// The same, as asked for a request that came by the mirrors named in `via`, which is ours too.
    pub fn on_behalf(mut self, via: String) -> Self {
        self.via = via;
        self
    }

    /// The same, as asked by the one of several that is meant to: if it rests after failures, it is tried for a blob once a
    /// second all the same, so that this one finds out first that it is back.
    pub fn for_mesh(mut self) -> Self {
        self.is_for_mesh = true;
        self
    }

    pub fn host(&self) -> &Host {
        &self.registry.host
    }

    pub fn config(&self) -> &RegistryConfig {
        &self.registry.config
    }

    /// Whether any endpoint is asked at all; after repeated failures none is, for a while.
    pub fn is_asked(&self) -> bool {
        self.registry.endpoints.iter().any(Endpoint::is_asked)
    }

    /// Waits for the outcome of a request that finds out whether it is back, 1 s at most for each endpoint. `false`: none is
    /// under way, or none has ended. May be dropped midway.
    pub async fn settles(&self) -> bool {
        let mut has_settled = false;
        for endpoint in &self.registry.endpoints {
            has_settled |= endpoint.settles().await;
        }
        has_settled
    }

    /// Asks. `None`: it is not there.
    pub(super) async fn get(&self, ask: &Ask<'_>) -> Result<Option<Response>, UpstreamError> {
        self.registry.get(ask).await
    }

    /// What a manifest's header says. `None`: there is no such manifest. May be dropped midway, like all here.
    pub async fn head_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<Head>, UpstreamError> {
        let ask = self.ask(Method::HEAD, repo, format!("manifests/{reference}"), &accept_manifests());
        let response = match self.registry.get(&ask).await {
            // An answer without a body cannot say why, either.
            Err(error) if is_refused_head(&error) || is_unexplained(&error) => {
                self.registry.get(&Ask { method: Method::GET, ..ask }).await?
            }
            other => other?,
        };
        Ok(response.map(|response| {
            let headers = response.headers();
            Head {
                digest: stated_digest(headers),
                media_type: media_type(headers),
                size_bytes: text(headers, &CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            }
        }))
    }

    /// A manifest. By digest it is held to that. By tag it should have the digest that upstream states; if it has not,
    /// that digest is asked for, and only if nothing has it the bytes are believed rather than the header.
    pub async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<Fetched>, UpstreamError> {
        let Some((fetched, stated)) = self.fetch_manifest(repo, reference).await? else { return Ok(None) };
        let Reference::Tag(tag) = reference else { return Ok(Some(fetched)) };
        let Some(stated) = stated.filter(|stated| *stated != fetched.digest) else {
            return Ok(Some(fetched));
        };
        if let Some((fetched, _)) = self.fetch_manifest(repo, &Reference::Digest(stated)).await? {
            return Ok(Some(fetched));
        }
        if ParsedManifest::parse(None, &fetched.bytes).is_err() {
            let (host, expected) = (self.host().clone(), stated);
            return Err(UpstreamError::Mismatch { host, expected, actual: fetched.digest });
        }
        tracing::warn!(registry = %self.host(), repo.name = %repo, %tag, %stated, digest = %fetched.digest, "upstream states another digest than its manifest has: the manifest counts");
        Ok(Some(fetched))
    }

    /// A manifest with its true digest, which is the one asked for if one was, and the digest that upstream states.
    async fn fetch_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<(Fetched, Option<Digest>)>, UpstreamError> {
        let ask = self.ask(Method::GET, repo, format!("manifests/{reference}"), &accept_manifests());
        let Some(response) = self.registry.get(&ask).await? else { return Ok(None) };
        let (stated, sent_type) = (stated_digest(response.headers()), media_type(response.headers()));
        let encoding = encoding(response.headers()).map(str::to_owned);
        let mut bytes = whole(self.host(), response, "a manifest", MANIFEST_BYTES_MAX).await?;
        match encoding.as_deref() {
            None => (),
            Some("gzip" | "x-gzip") => bytes = self.inflate(&bytes)?,
            Some(other) => return Err(self.malformed("a manifest", encoded(other))),
        }
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => stated,
        };
        let digest = Digest::of(expected.map_or(Algorithm::Sha256, |digest| digest.algorithm()), &bytes);
        match reference {
            Reference::Digest(expected) if *expected != digest => {
                let (host, expected) = (self.host().clone(), *expected);
                return Err(UpstreamError::Mismatch { host, expected, actual: digest });
            }
            _ => (),
        }
        let known_type = sent_type.clone().filter(|sent| MANIFEST_TYPES.contains(&sent.as_str()));
        let read_type = || Some(ParsedManifest::parse(None, &bytes).ok()?.media_type);
        let media_type = known_type.or_else(read_type).or(sent_type);
        Ok(Some((Fetched { media_type, digest, bytes }, stated)))
    }

    /// The size of a blob. `None`: there is no such blob.
    pub async fn head_blob(&self, repo: &RepoName, digest: &Digest) -> Result<Option<u64>, UpstreamError> {
        let ask = self.ask(Method::HEAD, repo, format!("blobs/{digest}"), ANY_TYPE);
        match self.registry.get(&ask).await {
            Ok(None) => return Ok(None),
            Ok(Some(response)) => {
                let length = text(response.headers(), &CONTENT_LENGTH).and_then(|length| length.parse().ok());
                if length.is_some() {
                    return Ok(length);
                }
            }
            // Storage to which a registry redirects may have been told to allow a `GET` only.
            Err(error) if is_refused_head(&error) || matches!(error, UpstreamError::Forbidden { .. }) => (),
            Err(error) => return Err(error),
        }
        let Some(body) = self.blob(repo, digest, 0, Some(1)).await? else { return Ok(None) };
        let unknown = || self.malformed("the header of a blob", "it has no length".to_owned());
        body.size_bytes.map(Some).ok_or_else(unknown)
    }

    /// A blob from byte `from` on, up to but without `to` if that is given. Nothing of the bytes is proven. What a server
    /// has compressed on its own account is an error: the digest is that of the bytes as they are, and so are ranges.
    pub async fn blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        from: u64,
        to: Option<u64>,
    ) -> Result<Option<BlobBody>, UpstreamError> {
        let mut ask = self.ask(Method::GET, repo, format!("blobs/{digest}"), ANY_TYPE);
        let last = to.map(|to| to.saturating_sub(1).to_string()).unwrap_or_default();
        if from > 0 || to.is_some() {
            let range = HeaderValue::try_from(format!("bytes={from}-{last}"));
            ask.headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let Some(response) = self.registry.get(&ask).await? else { return Ok(None) };
        if let Some(encoding) = encoding(response.headers()) {
            return Err(self.malformed("a blob", encoded(encoding)));
        }
        let stated = response.content_length();
        let (at, size_bytes) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text(response.headers(), &CONTENT_RANGE).and_then(content_range);
                range.ok_or_else(|| self.malformed("a part of a blob", "it does not say which".to_owned()))?
            }
            _ => (0, stated),
        };
        if at > from {
            return Err(self.malformed("a part of a blob", format!("it begins at {at}, not at {from}")));
        }
        // A part may be shorter than what was asked for, and say so.
        let end = match (size_bytes, to.filter(|_| response.status() == StatusCode::PARTIAL_CONTENT)) {
            (Some(size), Some(to)) => Some(size.min(to)),
            (size, to) => size.or(to),
        };
        let length = end.map(|end| end.saturating_sub(at)).or(stated);
        let bytes = streamed(self.host().clone(), length, response.bytes_stream());
        Ok(Some(BlobBody { size_bytes, at, bytes }))
    }

    pub(super) fn ask<'a>(&self, method: Method, repo: &'a RepoName, below: String, accept: &str) -> Ask<'a> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(HeaderValue::try_from(accept).ok().map(|accept| (ACCEPT, accept)));
        headers.extend(HeaderValue::try_from(&self.via).ok().map(|via| (VIA, via)));
        Ask { method, repo, below, query: Vec::new(), headers, is_for_mesh: self.is_for_mesh }
    }

    /// A manifest that was compressed though nobody asked for it.
    fn inflate(&self, bytes: &[u8]) -> Result<Bytes, UpstreamError> {
        let mut inflated = Vec::new();
        let mut decoder = GzDecoder::new(bytes).take(MANIFEST_BYTES_MAX as u64 + 1);
        let read = decoder.read_to_end(&mut inflated);
        read.map_err(|error| self.malformed("a compressed manifest", error.to_string()))?;
        if inflated.len() > MANIFEST_BYTES_MAX {
            let (host, bytes_max) = (self.host().clone(), MANIFEST_BYTES_MAX);
            return Err(UpstreamError::TooLarge { host, what: "a manifest", bytes_max });
        }
        Ok(inflated.into())
    }

    pub(super) fn malformed(&self, what: &'static str, reason: String) -> UpstreamError {
        UpstreamError::Malformed { host: self.host().clone(), what, reason }
    }
}

/// Whatever else a registry calls a manifest is taken too, if it has nothing better.
fn accept_manifests() -> String {
    format!("{}, */*;q=0.1", MANIFEST_TYPES.join(", "))
}

fn is_refused_head(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::Status { status: 405 | 501, .. })
}

/// Whether a registry has more to say of a refusal than it did. One that has had too many requests gets no further one.
fn is_unexplained(error: &UpstreamError) -> bool {
    match error {
        UpstreamError::Forbidden { said, .. } => said.is_empty(),
        UpstreamError::Unauthorized { by: Refuser::Registry, said, .. } => said.is_empty(),
        _ => false,
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let media_type = text(headers, &CONTENT_TYPE)?.split(';').next()?.trim();
    Some(media_type.to_owned()).filter(|media_type| !media_type.is_empty())
}

fn stated_digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, &CONTENT_DIGEST)?.parse().ok()
}

/// `None`: the bytes come as they are.
fn encoding(headers: &HeaderMap) -> Option<&str> {
    let encoding = text(headers, &CONTENT_ENCODING)?.trim();
    Some(encoding).filter(|encoding| !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity"))
}

fn encoded(encoding: &str) -> String {
    format!(
        "it came with Content-Encoding {encoding}, which was not asked for: its server or a proxy must not compress"
    )
}

/// Where a part begins, and the size of the whole: `bytes 100-199/500`.
fn content_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = header.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    match size.trim() {
        "*" => Some((first, None)),
        size => Some((first, Some(size.parse().ok()?))),
    }
}

/// Whether a name can be one of the public network: no address, no port, nothing that only a local network resolves.
pub(super) fn is_public(host: &Host) -> bool {
    let name = host.as_str();
    let is_local = ["localhost", "local", "internal", "lan", "home.arpa", "test", "invalid"]
        .iter()
        .any(|suffix| name == *suffix || name.ends_with(&format!(".{suffix}")));
    let top = name.rsplit('.').next().unwrap_or_default();
    name.contains('.')
        && !name.contains(':')
        && !is_local
        && top.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// The config of a registry that is known by its name alone.
pub(super) fn by_name(host: &Host, any: &RegistryConfig) -> Option<RegistryConfig> {
    let url = match host.as_str() {
        "docker.io" => Url::parse("https://registry-1.docker.io").ok()?,
        host => Url::parse(&format!("https://{host}")).ok()?,
    };
    Some(RegistryConfig { endpoints: vec![url], ..any.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 100-199/500"), Some((100, Some(500))));
        assert_eq!(content_range("bytes 0-9/*"), Some((0, None)));
        for junk in ["", "bytes */500", "100-199/500", "bytes a-b/c", "bytes 1-2/x"] {
            assert_eq!(content_range(junk), None, "{junk}");
        }
    }

    #[test]
    fn only_names_of_the_public_network_are_asked_by_name_alone() {
        for (host, public) in [
            ("docker.io", true),
            ("ghcr.io", true),
            ("localhost", false),
            ("registry.internal", false),
            ("10.0.0.1", false),
            ("registry.example:5000", false),
            ("printer.local", false),
        ] {
            assert_eq!(is_public(&host.parse().unwrap()), public, "{host}");
        }
    }
}
