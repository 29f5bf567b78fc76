//! Space comes back: links that no manifest needs leave the own tree, then blocks that no root, upload or reader needs
//! leave the store. Pushes and pulls go on meanwhile.
//!
//! A round has three steps. *Collect*: manifests of the own tree say what is needed; links to other blobs go by a commit,
//! unless a client relies on them ([`super::leases`]). *Mark*: between two commits the sweep begins, after which all
//! that is put or read is kept; what lies below the roots is marked. *Sweep*: all other blocks go.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cid::Cid;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::commit::Changes;
use super::roots::Follow;
use super::{Inner, MirrorError, Own, chain, layout, listing};
use crate::dag::{DagError, Marks};
use crate::ipld::Multihash;
use crate::oci::manifest::{MANIFEST_BYTES_MAX, ParsedManifest};
use crate::oci::{Algorithm, Digest, RepoName};
use crate::store::{Blockstore, DigestIndex, HashedSet, StoreError, Sweep, off_thread};

/// How often it is looked at whether a round is due.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// A round is due when the store has grown by this much, and by an eighth.
const GROWTH_BYTES_MIN: u64 = 128 << 20;
/// Names read at a time.
const PAGE: usize = 10_000;
/// Links that go in one commit.
const REMOVALS_PER_COMMIT: usize = 1000;
/// Rounds that may be asked for while one runs.
const REQUESTS_QUEUED_MAX: usize = 16;

/// What a round has freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs that left a repository, or the tree.
    pub links: u64,
    pub blocks: u64,
    /// Of the bodies of those blocks.
    pub bytes: u64,
}

type Request = oneshot::Sender<Result<Collected, String>>;

/// The door to the collector. Cheap to clone.
#[derive(Clone)]
pub(super) struct Collector {
    requests: mpsc::Sender<Request>,
    deleted: Arc<Notify>,
}

