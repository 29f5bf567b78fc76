//! The form of a record in a pack. Pure.
//!
//! ```text
//! magic 4 | kind 1 | key length 1 | zero 2 | body length 4 | crc of the body 4 | crc of all before and the key 4 | key | body
//! ```
//!
//! Numbers are little-endian. The kind is not covered by a checksum: a block that is removed has its kind overwritten in
//! place, so that it stays removed when the index is rebuilt.

use crate::ipld::Multihash;
use crate::ipld::block::BLOCK_BYTES_MAX;

/// What a record begins with.
pub(super) const MAGIC: [u8; 4] = *b"shB1";
/// Bytes before the key.
pub(super) const HEADER_BYTES: usize = 20;
/// Where the kind stands.
pub(super) const KIND_AT: u64 = 4;
/// The longest key: two varints and 64 bytes.
pub(super) const KEY_BYTES_MAX: usize = 84;

/// Whether a record counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Live = 1,
    Removed = 2,
}

/// What stands before a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) key: Multihash,
    pub(super) body_bytes: u32,
    pub(super) body_crc: u32,
}

impl Header {
    /// The header and key, as they are written.
    pub(super) fn encode(&self) -> Vec<u8> {
        let key = self.key.to_bytes();
        let mut bytes = Vec::with_capacity(HEADER_BYTES + key.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.push(self.kind as u8);
        bytes.push(u8::try_from(key.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&self.body_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.body_crc.to_le_bytes());
        bytes.extend_from_slice(&checksum(&bytes, &key).to_le_bytes());
        bytes.extend_from_slice(&key);
        bytes
    }

    /// Reads a header and its key from the begin of `bytes`; `None`: no record begins here.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_BYTES)?;
        let key_bytes = usize::from(header[5]);
        if header[..4] != MAGIC || key_bytes > KEY_BYTES_MAX {
            return None;
        }
        let key = bytes.get(HEADER_BYTES..HEADER_BYTES + key_bytes)?;
        let number = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or_default();
        if number(16) != checksum(&header[..16], key) || number(8) as usize > BLOCK_BYTES_MAX {
            return None;
        }
        let kind = match header[4] {
            1 => Kind::Live,
            2 => Kind::Removed,
            _ => return None,
        };
        Some(Self {
            kind,
            key: Multihash::from_bytes(key).ok()?,
            body_bytes: number(8),
            body_crc: number(12),
        })
    }

    /// Bytes of the header and key.
    pub(super) fn header_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.key.to_bytes().len() as u64
    }

    /// Bytes of the whole record.
    pub(super) fn record_bytes(&self) -> u64 {
        self.header_bytes() + u64::from(self.body_bytes)
    }
}

/// Of a header without its kind and its own checksum, and of the key.
fn checksum(header: &[u8], key: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..4]);
    hasher.update(&header[5..16]);
    hasher.update(key);
    hasher.finalize()
}

/// Reads whatever bytes as a header: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Some(header) = Header::decode(bytes) {
        assert!(header.body_bytes as usize <= BLOCK_BYTES_MAX);
        let written = header.encode();
        assert_eq!(written.len() as u64, header.header_bytes());
        assert_eq!(Header::decode(&written), Some(header));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        let key = Multihash::wrap(0x12, &[7; 32]).unwrap();
        Header { kind: Kind::Live, key, body_bytes: 5, body_crc: 99 }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        assert_eq!(Header::decode(&header().encode()), Some(header()));
        let mut removed = header().encode();
        removed[4] = Kind::Removed as u8;
        assert_eq!(Header::decode(&removed).unwrap().kind, Kind::Removed);
    }

    proptest! {
        #[test]
        fn a_damaged_header_is_none(at in 0..20_usize + 34, bit in 0..8_u8) {
            let mut bytes = header().encode();
            bytes[at] ^= 1 << bit;
            let read = Header::decode(&bytes);
            prop_assert!(read.is_none() || read.unwrap().kind == Kind::Removed);
            fuzz(&bytes);
        }

        #[test]
        fn a_header_with_a_right_checksum_does_no_harm(
            key in proptest::collection::vec(any::<u8>(), 0..90),
            kind in 0..4_u8,
            numbers in any::<[u8; 10]>(),
        ) {
            let mut bytes = [&MAGIC[..], &[kind, u8::try_from(key.len()).unwrap()], &numbers].concat();
            bytes.extend_from_slice(&checksum(&bytes, &key).to_le_bytes());
            fuzz(&[bytes, key].concat());
        }

        #[test]
        fn junk_is_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Header::decode(&bytes).is_none());
            fuzz(&bytes);
        }
    }
}
