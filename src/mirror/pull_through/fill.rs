//! A fill: one download of a blob, any number of readers. It belongs to the daemon: it outlives the client that asked
//! first, is gone on with where it broke off, also after a restart, and is committed only if its digest matches.
//!
//! Readers follow the write position. What was written as a whole leaf is read back from the store, what is behind the
//! leaves from memory; the last byte is given to nobody before the digest matched.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::mesh::Followers;
use super::super::writing::{Received, Writing};
use super::super::{Inner, MirrorError, Origin, StoredBlob, chain};
use super::fills::FillStatus;
pub(super) use super::state::{Stage, State};
use super::supply::{Opened, Supply};
use super::window::{Piece, Window};
use crate::dag::Keep;
use crate::ipfs::Peer;
use crate::metrics::{Counter, Metrics};
use crate::oci::{Digest, Repository};
use crate::upstream::UpstreamError;

/// After so many bytes a fill is noted down.
const CHECKPOINT_BYTES: u64 = 64 << 20;
/// Tries that bring nothing, one after the other, before a fill is given up …
const BARREN_TRIES_MAX: u32 = 4;
/// … and before one is that has brought nothing yet: who waits for it still has another way.
const FIRST_TRIES_MAX: u32 = 2;
/// The pause before the second try; doubled before each further one.
const PAUSE: Duration = Duration::from_millis(250);
/// What came from upstream is not given to clients before its digest matched, up to this size: who has wrong bytes of a
/// blob cannot begin it anew elsewhere, and it is soon known …
const HELD_BACK_BYTES_MAX: u64 = 2 << 20;
/// … nor what came from peers …
const HELD_BACK_OF_PEERS_BYTES_MAX: u64 = 64 << 20;
/// … and for so long.
const HELD_BACK_FOR: Duration = Duration::from_secs(5);
/// One blob on its way in.
pub(super) struct Fill {
    pub(super) digest: Digest,
    pub(super) repository: Repository,
    cache: Arc<Inner>,
    pub(super) state: watch::Sender<State>,
    window: Mutex<Window>,
    /// It was in the cache already.
    found: OnceLock<StoredBlob>,
    keep: Keep,
    begun_at: Instant,
    /// It was begun for a peer: others of the mesh are not asked.
    pub(super) is_of_upstream_alone: bool,
    /// The registry refused us, in this fill or in one before it for the same client.
    refused: Arc<AtomicBool>,
    /// Clients have bytes of it that were not held to the digest yet.
    released: AtomicBool,
    followers: Arc<Mutex<Followers>>,
    metrics: Metrics,
}

/// What came of a try to receive the rest of a blob.
enum Tried {
    Whole,
    Absent,
    /// Another source does better.
    Left,
}

impl Fill {
    pub(super) fn new(supply: &Supply, cache: Arc<Inner>, metrics: Metrics) -> Self {
        let state = State {
            size_bytes: supply.size_bytes,
            received_bytes: 0,
            from: None,
            path: Arc::default(),
            source_held_bytes: None,
            by_peer: false,
            flows: false,
            generation: 0,
            stage: Stage::Running,
        };
        Self {
            digest: supply.digest,
            repository: supply.repository.clone(),
            keep: cache.tree.blocks().keep(),
            cache,
            state: watch::Sender::new(state),
            window: Mutex::default(),
            found: OnceLock::new(),
            begun_at: Instant::now(),
            is_of_upstream_alone: supply.mesh.is_none() || supply.is_for_peer,
            refused: supply.refused.clone(),
            released: AtomicBool::new(false),
            followers: supply.followers.clone(),
            metrics,
        }
    }

    /// Takes a peer in as a follower, for as long as what is returned lives. `Err`: there are enough, these.
    pub(super) fn admit(self: &Arc<Self>, peer: &Peer) -> Result<Follower, Vec<Peer>> {
        lock(&self.followers).admit(peer)?;
        Ok(Follower { fill: self.clone(), peer: peer.clone() })
    }

    /// Waits, for a client, until what came may be read: when the digest matched, when it is too much to wait for, or
    /// when it takes too long to know, from when on a forgery shows only at the end.
    pub(super) async fn cleared(&self) {
        let held_back = |state: &State| {
            let bytes_max = if state.by_peer { HELD_BACK_OF_PEERS_BYTES_MAX } else { HELD_BACK_BYTES_MAX };
            let small = state.size_bytes.is_some_and(|size_bytes| size_bytes <= bytes_max);
            small && matches!(state.stage, Stage::Running)
        };
        let mut state = self.state.subscribe();
        let left = HELD_BACK_FOR.saturating_sub(self.begun_at.elapsed());
        if !self.released.load(Ordering::Acquire) {
            let _ = timeout(left, state.wait_for(|state| !held_back(state))).await;
        }
        self.released.store(true, Ordering::Release);
    }

