//! Blobs by their digest in the words of the registry API, for whoever asks: what is here and public. Of which repository
//! it is asked for does not matter.

use std::ops::Range;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::stream::BoxStream;

use super::super::pull::text;
use super::super::{CONTENT_DIGEST, set};
use crate::mirror::{Mirror, MirrorError, chain};
use crate::oci::range::RangeRequest;
use crate::oci::{Digest, Route};

/// `/v2/<any name>/blobs/<digest>` for whoever asks.
pub fn router(mirror: Mirror) -> Router {
    Router::new().route("/v2/{*rest}", get(answer)).with_state(mirror)
}

async fn answer(State(mirror): State<Mirror>, request: Request) -> Response {
    match Route::parse(request.method().as_str(), request.uri().path(), request.uri().query()) {
        Ok(Route::GetBlob { digest, head: false, .. }) => blob(&mirror, &digest, request.headers()).await,
        Ok(_) => StatusCode::NOT_FOUND.into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

/// A blob that is here and that anybody may have.
pub(super) async fn blob(mirror: &Mirror, digest: &Digest, asked: &HeaderMap) -> Response {
    match mirror.blob_here(digest).await {
        Ok(Some(blob)) => ranged(asked, digest, blob.size_bytes, |range| blob.read(range)),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => {
            tracing::warn!(%digest, error = %chain(&error), "a blob could not be read for a peer");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The part of a blob that is asked for, or all of it.
pub(super) fn ranged(
    asked: &HeaderMap,
    digest: &Digest,
    size_bytes: u64,
    read: impl FnOnce(Range<u64>) -> BoxStream<'static, Result<Bytes, MirrorError>>,
) -> Response {
    let (status, range) = match RangeRequest::parse(text(asked, &RANGE), size_bytes) {
        RangeRequest::Whole => (StatusCode::OK, 0..size_bytes),
        RangeRequest::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        RangeRequest::Unsatisfiable => return StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
    };
    let mut response = Response::new(Body::from_stream(read(range.clone())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    set(headers, CONTENT_DIGEST, digest.to_string());
    set(headers, CONTENT_LENGTH, (range.end - range.start).to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        set(headers, CONTENT_RANGE, format!("bytes {}-{}/{size_bytes}", range.start, range.end - 1));
    }
    response
}
