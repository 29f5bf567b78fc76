//! A Kubo daemon over its RPC API, as an [`Ipfs`]: it is the network, our store stays the working store.
//!
//! Blocks are fetched from it and verified like those of any peer. What is pushed here is sent to it and pinned there
//! before a name moves (`keep`); it signs for the keys that it has (`names`). It may be away for as long as it likes:
//! every call then fails with [`IpfsError::Away`], and whoever called comes again. A task looks after it for `status`.

mod abilities;
mod keep;
mod names;
mod pins;
mod rpc;
mod walk;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use futures::{StreamExt, stream};
use hyper::{Request, Response};
use serde::Deserialize;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::KuboConfig;
use crate::ipfs::{Ipfs, IpfsError, Peer, PeerBody, Signing, Want};
use crate::ipld::Block;
use crate::ipld::block::BLOCK_BYTES_MAX;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::store::{Blockstore, Notes, Store, StoreError, off_thread};
use crate::tasks::Tasks;
use abilities::Abilities;
pub use names::KuboKeys;
#[doc(hidden)]
pub use names::fuzz;
use rpc::{Call, Rpc};

/// How long Kubo may take for what needs no network.
const QUICK: Duration = Duration::from_secs(20);
/// How long it may look for a block.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to announce a root.
const PROVIDE_TIMEOUT: Duration = Duration::from_secs(60);
/// Blocks that it is asked for at once.
const FETCHES_MAX: usize = 512;
/// Roots that wait to be announced. Kubo announces by itself what it has, in its own time: the newest are what matters.
const ROOTS_QUEUED_MAX: usize = 256;
/// Roots that it announces at once.
const PROVIDES_MAX: usize = 4;
/// How often it is looked after.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How long a start waits for it: it may have been started with us …
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// … or, if its keys are known from an earlier run, this long.
const KNOWN_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const FIRST_ANSWER_INTERVAL: Duration = Duration::from_millis(500);
/// Of an answer about itself and its peers.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Where its keys are noted for a start without it.
const KEYS_NOTE: &str = "kubo/keys";
/// Nobody pushes records to us: what is told of is what was asked for.
const UPDATES_QUEUED_MAX: usize = 1;

/// Why a Kubo did not do what it was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KuboError {
    #[error("config key storage.ipfs.{key}: {reason}")]
    Config { key: &'static str, reason: String },
    #[error(
        "the Kubo at {api} does not answer ({reason}): start it (`ipfs daemon`), or correct storage.ipfs.ipfsapiaddress"
    )]
    Unreachable { api: String, reason: String },
    #[error(
        "the Kubo at {api} shows a certificate that is not trusted ({reason}): name a file with its authority in \
         storage.ipfs.ipfsapica"
    )]
    Untrusted { api: String, reason: String },
    #[error(
        "the Kubo at {api} does not let us in (status {status} for {command}): set storage.ipfs.ipfsapiauth as its \
         API.Authorizations has it, with /api/v0 among the AllowedPaths"
    )]
    Forbidden { api: String, command: &'static str, status: u16 },
    #[error("the Kubo at {api} did not answer {command} within {seconds} s")]
    Timeout { api: String, command: &'static str, seconds: u64 },
    #[error("the Kubo at {api} refused {command}: {message}")]
    Refused { api: String, command: &'static str, message: String },
    #[error(
        "what answers at {api} is not the API of a Kubo, or not one that is known here: {command}: {reason}"
    )]
    Strange { api: String, command: &'static str, reason: String },
    #[error(
        "the Kubo at {api} takes no sequence for a name, and what it signed for {name} does not go over sequence {out}, \
         which is out: use a Kubo whose `ipfs name publish` has --sequence"
    )]
    Sequence { api: String, name: Box<IpnsName>, out: u64 },
    #[error(
        "the Kubo at {api} does not answer, and was never asked for its keys, which {key} = {name:?} may be: start it \
         once, or write the IPNS name out"
    )]
    NoKeys { api: String, key: String, name: String },
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
}

impl KuboError {
    /// Whether nothing was done since it is not there, or does not let us in.
    fn is_away(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Untrusted { .. } | Self::Forbidden { .. })
    }

    /// Kubo tells causes apart by its text alone.
    fn says(&self, text: &str) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains(text))
    }
}

impl From<KuboError> for IpfsError {
    fn from(error: KuboError) -> Self {
        match error.is_away() {
            true => Self::Away(error.to_string()),
            false => Self::Refused(error.to_string()),
        }
    }
}

/// What is known of a Kubo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KuboStatus {
    /// For people.
    pub api: String,
    pub version: Option<String>,
    pub peer_id: String,
    /// Each with its peer id.
    pub addresses: Vec<String>,
    pub peers: usize,
    pub roots_waiting: usize,
    /// Why it did not answer the last time; `None`: it did.
    pub error: Option<String>,
}

