//! How fast blobs come, and whether a source is so slow that it is left for another. Pure.
//!
//! A blob that comes slowly while others come fast is no reason: they share the way to the registry, and one more request
//! would take from the others what it gets. A source is slow if all that comes of the registry is much less than it was.
//!
//! What it was is told by what sources got themselves meanwhile. A peer that has half of a blob gives that half as fast as
//! the local network and its disk can, and then goes on at the pace of the registry: which is not slow.

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

/// Bytes that came, and how many of them a source got itself meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bytes {
    came: u64,
    own: u64,
}

impl Bytes {
    /// The same in a second, of what took so long.
    fn per_second(self, took: Duration) -> Self {
        let of = |bytes: u64| share(bytes, Duration::from_secs(1), took);
        Self { came: of(self.came), own: of(self.own) }
    }
}

/// What came since a window began.
#[derive(Clone, Debug)]
struct Window {
    since: Instant,
    bytes: Bytes,
}

impl Window {
    fn new(since: Instant) -> Self {
        Self { since, bytes: Bytes::default() }
    }

    /// Bytes came. `Some`, with how many came in a second, if the window ends here.
    fn came(&mut self, bytes: Bytes, now: Instant) -> Option<Bytes> {
        self.bytes.came += bytes.came;
        self.bytes.own += bytes.own;
        let took = now.saturating_duration_since(self.since);
        if took < WINDOW {
            return None;
        }
        let speed = self.bytes.per_second(took);
        *self = Self::new(now);
        Some(speed)
    }
}

/// The best speed of late, in bytes per second.
#[derive(Clone, Copy, Debug, Default)]
struct Best(Option<(u64, Instant)>);

impl Best {
    fn get(self, now: Instant) -> Option<u64> {
        let (speed, at) = self.0?;
        (now.saturating_duration_since(at) < BEST_FOR).then_some(speed)
    }

    fn note(&mut self, speed: u64, now: Instant) {
        if self.get(now).is_none_or(|best| speed >= best) {
            self.0 = Some((speed, now));
        }
    }

    /// Whether a speed is much less.
    fn is_far_above(self, speed: u64, now: Instant) -> bool {
        self.get(now).is_some_and(|best| speed < best / SLOWER_BY)
    }
}

/// What comes of a registry in all, and of its fastest blob.
struct OfRegistry {
    window: Window,
    heard_at: Instant,
    best: Best,
    slow_windows: u32,
    fastest: Best,
}

impl OfRegistry {
    fn new(now: Instant) -> Self {
        let (best, fastest) = (Best::default(), Best::default());
        Self { window: Window::new(now), heard_at: now, best, slow_windows: 0, fastest }
    }

    /// Bytes came of a source whose window has begun at `since`.
    fn came(&mut self, bytes: Bytes, since: Instant, now: Instant) {
        if since.saturating_duration_since(self.heard_at) >= WINDOW {
            // Nobody wanted anything meanwhile.
            (self.window, self.slow_windows) = (Window::new(since), 0);
        }
        self.heard_at = now;
        let Some(speed) = self.window.came(bytes, now) else { return };
        let is_slow = self.best.is_far_above(speed.came, now);
        self.slow_windows = if is_slow { self.slow_windows + 1 } else { 0 };
        self.best.note(speed.own, now);
    }

    fn is_slow(&self) -> bool {
        self.slow_windows >= SLOW_WINDOWS
    }
}

/// How fast what nobody has whole comes of each registry. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Paces(Arc<Mutex<HashMap<Host, OfRegistry>>>);

