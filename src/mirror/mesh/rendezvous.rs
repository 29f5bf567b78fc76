//! Who of us goes upstream for what: highest random weight over the peers and ourselves, so that all agree without
//! talking, and a peer that goes takes only what was its own with it. Pure.

use std::cmp::Reverse;

use sha2::{Digest as _, Sha256};

use super::holdings::Key;
use crate::ipfs::Peer;

/// How much a peer is meant for a key: the same wherever it is computed, whoever else is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Weight(u64);

pub(super) fn weight(peer: &Peer, key: Key) -> Weight {
    let hash =
        Sha256::new().chain_update(peer.as_str()).chain_update([0]).chain_update(key.to_bytes()).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    Weight(u64::from_be_bytes(first))
}

/// The succession: who is asked first, and who takes over.
pub(super) fn succession(mut peers: Vec<Peer>, key: Key) -> Vec<Peer> {
    peers.sort_by_cached_key(|peer| Reverse((weight(peer, key), peer.clone())));
    peers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Digest;

    fn peers(count: usize) -> Vec<Peer> {
        (0..count).map(|n| Peer::new(&format!("peer{n}"))).collect()
    }

    fn key(n: u32) -> Key {
        Key::of_digest(&Digest::sha256(&n.to_le_bytes()))
    }

    proptest! {
        #[test]
        fn all_agree_in_whatever_order_they_met(n: u32, shuffled in Just(peers(12)).prop_shuffle()) {
            prop_assert_eq!(succession(shuffled, key(n)), succession(peers(12), key(n)));
        }

        #[test]
        fn who_goes_takes_only_its_own_with_it(n: u32, gone in 0..12_usize) {
            let all = succession(peers(12), key(n));
            let mut left = peers(12);
            let gone = left.remove(gone);
            let wanted: Vec<Peer> = all.into_iter().filter(|peer| *peer != gone).collect();
            prop_assert_eq!(succession(left, key(n)), wanted);
        }
    }

    #[test]
    fn the_work_is_spread() {
        let mut first = std::collections::HashMap::<Peer, usize>::new();
        for n in 0..4000 {
            *first.entry(succession(peers(8), key(n)).remove(0)).or_default() += 1;
        }
        assert_eq!(first.len(), 8);
        assert!(first.values().all(|count| (350..650).contains(count)), "{first:?}");
    }
}
