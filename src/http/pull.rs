//! Manifests and blobs, by GET and HEAD. Bytes go out as they were pushed, never encoded.

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RANGE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use futures::{StreamExt, TryStreamExt, stream};

use super::error::{Failure, Thing};
use super::{CONTENT_DIGEST, set};
use crate::metrics::Metrics;
use crate::mirror::{Mirror, chain};
use crate::oci::range::RangeRequest;
use crate::oci::{Digest, Reference, RepoName};

/// Of ours: the root that answered, `own` or an IPNS name.
const SOURCE: HeaderName = HeaderName::from_static("x-shoal-source");

pub(super) async fn manifest(
    mirror: &Mirror,
    repo: &RepoName,
    reference: &Reference,
    head: bool,
    asked: &HeaderMap,
) -> Result<Response, Failure> {
    let found = mirror.manifest(repo, reference).await?;
    let (manifest, origin) =
        found.ok_or_else(|| Failure::Unknown(Thing::Manifest, format!("manifest {repo}:{reference}")))?;
    if matches_etag(asked, &manifest.digest) {
        return Ok(not_modified(&manifest.digest));
    }
    let size_bytes = manifest.bytes.len();
    let mut response = Response::new(if head { Body::empty() } else { Body::from(manifest.bytes) });
    let headers = response.headers_mut();
    identify(headers, &manifest.digest);
    set(headers, SOURCE, origin.to_string());
    set(headers, CONTENT_TYPE, manifest.media_type);
    set(headers, CONTENT_LENGTH, size_bytes.to_string());
    Ok(response)
}

pub(super) async fn blob(
    mirror: &Mirror,
    metrics: &Metrics,
    repo: &RepoName,
    digest: &Digest,
    head: bool,
    asked: &HeaderMap,
) -> Result<Response, Failure> {
    // Who asks for the header only is about to push what names it.
    let found =
        if head { mirror.blob_to_be_named(repo, digest).await? } else { mirror.blob(repo, digest).await? };
    let (blob, origin) =
        found.ok_or_else(|| Failure::Unknown(Thing::Blob, format!("blob {digest} of {repo}")))?;
    if matches_etag(asked, digest) {
        return Ok(not_modified(digest));
    }
    let size_bytes = blob.size_bytes;
    // Ranges are defined for GET only (RFC 9110, section 14.2).
    let asked_range = text(asked, &RANGE).filter(|_| !head);
    let (status, range) = match RangeRequest::parse(asked_range, size_bytes) {
        RangeRequest::Whole => (StatusCode::OK, 0..size_bytes),
        RangeRequest::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        RangeRequest::Unsatisfiable => return Err(Failure::Range { size_bytes }),
    };
    let length = range.end - range.start;
    let body = if head {
        Body::empty()
    } else {
        let (sent, digest) = (metrics.blob_sent_bytes.clone(), *digest);
        let mut bytes = mirror.read(&blob, range.clone());
        // What cannot be had at all, or is not what it is named by, is an answer of its own.
        let first = bytes.try_next().await?;
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

pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
