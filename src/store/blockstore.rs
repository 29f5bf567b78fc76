//! Blocks by multihash.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use bytes::Bytes;

use super::database::{Rows, decode_location};
use super::packs::{Location, Packs};
use super::record::HEADER_BYTES;
use super::sweep::{Sweep, Usage};
use super::{StoreError, compaction};
use crate::ipld::Multihash;

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
    flushes: Mutex<Flushes>,
    flushed: Condvar,
}

/// Rounds of syncing. Who asks while one runs needs the next, together with all others who ask then.
#[derive(Default)]
struct Flushes {
    begun: u64,
    done: u64,
    running: bool,
}

impl Blockstore {
    pub(super) fn new(rows: Rows, packs: Packs) -> Self {
        let blocks = AtomicU64::new(rows.len() as u64);
        let usage = Usage::default();
        Self(Arc::new(Inner {
            rows,
            packs,
            usage,
            blocks,
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
        loop {
            let Some(location) = self.0.rows.get(&key.to_bytes())? else { return Ok(None) };
            if let Some(segment) = self.0.packs.get(location.segment) {
                return segment.read(key, location).map(Some);
            }
            // Its segment was rewritten between the two look-ups: the row points elsewhere by now.
        }
    }

    /// The size of a block in bytes, if it is here. Costs one index look-up.
    pub fn size_bytes(&self, key: &Multihash) -> Result<Option<u32>, StoreError> {
        self.note_use(key);
        Ok(self.0.rows.get(&key.to_bytes())?.map(|location| location.body_bytes))
    }

    /// Appends a block given in parts, in order. It can be read at once, and is durable after the next `flush`.
    /// A block that is already here is not written again. The caller has verified that the bytes match.
    pub fn put(&self, key: &Multihash, parts: &[Bytes]) -> Result<(), StoreError> {
        let row = key.to_bytes();
        self.note_use(key);
        if self.0.rows.get(&row)?.is_some() {
            return Ok(());
        }
        self.0.packs.append(key, parts, |segment, location| {
            if self.0.rows.swap(&row, None, Some(location))? {
                self.0.blocks.fetch_add(1, Ordering::Relaxed);
                segment.count(record_bytes(&row, location.body_bytes));
            } else {
                // Somebody else put the same block meanwhile.
                segment.erase(key, location)?;
            }
            Ok(())
        })
    }

    /// Returns when everything put before the call is on disk. Concurrent calls share one sync.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut flushes = self.0.flushes.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = flushes.begun + 1;
        while flushes.done < wanted {
            if flushes.running {
                flushes = self.0.flushed.wait(flushes).unwrap_or_else(PoisonError::into_inner);
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

    /// Forgets a block and gives its space back. `false` if it was not here.
    pub fn remove(&self, key: &Multihash) -> Result<bool, StoreError> {
        let Some(location) = self.0.forget_row(key)? else { return Ok(false) };
        self.0.give_back(key, location)?;
        if let Some(segment) =
            self.0.packs.get(location.segment).filter(|segment| compaction::is_due(segment))
        {
            compaction::rewrite(self, &self.0, &segment)?;
        }
        Ok(true)
    }

    /// Begins to take away what nothing needs; `None` while somebody else does. From here on, what is put or read is kept.
    pub fn begin_sweep(&self) -> Option<Sweep> {
        Sweep::begin(self)
    }

    /// Visits every block that is here when the visit comes to it, in no particular order, until told to stop.
    pub fn for_each_key(
        &self,
        mut visit: impl FnMut(&Multihash, u32) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        for row in self.0.rows.iter() {
            let (key, location) = row.map_err(|source| self.0.rows.failed(source))?;
            let (Ok(key), Some(location)) = (Multihash::from_bytes(&key), decode_location(&location)) else {
                continue;
            };
            if visit(&key, location.body_bytes).is_break() {
                break;
            }
        }
        Ok(())
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
    /// Takes a block out of the index; returns where it lies.
    pub(super) fn forget_row(&self, key: &Multihash) -> Result<Option<Location>, StoreError> {
        let row = key.to_bytes();
        let Some(location) = self.rows.get(&row)? else { return Ok(None) };
        if !self.rows.swap(&row, Some(location), None)? {
            return Ok(None);
        }
        self.blocks.fetch_sub(1, Ordering::Relaxed);
        Ok(Some(location))
    }

    /// Gives back the space of a record that the index no longer points to.
    pub(super) fn give_back(&self, key: &Multihash, location: Location) -> Result<(), StoreError> {
        let Some(segment) = self.packs.get(location.segment) else { return Ok(()) };
        segment.erase(key, location)?;
        segment.count(-record_bytes(&key.to_bytes(), location.body_bytes));
        Ok(())
    }

    /// Packs first, then the index, which by then points to nothing that is not on disk.
    fn sync(&self) -> Result<(), StoreError> {
        let checkpoints = self.packs.checkpoints();
        self.packs.sync(&checkpoints)?;
        for (segment, end) in &checkpoints {
            self.rows.checkpoint(segment, *end)?;
        }
        self.rows.flush()
    }
}

/// What a record of this key and body counts.
fn record_bytes(key: &[u8], body_bytes: u32) -> i64 {
    i64::try_from(HEADER_BYTES + key.len()).unwrap_or(0) + i64::from(body_bytes)
}
