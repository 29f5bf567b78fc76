//! Which connection gives up its place for a newcomer when all are taken, as Kubo's connection manager trims: never one
//! of use, and none in its grace time; of the others the least valued. Pure.

use std::time::Duration;

use libp2p::swarm::ConnectionId;
use tokio::time::Instant;

use super::subnets::{Counts, Subnet};

/// How long a connection may take to become of use. Kubo gives as much.
pub(super) const GRACE: Duration = Duration::from_secs(20);

/// A connection, as far as its place goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) id: ConnectionId,
    pub(super) subnet: Subnet,
    /// What its subnet may have.
    pub(super) share: u32,
    pub(super) since: Instant,
    /// When it last served for something.
    pub(super) used: Instant,
    pub(super) is_of_use: bool,
}

/// Where there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// Nowhere.
    All,
    /// The subnet of the newcomer has its share.
    Subnet,
}

/// The place to give up for a newcomer from `newcomer`: of the subnet that has the most, the one that was idle for longest.
/// `None`: there is none, and the newcomer has to try again. One pass over `places`.
///
/// A subnet makes room out of itself, or of those that have as many: who comes with many ids from few networks drives out
/// his own. Against who comes from elsewhere no grace time helps a subnet that has taken half its share, or a flood would
/// hold all places by coming anew.
pub(super) fn least_valued(
    places: impl Iterator<Item = Place>,
    counts: &Counts,
    newcomer: Subnet,
    full: Full,
    now: Instant,
) -> Option<ConnectionId> {
    let own = counts.get(newcomer);
    let gives_way = |place: &Place| {
        let count = counts.get(place.subnet);
        let may_be_asked = match full {
            Full::Subnet => place.subnet == newcomer,
            Full::All => count >= own,
        };
        let is_crowd = place.subnet != newcomer && count > own && count * 2 >= place.share;
        let is_settled = now.saturating_duration_since(place.since) >= GRACE;
        may_be_asked && !place.is_of_use && (is_settled || is_crowd)
    };
    let idle = |place: &Place| now.saturating_duration_since(place.used);
    places.filter(gives_way).max_by_key(|place| (counts.get(place.subnet), idle(place))).map(|place| place.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: u32 = 8;

    /// The places of a table, and what has to go for whom.
    struct Table {
        start: Instant,
        places: Vec<Place>,
    }

    fn net(n: u8) -> Subnet {
        Subnet::V4([8, 8, n])
    }

    impl Table {
        fn new() -> Self {
            Self { start: Instant::now(), places: Vec::new() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        /// `since` and `used`: in seconds from the start.
        fn holds(&mut self, subnet: u8, since: u64, used: u64, is_of_use: bool) -> ConnectionId {
            let id = ConnectionId::new_unchecked(self.places.len());
            let (since, used) = (self.at(since), self.at(used));
            self.places.push(Place { id, subnet: net(subnet), share: SHARE, since, used, is_of_use });
            id
        }

        fn leaves(&self, newcomer: u8, full: Full, seconds: u64) -> Option<ConnectionId> {
            let mut counts = Counts::default();
            self.places.iter().for_each(|place| counts.add(place.subnet));
            least_valued(self.places.iter().copied(), &counts, net(newcomer), full, self.at(seconds))
        }
    }

    #[test]
    fn the_longest_idle_goes_and_nobody_of_use() {
        let mut table = Table::new();
        table.holds(1, 0, 0, true);
        table.holds(2, 0, 50, false);
        let idle = table.holds(3, 0, 10, false);
        assert_eq!(table.leaves(9, Full::All, 100), Some(idle));
        table.places.iter_mut().for_each(|place| place.is_of_use = true);
        assert_eq!(table.leaves(9, Full::All, 100), None, "all are of use");
    }

    #[test]
    fn a_newcomer_has_a_grace_time() {
        let mut table = Table::new();
        let young = table.holds(1, 100, 100, false);
        assert_eq!(table.leaves(2, Full::All, 119), None);
        assert_eq!(table.leaves(2, Full::All, 120), Some(young));
    }

    #[test]
    fn of_most_subnets_the_crowded_one_makes_room() {
        let mut table = Table::new();
        table.holds(1, 0, 0, false);
        let crowd = [5, 6, 7].map(|used| table.holds(2, 0, used, false));
        assert_eq!(table.leaves(3, Full::All, 100), Some(crowd[0]), "though another is idle for longer");
        assert_eq!(table.leaves(2, Full::All, 100), Some(crowd[0]), "and out of itself");
    }

    #[test]
    fn a_crowd_drives_out_nobody_from_elsewhere() {
        let mut table = Table::new();
        table.holds(1, 0, 0, false);
        for _ in 0..3 {
            table.holds(2, 99, 99, false);
        }
        assert_eq!(table.leaves(2, Full::All, 100), None, "its own are too young, and others are fewer");
        assert_eq!(table.leaves(2, Full::Subnet, 100), None);
        assert_eq!(table.leaves(2, Full::Subnet, 119), Some(ConnectionId::new_unchecked(3)));
    }

    #[test]
    fn a_flood_that_always_comes_anew_does_not_keep_others_out() {
        let mut table = Table::new();
        let flood: Vec<_> =
            (0..SHARE).map(|n| table.holds(1, 90 + u64::from(n), 90 + u64::from(n), false)).collect();
        assert_eq!(table.leaves(2, Full::All, 100), Some(flood[0]));
        assert_eq!(table.leaves(1, Full::Subnet, 100), None);
        table.places.truncate(SHARE as usize / 2 - 1);
        assert_eq!(table.leaves(2, Full::All, 100), None, "so few may be honest");
    }
}
