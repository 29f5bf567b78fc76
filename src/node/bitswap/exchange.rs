//! The state of Bitswap behind a lock that is held for decisions only, and the way in for the rest of the node.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::swarm::StreamProtocol;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::ledger::Ledgers;
use super::message::{MESSAGE_BYTES_MAX, Version};
use super::session::{Effects, Failure, FetchId, Sessions};
use super::{BitswapLimits, BitswapStats, receive, send};
use crate::ipfs::{IpfsError, Want};
use crate::ipld::block::IDENTITY;
use crate::ipld::{Block, Cid, Multihash};
use crate::node::streams::{Control, Incoming, Reason};
use crate::store::{Blockstore, Buffers};
use crate::tasks::Tasks;

/// How often time is noticed while something is wanted.
const TICK: Duration = Duration::from_millis(100);
/// How long nothing is wanted before memory kept for speed is given back.
const IDLE: Duration = Duration::from_secs(10);
/// How long providers of a root are listened for.
const FIND_TIMEOUT: Duration = Duration::from_secs(60);
/// Buffers of messages that wait to be used again.
const BUFFERS_KEPT_BYTES_MAX: usize = 24 << 20;
/// Providers that wait to be noticed.
const FOUND_WAITING_MAX: usize = 16;

const V1_2: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");
const V1_1: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.1.0");
const V1_0: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.0.0");
const UNVERSIONED: StreamProtocol = StreamProtocol::new("/ipfs/bitswap");

/// What is accepted and offered, best first.
pub fn protocols() -> Vec<StreamProtocol> {
    vec![V1_2, V1_1, V1_0, UNVERSIONED]
}

pub(super) fn version(protocol: &StreamProtocol) -> Version {
    match protocol {
        known if *known == V1_2 => Version::V1_2,
        known if *known == V1_1 => Version::V1_1,
        _ => Version::V1_0,
    }
}

/// Asks for peers that have `root`.
#[derive(Debug)]
pub struct FindProviders {
    pub root: Cid,
    /// Takes peers as they are found, whom the finder dials; dropping it ends the search.
    pub reply: mpsc::Sender<PeerId>,
}

/// Gets blocks from peers and gives them ours. Cheap to clone.
#[derive(Clone)]
pub struct Exchange(Arc<Inner>);

pub(super) struct Inner {
    state: Mutex<State>,
    pub(super) store: Blockstore,
    pub(super) control: Control,
    pub(super) tasks: Tasks,
    pub(super) limits: BitswapLimits,
    find: mpsc::Sender<FindProviders>,
    /// Wakes the clock when something is wanted again.
    wanted: Notify,
    fetches: Semaphore,
    /// In KiB.
    pub(super) receiving: Arc<Semaphore>,
    pub(super) hashing: Arc<Semaphore>,
    pub(super) batches: Arc<Semaphore>,
    pub(super) buffers: Buffers,
    epoch: Instant,
    pub(super) counters: Counters,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) blocks_sent: AtomicU64,
    pub(super) bytes_sent: AtomicU64,
    blocks_received: AtomicU64,
    bytes_received: AtomicU64,
    pub(super) bytes_wasted: AtomicU64,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) sessions: Sessions,
    pub(super) ledgers: Ledgers,
    waiters: HashMap<FetchId, oneshot::Sender<Result<Bytes, Failure>>>,
    links: HashMap<PeerId, Arc<Link>>,
    next_fetch: FetchId,
    closed: bool,
}

/// What the tasks of a connected peer share.
pub(super) struct Link {
    pub(super) peer: PeerId,
    /// There are wantlist entries to send.
    pub(super) wants: Notify,
    /// There are wants of the peer to serve.
    pub(super) serve: Notify,
    pub(super) gone: CancellationToken,
    /// Milliseconds since the epoch of the exchange when the last byte came.
    heard_millis: AtomicU64,
    /// Messages being written.
    pub(super) writing: AtomicUsize,
    pub(super) streams: Arc<Semaphore>,
    /// In KiB.
    pub(super) receiving: Arc<Semaphore>,
}

