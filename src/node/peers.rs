//! Whom to dial: the peers of the config, and those that are near, until they are connected, and again when they are lost;
//! those known from before once. No I/O: the event loop dials.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use super::NodeError;
use crate::store::KnownPeer;

/// Pauses between tries: doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Peers of earlier runs that are dialled after a start.
const KNOWN_DIALLED_MAX: usize = 16;
/// Peers remembered over a restart.
pub(super) const KNOWN_MAX: usize = 128;

/// Peers of the local network that are dialled.
const NEAR_MAX: usize = 256;

/// Who is to be connected.
pub(super) struct Book {
    /// Named by the config.
    wanted: HashMap<PeerId, Wanted>,
    /// Dialled once, after the start.
    known: Vec<(PeerId, Vec<Multiaddr>)>,
    /// Found in the local network; where they are is known to who found them.
    near: HashMap<PeerId, Backoff>,
}

struct Wanted {
    addresses: Vec<Multiaddr>,
    backoff: Backoff,
}

/// When to try again.
pub(super) struct Backoff {
    next: Instant,
    pause: Duration,
}

impl Backoff {
    /// Due at once.
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, pause: PAUSE.0 }
    }

    /// Whether to try now; the next try is then due after a longer pause. What is lost is due after the shortest one.
    pub(super) fn is_due(&mut self, now: Instant, is_connected: bool) -> bool {
        if is_connected {
            self.pause = PAUSE.0;
            self.next = now + PAUSE.0;
            return false;
        }
        let due = now >= self.next;
        if due {
            self.next = now + self.pause;
            self.pause = (self.pause * 2).min(PAUSE.1);
        }
        due
    }
}

impl Book {
    /// Of `peers`, those with a peer id; of whom they are is for [`Mesh`](super::mesh::Mesh) to say.
    pub(super) fn new(
        own: PeerId,
        bootstrap: &[Multiaddr],
        peers: &[Multiaddr],
        known: &[KnownPeer],
    ) -> Result<Self, NodeError> {
        let mut wanted: HashMap<PeerId, Wanted> = HashMap::new();
        for address in bootstrap.iter().chain(peers.iter().filter(|address| peer_of(address).is_some())) {
            let peer = peer_of(address).ok_or_else(|| NodeError::NoPeerId(address.clone()))?;
            if peer != own {
                let fresh = || Wanted { addresses: Vec::new(), backoff: Backoff::new(Instant::now()) };
                wanted.entry(peer).or_insert_with(fresh).addresses.push(address.clone());
            }
        }
        let known = known.iter().filter_map(|peer| {
            let addresses = peer.addresses.iter().filter_map(|address| address.parse().ok()).collect();
            Some((peer.peer_id.parse().ok()?, addresses))
        });
        let known = known.filter(|(peer, _)| *peer != own && !wanted.contains_key(peer));
        Ok(Self { known: known.take(KNOWN_DIALLED_MAX).collect(), wanted, near: HashMap::new() })
    }

    /// Whom to dial now, and where.
    pub(super) fn due(
        &mut self,
        now: Instant,
        is_connected: impl Fn(&PeerId) -> bool,
    ) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut due = std::mem::take(&mut self.known);
        for (peer, wanted) in &mut self.wanted {
            if wanted.backoff.is_due(now, is_connected(peer)) {
                due.push((*peer, wanted.addresses.clone()));
            }
        }
        let near = self.near.iter_mut().filter(|(peer, _)| !self.wanted.contains_key(*peer));
        let near = near.filter_map(|(peer, backoff)| {
            backoff.is_due(now, is_connected(peer)).then_some((*peer, Vec::new()))
        });
        due.extend(near);
        due
    }

    /// Takes in a peer that was found in the local network.
    pub(super) fn found(&mut self, peer: PeerId, now: Instant) {
        if self.near.len() < NEAR_MAX {
            self.near.entry(peer).or_insert_with(|| Backoff::new(now));
        }
    }

    /// Forgets a peer that the local network does not tell of any more.
    pub(super) fn lost(&mut self, peer: &PeerId) {
        self.near.remove(peer);
    }

    /// Whether the config names this peer: its connection is kept open.
    pub(super) fn is_wanted(&self, peer: &PeerId) -> bool {
        self.wanted.contains_key(peer)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.known.is_empty() && self.near.is_empty()
    }
}

/// Whose address it is, if it says so.
pub(super) fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_peer_is_dialled_again_with_growing_pauses() {
        let peer = PeerId::random();
        let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}").parse().unwrap();
        let mut book = Book::new(PeerId::random(), std::slice::from_ref(&address), &[], &[]).unwrap();
        let start = Instant::now();
        let dials = |book: &mut Book, connected: bool| {
            let seconds =
                (0..100).filter(|s| !book.due(start + Duration::from_secs(*s), |_| connected).is_empty());
            seconds.collect::<Vec<u64>>()
        };
        assert_eq!(dials(&mut book, false), [0, 1, 3, 7, 15, 25, 35, 45, 55, 65, 75, 85, 95]);
        assert!(dials(&mut book, true).is_empty());
        assert!(book.is_wanted(&peer));
    }

    #[test]
    fn an_address_without_a_peer_id_is_refused() {
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        assert!(matches!(Book::new(PeerId::random(), &[address], &[], &[]), Err(NodeError::NoPeerId(_))));
    }

    #[test]
    fn a_peer_of_the_local_network_is_dialled_while_it_is_there() {
        let mut book = Book::new(PeerId::random(), &[], &[], &[]).unwrap();
        let (peer, now) = (PeerId::random(), Instant::now());
        book.found(peer, now);
        book.found(peer, now);
        assert_eq!(book.due(now, |_| false), [(peer, vec![])]);
        assert!(!book.is_wanted(&peer));
        book.lost(&peer);
        assert!(book.due(now + Duration::from_secs(60), |_| false).is_empty());
        (0..2 * NEAR_MAX).for_each(|_| book.found(PeerId::random(), now));
        assert_eq!(book.due(now, |_| false).len(), NEAR_MAX);
    }

    #[test]
    fn peers_of_the_last_run_are_dialled_once() {
        let known = KnownPeer {
            peer_id: PeerId::random().to_base58(),
            addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned()],
            seen_at_s: 0,
        };
        let mut book = Book::new(PeerId::random(), &[], &[], &[known]).unwrap();
        assert_eq!(book.due(Instant::now(), |_| false).len(), 1);
        assert!(book.due(Instant::now(), |_| false).is_empty());
    }
}
