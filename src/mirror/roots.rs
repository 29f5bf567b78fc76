//! The readonly roots: whose trees we read, kept fresh behind the requests.
//!
//! A task per name owns what is known of it. A newer record is believed when its directories could be fetched; until
//! then the root at hand stays, on disk too. Whoever looks something up takes the root as it is, or waits for the first
//! one within a budget.
//!
//! A record that has expired is neither taken nor given to others. The tree that it named stays readable here, with a
//! warning: its author may only be late.

use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::link::start_of;
use super::replicate::ReplicaStatus;
use super::trail::{Start, Trail, TrailError};
use super::{Age, MirrorError, chain};
use crate::config::FollowMode;
use crate::dag::{DagError, Tree};
use crate::ipfs::{Ipfs, Want};
use crate::ipld::TreeName;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::naming::Naming;
use crate::store::{State, off_thread};
use crate::tasks::{Tasks, jittered};

/// How often the network is asked for a newer record, besides being told of one: when the TTL of the one at hand is over,
/// within these bounds …
const POLL_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// … or after this long, while there is no record, or its root is not served.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// How often it is asked where a domain leads: DNSLink has no word of its own on that.
pub(super) const LINK_TTL: Duration = Duration::from_secs(60);
/// How often the newest record is put again, so that it outlives its author: give or take a quarter.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(4 * 3600);
/// How long a look-up waits for the first root of a name.
const FIRST_ROOT_TIMEOUT: Duration = Duration::from_secs(10);
/// Directory blocks fetched before a new root replaces an old one.
const PREFETCHED_NODES_MAX: usize = 20_000;
/// How long one try of fetching them may take.
const PREFETCH_TIMEOUT: Duration = Duration::from_secs(8);

/// Records that are put again at once, of all names.
const PUTS_AT_ONCE: usize = 4;

/// What all followed names share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Following {
    pub(super) ipfs: Arc<dyn Ipfs>,
    naming: Naming,
    pub(super) tree: Tree,
    pub(super) state: State,
    puts: Arc<Semaphore>,
    now: fn() -> Timestamp,
}

impl Following {
    /// `now`: the clock by which records expire.
    pub(super) fn new(
        ipfs: Arc<dyn Ipfs>,
        naming: Naming,
        tree: Tree,
        state: State,
        now: fn() -> Timestamp,
    ) -> Self {
        Self { ipfs, naming, tree, state, puts: Arc::new(Semaphore::new(PUTS_AT_ONCE)), now }
    }
}

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
    pub name: TreeName,
    pub root: Option<Cid>,
    pub sequence: Option<u64>,
    pub valid_until: Option<Timestamp>,
    /// Since the newest record was last confirmed by the network.
    pub record_age: Option<Duration>,
    /// Since the root was taken over.
    pub root_age: Option<Duration>,
    pub error: Option<String>,
    /// The name that this one was given up for.
    pub moved_to: Option<IpnsName>,
    /// Since a record on the way to the tree expired, if one has: the tree may be out of date.
    pub expired_for: Option<Duration>,
    pub mode: FollowMode,
    pub replica: ReplicaStatus,
}

/// A name that is followed. Cheap to clone.
#[derive(Clone)]
pub(super) struct Follow {
    pub(super) name: TreeName,
    pub(super) mode: FollowMode,
    state: State,
    serving: watch::Receiver<Serving>,
    replica: Arc<watch::Sender<ReplicaStatus>>,
    status: watch::Receiver<FollowedStatus>,
}

