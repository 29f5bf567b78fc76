//! Between routing and the handlers: may this be done by who asks?
//!
//! How clients find out that they should log in decides two details. podman and skopeo look at `GET /v2/` alone, and send
//! their credentials ever after if the answer has a challenge, be it 401 or 200. So where anonymous pull is allowed, the
//! answer is 200 with a challenge. The classic Docker engine takes a challenge from a 401 only, and cannot pull without
//! credentials after one for Basic: with `htpasswd` it has to choose between anonymous pull and push.
//!
//! A mirror's request (`?ns=`) is never challenged: containerd may answer with what it has for the registry upstream. Who
//! wants credentials there puts them into hosts.toml as a `header`.

use std::net::IpAddr;

use axum::http::header::{AUTHORIZATION, HOST};
use axum::http::request::Parts;
use axum::http::{HeaderName, Uri};

use super::error::Failure;
use super::pull::text;
use crate::auth::{Asked, Auth, Refusal};
use crate::oci::{Access, Route};

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Whom a connection comes from; among the extensions of each of its requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientAddress(pub(super) IpAddr);

/// A request that may be answered.
pub(super) struct Admitted {
    pub(super) route: Route,
    /// Goes out as `WWW-Authenticate`, though the answer is a good one.
    pub(super) challenge: Option<String>,
}

/// Lets a request through as far as its rights go, or refuses it.
pub(super) async fn admit(auth: &Auth, route: Route, request: &Parts) -> Result<Admitted, Failure> {
    let access = route.access();
    let headers = &request.headers;
    let challenge = |refusal: Option<&Refusal>| {
        let (host, proto) = (text(headers, &HOST), text(headers, &FORWARDED_PROTO));
        auth.challenge(&access, refusal, host, proto)
    };
    let asked = Asked {
        access: &access,
        authorization: headers.get(AUTHORIZATION).map(|value| value.as_bytes()),
        address: request.extensions.get::<ClientAddress>().map(|address| address.0),
    };
    match auth.authorize(asked).await {
        Ok(rights) => {
            let invited = access == Access::Registry && rights.is_anonymous();
            Ok(Admitted {
                route: route.mount_if(|from| rights.may_pull(from)),
                challenge: invited.then(|| challenge(None)).flatten(),
            })
        }
        Err(refusal) => {
            let challenge = if is_mirrored(&request.uri) { None } else { challenge(Some(&refusal)) };
            Err(Failure::Refused { refusal, challenge })
        }
    }
}

fn is_mirrored(uri: &Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == "ns")
}
