//! The registry as it is seen from outside: below a prefix, with URLs that lead back to it, and headers of the operator.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{HOST, LINK, LOCATION};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;

use super::connection::Client;
use crate::config::{HttpConfig, Urls};

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// `router` as `config` shows it to the world.
pub fn public(router: Router, config: &HttpConfig) -> Router {
    let nested = match config.prefix.as_str() {
        "" => router,
        prefix => Router::new().nest_service(prefix, router),
    };
    let rewrites = !config.prefix.is_empty() || config.urls != Urls::Relative;
    let outside =
        Outside { prefix: config.prefix.clone(), urls: config.urls.clone(), headers: config.headers.clone() };
    if !rewrites && outside.headers.is_empty() {
        return nested;
    }
    nested.layer(from_fn_with_state(Arc::new(outside), dress))
}

struct Outside {
    prefix: String,
    urls: Urls,
    headers: HeaderMap,
}

async fn dress(State(outside): State<Arc<Outside>>, request: Request, next: Next) -> Response {
    let base = match &outside.urls {
        Urls::Relative => outside.prefix.clone(),
        Urls::Below(base) => base.clone(),
        Urls::OfRequest => match origin(&request) {
            Some(origin) => format!("{origin}{}", outside.prefix),
            None => outside.prefix.clone(),
        },
    };
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    rebase(headers, LOCATION, &base);
    rebase(headers, LINK, &base);
    headers.extend(outside.headers.clone());
    response
}

/// Puts `base` before the path that the header holds, bare or in the angle brackets of `Link`.
fn rebase(headers: &mut HeaderMap, name: HeaderName, base: &str) {
    let rebased = headers.get(&name).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (bracket, path) = match value.strip_prefix('<') {
            Some(path) => ("<", path),
            None => ("", value),
        };
        path.starts_with('/').then(|| HeaderValue::try_from(format!("{bracket}{base}{path}")).ok())?
    });
    if let Some(rebased) = rebased {
        headers.insert(name, rebased);
    }
}

/// The scheme and host that were asked: by the client of a proxy before us, if it says so, as it is in distribution.
/// `None` if no usable host was named.
fn origin(request: &Request) -> Option<String> {
    let first = |name: &HeaderName| {
        let value = request.headers().get(name)?.to_str().ok()?;
        Some(value.split(',').next()?.trim().to_owned())
    };
    let tls = request.extensions().get::<Client>().is_some_and(|client| client.tls);
    let own = if tls { "https" } else { "http" };
    let scheme = first(&FORWARDED_PROTO).filter(|scheme| matches!(scheme.as_str(), "http" | "https"));
    let scheme = scheme.unwrap_or_else(|| own.to_owned());
    // HTTP/2 has the host in its URI.
    let asked = || request.uri().authority().map(Authority::to_string).or_else(|| first(&HOST));
    let host = first(&FORWARDED_HOST).or_else(asked)?;
    let host: Authority = host.parse().ok().filter(|host: &Authority| !host.as_str().contains('@'))?;
    Some(format!("{scheme}://{host}"))
}
