//! How fast blobs come, and whether a source is so slow that it is left for another. Pure.
//!
//! A blob that comes slowly while others come fast is no reason: they share the way to the registry, and one more request
//! would take from the others what it gets. A source is slow if all that comes of the registry is much less than it was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::oci::Host;

/// Over how long a speed is taken.
const WINDOW: Duration = Duration::from_secs(1);
/// What is less than a part of the best is slow …
const SLOWER_BY: u64 = 4;
/// … in so many windows, one after the other.
const SLOW_WINDOWS: u32 = 2;
/// How long the best counts.
const BEST_FOR: Duration = Duration::from_secs(10);
/// What would come within this time is not worth another request.
const WORTH_IT: Duration = Duration::from_secs(1);
/// Registries whose speed is known.
const REGISTRIES_MAX: usize = 1024;

/// Bytes per second, window by window, and the best of late.
#[derive(Clone, Debug)]
struct Speed {
    since: Instant,
    came_bytes: u64,
    best: Option<(u64, Instant)>,
    slow_windows: u32,
}

impl Speed {
    fn new(now: Instant) -> Self {
        Self { since: now, came_bytes: 0, best: None, slow_windows: 0 }
    }

    /// Bytes came. `Some`, with the speed in it, if a window ends here.
    fn came(&mut self, bytes: u64, now: Instant) -> Option<u64> {
        self.came_bytes += bytes;
        let took = now.duration_since(self.since);
        if took < WINDOW {
            return None;
        }
        let speed = u128::from(self.came_bytes) * 1_000_000 / took.as_micros().max(1);
        let speed = u64::try_from(speed).unwrap_or(u64::MAX);
        (self.since, self.came_bytes) = (now, 0);
        self.ended(speed, now);
        Some(speed)
    }

    fn ended(&mut self, speed: u64, now: Instant) {
        let best = self.best.filter(|(_, at)| now.duration_since(*at) < BEST_FOR);
        self.best = Some(best.filter(|(best, _)| *best > speed).unwrap_or((speed, now)));
        let is_slow = best.is_some_and(|(best, _)| speed < best / SLOWER_BY);
        self.slow_windows = if is_slow { self.slow_windows + 1 } else { 0 };
    }

    fn is_slow(&self) -> bool {
        self.slow_windows >= SLOW_WINDOWS
    }
}

/// What comes of a registry in all, and of its fastest blob.
struct OfRegistry {
    total: Speed,
    fastest: Speed,
}

/// How fast what nobody has whole comes of each registry. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Paces(Arc<Mutex<HashMap<Host, OfRegistry>>>);

impl Paces {
    /// Bytes of a blob came, and perhaps a window of it has ended. Whether all that comes of the registry is slow, and
    /// this blob by itself.
    fn came(&self, host: &Host, bytes: u64, ended: Option<u64>, now: Instant) -> bool {
        // What a panic leaves are speeds of a moment before.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REGISTRIES_MAX && !known.contains_key(host) {
            known.retain(|_, of| now.duration_since(of.total.since) < BEST_FOR);
        }
        let of = known
            .entry(host.clone())
            .or_insert_with(|| OfRegistry { total: Speed::new(now), fastest: Speed::new(now) });
        of.total.came(bytes, now);
        let Some(speed) = ended else { return false };
        let fastest = of.fastest.best.filter(|(_, at)| now.duration_since(*at) < BEST_FOR);
        of.fastest.ended(speed, now);
        of.total.is_slow() && fastest.is_some_and(|(fastest, _)| speed < fastest / SLOWER_BY)
    }
}

/// What a source has shown in the last window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// It holds us up.
    pub(super) is_slow: bool,
    /// The rest will take long enough to look for another source.
    pub(super) is_worth_it: bool,
}

/// How fast one source brings a blob.
#[derive(Clone, Debug)]
pub(super) struct Pace(Speed);

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self(Speed::new(now))
    }

    /// Bytes came from a source that has them from upstream itself as it goes, and `left_bytes` are missing. A verdict is
    /// given once in a window.
    pub(super) fn came(
        &mut self,
        bytes: u64,
        left_bytes: u64,
        (host, paces): (&Host, &Paces),
        now: Instant,
    ) -> Option<Verdict> {
        let speed = self.0.came(bytes, now);
        let is_slow = paces.came(host, bytes, speed, now);
        let is_worth_it = u128::from(left_bytes) > u128::from(speed?) * WORTH_IT.as_millis() / 1000;
        Some(Verdict { is_slow, is_worth_it })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Blobs come side by side, so many MiB of each in each second; what is said of each at the end of each second.
    fn verdicts<const N: usize>(mib_per_second: &[[u64; N]]) -> Vec<[bool; N]> {
        let (host, begun) = ("registry.example".parse().unwrap(), Instant::now());
        let (paces, mut blobs) = (Paces::default(), [(); N].map(|()| Pace::new(begun)));
        let second = |second: u64, mib: &[u64; N]| {
            let (middle, end) =
                (begun + Duration::from_millis(second * 1000 - 500), begun + Duration::from_secs(second));
            for (blob, mib) in blobs.iter_mut().zip(mib) {
                assert_eq!(blob.came(mib * MIB, 64 * MIB, (&host, &paces), middle), None);
            }
            let mut said = blobs.iter_mut().map(|blob| blob.came(0, 64 * MIB, (&host, &paces), end).unwrap());
            [(); N].map(|()| said.next().unwrap().is_slow)
        };
        let mut second = second;
        (1..).zip(mib_per_second).map(|(n, mib)| second(n, mib)).collect()
    }

    #[test]
    fn one_that_brings_little_while_others_bring_much_shares_their_way() {
        assert_eq!(verdicts(&[[20, 1], [20, 1], [20, 1], [20, 1]]), [[false; 2]; 4]);
    }

    #[test]
    fn one_is_slow_when_all_the_others_have_come() {
        let said = verdicts(&[[20, 1], [20, 1], [0, 1], [0, 1], [0, 1]]);
        assert!(!said[2][1] && said[4][1], "{said:?}");
    }

    #[test]
    fn one_that_was_never_faster_is_not_slow() {
        assert_eq!(verdicts(&[[1], [1], [1], [1]]), [[false]; 4]);
        let shared = [[5, 5, 5, 5], [5, 5, 5, 5], [5, 0, 0, 0], [5, 0, 0, 0], [5, 0, 0, 0]];
        assert!(verdicts(&shared).iter().all(|said| !said[0]), "each alone is held to a speed");
    }

    #[test]
    fn what_comes_soon_is_waited_for() {
        let (host, begun) = ("registry.example".parse().unwrap(), Instant::now());
        let worth = |mib| {
            let end = begun + Duration::from_secs(1);
            Pace::new(begun).came(mib * MIB, 64 * MIB, (&host, &Paces::default()), end).unwrap().is_worth_it
        };
        assert!(worth(60));
        assert!(!worth(70));
    }
}
