//! From what a repository name begins with to a CID: IPNS names, DNSLink and ENS, one after the other as far as they lead.
//!
//! An answer counts for as long as its author says, within bounds. When the next one does not come soon, the last one
//! goes on counting: no request waits for the network once an answer is known.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cid::Cid;
use jiff::Timestamp;
use moka::Expiry;
use tokio::time::timeout;

use crate::ipfs::Ipfs;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::path::join;
use crate::ipld::{IpfsPath, Pointer};
use crate::mirror::MirrorError;
use crate::naming::Naming;

/// How long a first answer is waited for, and a newer one than what is known.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(12);
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long an answer counts: what its author says, within these; without a word of theirs, the second.
const TTL_MIN: Duration = Duration::from_secs(5);
const TTL_MAX: Duration = Duration::from_secs(60);
/// Before somebody is asked again who did not answer, or knew nothing.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Names that are remembered.
const NAMES_MAX: u64 = 10_000;
/// Names on the way to a CID.
const HOPS_MAX: usize = 8;

/// What an address begins with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Start {
    Pointer(Pointer),
    Ens(String),
}

/// What a name leads to.
#[derive(Clone)]
struct Answer {
    /// `None`: to nothing.
    path: Option<IpfsPath>,
    /// That it is in, for names of keys.
    record: Option<Arc<IpnsRecord>>,
    ttl: Duration,
}

pub(super) struct Names {
    ipfs: Arc<dyn Ipfs>,
    naming: Naming,
    fresh: moka::future::Cache<Start, Answer>,
    last: moka::sync::Cache<Start, Answer>,
}

struct Ttl;

impl Expiry<Start, Answer> for Ttl {
    fn expire_after_create(&self, _: &Start, answer: &Answer, _: Instant) -> Option<Duration> {
        Some(answer.ttl)
    }
}

impl Names {
    pub(super) fn new(ipfs: Arc<dyn Ipfs>, naming: Naming) -> Self {
        let fresh = moka::future::Cache::builder().max_capacity(NAMES_MAX).expire_after(Ttl).build();
        Self { ipfs, naming, fresh, last: moka::sync::Cache::new(NAMES_MAX) }
    }

    /// The CID that `start` leads to, and the path below it. `at_hand`: roots that need no asking.
    pub(super) async fn resolve(
        &self,
        start: &Start,
        at_hand: &(impl Fn(&IpnsName) -> Option<Cid> + Sync),
    ) -> Result<(Cid, String), MirrorError> {
        let (mut at, mut below) = (start.clone(), String::new());
        for _ in 0..HOPS_MAX {
            let root = match &at {
                Start::Pointer(Pointer::Content(cid)) => Some(*cid),
                Start::Pointer(Pointer::Key(name)) => at_hand(name),
                Start::Pointer(Pointer::Domain(_)) | Start::Ens(_) => None,
            };
            if let Some(root) = root {
                return Ok((root, below));
            }
            let Some(path) = self.step(&at).await? else {
                return Err(MirrorError::Unlinked(at.to_string()));
            };
            below = join(&path.below, &below);
            at = Start::Pointer(path.pointer);
        }
        Err(MirrorError::Tree { path: start.to_string(), what: "leads from name to name, and not to a CID" })
    }

    async fn step(&self, at: &Start) -> Result<Option<IpfsPath>, MirrorError> {
        let last = self.last.get(at);
        let budget = if last.is_some() { REFRESH_TIMEOUT } else { RESOLVE_TIMEOUT };
        let asked = self.fresh.try_get_with(at.clone(), self.ask(at, last.clone()));
        let error = match timeout(budget, asked).await {
            Ok(Ok(answer)) => return Ok(answer.path),
            Ok(Err(error)) => MirrorError::Fill(error),
            Err(_) => MirrorError::Slow { what: at.to_string(), waited: budget },
        };
        let Some(last) = last else { return Err(error) };
        tracing::debug!(name = %at, error = %crate::mirror::chain(&error), "not resolved again; the last answer counts");
        self.fresh.insert(at.clone(), Answer { ttl: RETRY_INTERVAL, ..last.clone() }).await;
        Ok(last.path)
    }

    async fn ask(&self, at: &Start, last: Option<Answer>) -> Result<Answer, MirrorError> {
        let linked = |path: Option<IpfsPath>| {
            let ttl = if path.is_some() { TTL_MAX } else { RETRY_INTERVAL };
            Answer { path, record: None, ttl }
        };
        let named = |source| MirrorError::Naming { what: at.to_string(), source };
        let answer = match at {
            Start::Pointer(Pointer::Key(name)) => self.newest(name, last).await?,
            Start::Pointer(Pointer::Domain(domain)) => {
                linked(self.naming.dnslink(domain).await.map_err(named)?)
            }
            Start::Ens(name) => linked(self.naming.ens(name).await.map_err(named)?),
            Start::Pointer(pointer @ Pointer::Content(_)) => {
                linked(Some(IpfsPath { pointer: pointer.clone(), below: String::new() }))
            }
        };
        if answer.path.is_some() {
            self.last.insert(at.clone(), answer.clone());
        }
        Ok(answer)
    }

    /// The newest record of a name: a peer that is behind must not take us back.
    async fn newest(&self, name: &IpnsName, last: Option<Answer>) -> Result<Answer, MirrorError> {
        let found = self.ipfs.resolve(name).await;
        let found = found.map_err(|error| MirrorError::Fetch {
            what: format!("ipns name {name}"),
            source: error.into(),
        })?;
        let known = last
            .and_then(|last| last.record)
            .filter(|known| known.check_validity(Timestamp::now()).is_ok() && known.is_better_than(&found));
        let record = known.unwrap_or_else(|| Arc::new(found));
        let wrong = |_| MirrorError::Tree {
            path: record.value().to_owned(),
            what: "is what an ipns record points to, and is no path",
        };
        let path = record.value().parse().map_err(wrong)?;
        Ok(Answer { path: Some(path), ttl: record.ttl().clamp(TTL_MIN, TTL_MAX), record: Some(record) })
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pointer(pointer) => pointer.fmt(f),
            Self::Ens(name) => f.write_str(name),
        }
    }
}
