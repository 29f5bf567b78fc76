//! A network for the tests of DAGs: the blocks of another store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Request, Response};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::ipfs::{Ipfs, IpfsError, Peer, PeerBody, Want};
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::{Block, Cid};
use crate::store::Blockstore;

/// How long a test waits for what must come.
const DEADLINE: Duration = Duration::from_secs(20);

/// A network that has the blocks of another store, or none. It counts what is asked of it, and answers when it may.
pub(super) struct Far {
    store: Option<Blockstore>,
    fetched: AtomicUsize,
    answers: watch::Sender<bool>,
    pending: watch::Sender<usize>,
    pending_peak: AtomicUsize,
}

impl Far {
    pub(super) fn with(store: Option<&Blockstore>) -> Arc<Self> {
        Arc::new(Self {
            store: store.cloned(),
            fetched: AtomicUsize::new(0),
            answers: watch::Sender::new(true),
            pending: watch::Sender::new(0),
            pending_peak: AtomicUsize::new(0),
        })
    }

    /// How many fetches were begun since it was last asked.
    pub(super) fn fetched(&self) -> usize {
        self.fetched.swap(0, Ordering::Relaxed)
    }

    /// Keeps all who ask waiting.
    pub(super) fn hold(&self) {
        self.answers.send_replace(false);
    }

    pub(super) fn release(&self) {
        self.answers.send_replace(true);
    }

    /// Fetches that wait.
    pub(super) fn pending(&self) -> usize {
        *self.pending.borrow()
    }

    /// The most that ever waited at once.
    pub(super) fn pending_peak(&self) -> usize {
        self.pending_peak.load(Ordering::Relaxed)
    }

    /// Returns when this many fetches wait.
    pub(super) async fn until_pending(&self, wanted: usize) {
        let mut pending = self.pending.subscribe();
        let reached = timeout(DEADLINE, pending.wait_for(|pending| *pending == wanted)).await;
        assert!(reached.is_ok(), "{} fetches are pending, not {wanted}", self.pending());
    }
}

#[async_trait]
impl Ipfs for Far {
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        let _pending = Pending::begin(self);
        _ = self.answers.subscribe().wait_for(|answers| *answers).await;
        let bytes = self.store.as_ref().and_then(|store| store.get(want.cid.hash()).unwrap());
        bytes
            .map(|bytes| Block::from_store(want.cid, bytes))
            .ok_or_else(|| IpfsError::NoProvider(Box::new(want.cid)))
    }
    async fn provide(&self, _: &[Cid]) -> Result<(), IpfsError> {
        Err(IpfsError::Closed)
    }
    async fn resolve(&self, _: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        Err(IpfsError::Closed)
    }
    async fn publish(&self, _: &IpnsRecord) -> Result<(), IpfsError> {
        Err(IpfsError::Closed)
    }
    fn mesh(&self) -> watch::Receiver<Arc<[Peer]>> {
        watch::Sender::default().subscribe()
    }
    async fn request(&self, _: &Peer, _: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError> {
        Err(IpfsError::Closed)
    }
}

/// Counts a fetch for as long as somebody waits for it.
struct Pending<'a>(&'a Far);

impl<'a> Pending<'a> {
    fn begin(far: &'a Far) -> Self {
        far.pending.send_modify(|pending| {
            *pending += 1;
            far.pending_peak.fetch_max(*pending, Ordering::Relaxed);
        });
        Self(far)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.pending.send_modify(|pending| *pending -= 1);
    }
}
