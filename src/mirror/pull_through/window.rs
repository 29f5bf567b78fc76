//! What of a fill can be read, and where it is: whole leaves in the store, what came behind them in memory. Pure.

use std::collections::VecDeque;

use bytes::Bytes;
use cid::Cid;

use crate::ipld::file_builder::CHUNK_BYTES;

/// Knows where each byte of a fill is.
#[derive(Default)]
pub(super) struct Window {
    /// Whole leaves, in the store.
    leaves: Vec<Cid>,
    /// What came behind, from `tail_at` on.
    tail: VecDeque<Bytes>,
    tail_at: u64,
    tail_end: u64,
}

/// The next bytes for a reader.
pub(super) enum Piece {
    Bytes(Bytes),
    Leaf { cid: Cid, skip: usize },
    Nothing,
}

impl Window {
    /// How many leaves it knows of.
    pub(super) fn leaves(&self) -> usize {
        self.leaves.len()
    }

    /// Takes over what a run before this one has written. `parts`: what came behind the leaves.
    pub(super) fn resume(&mut self, leaves: &[Cid], parts: &[Bytes], received_bytes: u64) {
        leaves.clone_into(&mut self.leaves);
        self.tail_at = self.stored_bytes();
        self.tail.extend(parts.iter().cloned());
        self.tail_end = received_bytes;
        self.trim();
    }

    /// Takes a chunk that came, and all leaves that have been stored since the beginning.
    pub(super) fn push(&mut self, leaves: &[Cid], chunk: Bytes) {
        self.leaves.extend(&leaves[self.leaves.len()..]);
        self.tail_end += chunk.len() as u64;
        self.tail.push_back(chunk);
        self.trim();
    }

    /// Lets go of what is in the store.
    fn trim(&mut self) {
        let stored_bytes = self.stored_bytes();
        while let Some(first) = self.tail.front().map(|bytes| bytes.len() as u64)
            && self.tail_at + first <= stored_bytes
        {
            self.tail.pop_front();
            self.tail_at += first;
        }
    }

    fn stored_bytes(&self) -> u64 {
        (self.leaves.len() * CHUNK_BYTES) as u64
    }

    /// Where the byte at `position` is.
    pub(super) fn piece(&self, position: u64) -> Piece {
        if position < self.tail_at {
            let leaf_bytes = CHUNK_BYTES as u64;
            let leaf = usize::try_from(position / leaf_bytes).ok().and_then(|n| self.leaves.get(n));
            let skip = usize::try_from(position % leaf_bytes).unwrap_or_default();
            return leaf.map_or(Piece::Nothing, |cid| Piece::Leaf { cid: *cid, skip });
        }
        let mut end = self.tail_end;
        for bytes in self.tail.iter().rev() {
            let start = end - bytes.len() as u64;
            if start <= position && position < end {
                let skip = usize::try_from(position - start).unwrap_or_default();
                return Piece::Bytes(bytes.slice(skip..));
            }
            end = start;
        }
        Piece::Nothing
    }
}
