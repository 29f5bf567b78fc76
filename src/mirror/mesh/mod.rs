//! The daemons that share with us what they pulled through: what each holds, whom to ask for what, and who of us goes
//! upstream. Nobody is special, and nobody is told what to do: all compute the same succession.
//!
//! Of a fill that runs, a daemon follows only those that are meant for the blob more than it is itself, that have it from
//! the registry, or whom it was referred to, so that followers form a tree.

mod ask;
mod fanout;
mod holdings;
mod latency;
mod listen;
mod pieces;
mod public;
mod rendezvous;
mod together;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use moka::sync::Cache;

use crate::ipfs::{Ipfs, Peer};
use crate::oci::{Digest, Host};
use crate::tasks::Tasks;
pub use ask::{ALIVE_PATH, HELD, HOP, Hop, PATH, REFER};
pub(super) use ask::{Answer, ManifestAnswer, PeerManifest, Unable};
pub(super) use fanout::Followers;
pub(super) use holdings::{Held, Key};
use holdings::{Ours, Theirs};
use latency::Latencies;
pub use listen::HOLDINGS_PATH;
use rendezvous::{succession, weight};

/// How long a peer that failed is left alone: twice as long with each failure, and anew after a while without any.
const PENALTY: Duration = Duration::from_millis(500);
const PENALTY_MAX: Duration = Duration::from_secs(10);
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);
/// The same for one that sent wrong bytes.
const BAN: Duration = Duration::from_secs(3600);
/// A peer that sent something so lately is there: what else it is asked waits its turn on the same connection.
const HEARD_WITHIN: Duration = Duration::from_secs(1);
/// How long a peer that could not go to a registry is not asked to again.
const UNABLE_FOR: Duration = Duration::from_secs(60);
/// Pairs of a peer and a registry of which that is remembered.
const UNABLE_MAX: u64 = 4096;
/// How long it is remembered that nobody gives a blob who announces it, and of how many.
const UNPROVIDED_FOR: Duration = Duration::from_secs(30);
const UNPROVIDED_MAX: u64 = 4096;
/// How long ago a peer must have answered to be reckoned with: its answers take up to [`TELL_WAIT`].
const ANSWERED_WITHIN: Duration = Duration::from_secs(40);
/// How long a peer that asks what we hold waits for news.
const TELL_WAIT: Duration = Duration::from_secs(15);
/// Peers that are reckoned with.
const PEERS_MAX: usize = 1024;
/// Bans that are remembered.
const BANNED_MAX: u64 = 1024;
/// Peers that hold a thing which are tried, and those of the succession, before we go upstream ourselves.
const HOLDERS_MAX: usize = 4;
const FETCHERS_MAX: usize = 3;

/// The mesh as one daemon sees it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Mesh(Arc<Shared>);

struct Shared {
    ipfs: Arc<dyn Ipfs>,
    us: Peer,
    ours: Ours,
    peers: Mutex<HashMap<Peer, Known>>,
    /// Until when those are left alone that sent wrong bytes: it holds though they leave and come again.
    banned: Cache<Peer, Instant>,
    /// Who cannot go to which registry.
    unable: Cache<(Peer, Host), ()>,
    /// Digests that nobody gave who announces them, and when that was.
    unprovided: Cache<Digest, tokio::time::Instant>,
}

/// What is known of a peer.
#[derive(Default)]
struct Known {
    theirs: Theirs,
    answered_at: Option<Instant>,
    left_alone_until: Option<Instant>,
    /// When bytes of a body came from it.
    heard_at: Option<Instant>,
    failures: u32,
    failed_at: Option<Instant>,
    /// How long it took to begin to answer.
    latencies: Latencies,
    /// Requests to it that are under way.
    asked: usize,
}

impl Known {
    fn is_healthy(&self, now: Instant) -> bool {
        let rests = self.left_alone_until.is_some_and(|until| now < until);
        !rests && self.answered_at.is_some_and(|at| now.duration_since(at) < ANSWERED_WITHIN)
    }

    /// Whether it sends something at this moment.
    fn is_heard(&self, now: Instant) -> bool {
        self.heard_at.is_some_and(|at| now.duration_since(at) < HEARD_WITHIN)
    }

    /// Notes a failure; how long to leave it alone.
    fn failed(&mut self, now: Instant) -> Duration {
        // Requests that were under way together fail together: that is one failure.
        let rests = self.left_alone_until.is_some_and(|until| now < until);
        match self.failed_at {
            Some(at) if now.duration_since(at) < FORGIVEN_AFTER => self.failures += u32::from(!rests),
            _ => self.failures = 1,
        }
        self.failed_at = Some(now);
        (PENALTY * 2_u32.saturating_pow(self.failures.saturating_sub(1))).min(PENALTY_MAX)
    }
}

/// Somebody to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Candidate {
    Peer(Peer, Hop),
    Upstream,
}

