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

/// How often one that rests after failures is tried all the same, for what we are to fetch for several.
const TRIED_EVERY: Duration = Duration::from_secs(1);
/// How long an endpoint that let somebody wait for nothing is believed to hang, from then on …
const HUNG_FOR: Duration = Duration::from_secs(15);
/// … and how long its answers are waited for meanwhile.
const HUNG_PATIENCE: Duration = Duration::from_secs(1);

/// What is asked for. A registry may limit the one and not the other, as Docker Hub does manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// And lists.
    Manifest,
    Blob,
    /// A blob that we are to fetch for several.
    BlobForMesh,
}

/// The memory of one endpoint's failures.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// Rests since the last success.
    rests: u32,
    rests_until: Option<Instant>,
    /// One request tries whether a rest did any good.
    probe: Option<Probe>,
    failed_at: Option<Instant>,
    hung_until: Option<Instant>,
    last: Option<String>,
    manifests: Option<Asked>,
    blobs: Option<Asked>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// The rest was over.
    Due,
    /// It was not: a failure does not make it longer.
    Early,
}

/// A rest that the registry asked for.
#[derive(Debug)]
struct Asked {
    until: Instant,
    said: String,
}

/// It is not to be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rest {
    pub(super) wait: Duration,
    /// Why.
    pub(super) last: String,
    /// One request tries it: its outcome is worth a moment's wait.
    pub(super) is_probed: bool,
}

impl Breaker {
    /// How long an answer may be waited for: `patience`, or less. When a rest after failures is over one request may try, and
    /// one for the mesh before that; the others wait for its outcome.
    pub(super) fn may_ask(&mut self, now: Instant, kind: Kind, patience: Duration) -> Result<Duration, Rest> {
        if let Some(Asked { until, said }) = self.asked(kind).as_ref().filter(|asked| now < asked.until) {
            return Err(Rest { wait: *until - now, last: said.clone(), is_probed: false });
        }
        if let Some(until) = self.rests_until {
            let is_tried = self.failed_at.is_some_and(|at| now.duration_since(at) < TRIED_EVERY);
            let is_early = kind == Kind::BlobForMesh && self.probe.is_none() && !is_tried;
            // This one tries; who comes while it does is told to wait.
            if now >= until {
                (self.probe, self.rests_until) = (Some(Probe::Due), Some(now + REST));
            } else if is_early {
                self.probe = Some(Probe::Early);
            } else {
                let (last, is_probed) = (self.last.clone().unwrap_or_default(), self.probe.is_some());
                return Err(Rest { wait: until - now, last, is_probed });
            }
        }
        let hangs = self.hung_until.is_some_and(|until| now < until);
        Ok(if hangs { patience.min(HUNG_PATIENCE) } else { patience })
    }

    /// The rests that were asked for stay.
    pub(super) fn succeeded(&mut self) {
        let (manifests, blobs) = (self.manifests.take(), self.blobs.take());
        *self = Self { manifests, blobs, ..Self::default() };
    }

    pub(super) fn failed(&mut self, now: Instant, error: String) {
        self.failures = self.failures.saturating_add(1);
        let probe = self.probe.take();
        (self.last, self.failed_at) = (Some(error), Some(now));
        if self.failures >= FAILURES_MAX && probe != Some(Probe::Early) {
            self.rests = self.rests.saturating_add(1);
            let rest = REST.saturating_mul(1 << (self.rests - 1).min(8)).min(REST_MAX);
            self.rests_until = Some(now + rest);
        }
    }

    /// There was no answer within `patience`. A short one says nothing new of an endpoint that hangs.
    pub(super) fn hung(&mut self, now: Instant, error: String, patience: Duration) {
        if patience > HUNG_PATIENCE {
            self.hung_until = Some(now + HUNG_FOR);
        }
        self.failed(now, error);
    }

    /// The registry itself asked for a rest from this kind of request.
    pub(super) fn asked_for_rest(&mut self, now: Instant, kind: Kind, said: String, rest: Duration) {
        let until = now + rest.min(REST_MAX);
        *self.asked(kind) = Some(Asked { until, said });
        // It answers: who waits for that to show may try.
        (self.rests_until, self.probe) = (None, None);
    }

    /// Whether one request tries if a rest did any good.
    pub(super) fn is_probed(&self) -> bool {
        self.probe.is_some()
    }

    pub(super) fn is_resting(&self, now: Instant, kind: Kind) -> bool {
        let asked = match kind {
            Kind::Manifest => &self.manifests,
            Kind::Blob | Kind::BlobForMesh => &self.blobs,
        };
        let asked_until = asked.as_ref().map(|asked| asked.until);
        [self.rests_until, asked_until].into_iter().flatten().any(|until| now < until)
    }

    /// The last failure, or why a rest was asked for that is not over.
    pub(super) fn last(&self, now: Instant) -> Option<&str> {
        let asked = [&self.manifests, &self.blobs].into_iter().flatten().find(|asked| now < asked.until);
        self.last.as_deref().or(asked.map(|asked| asked.said.as_str()))
    }

