//! Buffers of messages, used again: a fresh one costs page faults and zeroing, which is felt at hundreds of MiB/s.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Buffers that wait to be used again, in all, in bytes.
const KEPT_BYTES_MAX: usize = 24 << 20;
/// Smaller ones are not worth it.
const POOLED_BYTES_MIN: usize = 128 * 1024;

/// Cheap to clone; clones share the buffers.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer that goes back when the last slice of its bytes is dropped.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
    home: Buffers,
}

impl Buffers {
    /// A buffer that can be filled to `size_bytes`. Memory that was never used before is taken as it is filled.
    pub(super) fn take(&self, size_bytes: usize) -> Buffer {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is much larger would keep memory that nobody counts.
        let fitting = kept.buffers.iter().position(|bytes| {
            size_bytes >= POOLED_BYTES_MIN && (size_bytes..=size_bytes * 2).contains(&bytes.capacity())
        });
        let bytes = match fitting {
            Some(position) => kept.buffers.swap_remove(position),
            None => Vec::with_capacity(size_bytes),
        };
        kept.bytes -= fitting.map_or(0, |_| bytes.capacity());
        drop(kept);
        Buffer { bytes, filled: 0, home: self.clone() }
    }

    /// Gives the memory back.
    pub(super) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Kept::default();
    }
}

impl Buffer {
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Where to read to next: up to `max_bytes`, and never past `size_bytes` in all.
    pub(super) fn space(&mut self, size_bytes: usize, max_bytes: usize) -> &mut [u8] {
        if self.filled == self.bytes.len() {
            self.bytes.resize(size_bytes.min(self.filled + max_bytes), 0);
        }
        let end = self.bytes.len().min(size_bytes);
        &mut self.bytes[self.filled..end]
    }

    pub(super) fn advance(&mut self, read_bytes: usize) {
        self.filled += read_bytes;
    }

    /// What was filled.
    pub(super) fn freeze(self) -> Bytes {
        let filled = self.filled;
        Bytes::from_owner(self).slice(..filled)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() < POOLED_BYTES_MIN {
            return;
        }
        let mut kept = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + bytes.capacity() <= KEPT_BYTES_MAX {
            kept.bytes += bytes.capacity();
            kept.buffers.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(buffers: &Buffers, text: u8, size_bytes: usize) -> Bytes {
        let mut buffer = buffers.take(size_bytes);
        while buffer.filled() < size_bytes {
            let space = buffer.space(size_bytes, 64 * 1024);
            space.fill(text);
            let read_bytes = space.len();
            buffer.advance(read_bytes);
        }
        buffer.freeze()
    }

    #[test]
    fn a_buffer_is_used_again_and_shows_nothing_of_its_past() {
        let buffers = Buffers::default();
        let first = filled(&buffers, 1, 200_000);
        let (address, slice) = (first.as_ptr(), first.slice(5..10));
        drop(first);
        assert_ne!(filled(&buffers, 2, 200_000).as_ptr(), address, "a slice of it is in use");
        drop(slice);
        buffers.0.lock().unwrap().buffers.retain(|buffer| buffer.as_ptr() == address);
        let again = filled(&buffers, 3, 150_000);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again, vec![3; 150_000]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_can_be_given_back() {
        let buffers = Buffers::default();
        let taken: Vec<Bytes> = (0..40).map(|_| filled(&buffers, 1, 1 << 20)).collect();
        drop(taken);
        assert_eq!(buffers.0.lock().unwrap().bytes, KEPT_BYTES_MAX);
        filled(&buffers, 1, 1000);
        assert_eq!(buffers.0.lock().unwrap().buffers.len(), 24);
        buffers.clear();
        assert_eq!(buffers.0.lock().unwrap().bytes, 0);
    }
}