impl Mesh {
    /// Begins to listen to whoever is in the mesh. `us`: our own peer id.
    pub(super) fn start(tasks: &Tasks, ipfs: Arc<dyn Ipfs>, us: Peer) -> Self {
        // Not known before: a peer must not take what we hold for what we held in a run before.
        let epoch = uuid::Uuid::new_v4().as_u64_pair().0;
        let banned = Cache::builder().max_capacity(BANNED_MAX).time_to_live(BAN).build();
        let unable = Cache::builder().max_capacity(UNABLE_MAX).time_to_live(UNABLE_FOR).build();
        let unprovided = Cache::builder().max_capacity(UNPROVIDED_MAX).time_to_live(UNPROVIDED_FOR).build();
        let (ours, peers) = (Ours::new(epoch), Mutex::default());
        let shared = Shared { ipfs, us, ours, peers, banned, unable, unprovided };
        let mesh = Self(Arc::new(shared));
        let listener = mesh.clone();
        let of_peers = tasks.clone();
        tasks.spawn("mesh", |stop| listen::run(listener, of_peers, stop));
        mesh
    }

    /// Notes what we hold, to be told.
    pub(super) fn hold(&self, key: Key, held: Option<Held>) {
        self.0.ours.set(key, held);
    }

    /// Replaces what we hold whole.
    pub(super) fn hold_whole(&self, keys: &HashSet<Key>) {
        self.0.ours.replace_whole(keys);
    }

    /// What we tell a peer that knows what we held at `version` of `epoch`; waits a while for news.
    pub(super) async fn told(&self, epoch: u64, version: u64) -> Bytes {
        self.0.ours.told(epoch, version, TELL_WAIT).await
    }

    /// Whether anybody is there.
    pub(super) fn is_alone(&self) -> bool {
        let now = Instant::now();
        !self.peers().values().any(|known| known.is_healthy(now))
    }

    /// Whom to ask for what has a digest and is of `registry`, in this order. Upstream is among them once: those behind it may have
    /// credentials that we lack.
    pub(super) fn candidates(&self, key: Key, registry: &Host) -> Vec<Candidate> {
        let now = Instant::now();
        let (mut whole, mut fetching, mut filling) = (Vec::new(), Vec::new(), Vec::new());
        let mut healthy = Vec::new();
        {
            let peers = self.peers();
            for (peer, known) in peers.iter().filter(|(_, known)| known.is_healthy(now)) {
                healthy.push(peer.clone());
                match known.theirs.held(key) {
                    Some(Held::Whole) => whole.push((known.asked, weight(peer, key), peer.clone())),
                    Some(Held::Fetching) => fetching.push(peer.clone()),
                    Some(Held::Filling) => filling.push(peer.clone()),
                    None => (),
                }
            }
        }
        whole.sort();
        let whole = whole.into_iter().map(|(_, _, peer)| peer).take(HOLDERS_MAX);
        let ours = weight(&self.0.us, key);
        filling.retain(|peer| weight(peer, key) > ours);
        let filling = succession(fetching, key).into_iter().chain(succession(filling, key)).take(HOLDERS_MAX);
        let held = whole.chain(filling).map(|peer| Candidate::Peer(peer, Hop::Held));
        held.chain(self.fetchers(healthy, key, registry)).collect()
    }

    /// Whom to ask to go to `registry` for something, in this order: the succession, with ourselves in our place.
    pub(super) fn fetchers_of(&self, key: Key, registry: &Host) -> Vec<Candidate> {
        let now = Instant::now();
        let peers = self.peers();
        let healthy = peers.iter().filter(|(_, known)| known.is_healthy(now)).map(|(peer, _)| peer.clone());
        let healthy: Vec<Peer> = healthy.collect();
        drop(peers);
        self.fetchers(healthy, key, registry)
    }

    fn fetchers(&self, mut healthy: Vec<Peer>, key: Key, registry: &Host) -> Vec<Candidate> {
        healthy.retain(|peer| !self.0.unable.contains_key(&(peer.clone(), registry.clone())));
        healthy.push(self.0.us.clone());
        let order = succession(healthy, key);
        let before: Vec<Peer> = order.iter().take_while(|peer| **peer != self.0.us).cloned().collect();
        let behind = order.into_iter().skip(before.len() + 1).take(FETCHERS_MAX);
        let fetch = |peer| Candidate::Peer(peer, Hop::Fetch);
        let before = before.into_iter().take(FETCHERS_MAX).map(fetch);
        before.chain([Candidate::Upstream]).chain(behind.map(fetch)).collect()
    }

