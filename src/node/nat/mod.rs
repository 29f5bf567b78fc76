//! The way in for peers when the node is behind a NAT: others test whether it is reached (AutoNAT), relays pass
//! connections on to it while it is not (circuit relay version 2), and such a connection is made direct (DCUtR). Here the
//! event loop's part of it; what it decides by is pure and lies below.

pub(super) mod autonat;
mod candidates;
pub(super) mod gateway;
pub(super) mod guests;
pub(super) mod paths;
pub(super) mod probe;
pub(super) mod reach;
pub(super) mod relays;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{ConnectionId, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate};
use libp2p::{Multiaddr, PeerId, dcutr, identify, kad, relay, upnp};

use tokio::time::timeout;

use super::NodeConfig;
use super::event_loop::EventLoop;
use super::streams::Control;
use candidates::{Verdict, Voice};
use guests::Guests;
use paths::{Counts, Paths};
#[doc(hidden)]
pub use probe::fuzz;
use probe::{DIAL_REQUEST, Probed, Prober};
use reach::Reach;
pub use reach::Reachability;
use relays::Relays;

/// What a relay of ours gives to all others together, and to one peer.
const RESERVATIONS_MAX: usize = 128;
const RESERVATIONS_PER_PEER_MAX: usize = 2;
const CIRCUITS_MAX: usize = 64;
const CIRCUITS_PER_PEER_MAX: usize = 8;
/// Of one circuit, which is there to make a direct connection of it, or for a small image where that cannot be.
const CIRCUIT_DURATION_MAX: Duration = Duration::from_secs(120);
const CIRCUIT_BYTES_MAX: u64 = 64 << 20;
/// How long the gateway may take to close the ports that it has opened for us.
const CLOSE_PORTS_TIMEOUT: Duration = Duration::from_secs(1);

/// What the node knows of its way in.
pub(super) struct Nat {
    is_on: bool,
    /// All listeners are on loopback.
    is_local: bool,
    reach: Reach,
    pub(super) prober: Prober,
    relays: Relays,
    pub(super) paths: Paths,
    /// The gateway has opened ports for us.
    is_mapped: bool,
    served: Served,
}

/// What `status` tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatStats {
    pub reachability: Reachability,
    /// Where others reach us by relays that have granted it.
    pub relayed_addresses: Vec<Multiaddr>,
    /// Peers with a direct connection.
    pub direct_peers: usize,
    /// Peers that are reached by a relay alone.
    pub relayed_peers: usize,
    /// Peers that this node is a relay for, and the connections that it passes on.
    pub reservations: usize,
    pub circuits: usize,
}

/// Who uses us as a relay.
struct Served {
    reserved: HashSet<PeerId>,
    circuits: usize,
    guests: Guests,
}

impl Nat {
    pub(super) fn new(own: PeerId, config: &NodeConfig, control: Control, guests: Guests) -> Self {
        Self {
            is_on: config.nat,
            is_local: config.listen.iter().all(is_loopback),
            reach: Reach::default(),
            prober: Prober::new(control),
            relays: Relays::new(own, &config.relays, Instant::now()),
            paths: Paths::default(),
            is_mapped: false,
            served: Served { reserved: HashSet::new(), circuits: 0, guests },
        }
    }

    /// Those that are a relay for us, and those that we are one for.
    pub(super) fn relay_peers(&self) -> HashSet<PeerId> {
        self.relays.holders().into_iter().chain(self.served.reserved.iter().copied()).collect()
    }

    pub(super) fn stats(&self) -> NatStats {
        let Counts { direct, relayed } = self.paths.counts();
        NatStats {
            reachability: self.reach.get(),
            relayed_addresses: self.relays.addresses(),
            direct_peers: direct,
            relayed_peers: relayed,
            reservations: self.served.reserved.len(),
            circuits: self.served.circuits,
        }
    }
}