impl Exchange {
    /// Has providers of a root looked for, which are dialled as they are found. The search ends when nobody hears of it.
    pub async fn find(&self, root: Cid) -> mpsc::Receiver<PeerId> {
        let (reply, found) = mpsc::channel(FOUND_WAITING_MAX);
        // When the node has ended, the reply goes, and nobody is found.
        let _ = self.0.find.send(FindProviders { root, reply }).await;
        found
    }

    /// Starts the exchange's tasks. `control` and `incoming` belong to a [`crate::node::streams::Behaviour`] for
    /// [`protocols`]; `find` is asked when no connected peer has a root.
    pub fn start(
        tasks: &Tasks,
        store: Blockstore,
        control: Control,
        incoming: mpsc::Receiver<Incoming>,
        find: mpsc::Sender<FindProviders>,
        limits: BitswapLimits,
    ) -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let inner = Arc::new(Inner {
            state: Mutex::default(),
            store,
            control,
            tasks: tasks.clone(),
            find,
            wanted: Notify::new(),
            fetches: Semaphore::new(limits.fetches_max),
            receiving: Arc::new(Semaphore::new(limits.receive_bytes_max / 1024)),
            hashing: Arc::new(Semaphore::new(threads)),
            batches: Arc::new(Semaphore::new(limits.batches_max)),
            buffers: Buffers::new(BUFFERS_KEPT_BYTES_MAX),
            epoch: now(),
            counters: Counters::default(),
            limits,
        });
        tasks.spawn("bitswap-accept", |stop| receive::accept(inner.clone(), incoming, stop));
        tasks.spawn("bitswap-clock", |stop| keep_time(inner.clone(), stop));
        Self(inner)
    }

    /// Gets a block from peers; verified, and not stored. When the future is dropped the want is withdrawn, and peers
    /// are told if nobody else waits for the block. At most `fetches_max` are under way; more wait here.
    pub async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        let cid = want.cid;
        if let Some(block) = Block::known(&cid) {
            return Ok(block);
        }
        if !is_verifiable(&cid) {
            return Err(IpfsError::NoProvider(Box::new(cid)));
        }
        let _permit = self.0.fetches.acquire().await.map_err(|_| IpfsError::Closed)?;
        let (waiter, result) = oneshot::channel();
        let fetch = self.0.change(None, |state, now| {
            if state.closed {
                return None;
            }
            state.next_fetch += 1;
            state.waiters.insert(state.next_fetch, waiter);
            state.sessions.want(state.next_fetch, want, now);
            Some(state.next_fetch)
        });
        let Some(fetch) = fetch else { return Err(IpfsError::Closed) };
        self.0.wanted.notify_one();
        let _withdraw = Withdraw { inner: &self.0, fetch, key: *cid.hash() };
        match result.await {
            Ok(Ok(bytes)) => Ok(Block::from_store(cid, bytes)), // Found by its hash.
            Ok(Err(Failure::NoProvider)) => Err(IpfsError::NoProvider(Box::new(cid))),
            Ok(Err(Failure::NoPeers)) => Err(IpfsError::NoPeers(format!("block {cid}"))),
            Ok(Err(Failure::Timeout(seconds))) => Err(IpfsError::Timeout(format!("block {cid}"), seconds)),
            Err(_dropped) => Err(IpfsError::Closed),
        }
    }

    /// A first connection to the peer stands. Opens a stream at once, so that a want costs one round trip.
    #[expect(clippy::unused_async, reason = "part of the interface of the node's event loop")]
    pub async fn connected(&self, peer: PeerId) {
        self.0.link(peer);
    }

    /// The last connection to the peer is closed.
    #[expect(clippy::unused_async, reason = "part of the interface of the node's event loop")]
    pub async fn disconnected(&self, peer: PeerId) {
        self.0.unlink(&peer, None);
    }

    /// Blocks came into the store from elsewhere: peers that asked for them in vain get them.
    pub fn notify_stored(&self, cids: &[Cid]) {
        self.0.change(None, |state, _| {
            for peer in cids.iter().flat_map(|cid| state.ledgers.stored(cid)) {
                if let Some(link) = state.links.get(&peer) {
                    link.serve.notify_one();
                }
            }
        });
    }

    pub fn stats(&self) -> BitswapStats {
        let counters = &self.0.counters;
        let state = self.0.lock();
        BitswapStats {
            peers: state.sessions.sources(),
            wants: state.sessions.wants(),
            wants_of_peers: state.ledgers.len(),
            fetches: state.waiters.len(),
            blocks_sent: counters.blocks_sent.load(Ordering::Relaxed),
            bytes_sent: counters.bytes_sent.load(Ordering::Relaxed),
            blocks_received: counters.blocks_received.load(Ordering::Relaxed),
            bytes_received: counters.bytes_received.load(Ordering::Relaxed),
            bytes_wasted: counters.bytes_wasted.load(Ordering::Relaxed),
        }
    }
}

