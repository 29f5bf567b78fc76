//! `NodeClient`: what the rest sees of the node. Sends commands to the event loop, and does what needs no swarm itself:
//! choosing among records, waiting within budgets.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cid::Cid;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use hyper::{Request, Response};
use jiff::Timestamp;
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::beside;
use super::bitswap::{BitswapStats, Exchange};
use super::command::Command;
use super::http_streams::HttpStreams;
use super::nat::NatStats;
use super::queries::Answer;
use crate::ipfs::{Ipfs, IpfsError, Peer, PeerBody, Want};
use crate::ipld::block::RAW;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::{Block, Multihash};
use crate::web::{Web, WebStatus};

/// How long a lookup waits for a first peer to ask.
const FIRST_PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a lookup may take that finds nothing.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it goes on after the first record, in the hope of a better one.
const BETTER_RECORD_TIMEOUT: Duration = Duration::from_secs(1);
/// Peers that agree on the best record end a lookup.
const AGREEING_PEERS: usize = 4;
/// Peers that must have taken a record, if there are as many.
const STORED_PEERS: usize = 4;
/// How long the first of them may take …
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(60);
/// … and each further one: a peer that never answers must not hold up the next record.
const FURTHER_PEER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long providers of a blob are looked for, how long one of them may take to be connected to, and how many are waited
/// for at a time.
const FIND_TIMEOUT: Duration = Duration::from_secs(30);
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
const DIALLED_AT_ONCE_MAX: usize = 16;
/// Answers of the DHT that may wait.
const ANSWERS_QUEUED_MAX: usize = 64;

/// What the event loop shows of its state.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Listeners that said where they listen.
    pub(super) listeners: usize,
    pub(super) addresses: Vec<Multiaddr>,
    pub(super) crowd: Crowd,
    pub(super) nat: NatStats,
}

/// Who is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Crowd {
    /// Connected peers.
    pub(super) peers: usize,
    /// Connected peers that take part in a DHT.
    pub(super) routable: usize,
    /// Somebody is connected, being dialled, or will be.
    pub(super) expecting: bool,
    pub(super) announcements_waiting: usize,
    /// Connected peers that have come to a topic of ours.
    pub(super) on_topics: usize,
}

/// The handle of the node. Cheap to clone; the node ends with its tasks, not with its handles.
#[derive(Clone)]
pub struct NodeClient {
    peer_id: PeerId,
    commands: mpsc::Sender<Command>,
    exchange: Exchange,
    view: watch::Receiver<View>,
    updates: broadcast::Sender<IpnsRecord>,
    http: HttpStreams,
    mesh: watch::Receiver<Arc<[Peer]>>,
    pubsub: bool,
    pub(super) web: Option<Web>,
}

/// What `status` tells of the node.
#[derive(Clone, Debug)]
pub struct NodeStats {
    pub peers: usize,
    /// Of these, the ones in the mesh.
    pub mesh_peers: usize,
    pub announcements_waiting: usize,
    /// Connected peers that records are exchanged with over pubsub; `None`: it is off.
    pub pubsub_peers: Option<usize>,
    /// The delegated routers and gateways of the config.
    pub web: Vec<WebStatus>,
    pub nat: NatStats,
    pub bitswap: BitswapStats,
}

