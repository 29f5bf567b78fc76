//! What we announce: roots, in the order of the keyspace, and again before the announcements expire. Pure but for its
//! owner's clock.
//!
//! The peers closest to a key are those closest to its neighbours too. So one look-up serves a whole region, the keys that
//! share more leading bits with its target than the farthest of the peers found; what grew old in the region meanwhile
//! goes along. The number of look-ups is bounded by the size of the network, not by what is announced.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use libp2p::PeerId;
use libp2p::kad::{KBucketKey, RecordKey};

use super::behaviour::PROVIDED_KEYS_MAX;

/// Provider records live for 48 hours at Kubo and 24 elsewhere; a lookup may miss one that is about to end.
const AGAIN_AFTER: Duration = Duration::from_secs(12 * 3600);
/// What was announced as long ago as this goes along when its region is served anyway.
const ALONG_AFTER: Duration = Duration::from_secs(6 * 3600);
/// Regions that are under way at once.
pub(super) const REGIONS_MAX: usize = 16;
/// Keys of one region; the rest of it takes another look-up, so that one with a poor answer spoils no more than these.
pub(super) const REGION_KEYS_MAX: usize = 1024;

/// Where a key or a peer is in the keyspace: its SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place([u8; 32]);

impl Place {
    fn of<T>(key: &KBucketKey<T>) -> Self {
        let mut place = [0; 32];
        place.copy_from_slice(key.hashed_bytes());
        Self(place)
    }

    pub(super) fn of_key(key: &RecordKey) -> Self {
        Self::of(&KBucketKey::new(key.clone()))
    }

    pub(super) fn of_peer(peer: &PeerId) -> Self {
        Self::of(&KBucketKey::from(*peer))
    }

    /// Leading bits that both have.
    pub(super) fn shared_bits(&self, other: &Self) -> u32 {
        let mut bits = 0;
        for (ours, theirs) in self.0.iter().zip(&other.0) {
            match (ours ^ theirs).leading_zeros() {
                8 => bits += 8,
                some => return bits + some,
            }
        }
        bits
    }

    /// The first and the last place that share so many leading bits with this one.
    fn region(&self, bits: u32) -> (Self, Self) {
        let (mut first, mut last) = (self.0, self.0);
        for (byte, at) in (0..).step_by(8).zip(0..32) {
            let free = 0xff_u8.checked_shr(bits.saturating_sub(byte)).unwrap_or_default();
            first[at] &= !free;
            last[at] |= free;
        }
        (Self(first), Self(last))
    }
}

/// The announcements in one DHT: what the other one was told says nothing here.
#[derive(Default)]
pub(super) struct Providing {
    known: BTreeMap<Place, Known>,
    waiting: BTreeSet<Place>,
    /// Where the sweep goes on.
    cursor: Option<Place>,
    /// The targets of look-ups under way.
    targets: Vec<Place>,
    /// Regions of which peers are being told.
    telling: usize,
    /// The leading bits that make a region, as the last look-up had it.
    bits: u32,
}

struct Known {
    key: RecordKey,
    /// When it was last announced; `None` while it waits.
    announced: Option<Instant>,
}

impl Providing {
    /// Takes a key in, unless it waits or was announced lately. `false`: there is no room for another key.
    pub(super) fn add(&mut self, key: RecordKey) -> bool {
        let (place, len) = (Place::of_key(&key), self.known.len());
        if let Entry::Vacant(vacant) = self.known.entry(place) {
            if len >= PROVIDED_KEYS_MAX {
                return false;
            }
            vacant.insert(Known { key, announced: None });
            self.waiting.insert(place);
        }
        true
    }

    /// The key whose closest peers are to be looked up next: the first that waits outside the regions under way. None while
    /// [`REGIONS_MAX`] of these are. Ended by [`take`](Self::take).
    pub(super) fn next(&mut self) -> Option<RecordKey> {
        if self.under_way() >= REGIONS_MAX {
            return None;
        }
        let start = self.cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let place = self.free_in((start, Bound::Unbounded)).or_else(|| {
            let end = self.cursor.map_or(Bound::Unbounded, Bound::Included);
            self.free_in((Bound::Unbounded, end))
        })?;
        self.targets.push(place);
        self.cursor = Some(place);
        self.known.get(&place).map(|known| known.key.clone())
    }

    fn free_in(&self, range: (Bound<Place>, Bound<Place>)) -> Option<Place> {
        let (mut start, end) = range;
        loop {
            let place = *self.waiting.range((start, end)).next()?;
            if self.targets.iter().all(|target| target.shared_bits(&place) < self.bits) {
                return Some(place);
            }
            let (_, last) = place.region(self.bits);
            let is_over = match end {
                Bound::Included(end) => last >= end,
                _ => last == Place([0xff; 32]),
            };
            if is_over {
                return None;
            }
            start = Bound::Excluded(last);
        }
    }

    /// Regions that are looked up, or of which peers are being told.
    pub(super) fn under_way(&self) -> usize {
        self.targets.len() + self.telling
    }

