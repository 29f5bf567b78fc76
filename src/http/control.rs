//! The Unix socket behind the command line, and the port of metrics, health and the status page.

use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use crate::api;
use crate::auth::Auth;
use crate::metrics::Metrics;
use crate::mirror::{Collected, Mirror};

/// What the control pages ask of the daemon, besides the mirror.
pub trait Daemon: Send + Sync + 'static {
    fn status(&self) -> api::Status;
    /// Asks the network for the newest record of a name.
    fn resolve<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<api::Resolved, String>> + Send + 'a>>;
    /// Gives a key up for a new one; without a name, the one that is published under.
    fn rotate(
        &self,
        name: Option<String>,
    ) -> Pin<Box<dyn Future<Output = Result<api::Rotated, String>> + Send + '_>>;
    /// Brings the gauges up to date.
    fn refresh(&self, metrics: &Metrics);
}

#[derive(Clone)]
struct Shared {
    mirror: Mirror,
    metrics: Metrics,
    daemon: Arc<dyn Daemon>,
}

/// What the command line asks, over the socket that only the daemon's user may open: therefore without any other proof
/// of who it is. The registry API is served there too, for the commands that move images.
pub fn control_router(mirror: Mirror, metrics: Metrics, daemon: Arc<dyn Daemon>) -> Router {
    let registry = super::router(Auth::allow_all(), mirror.clone(), metrics.clone());
    Router::new()
        .route("/v0/status", get(status))
        .route("/v0/resolve", get(resolve))
        .route("/v0/gc", post(collect_garbage))
        .fallback_service(registry)
        .with_state(Shared { mirror: mirror.clone(), metrics, daemon: daemon.clone() })
        .merge(super::names::router(mirror.clone(), daemon))
        .merge(super::cache::router(mirror.clone()))
        .merge(super::layouts::router(mirror))
}

/// What monitoring asks: nothing here changes anything. The metrics are at `metrics_path`, if they are anywhere.
pub fn debug_router(
    mirror: Mirror,
    metrics: Metrics,
    daemon: Arc<dyn Daemon>,
    metrics_path: Option<&str>,
) -> Router {
    let pages = Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/healthz", get(async || "ok\n"));
    let pages = match metrics_path {
        Some(path) => pages.route(path, get(metrics_page)),
        None => pages,
    };
    pages.with_state(Shared { mirror, metrics, daemon })
}

async fn status(State(shared): State<Shared>) -> Json<api::Status> {
    Json(shared.daemon.status())
}

#[derive(Deserialize)]
struct ResolveQuery {
    name: String,
}

async fn resolve(State(shared): State<Shared>, Query(query): Query<ResolveQuery>) -> Response {
    match shared.daemon.resolve(&query.name).await {
        Ok(resolved) => Json(resolved).into_response(),
        Err(error) => failure(StatusCode::BAD_GATEWAY, error),
    }
}

async fn collect_garbage(State(shared): State<Shared>) -> Response {
    match shared.mirror.collect_garbage().await {
        Ok(Collected { links, blocks, bytes }) => {
            Json(api::Collected { links, blocks, bytes }).into_response()
        }
        Err(error) => failure(StatusCode::INTERNAL_SERVER_ERROR, error),
    }
}

pub(super) fn failure(status: StatusCode, error: String) -> Response {
    (status, Json(api::Failure { error })).into_response()
}

async fn metrics_page(State(shared): State<Shared>) -> impl IntoResponse {
    shared.daemon.refresh(&shared.metrics);
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], shared.metrics.page())
}

async fn page(State(shared): State<Shared>) -> Html<String> {
    let status = shared.daemon.status();
    let mut page = String::from("<!doctype html><meta charset=utf-8><title>shoal</title><h1>shoal</h1><pre>");
    // Writing to a string cannot fail; a struct of plain values always serialises.
    let json = serde_json::to_string_pretty(&status).unwrap_or_default();
    let _ = write!(page, "{}", json.replace('&', "&amp;").replace('<', "&lt;"));
    page.push_str("</pre><p><a href=/metrics>metrics</a> <a href=/healthz>health</a>");
    Html(page)
}
