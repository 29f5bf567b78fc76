//! What is brought here of a followed root before anybody asks for it: all tags and manifests, so that they list and
//! resolve when the author is gone, or every blob too. Behind the pulls of clients; what could not be had is tried again.
//!
//! A task per name. It goes from one root that is here whole to the next by what has changed; which one that was is on
//! disk, so that a restart goes on from there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cid::Cid;
use futures::TryStreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::roots::Follow;
use super::{Inner, MirrorError, chain, layout, listing};
use crate::config::FollowMode;
use crate::dag::{DagError, Entry};
use crate::ipfs::Ipfs;
use crate::ipld::block::RAW;
use crate::oci::{Digest, RepoName, Tag};
use crate::store::{ReplicaRow, off_thread};
use crate::tasks::jittered;

/// Nodes of directories that one root may have beyond those of the one before: 4 GiB of them at most.
const NODES_MAX: usize = 500_000;
/// Manifests that are brought of one root beyond those of the one before, in bytes.
const MANIFESTS_BYTES_MAX: u64 = 1 << 30;
/// Manifests and blobs that may fail before a try is given up.
const FAILURES_MAX: usize = 8;
/// Names read at a time.
const PAGE: usize = 10_000;
/// Digests handed over at a time to be announced.
const ANNOUNCED_AT_ONCE: usize = 256;
/// Before a root is tried again that could not be had whole.
const RETRY_PAUSE: Duration = Duration::from_secs(30);
/// How often it is looked at whether clients still pull, and how long a blob waits for them at most.
const PULLS_CHECK_INTERVAL: Duration = Duration::from_millis(100);
const PULLS_TIMEOUT: Duration = Duration::from_secs(10);

/// How far the replica of a name has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// All that is to be here of the root that is served is here.
    pub is_whole: bool,
    /// The newest root of which that holds.
    pub whole: Option<Cid>,
    /// Blobs of the root, and how many of them are here; 0 unless all are brought.
    pub blobs: usize,
    pub blobs_held: usize,
    /// Brought in this run.
    pub received_bytes: u64,
    pub error: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum ReplicateError {
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    #[error(transparent)]
    Dag(#[from] DagError),
    #[error("the root has more than {0}: the rest is fetched when it is asked for")]
    TooLarge(String),
    #[error(
        "the store has reached storage.ipfs.followquota ({0} bytes): the rest is fetched when it is asked for"
    )]
    Quota(u64),
}

