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

    /// What a run before this one has written: whole leaves, all of which are stored, and the parts that came behind.
    pub(super) fn resumed(leaves: &[Cid], parts: &[Bytes], received_bytes: u64) -> Self {
        let mut window = Self { leaves: leaves.to_vec(), ..Self::default() };
        window.tail_at = window.stored_bytes();
        window.tail.extend(parts.iter().cloned());
        window.tail_end = received_bytes;
        window
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipld::Block;
    use crate::ipld::block::RAW;

    const LEAVES_MAX: usize = 4;

    fn byte(position: u64) -> u8 {
        (position % 251) as u8
    }

    fn bytes(from: u64, to: u64) -> Bytes {
        (from..to).map(byte).collect()
    }

    /// The byte that a reader gets; of a leaf in the store, the one that belongs there.
    fn read(window: &Window, leaves: &[Cid], position: u64) -> Option<u8> {
        match window.piece(position) {
            Piece::Bytes(bytes) => bytes.first().copied(),
            Piece::Leaf { cid, skip } => {
                let n = leaves.iter().position(|leaf| *leaf == cid)?;
                Some(byte((n * CHUNK_BYTES + skip) as u64))
            }
            Piece::Nothing => None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_came_can_be_read_wherever_it_is(
            before in 0..2 * CHUNK_BYTES,
            chunks in prop::collection::vec((0..CHUNK_BYTES, any::<prop::sample::Index>()), 1..8),
            positions in prop::collection::vec(any::<prop::sample::Index>(), 32),
        ) {
            let leaves: Vec<Cid> = (0..LEAVES_MAX as u8).map(|n| *Block::encode(RAW, vec![n].into()).cid()).collect();
            let mut received = before as u64;
            let mut stored = before / CHUNK_BYTES;
            let tail = bytes((stored * CHUNK_BYTES) as u64, received);
            let mut window = Window::resumed(&leaves[..stored], &[tail], received);
            for (count, storing) in chunks {
                let end = received + count as u64;
                // Leaves are stored some time after their bytes came.
                let whole = (usize::try_from(end).unwrap() / CHUNK_BYTES).min(LEAVES_MAX);
                stored += storing.index(whole - stored + 1);
                window.push(&leaves[..stored], bytes(received, end));
                received = end;
                for position in positions.iter().map(|position| position.index(received.max(1) as usize) as u64) {
                    let wanted = (position < received).then(|| byte(position));
                    prop_assert_eq!(read(&window, &leaves, position), wanted, "{} of {}", position, received);
                }
                prop_assert_eq!(read(&window, &leaves, received), None);
            }
        }
    }
}
