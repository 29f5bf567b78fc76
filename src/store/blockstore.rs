//! Blocks by multihash.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;

use super::packs::{Location, Packs, Record, Segment};
use super::recovery::Recovered;
use super::rows::Rows;
use super::sweep::{Sweep, Usage};
use super::{StoreError, compaction};
use crate::ipld::Multihash;

/// Removed records that wait for a flush to be erased; who removes one more flushes.
const ERASURES_PENDING_MAX: usize = 4096;

/// What the store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub blocks: u64,
    /// Bytes of live records.
    pub live_bytes: u64,
    /// Bytes that the packs take on disk.
    pub disk_bytes: u64,
}

/// Get, has, put, remove. Cheap to clone; reads take no lock, writers share a few segments.
#[derive(Clone)]
pub struct Blockstore(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) rows: Rows,
    pub(super) packs: Packs,
    pub(super) usage: Usage,
    blocks: AtomicU64,
    /// Records that no row points to any more. They are erased once the index on disk knows, which therefore never
    /// points to an erased record.
    erasures: Mutex<Vec<(Multihash, Location)>>,
    flushes: Mutex<Flushes>,
    flushed: Condvar,
}

/// Rounds of syncing. Who asks while one runs needs the next, together with all others who ask then.
#[derive(Default)]
struct Flushes {
    begun: u64,
    done: u64,
    running: bool,
    /// Who waits for a round.
    #[cfg(test)]
    waiting: usize,
}

impl Blockstore {
    pub(super) fn new(rows: Rows, packs: Packs, recovered: Recovered) -> Self {
        Self(Arc::new(Inner {
            rows,
            packs,
            usage: Usage::default(),
            blocks: AtomicU64::new(recovered.blocks),
            erasures: Mutex::new(recovered.duplicates),
            flushes: Mutex::default(),
            flushed: Condvar::new(),
        }))
    }

    /// The bytes of a block; the record's checksum was compared. A damaged block is an error, not absent.
    pub fn get(&self, key: &Multihash) -> Result<Option<Bytes>, StoreError> {
        self.note_use(key);
        self.read(key)
    }

    /// Notes that a block is used, though it is not read from here: a sweep leaves it.
    pub fn note_use(&self, key: &Multihash) {
        self.0.usage.note(key);
    }

    pub(super) fn read(&self, key: &Multihash) -> Result<Option<Bytes>, StoreError> {
        let row = key.to_bytes();
        let mut location = self.0.rows.get(&row)?;
        while let Some(at) = location {
            let read = match self.0.packs.get(at.segment) {
                Some(segment) => segment.read(key, at),
                None => Err(StoreError::dangling(key, at.segment)),
            };
            let failure = match read {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(failure) => failure,
            };
            // If the block was removed or moved between the two looks, its row says so.
            location = self.0.rows.get(&row)?;
            if location == Some(at) {
                return Err(failure);
            }
        }
        Ok(None)
    }

    /// The size of a block in bytes, if it is here. Costs one index look-up.
    pub fn size_bytes(&self, key: &Multihash) -> Result<Option<u32>, StoreError> {
        self.note_use(key);
        Ok(self.0.rows.get(&key.to_bytes())?.map(|location| location.body_bytes))
    }

    /// Appends a block given in parts, in order. It can be read at once, and is durable after the next `flush`.
    /// A block that is already here is not written again. The caller has verified that the bytes match.
    pub fn put(&self, key: &Multihash, parts: &[Bytes]) -> Result<(), StoreError> {
        self.put_all([(key, parts)])
    }

