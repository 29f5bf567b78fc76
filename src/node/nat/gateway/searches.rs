//! When to look for a gateway. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How long a gateway may take to be found and to open a port.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Pauses while there is none: doubled from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// The pause while there is one: it may have forgotten us, or be another one by now.
const RENEWAL: Duration = Duration::from_secs(300);
/// After a new address: those of one network come one after the other.
const SETTLING: Duration = Duration::from_secs(1);
/// From one search to the next, whatever happens.
const SPACING: Duration = Duration::from_secs(5);
/// Searches in vain, one after the other, after which a gateway that was there is gone.
const MISSES_MAX: u32 = 3;

/// What a search in vain means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// A gateway that was there may be there still.
    Doubtful,
    Gone,
}

/// The searches, of which one is under way at most.
pub(super) struct Searches {
    /// When the next is to begin, or the one that is under way has failed.
    next: Instant,
    /// After the next one that is in vain.
    pause: Duration,
    begun: u64,
    begun_at: Option<Instant>,
    misses: u32,
    /// An address is new since the last one was begun.
    is_hurried: bool,
    is_under_way: bool,
}

impl Searches {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            next: now + SETTLING,
            pause: PAUSE.0,
            begun: 0,
            begun_at: None,
            misses: 0,
            is_hurried: false,
            is_under_way: false,
        }
    }

    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// An address is new: the network may be another one.
    pub(super) fn hurry(&mut self, now: Instant) {
        (self.is_hurried, self.pause) = (true, PAUSE.0);
        if !self.is_under_way {
            // The first of some: those that come behind it do not put it off.
            self.next = self.next.min(self.soon(now)).max(now);
        }
    }

    /// A search begins. Its number, from one on.
    pub(super) fn begun(&mut self, now: Instant) -> u64 {
        (self.is_hurried, self.is_under_way, self.begun_at) = (false, true, Some(now));
        self.next = now + SEARCH_TIMEOUT;
        self.begun += 1;
        self.begun
    }

    /// A gateway was found, and has opened a port.
    pub(super) fn found(&mut self, now: Instant) {
        (self.misses, self.pause) = (0, PAUSE.0);
        self.ended(now, RENEWAL);
    }

    /// A search was in vain.
    pub(super) fn missed(&mut self, now: Instant) -> Standing {
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        self.misses = self.misses.saturating_add(1);
        self.ended(now, pause);
        if self.misses >= MISSES_MAX { Standing::Gone } else { Standing::Doubtful }
    }

    fn ended(&mut self, now: Instant, pause: Duration) {
        self.is_under_way = false;
        self.next = if self.is_hurried { self.soon(now) } else { now + pause };
    }

    fn soon(&self, now: Instant) -> Instant {
        let settled = now + SETTLING;
        self.begun_at.map_or(settled, |begun_at| settled.max(begun_at + SPACING))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds in which searches begin that are all in vain at once, within so many; in `hurried` an address is new.
    fn begun(searches: &mut Searches, start: Instant, seconds: u64, hurried: &[u64]) -> Vec<u64> {
        let begins = |second: &u64| {
            let now = start + Duration::from_secs(*second);
            if hurried.contains(second) {
                searches.hurry(now);
            }
            let is_due = now >= searches.next();
            if is_due {
                searches.begun(now);
                searches.missed(now);
            }
            is_due
        };
        (0..seconds).filter(begins).collect()
    }

    #[test]
    fn the_pauses_grow_up_to_some_minutes() {
        let start = Instant::now();
        let seconds = begun(&mut Searches::new(start), start, 2000, &[]);
        assert_eq!(seconds, [1, 6, 16, 36, 76, 156, 316, 616, 916, 1216, 1516, 1816]);
    }

    #[test]
    fn a_new_address_is_looked_with_at_once_and_the_pauses_begin_anew() {
        let start = Instant::now();
        let seconds = begun(&mut Searches::new(start), start, 400, &[200]);
        assert_eq!(seconds, [1, 6, 16, 36, 76, 156, 201, 206, 216, 236, 276, 356]);
    }

    #[test]
    fn addresses_that_come_and_go_all_the_time_do_not_make_it_busy() {
        let start = Instant::now();
        let flapping: Vec<u64> = (0..60).collect();
        let searches = begun(&mut Searches::new(start), start, 60, &flapping);
        assert_eq!(searches, (1..60).step_by(5).collect::<Vec<_>>());
    }

    #[test]
    fn an_address_that_is_new_while_a_search_is_under_way_has_the_next() {
        let (start, at) = (Instant::now(), |seconds| Duration::from_secs(seconds));
        let mut searches = Searches::new(start);
        searches.begun(start);
        searches.hurry(start + at(2));
        assert_eq!(searches.next(), start + SEARCH_TIMEOUT, "it is given its time");
        searches.found(start + at(9));
        assert_eq!(searches.next(), start + at(10));
    }

    #[test]
    fn a_gateway_is_gone_after_some_searches_in_vain() {
        let now = Instant::now();
        let mut searches = Searches::new(now);
        for _ in 0..2 {
            assert_eq!(
                (1..MISSES_MAX).map(|_| searches.missed(now)).find(|said| *said == Standing::Gone),
                None
            );
            searches.found(now);
        }
        assert_eq!((0..MISSES_MAX).map(|_| searches.missed(now)).last(), Some(Standing::Gone));
    }
}
