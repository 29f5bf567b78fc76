//! Who follows a fill that runs: a few peers, to whom all others are referred. So followers form a tree, and nobody
//! sends a blob more often than [`FANOUT`] times while it is on its way. Pure.

use std::cmp::Reverse;

use super::holdings::Key;
use super::rendezvous::weight;
use crate::ipfs::Peer;
use crate::oci::Digest;

/// Peers that follow one fill.
pub(in crate::mirror) const FANOUT: usize = 4;

/// The peers that follow a fill, one entry for each stream.
#[derive(Debug, Default)]
pub(in crate::mirror) struct Followers(Vec<Peer>);

impl Followers {
    /// Takes a peer in, unless as many others follow already: then those are returned.
    pub(in crate::mirror) fn admit(&mut self, peer: &Peer) -> Result<(), Vec<Peer>> {
        let mut others: Vec<Peer> = self.0.iter().filter(|follower| *follower != peer).cloned().collect();
        others.sort_unstable();
        others.dedup();
        if others.len() >= FANOUT {
            return Err(others);
        }
        self.0.push(peer.clone());
        Ok(())
    }

    /// Whether one of these follows: what comes by it would wait for itself.
    pub(in crate::mirror) fn include_any(&self, peers: &[Peer]) -> bool {
        peers.iter().any(|peer| self.0.contains(peer))
    }

    /// One stream of a peer has ended.
    pub(in crate::mirror) fn leave(&mut self, peer: &Peer) {
        if let Some(at) = self.0.iter().position(|follower| follower == peer) {
            self.0.swap_remove(at);
        }
    }
}

/// The order in which one asks those that it was referred to: another one for everybody, lest all crowd below the first.
pub(super) fn referred(mut peers: Vec<Peer>, us: &Peer) -> Vec<Peer> {
    let key = Key::of_digest(&Digest::sha256(us.as_str().as_bytes()));
    peers.sort_by_cached_key(|peer| Reverse(weight(peer, key)));
    peers
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    /// All who take part in one fill. The first has it from upstream.
    struct Tree {
        followers: HashMap<Peer, Followers>,
        sources: HashMap<Peer, Peer>,
        first: Peer,
        asked_max: usize,
    }

    fn peer(n: usize) -> Peer {
        Peer::new(&format!("peer{n}"))
    }

    impl Tree {
        fn of(count: usize) -> Self {
            let first = peer(0);
            let followers = HashMap::from([(first.clone(), Followers::default())]);
            let mut tree = Self { followers, sources: HashMap::new(), first, asked_max: 0 };
            (1..count).for_each(|n| tree.join(&peer(n)));
            tree
        }

        /// The peers that its bytes come by, the nearest first.
        fn path(&self, peer: &Peer) -> Vec<Peer> {
            std::iter::successors(self.sources.get(peer), |source| self.sources.get(*source))
                .cloned()
                .collect()
        }

        /// Asks the first, then whoever it is referred to. Nobody follows one whose bytes come by itself.
        fn join(&mut self, us: &Peer) {
            let (mut queue, mut asked) = (VecDeque::from([self.first.clone()]), Vec::new());
            while let Some(them) = queue.pop_front() {
                if asked.contains(&them) || !self.followers.contains_key(&them) || them == *us {
                    continue;
                }
                asked.push(them.clone());
                if self.path(&them).contains(us) {
                    continue;
                }
                match self.followers.get_mut(&them).unwrap().admit(us) {
                    Ok(()) => {
                        self.sources.insert(us.clone(), them);
                        self.followers.entry(us.clone()).or_default();
                        self.asked_max = self.asked_max.max(asked.len());
                        return;
                    }
                    Err(others) => {
                        referred(others, us).into_iter().rev().for_each(|other| queue.push_front(other));
                    }
                }
            }
            panic!("{us} finds nobody to follow, of {asked:?}");
        }

        fn dies(&mut self, dead: &Peer) {
            self.followers.remove(dead);
            if let Some(source) = self.sources.remove(dead) {
                self.followers.get_mut(&source).unwrap().leave(dead);
            }
            let mut lost: Vec<Peer> = self
                .sources
                .iter()
                .filter(|(_, source)| *source == dead)
                .map(|(peer, _)| peer.clone())
                .collect();
            lost.sort();
            lost.iter().for_each(|peer| drop(self.sources.remove(peer)));
            lost.iter().for_each(|peer| self.join(peer));
        }

        fn depth(&self) -> usize {
            self.followers.keys().map(|peer| self.path(peer).len()).max().unwrap()
        }

        fn all_are_below_the_first(&self) -> bool {
            let others = self.followers.keys().filter(|peer| **peer != self.first);
            others.map(|peer| self.path(peer)).all(|path| path.last() == Some(&self.first))
        }
    }

    #[test]
    fn fifty_that_begin_at_once_are_a_tree() {
        let tree = Tree::of(50);
        assert!(tree.all_are_below_the_first());
        assert!(tree.followers.values().all(|followers| followers.0.len() <= FANOUT));
        // A full tree of fifty has a depth of three.
        assert!(tree.depth() <= 6, "depth {}", tree.depth());
        assert!(tree.asked_max <= 8, "{} asked", tree.asked_max);
    }

    #[test]
    fn who_follows_already_may_ask_for_more() {
        let mut followers = Followers::default();
        (0..FANOUT).for_each(|n| followers.admit(&peer(n)).unwrap());
        assert!(followers.include_any(&[peer(9), peer(0)]));
        assert!(!followers.include_any(&[peer(9)]));
        followers.admit(&peer(0)).unwrap();
        assert_eq!(followers.admit(&peer(9)).unwrap_err(), (0..FANOUT).map(peer).collect::<Vec<_>>());
        followers.leave(&peer(0));
        assert!(followers.admit(&peer(9)).is_err());
        followers.leave(&peer(0));
        followers.admit(&peer(9)).unwrap();
    }

    proptest! {
        #[test]
        fn those_below_a_dead_one_find_another(dead in prop::collection::hash_set(1..50_usize, 0..25)) {
            let mut tree = Tree::of(50);
            for n in &dead {
                tree.dies(&peer(*n));
            }
            prop_assert_eq!(tree.followers.len(), 50 - dead.len());
            prop_assert!(tree.all_are_below_the_first());
            prop_assert!(tree.followers.values().all(|followers| followers.0.len() <= FANOUT));
        }
    }
}
