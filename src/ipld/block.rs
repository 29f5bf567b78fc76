//! Blocks: bytes with the CID that names them.

use bytes::Bytes;
use cid::Cid;
use multihash_codetable::{Code, MultihashDigest};

/// The multihash of a CID: the key of a block, whatever its codec and CID version.
pub type Multihash = multihash::Multihash<64>;

/// The largest block taken from anywhere, in bytes: Bitswap's limit, and Kubo's.
pub const BLOCK_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The codec of leaves without structure.
pub const RAW: u64 = 0x55;
/// The codec of UnixFS nodes.
pub const DAG_PB: u64 = 0x70;
/// The hash function whose "hash" is the content.
pub const IDENTITY: u64 = 0x00;

/// Why bytes are not the block of a CID.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BlockError {
    #[error("block {cid} has {size_bytes} bytes: at most {BLOCK_BYTES_MAX} are allowed")]
    TooLarge { cid: Box<Cid>, size_bytes: usize },
    #[error("the bytes received for block {0} do not match its hash")]
    Mismatch(Box<Cid>),
    #[error(
        "block {cid} is named by hash function {code:#x}, which is not supported: sha2-256, sha2-512 and identity are"
    )]
    UnknownHash { cid: Box<Cid>, code: u64 },
}

/// Bytes proven to match their [`Cid`], at most [`BLOCK_BYTES_MAX`] long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    cid: Cid,
    bytes: Bytes,
}

impl Block {
    /// Hashes `bytes` and compares: the way in for whatever comes from outside.
    pub fn verify(cid: Cid, bytes: Bytes) -> Result<Self, BlockError> {
        if bytes.len() > BLOCK_BYTES_MAX {
            return Err(BlockError::TooLarge { cid: Box::new(cid), size_bytes: bytes.len() });
        }
        let code = cid.hash().code();
        let matches = match Code::try_from(code) {
            Ok(hasher @ (Code::Sha2_256 | Code::Sha2_512)) => hasher.digest(&bytes) == *cid.hash(),
            _ if code == IDENTITY => cid.hash().digest() == bytes,
            _ => return Err(BlockError::UnknownHash { cid: Box::new(cid), code }),
        };
        if matches { Ok(Self { cid, bytes }) } else { Err(BlockError::Mismatch(Box::new(cid))) }
    }

    /// The block that an identity CID carries in itself; `None` for every other CID.
    pub fn inline(cid: &Cid) -> Option<Self> {
        (cid.hash().code() == IDENTITY)
            .then(|| Self { cid: *cid, bytes: Bytes::copy_from_slice(cid.hash().digest()) })
    }

    /// The block that a CID tells without anybody being asked: the one that it carries in itself, or the one of no bytes.
    /// Kubo never answers a want for the latter.
    pub fn known(cid: &Cid) -> Option<Self> {
        Self::inline(cid).or_else(|| Self::verify(*cid, Bytes::new()).ok())
    }

    /// Names `bytes` by CIDv1, sha2-256 and `codec`.
    pub fn encode(codec: u64, bytes: Bytes) -> Self {
        Self { cid: Cid::new_v1(codec, Code::Sha2_256.digest(&bytes)), bytes }
    }

    /// Bytes whose CID was computed from them a moment ago, by a crate of the formats.
    pub(super) fn built(cid: Cid, bytes: Bytes) -> Self {
        Self { cid, bytes }
    }

    /// What the store gives back: its records were verified on the way in and carry a checksum.
    pub fn from_store(cid: Cid, bytes: Bytes) -> Self {
        Self { cid, bytes }
    }

    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// Reads whatever bytes as a CID with its block behind it: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let mut rest = bytes;
    if let Ok(cid) = Cid::read_bytes(&mut rest) {
        let inline = Block::inline(&cid);
        assert!(inline.is_none_or(|block| Block::verify(cid, block.bytes.clone()).is_ok_and(|again| again == block)));
        if let Ok(block) = Block::verify(cid, Bytes::copy_from_slice(rest)) {
            assert!(block.bytes.len() <= BLOCK_BYTES_MAX && block.cid == cid);
        }
    }
    let raw = Block::encode(RAW, Bytes::copy_from_slice(bytes));
    assert!(Block::verify(raw.cid, raw.bytes).is_ok());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_matching_bytes_become_a_block() {
        let block = Block::encode(RAW, Bytes::from_static(b"hello"));
        assert_eq!(Block::verify(*block.cid(), block.bytes().clone()).unwrap(), block);
        let forged = Block::verify(*block.cid(), Bytes::from_static(b"hullo"));
        assert_eq!(forged, Err(BlockError::Mismatch(Box::new(*block.cid()))));
    }

    #[test]
    fn an_identity_cid_carries_its_block() {
        let cid = Cid::new_v1(RAW, Multihash::wrap(IDENTITY, b"tiny").unwrap());
        let block = Block::inline(&cid).unwrap();
        assert_eq!(block.bytes().as_ref(), b"tiny");
        assert!(Block::verify(cid, Bytes::from_static(b"tiny")).is_ok());
        assert!(Block::verify(cid, Bytes::from_static(b"tinY")).is_err());
    }

    #[test]
    fn the_block_of_no_bytes_is_known_by_its_cid() {
        for codec in [RAW, DAG_PB] {
            let empty = Block::encode(codec, Bytes::new());
            assert_eq!(Block::known(empty.cid()).unwrap(), empty);
        }
        assert_eq!(Block::known(Block::encode(RAW, Bytes::from_static(b"x")).cid()), None);
        let strange = Cid::new_v1(RAW, Multihash::wrap(0x13_37, &[1; 32]).unwrap());
        assert_eq!(Block::known(&strange), None);
    }

    #[test]
    fn oversized_blocks_are_refused_before_hashing() {
        let cid = *Block::encode(RAW, Bytes::new()).cid();
        let error = Block::verify(cid, Bytes::from(vec![0; BLOCK_BYTES_MAX + 1])).unwrap_err();
        assert!(matches!(error, BlockError::TooLarge { .. }));
    }

    #[test]
    fn hash_functions_that_are_not_known_are_named() {
        let cid = Cid::new_v1(RAW, Multihash::wrap(0x13_37, &[1; 32]).unwrap());
        let error = Block::verify(cid, Bytes::new()).unwrap_err();
        assert!(matches!(error, BlockError::UnknownHash { code: 0x13_37, .. }));
        assert!(error.to_string().contains("0x1337"), "{error}");
    }

    #[test]
    fn a_digest_that_is_cut_short_matches_nothing() {
        let whole = Block::encode(RAW, Bytes::from_static(b"hello"));
        for length in [0, 1, 20, 31] {
            let digest = &whole.cid().hash().digest()[..length];
            let cid = Cid::new_v1(RAW, Multihash::wrap(0x12, digest).unwrap());
            assert_eq!(Block::verify(cid, whole.bytes().clone()), Err(BlockError::Mismatch(Box::new(cid))));
        }
    }

    proptest! {
        #[test]
        fn strange_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&bytes);
        }

        #[test]
        fn damaged_cids_do_no_harm(
            code in prop::sample::select(&[IDENTITY, 0x12, 0x13][..]),
            digest in proptest::collection::vec(any::<u8>(), 0..=64),
            rest in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let cid = Cid::new_v1(RAW, Multihash::wrap(code, &digest).unwrap());
            fuzz(&[cid.to_bytes(), rest].concat());
        }
    }
}
