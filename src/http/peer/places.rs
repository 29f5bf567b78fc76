//! How many streams peers may have: all together, and each. When all places are taken, a peer with fewer gets one of who
//! has the most, so that those who hold theirs for ever keep nobody out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

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
    /// Peers with a place, and theirs in the order in which they were taken.
    by_peer: HashMap<Peer, VecDeque<CancellationToken>>,
}

/// A place that is free again when this is dropped.
pub(super) struct Place {
    places: Places,
    peer: Peer,
    /// Cancelled when the place goes to somebody else.
    lost: CancellationToken,
}

impl Places {
    pub(super) fn new(all_max: usize, per_peer_max: usize) -> Self {
        Self(Arc::new(Inner { all_max, per_peer_max, taken: Mutex::default() }))
    }

    /// `None`: the peer has its share, or all are taken and nobody has more of them than it would have.
    pub(super) fn take(&self, peer: &Peer) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.by_peer.get(peer).map_or(0, VecDeque::len);
        if own >= self.0.per_peer_max {
            return None;
        }
        if taken.all >= self.0.all_max {
            taken.free_one(own)?;
        }
        let lost = CancellationToken::new();
        taken.all += 1;
        taken.by_peer.entry(peer.clone()).or_default().push_back(lost.clone());
        Some(Place { places: self.clone(), peer: peer.clone(), lost })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Takes the oldest place from the peer with the most. `None`: nobody has more than one that has `own` would then.
    fn free_one(&mut self, own: usize) -> Option<()> {
        let most = self.by_peer.values_mut().max_by_key(|places| places.len())?;
        if most.len() <= own + 1 {
            return None;
        }
        most.pop_front()?.cancel();
        self.all -= 1;
        Some(())
    }
}

impl Place {
    /// Runs `work` to its end, or until the place goes to somebody else.
    pub(super) async fn hold(&self, work: impl Future<Output = ()>) {
        self.lost.run_until_cancelled(work).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        // Whoever took the place away has counted it already.
        if self.lost.is_cancelled() {
            return;
        }
        taken.all -= 1;
        let Some(own) = taken.by_peer.get_mut(&self.peer) else { return };
        own.retain(|place| *place != self.lost);
        if own.is_empty() {
            taken.by_peer.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(places: &Places, peer: &Peer) -> Vec<Place> {
        std::iter::from_fn(|| places.take(peer)).collect()
    }

    #[test]
    fn one_peer_cannot_take_all_places_and_a_dropped_one_is_free() {
        let places = Places::new(5, 3);
        let (greedy, modest) = (Peer::new("greedy"), Peer::new("modest"));
        let taken = all_of(&places, &greedy);
        assert_eq!(taken.len(), 3);
        let others = all_of(&places, &modest);
        assert_eq!(others.len(), 2);
        drop(taken);
        assert_eq!(places.lock().by_peer.len(), 1);
        assert!(places.take(&modest).is_some());
        drop(others);
        assert_eq!(places.lock().all, 0);
    }

    #[test]
    fn who_has_fewer_gets_the_oldest_of_who_has_the_most() {
        let places = Places::new(4, 3);
        let (greedy, modest) = (Peer::new("greedy"), Peer::new("modest"));
        let (of_greedy, of_modest) = (all_of(&places, &greedy), places.take(&modest).unwrap());
        let honest = places.take(&Peer::new("honest")).unwrap();
        let lost: Vec<bool> = of_greedy.iter().map(|place| place.lost.is_cancelled()).collect();
        assert_eq!(lost, [true, false, false]);
        assert!(places.take(&Peer::new("honest")).is_none(), "two are as many as anybody has");
        let late = places.take(&Peer::new("late")).unwrap();
        assert!(places.take(&Peer::new("last")).is_none(), "each of four peers has one");
        assert!(places.take(&greedy).is_none());
        assert!([&of_modest, &honest, &late].iter().all(|place| !place.lost.is_cancelled()));
        drop((of_greedy, of_modest, honest, late));
        let left = places.lock();
        assert_eq!((left.all, left.by_peer.len()), (0, 0));
    }
}
