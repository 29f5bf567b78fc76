//! By which connections each peer is reached. One that goes through a relay is given up once there is a direct one: what
//! ran on it goes on by that. Pure but for its owner's clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::swarm::ConnectionId;

/// What runs on a relayed connection may still come to its end for so long.
const RELAYED_GRACE: Duration = Duration::from_secs(5);

/// The connections of all peers, as the swarm tells of them.
#[derive(Default)]
pub(in crate::node) struct Paths {
    peers: HashMap<PeerId, Peer>,
}

#[derive(Default)]
struct Peer {
    direct: Vec<ConnectionId>,
    relayed: Vec<ConnectionId>,
    /// Since when there are both.
    spare_since: Option<Instant>,
}

/// Peers by how they are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::node) struct Counts {
    pub(in crate::node) direct: usize,
    /// By a relay alone.
    pub(in crate::node) relayed: usize,
}

impl Paths {
    pub(super) fn established(&mut self, peer: PeerId, id: ConnectionId, relayed: bool, now: Instant) {
        let peer = self.peers.entry(peer).or_default();
        if relayed {
            peer.relayed.push(id)
        } else {
            peer.direct.push(id)
        }
        peer.settle(now);
    }

    pub(super) fn closed(&mut self, id: ConnectionId, peer: &PeerId, now: Instant) {
        let Some(known) = self.peers.get_mut(peer) else { return };
        known.direct.retain(|direct| *direct != id);
        known.relayed.retain(|relayed| *relayed != id);
        known.settle(now);
        if known.direct.is_empty() && known.relayed.is_empty() {
            self.peers.remove(peer);
        }
    }

    /// The relayed connections to close now.
    pub(super) fn spare(&self, now: Instant) -> Vec<ConnectionId> {
        let is_over = |since: Instant| now.saturating_duration_since(since) >= RELAYED_GRACE;
        let spare = self.peers.values().filter(|peer| peer.spare_since.is_some_and(is_over));
        spare.flat_map(|peer| peer.relayed.iter().copied()).collect()
    }

    /// The direct connections to a peer.
    pub(super) fn direct(&self, peer: &PeerId) -> Vec<ConnectionId> {
        self.peers.get(peer).map(|peer| peer.direct.clone()).unwrap_or_default()
    }

    pub(in crate::node) fn counts(&self) -> Counts {
        let direct = self.peers.values().filter(|peer| !peer.direct.is_empty()).count();
        Counts { direct, relayed: self.peers.len() - direct }
    }
}

impl Peer {
    fn settle(&mut self, now: Instant) {
        let both = !self.direct.is_empty() && !self.relayed.is_empty();
        self.spare_since = both.then(|| self.spare_since.unwrap_or(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    #[test]
    fn a_relayed_connection_is_given_up_for_a_direct_one_and_not_before() {
        let (mut paths, peer, start) = (Paths::default(), PeerId::random(), Instant::now());
        let later = start + RELAYED_GRACE;
        paths.established(peer, id(1), true, start);
        assert_eq!((paths.counts(), paths.spare(later)), (Counts { direct: 0, relayed: 1 }, vec![]));
        paths.established(peer, id(2), false, later);
        assert_eq!((paths.counts(), paths.spare(later)), (Counts { direct: 1, relayed: 0 }, vec![]));
        assert_eq!(paths.spare(later + RELAYED_GRACE), [id(1)]);
        paths.closed(id(2), &peer, later);
        assert_eq!(paths.spare(later + RELAYED_GRACE), [], "it is all there is again");
        paths.closed(id(1), &peer, later);
        assert_eq!((paths.counts(), paths.peers.len()), (Counts::default(), 0));
    }
}
