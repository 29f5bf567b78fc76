//! The readonly roots: whose trees we read, kept fresh behind the requests.
//!
//! A task per name owns what is known of it. A newer record is believed when its directories could be fetched; until
//! then the root at hand stays, on disk too. Whoever looks something up takes the root as it is, or waits for the first
//! one within a budget.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cid::Cid;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::replicate::ReplicaStatus;
use super::{MirrorError, chain};
use crate::config::FollowMode;
use crate::dag::{DagError, Tree};
use crate::ipfs::{Ipfs, IpfsError, Want};
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::store::{Followed, State, off_thread};
use crate::tasks::{Tasks, jittered};

/// How often the network is asked for a newer record, besides being told of one: when the TTL of the one at hand is over,
/// within these bounds …
const POLL_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// … or after this long, while there is no record, or its root is not served.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// How often the newest record is put again, so that it outlives its author.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(4 * 3600);
/// How long a look-up waits for the first root of a name.
const FIRST_ROOT_TIMEOUT: Duration = Duration::from_secs(10);
/// Directory blocks fetched before a new root replaces an old one.
const PREFETCHED_NODES_MAX: usize = 20_000;
/// How long one try of fetching them may take.
const PREFETCH_TIMEOUT: Duration = Duration::from_secs(8);

/// What is served for a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Serving {
    pub(super) root: Option<Cid>,
    /// The root before it, still good for what cannot be fetched below the new one.
    pub(super) previous: Option<Cid>,
}

/// What `status` tells of a name.
#[derive(Clone, Debug)]
pub struct FollowedStatus {
    pub name: IpnsName,
    pub root: Option<Cid>,
    pub sequence: Option<u64>,
    pub valid_until: Option<Timestamp>,
    /// Since the newest record was last confirmed by the network.
    pub record_age: Option<Duration>,
    /// Since the root was taken over.
    pub root_age: Option<Duration>,
    pub error: Option<String>,
    pub mode: FollowMode,
    pub replica: ReplicaStatus,
}

/// A name that is followed. Cheap to clone.
#[derive(Clone)]
pub(super) struct Follow {
    pub(super) name: IpnsName,
    pub(super) mode: FollowMode,
    serving: watch::Receiver<Serving>,
    replica: Arc<watch::Sender<ReplicaStatus>>,
    status: watch::Receiver<FollowedStatus>,
}

impl Follow {
    /// Loads what is on disk and starts following.
    pub(super) async fn start(
        tasks: &Tasks,
        ipfs: Arc<dyn Ipfs>,
        tree: Tree,
        state: State,
        (name, mode): (IpnsName, FollowMode),
        updates: broadcast::Receiver<IpnsRecord>,
    ) -> Result<Self, MirrorError> {
        let row = {
            let state = state.clone();
            off_thread(move || state.followed(&name)).await?
        };
        let root = row.as_ref().and_then(|row| row.root);
        let record = row.and_then(|row| {
            IpnsRecord::decode(&name, &row.record)
                .inspect_err(|error| tracing::warn!(ipns = %name, %error, "the record on disk is not usable"))
                .ok()
        });
        let serving = watch::Sender::new(Serving { root, previous: None });
        let status = watch::Sender::new(FollowedStatus {
            name,
            root,
            sequence: record.as_ref().map(IpnsRecord::sequence),
            valid_until: record.as_ref().map(IpnsRecord::valid_until),
            record_age: None,
            root_age: None,
            error: None,
            mode,
            replica: ReplicaStatus::default(),
        });
        let follow = Self {
            name,
            mode,
            serving: serving.subscribe(),
            replica: Arc::default(),
            status: status.subscribe(),
        };
        let follower = Follower {
            ipfs,
            tree,
            state,
            name,
            mode,
            record,
            confirmed_at: None,
            taken_at: None,
            serving,
            status,
        };
        tasks.spawn("follow", |stop| follower.run(updates, stop));
        Ok(follow)
    }