impl Paces {
    /// Bytes of a blob came in a window that began at `since`, and which perhaps has ended, with this speed. Whether all
    /// that comes of the registry is slow, and this blob by itself.
    fn came(&self, host: &Host, bytes: Bytes, since: Instant, ended: Option<Bytes>, now: Instant) -> bool {
        // What a panic leaves are speeds of a moment before.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REGISTRIES_MAX && !known.contains_key(host) {
            known.retain(|_, of| now.saturating_duration_since(of.heard_at) < BEST_FOR);
            if known.len() >= REGISTRIES_MAX {
                return false;
            }
        }
        let of = known.entry(host.clone()).or_insert_with(|| OfRegistry::new(since));
        of.came(bytes, since, now);
        let Some(speed) = ended else { return false };
        let is_slow = of.is_slow() && of.fastest.is_far_above(speed.came, now);
        of.fastest.note(speed.own, now);
        is_slow
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
pub(super) struct Pace {
    window: Window,
    source: Source,
}

/// How what comes was got.
#[derive(Clone, Debug)]
enum Source {
    /// As it comes.
    Registry,
    /// By a peer, which gives what it has as fast as it can.
    Peer(Ahead),
}

/// A peer that had a part of the blob when it was opened. What is behind that part it got since: how fast in the mean is
/// known, or less than that while we do not have all that it has.
#[derive(Clone, Debug)]
struct Ahead {
    opened: Instant,
    position: u64,
    /// Where that part ends. `None`: it did not say.
    held_bytes: Option<u64>,
    heard_at: Instant,
    /// What it may have got itself since our window began.
    earned_bytes: u64,
}

impl Ahead {
    /// How many of the bytes that came, and of those of this window, it got itself.
    fn own(&mut self, bytes: u64, window: Bytes, now: Instant) -> u64 {
        self.position += bytes;
        let got = self.held_bytes.map_or(0, |held| self.position.saturating_sub(held));
        let step = now.saturating_duration_since(self.heard_at);
        self.heard_at = now;
        self.earned_bytes += share(got, step, now.saturating_duration_since(self.opened));
        self.earned_bytes.min(window.came + bytes) - window.own
    }
}

impl Pace {
    /// Of the registry, opened now.
    pub(super) fn of_registry(now: Instant) -> Self {
        Self { window: Window::new(now), source: Source::Registry }
    }

