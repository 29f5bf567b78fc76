//! What daemons of a mesh tell each other that they hold: of each digest and tag eight bytes, of which the last two bits
//! say whether it is whole or on its way. A mistaken match costs a request that is refused. Pure, but for the waiting.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::oci::{Digest, RepoName, Tag};

/// Things that one daemon tells of; what is beyond is found at the registry.
pub(super) const ENTRIES_MAX: usize = 131_072;
/// Changes that are remembered; who is further behind is told everything.
const CHANGES_MAX: usize = 8192;
/// Format, kind, epoch, version, count.
const HEAD_BYTES: usize = 1 + 1 + 8 + 8 + 4;
/// The largest message.
pub(super) const MESSAGE_BYTES_MAX: usize = HEAD_BYTES + 8 * ENTRIES_MAX;
const FORMAT: u8 = 1;
const ALL: u8 = 0;
const CHANGES: u8 = 1;

/// A digest or tag in 62 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::mirror) struct Key(u64);

impl Key {
    const STATE_BITS: u64 = 0b11;

    pub(in crate::mirror) fn of_digest(digest: &Digest) -> Self {
        Self::of_bytes(digest.multihash().digest())
    }

    pub(in crate::mirror) fn of_tag(repo: &RepoName, tag: &Tag) -> Self {
        Self::of_bytes(&Sha256::digest(format!("{repo}:{tag}")))
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let mut first = [0; 8];
        first.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        Self(u64::from_be_bytes(first) & !Self::STATE_BITS)
    }

    pub(super) fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// How much of a thing is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mirror) enum Held {
    /// On its way.
    Filling,
    /// On its way from the registry itself.
    Fetching,
    Whole,
}

/// A key and how much of it is there, as it is sent and kept: `0` in the last bits says that it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry(u64);

impl Entry {
    fn new(key: Key, held: Option<Held>) -> Self {
        let state = match held {
            None => 0,
            Some(Held::Filling) => 1,
            Some(Held::Whole) => 2,
            Some(Held::Fetching) => 3,
        };
        Self(key.0 | state)
    }

    fn key(self) -> Key {
        Key(self.0 & !Key::STATE_BITS)
    }

    fn held(self) -> Option<Held> {
        match self.0 & Key::STATE_BITS {
            1 => Some(Held::Filling),
            2 => Some(Held::Whole),
            3 => Some(Held::Fetching),
            _ => None,
        }
    }
}

/// What we hold.
pub(super) struct Ours {
    state: Mutex<State>,
    version: watch::Sender<u64>,
}

struct State {
    /// Tells this run from those before.
    epoch: u64,
    all: HashMap<Key, Held>,
    /// What changed in each of the last versions.
    changes: VecDeque<(u64, Key)>,
}

impl Ours {
    pub(super) fn new(epoch: u64) -> Self {
        let state = State { epoch, all: HashMap::new(), changes: VecDeque::new() };
        Self { state: Mutex::new(state), version: watch::Sender::new(0) }
    }

    pub(super) fn set(&self, key: Key, held: Option<Held>) {
        let mut state = lock(&self.state);
        let before = match held {
            Some(held) if state.all.len() < ENTRIES_MAX || state.all.contains_key(&key) => {
                state.all.insert(key, held)
            }
            Some(_) => return,
            None => state.all.remove(&key),
        };
        if before == held {
            return;
        }
        self.version.send_modify(|version| {
            *version += 1;
            state.changes.push_back((*version, key));
        });
        if state.changes.len() > CHANGES_MAX {
            state.changes.pop_front();
        }
    }

    /// Replaces all that is whole; what is on its way stays.
    pub(super) fn replace_whole(&self, whole: &HashSet<Key>) {
        let known: Vec<(Key, Held)> = lock(&self.state).all.iter().map(|(key, held)| (*key, *held)).collect();
        let gone = known.iter().filter(|(key, held)| *held == Held::Whole && !whole.contains(key));
        gone.for_each(|(key, _)| self.set(*key, None));
        whole.iter().for_each(|key| self.set(*key, Some(Held::Whole)));
    }

    /// What changed since a version of an epoch, or everything; waits up to `wait` for a change if there is none.
    pub(super) async fn told(&self, epoch: u64, since: u64, wait: Duration) -> Bytes {
        let mut version = self.version.subscribe();
        if lock(&self.state).epoch == epoch {
            // Nothing new is an answer too.
            let _ = tokio::time::timeout(wait, version.wait_for(|version| *version > since)).await;
        }
        self.message(epoch, since)
    }

    fn message(&self, epoch: u64, since: u64) -> Bytes {
        let state = lock(&self.state);
        let version = *self.version.borrow();
        let first = state.changes.front().map_or(version + 1, |(version, _)| *version);
        let (kind, entries) = if state.epoch == epoch && since <= version && since + 1 >= first {
            let changed: HashSet<Key> =
                state.changes.iter().filter(|(at, _)| *at > since).map(|(_, key)| *key).collect();
            let entries = changed.into_iter().map(|key| Entry::new(key, state.all.get(&key).copied()));
            (CHANGES, entries.collect::<Vec<_>>())
        } else {
            (ALL, state.all.iter().map(|(key, held)| Entry::new(*key, Some(*held))).collect())
        };
        let mut message = BytesMut::with_capacity(HEAD_BYTES + 8 * entries.len());
        message.put_u8(FORMAT);
        message.put_u8(kind);
        message.put_u64(state.epoch);
        message.put_u64(version);
        message.put_u32(u32::try_from(entries.len()).unwrap_or(u32::MAX));
        entries.iter().for_each(|entry| message.put_u64(entry.0));
        message.freeze()
    }
}

