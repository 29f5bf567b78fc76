//! Blobs that clients rely on though no manifest names them yet: between upload, or a `HEAD` that found one, and the
//! manifest. What is leased is not collected.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::oci::Digest;
use crate::store::HashedSet;

/// How long a client may take from a blob to its manifest.
const LEASE: Duration = Duration::from_secs(3600);
/// Leases at a time; with more nothing is collected until some have ended.
const LEASES_MAX: usize = 262_144;
/// Deleted content that is known to be free to go; what is beyond waits as if a lease had just ended.
const RELEASED_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody has named it yet.
    Pending,
    /// By a manifest that was put.
    Named,
}

pub(super) struct Leases {
    state: Mutex<State>,
    began: Instant,
}

#[derive(Default)]
struct State {
    leases: HashMap<Digest, (Stage, Instant)>,
    released: HashedSet,
}

impl Leases {
    pub(super) fn new(now: Instant) -> Self {
        Self { state: Mutex::default(), began: now }
    }

    /// A client has seen, or brought, this blob. Must come before the look-up that tells it so.
    pub(super) fn touch(&self, digest: &Digest, now: Instant) {
        self.set(digest, Stage::Pending, now);
    }

    /// A manifest that names it was put.
    pub(super) fn name(&self, digest: &Digest, now: Instant) {
        self.set(digest, Stage::Named, now);
    }

    fn set(&self, digest: &Digest, stage: Stage, now: Instant) {
        let mut state = self.lock();
        state.released.remove(digest);
        if state.leases.len() >= LEASES_MAX {
            state.leases.retain(|_, (_, at)| now.saturating_duration_since(*at) < LEASE);
        }
        if state.leases.len() < LEASES_MAX {
            state.leases.insert(*digest, (stage, now));
        }
    }

    /// A manifest that names it was deleted. Who is about to push another one that does keeps it.
    pub(super) fn release(&self, digest: &Digest) {
        let mut state = self.lock();
        if state.leases.get(digest).is_some_and(|(stage, _)| *stage == Stage::Pending) {
            return;
        }
        state.leases.remove(digest);
        if state.released.len() < RELEASED_MAX {
            state.released.insert(digest);
        }
    }

    /// Whether content that nothing names may go. What was pushed in a run before this one is spared for as long as a
    /// lease lasts, unless it was deleted.
    pub(super) fn may_collect(&self, digest: &Digest, now: Instant) -> bool {
        let state = self.lock();
        if state.leases.len() >= LEASES_MAX {
            return false;
        }
        let leased =
            state.leases.get(digest).is_some_and(|(_, at)| now.saturating_duration_since(*at) < LEASE);
        let known = state.released.contains(digest) || now.saturating_duration_since(self.began) >= LEASE;
        !leased && known
    }

    /// A panic leaves a map with or without its last entry.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    #[test]
    fn what_was_deleted_goes_at_once_unless_somebody_else_is_about_to_name_it() {
        let begin = Instant::now();
        let leases = Leases::new(begin);
        let (mine, shared) = (digest("mine"), digest("shared"));
        for blob in [&mine, &shared] {
            leases.touch(blob, begin);
            leases.name(blob, begin);
            assert!(!leases.may_collect(blob, begin));
        }
        leases.touch(&shared, begin);
        leases.release(&mine);
        leases.release(&shared);
        assert!(leases.may_collect(&mine, begin));
        assert!(!leases.may_collect(&shared, begin));
        leases.touch(&mine, begin);
        assert!(!leases.may_collect(&mine, begin));
    }

    #[test]
    fn what_nobody_came_back_for_goes_when_its_lease_ends() {
        let begin = Instant::now();
        let leases = Leases::new(begin);
        leases.touch(&digest("pushed"), begin + LEASE / 2);
        assert!(!leases.may_collect(&digest("of an earlier run"), begin + LEASE / 2));
        assert!(leases.may_collect(&digest("of an earlier run"), begin + LEASE));
        assert!(!leases.may_collect(&digest("pushed"), begin + LEASE));
        assert!(leases.may_collect(&digest("pushed"), begin + LEASE * 3 / 2));
    }
}