/// Withdraws a want when its waiter goes.
struct Withdraw<'a> {
    inner: &'a Arc<Inner>,
    fetch: FetchId,
    key: Multihash,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.inner.change(None, |state, now| {
            if state.waiters.remove(&self.fetch).is_some() {
                state.sessions.withdraw(self.fetch, &self.key, now);
            }
        });
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and does what follows from it. `peer` is the one that the change is about.
    pub(super) fn change<T>(
        self: &Arc<Self>,
        peer: Option<&PeerId>,
        change: impl FnOnce(&mut State, Instant) -> T,
    ) -> T {
        let mut state = self.lock();
        let result = change(&mut state, now());
        let Effects { wake, find, failed } = state.sessions.effects();
        for (fetch, failure) in failed {
            if let Some(waiter) = state.waiters.remove(&fetch) {
                let _gone = waiter.send(Err(failure));
            }
        }
        for peer in wake.iter().chain(peer) {
            let Some(link) = state.links.get(peer) else { continue };
            if wake.contains(peer) {
                link.wants.notify_one();
            }
            let busy = state.sessions.is_busy(peer)
                || state.ledgers.owes(peer)
                || link.writing.load(Ordering::Relaxed) > 0;
            self.control.keep(peer, Reason::Exchange, busy);
        }
        drop(state);
        for root in find {
            let inner = self.clone();
            self.tasks.spawn_short("bitswap-find", |stop| async move {
                stop.run_until_cancelled(find_providers(&inner, root)).await;
            });
        }
        result
    }

    /// Whether a peer broke the protocol lately.
    pub(super) fn has_left(&self, peer: &PeerId) -> bool {
        self.lock().sessions.has_left(peer)
    }

    /// Whether messages wait for memory to be received in.
    pub(super) fn is_crowded(&self) -> bool {
        self.receiving.available_permits() < MESSAGE_BYTES_MAX / 1024
    }

    /// The link of a peer, made if it is new.
    pub(super) fn link(self: &Arc<Self>, peer: PeerId) -> Arc<Link> {
        let (link, is_new) = self.change(Some(&peer), |state, now| {
            if let Some(link) = state.links.get(&peer) {
                return (link.clone(), false);
            }
            let link = Arc::new(Link::new(peer, &self.limits));
            link.heard(self);
            state.links.insert(peer, link.clone());
            state.sessions.connected(peer, now);
            (link, true)
        });
        if is_new {
            self.tasks.spawn_short("bitswap-wants", |stop| send::wants(self.clone(), link.clone(), stop));
            self.tasks.spawn_short("bitswap-serve", |stop| send::serve(self.clone(), link.clone(), stop));
        }
        link
    }

    /// Forgets a peer; with `link` only if that is still its link.
    pub(super) fn unlink(self: &Arc<Self>, peer: &PeerId, link: Option<&Arc<Link>>) {
        self.change(None, |state, now| {
            let known = state.links.get(peer);
            if known.is_none_or(|known| link.is_some_and(|link| !Arc::ptr_eq(known, link))) {
                return;
            }
            if let Some(link) = state.links.remove(peer) {
                link.gone.cancel();
            }
            state.sessions.disconnected(peer, now);
            state.ledgers.forget(peer);
        });
    }

    /// Blocks came from a peer, by their hashes.
    pub(super) fn deliver(self: &Arc<Self>, peer: &PeerId, blocks: Vec<(Multihash, Bytes)>) {
        self.change(Some(peer), |state, now| {
            for (key, bytes) in blocks {
                let fetches = state.sessions.block(*peer, &key, bytes.len(), now);
                let size_bytes = bytes.len() as u64;
                if fetches.is_empty() {
                    self.counters.bytes_wasted.fetch_add(size_bytes, Ordering::Relaxed);
                    continue;
                }
                self.counters.blocks_received.fetch_add(1, Ordering::Relaxed);
                self.counters.bytes_received.fetch_add(size_bytes, Ordering::Relaxed);
                for waiter in fetches.iter().filter_map(|fetch| state.waiters.remove(fetch)) {
                    let _gone = waiter.send(Ok(bytes.clone()));
                }
            }
        });
    }
}