    /// The roots to look under, best first. Waits for the first one within a budget; an error says that the name could
    /// not be resolved, which is not the same as "nothing is there".
    pub(super) async fn roots(&self) -> Result<Vec<Cid>, MirrorError> {
        let mut serving = self.serving.clone();
        let known = serving.wait_for(|serving| serving.root.is_some());
        let serving = match tokio::time::timeout(FIRST_ROOT_TIMEOUT, known).await {
            Ok(Ok(serving)) => serving.clone(),
            Ok(Err(_)) => return Err(MirrorError::Closed),
            Err(_) => return Err(MirrorError::Unresolved(self.name)),
        };
        Ok(serving.root.into_iter().chain(serving.previous).collect())
    }

    /// The roots that are served now, if any.
    pub(super) fn roots_at_hand(&self) -> Vec<Cid> {
        let serving = self.serving.borrow();
        serving.root.into_iter().chain(serving.previous).collect()
    }

    pub(super) fn status(&self) -> FollowedStatus {
        FollowedStatus { replica: self.replica.borrow().clone(), ..self.status.borrow().clone() }
    }

    pub(super) fn serving(&self) -> watch::Receiver<Serving> {
        self.serving.clone()
    }

    /// For who brings the roots here.
    pub(super) fn replica(&self) -> &watch::Sender<ReplicaStatus> {
        &self.replica
    }
}

struct Follower {
    ipfs: Arc<dyn Ipfs>,
    tree: Tree,
    state: State,
    name: IpnsName,
    mode: FollowMode,
    record: Option<IpnsRecord>,
    confirmed_at: Option<Instant>,
    taken_at: Option<Instant>,
    serving: watch::Sender<Serving>,
    status: watch::Sender<FollowedStatus>,
}

impl Follower {
    async fn run(mut self, mut updates: broadcast::Receiver<IpnsRecord>, stop: CancellationToken) {
        let mut asking = self.ask_after(Duration::ZERO);
        let mut keep_alive = tokio::time::interval(KEEP_ALIVE_INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                told = updates.recv() => match told {
                    Ok(record) if *record.name() == self.name => {
                        self.consider(record).await;
                        asking = self.ask_after(self.poll_pause());
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => (),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                answer = &mut asking => {
                    self.on_answer(answer).await;
                    asking = self.ask_after(self.poll_pause());
                }
                _ = keep_alive.tick() => self.put_again().await,
            }
            self.tell();
        }
    }

    /// How long the record at hand is believed before the network is asked again.
    fn poll_pause(&self) -> Duration {
        let served = self.serving.borrow().root;
        let is_served = |record: &&IpnsRecord| served.is_some() && record.root() == served;
        let pause = match self.record.as_ref().filter(is_served) {
            Some(record) if self.status.borrow().error.is_none() => {
                record.ttl().clamp(POLL_PAUSE.0, POLL_PAUSE.1)
            }
            _ => RETRY_PAUSE,
        };
        jittered(pause)
    }

    /// Asks the network for the newest record. Apart from the rest, since that may take a while, and one that is told of
    /// meanwhile need not wait.
    fn ask_after(&self, pause: Duration) -> BoxFuture<'static, Result<IpnsRecord, IpfsError>> {
        let (ipfs, name) = (self.ipfs.clone(), self.name);
        async move {
            tokio::time::sleep(pause).await;
            ipfs.resolve(&name).await
        }
        .boxed()
    }

    /// Takes the answer over, or tries again to fetch a root that could not be had the last time.
    async fn on_answer(&mut self, answer: Result<IpnsRecord, IpfsError>) {
        match answer {
            Ok(record) => self.consider(record).await,
            Err(error) => {
                self.note_failure(&error);
                if let Some(record) = self.record.clone() {
                    self.serve(&record).await;
                }
            }
        }
    }

    /// Without a root somebody waits for the answer: say what is wrong. With one it is worth a debug line only.
    fn note_failure(&self, error: &IpfsError) {
        let error = chain(error);
        if self.serving.borrow().root.is_none() {
            tracing::info!(ipns = %self.name, %error, "not resolved yet");
        } else {
            tracing::debug!(ipns = %self.name, %error, "not confirmed");
        }
        self.status.send_modify(|status| status.error = Some(error));
    }

