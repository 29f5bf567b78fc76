//! Manifests and blobs, by GET and HEAD. Bytes go out as they were pushed, never encoded.

use std::borrow::Cow;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HOST,
    IF_NONE_MATCH, RANGE, VIA, WARNING,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use futures::{StreamExt, TryStreamExt, stream};

use super::error::{Failure, Thing};
use super::{CONTENT_DIGEST, set};
use crate::metrics::Metrics;
use crate::mirror::{Age, Asked, Mirror, Origin, Purpose, Served, chain};
use crate::oci::range::RangeRequest;
use crate::oci::{Digest, Host, Reference, RepoName};

/// The registry that a request was answered for (distribution specification, "Registry Proxying").
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
/// RFC 7234, section 5.5.1: what is said of an answer that upstream did not confirm in time.
pub(super) const STALE: &str = "110 shoal \"upstream did not answer\"";
/// The same of a followed name whose author has not renewed its record.
const EXPIRED: &str = "110 shoal \"the record of the name has expired\"";
/// Of ours: where it was found: `own`, an IPNS name, `ipfs=CID`, `cache` or `upstream=HOST`.
const SOURCE: HeaderName = HeaderName::from_static("x-shoal-source");

/// Who is asked for what, besides the path.
pub(super) struct Asking {
    pub(super) headers: HeaderMap,
    /// By `?ns=`.
    registry: Option<Host>,
    /// The mirrors and proxies that it came by.
    via: Option<String>,
    /// By `?prefetch=false`: the client asks for the blobs at once, and need not be helped.
    prefetch: bool,
    /// It is ourselves.
    is_ours: bool,
}

impl Asking {
    /// A registry that cannot be one is unknown; one that is ourselves has nothing but what is here.
    pub(super) fn read(query: Option<&str>, headers: HeaderMap) -> Result<Self, Failure> {
        let parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let value =
            |wanted: &str| parameters.into_iter().find(|(key, _)| key == wanted).map(|(_, value)| value);
        let named = value("ns");
        let prefetch = value("prefetch").is_none_or(|prefetch| prefetch != "false");
        let unknown = |named: &str| Failure::Unknown(Thing::Registry, format!("registry {named:?}"));
        let registry = match named.as_deref() {
            Some(named) => Some(named.parse::<Host>().map_err(|_| unknown(named))?),
            None => None,
        };
        let is_ourselves = |registry: &Host| text(&headers, &HOST) == Some(registry.as_str());
        let is_ours = registry.as_ref().is_some_and(is_ourselves);
        let via = via(&headers);
        Ok(Self { headers, registry, via, prefetch, is_ours })
    }

    pub(super) fn asked<'a>(&'a self, repo: &'a RepoName) -> Asked<'a> {
        let registry = self.registry.as_ref();
        Asked { repo, registry, via: self.via.as_deref(), is_ours: self.is_ours }
    }

    /// By `?ns=`.
    pub(super) fn registry(&self) -> Option<&Host> {
        self.registry.as_ref()
    }

    pub(super) fn echo(&self, headers: &mut HeaderMap) {
        if let Some(registry) = &self.registry {
            set(headers, NAMESPACE, registry.as_str());
        }
    }
}

/// Whether a range leaves the beginning out.
fn resumes(range: &str) -> bool {
    range.strip_prefix("bytes=").is_some_and(|range| !range.starts_with("0-"))
}

pub(super) async fn manifest(
    mirror: &Mirror,
    repo: &RepoName,
    reference: &Reference,
    head: bool,
    request: &Asking,
) -> Result<Response, Failure> {
    let what = || format!("manifest {repo}:{reference}");
    let purpose = match (head, request.prefetch) {
        (true, _) => Purpose::Header,
        (false, true) => Purpose::Image,
        (false, false) => Purpose::Manifest,
    };
    let found = mirror.manifest(&request.asked(repo), reference, purpose).await;
    let found = found.map_err(|error| Failure::of_mirror(Thing::Manifest, what, error))?;
    let Served { manifest, origin, age } = found.ok_or_else(|| Failure::Unknown(Thing::Manifest, what()))?;
    if matches_etag(&request.headers, &manifest.digest) {
        return Ok(not_modified(&manifest.digest));
    }
    let size_bytes = manifest.bytes.len();
    let mut response = Response::new(if head { Body::empty() } else { Body::from(manifest.bytes) });
    let headers = response.headers_mut();
    identify(headers, &manifest.digest);
    set(headers, SOURCE, origin.to_string());
    set(headers, CONTENT_TYPE, manifest.media_type);
    set(headers, CONTENT_LENGTH, size_bytes.to_string());
    request.echo(headers);
    say_age(headers, age);
    if let (Origin::Readonly(_), Some(Age { stale: true, .. })) = (&origin, age) {
        headers.insert(WARNING, HeaderValue::from_static(EXPIRED));
    }
    Ok(response)
}