impl Collector {
    pub(super) fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (requests, inbox) = mpsc::channel(REQUESTS_QUEUED_MAX);
        (Self { requests, deleted: Arc::default() }, inbox)
    }

    /// Something was deleted: a round may be due at once.
    pub(super) fn note_deletion(&self) {
        self.deleted.notify_one();
    }

    /// Runs a round, or waits for its turn. The round goes on if the future is dropped.
    pub(super) async fn collect(&self) -> Result<Collected, String> {
        let closed = || chain(&MirrorError::Closed);
        let (reply, answer) = oneshot::channel();
        self.requests.send(reply).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

/// Runs rounds when they are due or asked for.
pub(super) async fn run(
    mirror: Arc<Inner>,
    index: DigestIndex,
    mut requests: mpsc::Receiver<Request>,
    stop: CancellationToken,
) {
    let mut check = tokio::time::interval(CHECK_INTERVAL);
    check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let deleted = mirror.collector.deleted.clone();
    let live = |mirror: &Inner| mirror.tree.blocks().store().stats().live_bytes;
    let mut live_after = live(&mirror);
    loop {
        let asked = tokio::select! {
            () = stop.cancelled() => return,
            _ = check.tick() => None,
            () = deleted.notified() => None,
            request = requests.recv() => match request {
                Some(request) => Some(request),
                None => return,
            },
        };
        let grown = live(&mirror).saturating_sub(live_after) >= GROWTH_BYTES_MIN.max(live_after / 4);
        if asked.is_none() && !grown {
            continue;
        }
        let begun = Instant::now();
        let outcome = round(&mirror, &index, &stop).await.map_err(|error| chain(&error));
        live_after = live(&mirror);
        match &outcome {
            Ok(Collected { links, blocks, bytes }) => {
                let duration_ms = begun.elapsed().as_millis();
                tracing::info!(links, blocks, size_bytes = bytes, duration_ms, "space was freed");
            }
            Err(error) => tracing::warn!(%error, "space was not freed"),
        }
        if let Some(reply) = asked {
            // Who asked may have gone.
            let _ = reply.send(outcome);
        }
    }
}

async fn round(
    mirror: &Arc<Inner>,
    index: &DigestIndex,
    stop: &CancellationToken,
) -> Result<Collected, MirrorError> {
    let mut collected = Collected::default();
    if let Some(own) = &mirror.own {
        // A manifest that cannot be read may need anything: no link goes then, but blocks without a root do.
        match mirror.collect_links(own).await {
            Ok(links) => collected.links = links,
            Err(error) => tracing::warn!(error = %chain(&error), "links that nothing needs are left"),
        }
    }
    let Some(sweep) = mirror.begin_sweep().await? else { return Ok(collected) };
    let (roots, replaced) = mirror.roots_in_use();
    let (blocks, index, stop) = (mirror.tree.blocks().clone(), index.clone(), stop.clone());
    let swept = off_thread(move || {
        let mut marks = Marks::default();
        let marked = marks
            .mark(&sweep, roots, &stop)
            .and_then(|()| marks.mark_without(&sweep, replaced, layout::is_content, &stop));
        if marked.is_err() {
            return Ok(None);
        }
        let mut freed = (0, 0);
        remove_unmarked(blocks.store(), &marks, &stop, |key, body_bytes| {
            if sweep.remove(key)? {
                blocks.forget(key);
                freed = (freed.0 + 1, freed.1 + u64::from(body_bytes));
            }
            Ok(())
        })?;
        index.retain(|entry| marks.contains(entry.cid.hash()))?;
        sweep.finish()?;
        Ok(Some(freed))
    });
    if let Some((blocks, bytes)) = swept.await? {
        mirror.tree.forget_all();
        (collected.blocks, collected.bytes) = (blocks, bytes);
    }
    Ok(collected)
}

/// Gives the blocks without a mark, and their sizes in bytes, to `remove`.
fn remove_unmarked(
    store: &Blockstore,
    marks: &Marks,
    stop: &CancellationToken,
    mut remove: impl FnMut(&Multihash, u32) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut outcome = Ok(());
    store.for_each_key(|key, body_bytes| {
        if stop.is_cancelled() {
            return ControlFlow::Break(());
        }
        if !marks.contains(key) {
            outcome = remove(key, body_bytes);
        }
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome
}

impl Inner {
    /// Begins the sweep where no commit is under way: what a commit before has put is below the root by then, and what
    /// one behind it puts is kept.
    async fn begin_sweep(&self) -> Result<Option<Sweep>, MirrorError> {
        let store = self.tree.blocks().store().clone();
        match &self.own {
            Some(own) => own.commits.between(move || store.begin_sweep()).await,
            None => Ok(store.begin_sweep()),
        }
    }

    /// What lies below these is needed. A root of ours that others still read while its successor is on its way to them
    /// is not: they go on with what they have, and take the next.
    /// Of those that were replaced a moment ago, and are given apart, directories and links are: a look-up may be on its
    /// way through them.
    fn roots_in_use(&self) -> (Vec<Cid>, Vec<Cid>) {
        let replaced = self.own.iter().flat_map(|own| own.commits.replaced_roots()).collect();
        let own = self.own.iter().map(|own| own.commits.root());
        let followed = self.follows.iter().flat_map(Follow::roots_at_hand);
        let layouts = self.elsewhere.iter().flat_map(|elsewhere| elsewhere.kept.roots());
        (own.chain(followed).chain(layouts).chain(self.tree.blocks().kept()).collect(), replaced)
    }

    /// Takes the links away that no manifest of the own tree needs; returns how many.
    async fn collect_links(&self, own: &Own) -> Result<u64, MirrorError> {
        let (root, now) = (own.commits.root(), Instant::now());
        let mut named = HashedSet::default();
        let mut removals = Vec::new();
        let mut last = None::<String>;
        loop {
            let page = listing::repositories(&self.tree, &root, last.as_deref(), PAGE).await?;
            for repo in page.names.iter().filter_map(|name| name.parse::<RepoName>().ok()) {
                let named_here = self.named_in(&root, &repo, &mut named).await?;
                for digest in self.digests_in(&root, &layout::layers(&repo)).await? {
                    if !named_here.contains(&digest) && self.leases.may_collect(&digest, now) {
                        removals.push((digest, layout::directory_of(&layout::layer_link(&repo, &digest))));
                    }
                }
            }
            last = page.names.last().cloned();
            if !page.more {
                break;
            }
        }
        for digest in self.data_of(&root).await? {
            if !named.contains(&digest) && self.leases.may_collect(&digest, now) {
                removals.push((digest, layout::directory_of(&layout::blob_data(&digest))));
            }
        }
        let count = removals.len() as u64;
        for removals in removals.chunks(REMOVALS_PER_COMMIT) {
            let mut changes = Changes::default();
            removals.iter().for_each(|(digest, path)| changes.remove_unless_leased(*digest, path.clone()));
            own.commits.apply(changes).await?;
        }
        Ok(count)
    }

    /// What the manifests of a repository name, themselves included; adds it to what is named anywhere.
    async fn named_in(
        &self,
        root: &Cid,
        repo: &RepoName,
        anywhere: &mut HashedSet,
    ) -> Result<HashedSet, MirrorError> {
        let mut here = HashedSet::default();
        for digest in self.digests_in(root, &layout::revisions(repo)).await? {
            let mut names = vec![digest];
            if let Some(data) = self.tree.lookup(root, &layout::blob_data(&digest)).await? {
                let bytes = self.small_file(&data.cid, root, MANIFEST_BYTES_MAX as u64).await?;
                let parsed = ParsedManifest::parse(None, &bytes)
                    .map_err(|source| MirrorError::NoManifest { digest, source })?;
                names.extend(parsed.blobs.iter().chain(&parsed.manifests).map(|named| named.digest));
            }
            for name in &names {
                here.insert(name);
                anywhere.insert(name);
            }
        }
        Ok(here)
    }

    /// The digests that a directory has, by algorithm.
    pub(super) async fn digests_in(&self, root: &Cid, directory: &str) -> Result<Vec<Digest>, DagError> {
        let mut digests = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let path = format!("{directory}/{}", algorithm.as_str());
            self.digests_at(root, &path, algorithm, &mut digests).await?;
        }
        Ok(digests)
    }

    /// All blobs of the tree: they lie by algorithm and the first two digits.
    pub(super) async fn data_of(&self, root: &Cid) -> Result<Vec<Digest>, DagError> {
        let mut digests = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let path = format!("{}/{}", layout::BLOBS, algorithm.as_str());
            let prefixes = self.tree.list(root, &path, None, PAGE).await?.unwrap_or_default();
            for prefix in prefixes.names {
                self.digests_at(root, &format!("{path}/{prefix}"), algorithm, &mut digests).await?;
            }
        }
        Ok(digests)
    }

    async fn digests_at(
        &self,
        root: &Cid,
        path: &str,
        algorithm: Algorithm,
        digests: &mut Vec<Digest>,
    ) -> Result<(), DagError> {
        let mut last = None::<String>;
        loop {
            let Some(page) = self.tree.list(root, path, last.as_deref(), PAGE).await? else { return Ok(()) };
            let parse = |hex: &String| format!("{}:{hex}", algorithm.as_str()).parse::<Digest>().ok();
            digests.extend(page.names.iter().filter_map(parse));
            last = page.names.into_iter().next_back();
            if !page.more {
                return Ok(());
            }
        }
    }
}
