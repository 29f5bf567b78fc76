//! Archives (CAR) from gateways: each block is verified and must be one that those before it lead to. What comes after the
//! block that was wanted waits, within a bound, for the wants that follow; the archive is read no faster than they come.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::client::{Answer, WebError};
use super::gateways::{Gateway, verify};
use crate::ipld::block::{DAG_PB, IDENTITY};
use crate::ipld::car::{Decoder, Scope, below};
use crate::ipld::unixfs::UnixFs;
use crate::ipld::{Block, Multihash};

/// Archives that are read at once; of more only the first block is taken.
const ARCHIVES_MAX: usize = 8;
/// Of one archive, bytes that wait for their wants.
const HELD_BYTES_MAX: usize = 4 << 20;
/// Blocks that one archive may be expected to have.
const EXPECTED_MAX: usize = 1 << 16;
/// Blocks that may come again though each was asked for once.
const REPEATED_MAX: usize = 64;
/// How long an archive is kept of which nothing is taken.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a want waits for a block that an archive is to bring, before it is asked for by itself.
const WAIT: Duration = Duration::from_secs(1);

/// What came ahead. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Ahead(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Something came, was taken, or comes no more.
    changed: Notify,
}

#[derive(Default)]
struct State {
    next: u64,
    archives: HashMap<u64, Shelf>,
}

/// What is to come of one archive, and what has come.
#[derive(Default)]
struct Shelf {
    expected: HashSet<Multihash>,
    held: HashMap<Multihash, Bytes>,
    held_bytes: usize,
    taken_at: Option<Instant>,
}

/// An archive that is being read.
pub(super) struct Archive {
    answer: Answer,
    gateway: Arc<Gateway>,
    root: Cid,
    decoder: Decoder,
    /// Blocks that those before lead to and that have not come.
    expected: HashSet<Multihash>,
    seen: HashSet<Multihash>,
    /// Those that became expected since the shelf was last told.
    fresh: Vec<Multihash>,
    repeated: usize,
    /// More would be too much.
    is_full: bool,
}

impl Ahead {
    /// A block that has come, for whoever asks first.
    pub(super) fn take(&self, cid: &Cid) -> Option<Block> {
        let bytes = self.0.state().archives.values_mut().find_map(|shelf| shelf.take(cid.hash()))?;
        self.0.changed.notify_waiters();
        Some(Block::from_store(*cid, bytes)) // Verified when it came.
    }

    /// The same; waits for one that is about to come.
    pub(super) async fn wait(&self, cid: &Cid) -> Option<Block> {
        let until = Instant::now() + WAIT;
        loop {
            let changed = self.0.changed.notified();
            if let Some(block) = self.take(cid) {
                return Some(block);
            }
            if !self.0.state().archives.values().any(|shelf| shelf.expected.contains(cid.hash())) {
                return None;
            }
            timeout_at(until, changed).await.ok()?;
        }
    }

