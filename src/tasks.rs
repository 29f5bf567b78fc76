//! Spawns, names, cancels and awaits every long-lived task.
//!
//! A stop has two phases: the token tells everybody to take no new work; then, within the grace period, what runs may
//! finish. What is still there after it is aborted.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// The tasks of a daemon. Cheap to clone; clones share the tracker and the token.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task`, which gets a token that is cancelled when the daemon stops. A task still running when the grace
    /// period ends is dropped at its next await.
    pub fn spawn<F, T>(
        &self,
        name: &'static str,
        task: impl FnOnce(CancellationToken) -> F,
    ) -> JoinHandle<Option<T>>
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let work = task(self.stop.child_token()).instrument(tracing::debug_span!("task", task.name = name));
        let abort = self.abort.clone();
        self.tracker.spawn(async move { abort.run_until_cancelled(work).await })
    }

    /// Like [`Tasks::spawn`] for work that ends by itself, such as one connection; gives a handle to abort it with.
    pub fn spawn_short<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(name, task).abort_handle()
    }

    /// The token that is cancelled when the stop begins.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// How many tasks are alive.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Tells all tasks to stop, waits `grace`, aborts the rest. Returns how many had to be aborted.
    pub async fn shutdown(&self, grace: Duration) -> usize {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_ok() {
            return 0;
        }
        let aborted = self.tracker.len();
        self.abort.cancel();
        self.tracker.wait().await;
        aborted
    }
}

/// The pause before something is done again, give or take a quarter: many daemons that start at once must not ask at once
/// for ever.
pub fn jittered(pause: Duration) -> Duration {
    let quarter = pause / 4;
    // A new hasher has random keys.
    let random = RandomState::new().hash_one(()) % u64::try_from(2 * quarter.as_millis() + 1).unwrap_or(1);
    pause - quarter + Duration::from_millis(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_listens_ends_within_the_grace_period() {
        let tasks = Tasks::new();
        let done = tasks.spawn("listens", |stop| async move { stop.cancelled().await });
        assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, 0);
        assert_eq!(done.await.unwrap(), Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_listen_is_aborted_after_it() {
        let tasks = Tasks::new();
        let done = tasks.spawn("deaf", |_| std::future::pending::<()>());
        assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, 1);
        assert_eq!(done.await.unwrap(), None);
        assert!(tasks.is_empty());
    }

    #[test]
    fn pauses_differ_by_a_quarter_at_most() {
        let pause = Duration::from_secs(10);
        let pauses: Vec<Duration> = (0..100).map(|_| jittered(pause)).collect();
        assert!(pauses.iter().all(|jittered| (pause * 3 / 4..=pause * 5 / 4).contains(jittered)));
        assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