    /// Whether the registry refused us: only others can bring the blob.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }

    pub(super) fn status(&self) -> FillStatus {
        let State { size_bytes, received_bytes, from, .. } = self.state();
        let (repository, digest) = (self.repository.clone(), self.digest);
        FillStatus { repository, digest, size_bytes, received_bytes, from }
    }

    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// The size of the blob, as soon as it is known. `None`: nobody has the blob.
    pub(super) async fn size_bytes(&self) -> Result<Option<u64>, Arc<MirrorError>> {
        let mut state = self.state.subscribe();
        let known = |state: &State| {
            state.size_bytes.is_some() && state.from.is_some() || !matches!(state.stage, Stage::Running)
        };
        let Ok(state) = state.wait_for(known).await else { return Err(Arc::new(MirrorError::Closed)) };
        match &state.stage {
            Stage::Running | Stage::Verified | Stage::Committed => {
                Ok(Some(state.size_bytes.unwrap_or(state.received_bytes)))
            }
            Stage::Absent => Ok(None),
            Stage::Failed(error) => Err(error.clone()),
        }
    }

    /// Waits until bytes come, or the fill has ended.
    pub(super) async fn flows(&self) -> State {
        self.when(|state| state.flows || !matches!(state.stage, Stage::Running)).await
    }

    /// Waits until the byte at `position` can be read, or the fill has ended.
    pub(super) async fn reached(&self, position: u64) -> State {
        self.when(|state| state.readable_bytes() > position || !matches!(state.stage, Stage::Running)).await
    }

    /// Waits until the blob is in the cache, or the fill has ended otherwise.
    pub(super) async fn ended(&self) -> State {
        self.when(|state| !matches!(state.stage, Stage::Running | Stage::Verified)).await
    }

    async fn when(&self, known: impl Fn(&State) -> bool) -> State {
        match self.state.subscribe().wait_for(known).await {
            Ok(state) => state.clone(),
            // The sender is ours: it cannot be gone.
            Err(_) => self.state(),
        }
    }

    /// Whether the blob is in the cache: a fill before this one may have ended since whoever began it has looked.
    pub(super) async fn is_here(&self) -> Result<bool, MirrorError> {
        let Some((blob, _)) = self.cache.blob_anywhere(&self.digest).await? else { return Ok(false) };
        self.keep.add(blob.entry.cid);
        let size_bytes = blob.size_bytes;
        // Nothing else sets it.
        let _ = self.found.set(blob);
        self.state.send_modify(|state| {
            (state.size_bytes, state.received_bytes) = (Some(size_bytes), size_bytes);
            state.from = Some(Origin::Cache);
        });
        Ok(true)
    }