/// The limits of a relay for others. Those of libp2p on how often one peer, or one address, may ask are kept, and asked first.
pub(super) fn relay_config(guests: &Guests) -> relay::Config {
    let mut config = relay::Config {
        max_reservations: RESERVATIONS_MAX,
        max_reservations_per_peer: RESERVATIONS_PER_PEER_MAX,
        max_circuits: CIRCUITS_MAX,
        max_circuits_per_peer: CIRCUITS_PER_PEER_MAX,
        max_circuit_duration: CIRCUIT_DURATION_MAX,
        max_circuit_bytes: CIRCUIT_BYTES_MAX,
        ..relay::Config::default()
    };
    let reserving = guests.clone();
    config.reservation_rate_limiters.push(Box::new(move |peer, _: &Multiaddr, _| reserving.reserve(peer)));
    let connecting = guests.clone();
    config
        .circuit_src_rate_limiters
        .push(Box::new(move |peer, _: &Multiaddr, _| connecting.may_connect(&peer)));
    config
}

/// Whether an address leads through a relay.
pub(super) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}

impl EventLoop {
    /// An address of an interface, to be told to others. Both DHTs put it into their provider records; readers of the
    /// public one drop private addresses. A public one counts until a test fails. At one of loopback everybody finds but
    /// himself, where all listen on the same port, and a dial ends with the first answer, though it is a wrong peer's.
    pub(super) fn add_own_address(&mut self, address: Multiaddr) {
        if is_loopback(&address) && !self.nat.is_local {
            return;
        }
        self.nat.reach.add(&address);
        self.has_tested(&address);
        self.offer_to_dial(&address);
        self.swarm.add_external_address(address);
        self.on_reach_changed();
    }

    /// Has peers that are reached by a relay told of an address, to dial it. Of itself hole punching knows only those that
    /// others have seen and that are not confirmed.
    fn offer_to_dial(&mut self, address: &Multiaddr) {
        if let Some(dcutr) = self.swarm.behaviour_mut().dcutr.as_mut() {
            let candidate = NewExternalAddrCandidate { addr: address };
            dcutr.on_swarm_event(FromSwarm::NewExternalAddrCandidate(candidate));
        }
    }

    /// An address that the config has us tell.
    pub(super) fn add_announced_address(&mut self, address: Multiaddr) {
        self.nat.reach.fix(&address);
        self.nat.reach.add(&address);
        self.offer_to_dial(&address);
        self.swarm.add_external_address(address);
        self.on_reach_changed();
    }

    /// A test or the gateway has confirmed an address, or a relay has granted one.
    pub(super) fn on_address_confirmed(&mut self, address: &Multiaddr) {
        tracing::info!(%address, "reached from outside");
        self.nat.reach.add(address);
        self.on_reach_changed();
        // Peers ask only now and then by themselves.
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        self.swarm.behaviour_mut().identify.push(peers);
    }

    pub(super) fn on_address_expired(&mut self, address: &Multiaddr) {
        self.nat.reach.remove(address);
        self.on_reach_changed();
    }

    /// Has servers test whether we are reached at an address: one of an interface, or that somebody sees us at.
    pub(super) fn has_tested(&mut self, address: &Multiaddr) {
        if self.nat.is_on {
            self.nat.prober.test(address, Instant::now());
        }
    }

    pub(super) fn on_probed(&mut self, probed: Probed) {
        let (address, voice, verdict) = self.nat.prober.judge(probed, Instant::now());
        if voice == Some(Voice::NotReached) {
            self.nat.reach.failed();
        }
        let is_told = self.swarm.external_addresses().any(|told| *told == address);
        match verdict {
            Verdict::Reached if !is_told => {
                self.swarm.add_external_address(address.clone());
                self.on_address_confirmed(&address);
            }
            Verdict::NotReached if is_told && self.nat.reach.take_back(&address) => {
                tracing::info!(%address, "no longer told to others: servers agree that it is not reached");
                self.swarm.remove_external_address(&address);
            }
            _ => (),
        }
        self.on_reach_changed();
    }

    pub(super) fn on_gateway(&mut self, event: &upnp::Event) {
        tracing::debug!(?event, "gateway of the local network");
        self.nat.is_mapped |= matches!(event, upnp::Event::NewExternalAddr { .. });
    }

    /// Has the gateway close what it has opened for us: somebody else may listen there next. It does not tell when it has.
    pub(super) async fn close_ports(&mut self) {
        if !self.nat.is_mapped {
            return;
        }
        for listener in std::mem::take(&mut self.listeners) {
            self.swarm.remove_listener(listener);
        }
        let closing = async {
            loop {
                self.swarm.select_next_some().await;
            }
        };
        let _: Result<(), _> = timeout(CLOSE_PORTS_TIMEOUT, closing).await;
    }