impl Follow {
    /// Loads what is on disk and starts following.
    pub(super) async fn start(
        tasks: &Tasks,
        following: Following,
        (name, mode): (TreeName, FollowMode),
        updates: broadcast::Receiver<IpnsRecord>,
    ) -> Result<Self, MirrorError> {
        let row = {
            let (state, name) = (following.state.clone(), name.clone());
            off_thread(move || state.followed(&name)).await?
        };
        let root = row.as_ref().and_then(|row| row.root);
        let trail = match &row {
            Some(row) => Trail::load(&name, row),
            None => Trail::new(Start::from(&name)),
        };
        let serving = watch::Sender::new(Serving { root, previous: None });
        let status = watch::Sender::new(FollowedStatus {
            name: name.clone(),
            root,
            sequence: None,
            valid_until: None,
            record_age: None,
            root_age: None,
            error: None,
            moved_to: None,
            expired_for: None,
            mode,
            replica: ReplicaStatus::default(),
        });
        let follow = Self {
            name: name.clone(),
            mode,
            state: following.state.clone(),
            serving: serving.subscribe(),
            replica: Arc::default(),
            status: status.subscribe(),
        };
        let mut follower = Follower {
            following,
            name,
            mode,
            trail,
            linked_at: None,
            confirmed_at: None,
            taken_at: None,
            serving,
            status,
        };
        follower.tell();
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
            Err(_) => return Err(MirrorError::Unresolved(self.name.clone())),
        };
        Ok(serving.root.into_iter().chain(serving.previous).collect())
    }

    /// The roots that are served now, if any.
    pub(super) fn roots_at_hand(&self) -> Vec<Cid> {
        let serving = self.serving.borrow();
        serving.root.into_iter().chain(serving.previous).collect()
    }

    pub(super) fn status(&self) -> FollowedStatus {
        let (mut replica, served) = (self.replica.borrow().clone(), self.serving.borrow().root);
        // Who brings it may not have heard of a new root yet.
        replica.is_whole &= replica.whole == served;
        FollowedStatus { replica, ..self.status.borrow().clone() }
    }

    /// How old what is served is, once its record has expired.
    pub(super) fn age(&self) -> Option<Age> {
        let status = self.status.borrow();
        let expired_for = status.expired_for?;
        let since_confirmed = status.record_age.map_or(expired_for, |age| age.max(expired_for));
        Some(Age { since_confirmed, stale: true })
    }

    pub(super) fn serving(&self) -> watch::Receiver<Serving> {
        self.serving.clone()
    }

    /// Where it is kept what is here of the name.
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// For who brings the roots here.
    pub(super) fn replica(&self) -> &watch::Sender<ReplicaStatus> {
        &self.replica
    }
}

struct Follower {
    following: Following,
    name: TreeName,
    mode: FollowMode,
    trail: Trail,
    /// When it was last said where the domain leads.
    linked_at: Option<Instant>,
    confirmed_at: Option<Instant>,
    taken_at: Option<Instant>,
    serving: watch::Sender<Serving>,
    status: watch::Sender<FollowedStatus>,
}

/// What was said of the names on a trail, as far as somebody was asked.
#[derive(Default)]
struct Answer {
    /// Where the domain leads.
    start: Option<Start>,
    records: Vec<IpnsRecord>,
    /// The first failures: chains of causes.
    link_error: Option<String>,
    error: Option<String>,
}

impl Follower {
    async fn run(mut self, mut updates: broadcast::Receiver<IpnsRecord>, stop: CancellationToken) {
        self.follow_moved().await;
        let mut asking = self.ask_after(Duration::ZERO);
        let mut put_again = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut putting = FuturesUnordered::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                told = updates.recv() => match told {
                    Ok(record) if self.trail.has(record.name()) => {
                        self.consider(None, vec![record]).await;
                        // What it leads on to is asked for at once.
                        let is_known = self.trail.missing().is_none();
                        asking = self.ask_after(if is_known { self.poll_pause() } else { Duration::ZERO });
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => (),
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                answer = &mut asking => {
                    self.on_answer(answer).await;
                    asking = self.ask_after(self.poll_pause());
                }
                () = &mut put_again => {
                    putting.push(self.put_again());
                    // The first that is known is put soon: its author may be gone by the next time.
                    let is_known = self.trail.first().is_some();
                    let pause = if is_known { KEEP_ALIVE_INTERVAL } else { RETRY_PAUSE };
                    put_again.as_mut().reset(Instant::now() + jittered(pause));
                }
                Some(()) = putting.next() => (),
            }
            self.tell();
        }
    }

    /// How long what is at hand is believed before the network is asked again.
    fn poll_pause(&self) -> Duration {
        let served = self.serving.borrow().root;
        let pause = match self.trail.last() {
            _ if self.trail.root().ok() != served || self.status.borrow().error.is_some() => RETRY_PAUSE,
            Some(record) => record.ttl().clamp(POLL_PAUSE.0, POLL_PAUSE.1),
            None if served.is_some() => LINK_TTL,
            None => RETRY_PAUSE,
        };
        jittered(pause)
    }

