//! The one writer of the own root. Edits come in from pushes, are grouped, and are answered when the new root is on
//! disk: blocks first, then the root that needs them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::leases::Leases;
use super::{MirrorError, chain};
use crate::dag::{DagError, Edit, Entry, Keep, Tree};
use crate::ipfs::Want;
use crate::ipld::block::RAW;
use crate::ipld::{Block, Multihash};
use crate::oci::Digest;
use crate::store::{RootRow, State, off_thread};
use crate::tasks::Tasks;

/// Commits that may wait for the writer; a further one waits at the door.
const COMMITS_QUEUED_MAX: usize = 256;

/// What is to be announced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fresh {
    pub(super) roots: Vec<Cid>,
    /// Of blobs whose root has another hash.
    pub(super) digests: Vec<Multihash>,
}

impl Fresh {
    pub(super) fn add(&mut self, digest: &Digest, root: Cid) {
        self.roots.push(root);
        let digest = digest.multihash();
        if digest != *root.hash() {
            self.digests.push(digest);
        }
    }

    /// Takes in another, as far as there is room.
    fn extend(&mut self, other: Self) {
        let room = |len: usize| ANNOUNCED_MAX.saturating_sub(len);
        self.roots.extend(other.roots.into_iter().take(room(self.roots.len())));
        self.digests.extend(other.digests.into_iter().take(room(self.digests.len())));
    }
}

/// What one commit changes.
#[derive(Clone, Default)]
pub(super) struct Changes {
    edits: Vec<Edit>,
    blocks: Vec<Block>,
    /// Blobs and manifests that are new, to be announced.
    fresh: Fresh,
    /// What the edits name is kept until they are made.
    keeps: Vec<Keep>,
    /// Paths to be taken away unless a client relies on the blob by then.
    unless_leased: Vec<(Digest, String)>,
}

impl Changes {
    /// Puts a DAG that is in the store already at `path`.
    pub(super) fn set(&mut self, path: String, entry: Entry) {
        self.edits.push(Edit { path, to: Some(entry) });
    }

    /// Takes away what is at `path`, with everything below it.
    pub(super) fn remove(&mut self, path: String) {
        self.edits.push(Edit { path, to: None });
    }

    /// Puts a file of at most one block at `path`, and returns its entry.
    pub(super) fn write(&mut self, path: String, content: Bytes) -> Entry {
        let entry = small_file(&content, &mut self.blocks);
        self.set(path, entry);
        entry
    }

    /// Takes away what is at `path`, unless `digest` is leased when the commit is made.
    pub(super) fn remove_unless_leased(&mut self, digest: Digest, path: String) {
        self.unless_leased.push((digest, path));
    }

    /// Keeps what the edits name until they are made.
    pub(super) fn hold(&mut self, keep: Keep) {
        self.keeps.push(keep);
    }

    /// Asks for the DAG below `root` to be announced once it is committed.
    pub(super) fn announce(&mut self, root: Cid) {
        self.fresh.roots.push(root);
    }

    /// The same for a blob, which is announced by its digest too.
    pub(super) fn announce_blob(&mut self, digest: &Digest, root: Cid) {
        self.fresh.add(digest, root);
    }

    fn extend(&mut self, other: Self) {
        self.edits.extend(other.edits);
        self.blocks.extend(other.blocks);
        self.fresh.extend(other.fresh);
        self.keeps.extend(other.keeps);
        self.unless_leased.extend(other.unless_leased);
    }
}

fn small_file(content: &Bytes, blocks: &mut Vec<Block>) -> Entry {
    let block = Block::encode(RAW, content.clone());
    let entry = Entry { cid: *block.cid(), tsize: content.len() as u64 };
    blocks.push(block);
    entry
}

/// What has been committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Committed {
    pub(super) root: Cid,
    /// What to announce, new since the last root that the publisher took.
    pub(super) fresh: Fresh,
}

/// Roots, and digests, that wait to be announced; past it they are found by the walk at the next start only.
const ANNOUNCED_MAX: usize = 65_536;

/// The root that a commit was made upon; `None`: other commits were made with it, in one.
type Upon = Option<Cid>;
type Reply = oneshot::Sender<Result<Upon, MirrorError>>;

/// How long a root that was replaced may still be read by who looked something up when it was in force.
const READ_FOR: Duration = Duration::from_secs(20);
/// Replaced roots that are remembered for it.
const REPLACED_MAX: usize = 8192;

/// Roots that were in force a short while ago, and when each was replaced.
#[derive(Default)]
struct Replaced(Mutex<VecDeque<(Instant, Cid)>>);

impl Replaced {
    fn add(&self, root: Cid) {
        let mut roots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if roots.len() >= REPLACED_MAX {
            roots.pop_front();
        }
        roots.push_back((Instant::now(), root));
    }

    fn roots(&self) -> Vec<Cid> {
        let mut roots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while roots.front().is_some_and(|(at, _)| at.elapsed() > READ_FOR) {
            roots.pop_front();
        }
        roots.iter().map(|(_, root)| *root).collect()
    }
}

