//! When an endpoint is left in peace: after some failures in a row, for a while that doubles, so that a dead registry does
//! not cost every request its time-out. Pure: time is a parameter.

use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row that end the asking.
const FAILURES_MAX: u32 = 4;
/// The first rest, doubled after each failed probe …
const REST: Duration = Duration::from_secs(5);
/// … up to this, which also bounds what a registry may ask for by `Retry-After`.
const REST_MAX: Duration = Duration::from_secs(60);

/// The memory of one endpoint's failures.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// Rests since the last success.
    rests: u32,
    rests_until: Option<Instant>,
    last: Option<String>,
}

impl Breaker {
    /// `Err`: how long it still rests. When the rest is over one request may try; the others wait for its outcome.
    pub(super) fn may_ask(&mut self, now: Instant) -> Result<(), Duration> {
        let Some(until) = self.rests_until else { return Ok(()) };
        if now < until {
            return Err(until - now);
        }
        // This one tries; who comes while it does is told to wait.
        self.rests_until = Some(now + REST);
        Ok(())
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// `retry_after`: the registry itself asked for a rest.
    pub(super) fn failed(&mut self, now: Instant, error: String, retry_after: Option<Duration>) {
        self.failures = self.failures.saturating_add(1);
        self.last = Some(error);
        let rest = match retry_after {
            Some(rest) => rest.min(REST_MAX),
            None if self.failures >= FAILURES_MAX => {
                self.rests = self.rests.saturating_add(1);
                REST.saturating_mul(1 << (self.rests - 1).min(8)).min(REST_MAX)
            }
            None => return,
        };
        self.rests_until = Some(now + rest);
    }

    pub(super) fn is_resting(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_rests_after_failures_in_a_row_and_longer_each_time() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES_MAX {
            assert_eq!(breaker.may_ask(now), Ok(()));
            breaker.failed(now, "down".to_owned(), None);
        }
        assert_eq!(breaker.may_ask(now), Err(REST));
        now += REST;
        assert_eq!(breaker.may_ask(now), Ok(()), "one may try");
        assert!(breaker.may_ask(now).is_err(), "the others wait");
        breaker.failed(now, "down".to_owned(), None);
        assert_eq!(breaker.may_ask(now), Err(2 * REST));
        now += 2 * REST;
        breaker.may_ask(now).unwrap();
        breaker.succeeded();
        assert_eq!(breaker.may_ask(now), Ok(()));
        assert_eq!(breaker.last(), None);
    }

    #[test]
    fn a_rest_that_is_asked_for_is_kept_within_bounds() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.failed(now, "429".to_owned(), Some(Duration::from_secs(7)));
        assert_eq!(breaker.may_ask(now), Err(Duration::from_secs(7)));
        breaker.failed(now, "429".to_owned(), Some(Duration::from_secs(86_400)));
        assert_eq!(breaker.may_ask(now), Err(REST_MAX));
    }

    #[test]
    fn a_success_between_failures_starts_the_count_anew() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            breaker.failed(now, "down".to_owned(), None);
            breaker.succeeded();
        }
        assert_eq!(breaker.may_ask(now), Ok(()));
    }
}
