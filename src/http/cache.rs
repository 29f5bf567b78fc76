//! The pages of the control socket for the cache of other registries.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::control::failure;
use crate::api;
use crate::mirror::{CachedImage, Mirror, MirrorError, Pins, chain};
use crate::oci::{ImageName, Platform};

pub(super) fn router(mirror: Mirror) -> Router {
    Router::new()
        .route("/v0/cache", get(list))
        .route("/v0/cache/prefetch", post(prefetch))
        .route("/v0/cache/pin", post(pin))
        .route("/v0/cache/unpin", post(unpin))
        .route("/v0/cache/evict", post(evict))
        .with_state(mirror)
}

#[derive(Deserialize)]
struct Image {
    image: String,
    /// Absent: all.
    platform: Option<String>,
}

#[derive(Deserialize)]
struct Force {
    #[serde(default)]
    force: bool,
}

impl Image {
    fn name(&self) -> Result<ImageName, Response> {
        let wrong = |error| failure(StatusCode::BAD_REQUEST, format!("{}: {}", self.image, chain(&error)));
        self.image.parse().map_err(wrong)
    }

    fn platform(&self) -> Result<Option<Platform>, Response> {
        let wrong = |error| failure(StatusCode::BAD_REQUEST, chain(&error));
        self.platform.as_ref().map(|platform| platform.parse().map_err(wrong)).transpose()
    }
}

async fn list(State(mirror): State<Mirror>) -> Response {
    match mirror.cached_images().await {
        Ok(images) => Json(images.into_iter().map(describe).collect::<Vec<_>>()).into_response(),
        Err(error) => failed(&error),
    }
}

fn describe(image: CachedImage) -> api::CachedImage {
    api::CachedImage {
        repository: image.repo.to_string(),
        digest: image.digest.to_string(),
        tags: image.tags,
        size_bytes: image.size_bytes,
        missing_blobs: image.missing_blobs,
        used_at_s: image.used_at_s,
        pinned: image.pinned,
    }
}

async fn prefetch(State(mirror): State<Mirror>, Query(image): Query<Image>) -> Result<Response, Response> {
    let (name, platform) = (image.name()?, image.platform()?);
    Ok(changed(mirror.prefetch(&name, platform.as_ref()).await.map(|()| true)))
}

async fn pin(State(mirror): State<Mirror>, Query(image): Query<Image>) -> Result<Response, Response> {
    Ok(changed(mirror.pin(&image.name()?).await.map(|()| true)))
}

async fn unpin(State(mirror): State<Mirror>, Query(image): Query<Image>) -> Result<Response, Response> {
    Ok(changed(mirror.unpin(&image.name()?).await))
}

async fn evict(
    State(mirror): State<Mirror>,
    Query(image): Query<Image>,
    Query(Force { force }): Query<Force>,
) -> Result<Response, Response> {
    Ok(changed(mirror.evict(&image.name()?, if force { Pins::Ignored } else { Pins::Kept }).await))
}

fn changed(outcome: Result<bool, MirrorError>) -> Response {
    match outcome {
        Ok(changed) => Json(api::Changed { changed }).into_response(),
        Err(error) => failed(&error),
    }
}

fn failed(error: &MirrorError) -> Response {
    let status = match error {
        MirrorError::NotMirrored(_) | MirrorError::NoImage(_) => StatusCode::NOT_FOUND,
        MirrorError::Pinned { .. } => StatusCode::CONFLICT,
        MirrorError::Upstream(_) | MirrorError::Fill(_) | MirrorError::Late { .. } => StatusCode::BAD_GATEWAY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    failure(status, chain(error))
}