enum Request {
    Apply {
        changes: Changes,
        reply: Reply,
    },
    Adopt {
        expected: Cid,
        root: Cid,
        reply: Reply,
    },
    /// Takes in what another tree has and the own one lacks.
    Merge {
        other: Cid,
        reply: Reply,
    },
    /// Keeps the root under another row from now on.
    Move {
        row: RootRow,
        reply: oneshot::Sender<Result<Cid, MirrorError>>,
    },
    /// Does something while no commit is being made.
    Between(Box<dyn FnOnce() + Send>),
}

/// The door to the writer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Commits {
    tree: Tree,
    requests: mpsc::Sender<Request>,
    committed: watch::Sender<Committed>,
    replaced: Arc<Replaced>,
}

impl Commits {
    /// Starts the writer upon `root`, which is on disk.
    pub(super) fn start(
        tasks: &Tasks,
        tree: Tree,
        state: State,
        leases: Arc<Leases>,
        row: impl Into<RootRow>,
        root: Cid,
    ) -> Self {
        let (requests, inbox) = mpsc::channel(COMMITS_QUEUED_MAX);
        let committed = watch::Sender::new(Committed { root, fresh: Fresh::default() });
        let replaced = Arc::<Replaced>::default();
        let writer = Writer {
            tree: tree.clone(),
            state,
            leases,
            row: row.into(),
            committed: committed.clone(),
            replaced: replaced.clone(),
        };
        tasks.spawn("commit", |stop| writer.run(inbox, stop));
        Self { tree, requests, committed, replaced }
    }

    /// Applies `changes` and returns when they are on disk. Dropping the future does not undo them.
    pub(super) async fn apply(&self, changes: Changes) -> Result<Upon, MirrorError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Apply { changes, reply }).await.map_err(|_| MirrorError::Closed)?;
        answer.await.map_err(|_| MirrorError::Closed)?
    }

    /// Takes over a tree that was published under the same key, if the own root still is `expected`.
    pub(super) async fn adopt(&self, expected: Cid, root: Cid) -> Result<(), MirrorError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Adopt { expected, root, reply };
        self.requests.send(request).await.map_err(|_| MirrorError::Closed)?;
        answer.await.map_err(|_| MirrorError::Closed)?.map(drop)
    }

    /// Takes in all that the tree `other` has and the own one lacks; where both have something else, the own stays. On disk
    /// when this returns. Directories that are not here are fetched meanwhile, so have them first. Dropping the future does
    /// not undo it.
    pub(super) async fn merge(&self, other: Cid) -> Result<(), MirrorError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Merge { other, reply }).await.map_err(|_| MirrorError::Closed)?;
        answer.await.map_err(|_| MirrorError::Closed)?.map(drop)
    }

    /// Keeps the root under `row` from now on, and returns it, on disk there. What was kept before stays as it is.
    pub(super) async fn move_to(&self, row: impl Into<RootRow>) -> Result<Cid, MirrorError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Move { row: row.into(), reply };
        self.requests.send(request).await.map_err(|_| MirrorError::Closed)?;
        answer.await.map_err(|_| MirrorError::Closed)?
    }

    /// Runs `action`, which must be quick, while no commit is being made.
    pub(super) async fn between<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, MirrorError> {
        let (reply, answer) = oneshot::channel();
        let action = move || drop(reply.send(action()));
        self.requests.send(Request::Between(Box::new(action))).await.map_err(|_| MirrorError::Closed)?;
        answer.await.map_err(|_| MirrorError::Closed)
    }

    /// What the own root is a tree of.
    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(super) fn root(&self) -> Cid {
        self.committed.borrow().root
    }

    /// The roots that were replaced a short while ago: who looked something up may still read below them.
    pub(super) fn replaced_roots(&self) -> Vec<Cid> {
        self.replaced.roots()
    }

    /// Tells of every new root.
    pub(super) fn watch(&self) -> watch::Receiver<Committed> {
        self.committed.subscribe()
    }

    /// Takes what is to be announced.
    pub(super) fn take_fresh(&self) -> Fresh {
        let mut fresh = Fresh::default();
        self.committed.send_if_modified(|committed| {
            fresh = std::mem::take(&mut committed.fresh);
            false
        });
        fresh
    }
}

struct Writer {
    tree: Tree,
    state: State,
    leases: Arc<Leases>,
    row: RootRow,
    committed: watch::Sender<Committed>,
    replaced: Arc<Replaced>,
}

