//! The fills that run, one per digest, and those that were given up a moment ago.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use tokio_util::sync::CancellationToken;

use super::super::mesh::{Held, Key, Mesh};
use super::super::{Inner, MirrorError, Origin, chain};
use super::fill::Fill;
use super::state::{Stage, State};
use super::supply::Supply;
use crate::metrics::Metrics;
use crate::oci::{Digest, Repository};
use crate::tasks::Tasks;

/// Fills that run at once; a further one is refused.
const FILLS_MAX: usize = 256;
/// How long a fill that was given up is remembered: who comes back for the rest of it is told so, and who has no way
/// around us gets no manifest that names it.
const FAILED_FOR: Duration = Duration::from_secs(30);
/// Failed fills that are remembered.
const FAILED_MAX: u64 = 1024;

/// The fills that run. Cheap to clone.
#[derive(Clone)]
pub(super) struct Fills(Arc<Shared>);

struct Shared {
    running: Mutex<HashMap<Digest, Arc<Fill>>>,
    failed: Cache<Digest, Failed>,
    cache: Arc<Inner>,
    tasks: Tasks,
    mesh: Option<Mesh>,
    metrics: Metrics,
}

/// A fill that was given up.
#[derive(Clone)]
struct Failed {
    error: Arc<MirrorError>,
    /// Bytes had come: that it can be begun says nothing of the rest.
    is_broken: bool,
}

/// What a running fill shows in `status`.
#[derive(Clone, Debug)]
pub struct FillStatus {
    pub repository: Repository,
    pub digest: Digest,
    pub size_bytes: Option<u64>,
    pub received_bytes: u64,
    pub from: Option<Origin>,
}

impl Fills {
    pub(super) fn new(cache: Arc<Inner>, tasks: Tasks, mesh: Option<Mesh>, metrics: Metrics) -> Self {
        let failed = Cache::builder().max_capacity(FAILED_MAX).time_to_live(FAILED_FOR).build();
        Self(Arc::new(Shared { running: Mutex::default(), failed, cache, tasks, mesh, metrics }))
    }

    /// The fill of a blob: the one that runs, or a new one with `supply`.
    pub(super) fn follow(&self, supply: Supply) -> Result<Arc<Fill>, MirrorError> {
        let digest = supply.digest;
        let mut running = lock(&self.0.running);
        if let Some(fill) = running.get(&digest) {
            return Ok(fill.clone());
        }
        if running.len() >= FILLS_MAX {
            return Err(MirrorError::TooManyFills(FILLS_MAX));
        }
        let fill = Arc::new(Fill::new(&supply, self.0.cache.clone(), self.0.metrics.clone()));
        running.insert(digest, fill.clone());
        drop(running);
        let (fills, filled) = (self.clone(), fill.clone());
        self.0.tasks.spawn("fill", |stop| async move { fills.run(filled, supply, stop).await });
        Ok(fill)
    }

    pub(super) fn running(&self, digest: &Digest) -> Option<Arc<Fill>> {
        lock(&self.0.running).get(digest).cloned()
    }

    /// Why the fill of a blob was given up a moment ago.
    pub(super) fn failed(&self, digest: &Digest) -> Option<Arc<MirrorError>> {
        self.0.failed.get(digest).map(|failed| failed.error)
    }

    /// The same, if bytes had come.
    pub(super) fn broken(&self, digest: &Digest) -> Option<Arc<MirrorError>> {
        self.0.failed.get(digest).filter(|failed| failed.is_broken).map(|failed| failed.error)
    }

    pub(super) fn status(&self) -> Vec<FillStatus> {
        let running: Vec<Arc<Fill>> = lock(&self.0.running).values().cloned().collect();
        let mut all: Vec<FillStatus> = running.iter().map(|fill| fill.status()).collect();
        all.sort_by(|a, b| (&a.repository, &a.digest).cmp(&(&b.repository, &b.digest)));
        all
    }

    async fn run(&self, fill: Arc<Fill>, mut supply: Supply, stop: CancellationToken) {
        let begun = Instant::now();
        let mesh = self.0.mesh.as_ref().filter(|_| supply.upstream.config().share);
        let hold = |held| mesh.inspect(|mesh| mesh.hold(Key::of_digest(&fill.digest), held));
        let outcome = match fill.is_here().await {
            Ok(true) => Ok(Some(())),
            Ok(false) => {
                hold(Some(Held::Filling));
                fill.run(&mut supply, &stop).await
            }
            Err(error) => Err(error),
        };
        hold(outcome.as_ref().ok().and_then(|filled| filled.map(|()| Held::Whole)));
        let stage = match outcome {
            Ok(Some(())) => {
                let State { received_bytes, from, .. } = fill.state();
                let duration_ms = begun.elapsed().as_millis();
                self.0.failed.invalidate(&fill.digest);
                // Else a fill before this one has said so.
                if from != Some(Origin::Cache) {
                    tracing::info!(digest = %fill.digest, repo.name = %fill.repository, size_bytes = received_bytes, duration_ms, "blob pulled through");
                }
                Stage::Committed
            }
            Ok(None) => Stage::Absent,
            Err(error) => {
                tracing::warn!(digest = %fill.digest, repo.name = %fill.repository, error = %chain(&error), "blob not pulled through");
                let error = Arc::new(error);
                let failed = Failed { error: error.clone(), is_broken: fill.state().flows };
                self.0.failed.insert(fill.digest, failed);
                Stage::Failed(error)
            }
        };
        lock(&self.0.running).remove(&fill.digest);
        fill.state.send_modify(|state| state.stage = stage);
    }
}

/// A panic while the lock was held leaves what was there before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
