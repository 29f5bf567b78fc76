//! Makes the layouts that are kept here outlast this daemon, and findable: see [`Ipfs::keep`]. Nobody waits for it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::kept::Kept;
use crate::ipfs::{Ipfs, IpfsError};

/// The pause before what failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(60);

/// What the label of each layout begins with.
const KIND: &str = "shoal layout ";

/// Runs until `stop`; `changed` tells of a layout that came or went.
pub(in crate::mirror) async fn run(
    kept: Kept,
    ipfs: Arc<dyn Ipfs>,
    changed: Arc<Notify>,
    stop: CancellationToken,
) {
    let mut held = HashSet::new();
    loop {
        let Some(outcome) = stop.run_until_cancelled(hold(&kept, &ipfs, &mut held)).await else { return };
        let pause = async {
            match outcome {
                Ok(()) => std::future::pending().await,
                Err(error) => {
                    tracing::debug!(%error, "layouts not all made available yet");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = changed.notified() => (),
            () = pause => (),
        }
    }
}

async fn hold(kept: &Kept, ipfs: &Arc<dyn Ipfs>, held: &mut HashSet<Cid>) -> Result<(), IpfsError> {
    let wanted: HashSet<Cid> = kept.roots().into_iter().collect();
    // One may have gone while the network was away, before this run.
    let labels = wanted.iter().map(label).collect();
    ipfs.let_go_rest(KIND, &labels).await?;
    for root in wanted.difference(&held.clone()) {
        ipfs.keep(&label(root), root).await?;
        ipfs.provide(&[*root]).await?;
        held.insert(*root);
    }
    for root in held.clone().difference(&wanted) {
        ipfs.let_go(&label(root), &[]).await?;
        held.remove(root);
    }
    Ok(())
}

fn label(root: &Cid) -> String {
    format!("{KIND}{root}")
}
