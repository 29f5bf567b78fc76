//! The trustless gateway (IPFS specification "Trustless Gateway", and "HTTP over libp2p" for where it is): blocks by CID,
//! which the client verifies. Only what is here and public is given; nothing is fetched for whoever asks.

use axum::extract::{Path, RawQuery, State};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_TYPE, ETAG, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use crate::ipld::Cid;
use crate::mirror::{Mirror, chain};

const RAW_TYPE: &str = "application/vnd.ipld.raw";
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
        None => refused(StatusCode::NOT_ACCEPTABLE, "ask for format=raw"),
    }
}

/// What an answer is to look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// One block.
    Raw,
}

impl Format {
    /// The query goes before `Accept`.
    fn asked(query: &str, headers: &HeaderMap) -> Option<Self> {
        if let Some((_, format)) = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "format") {
            return (format == "raw").then_some(Self::Raw);
        }
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut types = accepted.flat_map(|value| value.split(',')).map(str::trim);
        types.any(|accepted| accepted.split(';').next() == Some(RAW_TYPE)).then_some(Self::Raw)
    }
}

async fn raw(mirror: &Mirror, cid: &Cid) -> Response {
    match mirror.block(cid).await {
        Ok(Some(block)) => {
            let headers = [
                (CONTENT_TYPE, RAW_TYPE.to_owned()),
                (CONTENT_DISPOSITION, format!("attachment; filename=\"{cid}.bin\"")),
                (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
                (CACHE_CONTROL, IMMUTABLE.to_owned()),
                (ETAG, format!("\"{cid}.raw\"")),
            ];
            (headers, block.into_bytes()).into_response()
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
