//! The seam to the network: what the rest asks of IPFS, whoever does it.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use futures::StreamExt;
use futures::stream::BoxStream;
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::{Block, Multihash};

/// A block that somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Want {
    pub cid: Cid,
    /// The root of the DAG that the block belongs to. Peers that had one block of it are asked first for the next,
    /// and when none of them has it, providers of this root are looked for.
    pub root: Cid,
}

/// Another node, by its peer id in base58. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer(Arc<str>);

impl Peer {
    pub fn new(base58: &str) -> Self {
        Self(base58.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The body of a peer's answer. An error means that it broke off.
pub type PeerBody = BoxStream<'static, Result<Bytes, IpfsError>>;

/// Both directions of a stream.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A stream that a peer opened to speak HTTP/1.1 on. Dropping it resets the stream.
pub struct PeerStream {
    pub peer: Peer,
    pub trust: Trust,
    pub io: Box<dyn Duplex>,
}

/// The streams that peers open, as they come; ends with the node.
pub type PeerStreams = BoxStream<'static, PeerStream>;

/// Whether a peer may have what was pulled through: it changes while a stream of the peer is open.
#[derive(Clone)]
pub struct Trust {
    peer: Peer,
    trusted: watch::Receiver<Arc<HashSet<Peer>>>,
}

impl Trust {
    /// `trusted`: the connected peers that are trusted at any time.
    pub fn new(peer: Peer, trusted: watch::Receiver<Arc<HashSet<Peer>>>) -> Self {
        Self { peer, trusted }
    }

    /// Whether the peer is trusted at this moment.
    pub fn holds(&self) -> bool {
        self.trusted.borrow().contains(&self.peer)
    }
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
    #[error("peer {0} is not connected")]
    NotConnected(Peer),
    #[error("peer {0} does not speak HTTP on streams")]
    NoHttp(Peer),
    #[error("too many requests to peer {0} are under way")]
    Busy(Peer),
    /// The stream broke off, or what came was no HTTP.
    #[error("the request to peer {peer} failed")]
    Request {
        peer: Peer,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A delegated router or a gateway that may have it gave no answer: whether it exists is unknown.
    #[error("{0} is not found, but not everybody could be asked: {1}")]
    NotAsked(String, String),
    #[error("the node is shutting down")]
    Closed,
    /// The daemon that is the network for us is not there, or does not let us in: nobody was asked.
    #[error("{0}")]
    Away(String),
    /// It refused, or what it gave was wrong.
    #[error("{0}")]
    Refused(String),
    #[error("the key of {0} is nowhere where it could sign")]
    NoKey(Box<IpnsName>),
}

impl IpfsError {
    /// Whether nobody was there to be asked.
    pub fn is_nobody_there(&self) -> bool {
        matches!(self, Self::NoPeers(_) | Self::Away(_))
    }
}

/// What every label begins with by which something is kept.
pub const LABEL_PREFIX: &str = "shoal ";

/// What a name is to be signed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signing {
    pub name: IpnsName,
    pub root: Cid,
    pub sequence: u64,
    /// The highest sequence of a record of this name that was seen, if any was: below `sequence`. Where the signer counts by
    /// itself, this is what must be exceeded, but by a record for the same root that lives longer.
    pub seen: Option<u64>,
    /// From now to the end of the record's life.
    pub validity: Duration,
    /// How long readers may cache it.
    pub ttl: Duration,
}

/// The IPFS network as the mirror needs it: the embedded node, or a Kubo daemon.
///
/// Every future may be dropped midway: the want, the look-up or the publication is then withdrawn.
#[async_trait]
pub trait Ipfs: Send + Sync + 'static {
    /// Fetches a block from peers, first from those that had its root. The result is verified and not yet stored.
    /// Ends with [`IpfsError::NoProvider`] or [`IpfsError::Timeout`] within a minute, and a quarter more where gateways are
    /// asked. What the CID alone tells, as [`Block::known`] has it, is told at once, and nobody is asked.
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError>;
    /// Makes these roots findable: the node announces them in the background, at a bounded rate, and again before
    /// the announcements expire. Returns when they are queued.
    async fn provide(&self, roots: &[Cid]) -> Result<(), IpfsError>;
    /// The same for blobs by their digests, which the node serves over HTTP and which need not be the hash of any block. A
    /// Kubo announces blocks alone: there it does nothing.
    async fn provide_digests(&self, _digests: &[Multihash]) -> Result<(), IpfsError> {
        Ok(())
    }
    /// The newest valid record that the network knows; [`IpfsError::NoRecord`] only if somebody was asked.
    async fn resolve(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError>;
    /// Puts a record, ours or one that we keep alive; returns when enough peers hold it.
    async fn publish(&self, record: &IpnsRecord) -> Result<(), IpfsError>;
    /// Has records of this name told of that peers put to us, from now on. What does not know of it tells of none.
    async fn follow(&self, _name: &IpnsName) {}
    /// Has whoever is the network sign with a key that it holds, and put the record, which it returns.
    /// [`IpfsError::NoKey`]: it holds no such key; the node never does.
    async fn sign(&self, signing: &Signing) -> Result<IpnsRecord, IpfsError> {
        Err(IpfsError::NoKey(Box::new(signing.name)))
    }
    /// Returns when all that is here of the DAG below `root` outlasts this daemon, under a label for people, which begins with
    /// [`LABEL_PREFIX`]: a Kubo is sent what it lacks and is here, and pins it. To the node there is nothing to do, since it
    /// serves what is here.
    async fn keep(&self, _label: &str, _root: &Cid) -> Result<(), IpfsError> {
        Ok(())
    }
    /// Keeps under this label no longer what is not in `but`.
    async fn let_go(&self, _label: &str, _but: &[Cid]) -> Result<(), IpfsError> {
        Ok(())
    }
    /// Keeps no longer what this daemon had kept under labels that begin with `kind` and are not among `labels`.
    async fn let_go_rest(&self, _kind: &str, _labels: &BTreeSet<String>) -> Result<(), IpfsError> {
        Ok(())
    }
    /// The peers that share pulled-through images with us: trusted, connected, and daemons like this one. Sorted. The
    /// value changes as they come and go.
    fn mesh(&self) -> watch::Receiver<Arc<[Peer]>>;
    /// Looks for peers that are said to have a blob of this digest. They come as they are found and connected to, and may
    /// be asked by [`Ipfs::request`]; ends with the look-up, within half a minute. A Kubo lets us ask nobody: none.
    fn find_digest(&self, _digest: &Multihash) -> BoxStream<'static, Peer> {
        futures::stream::empty().boxed()
    }
    /// Sends a request to a connected peer, in the mesh or not, and returns with the head of its answer, within half a
    /// minute. The URI is a path with its query; a missing `Host` is filled in. Dropping the future or the body resets
    /// the stream. Never dials.
    async fn request(&self, peer: &Peer, request: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError>;
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

    fn mesh(&self) -> watch::Receiver<Arc<[Peer]>> {
        watch::Sender::default().subscribe()
    }

    async fn request(&self, peer: &Peer, _: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError> {
        Err(IpfsError::NotConnected(peer.clone()))
    }
}
