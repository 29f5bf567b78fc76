//! Which relays are asked to pass connections on to us: those of the config first, then others that are connected. No
//! I/O: the event loop asks, and tells what comes of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use super::is_relayed;
use crate::node::peers::{Backoff, peer_of};
use crate::node::routing::is_public;

/// Relays that hold a reservation of ours at once.
pub(super) const RESERVATIONS_MAX: usize = 2;
/// Relays that are remembered while they are connected.
const KNOWN_MAX: usize = 64;
/// How long a test may take that shows that no relay is needed, before one is asked that nobody named.
const FOUND_AFTER: Duration = Duration::from_secs(15);

/// The connected relays, and our reservations.
pub(in crate::node) struct Relays {
    own: PeerId,
    started: Instant,
    named: HashMap<PeerId, Multiaddr>,
    connected: HashMap<PeerId, Relay>,
    reserved: HashMap<ListenerId, Reservation>,
}

struct Relay {
    address: Multiaddr,
    backoff: Backoff,
}

struct Reservation {
    relay: PeerId,
    /// Where others reach us by it, once it is granted.
    address: Option<Multiaddr>,
}

impl Relays {
    /// `named`: the relays of the config, each with its peer id.
    pub(in crate::node) fn new(own: PeerId, named: &[Multiaddr], now: Instant) -> Self {
        let named = named.iter().filter_map(|address| Some((peer_of(address)?, address.clone())));
        Self {
            own,
            started: now,
            named: named.filter(|(peer, _)| *peer != own).collect(),
            connected: HashMap::new(),
            reserved: HashMap::new(),
        }
    }

    /// A connected peer is a relay; `dialled`: where it was reached. One that nobody named has to have a public address.
    pub(super) fn found(&mut self, peer: PeerId, dialled: &[Multiaddr], now: Instant) {
        if self.connected.contains_key(&peer) || self.connected.len() >= KNOWN_MAX {
            return;
        }
        let is_good = |address: &&Multiaddr| is_public(address) && !is_relayed(address);
        let address = self.named.get(&peer).or_else(|| dialled.iter().find(is_good));
        if let Some(address) = address {
            let address = address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect();
            self.connected.insert(peer, Relay { address, backoff: Backoff::new(now) });
        }
    }

    pub(super) fn disconnected(&mut self, peer: &PeerId) {
        self.connected.remove(peer);
    }

    /// The relays to ask now, each as the address to listen on.
    pub(super) fn due(&mut self, now: Instant) -> Vec<(PeerId, Multiaddr)> {
        let room = RESERVATIONS_MAX.saturating_sub(self.reserved.len());
        let others = now.saturating_duration_since(self.started) >= FOUND_AFTER;
        let named = &self.named;
        let reserved = &self.reserved;
        let mut able: Vec<_> = self
            .connected
            .iter_mut()
            .filter(|(peer, _)| others || named.contains_key(*peer))
            .filter(|(peer, _)| !reserved.values().any(|reservation| reservation.relay == **peer))
            .collect();
        able.sort_by_key(|(peer, _)| !named.contains_key(*peer));
        let due = able.into_iter().filter_map(|(peer, relay)| {
            let address = relay.address.clone().with(Protocol::P2p(*peer)).with(Protocol::P2pCircuit);
            relay.backoff.is_due(now, false).then_some((*peer, address))
        });
        due.take(room).collect()
    }

    /// A relay was asked.
    pub(super) fn asked(&mut self, listener: ListenerId, relay: PeerId) {
        self.reserved.insert(listener, Reservation { relay, address: None });
    }

    /// A relay has granted what it was asked for. `false`: this is none of ours.
    pub(super) fn granted(&mut self, listener: ListenerId, address: &Multiaddr) -> bool {
        let Some(reservation) = self.reserved.get_mut(&listener) else { return false };
        reservation.address = Some(address.clone());
        true
    }

    /// A relay has refused, or was lost. `None`: this was none of ours.
    pub(super) fn ended(&mut self, listener: ListenerId) -> Option<PeerId> {
        self.reserved.remove(&listener).map(|reservation| reservation.relay)
    }

    /// The relays that we have asked.
    pub(super) fn holders(&self) -> Vec<PeerId> {
        self.reserved.values().map(|reservation| reservation.relay).collect()
    }

    /// Where others reach us by relays, with our peer id at the end.
    pub(in crate::node) fn addresses(&self) -> Vec<Multiaddr> {
        let granted = self.reserved.values().filter_map(|reservation| reservation.address.clone());
        let mut addresses: Vec<_> = granted.map(|address| with_peer_id(address, self.own)).collect();
        addresses.sort();
        addresses
    }
}

fn with_peer_id(address: Multiaddr, peer: PeerId) -> Multiaddr {
    if peer_of(&address) == Some(peer) { address } else { address.with(Protocol::P2p(peer)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ip: &str) -> Multiaddr {
        format!("/ip4/{ip}/tcp/4001").parse().unwrap()
    }

    #[test]
    fn the_relays_of_the_config_are_asked_first_and_others_later() {
        let (own, start) = (PeerId::random(), Instant::now());
        let [named, found, hidden] = [(); 3].map(|()| PeerId::random());
        let config = [at("10.0.0.1").with(Protocol::P2p(named)), at("10.0.0.2").with(Protocol::P2p(own))];
        let mut relays = Relays::new(own, &config, start);
        relays.found(named, &[], start);
        relays.found(found, &[at("192.168.1.1"), at("8.8.8.8")], start);
        relays.found(hidden, &[at("192.168.1.2")], start);
        let listen_on = |ip: &str, peer| (peer, at(ip).with(Protocol::P2p(peer)).with(Protocol::P2pCircuit));
        assert_eq!(relays.due(start), [listen_on("10.0.0.1", named)]);
        let listener = ListenerId::next();
        relays.asked(listener, named);
        assert_eq!(relays.due(start + FOUND_AFTER), [listen_on("8.8.8.8", found)]);
        assert!(relays.addresses().is_empty());
        let circuit = listen_on("10.0.0.1", named).1;
        assert!(relays.granted(listener, &circuit) && !relays.granted(ListenerId::next(), &circuit));
        assert_eq!(relays.addresses(), [circuit.with(Protocol::P2p(own))]);
        assert_eq!(relays.ended(listener), Some(named));
        assert!(relays.addresses().is_empty());
    }

    #[test]
    fn reservations_are_few_and_a_relay_that_refuses_is_asked_with_growing_pauses() {
        let start = Instant::now();
        let mut relays = Relays::new(PeerId::random(), &[], start);
        let peers: Vec<PeerId> = (0..2 * KNOWN_MAX).map(|_| PeerId::random()).collect();
        peers.iter().for_each(|peer| relays.found(*peer, &[at("8.8.8.8")], start));
        assert_eq!(relays.connected.len(), KNOWN_MAX);
        let later = start + FOUND_AFTER;
        let asked = relays.due(later);
        assert_eq!(asked.len(), RESERVATIONS_MAX);
        let listeners = [ListenerId::next(), ListenerId::next()];
        for (listener, (peer, _)) in listeners.iter().zip(&asked) {
            relays.asked(*listener, *peer);
        }
        assert!(relays.due(later).is_empty(), "there is no room");
        peers.iter().filter(|peer| **peer != asked[0].0).for_each(|peer| relays.disconnected(peer));
        listeners.iter().for_each(|listener| assert!(relays.ended(*listener).is_some()));
        assert!(relays.due(later).is_empty(), "it has refused just now");
        assert_eq!(relays.due(later + Duration::from_secs(60)).len(), 1);
    }
}