    /// Asks the network for the newest records. Apart from the rest, since that may take a while, and one that is told of
    /// meanwhile need not wait.
    fn ask_after(&self, pause: Duration) -> BoxFuture<'static, Answer> {
        let (following, mut trail) = (self.following.clone(), self.trail.clone());
        let (name, linked_at) = (self.name.clone(), self.linked_at);
        async move {
            tokio::time::sleep(pause).await;
            let (mut answer, mut at) = (Answer::default(), 0);
            if let TreeName::Domain(domain) = name
                && linked_at.is_none_or(|at| at.elapsed() >= LINK_TTL)
            {
                match start_of(&following.naming, &domain).await {
                    Ok(start) => {
                        trail.begin(start);
                        answer.start = Some(start);
                    }
                    Err(error) => answer.link_error = Some(chain(&error)),
                }
            }
            while let Some(name) = trail.name_at(at) {
                match following.ipfs.resolve(&name).await {
                    Ok(record) if record.check_validity((following.now)()).is_ok() => {
                        trail.take(record.clone());
                        answer.records.push(record);
                    }
                    Ok(_) => (),
                    // The record of a name that was given up may be lost; what it led to is known.
                    Err(cause) => drop(answer.error.get_or_insert_with(|| chain(&cause))),
                }
                at += 1;
            }
            answer
        }
        .boxed()
    }

    /// Takes the answer over, or tries again to fetch a root that could not be had the last time.
    async fn on_answer(&mut self, answer: Answer) {
        let Answer { start, records, link_error, error } = answer;
        let is_end_known = records.last().is_some_and(|record| record.root().is_some());
        self.consider(start, records).await;
        if let Some(error) = link_error.or(error.filter(|_| !is_end_known)) {
            self.note_failure(error);
        }
    }

    /// Without a root somebody waits for the answer: say what is wrong. With one it is worth a debug line only.
    fn note_failure(&self, error: String) {
        if self.serving.borrow().root.is_none() {
            tracing::info!(ipns = %self.name, error, "not resolved yet");
        } else {
            tracing::debug!(ipns = %self.name, error, "not confirmed");
        }
        self.status.send_modify(|status| status.error = Some(error));
    }

    async fn consider(&mut self, start: Option<Start>, records: Vec<IpnsRecord>) {
        let mut is_news = false;
        if let Some(start) = start {
            self.linked_at = Some(Instant::now());
            is_news = self.trail.begin(start);
            if is_news {
                tracing::info!(domain = %self.name, ?start, "the domain leads here");
            }
        }
        for record in records {
            if let Err(error) = record.check_validity((self.following.now)()) {
                tracing::debug!(ipns = %self.name, %error, "record ignored");
                continue;
            }
            self.confirmed_at = Some(Instant::now());
            let (name, sequence, value) = (*record.name(), record.sequence(), record.value().to_owned());
            if self.trail.take(record) {
                tracing::info!(ipns = %name, sequence, value, "newer record");
                is_news = true;
            }
        }
        if is_news {
            self.follow_moved().await;
            let served = self.serving.borrow().root;
            self.save(served).await;
        }
        self.serve().await;
    }

    /// Has the network tell of the names that this one leads to.
    async fn follow_moved(&self) {
        // The name that is followed is known to it.
        let first = usize::from(matches!(self.name, TreeName::Key(_)));
        for at in first..=self.trail.records().len() {
            if let Some(name) = self.trail.name_at(at) {
                self.following.ipfs.follow(&name).await;
            }
        }
    }

    /// Takes the root at the end of the trail over, once its directories are here.
    async fn serve(&mut self) {
        let root = match self.trail.root() {
            Ok(root) => root,
            // It is asked for next.
            Err(TrailError::Unknown(_) | TrailError::Unlinked) => return,
            Err(error) => {
                self.status.send_modify(|status| status.error = Some(error.to_string()));
                return;
            }
        };
        let old = self.serving.borrow().root;
        let keep = self.following.tree.blocks().keep();
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
        // What was seen to be served is what a kill leaves.
        self.save(Some(root)).await;
        self.serving.send_modify(|serving| *serving = Serving { root: Some(root), previous: old });
        self.taken_at = Some(Instant::now());
        self.status.send_modify(|status| status.error = None);
        let sequence = self.trail.last().map(IpnsRecord::sequence);
        tracing::info!(ipns = %self.name, %root, sequence, "serving a new root");
        if old.is_none() && self.mode != FollowMode::None {
            // Nobody waits for these: a first root serves what it can meanwhile, and the rest on demand.
            if let Err(error) = self.fetch_directories(None, root).await {
                tracing::debug!(ipns = %self.name, error = %chain(&error), "directories not all fetched");
            }
        }
        if let Err(error) = self.following.ipfs.provide(&[root]).await {
            tracing::debug!(ipns = %self.name, %error, "root not announced");
        }
    }

    /// The root itself must be had, and unless the rest is had on demand, if another one is being served, the directories that changed too: an author
    /// who vanishes in the middle must not take away what the old root could serve. What a try could not fetch in its
    /// time the next one goes on with.
    async fn fetch_before_serving(&self, old: Option<Cid>, root: Cid) -> Result<(), MirrorError> {
        let blocks = self.following.tree.blocks();
        blocks.fetch(Want { cid: root, root }).await?;
        if old.is_some() && self.mode != FollowMode::None {
            self.fetch_directories(old, root).await?;
        }
        Ok(blocks.flush().await?)
    }

    async fn fetch_directories(&self, old: Option<Cid>, root: Cid) -> Result<(), DagError> {
        let changed = self.following.tree.fetch_directories(old.as_ref(), &root, PREFETCHED_NODES_MAX);
        match tokio::time::timeout(PREFETCH_TIMEOUT, changed).await {
            Ok(done) => done.map(drop),
            Err(_) => Err(DagError::Cancelled("fetching the directories of a new root took too long")),
        }
    }

    /// Remembers the trail on disk, and the root that is served.
    async fn save(&self, served: Option<Cid>) {
        let Some(row) = self.trail.row(&self.name, served) else { return };
        let (state, name) = (self.following.state.clone(), self.name.clone());
        if let Err(error) = off_thread(move || state.set_followed(&name, &row)).await {
            tracing::error!(ipns = %self.name, error = %chain(&error), "cannot remember the root on disk");
        }
    }

    /// Puts the records on the trail again, in turn with those of other names: apart from the rest, since it may take a
    /// while.
    fn put_again(&self) -> BoxFuture<'static, ()> {
        let (following, records) = (self.following.clone(), self.trail.records().to_vec());
        async move {
            for record in records.iter().filter(|record| record.check_validity((following.now)()).is_ok()) {
                let Ok(_turn) = following.puts.acquire().await else { return };
                if let Err(error) = following.ipfs.publish(record).await {
                    tracing::debug!(ipns = %record.name(), %error, "record not put again");
                }
            }
        }
        .boxed()
    }

    fn tell(&mut self) {
        let (confirmed_at, taken_at) = (self.confirmed_at, self.taken_at);
        let now = (self.following.now)();
        let expired = self.trail.records().iter().filter(|record| record.check_validity(now).is_err());
        let expired_for = expired
            .map(|record| Duration::try_from(now.duration_since(record.valid_until())).unwrap_or_default())
            .max();
        // Where a domain leads is its owner's to say.
        let is_key = matches!(self.name, TreeName::Key(_));
        let moved_to = self.trail.moved_to().filter(|_| is_key);
        let before = self.status.borrow().clone();
        if let (Some(_), None) = (expired_for, before.expired_for) {
            tracing::warn!(ipns = %self.name, "the record of this name has expired, and its author has signed no newer one: what was last known is served on");
        }
        if let Some(to) = moved_to.filter(|to| before.moved_to != Some(*to)) {
            tracing::warn!(ipns = %self.name, %to, "this name was given up for another one, which is followed: put that into storage.ipfs.readonlyipnskeys");
        }
        self.status.send_modify(|status| {
            status.root = self.serving.borrow().root;
            status.sequence = self.trail.first().map(IpnsRecord::sequence);
            status.valid_until = self.trail.first().map(IpnsRecord::valid_until);
            status.record_age = confirmed_at.map(|at| at.elapsed());
            status.root_age = taken_at.map(|at| at.elapsed());
            (status.moved_to, status.expired_for) = (moved_to, expired_for);
        });
    }
}