    /// Only who is reached serves the public DHT, and needs no relay.
    fn on_reach_changed(&mut self) {
        let is_public = self.nat.reach.get() == Reachability::Public;
        let mode = if is_public { kad::Mode::Server } else { kad::Mode::Client };
        self.swarm.behaviour_mut().wan.set_mode(Some(mode));
        if is_public {
            // The reservation ends with its connection.
            for relay in self.nat.relays.holders() {
                for id in self.nat.paths.direct(&relay) {
                    self.swarm.close_connection(id);
                }
            }
        }
    }

    /// A peer was identified that may be a relay, or test addresses.
    pub(super) fn notice_services(&mut self, peer: PeerId, info: &identify::Info) {
        let is_dialled = self.peers.get(&peer).is_some_and(|known| !known.dialled.is_empty());
        if self.nat.is_on && info.protocols.contains(&DIAL_REQUEST) && is_dialled {
            self.nat.reach.tester(Instant::now());
            self.nat.prober.found(peer);
        }
        if info.protocols.contains(&relay::HOP_PROTOCOL_NAME)
            && let Some(known) = self.peers.get(&peer)
        {
            self.nat.relays.found(peer, &known.dialled, Instant::now());
        }
    }

    /// Asks relays while they are needed, and gives up relayed connections that are not.
    pub(super) fn nat_round(&mut self) {
        let now = Instant::now();
        for id in self.nat.paths.spare(now) {
            self.swarm.close_connection(id);
        }
        self.nat.reach.pass_time(now);
        self.nat.prober.round(now);
        if !self.nat.is_on || self.nat.reach.get() == Reachability::Public {
            return;
        }
        for (relay, address) in self.nat.relays.due(now) {
            match self.swarm.listen_on(address) {
                Ok(listener) => self.nat.relays.asked(listener, relay),
                Err(error) => tracing::debug!(peer.id = %relay, %error, "relay not asked"),
            }
        }
    }

    /// `false`: the address is one of our own interfaces.
    pub(super) fn on_relayed_address(&mut self, listener: ListenerId, address: &Multiaddr) -> bool {
        self.nat.relays.granted(listener, address)
    }

    pub(super) fn on_listener_closed(&mut self, listener: ListenerId, reason: &Result<(), std::io::Error>) {
        if let Some(relay) = self.nat.relays.ended(listener) {
            tracing::info!(peer.id = %relay, ?reason, "a relay does not pass connections on any more");
        }
    }

    pub(super) fn note_path(&mut self, peer: PeerId, id: ConnectionId, relayed: bool) {
        self.nat.paths.established(peer, id, relayed, Instant::now());
    }

    pub(super) fn note_path_closed(&mut self, peer: &PeerId, id: ConnectionId, last: bool) {
        self.nat.paths.closed(id, peer, Instant::now());
        if last {
            self.nat.relays.disconnected(peer);
            self.nat.prober.lost(peer);
        }
    }

    /// What others do with us as their relay.
    pub(super) fn on_relayed(&mut self, event: &relay::Event) {
        let served = &mut self.nat.served;
        served.guests.on_event(event);
        match event {
            relay::Event::ReservationReqAccepted { src_peer_id, .. } => {
                served.reserved.insert(*src_peer_id);
            }
            relay::Event::ReservationClosed { src_peer_id }
            | relay::Event::ReservationTimedOut { src_peer_id } => {
                served.reserved.remove(src_peer_id);
            }
            relay::Event::CircuitReqAccepted { .. } => served.circuits += 1,
            relay::Event::CircuitClosed { .. } => served.circuits = served.circuits.saturating_sub(1),
            _ => (),
        }
        tracing::debug!(?event, "relay");
    }
}

pub(super) fn on_hole_punch(event: &dcutr::Event) {
    match &event.result {
        Ok(_) => tracing::info!(peer.id = %event.remote_peer_id, "a relayed connection became direct"),
        Err(error) => {
            tracing::info!(peer.id = %event.remote_peer_id, %error, "a relayed connection stays so")
        }
    }
}