impl NodeClient {
    #[expect(clippy::too_many_arguments, reason = "called once, where the node is put together")]
    pub(super) fn new(
        peer_id: PeerId,
        commands: mpsc::Sender<Command>,
        exchange: Exchange,
        view: watch::Receiver<View>,
        updates: broadcast::Sender<IpnsRecord>,
        http: HttpStreams,
        mesh: watch::Receiver<Arc<[Peer]>>,
        pubsub: bool,
        web: Option<Web>,
    ) -> Self {
        Self { peer_id, commands, exchange, view, updates, http, mesh, pubsub, web }
    }

    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// Where the node listens, with its peer id; TCP before QUIC, relays not among them.
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        let suffix = libp2p::multiaddr::Protocol::P2p(self.peer_id);
        let mut addresses: Vec<_> =
            self.view.borrow().addresses.iter().map(|address| address.clone().with(suffix.clone())).collect();
        addresses.sort_by_key(|address| address.to_string().contains("/udp/"));
        addresses
    }

    /// Valid records of followed names that peers put to us or said by gossip, and that were better than what was known.
    pub fn record_updates(&self) -> &broadcast::Sender<IpnsRecord> {
        &self.updates
    }

    pub fn stats(&self) -> NodeStats {
        let view = self.view.borrow();
        NodeStats {
            peers: view.crowd.peers,
            mesh_peers: self.mesh.borrow().len(),
            announcements_waiting: view.crowd.announcements_waiting,
            pubsub_peers: self.pubsub.then_some(view.crowd.on_topics),
            web: self.web.as_ref().map(Web::status).unwrap_or_default(),
            nat: view.nat.clone(),
            bitswap: self.exchange.stats(),
        }
    }

    /// Waits until as many listeners as were started said where they listen.
    pub(super) async fn listening(&self, listeners: usize) {
        let mut view = self.view.clone();
        // A closed channel means that the loop has ended; whoever asks it next is told.
        let _ = view.wait_for(|view| view.listeners >= listeners).await;
    }

    pub(super) async fn send(&self, command: Command) -> Result<(), IpfsError> {
        self.commands.send(command).await.map_err(|_| IpfsError::Closed)
    }

    /// Waits for somebody to ask, unless nobody is expected; right after a start the first connections are being made.
    pub(super) async fn await_peer(&self, what: impl std::fmt::Display) -> Result<(), IpfsError> {
        let mut view = self.view.clone();
        match timeout(
            FIRST_PEER_TIMEOUT,
            view.wait_for(|view| view.crowd.routable > 0 || !view.crowd.expecting),
        )
        .await
        {
            Ok(Ok(view)) if view.crowd.routable > 0 => Ok(()),
            Ok(Err(_)) => Err(IpfsError::Closed),
            Ok(Ok(_)) | Err(_) => Err(IpfsError::NoPeers(what.to_string())),
        }
    }

    /// Connected peers that a record can be put to.
    pub(super) fn routable(&self) -> usize {
        self.view.borrow().crowd.routable
    }

    /// Stores a record here and has it put to those who are there; tells of each peer that took it.
    async fn put(&self, record: &IpnsRecord) -> Result<mpsc::Receiver<PeerId>, IpfsError> {
        let (reply, stored) = mpsc::channel(ANSWERS_QUEUED_MAX);
        self.send(Command::PutRecord { record: record.clone(), reply }).await?;
        Ok(stored)
    }

    async fn collect(
        &self,
        name: &IpnsName,
        mut answers: mpsc::Receiver<Answer>,
    ) -> Result<Candidates, IpfsError> {
        let mut deadline = Instant::now() + RESOLVE_TIMEOUT;
        let mut found = Candidates::default();
        loop {
            match timeout_at(deadline, answers.recv()).await {
                Ok(Some(Answer::Record { value, from })) => {
                    let first = found.best.is_none();
                    found.add(name, &value, from);
                    if first && found.best.is_some() {
                        deadline = deadline.min(Instant::now() + BETTER_RECORD_TIMEOUT);
                    }
                    if found.agreeing >= AGREEING_PEERS {
                        return Ok(found);
                    }
                }
                Ok(Some(Answer::Finished { answered })) => found.answered += answered,
                Ok(None) => return Ok(found),
                Err(_) if found.best.is_some() => return Ok(found),
                Err(_) => return Err(IpfsError::Timeout(format!("{name}"), RESOLVE_TIMEOUT.as_secs())),
            }
        }
    }
}

/// The records that a lookup has found so far.
#[derive(Default)]
struct Candidates {
    best: Option<IpnsRecord>,
    /// Peers that gave the best one.
    agreeing: usize,
    /// Peers that gave an older one.
    behind: Vec<PeerId>,
    holders: Vec<PeerId>,
    /// Peers that answered at all.
    answered: usize,
}

impl Candidates {
    fn add(&mut self, name: &IpnsName, value: &[u8], from: Option<PeerId>) {
        let valid = IpnsRecord::decode(name, value)
            .and_then(|record| record.check_validity(Timestamp::now()).map(|()| record))
            .inspect_err(|error| tracing::debug!(ipns = %name, ?from, %error, "record of a peer ignored"));
        let Ok(record) = valid else { return };
        match &self.best {
            Some(best) if record.bytes() == best.bytes() => {
                self.agreeing += 1;
                self.holders.extend(from);
            }
            Some(best) if !record.is_better_than(best) => self.behind.extend(from),
            _ => {
                self.behind.append(&mut self.holders);
                self.holders.extend(from);
                self.best = Some(record);
                self.agreeing = 1;
            }
        }
    }
}

