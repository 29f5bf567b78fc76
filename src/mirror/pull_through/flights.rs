//! One piece of work for all who ask for the same thing at the same time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};

use crate::tasks::Tasks;

/// What is being worked on, by what it is for. The work belongs to the daemon: it goes on when all who asked have left.
/// Cheap to clone.
pub(super) struct Flights<K, V> {
    flying: Arc<Mutex<HashMap<K, Shared<BoxFuture<'static, V>>>>>,
    tasks: Tasks,
}

impl<K, V> Clone for Flights<K, V> {
    fn clone(&self) -> Self {
        Self { flying: self.flying.clone(), tasks: self.tasks.clone() }
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { flying: Arc::default(), tasks }
    }

    /// The outcome of the work for `key` that is under way, or else of `work`.
    pub(super) async fn join(&self, key: K, work: impl Future<Output = V> + Send + 'static) -> V {
        let (flight, is_new) = {
            let mut flying = self.flying.lock().unwrap_or_else(PoisonError::into_inner);
            match flying.get(&key) {
                Some(flight) => (flight.clone(), false),
                None => {
                    let (flights, landed) = (self.flying.clone(), key.clone());
                    let flight = async move {
                        let outcome = work.await;
                        flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&landed);
                        outcome
                    };
                    let flight = flight.boxed().shared();
                    flying.insert(key, flight.clone());
                    (flight, true)
                }
            }
        };
        if is_new {
            let flight = flight.clone();
            self.tasks.spawn("look-up upstream", |_| flight);
        }
        flight.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_at_once_share_one_flight_which_outlives_them() {
        let flights = Flights::<u8, usize>::new(Tasks::new());
        let count = Arc::new(AtomicUsize::new(0));
        let work = || {
            let count = count.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                count.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        assert_eq!(futures::join!(flights.join(1, work()), flights.join(1, work())), (1, 1));
        assert_eq!(flights.join(1, work()).await, 2);
        let left = tokio::time::timeout(Duration::from_millis(10), flights.join(1, work())).await;
        assert!(left.is_err());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(count.load(Ordering::SeqCst), 3);
    }
}
