//! Upload sessions: bytes in, a verified blob out. What arrives goes into the blockstore at once, without a root, and is
//! noted in a journal, so that an upload goes on after a restart; a session that ends without its digest leaves blocks
//! that nothing names.
//!
//! Clients leave without a word. So a session that waits for its next request goes after an idle time, and before it
//! where too many are open: the one that has waited longest goes first. What waiting sessions hold in memory is
//! bounded: the same give it up, and read it back from the store if their client does come again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use uuid::Uuid;

use super::writing::{Received, Writing};
use super::{BodyError, MirrorError};
use crate::dag::{Blocks, Keep};
use crate::oci::{Algorithm, RepoName};
use crate::store::{UploadJournal, UploadJournals, off_thread};

/// Bytes after which a session is noted down, also while a request goes on.
const CHECKPOINT_BYTES: u64 = 64 << 20;
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
    journals: UploadJournals,
    uploads_max: usize,
    idle_timeout: Duration,
}

struct Session {
    repo: RepoName,
    slot: Mutex<Slot>,
}

struct Slot {
    /// Absent while a request writes.
    content: Option<Content>,
    received_bytes: u64,
    touched_at: Instant,
}

/// What a session has received.
enum Content {
    Open(Box<Writing>),
    /// In a run before this one. Its blocks are kept.
    Noted {
        journal: Box<UploadJournal>,
        _keep: Keep,
    },
}

/// Whether a request is the last that brings bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    More,
    Finish,
}

impl Uploads {
    /// Takes up the sessions of the run before.
    pub(super) async fn open(
        blocks: Blocks,
        journals: UploadJournals,
        uploads_max: usize,
        idle_timeout: Duration,
    ) -> Result<Self, MirrorError> {
        let reader = journals.clone();
        let found = off_thread(move || reader.list()).await?;
        let sessions =
            found.into_iter().map(|journal| (journal.id, Arc::new(Session::noted(journal, &blocks))));
        let sessions = Arc::new(Mutex::new(sessions.collect()));
        Ok(Self { sessions, blocks, journals, uploads_max, idle_timeout })
    }

    pub(super) async fn start(&self, repo: &RepoName, algorithm: Algorithm) -> Result<String, MirrorError> {
        let id = Uuid::new_v4();
        let content = Content::Open(Box::new(Writing::new(&self.blocks, algorithm)));
        let slot = Slot { content: Some(content), received_bytes: 0, touched_at: Instant::now() };
        let session = Arc::new(Session { repo: repo.clone(), slot: Mutex::new(slot) });
        let evicted = {
            let mut sessions = lock(&self.sessions);
            let full = sessions.len() >= self.uploads_max;
            let longest = Waiting::all(&sessions).into_iter().min().map(|longest| longest.id);
            let evicted = match full {
                true => Some(longest.ok_or(MirrorError::TooManyUploads(self.uploads_max))?),
                false => None,
            };
            evicted.inspect(|evicted| _ = sessions.remove(evicted));
            sessions.insert(id, session);
            evicted
        };
        if let Some(evicted) = evicted {
            tracing::info!(upload = %evicted, "waiting upload dropped to make room");
            self.forget_journal(evicted).await?;
        }
        let (journals, repo) = (self.journals.clone(), repo.clone());
        off_thread(move || journals.create(&id, &repo, algorithm)).await.inspect_err(|_| self.forget(&id))?;
        Ok(id.to_string())
    }

    pub(super) fn received_bytes(&self, repo: &RepoName, id: &str) -> Result<u64, MirrorError> {
        Ok(lock(&self.find(repo, id)?.1.slot).received_bytes)
    }

    /// See [`super::Mirror::append`].
    pub(super) async fn append<S>(
        &self,
        repo: &RepoName,
        id: &str,
        at: Option<u64>,
        mut body: S,
        then: Then,
    ) -> Result<u64, MirrorError>
    where
        S: Stream<Item = Result<Bytes, BodyError>> + Send + Unpin,
    {
        let (uuid, session) = self.find(repo, id)?;
        let mut lease = Lease::take(self, session, id)?;
        let writing = self.writing(&mut lease, uuid).await?;
        if let Some(at) = at.filter(|at| *at != writing.received_bytes) {
            let (repo, received) = (repo.clone(), writing.received_bytes);
            return Err(MirrorError::UploadRange { repo, id: id.to_owned(), at, received });
        }
        let outcome = loop {
            match body.next().await {
                Some(Ok(bytes)) => writing.write(bytes).await?,
                Some(Err(error)) => break Err(MirrorError::Body(error)),
                None => break Ok(()),
            }
            if writing.received_bytes - writing.noted_bytes >= CHECKPOINT_BYTES {
                writing.note(&self.journals, uuid).await?;
            }
        };
        if then == Then::More || outcome.is_err() {
            writing.note(&self.journals, uuid).await?;
        }
        outcome.map(|()| writing.received_bytes)
    }

