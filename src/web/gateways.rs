//! Trustless gateways: those of the config, and those that are found to have a DAG. A want goes to one at a time, to a
//! second when the first is late; the block that comes is verified, whoever sent it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cid::Cid;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::WebStatus;
use super::ahead::{Ahead, Archive};
use super::client::{Http, WebError, place_of};
use super::health::Health;
use super::places::Reach;
use crate::ipfs::Want;
use crate::ipld::block::{BLOCK_BYTES_MAX, DAG_PB};
use crate::ipld::{Block, BlockError};
use crate::tasks::Tasks;

const RAW: &str = "application/vnd.ipld.raw";
/// Each block once, before those below it (IPIP-412).
pub(super) const CAR: &str = "application/vnd.ipld.car; version=1; order=dfs; dups=n";

/// Gateways asked for one block at once.
const ASKED_MAX: usize = 2;
/// How soon the second one is asked.
const HEDGE: Duration = Duration::from_secs(1);
/// Requests to one gateway at once; more wait.
const REQUESTS_MAX: usize = 16;
/// Roots whose gateways are remembered, and gateways of one.
const ROOTS_MAX: usize = 256;
const GATEWAYS_PER_ROOT_MAX: usize = 16;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Gateways(Arc<Inner>);

struct Inner {
    http: Http,
    tasks: Tasks,
    configured: Vec<Arc<Gateway>>,
    state: Mutex<State>,
    /// Counts the gateways that were found.
    found: watch::Sender<u64>,
    ahead: Ahead,
}

#[derive(Default)]
struct State {
    roots: HashMap<Cid, Root>,
    /// In the order they were noted.
    order: VecDeque<Cid>,
}

#[derive(Default)]
struct Root {
    gateways: Vec<Arc<Gateway>>,
    /// The one that had the last block; `None`: it came from elsewhere.
    leads: Option<Arc<Gateway>>,
}

pub(super) struct Gateway {
    pub(super) base: Url,
    pub(super) reach: Reach,
    pub(super) health: Health,
    slots: Semaphore,
    /// It has shown that it does.
    gives_no_archives: AtomicBool,
}

impl Gateway {
    fn new(base: Url, reach: Reach) -> Arc<Self> {
        let slots = Semaphore::new(REQUESTS_MAX);
        Arc::new(Self { base, reach, health: Health::default(), slots, gives_no_archives: false.into() })
    }

    pub(super) fn url(&self, cid: &Cid, query: &str) -> Url {
        let mut url = self.base.clone();
        let above = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{above}/ipfs/{cid}"));
        url.set_query(Some(query));
        url
    }

    pub(super) fn wrong(&self, what: impl ToString) -> WebError {
        WebError::Wrong { place: place_of(&self.base), what: what.to_string() }
    }

    /// Notes what came of asking; a refusal of archives is none of blocks.
    pub(super) fn note<T>(&self, outcome: &Result<T, WebError>) {
        if let Err(error) = outcome {
            match error {
                WebError::Wrong { .. } => tracing::warn!(%error, "left a gateway that sends wrong bytes"),
                _ => tracing::debug!(%error, "a gateway fails"),
            }
        }
        self.health.judge(Instant::now(), outcome);
    }
}

impl Gateways {
    pub(super) fn new(http: Http, tasks: Tasks, configured: &[Url]) -> Self {
        let configured = configured.iter().map(|url| Gateway::new(url.clone(), Reach::Any)).collect();
        let (found, ahead) = (watch::Sender::default(), Ahead::default());
        Self(Arc::new(Inner { http, tasks, configured, state: Mutex::default(), found, ahead }))
    }

    /// A gateway that is said to have a DAG.
    pub(super) fn found(&self, root: &Cid, url: Url, reach: Reach) {
        let mut state = self.0.state();
        let known =
            state.known(&url).or_else(|| self.0.configured.iter().find(|known| known.base == url).cloned());
        let noted = state.root(root);
        if noted.gateways.len() >= GATEWAYS_PER_ROOT_MAX
            || noted.gateways.iter().any(|gateway| gateway.base == url)
        {
            return;
        }
        noted.gateways.push(known.unwrap_or_else(|| Gateway::new(url, reach)));
        drop(state);
        self.0.found.send_modify(|count| *count += 1);
    }

    pub(super) fn held(&self, cid: &Cid) -> Option<Block> {
        self.0.ahead.take(cid)
    }

    pub(super) fn leads(&self, root: &Cid) -> bool {
        self.0.state().roots.get(root).is_some_and(|root| root.leads.is_some())
    }

    pub(super) fn came_elsewhere(&self, want: &Want) {
        self.0.ahead.forget(&want.cid);
        if let Some(root) = self.0.state().roots.get_mut(&want.root) {
            root.leads = None;
        }
    }

    pub(super) async fn fetch(
        &self,
        want: &Want,
        others: &CancellationToken,
    ) -> Result<Option<Block>, WebError> {
        let mut found = self.0.found.subscribe();
        let (mut asked, mut asking) = (HashSet::new(), FuturesUnordered::new());
        let mut failure = None;
        let mut hedge = Instant::now();
        loop {
            let may_ask = asking.is_empty() || asking.len() < ASKED_MAX && Instant::now() >= hedge;
            let next = if may_ask { self.0.next(&want.root, &mut asked, &mut failure) } else { None };
            if let Some(gateway) = next {
                hedge = Instant::now() + HEDGE;
                asking.push(self.ask(gateway, want));
                continue;
            }
            if asking.is_empty() && others.is_cancelled() {
                return failure.map_or(Ok(None), Err);
            }
            tokio::select! {
                Some(outcome) = asking.next(), if !asking.is_empty() => match outcome {
                    Ok(Some(block)) => return Ok(Some(block)),
                    Ok(None) => (),
                    Err(error) => failure = Some(error),
                },
                () = tokio::time::sleep_until(hedge), if !asking.is_empty() && Instant::now() < hedge => (),
                Ok(()) = found.changed() => (),
                () = others.cancelled(), if !others.is_cancelled() => (),
            }
        }
    }

