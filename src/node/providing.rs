//! What we announce: roots, at a bounded rate, and again before the announcements expire. Pure but for its owner's clock.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use libp2p::kad::RecordKey;

use super::behaviour::PROVIDED_KEYS_MAX;

/// Provider records live for 48 hours at Kubo and 24 elsewhere; a lookup may miss one that is about to end.
const AGAIN_AFTER: Duration = Duration::from_secs(12 * 3600);

/// The queue of announcements in one DHT: what the other one was told says nothing here.
#[derive(Default)]
pub(super) struct Providing {
    queue: VecDeque<RecordKey>,
    /// When each key was last announced; `None` while it waits in the queue.
    known: HashMap<RecordKey, Option<Instant>>,
}

impl Providing {
    /// Queues a key, unless it waits or was announced lately. `false`: there is no room for another key.
    pub(super) fn add(&mut self, key: RecordKey) -> bool {
        if self.known.contains_key(&key) {
            return true;
        }
        if self.known.len() >= PROVIDED_KEYS_MAX {
            return false;
        }
        self.known.insert(key.clone(), None);
        self.queue.push_back(key);
        true
    }

    /// The next key to announce.
    pub(super) fn next(&mut self, now: Instant) -> Option<RecordKey> {
        let key = self.queue.pop_front()?;
        self.known.insert(key.clone(), Some(now));
        Some(key)
    }

    /// Queues a key again whose announcement reached nobody.
    pub(super) fn failed(&mut self, key: RecordKey) {
        if let Some(announced @ Some(_)) = self.known.get_mut(&key) {
            *announced = None;
            self.queue.push_back(key);
        }
    }

    /// Queues again what was announced long ago.
    pub(super) fn renew(&mut self, now: Instant) {
        for (key, announced) in &mut self.known {
            if announced.is_some_and(|at| now.saturating_duration_since(at) >= AGAIN_AFTER) {
                *announced = None;
                self.queue.push_back(key.clone());
            }
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u32) -> RecordKey {
        RecordKey::new(&n.to_be_bytes())
    }

    #[test]
    fn a_key_is_announced_once_and_again_when_it_grows_old() {
        let (mut providing, start) = (Providing::default(), Instant::now());
        assert!(providing.add(key(1)) && providing.add(key(1)) && providing.add(key(2)));
        assert_eq!(providing.next(start), Some(key(1)));
        assert_eq!(providing.next(start), Some(key(2)));
        assert!(providing.add(key(1)));
        assert_eq!(providing.next(start), None);
        providing.renew(start + Duration::from_secs(3600));
        assert_eq!(providing.waiting(), 0);
        providing.renew(start + AGAIN_AFTER);
        assert_eq!(providing.waiting(), 2);
    }

    #[test]
    fn what_reached_nobody_is_queued_again_and_once() {
        let (mut providing, now) = (Providing::default(), Instant::now());
        providing.add(key(1));
        providing.failed(key(1));
        providing.failed(key(2));
        assert_eq!(providing.waiting(), 1);
        assert_eq!(providing.next(now), Some(key(1)));
        providing.failed(key(1));
        providing.failed(key(1));
        assert_eq!(providing.waiting(), 1);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut providing = Providing::default();
        let limit = u32::try_from(PROVIDED_KEYS_MAX).unwrap();
        assert!((0..limit).all(|n| providing.add(key(n))));
        assert!(!providing.add(key(limit)));
        assert!(providing.add(key(0)));
    }
}
