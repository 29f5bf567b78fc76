//! Hears from each peer of the mesh what it holds, for as long as it is there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use hyper::{Request, StatusCode};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::holdings::MESSAGE_BYTES_MAX;
use super::{Known, Mesh, PEERS_MAX, TELL_WAIT};
use crate::ipfs::Peer;
use crate::tasks::Tasks;

/// The path of what a peer holds.
pub const HOLDINGS_PATH: &str = "/mesh/holdings";
/// How long an answer may take beyond the waiting for news.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Why nothing was heard.
type Reason = Box<dyn std::error::Error + Send + Sync>;

pub(super) async fn run(mesh: Mesh, tasks: Tasks, stop: CancellationToken) {
    let mut members = mesh.0.ipfs.mesh();
    let mut listening = HashMap::<Peer, AbortHandle>::new();
    loop {
        let present = members.borrow_and_update().clone();
        listening.retain(|peer, listener| {
            let stays = present.contains(peer);
            if !stays {
                listener.abort();
                mesh.peers().remove(peer);
                tracing::info!(%peer, "peer left the mesh");
            }
            stays
        });
        for peer in present.iter().filter(|peer| *peer != mesh.us()) {
            if listening.contains_key(peer) || listening.len() >= PEERS_MAX {
                continue;
            }
            tracing::info!(%peer, "peer came to the mesh");
            let left_alone_until = mesh.0.banned.get(peer);
            mesh.peers().insert(peer.clone(), Known { left_alone_until, ..Known::default() });
            let (mesh, of) = (mesh.clone(), peer.clone());
            listening.insert(peer.clone(), tasks.spawn_short("listen", |stop| listen(mesh, of, stop)));
        }
        match stop.run_until_cancelled(members.changed()).await {
            Some(Ok(())) => (),
            Some(Err(_)) => return stop.cancelled().await,
            None => return,
        }
    }
}

async fn listen(mesh: Mesh, peer: Peer, stop: CancellationToken) {
    loop {
        match stop.run_until_cancelled(hear(&mesh, &peer)).await {
            None => return,
            Some(Ok(())) => (),
            Some(Err(error)) => {
                tracing::debug!(%peer, %error, "peer did not say what it holds");
                // Not reckoned with until it answers again, which may be at once: it may not have trusted us yet.
                if let Some(known) = mesh.peers().get_mut(&peer) {
                    known.answered_at = None;
                }
                if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Asks once, and waits for the answer.
async fn hear(mesh: &Mesh, peer: &Peer) -> Result<(), Reason> {
    let (epoch, version) = match mesh.peers().get(peer) {
        Some(known) => (known.theirs.epoch, known.theirs.version),
        None => return Err("it has left".into()),
    };
    let path = format!("{HOLDINGS_PATH}?epoch={epoch}&since={version}");
    let request = Request::get(path).body(Bytes::new())?;
    let answer = async {
        let response = mesh.0.ipfs.request(peer, request).await?;
        if response.status() != StatusCode::OK {
            return Err::<_, Reason>(response.status().to_string().into());
        }
        let (mut message, mut body) = (BytesMut::new(), response.into_body());
        while let Some(chunk) = body.next().await {
            message.extend_from_slice(&chunk?);
            if message.len() > MESSAGE_BYTES_MAX {
                return Err("its answer is too long".into());
            }
        }
        Ok(message)
    };
    let message = timeout(TELL_WAIT + ANSWER_TIMEOUT, answer).await??;
    if let Some(known) = mesh.peers().get_mut(peer) {
        known.theirs.hear(&message)?;
        if known.answered_at.replace(Instant::now()).is_none() {
            tracing::debug!(%peer, "peer said what it holds");
        }
    }
    Ok(())
}
