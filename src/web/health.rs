//! When a place is left in peace: after a failure for a while that doubles, and after wrong bytes for long. Pure: time is
//! a parameter.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::WebError;

/// The first rest, doubled after each further failure …
const REST: Duration = Duration::from_secs(5);
/// … up to this, which also bounds what a place may ask for by `Retry-After`.
const REST_MAX: Duration = Duration::from_secs(300);
/// How long a place is asked for nothing that sent wrong bytes.
const LEFT_FOR: Duration = Duration::from_secs(600);

/// The memory of one place's failures.
#[derive(Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Default)]
struct State {
    failures: u32,
    rests_until: Option<Instant>,
    last: Option<WebError>,
}

impl Health {
    /// Why it is not asked now, if it is not.
    pub(super) fn rests(&self, now: Instant) -> Option<WebError> {
        let state = self.state();
        state.rests_until.filter(|until| now < *until).and_then(|_| state.last.clone())
    }

    /// The last failure, unless an answer came since.
    pub(super) fn last(&self) -> Option<WebError> {
        self.state().last.clone()
    }

    /// Until when it rests.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.state().rests_until
    }

    /// Notes what came of asking.
    pub(super) fn judge<T>(&self, now: Instant, outcome: &Result<T, WebError>) {
        let mut state = self.state();
        let Err(error) = outcome else {
            *state = State::default();
            return;
        };
        let rest = match error {
            // It answers: what it does not give may be given for another CID.
            WebError::Refused { .. } => return,
            WebError::Wrong { .. } => LEFT_FOR,
            WebError::Status { retry_after: Some(rest), .. } => (*rest).min(REST_MAX),
            _ => REST.saturating_mul(1 << state.failures.min(8)).min(REST_MAX),
        };
        let until = now + rest;
        state.rests_until = Some(state.rests_until.map_or(until, |known| known.max(until)));
        state.failures = state.failures.saturating_add(1);
        state.last = Some(error.clone());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late() -> Result<(), WebError> {
        Err(WebError::Timeout { place: "x".to_owned(), waited: REST })
    }

    #[test]
    fn a_place_rests_longer_after_each_failure_and_is_well_after_an_answer() {
        let (health, mut now) = (Health::default(), Instant::now());
        for seconds in [5, 10, 20, 40, 80, 160, 300, 300] {
            health.judge(now, &late());
            let rest = Duration::from_secs(seconds);
            assert!(health.rests(now + rest / 2).is_some() && health.rests(now + rest).is_none(), "{rest:?}");
            now += rest;
        }
        assert!(health.last().is_some());
        health.judge(now, &Ok(()));
        assert!(health.last().is_none() && health.rests(now).is_none());
    }

    #[test]
    fn wrong_bytes_count_more_and_a_refusal_nothing() {
        let (health, now) = (Health::default(), Instant::now());
        let refused: Result<(), _> = Err(WebError::Refused { place: "x".to_owned(), status: 451 });
        health.judge(now, &refused);
        assert!(health.rests(now).is_none());
        let wrong: Result<(), _> = Err(WebError::Wrong { place: "x".to_owned(), what: "bytes".to_owned() });
        health.judge(now, &wrong);
        health.judge(now, &late());
        assert!(health.rests(now + LEFT_FOR / 2).is_some(), "a later failure shortens nothing");
        let absurd = Duration::from_secs(1 << 40);
        let asked: Result<(), _> =
            Err(WebError::Status { place: "x".to_owned(), status: 429, retry_after: Some(absurd) });
        health.judge(now + LEFT_FOR, &asked);
        assert!(health.rests(now + LEFT_FOR + REST_MAX).is_none());
    }
}
