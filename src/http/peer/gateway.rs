//! The trustless gateway (IPFS specification "Trustless Gateway", and "HTTP over libp2p" for where it is): blocks by CID,
//! which the client verifies. Only what is here and public is given; nothing is fetched for whoever asks.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use crate::ipld::Cid;
use crate::ipld::car::Scope;
use crate::mirror::{Mirror, MirrorError, chain};

const RAW_TYPE: &str = "application/vnd.ipld.raw";
const CAR_TYPE: &str = "application/vnd.ipld.car";
const IMMUTABLE: &str = "public, max-age=29030400, immutable";

/// Where the protocols of a peer's HTTP are found (libp2p HTTP specification, "Namespace").
const PROTOCOLS_PATH: &str = "/.well-known/libp2p/protocols";
const GATEWAY_PROTOCOL: &str = "/ipfs/gateway";

/// `/ipfs/<cid>` for whoever asks.
pub fn gateway(mirror: Mirror) -> Router {
    Router::new().route(PROTOCOLS_PATH, get(protocols)).route("/ipfs/{cid}", get(content)).with_state(mirror)
}

async fn protocols() -> Json<serde_json::Value> {
    Json(serde_json::json!({ GATEWAY_PROTOCOL: { "path": "/" } }))
}

async fn content(
    State(mirror): State<Mirror>,
    Path(cid): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Ok(cid) = cid.parse::<Cid>() else {
        return refused(StatusCode::BAD_REQUEST, "a CID is expected after /ipfs/");
    };
    match Format::asked(query.as_deref().unwrap_or_default(), &headers) {
        Some(Format::Raw) => raw(&mirror, &cid).await,
        Some(Format::Car(scope)) => car(&mirror, &cid, scope).await,
        None => refused(StatusCode::NOT_ACCEPTABLE, "ask for format=raw, or format=car without duplicates"),
    }
}

/// What an answer is to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// One block.
    Raw,
    /// An archive, each block once, before those below it.
    Car(Scope),
}

impl Format {
    /// Parameters of the query go before those of `Accept`. `None`: nothing that we can give.
    fn asked(query: &str, headers: &HeaderMap) -> Option<Self> {
        let query: HashMap<_, _> = form_urlencoded::parse(query.as_bytes()).collect();
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut accepted = accepted.flat_map(|value| value.split(',')).map(str::trim);
        let is_known = |wanted: &&str| matches!(wanted.split(';').next(), Some(RAW_TYPE | CAR_TYPE));
        let accepted = accepted.find(is_known).unwrap_or_default();
        let (media_type, parameters) = accepted.split_once(';').unwrap_or((accepted, ""));
        let parameter = |name: &str| {
            let of_type =
                || parameters.split(';').find_map(|pair| pair.trim().strip_prefix(name)?.strip_prefix('='));
            query.get(&*format!("car-{name}")).map(AsRef::as_ref).or_else(of_type)
        };
        match (query.get("format").map(AsRef::as_ref), media_type) {
            (Some("raw"), _) | (None, RAW_TYPE) => Some(Self::Raw),
            (Some("car"), _) | (None, CAR_TYPE) => {
                let is_plain = matches!(parameter("version"), None | Some("1"))
                    && matches!(parameter("order"), None | Some("dfs" | "unk"))
                    && matches!(parameter("dups"), None | Some("n"));
                let scope = match query.get("dag-scope").map(AsRef::as_ref) {
                    None | Some("all") => Some(Scope::All),
                    Some("entity") => Some(Scope::Entity),
                    Some("block") => Some(Scope::Block),
                    Some(_) => None,
                };
                // A part of an entity alone is not cut out: the client has to ask for ranges of blocks by itself.
                scope.filter(|_| is_plain && !query.contains_key("entity-bytes")).map(Self::Car)
            }
            _ => None,
        }
    }
}

async fn raw(mirror: &Mirror, cid: &Cid) -> Response {
    let found = mirror.block(cid).await;
    answer(cid, found.map(|block| block.map(|block| Body::from(block.into_bytes()))), RAW_TYPE, "bin", "raw")
}

async fn car(mirror: &Mirror, cid: &Cid, scope: Scope) -> Response {
    let found = mirror.archive(cid, scope).await;
    let media_type = format!("{CAR_TYPE}; version=1; order=dfs; dups=n");
    answer(
        cid,
        found.map(|archive| archive.map(Body::from_stream)),
        &media_type,
        "car",
        &format!("car.{scope:?}"),
    )
}

/// `variant` tells apart what a CID can be asked for.
fn answer(
    cid: &Cid,
    found: Result<Option<Body>, MirrorError>,
    media_type: &str,
    extension: &str,
    variant: &str,
) -> Response {
    match found {
        Ok(Some(body)) => {
            let headers = [
                (CONTENT_TYPE, media_type.to_owned()),
                (CONTENT_DISPOSITION, format!("attachment; filename=\"{cid}.{extension}\"")),
                (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
                (CACHE_CONTROL, IMMUTABLE.to_owned()),
                (ETAG, format!("\"{cid}.{variant}\"")),
            ];
            (headers, body).into_response()
        }
        Ok(None) => refused(StatusCode::NOT_FOUND, "the block is not here"),
        Err(error) => {
            tracing::warn!(%cid, error = %chain(&error), "a block could not be read for a peer");
            refused(StatusCode::INTERNAL_SERVER_ERROR, "the block cannot be read")
        }
    }
}

fn refused(status: StatusCode, why: &'static str) -> Response {
    (status, why).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str, accept: &str) -> Option<Format> {
        Format::asked(query, &[(ACCEPT, accept.parse().unwrap())].into_iter().collect())
    }

    #[test]
    fn the_query_goes_before_what_is_accepted_and_both_are_understood() {
        let all = Some(Format::Car(Scope::All));
        for (query, accept, wanted) in [
            ("format=raw", "*/*", Some(Format::Raw)),
            ("format=raw", CAR_TYPE, Some(Format::Raw)),
            ("", RAW_TYPE, Some(Format::Raw)),
            ("", "text/html, application/vnd.ipld.raw;q=0.5", Some(Format::Raw)),
            ("format=car", "*/*", all),
            ("format=car&car-dups=n&car-order=dfs&car-version=1", RAW_TYPE, all),
            ("", "application/vnd.ipld.car; version=1; order=dfs; dups=n", all),
            ("dag-scope=entity", CAR_TYPE, Some(Format::Car(Scope::Entity))),
            ("format=car&dag-scope=block", "*/*", Some(Format::Car(Scope::Block))),
            ("format=car&dag-scope=half", "*/*", None),
            ("format=car&car-version=2", "*/*", None),
            ("format=car&car-dups=y", "*/*", None),
            ("format=car&entity-bytes=0:5", "*/*", None),
            ("", "application/vnd.ipld.car; dups=y", None),
            ("format=tar", RAW_TYPE, None),
            ("", "*/*", None),
        ] {
            assert_eq!(asked(query, accept), wanted, "{query:?} {accept:?}");
        }
    }
}
