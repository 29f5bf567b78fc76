//! Who shares pulled-through images with us. A peer is trusted by the config alone; what it says of itself decides only
//! whether it can be asked. No I/O: the event loop tells what happens, and shows what comes of it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use libp2p::swarm::StreamProtocol;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::watch;

use super::http_streams::{HTTP, MESH};
use super::peers::peer_of;
use crate::ipfs::Peer;

/// The connected peers, as far as trust goes.
pub(super) struct Mesh {
    /// By the config.
    named: HashSet<PeerId>,
    connected: HashMap<PeerId, Member>,
    members: watch::Sender<Arc<[Peer]>>,
    trusted: watch::Sender<Arc<HashSet<Peer>>>,
}

/// A connected peer.
#[derive(Default)]
struct Member {
    /// Whether its identify says that it is a daemon like this one.
    is_shoal: bool,
}

impl Mesh {
    /// `peers`: those that the config trusts.
    pub(super) fn new(peers: &[Multiaddr]) -> Self {
        Self {
            named: peers.iter().filter_map(peer_of).collect(),
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
    }

    pub(super) fn connected(&mut self, peer: PeerId) {
        self.connected.entry(peer).or_default();
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
