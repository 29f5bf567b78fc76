//! How many streams peers may have: all together, and each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ipfs::Peer;

/// A number of places that peers share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Places(Arc<Inner>);

struct Inner {
    all_max: usize,
    per_peer_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    /// Peers with a place.
    by_peer: HashMap<Peer, usize>,
}

/// A place that is free again when this is dropped.
pub(super) struct Place {
    places: Places,
    peer: Peer,
}

impl Places {
    pub(super) fn new(all_max: usize, per_peer_max: usize) -> Self {
        Self(Arc::new(Inner { all_max, per_peer_max, taken: Mutex::default() }))
    }

    /// `None`: the peer has its share, or all are taken.
    pub(super) fn take(&self, peer: &Peer) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.by_peer.get(peer).copied().unwrap_or_default();
        if taken.all >= self.0.all_max || own >= self.0.per_peer_max {
            return None;
        }
        taken.all += 1;
        taken.by_peer.insert(peer.clone(), own + 1);
        Some(Place { places: self.clone(), peer: peer.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        match taken.by_peer.get_mut(&self.peer) {
            Some(own) if *own > 1 => *own -= 1,
            _ => _ = taken.by_peer.remove(&self.peer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_cannot_take_all_places_and_a_dropped_one_is_free() {
        let places = Places::new(5, 3);
        let (greedy, modest) = (Peer::new("greedy"), Peer::new("modest"));
        let taken: Vec<_> = std::iter::from_fn(|| places.take(&greedy)).collect();
        assert_eq!(taken.len(), 3);
        let others: Vec<_> = std::iter::from_fn(|| places.take(&modest)).collect();
        assert_eq!(others.len(), 2);
        drop(taken);
        assert_eq!(places.lock().by_peer.len(), 1);
        assert!(places.take(&modest).is_some());
        drop(others);
        assert_eq!(places.lock().all, 0);
    }
}
