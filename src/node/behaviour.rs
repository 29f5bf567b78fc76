//! The protocols we speak and their limits.

use std::num::NonZeroUsize;
use std::time::Duration;

use futures::io::BufWriter;
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::kad::{self, StoreInserts};
use libp2p::pnet::PnetConfig;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    PeerId, StreamProtocol, Swarm, SwarmBuilder, Transport, dcutr, identify, mdns, memory_connection_limits,
    noise, ping, relay,
};

use super::admission::{Admission, Named, Places};
use super::connections::Peers;
use super::filters::{Filtered, Filters};
use super::head_start::{Paced, QuicDials};
use super::multiplexer::Multiplexer;
use super::nat::autonat;
use super::nat::gateway::Gateway;
use super::nat::guests::Guests;
use super::peers::peer_of;
use super::routing::Dht;
use super::security::Security;
use super::sockets::Sockets;
use super::{NodeConfig, NodeError, SwarmKey, nat, providers, pubsub, quic, streams};
use crate::ipld::ipns::IpnsName;

/// Records of others, each at most 10 KiB, and room for our own.
pub(super) const RECORDS_MAX: usize = 4096;
/// Keys that we provide; those of others have room of their own.
pub(super) const PROVIDED_KEYS_MAX: usize = 131_072;
/// Lookups that a query has under way at once; Kubo has as many.
const PARALLELISM: NonZeroUsize = NonZeroUsize::new(10).expect("ten is not zero");
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// A connection without streams is closed after this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// With more memory in use than this the node takes and makes no further connections. Far above what transfers need.
const MEMORY_BYTES_MAX: usize = 768 << 20;
/// What waits for a socket of a private network.
const PRIVATE_BUFFER_BYTES: usize = 64 * 1024;
const CONNECTIONS_PER_PEER_MAX: u32 = 8;
/// Connections that we have opened.
const CONNECTIONS_OUTGOING_MAX: u32 = 1024;

/// The limits come first: what they refuse is not known to the others.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) memory: memory_connection_limits::Behaviour,
    /// The last of them: for whom it makes room nobody else refuses.
    pub(super) admission: Admission,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) wan: kad::Behaviour<MemoryStore>,
    pub(super) lan: kad::Behaviour<MemoryStore>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) gossip: Toggle<pubsub::Gossip>,
    pub(super) streams: streams::Behaviour,
    pub(super) autonat_server: Toggle<autonat::Server>,
    pub(super) relay_client: relay::client::Behaviour,
    pub(super) relay: Toggle<relay::Behaviour>,
    pub(super) dcutr: Toggle<dcutr::Behaviour>,
    pub(super) upnp: Toggle<Gateway>,
}

impl Behaviour {
    pub(super) fn kad(&mut self, dht: Dht) -> &mut kad::Behaviour<MemoryStore> {
        match dht {
            Dht::Wan => &mut self.wan,
            Dht::Lan => &mut self.lan,
        }
    }
}

/// `topics`: the names whose records are said by gossip.
pub(super) fn build(
    keypair: Keypair,
    streams: streams::Behaviour,
    connections: Peers,
    guests: &Guests,
    config: &NodeConfig,
    topics: &[IpnsName],
) -> Result<Swarm<Behaviour>, NodeError> {
    let peer_id = keypair.public().to_peer_id();
    let identify = identify::Config::new("ipfs/0.1.0".to_owned(), keypair.public())
        .with_agent_version(config.agent.clone())
        .with_push_listen_addr_updates(true)
        // What is to be told is among the external ones.
        .with_hide_listen_addrs(true);
    let limits = ConnectionLimits::default().with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX));
    let gossip = config.pubsub.then(|| pubsub::build(&keypair, topics)).transpose()?;
    let mut limits = connection_limits::Behaviour::new(limits);
    // Nobody else can take the place of those whom the config names.
    config.peers.iter().filter_map(peer_of).for_each(|peer| limits.bypass_peer_id(&peer));
    let named = Named {
        peers: config.peers.iter().filter_map(peer_of).collect(),
        dialled: config.relays.iter().chain(&config.bootstrap).filter_map(peer_of).collect(),
    };
    let places = Places { incoming_max: config.connections_max, outgoing_max: CONNECTIONS_OUTGOING_MAX };
    let nat = config.nat;
    let behaviour = |relay_client| Behaviour {
        limits,
        memory: memory_connection_limits::Behaviour::with_max_bytes(MEMORY_BYTES_MAX),
        admission: Admission::new(places, connections, named),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::default(),
        wan: kademlia(peer_id, Dht::Wan),
        lan: kademlia(peer_id, Dht::Lan),
        mdns: config.mdns.then(|| local_discovery(peer_id)).flatten().into(),
        gossip: gossip.into(),
        streams,
        autonat_server: nat.then(autonat::Server::default).into(),
        relay_client,
        relay: config.relay.then(|| relay::Behaviour::new(peer_id, nat::relay_config(guests))).into(),
        dcutr: nat.then(|| dcutr::Behaviour::new(peer_id)).into(),
        upnp: config.upnp.then(Gateway::default).into(),
    };
    let filters = Filters::new(&config.filters);
    match &config.swarm_key {
        Some(key) => private(keypair, *key, filters, behaviour),
        None => public(keypair, filters, behaviour),
    }
}