#[async_trait]
impl Ipfs for NodeClient {
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        match &self.web {
            Some(web) => beside::fetch(web, &self.exchange, want).await,
            None => self.exchange.fetch(want).await,
        }
    }

    async fn provide(&self, roots: &[Cid]) -> Result<(), IpfsError> {
        self.send(Command::Provide(roots.to_vec())).await
    }

    async fn provide_digests(&self, digests: &[Multihash]) -> Result<(), IpfsError> {
        self.send(Command::Provide(digests.iter().map(key_of).collect())).await
    }

    fn find_digest(&self, digest: &Multihash) -> BoxStream<'static, Peer> {
        let (exchange, http, key) = (self.exchange.clone(), self.http.clone(), key_of(digest));
        let found = stream::once(async move { exchange.find(key).await });
        let found = found.flat_map(|mut found| stream::poll_fn(move |cx| found.poll_recv(cx)));
        let connected = found.map(move |peer| {
            let http = http.clone();
            async move {
                let connected = timeout(DIAL_TIMEOUT, http.connected(&peer)).await;
                connected.is_ok().then(|| Peer::new(&peer.to_base58()))
            }
        });
        let connected = connected.buffer_unordered(DIALLED_AT_ONCE_MAX);
        connected.filter_map(futures::future::ready).take_until(sleep(FIND_TIMEOUT)).boxed()
    }

    async fn resolve(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        match &self.web {
            Some(web) if web.has_routers() => beside::resolve(web, self, name).await,
            _ => self.resolve_by_dht(name).await,
        }
    }

    async fn publish(&self, record: &IpnsRecord) -> Result<(), IpfsError> {
        match &self.web {
            Some(web) if web.has_routers() => beside::publish(web, self, record).await,
            _ => self.publish_by_dht(record).await,
        }
    }

    async fn follow(&self, name: &IpnsName) {
        // Who asks a node that has ended is told so by what comes next.
        let _ = self.send(Command::Follow(*name)).await;
    }

    fn mesh(&self) -> watch::Receiver<Arc<[Peer]>> {
        self.mesh.clone()
    }

    async fn request(&self, peer: &Peer, request: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError> {
        self.http.request(peer, request).await
    }
}

/// The DHTs know providers by a multihash alone, whatever the rest of the CID says.
fn key_of(digest: &Multihash) -> Cid {
    Cid::new_v1(RAW, *digest)
}

impl NodeClient {
    /// Asks the DHTs, alone.
    pub(super) async fn resolve_by_dht(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        self.await_peer(name).await?;
        let (reply, answers) = mpsc::channel(ANSWERS_QUEUED_MAX);
        self.send(Command::GetRecord { name: *name, reply }).await?;
        let found = self.collect(name, answers).await?;
        let Some(best) = found.best else {
            let nobody = found.answered == 0;
            return Err(if nobody {
                IpfsError::NoPeers(name.to_string())
            } else {
                IpfsError::NoRecord(Box::new(*name))
            });
        };
        self.send(Command::Found { record: best.clone(), behind: found.behind }).await?;
        Ok(best)
    }

    pub(super) async fn publish_by_dht(&self, record: &IpnsRecord) -> Result<(), IpfsError> {
        // Kept here first, so that who asks us is told, also while there is nobody to put it to.
        let mut stored = self.put(record).await?;
        let name = *record.name();
        if self.routable() == 0 {
            // Without a DHT those on the topic of the name have it, if there are any.
            if let Ok(Some(_)) = timeout(FURTHER_PEER_TIMEOUT, stored.recv()).await {
                return Ok(());
            }
            self.await_peer(name).await?;
            stored = self.put(record).await?;
        }
        let wanted = self.routable().clamp(1, STORED_PEERS);
        let mut deadline = Instant::now() + PUBLISH_TIMEOUT;
        let mut holders = std::collections::HashSet::new();
        while holders.len() < wanted {
            match timeout_at(deadline, stored.recv()).await {
                Ok(Some(peer)) => {
                    holders.insert(peer);
                    deadline = Instant::now() + FURTHER_PEER_TIMEOUT;
                }
                Ok(None) | Err(_) => break,
            }
        }
        // Peers come and go: one that holds the record makes it public.
        if holders.is_empty() {
            return Err(IpfsError::Publish { name: Box::new(name), stored: 0, wanted });
        }
        Ok(())
    }

    /// Dials a peer; for tests and `status` only tells whether it could be asked to.
    pub async fn dial(&self, address: Multiaddr) -> Result<(), IpfsError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Dial { address, reply }).await?;
        answer.await.map_err(|_| IpfsError::Closed)?
    }
}
