//! Takes away blocks that nothing needs, while others are read and written.
//!
//! Who sweeps finds out what is needed after the sweep began; whatever is put or read from then on is needed too, without
//! being asked. Marking is not done here: which blocks a root needs is for `dag` to know.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::blockstore::Blockstore;
use super::hashed_set::HashedSet;
use super::{StoreError, compaction};
use crate::ipld::Multihash;

/// Blocks that may be put or read during one sweep; with more it is given up.
const USED_MAX: usize = 8 << 20;

/// What has been used since a sweep began.
#[derive(Default)]
pub(super) struct Usage {
    sweeping: AtomicBool,
    used: Mutex<HashedSet>,
}

impl Usage {
    /// Notes the use of a block. Must come before the look-up of its row.
    pub(super) fn note(&self, key: &Multihash) {
        if self.sweeping.load(Ordering::Acquire) {
            self.lock().insert(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashedSet> {
        // A panic leaves a set with or without its last member.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sweep under way; there is one at a time. It ends when it is dropped.
pub struct Sweep {
    store: Blockstore,
}

impl Sweep {
    pub(super) fn begin(store: &Blockstore) -> Option<Self> {
        let usage = &store.0.usage;
        let began = usage.sweeping.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire);
        began.ok().map(|_| Self { store: store.clone() })
    }

    /// A block, without noting that it was read.
    pub fn peek(&self, key: &Multihash) -> Result<Option<Bytes>, StoreError> {
        self.store.read(key)
    }

    /// Removes a block, unless it was used since the sweep began. Its space comes back with [`Sweep::finish`], or before.
    pub fn remove(&self, key: &Multihash) -> Result<bool, StoreError> {
        let usage = &self.store.0.usage;
        let removed = {
            // Whoever uses the block notes it under this lock before looking for its row: it finds the row gone, or
            // keeps it from going.
            let used = usage.lock();
            !used.contains(key) && used.len() < USED_MAX && self.store.0.take_out(key)?
        };
        self.store.erase_some()?;
        Ok(removed)
    }

    /// Gives the space of what was removed back, and rewrites the segments of which little is left.
    pub fn finish(self) -> Result<(), StoreError> {
        self.store.flush()?;
        for segment in self.store.0.packs.all().iter().filter(|segment| compaction::is_due(segment)) {
            compaction::run(&self.store, &self.store.0, segment);
        }
        Ok(())
    }
}

impl Drop for Sweep {
    fn drop(&mut self) {
        let usage = &self.store.0.usage;
        usage.sweeping.store(false, Ordering::Release);
        *usage.lock() = HashedSet::default();
    }
}