fn public(
    keypair: Keypair,
    filters: Filters,
    behaviour: impl FnOnce(relay::client::Behaviour) -> Behaviour,
) -> Result<Swarm<Behaviour>, NodeError> {
    let dials = QuicDials::default();
    Ok(SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|keypair| {
            let sockets = Filtered::new(Sockets::new(), filters.clone());
            let sockets = Paced::tcp(sockets, dials.clone());
            let secured = sockets.upgrade(Version::V1Lazy).authenticate(Security::new(keypair)?);
            Ok(secured.multiplex(Multiplexer::new()))
        })
        .map_err(|error| transport(&error))?
        .with_other_transport(|keypair| Paced::quic(Filtered::new(quic::transport(keypair), filters), dials))
        .map_err(|error| transport(&error))?
        .with_dns()
        .map_err(|error| transport(&error))?
        .with_relay_client(noise::Config::new, Multiplexer::new)
        .map_err(|error| transport(&error))?
        .with_behaviour(|_, relay_client| behaviour(relay_client))
        .map_err(|error| transport(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .build())
}

/// Each connection is encrypted with the key of the network before anything is said. There is no such thing for QUIC.
///
/// What goes through a relay is not encrypted with it once more: each leg of it is.
fn private(
    keypair: Keypair,
    key: SwarmKey,
    filters: Filters,
    behaviour: impl FnOnce(relay::client::Behaviour) -> Behaviour,
) -> Result<Swarm<Behaviour>, NodeError> {
    Ok(SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|keypair| {
            let noise = noise::Config::new(keypair)?;
            let shared = PnetConfig::new(key.0);
            let sockets = Filtered::new(Sockets::new(), filters);
            let private = sockets.and_then(move |socket, _| {
                // What it writes comes in pieces of a kilobyte, each of which would be a call to the system.
                shared.handshake(BufWriter::with_capacity(PRIVATE_BUFFER_BYTES, socket))
            });
            Ok(private.upgrade(Version::V1Lazy).authenticate(noise).multiplex(Multiplexer::new()))
        })
        .map_err(|error| transport(&error))?
        .with_dns()
        .map_err(|error| transport(&error))?
        .with_relay_client(noise::Config::new, Multiplexer::new)
        .map_err(|error| transport(&error))?
        .with_behaviour(|_, relay_client| behaviour(relay_client))
        .map_err(|error| transport(&error))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_TIMEOUT))
        .build())
}

fn transport(error: &dyn std::fmt::Display) -> NodeError {
    NodeError::Transport(error.to_string())
}

/// Whoever has no multicast is not kept from the rest.
fn local_discovery(peer_id: PeerId) -> Option<mdns::tokio::Behaviour> {
    mdns::tokio::Behaviour::new(mdns::Config::default(), peer_id)
        .inspect_err(|error| tracing::warn!(%error, "peers of the local network will not be found"))
        .ok()
}

fn kademlia(peer_id: PeerId, dht: Dht) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(StreamProtocol::new(dht.protocol()));
    config
        .set_parallelism(PARALLELISM)
        .set_query_timeout(QUERY_TIMEOUT)
        // What others put is checked by us before it is stored.
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_caching(kad::Caching::Disabled)
        // Records are signed and put again by who owns or follows them, provider records by `providing`.
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_provider_publication_interval(None);
    let store = MemoryStoreConfig {
        max_records: RECORDS_MAX,
        max_provided_keys: PROVIDED_KEYS_MAX + providers::RECORDS_MAX,
        max_value_bytes: crate::ipld::ipns::RECORD_BYTES_MAX,
        ..MemoryStoreConfig::default()
    };
    let mut kad = kad::Behaviour::with_config(peer_id, MemoryStore::with_config(peer_id, store), config);
    // Private addresses reach us as well as anybody; for public ones it must be known first that they do.
    kad.set_mode(Some(match dht {
        Dht::Wan => kad::Mode::Client,
        Dht::Lan => kad::Mode::Server,
    }));
    kad
}