    /// The look-up for `target` has found these peers, the closest to it: which keys they are to be told of, which ends with
    /// [`told`](Self::told). None when nobody was found; the target waits on.
    pub(super) fn take(&mut self, target: &RecordKey, closest: &[PeerId], now: Instant) -> Vec<RecordKey> {
        let target = Place::of_key(target);
        self.targets.retain(|known| *known != target);
        let shared = closest.iter().map(|peer| target.shared_bits(&Place::of_peer(peer)));
        let Some(least) = shared.min() else { return Vec::new() };
        self.bits = least + 1;
        let (first, last) = target.region(self.bits);
        let mut keys = Vec::new();
        // From the target on, lest a crowded region keep it waiting.
        for range in [
            (Bound::Included(target), Bound::Included(last)),
            (Bound::Included(first), Bound::Excluded(target)),
        ] {
            for (place, known) in self.known.range_mut(range) {
                let is_due =
                    known.announced.is_none_or(|at| now.saturating_duration_since(at) >= ALONG_AFTER);
                if is_due && keys.len() < REGION_KEYS_MAX {
                    known.announced = Some(now);
                    self.waiting.remove(place);
                    keys.push(known.key.clone());
                }
            }
        }
        self.telling += usize::from(!keys.is_empty());
        keys
    }

    /// So many peers were told of these keys. If none was, they wait again.
    pub(super) fn told(&mut self, keys: &[RecordKey], peers: usize) {
        self.telling = self.telling.saturating_sub(1);
        if peers > 0 {
            return;
        }
        for place in keys.iter().map(Place::of_key) {
            if let Some(known) = self.known.get_mut(&place) {
                known.announced = None;
                self.waiting.insert(place);
            }
        }
    }