/// The handle of a Kubo. Cheap to clone.
#[derive(Clone)]
pub struct KuboClient(Arc<Inner>);

struct Inner {
    rpc: Rpc,
    /// What the release of this version can do.
    abilities: Mutex<Option<(String, Abilities)>>,
    store: Blockstore,
    notes: Notes,
    fetches: Semaphore,
    roots: mpsc::Sender<Cid>,
    status: watch::Sender<KuboStatus>,
    updates: broadcast::Sender<IpnsRecord>,
    /// Nobody, ever.
    mesh: watch::Sender<Arc<[Peer]>>,
}

#[derive(Deserialize)]
struct Version {
    #[serde(rename = "Version")]
    version: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Addresses", default)]
    addresses: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Peers {
    #[serde(rename = "Peers", default)]
    peers: Option<Vec<serde::de::IgnoredAny>>,
}

/// Asks a Kubo for its version, once. Reads the file of authorities: not for an asynchronous thread that serves.
pub async fn version(config: &KuboConfig) -> Result<String, KuboError> {
    let answer: Version = Rpc::new(config)?.ask(about("version")).await?;
    Ok(answer.version)
}

fn about(command: &'static str) -> Call<'static> {
    Call { command, query: &[], patience: QUICK, bytes_max: ANSWER_BYTES_MAX }
}

impl KuboClient {
    /// Starts what looks after it, and gives the keys that it has. Waits up to half a minute for a Kubo that does not answer,
    /// unless its keys are known from an earlier run; `None`: it did not, and they are not.
    pub async fn start(
        tasks: &Tasks,
        store: &Store,
        config: KuboConfig,
    ) -> Result<(Self, Option<KuboKeys>), KuboError> {
        let rpc = off_thread(move || Ok(Rpc::new(&config))).await.map_err(Arc::new)??;
        let (roots, queue) = mpsc::channel(ROOTS_QUEUED_MAX);
        let status = KuboStatus { api: rpc.api.clone(), ..KuboStatus::default() };
        let kubo = Self(Arc::new(Inner {
            rpc,
            abilities: Mutex::default(),
            store: store.blocks().clone(),
            notes: store.notes().clone(),
            fetches: Semaphore::new(FETCHES_MAX),
            roots,
            status: watch::Sender::new(status),
            updates: broadcast::Sender::new(UPDATES_QUEUED_MAX),
            mesh: watch::Sender::default(),
        }));
        let keys = kubo.first_answer(store.notes().clone()).await?;
        let (announcer, looker) = (kubo.clone(), kubo.clone());
        tasks.spawn("kubo-provide", |stop| announcer.announce(queue, stop));
        tasks.spawn("kubo", |stop| looker.look_after(stop));
        Ok((kubo, keys))
    }

    /// What `status` tells of it.
    pub fn status(&self) -> KuboStatus {
        let waiting = self.0.roots.max_capacity() - self.0.roots.capacity();
        KuboStatus { roots_waiting: waiting, ..self.0.status.borrow().clone() }
    }

    /// Where nothing ever comes: Kubo has to be asked.
    pub fn record_updates(&self) -> &broadcast::Sender<IpnsRecord> {
        &self.0.updates
    }

    async fn first_answer(&self, notes: Notes) -> Result<Option<KuboKeys>, KuboError> {
        let noted = notes.clone();
        let noted = off_thread(move || noted.get(KEYS_NOTE)).await.map_err(Arc::new)?;
        let known = noted.and_then(|note| serde_json::from_slice::<Vec<(String, String)>>(&note).ok());
        let patience = if known.is_some() { KNOWN_ANSWER_TIMEOUT } else { FIRST_ANSWER_TIMEOUT };
        let begun = tokio::time::Instant::now();
        loop {
            let answer = async {
                self.look().await?;
                self.keys().await
            };
            match answer.await {
                Ok(keys) => {
                    let rows: Vec<_> = keys.0.iter().map(|(name, id)| (name, id.to_string())).collect();
                    // A list of texts always serialises.
                    let note = serde_json::to_vec(&rows).unwrap_or_default();
                    off_thread(move || notes.put(KEYS_NOTE, &note)).await.map_err(Arc::new)?;
                    return Ok(Some(keys));
                }
                Err(error) if !error.is_away() => return Err(error),
                Err(error @ KuboError::Forbidden { .. }) => return Err(error),
                Err(error) if begun.elapsed() >= patience => {
                    tracing::warn!(%error, "started without Kubo: what needs it is done when it is there");
                    self.0.status.send_modify(|status| status.error = Some(error.to_string()));
                    let parse = |(name, id): (String, String)| Some((name, id.parse().ok()?));
                    return Ok(known.map(|known| KuboKeys(known.into_iter().filter_map(parse).collect())));
                }
                Err(_) => tokio::time::sleep(FIRST_ANSWER_INTERVAL).await,
            }
        }
    }

    /// Asks what `status` tells.
    async fn look(&self) -> Result<(), KuboError> {
        let Version { version } = self.0.rpc.ask(about("version")).await?;
        let identity: Identity = self.0.rpc.ask(about("id")).await?;
        let peers = self.peers().await?;
        self.0.status.send_modify(|status| {
            *status = KuboStatus {
                api: std::mem::take(&mut status.api),
                version: Some(version),
                peer_id: identity.id,
                addresses: identity.addresses.unwrap_or_default(),
                peers,
                roots_waiting: 0,
                error: None,
            }
        });
        Ok(())
    }

    /// How many peers it is connected to.
    async fn peers(&self) -> Result<usize, KuboError> {
        let Peers { peers } = self.0.rpc.ask(about("swarm/peers")).await?;
        Ok(peers.unwrap_or_default().len())
    }

    async fn look_after(self, stop: CancellationToken) {
        let mut interval = tokio::time::interval(LOOK_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            let Some(looked) = stop.run_until_cancelled(self.look()).await else { return };
            let was_there = self.0.status.borrow().error.is_none();
            match looked {
                Ok(()) => (),
                Err(error) => {
                    if was_there {
                        tracing::warn!(%error, "Kubo is away");
                    }
                    self.0.status.send_modify(|status| status.error = Some(error.to_string()));
                }
            }
        }
    }

    /// Has roots announced that were asked for. One that Kubo does not announce now it does in its own time.
    async fn announce(self, queue: mpsc::Receiver<Cid>, stop: CancellationToken) {
        let roots = stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        let all = roots.for_each_concurrent(PROVIDES_MAX, |root| {
            let kubo = self.clone();
            async move { kubo.announce_one(root).await }
        });
        stop.run_until_cancelled(all).await;
    }

    async fn announce_one(&self, root: Cid) {
        let argument = root.to_string();
        let query = [("arg", argument.as_str())];
        let call = Call { query: &query, patience: PROVIDE_TIMEOUT, ..about("routing/provide") };
        if let Err(error) = self.0.rpc.bytes(call).await {
            tracing::debug!(%root, %error, "root not announced");
        }
    }

    /// A block that Kubo has; or, unless `is_offline`, finds.
    async fn block(&self, cid: &Cid, is_offline: bool) -> Result<Block, IpfsError> {
        let argument = cid.to_string();
        let offline = if is_offline { "true" } else { "false" };
        let query = [("arg", argument.as_str()), ("offline", offline)];
        let patience = if is_offline { QUICK } else { FETCH_TIMEOUT };
        let call = Call { command: "block/get", query: &query, patience, bytes_max: BLOCK_BYTES_MAX };
        let bytes = match self.0.rpc.bytes(call).await {
            Err(error) if error.says("deadline exceeded") => {
                return Err(IpfsError::Timeout(format!("block {cid}"), patience.as_secs()));
            }
            Err(error) if error.says("not found") || error.says("could not find") => {
                return Err(IpfsError::NoProvider(Box::new(*cid)));
            }
            bytes => bytes?,
        };
        Block::verify(*cid, bytes)
            .map_err(|error| self.0.rpc.strange("block/get", &error.to_string()).into())
            .inspect_err(|error: &IpfsError| tracing::warn!(%error, "a block of Kubo was refused"))
    }
}

#[async_trait]
impl Ipfs for KuboClient {
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        if let Some(block) = Block::known(&want.cid) {
            return Ok(block);
        }
        // Never closed.
        let _slot = self.0.fetches.acquire().await.map_err(|_| IpfsError::Closed)?;
        self.block(&want.cid, false).await
    }

    async fn provide(&self, roots: &[Cid]) -> Result<(), IpfsError> {
        let left = roots.iter().filter(|root| self.0.roots.try_send(**root).is_err()).count();
        if left > 0 {
            tracing::debug!(roots = left, "left to what Kubo announces by itself");
        }
        Ok(())
    }

    async fn resolve(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        self.record(name).await
    }

    async fn publish(&self, record: &IpnsRecord) -> Result<(), IpfsError> {
        self.put(record).await
    }

    async fn sign(&self, signing: &Signing) -> Result<IpnsRecord, IpfsError> {
        self.sign_by_key(signing).await
    }

    async fn keep(&self, label: &str, root: &Cid) -> Result<(), IpfsError> {
        self.keep_root(label, root).await
    }

    async fn let_go(&self, label: &str, but: &[Cid]) -> Result<(), IpfsError> {
        self.unpin(label, but).await
    }

    async fn let_go_rest(&self, kind: &str, labels: &BTreeSet<String>) -> Result<(), IpfsError> {
        self.unpin_rest(kind, labels).await
    }

    fn mesh(&self) -> watch::Receiver<Arc<[Peer]>> {
        self.0.mesh.subscribe()
    }

    async fn request(&self, peer: &Peer, _: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError> {
        Err(IpfsError::NotConnected(peer.clone()))
    }
}