    fn asked(&mut self, kind: Kind) -> &mut Option<Asked> {
        match kind {
            Kind::Manifest => &mut self.manifests,
            Kind::Blob | Kind::BlobForMesh => &mut self.blobs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn ask(breaker: &mut Breaker, now: Instant) -> Result<Duration, Duration> {
        breaker.may_ask(now, Kind::Manifest, PATIENCE).map_err(|rest| rest.wait)
    }

    #[test]
    fn an_endpoint_rests_after_failures_in_a_row_and_longer_each_time() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        for _ in 0..FAILURES_MAX {
            assert_eq!(ask(&mut breaker, now), Ok(PATIENCE));
            breaker.failed(now, "down".to_owned());
        }
        assert_eq!(ask(&mut breaker, now), Err(REST));
        assert!(!breaker.may_ask(now, Kind::Blob, PATIENCE).unwrap_err().is_probed);
        now += REST;
        assert_eq!(ask(&mut breaker, now), Ok(PATIENCE), "one may try");
        assert!(breaker.may_ask(now, Kind::Blob, PATIENCE).unwrap_err().is_probed, "the others wait");
        breaker.failed(now, "down".to_owned());
        assert_eq!(ask(&mut breaker, now), Err(2 * REST));
        assert!(!breaker.may_ask(now, Kind::Blob, PATIENCE).unwrap_err().is_probed, "it is known");
        now += 2 * REST;
        ask(&mut breaker, now).unwrap();
        breaker.succeeded();
        assert_eq!(ask(&mut breaker, now), Ok(PATIENCE));
        assert_eq!(breaker.last(now), None);
    }

    #[test]
    fn what_the_mesh_waits_for_is_tried_once_a_second_though_the_endpoint_rests() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        (0..FAILURES_MAX).for_each(|_| breaker.failed(now, "down".to_owned()));
        let for_mesh = |breaker: &mut Breaker, now| breaker.may_ask(now, Kind::BlobForMesh, PATIENCE);
        for waited in 1..4 {
            assert!(!for_mesh(&mut breaker, now).unwrap_err().is_probed, "it is known");
            now += TRIED_EVERY;
            assert!(!breaker.may_ask(now, Kind::Blob, PATIENCE).unwrap_err().is_probed);
            assert_eq!(for_mesh(&mut breaker, now), Ok(PATIENCE));
            assert!(for_mesh(&mut breaker, now).unwrap_err().is_probed, "one at a time");
            assert!(breaker.may_ask(now, Kind::Manifest, PATIENCE).unwrap_err().is_probed);
            breaker.failed(now, "down".to_owned());
            assert_eq!(ask(&mut breaker, now), Err(REST - waited * TRIED_EVERY), "the rest is no longer");
        }
        now += TRIED_EVERY;
        for_mesh(&mut breaker, now).unwrap();
        breaker.succeeded();
        assert_eq!(ask(&mut breaker, now), Ok(PATIENCE));
    }

    #[test]
    fn a_rest_that_is_asked_for_is_kept_within_bounds_and_by_that_kind_of_request_alone() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.asked_for_rest(now, Kind::Manifest, "429".to_owned(), Duration::from_secs(7));
        let rest = Rest { wait: Duration::from_secs(7), last: "429".to_owned(), is_probed: false };
        assert_eq!(breaker.may_ask(now, Kind::Manifest, PATIENCE), Err(rest));
        assert_eq!(breaker.may_ask(now, Kind::Blob, PATIENCE), Ok(PATIENCE));
        breaker.asked_for_rest(now, Kind::BlobForMesh, "429".to_owned(), Duration::from_secs(7));
        let later = now + Duration::from_secs(6);
        assert!(breaker.may_ask(later, Kind::BlobForMesh, PATIENCE).is_err(), "also for the mesh");
        breaker.blobs = None;
        breaker.succeeded();
        assert_eq!(ask(&mut breaker, now), Err(Duration::from_secs(7)), "a blob came, and no manifest");
        assert!(breaker.is_resting(now, Kind::Manifest) && !breaker.is_resting(now, Kind::Blob));
        assert_eq!(breaker.last(now), Some("429"));

        breaker.asked_for_rest(now, Kind::Manifest, "429".to_owned(), Duration::from_secs(86_400));
        assert_eq!(ask(&mut breaker, now), Err(REST_MAX));
        assert_eq!(ask(&mut breaker, now + REST_MAX), Ok(PATIENCE));
        assert_eq!(breaker.last(now + REST_MAX), None);
    }

    #[test]
    fn one_that_hangs_is_not_waited_for_as_long_again_until_it_answers_or_some_time_has_passed() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.hung(now, "hangs".to_owned(), PATIENCE);
        assert_eq!(ask(&mut breaker, now), Ok(HUNG_PATIENCE));
        breaker.hung(now + HUNG_FOR / 2, "hangs".to_owned(), HUNG_PATIENCE);
        assert_eq!(ask(&mut breaker, now + HUNG_FOR), Ok(PATIENCE), "a short wait proves nothing");
        breaker.hung(now, "hangs".to_owned(), PATIENCE);
        breaker.succeeded();
        assert_eq!(ask(&mut breaker, now), Ok(PATIENCE));
    }

    #[test]
    fn a_success_between_failures_starts_the_count_anew() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            breaker.failed(now, "down".to_owned());
            breaker.succeeded();
        }
        assert_eq!(ask(&mut breaker, now), Ok(PATIENCE));
    }
}
