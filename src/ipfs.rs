//! The seam to the network: what the rest asks of IPFS, whoever does it.

use async_trait::async_trait;
use cid::Cid;

use crate::ipld::Block;
use crate::ipld::ipns::{IpnsName, IpnsRecord};

/// A block that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    pub cid: Cid,
    /// The root of the DAG that the block belongs to. Peers that had one block of it are asked first for the next,
    /// and when none of them has it, providers of this root are looked for.
    pub root: Cid,
}

/// Why the network gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum IpfsError {
    /// Everybody who could be asked within the budget said no, or nothing.
    #[error("no peer has block {0}")]
    NoProvider(Box<Cid>),
    /// The DHT was asked and holds no valid record.
    #[error("the network knows no record for {0}")]
    NoRecord(Box<IpnsName>),
    /// No peer to ask: the answer is unknown, not "no".
    #[error("no peer is connected to ask for {0}")]
    NoPeers(String),
    #[error("{0} was not answered within {1} s")]
    Timeout(String, u64),
    #[error("only {stored} peers took the record of {name}: {wanted} are needed")]
    Publish { name: Box<IpnsName>, stored: usize, wanted: usize },
    #[error("the node is shutting down")]
    Closed,
}

/// The IPFS network as the mirror needs it: the embedded node, or a Kubo daemon.
///
/// Every future may be dropped midway: the want, the look-up or the publication is then withdrawn.
#[async_trait]
pub trait Ipfs: Send + Sync + 'static {
    /// Fetches a block from peers, first from those that had its root. The result is verified and not yet stored.
    /// Ends with [`IpfsError::NoProvider`] or [`IpfsError::Timeout`] within a minute.
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError>;
    /// Makes these roots findable: the node announces them in the background, at a bounded rate, and again before
    /// the announcements expire. Returns when they are queued.
    async fn provide(&self, roots: &[Cid]) -> Result<(), IpfsError>;
    /// The newest valid record that the network knows; [`IpfsError::NoRecord`] only if somebody was asked.
    async fn resolve(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError>;
    /// Puts a record, ours or one that we keep alive; returns when enough peers hold it.
    async fn publish(&self, record: &IpnsRecord) -> Result<(), IpfsError>;
}

/// No network at all: for what must never be asked for anywhere.
pub struct Nowhere;

#[async_trait]
impl Ipfs for Nowhere {
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        Err(IpfsError::NoProvider(Box::new(want.cid)))
    }

    async fn provide(&self, _: &[Cid]) -> Result<(), IpfsError> {
        Ok(())
    }

    async fn resolve(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        Err(IpfsError::NoRecord(Box::new(*name)))
    }

    async fn publish(&self, record: &IpnsRecord) -> Result<(), IpfsError> {
        Err(IpfsError::NoPeers(record.name().to_string()))
    }
}