    /// Ends a session and gives what it received. The blocks are written, not yet flushed.
    pub(super) async fn finish(&self, repo: &RepoName, id: &str) -> Result<Received, MirrorError> {
        let (uuid, session) = self.find(repo, id)?;
        let mut lease = Lease::take(self, session, id)?;
        self.writing(&mut lease, uuid).await?;
        let Some(Content::Open(writing)) = lease.content.take() else { return Err(MirrorError::Closed) };
        self.forget(&uuid);
        writing.finish().await
    }

    /// Takes over what was written under `id` before, as far as it can be read back, or begins anew. The caller has it to
    /// itself until it gives it back by [`Uploads::park`] or ends it with [`Uploads::forget_journal`].
    pub(super) async fn take_up(
        &self,
        id: Uuid,
        repo: &RepoName,
        algorithm: Algorithm,
    ) -> Result<Writing, MirrorError> {
        let session = lock(&self.sessions).remove(&id);
        let content = session.and_then(|session| lock(&session.slot).content.take());
        match content {
            Some(Content::Open(writing)) => return Ok(*writing),
            Some(Content::Noted { journal, _keep }) => match Writing::restore(&self.blocks, &journal).await {
                Ok(writing) => return Ok(writing),
                Err(error) => {
                    tracing::debug!(upload = %id, error = %super::chain(&error), "what was written is lost");
                    self.forget_journal(id).await?;
                }
            },
            None => (),
        }
        let (journals, repo) = (self.journals.clone(), repo.clone());
        off_thread(move || journals.create(&id, &repo, algorithm)).await?;
        Ok(Writing::new(&self.blocks, algorithm))
    }

    /// Notes down what [`Uploads::take_up`] gave, for as long as uploads may be idle.
    pub(super) async fn park(
        &self,
        id: Uuid,
        repo: &RepoName,
        mut writing: Writing,
    ) -> Result<(), MirrorError> {
        writing.note(&self.journals, id).await?;
        let (received_bytes, content) = (writing.received_bytes, Some(Content::Open(Box::new(writing))));
        let slot = Slot { content, received_bytes, touched_at: Instant::now() };
        let session = Arc::new(Session { repo: repo.clone(), slot: Mutex::new(slot) });
        session.park(id);
        lock(&self.sessions).insert(id, session);
        Ok(())
    }

    /// Where the journals are kept.
    pub(super) fn journals(&self) -> &UploadJournals {
        &self.journals
    }

