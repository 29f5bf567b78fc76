//! Tells what connections are for, as far as other parts of the node know: the gossip mesh, the routing tables, relays.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::KBucketKey;

use super::connections::Reason;
use super::event_loop::EventLoop;
use super::routing::Dht;

const INTERVAL: Duration = Duration::from_secs(2);
/// Peers of the gossip mesh that have their place: of few names all of them, and of many no more, since anybody may join.
const GOSSIP_MAX: usize = 64;
/// The closest peers of each routing table: as many as a record is given to.
const NEAR_MAX: usize = 20;

/// Who was of use when it was last looked.
#[derive(Default)]
pub(super) struct Valued {
    peers: HashMap<Reason, HashSet<PeerId>>,
    next: Option<Instant>,
}

impl Valued {
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.next.is_none_or(|next| now >= next);
        if is_due {
            self.next = Some(now + INTERVAL);
        }
        is_due
    }
}

impl EventLoop {
    pub(super) fn value_peers(&mut self, now: Instant) {
        if !self.valued.is_due(now) {
            return;
        }
        let relays = self.nat.relay_peers();
        self.value(Reason::Relay, relays);
        let gossip = self.gossip_peers();
        self.value(Reason::Gossip, gossip);
        let near = self.near_peers();
        self.value(Reason::Near, near);
    }

    /// Those that had their place before come first.
    fn gossip_peers(&self) -> HashSet<PeerId> {
        let Some(gossip) = self.swarm.behaviour().gossip.as_ref() else { return HashSet::new() };
        let known = self.valued.peers.get(&Reason::Gossip);
        let mut peers: Vec<PeerId> = gossip.all_mesh_peers().copied().collect();
        peers.sort_by_key(|peer| !known.is_some_and(|known| known.contains(peer)));
        peers.into_iter().take(GOSSIP_MAX).collect()
    }

    fn near_peers(&mut self) -> HashSet<PeerId> {
        let own = KBucketKey::from(*self.swarm.local_peer_id());
        let mut near = HashSet::new();
        for dht in Dht::BOTH {
            let kad = self.swarm.behaviour_mut().kad(dht);
            near.extend(kad.get_closest_local_peers(&own).take(NEAR_MAX).map(|key| *key.preimage()));
        }
        near
    }

    fn value(&mut self, reason: Reason, peers: HashSet<PeerId>) {
        let before = self.valued.peers.remove(&reason).unwrap_or_default();
        before.difference(&peers).for_each(|peer| self.control.keep(peer, reason, false));
        // Also those of before: they may have come anew.
        peers.iter().for_each(|peer| self.control.keep(peer, reason, true));
        self.valued.peers.insert(reason, peers);
    }
}
