//! How far a fill is, as its readers see it.

use std::sync::Arc;

use super::super::{MirrorError, Origin};
use crate::ipfs::Peer;

/// A blob up to this size is given to nobody before its digest matched: it takes no time, and who was given nothing can go
/// elsewhere, whereas a wrong beginning is found out only at the end. Configs are all below it.
pub(super) const SMALL_BYTES_MAX: u64 = 256 * 1024;

/// How far a fill is.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) size_bytes: Option<u64>,
    pub(super) received_bytes: u64,
    /// Where the bytes come from now.
    pub(super) from: Option<Origin>,
    /// The peers that they come by, the nearest first.
    pub(super) path: Arc<[Peer]>,
    /// Up to where their source had the blob when it was opened: `0` if it is upstream. `None`: it is not known.
    pub(super) source_held_bytes: Option<u64>,
    /// Some came from a peer.
    pub(super) by_peer: bool,
    /// Some came since the fill was begun, or taken up again.
    pub(super) flows: bool,
    /// How often what had come was thrown away.
    pub(super) generation: u32,
    pub(super) stage: Stage,
}

#[derive(Clone, Debug)]
pub(super) enum Stage {
    Running,
    /// The digest matched: readers may end.
    Verified,
    /// On disk, and in the tree of the cache.
    Committed,
    /// Nobody has it.
    Absent,
    Failed(Arc<MirrorError>),
}

impl State {
    /// Up to where the blob comes as fast as it can be read here, or at the peer that it comes by.
    pub(super) fn held_bytes(&self) -> Option<u64> {
        self.source_held_bytes.map(|held| held.max(self.received_bytes))
    }

    /// What readers may have: not the last byte before the digest matched, nor any of a small blob.
    pub(super) fn readable_bytes(&self) -> u64 {
        match (&self.stage, self.size_bytes) {
            (Stage::Verified | Stage::Committed, _) => self.received_bytes,
            (_, Some(..=SMALL_BYTES_MAX)) => 0,
            (_, Some(size_bytes)) => self.received_bytes.min(size_bytes.saturating_sub(1)),
            (_, None) => 0,
        }
    }
}