    /// It is not needed any more.
    pub(super) fn forget(&self, cid: &Cid) {
        let mut state = self.0.state();
        if state.archives.is_empty() {
            return;
        }
        for shelf in state.archives.values_mut() {
            shelf.expected.remove(cid.hash());
            shelf.take(cid.hash());
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// A place for what an archive is about to bring; `None`: too many are read already.
    pub(super) fn shelf(&self, archive: &mut Archive) -> Option<OnShelf> {
        let mut state = self.0.state();
        if state.archives.len() >= ARCHIVES_MAX {
            return None;
        }
        state.next += 1;
        let id = state.next;
        let expected = archive.fresh.drain(..).collect();
        let shelf = Shelf { expected, taken_at: Some(Instant::now()), ..Shelf::default() };
        state.archives.insert(id, shelf);
        Some(OnShelf { id, ahead: self.clone() })
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn take(&mut self, key: &Multihash) -> Option<Bytes> {
        let bytes = self.held.remove(key)?;
        self.held_bytes -= bytes.len();
        self.taken_at = Some(Instant::now());
        Some(bytes)
    }
}

/// The place of one archive among those that are read; cleared when it is dropped.
pub(super) struct OnShelf {
    id: u64,
    ahead: Ahead,
}

impl Drop for OnShelf {
    fn drop(&mut self) {
        self.ahead.0.state().archives.remove(&self.id);
        self.ahead.0.changed.notify_waiters();
    }
}

impl OnShelf {
    /// Reads an archive to its end, or until nobody takes anything of it any more. May be dropped midway.
    pub(super) async fn take_in(self, archive: Archive) {
        let gateway = archive.gateway.clone();
        let outcome = self.fill(archive).await;
        if outcome.is_err() {
            gateway.note(&outcome);
        }
        self.comes_no_more();
        // What was read is taken soon, or not at all.
        self.wait_for(|shelf| shelf.held.is_empty()).await;
    }

    async fn fill(&self, mut archive: Archive) -> Result<(), WebError> {
        loop {
            if !self.wait_for(|shelf| shelf.held_bytes < HELD_BYTES_MAX).await {
                return Ok(());
            }
            let Some(block) = archive.next().await? else { return Ok(()) };
            self.with(|shelf| {
                if shelf.expected.remove(block.cid().hash()) {
                    // A copy of its own: a slice would keep what it was read in.
                    let bytes = Bytes::copy_from_slice(block.bytes());
                    shelf.held_bytes += bytes.len();
                    shelf.held.insert(*block.cid().hash(), bytes);
                }
                shelf.expected.extend(archive.fresh.drain(..));
            });
            self.ahead.0.changed.notify_waiters();
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Shelf) -> T) -> Option<T> {
        self.ahead.0.state().archives.get_mut(&self.id).map(change)
    }

    fn comes_no_more(&self) {
        self.with(|shelf| shelf.expected.clear());
        self.ahead.0.changed.notify_waiters();
    }

    /// Waits until `is_so`; `false`: nothing was taken for so long that nobody seems to want it.
    async fn wait_for(&self, is_so: impl Fn(&Shelf) -> bool) -> bool {
        loop {
            let changed = self.ahead.0.changed.notified();
            let Some((so, taken_at)) = self.with(|shelf| (is_so(shelf), shelf.taken_at)) else {
                return false;
            };
            if so {
                return true;
            }
            let until = taken_at.unwrap_or_else(Instant::now) + IDLE_TIMEOUT;
            if timeout_at(until, changed).await.is_err() && Instant::now() >= until {
                let again = self.with(|shelf| shelf.taken_at).flatten();
                if again == taken_at {
                    return false;
                }
            }
        }
    }
}

impl Archive {
    pub(super) fn new(answer: Answer, gateway: Arc<Gateway>, root: Cid) -> Self {
        Self {
            answer,
            gateway,
            root,
            decoder: Decoder::default(),
            expected: HashSet::from([*root.hash()]),
            seen: HashSet::new(),
            fresh: Vec::new(),
            repeated: 0,
            is_full: false,
        }
    }

    /// The block that the archive was asked for: it has to come first.
    pub(super) async fn first(&mut self) -> Result<Block, WebError> {
        let first = self.next().await?;
        first.ok_or_else(|| self.gateway.wrong(format!("an archive without {}", self.root)))
    }

    pub(super) fn expects_more(&self) -> bool {
        !self.expected.is_empty() && !self.is_full
    }

    /// The next block, verified; `Ok(None)`: nothing that matters comes any more.
    async fn next(&mut self) -> Result<Option<Block>, WebError> {
        while self.expects_more() {
            let entry = self.decoder.next_entry().map_err(|error| self.gateway.wrong(error))?;
            if let Some((cid, bytes)) = entry {
                if let Some(block) = self.judge(cid, bytes).await? {
                    return Ok(Some(block));
                }
                continue;
            }
            match self.answer.chunk().await? {
                Some(bytes) => self.decoder.push(&bytes),
                None => {
                    let reason = "the archive ends before its last block".to_owned();
                    return Err(WebError::Truncated { place: self.answer.place.clone(), reason });
                }
            }
        }
        Ok(None)
    }

    /// `Ok(None)`: it came before, or has its bytes in its CID.
    async fn judge(&mut self, cid: Cid, bytes: Bytes) -> Result<Option<Block>, WebError> {
        if !self.expected.remove(cid.hash()) {
            let harmless = self.seen.contains(cid.hash()) || cid.hash().code() == IDENTITY;
            self.repeated += 1;
            if harmless && self.repeated <= REPEATED_MAX {
                return Ok(None);
            }
            return Err(self.gateway.wrong(format!("block {cid}, which does not belong there")));
        }
        // The codec is that of whoever asked for the root, and of the links else.
        let cid = if self.seen.is_empty() { self.root } else { cid };
        let block = verify(cid, bytes).await.map_err(|error| self.gateway.wrong(error))?;
        self.seen.insert(*cid.hash());
        self.expect_below(&block);
        Ok(Some(block))
    }

    /// A file's blocks are wanted one after the other. Of a sharded directory one path is, and the rest would be for nothing.
    fn expect_below(&mut self, block: &Block) {
        if block.cid().codec() != DAG_PB || !matches!(UnixFs::decode(block), Ok(UnixFs::File(_))) {
            return;
        }
        // Decoded a moment ago.
        for child in below(block, Scope::Entity).unwrap_or_default() {
            if self.expected.len() >= EXPECTED_MAX {
                self.is_full = true;
                return;
            }
            let comes = child.hash().code() != IDENTITY && !self.seen.contains(child.hash());
            if comes && self.expected.insert(*child.hash()) {
                self.fresh.push(*child.hash());
            }
        }
    }
}
