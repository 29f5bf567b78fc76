//! Bitswap, client and server: blocks for wants.
//!
//! The decisions are state machines without I/O or clock: `session` (whom to ask for what) and
//! `ledger` (what peers want of us). `message` is the wire format. [`exchange`] owns
//! the state; `receive` and `send` are the tasks that move it over streams.

pub mod exchange;
pub mod ledger;
pub mod message;
mod receive;
mod send;
mod session;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use exchange::{Exchange, FindProviders, protocols};

/// The bounds of an exchange. Those of single peers and sessions stand beside the rules that use them.
#[derive(Clone, Debug)]
pub struct BitswapLimits {
    /// Fetches under way; more wait.
    pub fetches_max: usize,
    /// Inbound streams of one peer; more are reset.
    pub streams_per_peer_max: usize,
    /// Bytes of messages that were read, or are being read, and whose blocks are not verified yet.
    pub receive_bytes_max: usize,
    pub receive_bytes_per_peer_max: usize,
    /// Messages that are loaded or being written at a time, for all peers; two at most for one peer.
    pub batches_max: usize,
    /// A message to a peer gets no further block when its blocks have reached this size.
    pub batch_bytes: usize,
    /// How long a peer may take no byte, or leave a message unfinished without sending one.
    pub stall_timeout: Duration,
    /// How long a message may take to arrive in full.
    pub message_timeout: Duration,
}

impl Default for BitswapLimits {
    fn default() -> Self {
        Self {
            fetches_max: 1024,
            streams_per_peer_max: 64,
            receive_bytes_max: 64 << 20,
            receive_bytes_per_peer_max: 12 << 20,
            batches_max: 48,
            batch_bytes: 1 << 20,
            stall_timeout: Duration::from_secs(30),
            message_timeout: Duration::from_secs(120),
        }
    }
}

/// What an exchange has done so far, and what it is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitswapStats {
    /// Connected peers that were not found to lack the protocol.
    pub peers: usize,
    /// Distinct blocks that we wait for.
    pub wants: usize,
    /// Wants of peers that are noted here.
    pub wants_of_peers: usize,
    /// Callers that wait for a block.
    pub fetches: usize,
    pub blocks_sent: u64,
    pub bytes_sent: u64,
    /// Blocks that somebody waited for.
    pub blocks_received: u64,
    pub bytes_received: u64,
    /// Bytes of blocks that nobody waited for any more, or ever.
    pub bytes_wasted: u64,
}