/// How old an answer is that upstream has confirmed.
pub(super) fn say_age(headers: &mut HeaderMap, age: Option<Age>) {
    let Some(age) = age else { return };
    set(headers, AGE, age.since_confirmed.as_secs().to_string());
    if age.stale {
        headers.insert(WARNING, HeaderValue::from_static(STALE));
    }
}

pub(super) async fn blob(
    mirror: &Mirror,
    metrics: &Metrics,
    repo: &RepoName,
    digest: &Digest,
    head: bool,
    request: &Asking,
) -> Result<Response, Failure> {
    let (headers, asked) = (&request.headers, request.asked(repo));
    // Ranges are defined for GET only (RFC 9110, section 14.2).
    let asked_range = text(headers, &RANGE).filter(|_| !head);
    // Who asks for the header only is about to push what names it.
    let found = match head {
        true => mirror.blob_to_be_named(&asked, digest).await,
        false => mirror.blob(&asked, digest, asked_range.is_some_and(resumes)).await,
    };
    let what = || format!("blob {digest} of {repo}");
    let found = found.map_err(|error| Failure::of_mirror(Thing::Blob, what, error))?;
    let (blob, origin) = found.ok_or_else(|| Failure::Unknown(Thing::Blob, what()))?;
    if matches_etag(headers, digest) {
        return Ok(not_modified(digest));
    }
    let size_bytes = blob.size_bytes;
    let (status, range) = match RangeRequest::parse(asked_range, size_bytes) {
        RangeRequest::Whole => (StatusCode::OK, 0..size_bytes),
        RangeRequest::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        RangeRequest::Unsatisfiable => return Err(Failure::Range { size_bytes }),
    };
    let length = range.end - range.start;
    let body = if head {
        Body::empty()
    } else {
        let (sent, digest) = (metrics.blob_sent_bytes(origin.kind()), *digest);
        let mut bytes = mirror.read(&blob, range.clone());
        // What cannot be had at all, or is not what it is named by, is an answer of its own.
        let first = bytes.try_next().await.map_err(|error| Failure::of_mirror(Thing::Blob, what, error))?;
        // An error behind it breaks the body off short of its length: the client sees that, and may resume elsewhere.
        Body::from_stream(
            stream::iter(first.map(Ok))
                .chain(bytes)
                .inspect_ok(move |bytes| {
                    sent.inc_by(bytes.len() as u64);
                })
                .inspect_err(
                    move |error| tracing::warn!(%digest, error = %chain(error), "blob broken off while it was sent"),
                ),
        )
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    identify(headers, digest);
    set(headers, SOURCE, origin.to_string());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable"));
    set(headers, CONTENT_LENGTH, length.to_string());
    request.echo(headers);
    if status == StatusCode::PARTIAL_CONTENT {
        set(headers, CONTENT_RANGE, format!("bytes {}-{}/{size_bytes}", range.start, range.end - 1));
    }
    Ok(response)
}

fn identify(headers: &mut HeaderMap, digest: &Digest) {
    set(headers, CONTENT_DIGEST, digest.to_string());
    set(headers, ETAG, format!("\"{digest}\""));
}

fn not_modified(digest: &Digest) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    identify(response.headers_mut(), digest);
    response
}

/// Whether `If-None-Match` names what we have (RFC 9110, section 13.1.2), quotes and weakness forgiven.
fn matches_etag(asked: &HeaderMap, digest: &Digest) -> bool {
    let Some(tags) = text(asked, &IF_NONE_MATCH) else { return false };
    let ours = digest.to_string();
    tags.split(',').any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.trim_start_matches("W/").trim_matches('"') == ours
    })
}

/// The way of a request: all of `Via`, which proxies may write as several fields (RFC 9110, section 5.3).
fn via(headers: &HeaderMap) -> Option<String> {
    let hops = headers.get_all(VIA).iter().map(|hop| String::from_utf8_lossy(hop.as_bytes()));
    hops.reduce(|way, hop| format!("{way}, {hop}").into()).map(Cow::into_owned)
}

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_a_request_is_read_from_all_its_fields() {
        let mut headers = HeaderMap::new();
        assert_eq!(via(&headers), None);
        headers.append(VIA, HeaderValue::from_static("1.1 shoal-a, 1.1 b"));
        headers.append(VIA, HeaderValue::from_static("2 c"));
        assert_eq!(via(&headers).as_deref(), Some("1.1 shoal-a, 1.1 b, 2 c"));
        headers.append(VIA, HeaderValue::from_bytes(b"1.1 \xff").unwrap());
        assert!(via(&headers).unwrap().starts_with("1.1 shoal-a, "), "whatever else stands in it");
    }
}
