//! The embedded libp2p node, as an [`Ipfs`](crate::ipfs::Ipfs). Knows blocks and names, nothing of images.
//!
//! The event loop owns the swarm; [`NodeClient`] sends it commands and is what the rest sees. Bitswap and HTTP run beside
//! it on streams that the swarm hands over.

mod admission;
mod announcing;
mod behaviour;
mod beside;
pub mod bitswap;
mod client;
mod command;
mod connections;
mod delimited;
mod event_loop;
mod filters;
mod head_start;
mod http_streams;
#[cfg(test)]
mod http_tests;
mod mesh;
mod metered;
mod multiplexer;
mod names;
mod nat;
#[cfg(test)]
mod nat_tests;
mod peers;
mod places;
mod providers;
mod providing;
mod pubsub;
mod queries;
mod quic;
mod room;
mod routing;
mod search;
mod security;
mod sockets;
pub mod streams;
mod subnets;
mod swarm_key;
#[cfg(test)]
mod tests;
mod valued;

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpListener};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, Swarm, TransportError};
use tokio::sync::{broadcast, mpsc, watch};

use crate::ipfs::PeerStreams;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::store::{Store, StoreError, off_thread};
use crate::tasks::Tasks;
use crate::web::Web;
use behaviour::Behaviour;
use bitswap::{BitswapLimits, Exchange};
pub use client::{NodeClient, NodeStats};
use event_loop::EventLoop;
use http_streams::HttpStreams;
use mesh::Mesh;
use nat::Nat;
#[doc(hidden)]
pub use nat::fuzz as fuzz_autonat;
use nat::guests::Guests;
pub use nat::{NatStats, Reachability};
use pubsub::Pubsub;
#[doc(hidden)]
pub use pubsub::fuzz as fuzz_fetch;
#[doc(hidden)]
pub use swarm_key::fuzz as fuzz_swarm_key;
pub use swarm_key::{SwarmKey, SwarmKeyError};

/// Commands that may wait for the event loop.
const COMMANDS_QUEUED_MAX: usize = 1024;
/// Inbound streams that may wait for Bitswap, and as many for who serves HTTP.
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
    /// Networks that nothing is dialled in and nobody is let in from.
    pub filters: Vec<IpNet>,
    /// Who is dialled first, and again when lost.
    pub bootstrap: Vec<Multiaddr>,
    /// Who is always kept connected, and trusted with what was pulled through. Without a peer id at its end an address
    /// stands for whoever answers there; a name, for all of its addresses.
    pub peers: Vec<Multiaddr>,
    /// Names whose records are reported when peers put them to us, or say them by gossip.
    pub followed: Vec<IpnsName>,
    /// Whether records of these names are pushed and heard over gossipsub.
    pub pubsub: bool,
    /// What identify tells of the program.
    pub agent: String,
    /// Connections that others may open.
    pub connections_max: u32,
    /// Of the private network that the node is in, if any: all its peers are trusted, and it has no QUIC.
    pub swarm_key: Option<SwarmKey>,
    /// Whether peers of the local network are found by mDNS, and told of this one.
    pub mdns: bool,
    /// Whether others test if we are reached, and relays and hole punching help where we are not.
    pub nat: bool,
    /// Whether the gateway of the local network is asked for a port.
    pub upnp: bool,
    /// Whether we are a relay for others.
    pub relay: bool,
    /// Relays that are asked first, each with its peer id; they are kept connected.
    pub relays: Vec<Multiaddr>,
}