    async fn consider(&mut self, record: IpnsRecord) {
        if let Err(error) = record.check_validity(Timestamp::now()) {
            tracing::debug!(ipns = %self.name, %error, "record ignored");
            return;
        }
        self.confirmed_at = Some(Instant::now());
        if self.record.as_ref().is_none_or(|known| record.is_better_than(known)) {
            tracing::info!(ipns = %self.name, sequence = record.sequence(), value = record.value(), "newer record");
            self.record = Some(record.clone());
            self.save().await;
        }
        if let Some(newest) = self.record.clone() {
            self.serve(&newest).await;
        }
    }

    /// Takes the root of a record over, once its directories are here.
    async fn serve(&mut self, record: &IpnsRecord) {
        let Some(root) = record.root() else {
            let error = format!("the record points to {}, not to /ipfs/<cid>", record.value());
            self.status.send_modify(|status| status.error = Some(error));
            return;
        };
        let old = self.serving.borrow().root;
        let keep = self.tree.blocks().keep();
        keep.add(root);
        if old == Some(root) {
            self.status.send_modify(|status| status.error = None);
            return;
        }
        if let Err(error) = self.fetch_before_serving(old, root).await {
            let error = chain(&error);
            tracing::warn!(ipns = %self.name, %root, %error, "new root not fetched; the old one stays");
            self.status.send_modify(|status| status.error = Some(error));
            return;
        }
        self.serving.send_modify(|serving| *serving = Serving { root: Some(root), previous: old });
        self.taken_at = Some(Instant::now());
        self.status.send_modify(|status| status.error = None);
        tracing::info!(ipns = %self.name, %root, sequence = record.sequence(), "serving a new root");
        self.save().await;
        if old.is_none() && self.mode != FollowMode::None {
            // Nobody waits for these: a first root serves what it can meanwhile, and the rest on demand.
            if let Err(error) = self.fetch_directories(None, root).await {
                tracing::debug!(ipns = %self.name, error = %chain(&error), "directories not all fetched");
            }
        }
        if let Err(error) = self.ipfs.provide(&[root]).await {
            tracing::debug!(ipns = %self.name, %error, "root not announced");
        }
    }

    /// The root itself must be had, and unless the rest is had on demand, if another one is being served, the directories that changed too: an author
    /// who vanishes in the middle must not take away what the old root could serve. What a try could not fetch in its
    /// time the next one goes on with.
    async fn fetch_before_serving(&self, old: Option<Cid>, root: Cid) -> Result<(), MirrorError> {
        self.tree.blocks().fetch(Want { cid: root, root }).await?;
        if old.is_some() && self.mode != FollowMode::None {
            self.fetch_directories(old, root).await?;
        }
        Ok(self.tree.blocks().flush().await?)
    }

    async fn fetch_directories(&self, old: Option<Cid>, root: Cid) -> Result<(), DagError> {
        let changed = self.tree.fetch_directories(old.as_ref(), &root, PREFETCHED_NODES_MAX);
        match tokio::time::timeout(PREFETCH_TIMEOUT, changed).await {
            Ok(done) => done.map(drop),
            Err(_) => Err(DagError::Cancelled("fetching the directories of a new root took too long")),
        }
    }

    async fn save(&self) {
        let Some(record) = &self.record else { return };
        let row = Followed { record: record.bytes().to_vec(), root: self.serving.borrow().root };
        let (state, name) = (self.state.clone(), self.name);
        if let Err(error) = off_thread(move || state.set_followed(&name, &row)).await {
            tracing::error!(ipns = %self.name, error = %chain(&error), "cannot remember the root on disk");
        }
    }

    async fn put_again(&self) {
        let Some(record) = &self.record else { return };
        if record.check_validity(Timestamp::now()).is_err() {
            return;
        }
        if let Err(error) = self.ipfs.publish(record).await {
            tracing::debug!(ipns = %self.name, %error, "record not put again");
        }
    }

    fn tell(&self) {
        let (confirmed_at, taken_at) = (self.confirmed_at, self.taken_at);
        self.status.send_modify(|status| {
            status.root = self.serving.borrow().root;
            status.sequence = self.record.as_ref().map(IpnsRecord::sequence);
            status.valid_until = self.record.as_ref().map(IpnsRecord::valid_until);
            status.record_age = confirmed_at.map(|at| at.elapsed());
            status.root_age = taken_at.map(|at| at.elapsed());
        });
    }
}
