//! Buffers of blocks and messages, used again: a fresh one costs page faults and zeroing, which is felt at hundreds of
//! MiB/s.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Smaller ones are not worth it.
const POOLED_BYTES_MIN: usize = 128 * 1024;

/// Cheap to clone; clones share the buffers.
#[derive(Clone)]
pub struct Buffers {
    kept: Arc<Mutex<Kept>>,
    kept_bytes_max: usize,
}

#[derive(Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A buffer that goes back when the last slice of its bytes is dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    filled: usize,
    home: Buffers,
}

impl Buffers {
    /// Keeps buffers of no more than so many bytes in all while nobody uses them.
    pub fn new(kept_bytes_max: usize) -> Self {
        Self { kept: Arc::default(), kept_bytes_max }
    }

    /// A buffer that can be filled to `size_bytes`. Memory that was never used before is taken as it is filled.
    pub fn take(&self, size_bytes: usize) -> Buffer {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
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
    pub fn clear(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Kept::default();
    }
}

impl Buffer {
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Where to read to next: up to `max_bytes`, and never past `size_bytes` in all.
    pub fn space(&mut self, size_bytes: usize, max_bytes: usize) -> &mut [u8] {
        if self.filled == self.bytes.len() {
            self.bytes.resize(size_bytes.min(self.filled + max_bytes), 0);
        }
        let end = self.bytes.len().min(size_bytes);
        &mut self.bytes[self.filled..end]
    }

    pub fn advance(&mut self, read_bytes: usize) {
        self.filled += read_bytes;
    }

    /// What was filled.
    pub fn freeze(self) -> Bytes {
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
        let mut kept = self.home.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + bytes.capacity() <= self.home.kept_bytes_max {
            kept.bytes += bytes.capacity();
            kept.buffers.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT_BYTES_MAX: usize = 24 << 20;

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
        let buffers = Buffers::new(KEPT_BYTES_MAX);
        let first = filled(&buffers, 1, 200_000);
        let (address, slice) = (first.as_ptr(), first.slice(5..10));
        drop(first);
        assert_ne!(filled(&buffers, 2, 200_000).as_ptr(), address, "a slice of it is in use");
        drop(slice);
        buffers.kept.lock().unwrap().buffers.retain(|buffer| buffer.as_ptr() == address);
        let again = filled(&buffers, 3, 150_000);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again, vec![3; 150_000]);
    }

    #[test]
    fn what_is_kept_is_bounded_and_can_be_given_back() {
        let buffers = Buffers::new(KEPT_BYTES_MAX);
        let taken: Vec<Bytes> = (0..40).map(|_| filled(&buffers, 1, 1 << 20)).collect();
        drop(taken);
        assert_eq!(buffers.kept.lock().unwrap().bytes, KEPT_BYTES_MAX);
        filled(&buffers, 1, 1000);
        assert_eq!(buffers.kept.lock().unwrap().buffers.len(), 24);
        buffers.clear();
        assert_eq!(buffers.kept.lock().unwrap().bytes, 0);
    }
}