    /// What a session writes to. One of the run before is read back: its bytes are hashed again.
    async fn writing<'a>(&self, lease: &'a mut Lease, id: Uuid) -> Result<&'a mut Writing, MirrorError> {
        if let Some(Content::Noted { journal, .. }) = &lease.content {
            match Writing::restore(&self.blocks, journal).await {
                Ok(writing) => lease.content = Some(Content::Open(Box::new(writing))),
                Err(error) => {
                    tracing::warn!(upload = %id, error = %super::chain(&error), "upload cannot go on after the restart");
                    self.forget(&id);
                    self.forget_journal(id).await?;
                    return Err(MirrorError::UploadUnknown(id.to_string()));
                }
            }
        }
        match &mut lease.content {
            Some(Content::Open(writing)) => Ok(writing),
            Some(Content::Noted { .. }) | None => Err(MirrorError::Closed),
        }
    }

    /// Drops a session, also one that is being written to: its writer finds it gone.
    pub(super) async fn cancel(&self, repo: &RepoName, id: &str) -> Result<(), MirrorError> {
        let (id, _) = self.find(repo, id)?;
        self.forget(&id);
        self.forget_journal(id).await
    }

    /// Drops the sessions that nobody has touched for the idle time-out.
    pub(super) async fn drop_idle(&self) {
        let mut dropped = Vec::new();
        lock(&self.sessions).retain(|id, session| {
            let slot = lock(&session.slot);
            let idle = slot.content.is_some() && slot.touched_at.elapsed() >= self.idle_timeout;
            if idle {
                tracing::info!(upload = %id, repo.name = %session.repo, "idle upload dropped");
                dropped.push(*id);
            }
            !idle
        });
        for id in dropped {
            if let Err(error) = self.forget_journal(id).await {
                tracing::warn!(upload = %id, error = %super::chain(&error), "journal of an upload not removed");
            }
        }
    }

    /// Holds what waiting sessions have in memory to its bound.
    fn shed(&self) {
        let sessions = lock(&self.sessions);
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
            if sessions.get(&longest.id).is_some_and(|session| session.park(longest.id)) {
                held -= longest.held_bytes;
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.sessions).len()
    }

    fn find(&self, repo: &RepoName, id: &str) -> Result<(Uuid, Arc<Session>), MirrorError> {
        let known = id.parse::<Uuid>().ok().and_then(|id| Some((id, lock(&self.sessions).get(&id)?.clone())));
        let known = known.filter(|(_, session)| session.repo == *repo);
        known.ok_or_else(|| MirrorError::UploadUnknown(id.to_owned()))
    }

    fn forget(&self, id: &Uuid) {
        lock(&self.sessions).remove(id);
    }

    /// Forgets what was noted of a session that has ended.
    pub(super) async fn forget_journal(&self, id: Uuid) -> Result<(), MirrorError> {
        let journals = self.journals.clone();
        Ok(off_thread(move || journals.remove(&id)).await?)
    }
}

impl Session {
    /// Gives up what a waiting session has in memory, if all of it is noted in its journal.
    fn park(&self, id: Uuid) -> bool {
        let mut slot = lock(&self.slot);
        let Some(Content::Open(writing)) = &slot.content else { return false };
        if writing.noted_bytes != writing.received_bytes {
            return false;
        }
        let journal = UploadJournal {
            id,
            repo: self.repo.clone(),
            algorithm: writing.algorithm,
            leaves: writing.file.leaves().to_vec(),
            tail: writing.tail,
            received_bytes: writing.received_bytes,
            touched_at: SystemTime::now(),
        };
        let keep = writing.file.keep().clone();
        slot.content = Some(Content::Noted { journal: Box::new(journal), _keep: keep });
        true
    }

    fn noted(journal: UploadJournal, blocks: &Blocks) -> Self {
        let keep = blocks.keep();
        journal.leaves.iter().chain(&journal.tail).for_each(|cid| keep.add(*cid));
        let idle = journal.touched_at.elapsed().unwrap_or_default();
        let slot = Slot {
            received_bytes: journal.received_bytes,
            touched_at: Instant::now().checked_sub(idle).unwrap_or_else(Instant::now),
            content: Some(Content::Noted { journal: Box::new(journal.clone()), _keep: keep }),
        };
        Self { repo: journal.repo, slot: Mutex::new(slot) }
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
            let held_bytes = match slot.content.as_ref()? {
                Content::Open(_) => slot.received_bytes.saturating_mul(2).min(SESSION_BYTES_MAX),
                Content::Noted { .. } => 0,
            };
            Some(Self { touched_at: slot.touched_at, id: *id, held_bytes })
        });
        waiting.collect()
    }
}

/// The right to write to a session: one request at a time has it, and gives it back when it is dropped.
struct Lease {
    uploads: Uploads,
    session: Arc<Session>,
    content: Option<Content>,
}

impl Lease {
    fn take(uploads: &Uploads, session: Arc<Session>, id: &str) -> Result<Self, MirrorError> {
        let content = lock(&session.slot).content.take();
        let content = content.ok_or_else(|| MirrorError::UploadBusy(id.to_owned()))?;
        Ok(Self { uploads: uploads.clone(), session, content: Some(content) })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(content) = self.content.take() {
            let mut slot = lock(&self.session.slot);
            if let Content::Open(writing) = &content {
                slot.received_bytes = writing.received_bytes;
            }
            slot.touched_at = Instant::now();
            slot.content = Some(content);
            drop(slot);
            self.uploads.shed();
        }
    }
}

/// A panic while a lock was held leaves nothing half-done here: the slots are replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