impl Writer {
    /// Ends when told to stop, after the commits that were queued by then.
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>, stop: CancellationToken) {
        loop {
            let first = tokio::select! {
                request = inbox.recv() => request,
                () = stop.cancelled() => {
                    inbox.close();
                    inbox.recv().await
                }
            };
            let Some(first) = first else { return };
            let mut group = vec![first];
            while let (Ok(next), true) = (inbox.try_recv(), group.len() < COMMITS_QUEUED_MAX) {
                group.push(next);
            }
            self.commit(group).await;
        }
    }

    /// Edits that stand next to each other become one commit.
    async fn commit(&mut self, group: Vec<Request>) {
        let mut waiting = Vec::with_capacity(group.len());
        for request in group {
            match request {
                Request::Apply { changes, reply } => waiting.push((changes, reply)),
                Request::Adopt { expected, root, reply } => {
                    self.apply_all(std::mem::take(&mut waiting)).await;
                    answer(vec![reply], self.adopt(expected, root).await.map(|()| None));
                }
                Request::Merge { other, reply } => {
                    self.apply_all(std::mem::take(&mut waiting)).await;
                    answer(vec![reply], self.merge(&other).await.map(|()| None));
                }
                Request::Move { row, reply } => {
                    self.apply_all(std::mem::take(&mut waiting)).await;
                    let _ = reply.send(self.move_to(row).await.map_err(|error| failed(Arc::new(error))));
                }
                Request::Between(action) => {
                    self.apply_all(std::mem::take(&mut waiting)).await;
                    action();
                }
            }
        }
        self.apply_all(waiting).await;
    }

    /// Applies changes as one. If they do not fit the tree, each is tried alone: what one client asks for must not cost
    /// the others theirs.
    async fn apply_all(&self, waiting: Vec<(Changes, Reply)>) {
        if let [_, _, ..] = waiting.as_slice() {
            let mut all = Changes::default();
            waiting.iter().for_each(|(changes, _)| all.extend(changes.clone()));
            let outcome = self.apply(all).await;
            if !matches!(outcome, Err(DagError::Invalid { .. } | DagError::Format(_))) {
                let replies = waiting.into_iter().map(|(_, reply)| reply).collect();
                return answer(replies, outcome.map(|()| None));
            }
        }
        for (changes, reply) in waiting {
            let upon = self.committed.borrow().root;
            answer(vec![reply], self.apply(changes).await.map(|()| Some(upon)));
        }
    }

    async fn adopt(&self, expected: Cid, root: Cid) -> Result<(), DagError> {
        if self.committed.borrow().root != expected {
            return Err(DagError::Cancelled("the tree has changed meanwhile"));
        }
        self.tree.blocks().fetch(Want { cid: root, root }).await?;
        self.tree.blocks().flush().await?;
        self.set(root).await?;
        self.replaced.add(expected);
        self.committed.send_modify(|committed| committed.root = root);
        Ok(())
    }

    async fn apply(&self, changes: Changes) -> Result<(), DagError> {
        let before = self.committed.borrow().root;
        let blocks = self.tree.blocks();
        blocks.put(changes.blocks).await?;
        let mut edits = changes.edits;
        let now = Instant::now();
        let free =
            changes.unless_leased.into_iter().filter(|(digest, _)| self.leases.may_collect(digest, now));
        edits.extend(free.map(|(_, path)| Edit { path, to: None }));
        let root = self.tree.edit(&before, &edits).await?.cid;
        blocks.flush().await?;
        if root != before {
            self.set(root).await?;
            self.replaced.add(before);
        }
        self.committed.send_if_modified(|committed| {
            committed.fresh.extend(changes.fresh);
            std::mem::replace(&mut committed.root, root) != root
        });
        drop(changes.keeps);
        Ok(())
    }

    async fn merge(&self, other: &Cid) -> Result<(), DagError> {
        let before = self.committed.borrow().root;
        let additions = self.tree.additions(&before, other).await?;
        let root = self.tree.edit(&before, &additions.edits).await?.cid;
        self.tree.blocks().flush().await?;
        if root != before {
            self.set(root).await?;
            self.replaced.add(before);
            self.committed.send_modify(|committed| committed.root = root);
        }
        Ok(())
    }

    async fn move_to(&mut self, row: RootRow) -> Result<Cid, DagError> {
        let root = self.committed.borrow().root;
        let old = std::mem::replace(&mut self.row, row);
        match self.set(root).await {
            Ok(()) => Ok(root),
            Err(error) => {
                self.row = old;
                Err(error)
            }
        }
    }

    async fn set(&self, root: Cid) -> Result<(), DagError> {
        let (state, row) = (self.state.clone(), self.row);
        Ok(off_thread(move || state.set_root(row, &root)).await?)
    }
}

fn answer(replies: Vec<Reply>, outcome: Result<Upon, DagError>) {
    let outcome = outcome.map_err(Arc::new);
    if let Err(error) = &outcome {
        failed(error.clone());
    }
    for reply in replies {
        // Who asked may have gone; the commit stands.
        let _ = reply.send(outcome.clone().map_err(MirrorError::Commit));
    }
}

fn failed(error: Arc<DagError>) -> MirrorError {
    tracing::error!(error = %chain(&error), "commit failed; the tree is as it was");
    MirrorError::Commit(error)
}
