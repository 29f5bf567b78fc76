//! What we know of one peer as a source of blocks: what it is asked for, how fast it is, whether it can be trusted.
//! Pure.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::ipld::{Cid, Multihash};
use crate::node::bitswap::message::Entry;

/// Blocks asked of one peer at a time.
const IN_FLIGHT_MAX: usize = 64;
/// Blocks that may be asked however slow the peer is: one under way, one to follow.
const IN_FLIGHT_MIN: usize = 2;
/// Bytes asked of one peer at a time: what it sends in a second, within these.
const WINDOW_BYTES_MIN: f64 = (1024 * 1024) as f64;
const WINDOW_BYTES_MAX: f64 = (16 * 1024 * 1024) as f64;
/// What a peer is taken to send per second before it was measured.
const RATE_GUESS: f64 = WINDOW_BYTES_MAX;
/// Wantlist entries that may wait to be sent before a peer is asked for nothing more.
const OUTBOX_MAX: usize = 1024;
/// Hashes remembered after they were wanted, so that a late answer is not taken for an unsolicited block.
const PAST_MAX: usize = 2048;
/// A peer is left at this many unsolicited blocks.
const STRIKES_MAX: u32 = 2;
/// The shortest time over which a rate is measured.
const RATE_SPAN: Duration = Duration::from_millis(100);
/// The weight of a new measurement.
const RATE_WEIGHT: f64 = 0.3;

pub(super) struct Source {
    /// Wantlist entries in the order in which they are to be sent, and where the newest of each CID is.
    outbox: BTreeMap<u64, Entry>,
    places: HashMap<Cid, u64>,
    next_place: u64,
    /// The next message says all that is wanted.
    full: bool,
    in_flight: HashMap<Multihash, Instant>,
    past: VecDeque<Multihash>,
    past_set: HashSet<Multihash>,
    heard: Instant,
    /// Said nothing for too long, although it owed something.
    pub(super) stalled: bool,
    strikes: u32,
    rate: Option<f64>,
    round_trip: Option<Duration>,
    span_start: Option<Instant>,
    span_bytes: usize,
    pub(super) delivered: u64,
}

