//! Announces the own tree after a start: its root, and each blob and manifest in it, by CID and by digest. New ones are
//! announced as they are published.

use std::sync::Arc;

use cid::Cid;
use tokio_util::sync::CancellationToken;

use super::commit::{Commits, Fresh};
use super::{chain, layout};
use crate::dag::{DagError, Tree};
use crate::ipfs::Ipfs;
use crate::oci::Digest;

/// Blobs announced after a start.
const BLOBS_MAX: usize = 65_536;
/// Names read, and roots handed over, at a time.
const PAGE: usize = 256;

pub(super) async fn announce_tree(
    tree: Tree,
    ipfs: Arc<dyn Ipfs>,
    commits: Commits,
    stop: CancellationToken,
) {
    match stop.run_until_cancelled(walk(&tree, &ipfs, &commits)).await {
        Some(Ok(count)) => tracing::debug!(blobs = count, "own tree announced"),
        Some(Err(error)) => tracing::warn!(error = %chain(&error), "own tree not announced whole"),
        None => (),
    }
}

/// Each part is read below the root that is in force by then: what an older one has may be gone.
async fn walk(tree: &Tree, ipfs: &Arc<dyn Ipfs>, commits: &Commits) -> Result<usize, DagError> {
    ipfs.provide(&[commits.root()]).await?;
    let mut count = 0;
    for algorithm in names(tree, &commits.root(), layout::BLOBS).await? {
        let folder = format!("{}/{algorithm}", layout::BLOBS);
        for prefix in names(tree, &commits.root(), &folder).await? {
            let prefix = format!("{folder}/{prefix}");
            let mut after = None;
            while let Some(page) = tree.list(&commits.root(), &prefix, after.as_deref(), PAGE).await? {
                let mut found = Fresh::default();
                for name in &page.names {
                    let Ok(digest) = format!("{algorithm}:{name}").parse::<Digest>() else { continue };
                    let data = tree.lookup(&commits.root(), &layout::blob_data(&digest)).await?;
                    data.inspect(|data| found.add(&digest, data.cid));
                }
                count += found.roots.len();
                ipfs.provide(&found.roots).await?;
                ipfs.provide_digests(&found.digests).await?;
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