    /// Those that hold a thing whole, least used first.
    pub(super) fn holders(&self, key: Key) -> Vec<Peer> {
        let now = Instant::now();
        let peers = self.peers();
        let holds = |known: &Known| known.is_healthy(now) && known.theirs.held(key) == Some(Held::Whole);
        let mut holders: Vec<_> = peers
            .iter()
            .filter(|(_, known)| holds(known))
            .map(|(peer, known)| (known.asked, peer.clone()))
            .collect();
        holders.sort();
        holders.into_iter().map(|(_, peer)| peer).take(HOLDERS_MAX).collect()
    }

    /// Whether anybody holds a thing, or is getting it.
    pub(super) fn is_held(&self, key: Key) -> bool {
        let now = Instant::now();
        self.peers().values().any(|known| known.is_healthy(now) && known.theirs.held(key).is_some())
    }

    /// Whether a peer may follow a fill of ours that has no source yet: only one that is meant for it less than we are, so
    /// that no two wait for each other.
    pub(super) fn may_wait_for_us(&self, peer: &Peer, key: Key) -> bool {
        weight(&self.0.us, key) > weight(peer, key)
    }

    /// Whether a peer is meant for a thing more than we are: it goes upstream before us.
    pub(super) fn is_meant_more(&self, peer: &Peer, key: Key) -> bool {
        weight(peer, key) > weight(&self.0.us, key)
    }

    /// Those but `asker` that hold a thing whole, or fetch it from the registry, in the order in which to ask them.
    pub(super) fn suppliers(&self, key: Key, asker: &Peer) -> Vec<Peer> {
        let now = Instant::now();
        let has = |known: &Known| {
            known.is_healthy(now) && matches!(known.theirs.held(key), Some(Held::Whole | Held::Fetching))
        };
        let peers = self.peers();
        let suppliers = peers.iter().filter(|(peer, known)| *peer != asker && has(known));
        let suppliers = suppliers.map(|(peer, _)| peer.clone()).collect();
        drop(peers);
        succession(suppliers, key).into_iter().take(HOLDERS_MAX).collect()
    }

    /// Whether nobody is meant more than we are, of those who can go to `registry`.
    pub(super) fn are_meant_most(&self, key: Key, registry: &Host) -> bool {
        self.fetchers_of(key, registry).first() == Some(&Candidate::Upstream)
    }

    /// Whether a peer said that it holds a thing whole.
    pub(super) fn holds_whole(&self, peer: &Peer, key: Key) -> bool {
        self.peers().get(peer).is_some_and(|known| known.theirs.held(key) == Some(Held::Whole))
    }

    /// Whether a peer is one of us that can be asked.
    fn may_be_asked(&self, peer: &Peer) -> bool {
        let now = Instant::now();
        self.peers().get(peer).is_some_and(|known| known.is_healthy(now))
    }

    pub(super) fn us(&self) -> &Peer {
        &self.0.us
    }

    /// These peers cannot go to a registry: they are not asked to for a while. What they hold they are.
    pub(super) fn are_unable(&self, peers: &[Peer], registry: &Host) {
        for peer in peers {
            tracing::debug!(%peer, %registry, "peer cannot go to the registry: it is not asked to for a while");
            self.0.unable.insert((peer.clone(), registry.clone()), ());
        }
    }

    /// A peer failed: it is not asked for a while.
    pub(super) fn leave_alone(&self, peer: &Peer) {
        let now = Instant::now();
        let Some(rest) = self.peers().get_mut(peer).map(|known| known.failed(now)) else { return };
        self.rest(peer, rest);
    }

    /// A peer may have sent wrong bytes.
    pub(super) fn suspect(&self, peer: &Peer) {
        self.rest(peer, PENALTY_MAX);
    }

    /// A peer sends something.
    fn heard(&self, peer: &Peer) {
        if let Some(known) = self.peers().get_mut(peer) {
            known.heard_at = Some(Instant::now());
        }
    }

    fn is_heard(&self, peer: &Peer) -> bool {
        self.peers().get(peer).is_some_and(|known| known.is_heard(Instant::now()))
    }

    /// A peer delivered all it was asked for.
    fn delivered(&self, peer: &Peer) {
        if let Some(known) = self.peers().get_mut(peer) {
            known.failures = 0;
        }
    }

    /// A peer sent what is not what was asked for.
    pub(super) fn ban(&self, peer: &Peer) {
        tracing::warn!(%peer, "peer sent wrong bytes: it is not asked again for an hour");
        self.0.banned.insert(peer.clone(), Instant::now() + BAN);
        self.rest(peer, BAN);
    }

    fn rest(&self, peer: &Peer, rest: Duration) {
        if let Some(known) = self.peers().get_mut(peer) {
            let until = Instant::now() + rest;
            known.left_alone_until = Some(known.left_alone_until.map_or(until, |known| known.max(until)));
        }
    }

    /// A panic leaves what was known of one peer before.
    fn peers(&self) -> MutexGuard<'_, HashMap<Peer, Known>> {
        self.0.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives `bytes` to every decoder of this module. For fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    ask::fuzz(bytes);
    holdings::fuzz(bytes);
}
