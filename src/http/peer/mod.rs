//! What other daemons may ask of us, over HTTP on libp2p streams: anybody the trustless gateway and public blobs by
//! their digest, the mesh more.
//!
//! Strangers have room of their own, small enough that they cannot take that of the mesh.

pub mod blobs;
pub mod gateway;
pub mod mesh;
mod places;
#[cfg(test)]
mod tests;

use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use futures::StreamExt;
use tower::ServiceExt;

use super::connection::{Client, Protocol, Server};
use crate::config::HttpLimits;
use crate::ipfs::{PeerStream, PeerStreams, Trust};
use crate::tasks::Tasks;
use places::Places;

/// Streams of the mesh that are served at once, of all of it and of one peer; those above are reset.
const MESH_STREAMS_MAX: usize = 1024;
const MESH_STREAMS_PER_PEER_MAX: usize = 128;
/// The same for strangers, each of whose streams may hold a block of 2 MiB and a window of 1 MiB.
const STRANGERS_STREAMS_MAX: usize = 64;
const STRANGERS_STREAMS_PER_PEER_MAX: usize = 8;

/// What a stream may cost. To open another one is cheap, so that an idle one is not kept for long.
fn limits() -> HttpLimits {
    HttpLimits {
        header_timeout: Duration::from_secs(10),
        header_bytes_max: 16 * 1024,
        idle_timeout: Duration::from_secs(15),
        body_stall_timeout: Duration::from_secs(15),
        send_stall_timeout: Duration::from_secs(30),
        ..HttpLimits::default()
    }
}

/// Serves the streams that peers open, until they end or the daemon stops. `mesh` answers those who are trusted when
/// they ask, `anybody` the others; each request has its [`Peer`](crate::ipfs::Peer) among its extensions.
pub fn serve(tasks: &Tasks, streams: PeerStreams, anybody: Router, mesh: Router) {
    let peers = tasks.clone();
    tasks.spawn("peers", |stop| async move {
        stop.run_until_cancelled(accept_all(&peers, streams, &anybody, &mesh, limits())).await;
    });
}

async fn accept_all(
    tasks: &Tasks,
    mut streams: PeerStreams,
    anybody: &Router,
    mesh: &Router,
    limits: HttpLimits,
) {
    let of_mesh = Places::new(MESH_STREAMS_MAX, MESH_STREAMS_PER_PEER_MAX);
    let of_strangers = Places::new(STRANGERS_STREAMS_MAX, STRANGERS_STREAMS_PER_PEER_MAX);
    while let Some(PeerStream { peer, trust, io }) = streams.next().await {
        let places = if trust.holds() { &of_mesh } else { &of_strangers };
        let Some(place) = places.take(&peer) else {
            tracing::debug!(%peer, "reset a stream for HTTP: too many are open");
            continue;
        };
        let choice = Choice { trust, anybody: anybody.clone(), mesh: mesh.clone() };
        let router = Router::new().fallback(answer).with_state(choice);
        let server = Server { router, limits, tasks: tasks.clone() };
        let client = Client { peer: Some(peer), ..Client::default() };
        tasks.spawn_short("peer", |stop| async move {
            place.hold(Box::pin(server.serve(Box::new(io), client, Protocol::Http1, stop))).await;
        });
    }
}

/// Who answers a peer.
#[derive(Clone)]
struct Choice {
    trust: Trust,
    anybody: Router,
    mesh: Router,
}

/// A stream may outlast the trust in its peer, so that each request is judged by itself.
async fn answer(State(choice): State<Choice>, mut request: Request) -> Response {
    if let Some(peer) = request.extensions().get::<Client>().and_then(|client| client.peer.clone()) {
        request.extensions_mut().insert(peer);
    }
    let router = if choice.trust.holds() { choice.mesh } else { choice.anybody };
    router.oneshot(request).await.unwrap_or_else(|never| match never {})
}
