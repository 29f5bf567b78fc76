//! What is followed whole outlasts this daemon: see [`Ipfs::keep`]. What is not here whole is not kept so, since whoever
//! keeps a root has to have all of it. Nobody waits for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::chain;
use super::roots::Follow;
use crate::config::FollowMode;
use crate::ipfs::{Ipfs, IpfsError};
use crate::ipld::{Cid, TreeName};
use crate::tasks::jittered;

/// The pause before what failed is tried again: twice as long each time, within these.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));

/// What the label of each followed name begins with.
const KIND: &str = "shoal follows ";

/// Keeps the newest root that is here whole, and lets those before it go, until a stop.
pub(super) async fn run(follow: Follow, ipfs: Arc<dyn Ipfs>, stop: CancellationToken) {
    let mut replica = follow.replica().subscribe();
    let label = label(&follow.name);
    let (mut kept, mut tried, mut pause) = (None, None, RETRY_PAUSE.0);
    loop {
        let whole = replica.borrow_and_update().whole;
        if tried != whole {
            (tried, pause) = (whole, RETRY_PAUSE.0);
        }
        let outcome = match (follow.mode, whole) {
            (FollowMode::All, Some(root)) if kept != Some(root) => {
                let held = stop.run_until_cancelled(hold(&ipfs, &label, &root)).await;
                held.map(|held| held.map(|()| kept = Some(root)))
            }
            (FollowMode::All, _) => Some(Ok(())),
            // It may have been `all` before.
            (FollowMode::None | FollowMode::Tags, _) => {
                stop.run_until_cancelled(ipfs.let_go(&label, &[])).await
            }
        };
        let retry = match outcome {
            None => return,
            Some(Ok(())) if follow.mode != FollowMode::All => return,
            Some(Ok(())) => None,
            Some(Err(error)) => {
                tracing::info!(ipns = %follow.name, error = %chain(&error), "what is followed is not kept by the network as it should be");
                let retry = jittered(pause);
                pause = (2 * pause).min(RETRY_PAUSE.1);
                Some(retry)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            ended = async { replica.wait_for(|status| status.whole != whole).await.is_err() } => if ended { return },
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => (),
        }
    }
}

/// Lets go of what was kept of names that are followed no longer, whatever was kept of them; until it is done, or a stop.
pub(super) async fn let_go_of_former(names: Vec<TreeName>, ipfs: Arc<dyn Ipfs>, stop: CancellationToken) {
    let labels: BTreeSet<String> = names.iter().map(label).collect();
    let mut pause = RETRY_PAUSE.0;
    loop {
        match stop.run_until_cancelled(ipfs.let_go_rest(KIND, &labels)).await {
            None | Some(Ok(())) => return,
            Some(Err(error)) => {
                tracing::debug!(error = %chain(&error), "names that were followed are still kept by the network");
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(jittered(pause))).await.is_none() {
            return;
        }
        pause = (2 * pause).min(RETRY_PAUSE.1);
    }
}

fn label(name: &TreeName) -> String {
    format!("{KIND}{name}")
}

async fn hold(ipfs: &Arc<dyn Ipfs>, label: &str, root: &Cid) -> Result<(), IpfsError> {
    ipfs.keep(label, root).await?;
    ipfs.let_go(label, &[*root]).await
}
