//! What strangers have of us as a relay. It is there for one's own fleet, which is whom the config trusts: those have places
//! that no stranger can take, and strangers have the rest, since a reader who needs a way in is one of them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use libp2p::{PeerId, relay};
use tokio::sync::watch;

use super::{CIRCUITS_MAX, RESERVATIONS_MAX};
use crate::ipfs::Peer;

/// Of the reservations and circuits, those of strangers.
pub(in crate::node) const GUEST_RESERVATIONS_MAX: usize = RESERVATIONS_MAX / 2;
pub(in crate::node) const GUEST_CIRCUITS_MAX: usize = CIRCUITS_MAX / 2;

/// Whom we are a relay for, beside the fleet. Cheap to clone.
#[derive(Clone)]
pub(in crate::node) struct Guests {
    fleet: watch::Receiver<Arc<HashSet<Peer>>>,
    has: Arc<Mutex<Has>>,
}

#[derive(Default)]
struct Has {
    reserved: HashSet<PeerId>,
    /// By who began them.
    circuits: Vec<PeerId>,
}

impl Guests {
    /// `fleet`: the connected peers that are trusted.
    pub(in crate::node) fn new(fleet: watch::Receiver<Arc<HashSet<Peer>>>) -> Self {
        Self { fleet, has: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Has> {
        self.has.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_of_fleet(&self, peer: &PeerId) -> bool {
        self.fleet.borrow().contains(&Peer::new(&peer.to_base58()))
    }

    /// Whether a peer may have a reservation, or keep it: it has it from then on.
    pub(super) fn reserve(&self, peer: PeerId) -> bool {
        if self.is_of_fleet(&peer) {
            return true;
        }
        let mut has = self.lock();
        let may = has.reserved.contains(&peer) || has.reserved.len() < GUEST_RESERVATIONS_MAX;
        if may {
            has.reserved.insert(peer);
        }
        may
    }

    /// Whether a peer may be connected to another.
    pub(super) fn may_connect(&self, peer: &PeerId) -> bool {
        self.is_of_fleet(peer) || self.lock().circuits.len() < GUEST_CIRCUITS_MAX
    }

    pub(super) fn on_event(&self, event: &relay::Event) {
        match event {
            relay::Event::ReservationClosed { src_peer_id }
            | relay::Event::ReservationTimedOut { src_peer_id } => {
                self.lock().reserved.remove(src_peer_id);
            }
            relay::Event::CircuitReqAccepted { src_peer_id, .. } if !self.is_of_fleet(src_peer_id) => {
                self.lock().circuits.push(*src_peer_id);
            }
            relay::Event::CircuitClosed { src_peer_id, .. } => {
                let mut has = self.lock();
                if let Some(at) = has.circuits.iter().position(|peer| peer == src_peer_id) {
                    has.circuits.swap_remove(at);
                }
            }
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_leave_places_to_the_fleet() {
        let ours = PeerId::random();
        let fleet = Arc::new(HashSet::from([Peer::new(&ours.to_base58())]));
        let (_trusted, fleet) = watch::channel(fleet);
        let guests = Guests::new(fleet);
        let strangers: Vec<PeerId> = (0..2 * GUEST_RESERVATIONS_MAX).map(|_| PeerId::random()).collect();
        let granted = strangers.iter().filter(|peer| guests.reserve(**peer)).count();
        assert_eq!(granted, GUEST_RESERVATIONS_MAX);
        assert!(guests.reserve(strangers[0]), "it may be renewed");
        assert!(guests.reserve(ours));
        guests.on_event(&relay::Event::ReservationClosed { src_peer_id: strangers[0] });
        assert!(guests.reserve(strangers[GUEST_RESERVATIONS_MAX]), "there is room again");

        let circuit =
            |from: PeerId| relay::Event::CircuitReqAccepted { src_peer_id: from, dst_peer_id: ours };
        strangers.iter().take(GUEST_CIRCUITS_MAX).for_each(|peer| guests.on_event(&circuit(*peer)));
        guests.on_event(&circuit(ours));
        assert!(!guests.may_connect(&strangers[0]) && guests.may_connect(&ours));
        let (src_peer_id, dst_peer_id) = (strangers[1], ours);
        guests.on_event(&relay::Event::CircuitClosed { src_peer_id, dst_peer_id, error: None });
        assert!(guests.may_connect(&strangers[0]));
    }
}