    /// The bytes at `position`, at least one and up to `bytes_max`, which must be readable.
    pub(super) async fn read_at(&self, position: u64, bytes_max: u64) -> Result<Bytes, MirrorError> {
        let unread = || MirrorError::Tree { path: self.digest.to_string(), what: "was read before it came" };
        if let Some(blob) = self.found.get() {
            let end = position.saturating_add(bytes_max).min(blob.size_bytes);
            return self.cache.read(blob, position..end).try_next().await?.ok_or_else(unread);
        }
        let piece = lock(&self.window).piece(position);
        let mut bytes = match piece {
            Piece::Bytes(bytes) => bytes,
            Piece::Leaf { cid, skip } => {
                let lost = || MirrorError::Tree { path: cid.to_string(), what: "is missing from a fill" };
                self.cache.tree.blocks().get(&cid).await?.ok_or_else(lost)?.into_bytes().slice(skip..)
            }
            Piece::Nothing => return Err(unread()),
        };
        bytes.truncate(usize::try_from(bytes_max).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// `None`: nobody has the blob. What came of one that fails is kept for the next try.
    pub(super) async fn run(
        &self,
        supply: &mut Supply,
        stop: &CancellationToken,
    ) -> Result<Option<()>, MirrorError> {
        let (id, repo) = (journal_id(&self.digest), self.repository.joined()?);
        let mut writing = self.cache.uploads.take_up(id, &repo, self.digest.algorithm()).await?;
        loop {
            self.resume(&writing);
            match self.receive(supply, &mut writing, id, stop).await {
                Ok(Some(())) => (),
                Ok(None) => {
                    self.cache.uploads.forget_journal(id).await?;
                    return Ok(None);
                }
                Err(error) => {
                    if writing.received_bytes == 0 {
                        self.cache.uploads.forget_journal(id).await?;
                    } else {
                        self.cache.uploads.park(id, &repo, writing).await?;
                    }
                    return Err(error);
                }
            }
            let received = writing.finish().await?;
            self.cache.uploads.forget_journal(id).await?;
            if received.digest == self.digest {
                self.commit(received).await?;
                return Ok(Some(()));
            }
            let actual = received.digest;
            let is_of_peers = self.state.borrow().by_peer;
            if !supply.blame() || self.released.load(Ordering::Acquire) {
                let (host, expected) = (self.repository.host.clone(), self.digest);
                return Err(match is_of_peers {
                    true => MirrorError::Forged { expected, actual },
                    false => UpstreamError::Mismatch { host, expected, actual }.into(),
                });
            }
            tracing::info!(digest = %self.digest, %actual, "peers sent wrong bytes, which nobody has seen: begun anew");
            self.throw_away();
            writing = self.cache.uploads.take_up(id, &repo, self.digest.algorithm()).await?;
        }
    }

    fn throw_away(&self) {
        *lock(&self.window) = Window::default();
        self.state.send_modify(|state| {
            (state.received_bytes, state.from, state.by_peer, state.flows) = (0, None, false, false);
            (state.path, state.source_held_bytes) = (Arc::default(), None);
            state.generation += 1;
        });
    }

    async fn commit(&self, received: Received) -> Result<(), MirrorError> {
        // Readers end here, and need not wait for the disk.
        self.state.send_modify(|state| {
            state.size_bytes = Some(received.file.size_bytes);
            state.stage = Stage::Verified;
        });
        let own = self.cache.own().await?;
        let repo = self.repository.joined()?;
        self.cache.commit_upload(own, &repo, &self.digest, received).await?;
        // Nobody is about to push a manifest that names it: when the one that does is evicted, it may go.
        self.cache.leases.name(&self.digest, Instant::now());
        Ok(())
    }

    /// Receives the rest of the blob, from whoever has it, in as many tries as it takes while they bring something.
    async fn receive(
        &self,
        supply: &mut Supply,
        writing: &mut Writing,
        id: Uuid,
        stop: &CancellationToken,
    ) -> Result<Option<()>, MirrorError> {
        let (mut tries, mut barren_tries) = (0, 0);
        loop {
            tries += 1;
            let before = writing.received_bytes;
            let tried = self.receive_once(supply, writing, id);
            let Some(outcome) = stop.run_until_cancelled(tried).await else {
                return Err(MirrorError::Closed);
            };
            let error = match outcome {
                Ok(Tried::Whole) => return Ok(Some(())),
                Ok(Tried::Absent) => return Ok(None),
                Ok(Tried::Left) => continue,
                Err(error) => error,
            };
            barren_tries = if writing.received_bytes > before { 0 } else { barren_tries + 1 };
            let tries_max = match writing.received_bytes {
                _ if error.is_lasting() => 1,
                0 => FIRST_TRIES_MAX,
                _ => BARREN_TRIES_MAX,
            };
            if barren_tries >= tries_max || !error.is_transient() {
                return Err(self.given_up(writing.received_bytes, tries, error));
            }
            if matches!(error, MirrorError::Peer(_)) && barren_tries == 0 {
                tracing::info!(digest = %self.digest, received_bytes = writing.received_bytes, error = %chain(&error), "peer broke off; another takes over");
                continue;
            }
            tracing::info!(digest = %self.digest, received_bytes = writing.received_bytes, error = %chain(&error), "fill broke off; it goes on from there");
            let pause = PAUSE * 2_u32.saturating_pow(barren_tries.saturating_sub(1));
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Err(MirrorError::Closed);
            }
        }
    }

    /// The failure of the last of some tries, with how far the blob came, if it came at all.
    fn given_up(&self, received_bytes: u64, tries: u32, source: MirrorError) -> MirrorError {
        let size_bytes = self.state.borrow().size_bytes;
        match size_bytes.filter(|_| received_bytes > 0 && source.is_transient()) {
            Some(size_bytes) => MirrorError::GivenUp {
                digest: self.digest,
                received_bytes,
                size_bytes,
                tries,
                source: Box::new(source),
            },
            None => source,
        }
    }

    async fn receive_once(
        &self,
        supply: &mut Supply,
        writing: &mut Writing,
        id: Uuid,
    ) -> Result<Tried, MirrorError> {
        let size_bytes = self.state.borrow().size_bytes;
        if size_bytes.is_some_and(|size_bytes| size_bytes > 0 && writing.received_bytes == size_bytes) {
            return Ok(Tried::Whole);
        }
        // Who asks meanwhile is not let follow a source that is no more: it may be looking for us.
        self.state.send_modify(|state| {
            (state.from, state.path, state.source_held_bytes) = (None, Arc::default(), None);
        });
        let Some(opened) = supply.open(writing.received_bytes).await? else { return Ok(Tried::Absent) };
        let Opened { size_bytes: stated, at, from, path, held_bytes, bytes } = opened;
        if let (Some(known), Some(stated)) = (size_bytes, stated)
            && known != stated
        {
            return Err(MirrorError::WrongSize { digest: self.digest, known, stated });
        }
        let pulled_bytes = self.pulled_bytes(&from);
        self.state.send_modify(|state| {
            state.size_bytes = state.size_bytes.or(stated);
            state.by_peer |= matches!(from, Origin::Peer(_));
            state.from = Some(from);
            (state.path, state.source_held_bytes) = (path.into(), held_bytes);
        });
        let size_bytes = size_bytes.or(stated);
        // An upstream that knows no ranges begins at the beginning.
        let mut skip = writing.received_bytes.saturating_sub(at);
        let mut bytes = bytes.map_err(MirrorError::from).boxed();
        while let Some(mut chunk) = bytes.try_next().await? {
            pulled_bytes.inc_by(chunk.len() as u64);
            if skip > 0 {
                let skipped = chunk.split_to(chunk.len().min(usize::try_from(skip).unwrap_or(usize::MAX)));
                skip -= skipped.len() as u64;
            }
            if chunk.is_empty() {
                continue;
            }
            let received_bytes = writing.received_bytes + chunk.len() as u64;
            if let Some(known) = size_bytes.filter(|known| received_bytes > *known) {
                return Err(MirrorError::WrongSize { digest: self.digest, known, stated: received_bytes });
            }
            writing.write(chunk.clone()).await?;
            self.show(writing, chunk.clone());
            if writing.received_bytes - writing.noted_bytes >= CHECKPOINT_BYTES {
                writing.note(self.cache.uploads.journals(), id).await?;
            }
            let left_bytes = size_bytes.map_or(0, |known| known - received_bytes);
            if supply.is_to_be_left(chunk.len() as u64, left_bytes) {
                return Ok(Tried::Left);
            }
        }
        match size_bytes {
            Some(known) if writing.received_bytes < known => {
                Err(MirrorError::Short { digest: self.digest, known, received: writing.received_bytes })
            }
            _ => Ok(Tried::Whole),
        }
    }

    /// Counts what comes of this blob from a source.
    pub(super) fn pulled_bytes(&self, from: &Origin) -> Counter {
        self.metrics.pulled_bytes(self.repository.host.as_str(), from.kind())
    }

    /// Makes readable what a run before this one has written.
    fn resume(&self, writing: &Writing) {
        let leaves = writing.file.leaves();
        leaves.iter().for_each(|cid| self.keep.add(*cid));
        let window = Window::resumed(leaves, writing.file.open_parts(), writing.received_bytes);
        *lock(&self.window) = window;
        self.state.send_modify(|state| state.received_bytes = writing.received_bytes);
    }

    /// Makes readable what was written with a chunk.
    fn show(&self, writing: &Writing, chunk: Bytes) {
        let leaves = writing.file.leaves();
        {
            let mut window = lock(&self.window);
            leaves[window.leaves()..].iter().for_each(|cid| self.keep.add(*cid));
            window.push(leaves, chunk);
        }
        self.state.send_modify(|state| {
            state.received_bytes = writing.received_bytes;
            state.flows = true;
        });
    }
}

/// A peer that follows a fill.
pub(super) struct Follower {
    fill: Arc<Fill>,
    peer: Peer,
}

impl Drop for Follower {
    fn drop(&mut self) {
        lock(&self.fill.followers).leave(&self.peer);
    }
}

/// The journal of a blob's fill: found again by the digest alone.
fn journal_id(digest: &Digest) -> Uuid {
    let hash = digest.multihash();
    let mut id = [0; 16];
    id.copy_from_slice(&hash.digest()[..16]);
    uuid::Builder::from_custom_bytes(id).into_uuid()
}

/// A panic while a lock was held leaves at most a chunk unseen, whose fill has failed then.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
