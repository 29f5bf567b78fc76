//! How long a peer takes to begin to answer: when that takes longer than it mostly does, another is asked as well. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// Answers that are remembered.
const ANSWERS_MAX: usize = 32;
/// What is assumed before as many answers came.
const ANSWERS_MIN: usize = 8;
const AT_FIRST: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Latencies(VecDeque<Duration>);

impl Latencies {
    pub(super) fn note(&mut self, took: Duration) {
        if self.0.len() == ANSWERS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    /// Nine of ten of the last answers came within this.
    pub(super) fn p90(&self) -> Duration {
        if self.0.len() < ANSWERS_MIN {
            return AT_FIRST;
        }
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted[sorted.len() * 9 / 10]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_of_ten_of_the_last_answers_count() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.p90(), AT_FIRST);
        (0..100).for_each(|_| latencies.note(Duration::from_secs(9)));
        (1..=ANSWERS_MAX as u64).for_each(|ms| latencies.note(Duration::from_millis(ms)));
        assert_eq!(latencies.p90(), Duration::from_millis(29));
        assert_eq!(latencies.0.len(), ANSWERS_MAX);
    }
}
