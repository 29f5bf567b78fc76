//! Uploads, mounts, manifests that are put.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};

use super::error::Failure;
use super::pull::text;
use super::{CONTENT_DIGEST, set};
use crate::mirror::{BodyError, Mirror, MirrorError};
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::range::parse_content_range;
use crate::oci::route::StartUpload;
use crate::oci::{Digest, Reference, RepoName, Tag};

/// How long a body may go without a byte. A client that stays and sends nothing gives its upload free for another request.
const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(120);

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");

pub(super) async fn start(
    mirror: &Mirror,
    repo: &RepoName,
    start: StartUpload,
    request: Request,
) -> Result<Response, Failure> {
    match start {
        StartUpload::Mount { digest, from } if mirror.mount(repo, from.as_ref(), &digest).await? => {
            Ok(created(&format!("/v2/{repo}/blobs/{digest}"), &digest))
        }
        StartUpload::Empty | StartUpload::Mount { .. } => {
            let id = mirror.start_upload(repo).await?;
            Ok(uploading(repo, &id, 0, StatusCode::ACCEPTED))
        }
        StartUpload::Whole(digest) => {
            let id = mirror.start_upload(repo).await?;
            let received = mirror.append(repo, &id, None, body(request)).await;
            if let Err(error) = received {
                mirror.cancel_upload(repo, &id)?;
                return Err(error.into());
            }
            mirror.finish(repo, &id, &digest).await?;
            Ok(created(&format!("/v2/{repo}/blobs/{digest}"), &digest))
        }
    }
}

pub(super) fn status(mirror: &Mirror, repo: &RepoName, id: &str) -> Result<Response, Failure> {
    let received = mirror.upload_status(repo, id)?;
    Ok(uploading(repo, id, received, StatusCode::NO_CONTENT))
}

pub(super) async fn append(
    mirror: &Mirror,
    repo: &RepoName,
    id: &str,
    request: Request,
) -> Result<Response, Failure> {
    let at = chunk_start(request.headers())?;
    let received = mirror.append(repo, id, at, body(request)).await?;
    Ok(uploading(repo, id, received, StatusCode::ACCEPTED))
}

pub(super) async fn finish(
    mirror: &Mirror,
    repo: &RepoName,
    id: &str,
    digest: &Digest,
    request: Request,
) -> Result<Response, Failure> {
    let at = chunk_start(request.headers())?;
    mirror.append(repo, id, at, body(request)).await?;
    mirror.finish(repo, id, digest).await?;
    Ok(created(&format!("/v2/{repo}/blobs/{digest}"), digest))
}

pub(super) async fn manifest(
    mirror: &Mirror,
    repo: &RepoName,
    reference: &Reference,
    digest: Option<&Digest>,
    tags: &[Tag],
    request: Request,
) -> Result<Response, Failure> {
    let headers = request.headers().clone();
    let announced = text(&headers, &CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MANIFEST_BYTES_MAX) {
        return Err(MirrorError::ManifestTooLarge(MANIFEST_BYTES_MAX).into());
    }
    let bytes = to_bytes(Body::from_stream(body(request)), MANIFEST_BYTES_MAX).await.map_err(|error| {
        let too_large = std::error::Error::source(&error)
            .is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
        if too_large {
            MirrorError::ManifestTooLarge(MANIFEST_BYTES_MAX)
        } else {
            MirrorError::Body(Box::new(error))
        }
    })?;
    let content_type = text(&headers, &CONTENT_TYPE);
    let (digest, all_tags) = match reference {
        Reference::Digest(named) => (Some(named), tags.to_vec()),
        Reference::Tag(tag) => (digest, tags.iter().chain([tag]).cloned().collect()),
    };
    let digest = mirror.put_manifest(repo, digest, &all_tags, content_type, bytes).await?;
    let mut response = created(&format!("/v2/{repo}/manifests/{digest}"), &digest);
    for tag in tags {
        if let Ok(value) = tag.as_str().parse() {
            response.headers_mut().append(OCI_TAG, value);
        }
    }
    Ok(response)
}

/// Where a chunk says that it begins.
fn chunk_start(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let Some(header) = text(headers, &CONTENT_RANGE) else { return Ok(None) };
    let range = parse_content_range(header).ok_or_else(|| {
        Failure::BadUpload(format!("content-range {header:?} is not understood: send <first>-<last>"))
    })?;
    let length = text(headers, &CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
    if length.is_some_and(|length| length != range.end - range.start) {
        return Err(Failure::BadUpload(format!("content-range {header:?} does not fit the content-length")));
    }
    Ok(Some(range.start))
}

fn body(request: Request) -> BoxStream<'static, Result<Bytes, BodyError>> {
    let bytes = request.into_body().into_data_stream().map_err(BodyError::from);
    stream::unfold(Some(bytes), async |bytes| {
        let mut bytes = bytes?;
        match tokio::time::timeout(BODY_IDLE_TIMEOUT, bytes.next()).await {
            Ok(next) => Some((next?, Some(bytes))),
            Err(_) => {
                let silent = format!("not a byte came for {} s", BODY_IDLE_TIMEOUT.as_secs());
                Some((Err(silent.into()), None))
            }
        }
    })
    .boxed()
}

fn uploading(repo: &RepoName, id: &str, received: u64, status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    describe_upload(response.headers_mut(), repo, id, received);
    response
}

/// Where an upload goes on and what it has received: `0-<last>`, or `0-0` also when nothing came, as all registries
/// write it.
pub(super) fn describe_upload(headers: &mut HeaderMap, repo: &RepoName, id: &str, received: u64) {
    set(headers, LOCATION, format!("/v2/{repo}/blobs/uploads/{id}"));
    set(headers, UPLOAD_ID, id);
    set(headers, RANGE, format!("0-{}", received.saturating_sub(1)));
}

fn created(location: &str, digest: &Digest) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::CREATED;
    set(response.headers_mut(), LOCATION, location);
    set(response.headers_mut(), CONTENT_DIGEST, digest.to_string());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_falls_silent_breaks_off() {
        let slow = stream::once(async {
            tokio::time::sleep(BODY_IDLE_TIMEOUT - Duration::from_secs(1)).await;
            Ok::<_, BodyError>(Bytes::from_static(b"late"))
        });
        let request = Request::new(Body::from_stream(slow.chain(stream::pending())));
        let got: Vec<_> = body(request).collect().await;
        let [Ok(late), Err(silent)] = got.as_slice() else { panic!("{got:?}") };
        assert_eq!(late.as_ref(), b"late");
        assert_eq!(silent.to_string(), "not a byte came for 120 s");
    }
}