impl Source {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            outbox: BTreeMap::new(),
            places: HashMap::new(),
            next_place: 0,
            full: true,
            in_flight: HashMap::new(),
            past: VecDeque::new(),
            past_set: HashSet::new(),
            heard: now,
            stalled: false,
            strikes: 0,
            rate: None,
            round_trip: None,
            span_start: None,
            span_bytes: 0,
            delivered: 0,
        }
    }

    /// Queues an entry to be sent; the newest for a CID counts, but a want does not take back the CANCEL before it.
    pub(super) fn post(&mut self, entry: Entry) {
        if let Some(place) = self.places.get(entry.cid()) {
            let old = self.outbox.get(place);
            if !matches!((old, &entry), (Some(Entry::Cancel(_)), Entry::Want { .. })) {
                self.outbox.insert(*place, entry);
                return;
            }
        }
        self.next_place += 1;
        self.places.insert(*entry.cid(), self.next_place);
        self.outbox.insert(self.next_place, entry);
    }

    /// Takes up to `max` entries to be sent, and whether they are all that is wanted. No CID is twice among them,
    /// since receivers keep one entry for each.
    pub(super) fn take_posted(&mut self, max: usize) -> (bool, Vec<Entry>) {
        let mut taken = HashSet::new();
        let fresh =
            self.outbox.iter().filter(|(_, entry)| taken.insert(*entry.cid())).map(|(place, _)| *place);
        let places: Vec<u64> = fresh.take(max).collect();
        let mut entries = Vec::with_capacity(places.len());
        for place in places {
            let Some(entry) = self.outbox.remove(&place) else { continue };
            if self.places.get(entry.cid()) == Some(&place) {
                self.places.remove(entry.cid());
            }
            entries.push(entry);
        }
        (!entries.is_empty() && std::mem::take(&mut self.full), entries)
    }

    /// Forgets what was to be sent: `entries` is all that is wanted.
    pub(super) fn repost(&mut self, entries: Vec<Entry>) {
        self.outbox.clear();
        self.places.clear();
        self.full = true;
        entries.into_iter().for_each(|entry| self.post(entry));
    }

    /// Whether it may be asked for anything.
    pub(super) fn takes_wants(&self) -> bool {
        !self.stalled && self.outbox.len() < OUTBOX_MAX
    }

    /// Whether it may be asked for one more block.
    pub(super) fn has_room(&self, block_bytes: f64) -> bool {
        self.takes_wants() && self.in_flight.len() < self.window(block_bytes)
    }

    fn window(&self, block_bytes: f64) -> usize {
        let bytes = self.rate().clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        ((bytes / block_bytes.max(1.0)) as usize).clamp(IN_FLIGHT_MIN, IN_FLIGHT_MAX)
    }

    fn rate(&self) -> f64 {
        self.rate.unwrap_or(RATE_GUESS)
    }

    /// How long a block is expected to take if it is asked for now.
    pub(super) fn expected(&self, block_bytes: f64) -> Duration {
        let seconds = (self.in_flight.len() + 1) as f64 * block_bytes / self.rate().max(1.0);
        self.round_trip.unwrap_or(Duration::from_millis(50)) + Duration::from_secs_f64(seconds.min(60.0))
    }

    pub(super) fn asked(&mut self, key: Multihash, now: Instant) {
        if self.in_flight.is_empty() {
            self.span_start = Some(now);
            self.span_bytes = 0;
        }
        self.in_flight.insert(key, now);
    }

    /// No block is expected for `key` any more, though one may still come.
    pub(super) fn released(&mut self, key: &Multihash) {
        self.in_flight.remove(key);
        if self.past_set.insert(*key) {
            self.past.push_back(*key);
        }
        while self.past.len() > PAST_MAX
            && let Some(oldest) = self.past.pop_front()
        {
            self.past_set.remove(&oldest);
        }
    }

    /// Whether `key` was asked of it, so that a block needs no excuse.
    pub(super) fn was_asked(&self, key: &Multihash) -> bool {
        self.in_flight.contains_key(key) || self.past_set.contains(key)
    }

    pub(super) fn received(&mut self, key: &Multihash, size_bytes: usize, now: Instant) {
        self.released(key);
        self.delivered += 1;
        self.span_bytes += size_bytes;
        let Some(start) = self.span_start else { return };
        let span = now.saturating_duration_since(start);
        if span >= RATE_SPAN {
            let sample = self.span_bytes as f64 / span.as_secs_f64();
            self.rate = Some(self.rate.map_or(sample, |rate| rate + RATE_WEIGHT * (sample - rate)));
            self.span_start = Some(now);
            self.span_bytes = 0;
        }
    }

    pub(super) fn answered_after(&mut self, elapsed: Duration) {
        self.round_trip =
            Some(self.round_trip.map_or(elapsed, |known| known.mul_f64(0.7) + elapsed.mul_f64(0.3)));
    }

    pub(super) fn heard(&mut self, at: Instant) {
        if at > self.heard {
            self.heard = at;
            self.stalled = false;
        }
    }

    /// Whether it owes blocks and has been silent for `patience`.
    pub(super) fn is_silent(&self, patience: Duration, now: Instant) -> bool {
        let Some(asked) = self.in_flight.values().min() else { return false };
        now.saturating_duration_since(self.heard.max(*asked)) >= patience
    }

    pub(super) fn in_flight(&self) -> impl Iterator<Item = &Multihash> {
        self.in_flight.keys()
    }

    pub(super) fn longest_in_flight(&self) -> Option<Multihash> {
        self.in_flight.iter().min_by_key(|(_, asked)| **asked).map(|(key, _)| *key)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.outbox.is_empty()
    }

    /// Counts a block that nobody asked for; `true` when it is one too many.
    pub(super) fn strike(&mut self) -> bool {
        self.strikes += 1;
        self.strikes >= STRIKES_MAX
    }
}
