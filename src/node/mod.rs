//! The embedded libp2p node, as an [`Ipfs`](crate::ipfs::Ipfs). Knows blocks and names, nothing of images.
//!
//! The event loop owns the swarm; [`NodeClient`] sends it commands and is what the rest sees. Bitswap runs beside it on
//! streams that the swarm hands over.

mod behaviour;
pub mod bitswap;
mod client;
mod event_loop;
mod peers;
mod providers;
mod providing;
mod queries;
mod routing;
pub mod streams;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, TcpListener};
use std::time::Duration;

use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, TransportError};
use tokio::sync::{broadcast, mpsc, watch};

use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::store::{Store, StoreError, off_thread};
use crate::tasks::Tasks;
use bitswap::{BitswapLimits, Exchange};
pub use client::{NodeClient, NodeStats};
use event_loop::EventLoop;

/// Commands that may wait for the event loop.
const COMMANDS_QUEUED_MAX: usize = 1024;
/// Inbound streams that may wait for Bitswap.
const STREAMS_QUEUED_MAX: usize = 256;
/// Searches for providers that may wait.
const SEARCHES_QUEUED_MAX: usize = 256;
/// Records that a slow reader of [`NodeClient::record_updates`] may be behind.
const UPDATES_QUEUED_MAX: usize = 64;
/// How long the listeners may take to say where they listen.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node is started with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where to listen; port 0 takes a free one. Empty: nowhere.
    pub listen: Vec<Multiaddr>,
    /// Further addresses to be told to others.
    pub announce: Vec<Multiaddr>,
    /// Who is dialled first, and again when lost.
    pub bootstrap: Vec<Multiaddr>,
    /// Who is always kept connected.
    pub peers: Vec<Multiaddr>,
    /// Names whose records are reported when peers put them to us.
    pub followed: Vec<IpnsName>,
    /// What identify tells of the program.
    pub agent: String,
    /// Connections that others may open.
    pub connections_max: u32,
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(
        "cannot listen on {address}: {reason}; a TCP or QUIC address with a free port is expected, or port 0"
    )]
    Listen { address: Multiaddr, reason: String },
    #[error("no listener said within {} s where it listens", LISTEN_TIMEOUT.as_secs())]
    ListenTimeout,
    #[error("{0} has no /p2p/<peer id> at its end")]
    NoPeerId(Multiaddr),
    #[error("the transport cannot be set up: {0}")]
    Transport(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Starts a node; returns when its listeners are bound.
pub async fn start(
    tasks: &Tasks,
    store: &Store,
    keypair: Keypair,
    config: NodeConfig,
) -> Result<NodeClient, NodeError> {
    let peer_id = keypair.public().to_peer_id();
    let (incoming, streams) = mpsc::channel(STREAMS_QUEUED_MAX);
    let (streams_behaviour, control) = streams::Behaviour::new(bitswap::protocols(), incoming);
    let mut swarm = behaviour::build(keypair, streams_behaviour, &config)?;
    let listeners = config
        .listen
        .iter()
        .map(|address| {
            let free = require_free_port(address).map_err(TransportError::Other);
            let listening = free.and_then(|()| swarm.listen_on(address.clone()));
            listening
                .map_err(|error| NodeError::Listen { address: address.clone(), reason: innermost(&error) })
        })
        .collect::<Result<Vec<_>, _>>()?;

    let known = {
        let state = store.state().clone();
        off_thread(move || state.peers()).await?
    };
    let book = peers::Book::new(peer_id, &config.bootstrap, &config.peers, &known)?;
    let (find, searches) = mpsc::channel(SEARCHES_QUEUED_MAX);
    let limits = BitswapLimits::default();
    let exchange = Exchange::start(tasks, store.blocks().clone(), control.clone(), streams, find, limits);
    let (commands, inbox) = mpsc::channel(COMMANDS_QUEUED_MAX);
    let (updates, _) = broadcast::channel::<IpnsRecord>(UPDATES_QUEUED_MAX);
    let view = watch::Sender::new(client::View {
        crowd: client::Crowd { expecting: true, ..Default::default() },
        ..Default::default()
    });
    let node = NodeClient::new(peer_id, commands, exchange.clone(), view.subscribe(), updates.clone());
    let event_loop =
        EventLoop::new(swarm, control, exchange, book, store.state().clone(), config, updates, view, tasks);
    tasks.spawn("swarm", |stop| event_loop.run(inbox, searches, stop));
    tokio::time::timeout(LISTEN_TIMEOUT, node.listening(listeners.len()))
        .await
        .map_err(|_| NodeError::ListenTimeout)?;
    Ok(node)
}

/// The listeners of libp2p let others of the same user share a TCP port, since dials leave from it too. Two daemons on one
/// port would each get some of the connections meant for the other.
fn require_free_port(address: &Multiaddr) -> std::io::Result<()> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => TcpListener::bind((ip, port)).map(drop),
        _ => Ok(()),
    }
}

/// What an error began with: each transport that libp2p tried repeats the text of the one below it.
fn innermost(error: &dyn std::error::Error) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.last().map(ToString::to_string).unwrap_or_default()
}
