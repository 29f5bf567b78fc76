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
use serde::Deserialize;
use url::Url;

use super::body::{BlobBody, streamed, whole};
use super::endpoint::Endpoint;
use super::{UpstreamError, UpstreamStatus};
use crate::config::RegistryConfig;
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_BYTES_MAX, OCI_INDEX, OCI_MANIFEST};
use crate::oci::{Algorithm, Digest, Host, Reference, RepoName};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The pause before the second try, where the first failed at once.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Tries in all, each at every endpoint.
const TRIES_MAX: u32 = 2;
/// The largest list of tags or referrers that is read.
const LIST_BYTES_MAX: usize = 4 << 20;

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

#[derive(Deserialize)]
struct TagList {
    tags: Option<Vec<String>>,
}

impl Registry {
    pub(super) fn new(host: Host, config: RegistryConfig) -> Result<Self, UpstreamError> {
        let endpoints = config.endpoints.iter().map(|base| Endpoint::new(&host, base.clone(), &config));
        let endpoints = endpoints.collect::<Result<_, _>>()?;
        Ok(Self { host, config, endpoints })
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
    async fn get(
        &self,
        method: &Method,
        repo: &RepoName,
        below: &str,
        headers: &HeaderMap,
    ) -> Result<Option<Response>, UpstreamError> {
        let mut tries = 1;
        loop {
            let mut failure = None;
            for endpoint in &self.endpoints {
                // Boxed: all that is below is much larger than what waits for it.
                match Box::pin(endpoint.get(method.clone(), repo, below, headers)).await {
                    Err(error) if error.is_transient() => failure = Some(error),
                    answer => return answer,
                }
            }
            let none = || UpstreamError::Unreachable {
                host: self.host.clone(),
                reason: "it has no endpoint".into(),
            };
            let failure = failure.unwrap_or_else(none);
            // Clients of a mirror have another way: only what a busy registry mends by itself is worth their time.
            let at_once = matches!(failure, UpstreamError::Status { status: 500.., .. });
            if tries >= TRIES_MAX || !at_once {
                return Err(failure);
            }
            tries += 1;
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

impl Upstream {
    pub(super) fn new(registry: Arc<Registry>, via: String) -> Self {
        Self { registry, via }
    }

    /// The same, as asked for a request that came by the mirrors named in `via`, which is ours too.
    pub fn on_behalf(mut self, via: String) -> Self {
        self.via = via;
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

    /// What a manifest's header says. `None`: there is no such manifest. May be dropped midway, like all here.
    pub async fn head_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<Head>, UpstreamError> {
        let below = format!("manifests/{reference}");
        let headers = self.headers(&accept_manifests());
        let response = match self.registry.get(&Method::HEAD, repo, &below, &headers).await {
            Err(UpstreamError::Status { status: 405, .. }) => {
                self.registry.get(&Method::GET, repo, &below, &headers).await?
            }
            other => other?,
        };
        Ok(response.map(|response| {
            let headers = response.headers();
            Head {
                digest: text(headers, &CONTENT_DIGEST).and_then(|digest| digest.parse().ok()),
                media_type: media_type(headers),
                size_bytes: text(headers, &CONTENT_LENGTH).and_then(|length| length.parse().ok()),
            }
        }))
    }

    /// A manifest. By digest it is held to that; by tag to what upstream says, if it does.
    pub async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<Fetched>, UpstreamError> {
        let headers = self.headers(&accept_manifests());
        let found =
            self.registry.get(&Method::GET, repo, &format!("manifests/{reference}"), &headers).await?;
        let Some(response) = found else { return Ok(None) };
        let (host, media_type) = (self.host(), media_type(response.headers()));
        let stated =
            text(response.headers(), &CONTENT_DIGEST).and_then(|digest| digest.parse::<Digest>().ok());
        let is_gzip = text(response.headers(), &CONTENT_ENCODING) == Some("gzip");
        let mut bytes = whole(host, response, "a manifest", MANIFEST_BYTES_MAX).await?;
        if is_gzip {
            bytes = self.inflate(&bytes)?;
        }
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => None,
        };
        let digest = Digest::of(expected.map_or(Algorithm::Sha256, |digest| digest.algorithm()), &bytes);
        match (expected, stated) {
            (Some(expected), _) if expected != digest => {
                return Err(UpstreamError::Mismatch { host: host.clone(), expected, actual: digest });
            }
            (None, Some(stated)) if stated.algorithm() == digest.algorithm() && stated != digest => {
                return Err(UpstreamError::Mismatch { host: host.clone(), expected: stated, actual: digest });
            }
            _ => (),
        }
        Ok(Some(Fetched { media_type, digest, bytes }))
    }

    /// The size of a blob. `None`: there is no such blob.
    pub async fn head_blob(&self, repo: &RepoName, digest: &Digest) -> Result<Option<u64>, UpstreamError> {
        let (below, headers) = (format!("blobs/{digest}"), self.headers("*/*"));
        let Some(response) = self.registry.get(&Method::HEAD, repo, &below, &headers).await? else {
            return Ok(None);
        };
        let length = text(response.headers(), &CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let reason = || "it has no length".to_owned();
        length.map(Some).ok_or_else(|| self.malformed("the header of a blob", reason()))
    }

    /// A blob from byte `from` on, up to `to` if that is given. Nothing of the bytes is proven.
    pub async fn blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
        from: u64,
        to: Option<u64>,
    ) -> Result<Option<BlobBody>, UpstreamError> {
        let mut headers = self.headers("*/*");
        let last = to.map(|to| to.saturating_sub(1).to_string()).unwrap_or_default();
        if from > 0 || to.is_some() {
            let range = HeaderValue::try_from(format!("bytes={from}-{last}"));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let found = self.registry.get(&Method::GET, repo, &format!("blobs/{digest}"), &headers).await?;
        let Some(response) = found else { return Ok(None) };
        let length = response.content_length();
        let (at, size_bytes) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text(response.headers(), &CONTENT_RANGE).and_then(content_range);
                range.ok_or_else(|| self.malformed("a part of a blob", "it does not say which".to_owned()))?
            }
            _ => (0, length),
        };
        if at > from {
            return Err(self.malformed("a part of a blob", format!("it begins at {at}, not at {from}")));
        }
        let bytes = streamed(self.host().clone(), length, response.bytes_stream());
        Ok(Some(BlobBody { size_bytes, at, bytes }))
    }

    /// The first page of tags behind `last`. `None`: there is no such repository.
    pub async fn tags(
        &self,
        repo: &RepoName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Option<Vec<String>>, UpstreamError> {
        let _ = (last, limit);
        let found =
            self.registry.get(&Method::GET, repo, "tags/list", &self.headers("application/json")).await?;
        let Some(response) = found else { return Ok(None) };
        let body = whole(self.host(), response, "a list of tags", LIST_BYTES_MAX).await?;
        let list: TagList = serde_json::from_slice(&body)
            .map_err(|error| self.malformed("a list of tags", error.to_string()))?;
        Ok(Some(list.tags.unwrap_or_default()))
    }

    fn headers(&self, accept: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(HeaderValue::try_from(accept).ok().map(|accept| (ACCEPT, accept)));
        headers.extend(HeaderValue::try_from(&self.via).ok().map(|via| (VIA, via)));
        headers
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

    fn malformed(&self, what: &'static str, reason: String) -> UpstreamError {
        UpstreamError::Malformed { host: self.host().clone(), what, reason }
    }
}

fn accept_manifests() -> String {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, "*/*;q=0.1"].join(", ")
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let media_type = text(headers, &CONTENT_TYPE)?.split(';').next()?.trim();
    Some(media_type.to_owned()).filter(|media_type| !media_type.is_empty())
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
