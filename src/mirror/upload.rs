//! Upload sessions: bytes in, a verified blob out. What arrives goes into the blockstore at once, without a root; a
//! session that ends without its digest leaves blocks that nothing names.
//!
//! Clients leave without a word. So a session that waits for its next request goes after an idle time, and before it
//! where room is needed: the one that has waited longest goes first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use uuid::Uuid;

use super::verify::StreamHasher;
use super::{BodyError, MirrorError};
use crate::dag::Blocks;
use crate::dag::file::{FileRoot, FileWriter};
use crate::oci::{Algorithm, Digest, RepoName};

/// What the sessions that wait for their next request may hold in memory together.
const WAITING_BYTES_MAX: u64 = 64 << 20;
/// The most that one of them is reckoned to hold: a leaf that is not full, a batch that is not hashed, and the unused
/// rest of the buffers that these lie in.
const SESSION_BYTES_MAX: u64 = 2 << 20;

/// The open sessions. Cheap to clone.
#[derive(Clone)]
pub(super) struct Uploads {
    sessions: Arc<Mutex<HashMap<Uuid, Arc<Session>>>>,
    blocks: Blocks,
    uploads_max: usize,
    idle_timeout: Duration,
}

struct Session {
    repo: RepoName,
    slot: Mutex<Slot>,
}

struct Slot {
    /// Absent while a request writes.
    writing: Option<Writing>,
    received_bytes: u64,
    touched_at: Instant,
}

/// Where the bytes of one session go.
struct Writing {
    file: FileWriter,
    hasher: StreamHasher,
    received_bytes: u64,
}

/// A finished upload: in the store, not yet in the tree.
pub(super) struct Received {
    pub(super) file: FileRoot,
    pub(super) sha256: Digest,
}

impl Uploads {
    pub(super) fn new(blocks: Blocks, uploads_max: usize, idle_timeout: Duration) -> Self {
        Self { sessions: Arc::default(), blocks, uploads_max, idle_timeout }
    }

    pub(super) fn start(&self, repo: &RepoName) -> Result<String, MirrorError> {
        let mut sessions = lock(&self.sessions);
        if sessions.len() >= self.uploads_max {
            let waiting = Waiting::all(&sessions).into_iter().min();
            waiting.ok_or(MirrorError::TooManyUploads(self.uploads_max))?.drop_from(&mut sessions);
        }
        let id = Uuid::new_v4();
        let writing = Writing {
            file: FileWriter::new(&self.blocks),
            hasher: StreamHasher::new(Algorithm::Sha256),
            received_bytes: 0,
        };
        let slot = Slot { writing: Some(writing), received_bytes: 0, touched_at: Instant::now() };
        sessions.insert(id, Arc::new(Session { repo: repo.clone(), slot: Mutex::new(slot) }));
        Ok(id.to_string())
    }

    pub(super) fn received_bytes(&self, repo: &RepoName, id: &str) -> Result<u64, MirrorError> {
        Ok(lock(&self.find(repo, id)?.slot).received_bytes)
    }

    /// See [`super::Mirror::append`].
    pub(super) async fn append<S>(
        &self,
        repo: &RepoName,
        id: &str,
        at: Option<u64>,
        mut body: S,
    ) -> Result<u64, MirrorError>
    where
        S: Stream<Item = Result<Bytes, BodyError>> + Send + Unpin,
    {
        let mut lease = Lease::take(self, repo, id)?;
        let received = lease.writing()?.received_bytes;
        if let Some(at) = at.filter(|at| *at != received) {
            return Err(MirrorError::UploadRange { repo: repo.clone(), id: id.to_owned(), at, received });
        }
        while let Some(bytes) = body.next().await {
            lease.writing()?.write(bytes.map_err(MirrorError::Body)?).await?;
        }
        Ok(lease.writing()?.received_bytes)
    }

    /// Ends a session and gives what it received. The blocks are written, not yet flushed.
    pub(super) async fn finish(&self, repo: &RepoName, id: &str) -> Result<Received, MirrorError> {
        let mut lease = Lease::take(self, repo, id)?;
        let writing = lease.writing.take().ok_or_else(|| MirrorError::UploadUnknown(id.to_owned()))?;
        self.forget(id);
        let (file, sha256) = tokio::try_join!(
            async { writing.file.finish().await.map_err(MirrorError::from) },
            writing.hasher.finish()
        )?;
        Ok(Received { file, sha256 })
    }