impl Link {
    fn new(peer: PeerId, limits: &BitswapLimits) -> Self {
        Self {
            peer,
            wants: Notify::new(),
            serve: Notify::new(),
            gone: CancellationToken::new(),
            heard_millis: AtomicU64::new(0),
            writing: AtomicUsize::new(0),
            streams: Arc::new(Semaphore::new(limits.streams_per_peer_max)),
            receiving: Arc::new(Semaphore::new(limits.receive_bytes_per_peer_max / 1024)),
        }
    }

    /// Notes that bytes came, without the lock.
    pub(super) fn heard(&self, inner: &Inner) {
        let millis = now().saturating_duration_since(inner.epoch).as_millis();
        self.heard_millis.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Tells the sessions about time, while they want something. When the daemon stops, all fetches end.
async fn keep_time(inner: Arc<Inner>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let wanting = inner.change(None, |state, now| {
            if state.sessions.wants() == 0 {
                return false;
            }
            for (peer, link) in &state.links {
                let heard = Duration::from_millis(link.heard_millis.load(Ordering::Relaxed));
                state.sessions.heard(peer, inner.epoch + heard);
            }
            state.sessions.tick(now);
            true
        });
        let pause = async {
            if wanting {
                return tokio::time::sleep(TICK).await;
            }
            if tokio::time::timeout(IDLE, inner.wanted.notified()).await.is_err() {
                inner.buffers.clear();
                inner.wanted.notified().await;
            }
        };
        stop.run_until_cancelled(pause).await;
    }
    inner.change(None, |state, _| {
        state.closed = true;
        state.waiters.clear();
    });
}

async fn find_providers(inner: &Arc<Inner>, root: Cid) {
    let search = async {
        let mut found = Exchange(inner.clone()).find(root).await;
        while let Some(peer) = found.recv().await {
            inner.change(Some(&peer), |state, now| state.sessions.provider_found(&root, peer, now));
        }
    };
    let _elapsed = tokio::time::timeout(FIND_TIMEOUT, search).await;
    inner.change(None, |state, now| state.sessions.search_ended(&root, now));
}

/// Whether a block can be held to its CID.
fn is_verifiable(cid: &Cid) -> bool {
    use multihash_codetable::Code;
    let code = cid.hash().code();
    code == IDENTITY || code == u64::from(Code::Sha2_256) || code == u64::from(Code::Sha2_512)
}

/// The clock that tests can pause.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