    /// Of a peer, opened at `position` now, which has the blob up to `held_bytes`, if it said so.
    pub(super) fn of_peer(position: u64, held_bytes: Option<u64>, now: Instant) -> Self {
        let ahead = Ahead { opened: now, position, held_bytes, heard_at: now, earned_bytes: 0 };
        Self { window: Window::new(now), source: Source::Peer(ahead) }
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
        let own = match &mut self.source {
            Source::Registry => bytes,
            Source::Peer(ahead) => ahead.own(bytes, self.window.bytes, now),
        };
        let (bytes, since) = (Bytes { came: bytes, own }, self.window.since);
        let ended = self.window.came(bytes, now);
        if let (Source::Peer(ahead), Some(_)) = (&mut self.source, ended) {
            ahead.earned_bytes = 0;
        }
        let is_slow = paces.came(host, bytes, since, ended, now);
        let is_worth_it = left_bytes > share(ended?.came, WORTH_IT, Duration::from_secs(1));
        Some(Verdict { is_slow, is_worth_it })
    }
}

/// What came in `of`, of bytes that took so long.
fn share(bytes: u64, of: Duration, took: Duration) -> u64 {
    let bytes = u128::from(bytes) * of.as_micros() / took.as_micros().max(1);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    /// The blob of a peer, and in how many milliseconds each chunk of it comes.
    const BLOB_BYTES: u64 = 4096 * MIB;
    const STEP_MS: u64 = 20;

    fn registry() -> (Host, Paces) {
        ("registry.example".parse().unwrap(), Paces::default())
    }

    /// Blobs come side by side, so many MiB of each in each second; what is said of each at the end of each second.
    fn verdicts<const N: usize>(mib_per_second: &[[u64; N]]) -> Vec<[bool; N]> {
        let ((host, paces), begun) = (registry(), Instant::now());
        let mut blobs = [(); N].map(|()| Pace::of_registry(begun));
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

    /// A peer that holds a part of a blob and gets the rest at a pace of its own, as we follow it.
    struct Peer {
        held_bytes: u64,
        got_bytes: u64,
        followed_bytes: u64,
        now: Instant,
        pace: Pace,
    }

    impl Peer {
        /// `says`: it tells what it holds.
        fn new(held_mib: u64, says: bool, now: Instant) -> Self {
            let held_bytes = held_mib * MIB;
            let pace = Pace::of_peer(0, says.then_some(held_bytes), now);
            Self { held_bytes, got_bytes: 0, followed_bytes: 0, now, pace }
        }

        /// It goes on for so long, at so many MiB in a second, which we get by a network of another speed. In how many
        /// windows it is slow.
        fn goes_on(
            &mut self,
            seconds: u64,
            own_mib: u64,
            network_mib: u64,
            (host, paces): (&Host, &Paces),
        ) -> usize {
            let mut slow = 0;
            for _ in 0..seconds * 1000 / STEP_MS {
                self.now += Duration::from_millis(STEP_MS);
                self.got_bytes += own_mib * MIB * STEP_MS / 1000;
                let there = self.held_bytes + self.got_bytes - self.followed_bytes;
                let bytes = there.min(network_mib * MIB * STEP_MS / 1000);
                self.followed_bytes += bytes;
                let left_bytes = BLOB_BYTES - self.followed_bytes;
                let said = self.pace.came(bytes, left_bytes, (host, paces), self.now);
                slow += usize::from(said.is_some_and(|said| said.is_slow));
            }
            slow
        }
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
    fn a_peer_that_gives_its_half_at_the_speed_of_the_network_is_not_slow_when_it_goes_on() {
        for (held_mib, network_mib) in [(300, 100), (1000, 100), (300, 60), (20, 100), (0, 100)] {
            let ((host, paces), now) = (registry(), Instant::now());
            let mut peer = Peer::new(held_mib, true, now);
            let slow = peer.goes_on(40, 8, network_mib, (&host, &paces));
            assert_eq!(slow, 0, "{held_mib} MiB at {network_mib} MiB/s");
            assert!(peer.goes_on(5, 1, network_mib, (&host, &paces)) > 0, "it was faster by itself");
        }
    }

    #[test]
    fn of_a_peer_that_does_not_say_what_it_holds_nothing_is_expected() {
        let ((host, paces), now) = (registry(), Instant::now());
        let mut peer = Peer::new(300, false, now);
        assert_eq!(peer.goes_on(20, 8, 100, (&host, &paces)), 0);
        assert_eq!(peer.goes_on(20, 1, 100, (&host, &paces)), 0);
    }

    #[test]
    fn the_half_of_a_peer_makes_no_other_source_slow() {
        let ((host, paces), now) = (registry(), Instant::now());
        let mut peer = Peer::new(300, true, now);
        peer.goes_on(3, 8, 100, (&host, &paces));
        let mut other = Peer::new(0, true, peer.now);
        assert_eq!(other.goes_on(8, 8, 100, (&host, &paces)), 0);
    }

    #[test]
    fn bytes_that_come_in_bursts_count_as_those_that_flow() {
        let ((host, paces), begun) = (registry(), Instant::now());
        let mut blob = Pace::of_peer(0, Some(0), begun);
        let mut slow = Vec::new();
        for tenth in 1..=60_u32 {
            let now = begun + Duration::from_millis(100) * tenth;
            let mib = if tenth <= 30 { 2 } else { 0 };
            // Ten chunks at once.
            slow.extend((0..10).filter_map(|_| blob.came(mib * MIB / 10, 64 * MIB, (&host, &paces), now)));
        }
        assert_eq!(slow.iter().position(|said| said.is_slow), Some(4), "{slow:?}");
    }

    #[test]
    fn time_in_which_nobody_wants_anything_is_not_slow() {
        let ((host, paces), begun) = (registry(), Instant::now());
        let speeds = |at_seconds: u64, mib: &[u64]| {
            let begun = begun + Duration::from_secs(at_seconds);
            let mut blob = Pace::of_registry(begun);
            assert_eq!(blob.came(1, 64 * MIB, (&host, &paces), begun), None);
            let said = (1..).zip(mib).map(|(n, mib)| {
                blob.came(mib * MIB, 64 * MIB, (&host, &paces), begun + Duration::from_secs(n)).unwrap()
            });
            said.map(|said| said.is_slow).collect::<Vec<_>>()
        };
        assert_eq!(speeds(0, &[20, 20]), [false; 2]);
        assert_eq!(speeds(7, &[1, 1]), [false, true], "two windows of its own, and none of silence");
    }

    #[test]
    fn no_more_registries_are_known_than_there_may_be() {
        let (paces, now) = (Paces::default(), Instant::now());
        for n in 0..REGISTRIES_MAX + 10 {
            let host: Host = format!("registry{n}.example").parse().unwrap();
            Pace::of_registry(now).came(1, 1, (&host, &paces), now);
        }
        assert_eq!(paces.0.lock().unwrap().len(), REGISTRIES_MAX);
    }

    #[test]
    fn what_comes_soon_is_waited_for() {
        let ((host, paces), begun) = (registry(), Instant::now());
        let worth = |mib| {
            let end = begun + Duration::from_secs(1);
            Pace::of_registry(begun).came(mib * MIB, 64 * MIB, (&host, &paces), end).unwrap().is_worth_it
        };
        assert!(worth(60));
        assert!(!worth(70));
    }
}
