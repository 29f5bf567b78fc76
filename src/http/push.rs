//! Uploads, mounts, manifests that are put; and deletes.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;

use super::error::{Failure, Thing};
use super::pull::text;
use super::{CONTENT_DIGEST, set};
use crate::mirror::{BodyError, Mirror, MirrorError, PutManifest};
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::range::parse_content_range;
use crate::oci::route::StartUpload;
use crate::oci::{Algorithm, Digest, Reference, RepoName, Tag};

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

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
        StartUpload::Mount { digest, .. } => open(mirror, repo, digest.algorithm()).await,
        StartUpload::Empty { algorithm } => open(mirror, repo, algorithm).await,
        StartUpload::Whole(digest) => {
            let id = mirror.start_upload(repo, digest.algorithm()).await?;
            let finished = mirror.append_and_finish(repo, &id, None, body(request), &digest).await;
            if let Err(error) = finished {
                // The client does not know the session. It may be gone already.
                let _ = mirror.cancel_upload(repo, &id).await;
                return Err(error.into());
            }
            Ok(created(&format!("/v2/{repo}/blobs/{digest}"), &digest))
        }
    }
}

async fn open(mirror: &Mirror, repo: &RepoName, algorithm: Algorithm) -> Result<Response, Failure> {
    let id = mirror.start_upload(repo, algorithm).await?;
    Ok(uploading(repo, &id, 0, StatusCode::ACCEPTED))
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
    mirror.append_and_finish(repo, id, at, body(request), digest).await?;
    Ok(created(&format!("/v2/{repo}/blobs/{digest}"), digest))
}

/// `tags` beside the one that `reference` may be; `digest`: what a manifest that is put by tag is to have.
pub(super) async fn manifest(
    mirror: &Mirror,
    repo: &RepoName,
    reference: &Reference,
    tags: &[Tag],
    digest: Option<Digest>,
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
    let (tag, expected) = match reference {
        Reference::Tag(tag) => (Some(tag), digest),
        Reference::Digest(digest) => (None, Some(*digest)),
    };
    let all_tags: Vec<Tag> = tag.into_iter().chain(tags).cloned().collect();
    let content_type = text(&headers, &CONTENT_TYPE);
    let put = PutManifest { tags: &all_tags, expected, content_type, bytes };
    let stored = mirror.put_manifest(repo, put).await?;
    let mut response = created(&format!("/v2/{repo}/manifests/{}", stored.digest), &stored.digest);
    let headers = response.headers_mut();
    for value in tags.iter().filter_map(|tag| tag.as_str().parse().ok()) {
        headers.append(OCI_TAG, value);
    }
    if let Some(subject) = stored.subject {
        set(headers, OCI_SUBJECT, subject.to_string());
    }
    Ok(response)
}

pub(super) async fn delete_manifest(
    mirror: &Mirror,
    repo: &RepoName,
    reference: &Reference,
) -> Result<Response, Failure> {
    if mirror.delete_manifest(repo, reference).await? {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    Err(Failure::Unknown(Thing::Manifest, format!("manifest {repo}:{reference}")))
}

pub(super) async fn delete_blob(
    mirror: &Mirror,
    repo: &RepoName,
    digest: &Digest,
) -> Result<Response, Failure> {
    if mirror.delete_blob(repo, digest).await? {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    Err(Failure::Unknown(Thing::Blob, format!("blob {digest} of {repo}")))
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

pub(super) fn body(
    request: Request,
) -> impl futures::Stream<Item = Result<bytes::Bytes, BodyError>> + Send + Unpin {
    request.into_body().into_data_stream().map_err(BodyError::from)
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