/// Brings what `mode` says of each root that `follow` serves, until a stop. `quota_bytes`: of the store, above which no
/// further blob is brought.
pub(super) async fn run(
    mirror: Arc<Inner>,
    follow: Follow,
    ipfs: Arc<dyn Ipfs>,
    quota_bytes: Option<u64>,
    stop: CancellationToken,
) {
    let mut serving = follow.serving();
    let mut whole = recall(&mirror, &follow).await;
    if let Some(root) = &whole {
        announce(&mirror, &follow, &ipfs, root).await;
    }
    loop {
        let root = serving.borrow_and_update().root.filter(|root| whole != Some(*root));
        let replica =
            root.map(|root| Replica { mirror: &mirror, follow: &follow, root, old: whole, quota_bytes });
        let retry = match replica {
            None => None,
            Some(replica) => {
                follow.replica().send_modify(|status| status.is_whole = false);
                tokio::select! {
                    () = stop.cancelled() => return,
                    // What came of the one before stays.
                    changed = serving.changed() => if changed.is_ok() { continue } else { return },
                    outcome = Box::pin(replica.bring()) => {
                        // What the status says is what a kill leaves.
                        if outcome.is_ok() {
                            remember(&replica).await;
                            announce(&mirror, &follow, &ipfs, &replica.root).await;
                        }
                        note(follow.replica(), &replica, outcome.as_ref().err());
                        whole = outcome.is_ok().then_some(replica.root).or(whole);
                        outcome.is_err().then(|| jittered(RETRY_PAUSE))
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = serving.changed() => if changed.is_err() { return },
            () = sleep(retry.unwrap_or_default()), if retry.is_some() => (),
        }
    }
}

/// The root that was here whole before this run, if that is as much as is to be brought now and it has not gone since.
async fn recall(mirror: &Inner, follow: &Follow) -> Option<Cid> {
    let (state, name) = (follow.state().clone(), follow.name.clone());
    let key = name.clone();
    let row = off_thread(move || state.replica(&key)).await;
    let row = row
        .inspect_err(|error| tracing::error!(ipns = %name, error = %chain(error), "it is not known what is here of a name"))
        .ok()??;
    if follow.mode == FollowMode::All && row.blobs.is_none() {
        return None;
    }
    mirror.tree.blocks().get(&row.root).await.ok()??;
    follow.replica().send_modify(|status| status.whole = Some(row.root));
    if follow.serving().borrow().root == Some(row.root) {
        let blobs = row.blobs.filter(|_| follow.mode == FollowMode::All).unwrap_or_default();
        follow.replica().send_modify(|status| {
            (status.is_whole, status.blobs, status.blobs_held) = (true, blobs, blobs);
        });
    }
    Some(row.root)
}

/// Losing it costs a walk at the next start.
async fn remember(replica: &Replica<'_>) {
    let (state, name) = (replica.follow.state().clone(), &replica.follow.name);
    let blobs = (replica.follow.mode == FollowMode::All).then_some(replica.follow.replica().borrow().blobs);
    let (row, key) = (ReplicaRow { root: replica.root, blobs }, name.clone());
    if let Err(error) = off_thread(move || state.set_replica(&key, &row)).await {
        tracing::error!(ipns = %name, error = %chain(&error), "cannot remember on disk what is here of a name");
    }
}

/// Has those find us who look for a blob by its digest, where every blob is here.
async fn announce(mirror: &Inner, follow: &Follow, ipfs: &Arc<dyn Ipfs>, root: &Cid) {
    if follow.mode != FollowMode::All {
        return;
    }
    let announced = async {
        for page in mirror.data_of(root).await?.chunks(ANNOUNCED_AT_ONCE) {
            let digests: Vec<_> = page.iter().map(Digest::multihash).collect();
            ipfs.provide_digests(&digests).await?;
        }
        Ok::<_, DagError>(())
    };
    match announced.await {
        Ok(()) => tracing::debug!(ipns = %follow.name, "blobs of a name are announced by their digests"),
        Err(error) => {
            tracing::debug!(ipns = %follow.name, error = %chain(&error), "blobs not announced by their digests");
        }
    }
}

fn note(status: &watch::Sender<ReplicaStatus>, replica: &Replica<'_>, error: Option<&ReplicateError>) {
    let (ipns, root, text) = (&replica.follow.name, &replica.root, error.map(|error| chain(error)));
    match &text {
        Some(error) => tracing::info!(%ipns, %root, %error, "not all of the root is here"),
        None => tracing::debug!(%ipns, %root, "all of the root is here that is to be"),
    }
    status.send_modify(|status| {
        status.is_whole = text.is_none();
        status.whole = status.is_whole.then_some(*root).or(status.whole);
        status.error = text;
    });
}

/// A root that is being brought.
struct Replica<'a> {
    mirror: &'a Inner,
    follow: &'a Follow,
    root: Cid,
    /// A root that is here whole.
    old: Option<Cid>,
    quota_bytes: Option<u64>,
}

impl Replica<'_> {
    async fn bring(&self) -> Result<(), ReplicateError> {
        let tree = &self.mirror.tree;
        if !tree.fetch_directories(self.old.as_ref(), &self.root, NODES_MAX).await? {
            return Err(ReplicateError::TooLarge(format!("{NODES_MAX} directories")));
        }
        self.manifests().await?;
        if self.follow.mode == FollowMode::All {
            self.blobs().await?;
        }
        Ok(tree.blocks().flush().await?)
    }

    /// What the old root has at a path, if that is the same as what is there now.
    async fn is_unchanged(&self, path: &str) -> Result<bool, DagError> {
        let Some(old) = &self.old else { return Ok(false) };
        let cid = |entry: Option<Entry>| entry.map(|entry| entry.cid);
        let now = cid(self.mirror.tree.lookup(&self.root, path).await?);
        // The old root only spares work: where it cannot be read any more, nothing is spared.
        Ok(self.mirror.tree.lookup(old, path).await.is_ok_and(|before| now == cid(before)))
    }

    /// The links of tags, and all manifests. What one repository lacks keeps no other away.
    async fn manifests(&self) -> Result<(), ReplicateError> {
        let (mut last, mut failures, mut left_bytes) =
            (None::<String>, Failures::default(), MANIFESTS_BYTES_MAX);
        loop {
            let page = listing::repositories(&self.mirror.tree, &self.root, last.as_deref(), PAGE).await?;
            for repo in page.names.iter().filter_map(|name| name.parse::<RepoName>().ok()) {
                if self.is_unchanged(&layout::manifests(&repo)).await? {
                    continue;
                }
                self.tags_of(&repo, &mut failures).await?;
                self.manifests_of(&repo, &mut left_bytes, &mut failures).await?;
            }
            last = page.names.last().cloned();
            if !page.more {
                return failures.finish();
            }
        }
    }

    async fn tags_of(&self, repo: &RepoName, failures: &mut Failures) -> Result<(), ReplicateError> {
        let (tree, path) = (&self.mirror.tree, layout::tags(repo));
        let mut last = None::<String>;
        loop {
            let Some(page) = tree.list(&self.root, &path, last.as_deref(), PAGE).await? else {
                return Ok(());
            };
            for tag in page.names.iter().filter_map(|name| name.parse::<Tag>().ok()) {
                if !self.is_unchanged(&layout::tag_link(repo, &tag)).await? {
                    failures.count(self.mirror.tag(&self.root, repo, &tag).await)?;
                }
            }
            last = page.names.into_iter().next_back();
            if !page.more {
                return Ok(());
            }
        }
    }

    async fn manifests_of(
        &self,
        repo: &RepoName,
        left_bytes: &mut u64,
        failures: &mut Failures,
    ) -> Result<(), ReplicateError> {
        for digest in self.mirror.digests_in(&self.root, &layout::revisions(repo)).await? {
            if self.is_unchanged(&layout::revision_link(repo, &digest)).await? {
                continue;
            }
            let manifest = failures.count(self.mirror.manifest_at(&self.root, &digest).await)?;
            let size_bytes = manifest.map_or(0, |manifest| manifest.bytes.len() as u64);
            *left_bytes = left_bytes.checked_sub(size_bytes).ok_or_else(|| {
                ReplicateError::TooLarge(format!("{} MiB of manifests", MANIFESTS_BYTES_MAX >> 20))
            })?;
        }
        Ok(())
    }

    async fn blobs(&self) -> Result<(), ReplicateError> {
        let digests = self.mirror.data_of(&self.root).await?;
        let replica = self.follow.replica();
        replica.send_modify(|status| (status.blobs, status.blobs_held) = (digests.len(), 0));
        let mut failures = Failures::default();
        for digest in digests {
            let brought = match self.is_unchanged(&layout::blob_data(&digest)).await? {
                true => Some(0),
                false => match self.blob(&digest).await {
                    Err(ReplicateError::Mirror(error)) => failures.count(Err(error))?,
                    outcome => Some(outcome?),
                },
            };
            if let Some(bytes) = brought {
                replica.send_modify(|status| {
                    status.blobs_held += 1;
                    status.received_bytes += bytes;
                });
            }
        }
        failures.finish()
    }

    /// Brings a blob and holds it to its digest; returns how many bytes were to be brought.
    async fn blob(&self, digest: &Digest) -> Result<u64, ReplicateError> {
        let tree = &self.mirror.tree;
        let Some(data) = tree.lookup(&self.root, &layout::blob_data(digest)).await? else { return Ok(0) };
        let blob = self.mirror.blob_at(*digest, data, self.root).await?;
        // A blob in one leaf is proven by its name alone, wherever it is.
        let is_held = match data.cid.codec() {
            RAW => tree.blocks().get(&data.cid).await?.is_some(),
            _ => blob.proven,
        };
        if is_held {
            return Ok(0);
        }
        self.wait_for_pulls().await;
        let live_bytes = tree.blocks().store().stats().live_bytes;
        if let Some(quota) = self.quota_bytes.filter(|quota| live_bytes + blob.size_bytes > *quota) {
            return Err(ReplicateError::Quota(quota));
        }
        self.mirror.read(&blob, 0..blob.size_bytes).try_for_each(|_| async { Ok(()) }).await?;
        Ok(blob.size_bytes)
    }

    /// Lets clients go first, within a bound: they may pull for ever.
    async fn wait_for_pulls(&self) {
        let begun = Instant::now();
        while self.mirror.downloads.load(Ordering::Relaxed) > 0 && begun.elapsed() < PULLS_TIMEOUT {
            sleep(PULLS_CHECK_INTERVAL).await;
        }
    }
}

/// What could not be had while the rest went on.
#[derive(Default)]
struct Failures {
    count: usize,
    first: Option<MirrorError>,
}

impl Failures {
    /// `None`: it failed. An error: too many have.
    fn count<T>(&mut self, outcome: Result<T, MirrorError>) -> Result<Option<T>, MirrorError> {
        match outcome {
            Ok(found) => Ok(Some(found)),
            Err(error) => {
                self.count += 1;
                if self.count >= FAILURES_MAX {
                    return Err(error);
                }
                self.first.get_or_insert(error);
                Ok(None)
            }
        }
    }

    fn finish(self) -> Result<(), ReplicateError> {
        self.first.map_or(Ok(()), |error| Err(error.into()))
    }
}