    /// [`Blockstore::put`] of several blocks, in as few writes as can be. After an error some of them may be here.
    pub fn put_all<'a>(
        &self,
        blocks: impl IntoIterator<Item = (&'a Multihash, &'a [Bytes])>,
    ) -> Result<(), StoreError> {
        let mut records = Vec::new();
        for (key, parts) in blocks {
            self.note_use(key);
            if self.0.rows.get(&key.to_bytes())?.is_none() {
                records.push(Record::new(key, parts));
            }
        }
        self.0.packs.append(&records, |segment, key, location| {
            if self.0.rows.swap(&key.to_bytes(), None, Some(location))? {
                self.0.blocks.fetch_add(1, Ordering::Relaxed);
                segment.count(location.record_bytes(key));
            } else {
                // Somebody else put the same block meanwhile, or it is here twice.
                segment.erase(key, location)?;
            }
            Ok(())
        })
    }

    /// Returns when everything put or removed before the call is on disk, and the space of what was removed is free.
    /// Concurrent calls share one sync.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut flushes = self.0.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = flushes.begun + 1;
        while flushes.done < wanted {
            if flushes.running {
                #[cfg(test)]
                (flushes.waiting += 1);
                flushes = self.0.flushed.wait(flushes).unwrap_or_else(PoisonError::into_inner);
                #[cfg(test)]
                (flushes.waiting -= 1);
                continue;
            }
            flushes.running = true;
            flushes.begun += 1;
            let round = flushes.begun;
            drop(flushes);
            let outcome = self.0.sync();
            flushes = self.0.flushes.lock().unwrap_or_else(PoisonError::into_inner);
            flushes.running = false;
            if outcome.is_ok() {
                flushes.done = round;
            }
            self.0.flushed.notify_all();
            // Who shared the round tries for itself.
            outcome?;
        }
        Ok(())
    }

    /// Forgets a block. Its space comes back with the next `flush`. `false` if it was not here.
    pub fn remove(&self, key: &Multihash) -> Result<bool, StoreError> {
        if !self.0.take_out(key)? {
            return Ok(false);
        }
        self.erase_some()?;
        if let Some(segment) = self.0.packs.find(compaction::is_due) {
            compaction::run(self, &self.0, &segment);
        }
        Ok(true)
    }

    /// Flushes if many removed records wait to be erased.
    pub(super) fn erase_some(&self) -> Result<(), StoreError> {
        let pending = self.0.erasures.lock().unwrap_or_else(PoisonError::into_inner).len();
        if pending >= ERASURES_PENDING_MAX { self.flush() } else { Ok(()) }
    }

    /// Begins to take away what nothing needs; `None` while somebody else does. From here on, what is put or read is kept.
    pub fn begin_sweep(&self) -> Option<Sweep> {
        Sweep::begin(self)
    }

    /// Deletes full segments of which nothing counts: a rewriting that was cut short leaves such. Called at the start.
    pub(super) fn delete_dead_segments(&self) -> Result<(), StoreError> {
        let is_dead = |segment: &Segment| segment.is_sealed() && segment.live_bytes() == 0;
        while let Some(segment) = self.0.packs.find(is_dead) {
            self.0.rows.forget(segment.id)?;
            self.0.packs.delete(&segment)?;
        }
        Ok(())
    }

    /// Visits every block that is here when the visit comes to it, in no particular order, until told to stop.
    pub fn for_each_key(
        &self,
        mut visit: impl FnMut(&Multihash, u32) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        for row in self.0.rows.iter() {
            let (key, location) = row?;
            if visit(&key, location.body_bytes).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// How often packs and index were synced.
    #[cfg(test)]
    pub(super) fn syncs(&self) -> u64 {
        self.0.flushes.lock().unwrap().begun
    }

    /// How many wait for a round of syncing.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.0.flushes.lock().unwrap().waiting
    }

    /// No round of syncing gets on while this is held.
    #[cfg(test)]
    pub(super) fn hold_syncs(&self) -> impl Sized + '_ {
        self.0.erasures.lock().unwrap()
    }

    pub fn stats(&self) -> StoreStats {
        let live: i64 = self.0.packs.all().iter().map(|segment| segment.live_bytes()).sum();
        StoreStats {
            blocks: self.0.blocks.load(Ordering::Relaxed),
            live_bytes: u64::try_from(live).unwrap_or(0),
            disk_bytes: self.0.packs.disk_bytes(),
        }
    }
}

impl Inner {
    /// Takes a block out of the index; its record is erased behind the next flush. `false` if it was not here.
    pub(super) fn take_out(&self, key: &Multihash) -> Result<bool, StoreError> {
        let row = key.to_bytes();
        let location = loop {
            let Some(location) = self.rows.get(&row)? else { return Ok(false) };
            // If it does not point there any more, the block was moved, or removed by somebody else.
            if self.rows.swap(&row, Some(location), None)? {
                break location;
            }
        };
        self.blocks.fetch_sub(1, Ordering::Relaxed);
        if let Some(segment) = self.packs.get(location.segment) {
            segment.count(-location.record_bytes(key));
        }
        self.erase_later(key, location);
        Ok(true)
    }

    /// Packs first, then the index, which by then points to nothing that is not on disk; then what it points to no more
    /// is erased.
    fn sync(&self) -> Result<(), StoreError> {
        let erasures = std::mem::take(&mut *self.erasures.lock().unwrap_or_else(PoisonError::into_inner));
        let synced = self.sync_packs_and_index();
        if synced.is_ok() {
            self.erase(&erasures);
        } else {
            self.erasures.lock().unwrap_or_else(PoisonError::into_inner).extend(erasures);
        }
        synced
    }

    fn sync_packs_and_index(&self) -> Result<(), StoreError> {
        let checkpoints = self.packs.checkpoints();
        self.packs.sync(&checkpoints)?;
        for (segment, end) in &checkpoints {
            self.rows.checkpoint(segment.id, *end)?;
        }
        self.rows.flush()
    }

    /// A record that cannot be erased only costs its space, until its segment is rewritten.
    fn erase(&self, erasures: &[(Multihash, Location)]) {
        for (key, location) in erasures {
            let Some(segment) = self.packs.get(location.segment) else { continue };
            if let Err(error) = segment.erase(key, *location) {
                tracing::warn!(segment = location.segment, %error, "a removed block keeps its space");
            }
        }
    }

    fn erase_later(&self, key: &Multihash, location: Location) {
        self.erasures.lock().unwrap_or_else(PoisonError::into_inner).push((*key, location));
    }

    /// Writes a block again elsewhere, unless its row has come to point away from `old`.
    pub(super) fn relocate(&self, key: &Multihash, old: Location, body: Bytes) -> Result<(), StoreError> {
        self.packs.append(&[Record::new(key, &[body])], |target, key, new| {
            if !self.rows.swap(&key.to_bytes(), Some(old), Some(new))? {
                return target.erase(key, new).map(drop);
            }
            target.count(new.record_bytes(key));
            if let Some(segment) = self.packs.get(old.segment) {
                segment.count(-old.record_bytes(key));
            }
            self.erase_later(key, old);
            Ok(())
        })
    }
}
