//! Who shares pulled-through images with us. A peer is trusted by the config alone; what it says of itself decides only
//! whether it can be asked. No I/O: the event loop tells what happens, and shows what comes of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use libp2p::swarm::StreamProtocol;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::watch;

use super::http_streams::{HTTP, MESH};
use super::peers::peer_of;
use super::places::{Places, without_peer_id};
use crate::ipfs::Peer;

/// The connected peers, as far as trust goes.
pub(super) struct Mesh {
    /// By the config.
    named: HashSet<PeerId>,
    /// Whoever answers at one of these is trusted too.
    places: Places,
    /// Nobody can connect who does not have the key of our network.
    is_private: bool,
    connected: HashMap<PeerId, Member>,
    members: watch::Sender<Arc<[Peer]>>,
    trusted: watch::Sender<Arc<HashSet<Peer>>>,
}

/// A connected peer.
#[derive(Default)]
struct Member {
    /// Where we dialled it. At most as many as there are places.
    answered_at: HashSet<Multiaddr>,
    /// Whether its identify says that it is a daemon like this one.
    is_shoal: bool,
}

impl Mesh {
    /// `peers`: those that the config trusts, as far as it says who they are.
    pub(super) fn new(peers: &[Multiaddr], is_private: bool) -> Self {
        Self {
            named: peers.iter().filter_map(peer_of).collect(),
            places: Places::default(),
            is_private,
            connected: HashMap::new(),
            members: watch::Sender::default(),
            trusted: watch::Sender::default(),
        }
    }

    /// The trusted peers that can be asked, sorted.
    pub(super) fn members(&self) -> watch::Receiver<Arc<[Peer]>> {
        self.members.subscribe()
    }

    /// The trusted peers that are connected.
    pub(super) fn trusted(&self) -> watch::Receiver<Arc<HashSet<Peer>>> {
        self.trusted.subscribe()
    }

    /// Whether the peer may have what was pulled through.
    pub(super) fn is_trusted(&self, peer: &PeerId) -> bool {
        self.named.contains(peer)
            || self.connected.get(peer).is_some_and(|member| {
                self.is_private || member.answered_at.iter().any(|address| self.places.contains(address))
            })
    }

    /// The places that the config stands for at this time.
    pub(super) fn set_places(&mut self, addresses: &BTreeSet<Multiaddr>, now: Instant) {
        self.places.set(addresses, now);
        self.show();
    }

    /// The places to dial now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Multiaddr> {
        let connected = &self.connected;
        self.places.due(now, |address| connected.values().any(|member| member.answered_at.contains(address)))
    }

    /// Notes that we reached ourselves.
    pub(super) fn is_ours(&mut self, address: &Multiaddr) {
        self.places.is_ours(address);
    }

    /// A connection stands; `dialled`: where, if it was we who dialled.
    pub(super) fn connected(&mut self, peer: PeerId, dialled: Option<&Multiaddr>) {
        let member = self.connected.entry(peer).or_default();
        let place = dialled.map(without_peer_id).filter(|place| self.places.contains(place));
        member.answered_at.extend(place);
        self.show();
    }

    pub(super) fn disconnected(&mut self, peer: &PeerId) {
        self.connected.remove(peer);
        self.show();
    }

    pub(super) fn identified(&mut self, peer: &PeerId, protocols: &[StreamProtocol]) {
        if let Some(member) = self.connected.get_mut(peer) {
            member.is_shoal = [HTTP, MESH].iter().all(|spoken| protocols.contains(spoken));
            self.show();
        }
    }

    fn show(&self) {
        let trusted = || self.connected.iter().filter(|(peer, _)| self.is_trusted(peer));
        let name = |peer: &PeerId| Peer::new(&peer.to_base58());
        let all: HashSet<Peer> = trusted().map(|(peer, _)| name(peer)).collect();
        let members = trusted().filter(|(_, member)| member.is_shoal);
        let mut members: Vec<Peer> = members.map(|(peer, _)| name(peer)).collect();
        members.sort_unstable();
        self.trusted.send_if_modified(|known| {
            let changed = **known != all;
            if changed {
                *known = Arc::new(all);
            }
            changed
        });
        self.members.send_if_modified(|known| {
            let changed = **known != *members;
            if changed {
                *known = members.into();
            }
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(peer: PeerId) -> Peer {
        Peer::new(&peer.to_base58())
    }

    fn members(mesh: &Mesh) -> Vec<Peer> {
        mesh.members().borrow().to_vec()
    }

    #[test]
    fn whoever_answers_at_a_place_is_trusted_while_the_place_is_there() {
        let place: Multiaddr = "/ip4/10.0.0.1/tcp/4001".parse().unwrap();
        let (mut mesh, now) = (Mesh::new(&[], false), Instant::now());
        mesh.set_places(&[place.clone()].into(), now);
        assert!(mesh.due(now).iter().eq([&place]));
        let (peer, stranger) = (PeerId::random(), PeerId::random());
        mesh.connected(stranger, None);
        mesh.connected(stranger, Some(&"/ip4/10.0.0.2/tcp/4001".parse().unwrap()));
        mesh.connected(peer, Some(&place));
        [peer, stranger].iter().for_each(|peer| mesh.identified(peer, &[HTTP, MESH]));
        assert_eq!(members(&mesh), [named(peer)]);
        assert!(!mesh.is_trusted(&stranger));
        mesh.set_places(&BTreeSet::new(), now);
        assert_eq!(members(&mesh), []);
        assert!(mesh.trusted().borrow().is_empty());
    }

    #[test]
    fn all_of_a_private_network_are_trusted_and_those_like_us_are_asked() {
        let mut mesh = Mesh::new(&[], true);
        let (kubo, shoal) = (PeerId::random(), PeerId::random());
        assert!(!mesh.is_trusted(&kubo), "it is not connected");
        mesh.connected(kubo, None);
        mesh.connected(shoal, None);
        mesh.identified(&kubo, &[HTTP]);
        mesh.identified(&shoal, &[HTTP, MESH]);
        assert_eq!(members(&mesh), [named(shoal)]);
        assert_eq!(mesh.trusted().borrow().len(), 2);
        mesh.disconnected(&shoal);
        assert_eq!(members(&mesh), []);
    }
}
