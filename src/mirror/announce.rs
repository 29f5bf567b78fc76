//! Announces the own tree after a start: its root, and each blob and manifest in it. New ones are announced as they are
//! published.

use std::sync::Arc;

use cid::Cid;
use tokio_util::sync::CancellationToken;

use super::{chain, layout};
use crate::dag::{DagError, Tree};
use crate::ipfs::Ipfs;

/// Blobs announced after a start.
const BLOBS_MAX: usize = 65_536;
/// Names read, and roots handed over, at a time.
const PAGE: usize = 256;

pub(super) async fn announce_tree(tree: Tree, ipfs: Arc<dyn Ipfs>, root: Cid, stop: CancellationToken) {
    let walk = walk(&tree, &ipfs, &root);
    match stop.run_until_cancelled(walk).await {
        Some(Ok(count)) => tracing::debug!(%root, blobs = count, "own tree announced"),
        Some(Err(error)) => tracing::warn!(%root, error = %chain(&error), "own tree not announced whole"),
        None => (),
    }
}

async fn walk(tree: &Tree, ipfs: &Arc<dyn Ipfs>, root: &Cid) -> Result<usize, DagError> {
    ipfs.provide(std::slice::from_ref(root)).await?;
    let mut count = 0;
    for algorithm in names(tree, root, layout::BLOBS).await? {
        let algorithm = format!("{}/{algorithm}", layout::BLOBS);
        for prefix in names(tree, root, &algorithm).await? {
            let prefix = format!("{algorithm}/{prefix}");
            let mut after = None;
            while let Some(page) = tree.list(root, &prefix, after.as_deref(), PAGE).await? {
                let mut roots = Vec::with_capacity(page.names.len());
                for name in &page.names {
                    roots.extend(
                        tree.lookup(root, &format!("{prefix}/{name}/data")).await?.map(|data| data.cid),
                    );
                }
                count += roots.len();
                ipfs.provide(&roots).await?;
                if !page.more || count >= BLOBS_MAX {
                    break;
                }
                after = page.names.into_iter().next_back();
            }
        }
    }
    Ok(count)
}

/// Names in a directory that has no more than [`PAGE`] where distribution wrote it.
async fn names(tree: &Tree, root: &Cid, path: &str) -> Result<Vec<String>, DagError> {
    Ok(tree.list(root, path, None, PAGE).await?.map(|listing| listing.names).unwrap_or_default())
}