    /// Has what was announced long ago wait again.
    pub(super) fn renew(&mut self, now: Instant) {
        for (place, known) in &mut self.known {
            if known.announced.is_some_and(|at| now.saturating_duration_since(at) >= AGAIN_AFTER) {
                known.announced = None;
                self.waiting.insert(*place);
            }
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Peers that a look-up finds.
    const CLOSEST: usize = 20;

    fn key(n: u32) -> RecordKey {
        RecordKey::new(&n.to_be_bytes())
    }

    fn peers(count: usize) -> Vec<(Place, PeerId)> {
        let peers = std::iter::repeat_with(PeerId::random).take(count);
        peers.map(|peer| (Place::of_peer(&peer), peer)).collect()
    }

    fn closest(network: &[(Place, PeerId)], key: &RecordKey) -> Vec<PeerId> {
        let place = Place::of_key(key).0;
        let mut network = network.to_vec();
        network.sort_by_key(|(at, _)| std::array::from_fn::<u8, 32, _>(|n| at.0[n] ^ place[n]));
        network.into_iter().take(CLOSEST).map(|(_, peer)| peer).collect()
    }

    /// Announces all that waits; returns each look-up's keys and peers.
    fn sweep(
        providing: &mut Providing,
        network: &[(Place, PeerId)],
        now: Instant,
    ) -> Vec<(Vec<RecordKey>, Vec<PeerId>)> {
        let looked_up = std::iter::from_fn(|| {
            let target = providing.next()?;
            let found = closest(network, &target);
            let keys = providing.take(&target, &found, now);
            providing.told(&keys, found.len());
            Some((keys, found))
        });
        looked_up.collect()
    }

    #[test]
    fn neighbours_share_a_look_up_and_are_told_to_those_closest_to_them() {
        const KEYS: u32 = 100_000;
        const PEERS: usize = 1000;
        /// Of so many keys one is looked at.
        const SAMPLED: usize = 1000;
        let (mut providing, network) = (Providing::default(), peers(PEERS));
        assert!((0..KEYS).all(|n| providing.add(key(n))));
        let regions = sweep(&mut providing, &network, Instant::now());
        assert_eq!(providing.waiting(), 0);
        assert_eq!(regions.iter().map(|(keys, _)| keys.len()).sum::<usize>(), 100_000, "each key once");
        // As many as there are groups of peers, whatever there is to announce.
        assert!(regions.len() < PEERS / 4, "{} look-ups", regions.len());
        let mut right = 0;
        for (keys, told) in &regions {
            for key in keys.iter().step_by(SAMPLED) {
                let ideal = closest(&network, key);
                assert!(told.contains(&ideal[0]), "who looks a key up asks the closest peer in the end");
                right += ideal.iter().filter(|peer| told.contains(peer)).count();
            }
        }
        let sampled: usize = regions.iter().map(|(keys, _)| keys.len().div_ceil(SAMPLED)).sum();
        let share = right as f64 / (sampled * CLOSEST) as f64;
        assert!(share > 0.8, "{share}");
    }

    #[test]
    fn the_sweep_follows_the_keyspace() {
        let (mut providing, network) = (Providing::default(), peers(200));
        assert!((0..1000).all(|n| providing.add(key(n))));
        let regions = sweep(&mut providing, &network, Instant::now());
        let firsts: Vec<Place> = regions.iter().map(|(keys, _)| Place::of_key(&keys[0])).collect();
        assert!(firsts.is_sorted(), "neighbours come one after the other");
    }

    #[test]
    fn look_ups_under_way_are_in_different_regions() {
        let (mut providing, network) = (Providing::default(), peers(500));
        assert!((0..5000).all(|n| providing.add(key(n))));
        let first = providing.next().unwrap();
        assert_eq!(providing.next(), None, "how large a region is shows with the first");
        let keys = providing.take(&first, &closest(&network, &first), Instant::now());
        let told: BTreeSet<_> = keys.iter().map(Place::of_key).collect();
        let targets: Vec<_> = std::iter::from_fn(|| providing.next()).take(8).collect();
        assert_eq!((targets.len(), providing.under_way()), (8, 9));
        let places: BTreeSet<_> = targets.iter().map(Place::of_key).collect();
        assert!(places.len() == 8 && places.is_disjoint(&told));
    }

    #[test]
    fn a_key_is_announced_once_and_again_when_it_grows_old() {
        let (mut providing, network, start) = (Providing::default(), peers(3), Instant::now());
        assert!(providing.add(key(1)) && providing.add(key(1)));
        sweep(&mut providing, &network, start);
        assert!(providing.add(key(1)));
        assert_eq!(providing.next(), None);
        providing.renew(start + AGAIN_AFTER - Duration::from_secs(1));
        assert_eq!(providing.waiting(), 0);
        providing.renew(start + AGAIN_AFTER);
        assert_eq!(providing.waiting(), 1);
    }

    #[test]
    fn what_grew_old_goes_along_with_its_neighbour() {
        let (mut providing, start) = (Providing::default(), Instant::now());
        let mut announced = |n: u32, at: Instant| {
            providing.add(key(n));
            let target = providing.next().unwrap();
            // A peer in the other half of the keyspace: the region is the half of the target.
            let far = std::iter::repeat_with(PeerId::random)
                .find(|peer| Place::of_peer(peer).shared_bits(&Place::of_key(&target)) == 0);
            providing.take(&target, &[far.unwrap()], at)
        };
        let half = |n: &u32| Place::of_key(&key(*n)).0[0] < 128;
        let together: Vec<u32> = (0..).filter(half).take(3).collect();
        assert_eq!(announced(together[0], start), [key(together[0])]);
        let soon = announced(together[1], start + ALONG_AFTER - Duration::from_secs(1));
        assert_eq!(soon, [key(together[1])]);
        let later = announced(together[2], start + ALONG_AFTER);
        assert_eq!(later, [key(together[2]), key(together[0])]);
    }

    #[test]
    fn what_reached_nobody_waits_again() {
        let (mut providing, network) = (Providing::default(), peers(3));
        providing.add(key(1));
        let target = providing.next().unwrap();
        assert!(providing.take(&target, &[], Instant::now()).is_empty());
        assert_eq!((providing.waiting(), providing.under_way()), (1, 0), "nobody was found");
        let target = providing.next().unwrap();
        let keys = providing.take(&target, &closest(&network, &target), Instant::now());
        assert_eq!((providing.waiting(), providing.under_way()), (0, 1));
        providing.told(&keys, 0);
        assert_eq!((providing.waiting(), providing.under_way()), (1, 0), "nobody was told");
    }

    #[test]
    fn one_answer_serves_no_more_than_so_many_keys() {
        let mut providing = Providing::default();
        let many = u32::try_from(3 * REGION_KEYS_MAX).unwrap();
        assert!((0..many).all(|n| providing.add(key(n))));
        let regions = sweep(&mut providing, &peers(2), Instant::now());
        assert!(regions.iter().all(|(keys, _)| (1..=REGION_KEYS_MAX).contains(&keys.len())));
        assert_eq!(regions.iter().map(|(keys, _)| keys.len()).sum::<usize>(), 3 * REGION_KEYS_MAX);
    }

    #[test]
    fn what_is_announced_is_bounded() {
        let mut providing = Providing::default();
        let limit = u32::try_from(PROVIDED_KEYS_MAX).unwrap();
        assert!((0..limit).all(|n| providing.add(key(n))));
        assert!(!providing.add(key(limit)));
        assert!(providing.add(key(0)));
    }

    #[test]
    fn a_region_is_what_shares_its_leading_bits() {
        let place = Place([0b1010_1010; 32]);
        let (first, last) = place.region(11);
        assert_eq!((first.0[..3].to_vec(), last.0[..3].to_vec()), (vec![170, 160, 0], vec![170, 191, 255]));
        assert_eq!(place.region(0), (Place([0; 32]), Place([255; 32])));
        assert_eq!(place.region(256), (place, place));
        assert_eq!((place.shared_bits(&last), place.shared_bits(&place)), (11, 256));
    }
}