/// What a peer holds, as far as it told: eight bytes of each.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Theirs {
    pub(super) epoch: u64,
    pub(super) version: u64,
    /// Sorted, one for each key.
    entries: Vec<Entry>,
}

/// A message that is none.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("what it says of its holdings cannot be read")]
pub(super) struct Unreadable;

impl Theirs {
    pub(super) fn held(&self, key: Key) -> Option<Held> {
        let at = self.entries.partition_point(|entry| entry.key() < key);
        self.entries.get(at).filter(|entry| entry.key() == key)?.held()
    }

    /// Takes a message in. One that cannot be read changes nothing.
    pub(super) fn hear(&mut self, mut message: &[u8]) -> Result<(), Unreadable> {
        if message.len() < HEAD_BYTES || message.len() > MESSAGE_BYTES_MAX || message.get_u8() != FORMAT {
            return Err(Unreadable);
        }
        let (kind, epoch, version) = (message.get_u8(), message.get_u64(), message.get_u64());
        let count = usize::try_from(message.get_u32()).map_err(|_| Unreadable)?;
        if message.len() != count * 8 || !matches!(kind, ALL | CHANGES) {
            return Err(Unreadable);
        }
        if kind == CHANGES && epoch != self.epoch {
            return Err(Unreadable);
        }
        let mut told: Vec<Entry> = message.chunks_exact(8).map(|mut entry| Entry(entry.get_u64())).collect();
        told.sort_unstable();
        told.dedup_by_key(|entry| entry.key());
        if kind == ALL {
            told.retain(|entry| entry.held().is_some());
            self.entries = told;
        } else {
            self.merge(told);
        }
        (self.epoch, self.version) = (epoch, version);
        Ok(())
    }

    fn merge(&mut self, told: Vec<Entry>) {
        let changed = |entry: &Entry| told.binary_search_by_key(&entry.key(), |told| told.key()).is_ok();
        self.entries.retain(|entry| !changed(entry));
        self.entries.extend(told.into_iter().filter(|entry| entry.held().is_some()));
        self.entries.sort_unstable();
        self.entries.truncate(ENTRIES_MAX);
        self.entries.shrink_to_fit();
    }
}

/// A panic leaves at most a change that is not told.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads whatever bytes as a message after another: for fuzzing.
pub(super) fn fuzz(bytes: &[u8]) {
    let mut theirs = Theirs::default();
    for message in [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..], bytes] {
        let _ = theirs.hear(message);
        assert!(theirs.entries.len() <= ENTRIES_MAX);
        assert!(theirs.entries.is_sorted_by(|a, b| a.key() < b.key()), "one entry for each key, in order");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> Key {
        Key::of_digest(&Digest::sha256(&[n]))
    }

    fn held() -> impl Strategy<Value = Option<Held>> {
        let held = [Held::Filling, Held::Fetching, Held::Whole].map(Some);
        prop::sample::select(vec![None, held[0], held[1], held[2]])
    }

    proptest! {
        #[test]
        fn who_listens_knows_what_is_held(
            rounds in prop::collection::vec(prop::collection::vec((0..20_u8, held()), 0..30), 0..6)
        ) {
            let (ours, mut theirs) = (Ours::new(7), Theirs::default());
            let mut model = HashMap::new();
            for round in rounds {
                for (n, held) in round {
                    ours.set(key(n), held);
                    model.insert(n, held);
                }
                theirs.hear(&ours.message(theirs.epoch, theirs.version)).unwrap();
                for (n, held) in &model {
                    prop_assert_eq!(theirs.held(key(*n)), *held);
                }
            }
        }

        #[test]
        fn any_bytes_are_heard_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut theirs = Theirs::default();
            if theirs.hear(&bytes).is_err() {
                prop_assert_eq!(theirs, Theirs::default());
            }
        }
    }

    #[test]
    fn who_is_far_behind_or_of_another_run_is_told_everything() {
        let ours = Ours::new(7);
        for n in 0..CHANGES_MAX + 10 {
            // Each changes something: all are set, then all unset, and so on.
            ours.set(key((n % 250) as u8), (n / 250 % 2 == 0).then_some(Held::Whole));
        }
        for (epoch, since) in [(7, 0), (6, 5), (7, u64::MAX - 1)] {
            assert_eq!(ours.message(epoch, since)[1], ALL);
        }
        assert_eq!(ours.message(7, *ours.version.borrow())[1], CHANGES);
    }

    #[test]
    fn what_a_hundred_peers_hold_takes_little_memory() {
        assert_eq!(size_of::<Entry>(), 8);
        let mut theirs = Theirs::default();
        let ours = Ours::new(1);
        (0..10_000_u32)
            .for_each(|n| ours.set(Key::of_bytes(&Sha256::digest(n.to_le_bytes())), Some(Held::Whole)));
        theirs.hear(&ours.message(0, 0)).unwrap();
        assert!(theirs.entries.capacity() * 100 * 8 < 64 << 20);
        assert_eq!(theirs.entries.len(), 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_waits_for_a_change_and_not_for_ever() {
        let ours = Ours::new(7);
        let begun = tokio::time::Instant::now();
        let wait = Duration::from_secs(15);
        let told = tokio::join!(ours.told(7, 0, wait), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ours.set(key(1), Some(Held::Whole));
        });
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        let mut theirs = Theirs { epoch: 7, ..Theirs::default() };
        theirs.hear(&told.0).unwrap();
        assert_eq!(theirs.held(key(1)), Some(Held::Whole));
        ours.told(7, theirs.version, wait).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(16));
    }
}