impl NodeConfig {
    /// Of a node that listens nowhere, knows nobody and looks for nobody: what it is to do beyond that is added.
    pub fn alone(agent: &str) -> Self {
        Self {
            listen: Vec::new(),
            announce: Vec::new(),
            filters: Vec::new(),
            bootstrap: Vec::new(),
            peers: Vec::new(),
            followed: Vec::new(),
            pubsub: false,
            agent: agent.to_owned(),
            connections_max: 100,
            swarm_key: None,
            mdns: false,
            nat: false,
            upnp: false,
            relay: false,
            relays: Vec::new(),
        }
    }
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
    #[error("pubsub cannot be set up: {0}")]
    Pubsub(String),
    #[error("the transport cannot be set up: {0}")]
    Transport(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Starts a node; returns when its listeners are bound. Whoever serves HTTP to peers takes their streams from the second;
/// dropping it resets them.
pub async fn start(
    tasks: &Tasks,
    store: &Store,
    keypair: Keypair,
    config: NodeConfig,
) -> Result<(NodeClient, PeerStreams), NodeError> {
    start_with(tasks, store, keypair, config, None).await
}

/// The same, with delegated routers and gateways that are asked beside the peers.
pub async fn start_with(
    tasks: &Tasks,
    store: &Store,
    keypair: Keypair,
    config: NodeConfig,
    web: Option<Web>,
) -> Result<(NodeClient, PeerStreams), NodeError> {
    let peer_id = keypair.public().to_peer_id();
    let (bitswap_incoming, streams) = mpsc::channel(STREAMS_QUEUED_MAX);
    let (http_incoming, peer_streams) = mpsc::channel(STREAMS_QUEUED_MAX);
    let (streams_behaviour, control) = streams::Behaviour::new(bitswap::protocols(), bitswap_incoming);
    let mut streams_behaviour =
        streams_behaviour.accepting(vec![http_streams::HTTP, http_streams::MESH], http_incoming);
    let topics = if config.pubsub { Pubsub::names(&config.followed) } else { Vec::new() };
    let pubsub = Pubsub::new(&topics, Instant::now());
    if config.pubsub {
        let (fetch_incoming, asked) = mpsc::channel(STREAMS_QUEUED_MAX);
        streams_behaviour = streams_behaviour.accepting(vec![pubsub::FETCH], fetch_incoming);
        pubsub.serve(tasks, asked);
    }
    let mesh = Mesh::new(&config.peers, config.swarm_key.is_some());
    let guests = Guests::new(mesh.trusted());
    let nat = Nat::new(peer_id, &config, control.clone(), guests.clone());
    if config.nat {
        streams_behaviour = accept_dial_backs(streams_behaviour, tasks, &nat);
    }
    let mut swarm = behaviour::build(keypair, streams_behaviour, control.peers(), &guests, &config, &topics)?;
    listen(&mut swarm, &config.listen)?;

    let state = store.state().clone();
    let known = off_thread(move || state.peers()).await?;
    let dialled: Vec<Multiaddr> = config.bootstrap.iter().chain(&config.relays).cloned().collect();
    let book = peers::Book::new(peer_id, &dialled, &config.peers, &known)?;
    let (find, searches) = mpsc::channel(SEARCHES_QUEUED_MAX);
    let (commands, inbox) = mpsc::channel(COMMANDS_QUEUED_MAX);
    let searches = search::beside(tasks, web.as_ref(), searches, &commands);
    let limits = BitswapLimits::default();
    let exchange = Exchange::start(tasks, store.blocks().clone(), control.clone(), streams, find, limits);
    let (updates, _) = broadcast::channel::<IpnsRecord>(UPDATES_QUEUED_MAX);
    let view = watch::Sender::new(first_view());
    let places = find_places(tasks, &config.peers);
    let http = HttpStreams::new(control.clone());
    let view_of = view.subscribe();
    let node = NodeClient::new(
        peer_id,
        commands,
        exchange.clone(),
        view_of,
        updates.clone(),
        http,
        mesh.members(),
        config.pubsub,
        web.clone(),
    );
    let peer_streams = http_streams::incoming(peer_streams, mesh.trusted());
    let listeners = config.listen.len();
    let event_loop = EventLoop::new(
        swarm,
        control,
        exchange,
        book,
        mesh,
        nat,
        pubsub,
        store.state().clone(),
        config,
        updates,
        view,
        web,
        tasks,
    );
    tasks.spawn("swarm", |stop| event_loop.run(inbox, searches, places, stop));
    tokio::time::timeout(LISTEN_TIMEOUT, node.listening(listeners))
        .await
        .map_err(|_| NodeError::ListenTimeout)?;
    Ok((node, peer_streams))
}

/// Takes what servers bring that test our addresses.
fn accept_dial_backs(streams: streams::Behaviour, tasks: &Tasks, nat: &Nat) -> streams::Behaviour {
    let (dial_backs, incoming) = mpsc::channel(STREAMS_QUEUED_MAX);
    nat.prober.serve(tasks, incoming);
    streams.accepting(vec![nat::probe::DIAL_BACK], dial_backs)
}

/// Until it is known better somebody is expected.
fn first_view() -> client::View {
    let crowd = client::Crowd { expecting: true, ..Default::default() };
    client::View { crowd, ..Default::default() }
}

/// Where trusted peers are whose ids the config does not name.
fn find_places(tasks: &Tasks, peers: &[Multiaddr]) -> watch::Receiver<BTreeSet<Multiaddr>> {
    let (sender, places) = watch::channel(BTreeSet::new());
    let nameless: Vec<_> =
        peers.iter().filter(|address| peers::peer_of(address).is_none()).cloned().collect();
    if !nameless.is_empty() {
        tasks.spawn("names", |stop| names::resolve(nameless, sender, stop));
    }
    places
}

fn listen(swarm: &mut Swarm<Behaviour>, addresses: &[Multiaddr]) -> Result<(), NodeError> {
    for address in addresses {
        let free = require_free_port(address).map_err(TransportError::Other);
        let listening = free.and_then(|()| swarm.listen_on(address.clone()));
        listening
            .map_err(|error| NodeError::Listen { address: address.clone(), reason: innermost(&error) })?;
    }
    Ok(())
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