    /// Asks one gateway, for an archive if more than the block is likely to be wanted.
    fn ask<'a>(
        &'a self,
        gateway: Arc<Gateway>,
        want: &'a Want,
    ) -> BoxFuture<'a, Result<Option<Block>, WebError>> {
        Box::pin(async move {
            if let Some(block) = self.0.ahead.wait(&want.cid).await {
                self.0.state().root(&want.root).leads = Some(gateway);
                return Ok(Some(block));
            }
            let Ok(_slot) = gateway.slots.acquire().await else { return Ok(None) };
            let mut outcome = Ok(None);
            let by_archive = want.cid.codec() == DAG_PB && !gateway.gives_no_archives.load(Ordering::Relaxed);
            if by_archive {
                outcome = self.archive(&gateway, &want.cid).await;
            }
            if !by_archive || matches!(outcome, Err(WebError::Refused { .. } | WebError::ContentType { .. }))
            {
                outcome = self.block(&gateway, &want.cid).await;
                if by_archive && matches!(outcome, Ok(Some(_))) {
                    gateway.gives_no_archives.store(true, Ordering::Relaxed);
                }
            }
            gateway.note(&outcome);
            if let Ok(Some(_)) = outcome {
                self.0.state().root(&want.root).leads = Some(gateway.clone());
            }
            outcome
        })
    }

    /// The first block of an archive, of which the rest is taken in ahead of its wants.
    async fn archive(&self, gateway: &Arc<Gateway>, cid: &Cid) -> Result<Option<Block>, WebError> {
        let url = gateway.url(cid, "format=car&dag-scope=entity&car-version=1&car-order=dfs&car-dups=n");
        let Some(answer) = self.0.http.get(url, gateway.reach, CAR).await? else { return Ok(None) };
        answer.require_type(CAR.split(';').next().unwrap_or(CAR))?;
        let mut archive = Archive::new(answer, gateway.clone(), *cid);
        let first = archive.first().await?;
        if archive.expects_more() {
            // Before the next want comes.
            let Some(shelf) = self.0.ahead.shelf(&mut archive) else { return Ok(Some(first)) };
            self.0.tasks.spawn_short("gateway-archive", |stop| async move {
                stop.run_until_cancelled(shelf.take_in(archive)).await;
            });
        }
        Ok(Some(first))
    }

    async fn block(&self, gateway: &Gateway, cid: &Cid) -> Result<Option<Block>, WebError> {
        let url = gateway.url(cid, "format=raw");
        let Some(answer) = self.0.http.get(url, gateway.reach, RAW).await? else { return Ok(None) };
        answer.require_type(RAW)?;
        let bytes = answer.whole(BLOCK_BYTES_MAX).await?;
        let cid = *cid;
        verify(cid, bytes).await.map(Some).map_err(|error| gateway.wrong(error))
    }

    pub(super) fn status(&self) -> Vec<WebStatus> {
        let told = |gateway: &Arc<Gateway>| WebStatus {
            url: gateway.base.to_string(),
            is_router: false,
            is_asked: gateway.health.rests(Instant::now()).is_none(),
            error: gateway.health.last().map(|error| error.to_string()),
        };
        self.0.configured.iter().map(told).collect()
    }
}

/// Hashes away from the asynchronous threads.
pub(super) async fn verify(cid: Cid, bytes: bytes::Bytes) -> Result<Block, BlockError> {
    let hashed = tokio::task::spawn_blocking(move || Block::verify(cid, bytes)).await;
    hashed.unwrap_or_else(|_| Err(BlockError::Mismatch(Box::new(cid))))
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next gateway to ask: the one that had the last block, then those that are said to have the DAG, then those of
    /// the config. One that rests is passed over, which is a failure of its own.
    fn next(
        &self,
        root: &Cid,
        asked: &mut HashSet<Url>,
        failure: &mut Option<WebError>,
    ) -> Option<Arc<Gateway>> {
        let state = self.state();
        let noted = state.roots.get(root);
        let leads = noted.and_then(|root| root.leads.as_ref());
        let of_root = noted.map(|root| root.gateways.iter()).unwrap_or_default();
        for gateway in leads.into_iter().chain(of_root).chain(&self.configured) {
            if !asked.insert(gateway.base.clone()) {
                continue;
            }
            match gateway.health.rests(Instant::now()) {
                Some(error) => *failure = failure.take().or(Some(error)),
                None => return Some(gateway.clone()),
            }
        }
        None
    }
}

impl State {
    /// What is noted of a root, made if it is new.
    fn root(&mut self, root: &Cid) -> &mut Root {
        if !self.roots.contains_key(root) {
            if self.order.len() >= ROOTS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.roots.remove(&oldest);
            }
            self.order.push_back(*root);
        }
        self.roots.entry(*root).or_default()
    }

    fn known(&self, url: &Url) -> Option<Arc<Gateway>> {
        self.roots.values().flat_map(|root| &root.gateways).find(|gateway| gateway.base == *url).cloned()
    }
}
