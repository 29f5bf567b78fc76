//! What peers of the mesh may ask: what we hold, and the manifests and blobs of other registries, in the words of the
//! registry API. A peer's request is never passed on to another peer.

use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use serde::Deserialize;

use super::super::pull::{say_age, text};
use super::super::{CONTENT_DIGEST, set};
use super::blobs::{self, ranged};
use crate::ipfs::Peer;
use crate::mirror::{
    ALIVE_PATH, BlobForPeer, HELD, HOLDINGS_PATH, HOP, Hop, ManifestForPeer, Mirror, PATH, REFER, chain,
};
use crate::oci::{Digest, Reference, RepoName, Route};

/// What peers ask besides the gateway.
pub fn router(mirror: Mirror) -> Router {
    Router::new()
        .route(HOLDINGS_PATH, get(holdings))
        .route(ALIVE_PATH, get(async || StatusCode::NO_CONTENT))
        .route("/v2/{*rest}", get(answer))
        .with_state(mirror)
}

#[derive(Deserialize)]
struct Heard {
    epoch: u64,
    since: u64,
}

async fn holdings(State(mirror): State<Mirror>, Query(heard): Query<Heard>) -> Response {
    match mirror.holdings(heard.epoch, heard.since).await {
        Some(message) => ([(CONTENT_TYPE, "application/octet-stream")], message).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn answer(
    State(mirror): State<Mirror>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let hop = text(request.headers(), &HOP).and_then(|hop| hop.parse().ok());
    match (Route::parse(request.method().as_str(), request.uri().path(), request.uri().query()), hop) {
        (Ok(Route::GetManifest { repo, reference, head: false }), Some(hop)) => {
            manifest(&mirror, &repo, &reference, hop).await
        }
        (Ok(Route::GetBlob { repo, digest, head: false }), Some(hop)) => {
            blob(&mirror, &peer, &repo, &digest, hop, request.headers()).await
        }
        // As a stranger would ask.
        (Ok(Route::GetBlob { digest, head: false, .. }), None) => {
            blobs::blob(&mirror, &digest, request.headers()).await
        }
        (Ok(_), Some(_)) => StatusCode::METHOD_NOT_ALLOWED.into_response(),
        (Ok(_), None) | (Err(_), _) => StatusCode::BAD_REQUEST.into_response(),
    }
}

async fn manifest(mirror: &Mirror, repo: &RepoName, reference: &Reference, hop: Hop) -> Response {
    let served = match mirror.manifest_for_peer(repo, reference, hop).await {
        Ok(ManifestForPeer::Found(served)) => served,
        Ok(ManifestForPeer::Absent) => return StatusCode::NOT_FOUND.into_response(),
        Ok(ManifestForPeer::Awaited) => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Ok(ManifestForPeer::NotMirrored) => return StatusCode::MISDIRECTED_REQUEST.into_response(),
        Ok(ManifestForPeer::No) => return StatusCode::NOT_ACCEPTABLE.into_response(),
        Err(error) if error.is_refusal() => return StatusCode::FORBIDDEN.into_response(),
        Err(error) => {
            tracing::debug!(repo.name = %repo, %reference, error = %chain(&error), "a peer was not given a manifest");
            return StatusCode::BAD_GATEWAY.into_response();
        }
    };
    let mut response = Response::new(Body::from(served.manifest.bytes));
    let headers = response.headers_mut();
    set(headers, CONTENT_DIGEST, served.manifest.digest.to_string());
    set(headers, CONTENT_TYPE, served.manifest.media_type);
    say_age(headers, served.age);
    response
}

/// Who cannot be served is told so by a status alone: 503 with others to ask, 421 if the registry is not mirrored here, 403
/// if it refuses us, 404, or 502 if it did not deliver.
async fn blob(
    mirror: &Mirror,
    peer: &Peer,
    repo: &RepoName,
    digest: &Digest,
    hop: Hop,
    asked: &HeaderMap,
) -> Response {
    let blob = match mirror.blob_for_peer(peer, repo, digest, hop).await {
        Ok(BlobForPeer::Found(blob)) => blob,
        Ok(BlobForPeer::Refer(peers)) => {
            let mut response = StatusCode::SERVICE_UNAVAILABLE.into_response();
            set(response.headers_mut(), REFER, joined(&peers));
            return response;
        }
        Ok(BlobForPeer::NotMirrored) => return StatusCode::MISDIRECTED_REQUEST.into_response(),
        Ok(BlobForPeer::Refused) => return StatusCode::FORBIDDEN.into_response(),
        Ok(BlobForPeer::No) => return StatusCode::NOT_FOUND.into_response(),
        Err(error) if error.is_refusal() => return StatusCode::FORBIDDEN.into_response(),
        Err(error) => {
            tracing::debug!(%digest, error = %chain(&error), "a peer was not given a blob");
            return StatusCode::BAD_GATEWAY.into_response();
        }
    };
    let (size_bytes, path, held_bytes) = (blob.size_bytes, joined(&blob.path), blob.held_bytes);
    let mut response = ranged(asked, digest, size_bytes, |range| blob.read(range));
    set(response.headers_mut(), PATH, path);
    if let Some(held_bytes) = held_bytes {
        set(response.headers_mut(), HELD, held_bytes.to_string());
    }
    response
}

fn joined(peers: &[Peer]) -> String {
    peers.iter().map(Peer::as_str).collect::<Vec<_>>().join(", ")
}