    /// Drops a session, also one that is being written to: its writer finds it gone.
    pub(super) fn cancel(&self, repo: &RepoName, id: &str) -> Result<(), MirrorError> {
        self.find(repo, id)?;
        self.forget(id);
        Ok(())
    }

    /// Drops the sessions that nobody has touched for the idle time-out.
    pub(super) fn drop_idle(&self) {
        let idle_timeout = self.idle_timeout;
        lock(&self.sessions).retain(|id, session| {
            let slot = lock(&session.slot);
            let idle = slot.writing.is_some() && slot.touched_at.elapsed() >= idle_timeout;
            if idle {
                tracing::info!(upload = %id, repo.name = %session.repo, "idle upload dropped");
            }
            !idle
        });
    }

    /// Holds what waiting sessions have in memory to its bound.
    fn shed(&self) {
        let mut sessions = lock(&self.sessions);
        let mut waiting = Waiting::all(&sessions);
        let mut held: u64 = waiting.iter().map(|one| one.held_bytes).sum();
        if held <= WAITING_BYTES_MAX {
            return;
        }
        waiting.sort_unstable();
        for longest in waiting {
            if held <= WAITING_BYTES_MAX {
                return;
            }
            longest.drop_from(&mut sessions);
            held -= longest.held_bytes;
        }
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.sessions).len()
    }

    fn find(&self, repo: &RepoName, id: &str) -> Result<Arc<Session>, MirrorError> {
        let known = id.parse::<Uuid>().ok().and_then(|uuid| lock(&self.sessions).get(&uuid).cloned());
        known.filter(|session| session.repo == *repo).ok_or_else(|| MirrorError::UploadUnknown(id.to_owned()))
    }

    fn forget(&self, id: &str) {
        if let Ok(uuid) = id.parse::<Uuid>() {
            lock(&self.sessions).remove(&uuid);
        }
    }
}

/// A session that waits for its next request. The least has waited longest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    touched_at: Instant,
    id: Uuid,
    held_bytes: u64,
}

impl Waiting {
    fn all(sessions: &HashMap<Uuid, Arc<Session>>) -> Vec<Self> {
        let waiting = sessions.iter().filter_map(|(id, session)| {
            let slot = lock(&session.slot);
            let held_bytes = slot.received_bytes.saturating_mul(2).min(SESSION_BYTES_MAX);
            slot.writing.is_some().then_some(Self { touched_at: slot.touched_at, id: *id, held_bytes })
        });
        waiting.collect()
    }

    fn drop_from(&self, sessions: &mut HashMap<Uuid, Arc<Session>>) {
        sessions.remove(&self.id);
        let waited_s = self.touched_at.elapsed().as_secs();
        tracing::info!(upload = %self.id, waited_s, "waiting upload dropped to make room");
    }
}

impl Writing {
    /// The bytes count as received from here on, also if the future is dropped while they wait for the store.
    async fn write(&mut self, bytes: Bytes) -> Result<(), MirrorError> {
        self.received_bytes += bytes.len() as u64;
        self.hasher.feed(bytes.clone());
        self.file.feed(bytes);
        self.hasher.settle().await?;
        Ok(self.file.settle().await?)
    }
}

/// The right to write to a session: one request at a time has it, and gives it back when it is dropped.
struct Lease {
    uploads: Uploads,
    session: Arc<Session>,
    writing: Option<Writing>,
}

impl Lease {
    fn take(uploads: &Uploads, repo: &RepoName, id: &str) -> Result<Self, MirrorError> {
        let session = uploads.find(repo, id)?;
        let writing = lock(&session.slot).writing.take();
        let writing = writing.ok_or_else(|| MirrorError::UploadBusy(id.to_owned()))?;
        Ok(Self { uploads: uploads.clone(), session, writing: Some(writing) })
    }

    fn writing(&mut self) -> Result<&mut Writing, MirrorError> {
        self.writing.as_mut().ok_or(MirrorError::Closed)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(writing) = self.writing.take() {
            let mut slot = lock(&self.session.slot);
            slot.received_bytes = writing.received_bytes;
            slot.touched_at = Instant::now();
            slot.writing = Some(writing);
            drop(slot);
            self.uploads.shed();
        }
    }
}

/// A panic while a lock was held leaves nothing half-done here: the slots are replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
