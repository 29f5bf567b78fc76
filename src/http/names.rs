//! The pages of the control socket for the own name: publishing it, what to do about another writer, giving it up.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;

use super::control::{Daemon, failure};
use crate::api;
use crate::mirror::{Mirror, MirrorError, TagConflict, chain};

#[derive(Clone)]
struct Shared {
    mirror: Mirror,
    daemon: Arc<dyn Daemon>,
}

pub(super) fn router(mirror: Mirror, daemon: Arc<dyn Daemon>) -> Router {
    Router::new()
        .route("/v0/publish", post(publish))
        .route("/v0/name/overwrite", post(overwrite))
        .route("/v0/name/adopt", post(adopt))
        .route("/v0/key/rotate", post(rotate))
        .with_state(Shared { mirror, daemon })
}

async fn publish(State(shared): State<Shared>) -> Response {
    match shared.mirror.publish_now().await {
        Ok(_) => Json(shared.daemon.status()).into_response(),
        Err(error) => failed(&error),
    }
}

async fn overwrite(State(shared): State<Shared>) -> Response {
    match shared.mirror.overwrite().await {
        Ok(_) => Json(shared.daemon.status()).into_response(),
        Err(error) => failed(&error),
    }
}

async fn adopt(State(shared): State<Shared>) -> Response {
    let adopted = match shared.mirror.adopt().await {
        Ok(adopted) => adopted,
        Err(error) => return failed(&error),
    };
    match shared.daemon.status().own {
        Some(own) => {
            let conflicts = adopted.conflicts.into_iter().map(describe).collect();
            Json(api::Adopted { own, conflicts, missing_files: adopted.missing_files }).into_response()
        }
        None => failed(&MirrorError::ReadOnly),
    }
}

fn describe(conflict: TagConflict) -> api::TagConflict {
    let TagConflict { repo, tag, ours, theirs } = conflict;
    api::TagConflict {
        repository: repo.to_string(),
        tag: tag.to_string(),
        ours: ours.to_string(),
        theirs: theirs.to_string(),
    }
}

#[derive(Deserialize)]
struct Key {
    name: Option<String>,
}

async fn rotate(State(shared): State<Shared>, Query(key): Query<Key>) -> Response {
    match shared.daemon.rotate(key.name).await {
        Ok(rotated) => Json(rotated).into_response(),
        Err(error) => failure(StatusCode::CONFLICT, error),
    }
}

fn failed(error: &MirrorError) -> Response {
    let status = match error {
        MirrorError::ReadOnly | MirrorError::NoOtherWriter | MirrorError::NotAdoptable { .. } => {
            StatusCode::CONFLICT
        }
        MirrorError::Fetch { .. } => StatusCode::BAD_GATEWAY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    failure(status, chain(error))
}
