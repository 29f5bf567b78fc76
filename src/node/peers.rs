//! Whom to dial: the peers of the config until they are connected, and again when they are lost; those known from before
//! while there are few others. No I/O: the event loop dials.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use super::NodeError;
use crate::store::KnownPeer;

/// Pauses between tries: doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Peers of earlier runs that are dialled after a start.
const KNOWN_DIALLED_MAX: usize = 16;
/// Peers remembered over a restart.
pub(super) const KNOWN_MAX: usize = 128;

/// The peers that the config names.
pub(super) struct Book {
    wanted: HashMap<PeerId, Wanted>,
    /// Dialled once, after the start.
    known: Vec<(PeerId, Vec<Multiaddr>)>,
}

struct Wanted {
    addresses: Vec<Multiaddr>,
    next: Instant,
    pause: Duration,
}

impl Book {
    pub(super) fn new(
        own: PeerId,
        bootstrap: &[Multiaddr],
        peers: &[Multiaddr],
        known: &[KnownPeer],
    ) -> Result<Self, NodeError> {
        let mut wanted: HashMap<PeerId, Wanted> = HashMap::new();
        for address in bootstrap.iter().chain(peers) {
            let peer = peer_of(address).ok_or_else(|| NodeError::NoPeerId(address.clone()))?;
            if peer != own {
                let fresh = || Wanted { addresses: Vec::new(), next: Instant::now(), pause: PAUSE.0 };
                wanted.entry(peer).or_insert_with(fresh).addresses.push(address.clone());
            }
        }
        let known = known.iter().filter_map(|peer| {
            let addresses = peer.addresses.iter().filter_map(|address| address.parse().ok()).collect();
            Some((peer.peer_id.parse().ok()?, addresses))
        });
        let known = known.filter(|(peer, _)| *peer != own && !wanted.contains_key(peer));
        Ok(Self { known: known.take(KNOWN_DIALLED_MAX).collect(), wanted })
    }

    /// Whom to dial now, and where.
    pub(super) fn due(
        &mut self,
        now: Instant,
        is_connected: impl Fn(&PeerId) -> bool,
    ) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let mut due = std::mem::take(&mut self.known);
        for (peer, wanted) in &mut self.wanted {
            if is_connected(peer) {
                wanted.pause = PAUSE.0;
                wanted.next = now + PAUSE.0;
            } else if now >= wanted.next {
                wanted.next = now + wanted.pause;
                wanted.pause = (wanted.pause * 2).min(PAUSE.1);
                due.push((*peer, wanted.addresses.clone()));
            }
        }
        due
    }

    /// Whether the config names this peer: its connection is kept open.
    pub(super) fn is_wanted(&self, peer: &PeerId) -> bool {
        self.wanted.contains_key(peer)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.known.is_empty()
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
        assert_eq!(dials(&mut book, false), [0, 1, 3, 7, 15, 31, 61, 91]);
        assert!(dials(&mut book, true).is_empty());
        assert!(book.is_wanted(&peer));
    }

    #[test]
    fn an_address_without_a_peer_id_is_refused() {
        let address: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        assert!(matches!(Book::new(PeerId::random(), &[address], &[], &[]), Err(NodeError::NoPeerId(_))));
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
