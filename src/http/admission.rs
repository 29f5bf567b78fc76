//! Between routing and the handlers: may this be done by who asks? And the token server that anonymous pull needs.
//!
//! A mirror's request (`?ns=`) is never challenged: containerd may answer with what it has for the registry upstream. Who
//! wants credentials there puts them into hosts.toml as a `header`.

use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Shared;
use super::connection::Client;
use super::error::Failure;
use super::pull::text;
use crate::auth::{Asked, Auth};
use crate::oci::Route;
use crate::oci::route::RouteError;

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Lets a request through as far as its rights go, or refuses it.
pub(super) async fn admit(auth: &Auth, route: Route, request: &Parts) -> Result<Route, Failure> {
    let access = route.access();
    let headers = &request.headers;
    let asked = Asked {
        access: &access,
        authorization: authorization(headers),
        address: address(&request.extensions),
    };
    match auth.authorize(asked).await {
        Ok(rights) => Ok(route.mount_if(|from| rights.may_pull(from))),
        Err(refusal) => {
            let (host, proto) = (text(headers, &HOST), text(headers, &FORWARDED_PROTO));
            let challenge =
                if is_mirrored(&request.uri) { None } else { auth.challenge(&access, &refusal, host, proto) };
            Err(Failure::Refused { refusal, challenge })
        }
    }
}

/// The answer of a token server (distribution, "Token authentication specification"). The older clients read `token`, the
/// others `access_token`.
#[derive(Serialize)]
struct Token {
    token: String,
    access_token: String,
    expires_in: u64,
}

/// Hands out a token for the credentials shown, or for none. What scope is asked for makes no difference.
pub(super) async fn token(State(shared): State<Shared>, request: Parts) -> Result<Response, Failure> {
    let issued = shared.auth.issue(authorization(&request.headers), address(&request.extensions)).await;
    let issued = issued
        .map_err(|refusal| Failure::Refused { refusal, challenge: shared.auth.token_challenge() })?
        .ok_or(RouteError::NotFound)?;
    Ok(Json(Token {
        access_token: issued.token.clone(),
        token: issued.token,
        expires_in: issued.expires_in.as_secs(),
    })
    .into_response())
}

fn authorization(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get(AUTHORIZATION).map(|value| value.as_bytes())
}

fn address(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<Client>()?.address.map(|address| address.ip())
}

fn is_mirrored(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == "ns")
}
