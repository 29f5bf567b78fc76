//! axum in, [`Mirror`] out: the registry API of the OCI distribution specification 1.1, and the control socket.

pub mod access_log;
mod admission;
mod cache;
mod connection;
pub mod control;
mod deadline;
pub mod describe;
mod error;
mod guard;
mod layouts;
pub mod listen;
mod listing;
mod names;
pub mod peer;
pub mod public;
mod pull;
mod push;
pub mod server;
pub mod tls;

use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::auth::{Auth, TOKEN_PATH};
use crate::metrics::Metrics;
use crate::mirror::Mirror;
use crate::oci::Route;
use deadline::in_time;
use error::Failure;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    auth: Auth,
    mirror: Mirror,
    metrics: Metrics,
}

/// The registry API. One fallback takes every path, since a repository name has any number of slashes.
pub fn router(auth: Auth, mirror: Mirror, metrics: Metrics) -> Router {
    Router::new().route(TOKEN_PATH, get(admission::token)).fallback(answer).with_state(Shared {
        auth,
        mirror,
        metrics,
    })
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let begun = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    shared.metrics.http_requests.inc();
    let route = Route::parse(method.as_str(), uri.path(), uri.query());
    let metrics = shared.metrics.clone();
    let is_pull = matches!(route, Ok(Route::GetManifest { .. } | Route::GetBlob { head: false, .. }));
    let outcome = match route {
        Ok(route) => in_time((&route).into(), admitted(shared, route, request)).await,
        Err(error) => Err(error.into()),
    };
    let mut response = outcome.unwrap_or_else(IntoResponse::into_response);
    if is_pull && response.status() == StatusCode::NOT_FOUND {
        metrics.misses.inc();
    }
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    let (status, duration_ms) = (response.status().as_u16(), begun.elapsed().as_millis());
    tracing::debug!(http.method = %method, http.path = %uri, http.status = status, duration_ms, "answered");
    response
}

async fn admitted(shared: Shared, route: Route, request: Request) -> Result<Response, Failure> {
    let (head, body) = request.into_parts();
    let route = admission::admit(&shared.auth, route, &head).await?;
    dispatch(shared, route, Request::from_parts(head, body)).await
}

async fn dispatch(shared: Shared, route: Route, request: Request) -> Result<Response, Failure> {
    let Shared { mirror, metrics, .. } = shared;
    match route {
        Route::Version => Ok(json("{}".to_owned())),
        Route::GetManifest { repo, reference, head } => {
            pull::manifest(&mirror, &repo, &reference, head, &asking(&request)?).await
        }
        Route::GetBlob { repo, digest, head } => {
            pull::blob(&mirror, &metrics, &repo, &digest, head, &asking(&request)?).await
        }
        Route::ListTags { repo, page } => listing::tags(&mirror, &repo, &page, &asking(&request)?).await,
        Route::ListReferrers { repo, subject, artifact_type, page } => {
            let (artifact_type, request) = (artifact_type.as_deref(), asking(&request)?);
            listing::referrers(&mirror, &repo, &subject, artifact_type, &page, &request).await
        }
        Route::Catalog { page } => listing::catalog(&mirror, &page).await,
        Route::PutManifest { repo, reference, tags, digest } => {
            push::manifest(&mirror, &repo, &reference, &tags, digest, request).await
        }
        Route::DeleteManifest { repo, reference } => push::delete_manifest(&mirror, &repo, &reference).await,
        Route::DeleteBlob { repo, digest } => push::delete_blob(&mirror, &repo, &digest).await,
        Route::StartUpload { repo, start } => push::start(&mirror, &repo, start, request).await,
        Route::UploadStatus { repo, id } => push::status(&mirror, &repo, &id),
        Route::AppendUpload { repo, id } => push::append(&mirror, &repo, &id, request).await,
        Route::FinishUpload { repo, id, digest } => push::finish(&mirror, &repo, &id, &digest, request).await,
        Route::CancelUpload { repo, id } => {
            mirror.cancel_upload(&repo, &id).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
    }
}

fn asking(request: &Request) -> Result<pull::Asking, Failure> {
    pull::Asking::read(request.uri().query(), request.headers().clone())
}

fn json(body: String) -> Response {
    ([(CONTENT_TYPE, "application/json")], Body::from(body)).into_response()
}

/// Sets a header whose value was put together from what is known to be plain text.
fn set(headers: &mut HeaderMap, name: HeaderName, value: impl AsRef<str>) {
    if let Ok(value) = HeaderValue::from_str(value.as_ref()) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests;
