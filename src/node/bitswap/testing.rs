//! Nodes for tests: a swarm with the streams behaviour on loopback TCP, with an exchange, or played by hand.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{Stream, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, SwarmBuilder, noise, tcp, yamux};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

use super::exchange::{Exchange, FindProviders, protocols};
use super::message::{Message, Outgoing, Version};
use super::{BitswapLimits, BitswapStats};
use crate::ipfs::{IpfsError, Want};
use crate::ipld::block::RAW;
use crate::ipld::{Block, Cid};
use crate::node::streams::{Behaviour, Control, Incoming, OpenError};
use crate::store::{Store, StoreOptions};
use crate::tasks::Tasks;

pub(in crate::node) const DEADLINE: Duration = Duration::from_secs(60);

enum Command {
    Dial(Multiaddr, oneshot::Sender<PeerId>),
    Hangup(PeerId),
}

/// A swarm and what came out of its behaviour.
pub(in crate::node) struct Bare {
    pub(in crate::node) peer: PeerId,
    pub(in crate::node) address: Multiaddr,
    pub(in crate::node) control: Control,
    pub(in crate::node) incoming: mpsc::Receiver<Incoming>,
    pub(in crate::node) tasks: Tasks,
    commands: mpsc::Sender<Command>,
    events: mpsc::Receiver<(PeerId, bool)>,
}

impl Bare {
    pub(in crate::node) async fn start() -> Self {
        Self::speaking(protocols(), 64).await
    }

    pub(in crate::node) async fn speaking(protocols: Vec<StreamProtocol>, incoming_max: usize) -> Self {
        let (sender, incoming) = mpsc::channel(incoming_max);
        let (behaviour, control) = Behaviour::new(protocols, sender);
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| behaviour)
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
            .build();
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        let peer = *swarm.local_peer_id();
        let tasks = Tasks::new();
        let (commands, mut received) = mpsc::channel(8);
        let (notices, events) = mpsc::channel(1024);
        tasks.spawn_short("swarm", |stop| async move {
            let mut dialling: Vec<(Multiaddr, oneshot::Sender<PeerId>)> = Vec::new();
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    command = received.recv() => match command {
                        Some(Command::Dial(address, done)) => {
                            // The port that it listens on may be taken for this by another connection.
                            let dial = DialOpts::unknown_peer_id().address(address.clone());
                            swarm.dial(dial.allocate_new_port().build()).unwrap();
                            dialling.push((address, done));
                        }
                        Some(Command::Hangup(peer)) => _ = swarm.disconnect_peer_id(peer),
                        None => return,
                    },
                    event = swarm.select_next_some() => match event {
                        SwarmEvent::ConnectionEstablished { peer_id, num_established, endpoint, .. } => {
                            if num_established.get() == 1 {
                                notices.send((peer_id, true)).await.ok();
                            }
                            let remote = endpoint.get_remote_address().to_string();
                            if let Some(at) = dialling.iter().position(|(a, _)| remote.starts_with(&a.to_string())) {
                                dialling.remove(at).1.send(peer_id).ok();
                            }
                        }
                        SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                            notices.send((peer_id, false)).await.ok();
                        }
                        _ => (),
                    }
                }
            }
        });
        Self { peer, address, control, incoming, tasks, commands, events }
    }

    pub(in crate::node) async fn dial(&self, address: &Multiaddr) -> PeerId {
        dial(&self.commands, address).await
    }

    pub(in crate::node) async fn hang_up(&self, peer: PeerId) {
        self.commands.send(Command::Hangup(peer)).await.unwrap();
    }

    /// The next message of a peer that speaks to this node, on whatever stream.
    pub(in crate::node) fn conversation(mut self) -> Conversation {
        let (messages, received) = mpsc::channel(64);
        let tasks = self.tasks.clone();
        let control = self.control.clone();
        tasks.clone().spawn_short("listen", |_| async move {
            while let Some(Incoming { mut stream, peer, .. }) = self.incoming.recv().await {
                let messages = messages.clone();
                tasks.spawn_short("read", |_| async move {
                    while let Some(message) = read_message(&mut stream).await {
                        if messages.send((peer, message)).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Conversation {
            address: self.address,
            control,
            received,
            _commands: self.commands,
            _tasks: self.tasks,
        }
    }

    /// Adds an exchange.
    pub(in crate::node) fn exchange(self) -> Node {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let (find, mut searches) = mpsc::channel::<FindProviders>(8);
        let exchange = Exchange::start(
            &self.tasks,
            store.blocks().clone(),
            self.control.clone(),
            self.incoming,
            find,
            BitswapLimits::default(),
        );
        let (told, mut events) = (exchange.clone(), self.events);
        self.tasks.spawn_short("events", |_| async move {
            while let Some((peer, connected)) = events.recv().await {
                if connected {
                    told.connected(peer).await;
                } else {
                    told.disconnected(peer).await;
                }
            }
        });
        let providers = Arc::<tokio::sync::Mutex<Vec<Multiaddr>>>::default();
        let (known, commands) = (providers.clone(), self.commands.clone());
        let searched = Arc::<Mutex<HashSet<Cid>>>::default();
        let noted = searched.clone();
        self.tasks.spawn_short("find", |stop| async move {
            while let Some(Some(FindProviders { root, reply })) =
                stop.run_until_cancelled(searches.recv()).await
            {
                noted.lock().unwrap().insert(root);
                let known = known.lock().await.clone();
                for address in known {
                    reply.send(dial(&commands, &address).await).await.ok();
                }
            }
        });
        Node {
            peer: self.peer,
            address: self.address,
            exchange,
            store,
            tasks: self.tasks,
            commands: self.commands,
            providers,
            searched,
            _dir: dir,
        }
    }
}

async fn dial(commands: &mpsc::Sender<Command>, address: &Multiaddr) -> PeerId {
    let (done, connected) = oneshot::channel();
    commands.send(Command::Dial(address.clone(), done)).await.unwrap();
    tokio::time::timeout(DEADLINE, connected).await.unwrap().unwrap()
}

/// A node with an exchange. What it looks for is provided by `providers`; who holds their lock holds up the search.
pub(in crate::node) struct Node {
    pub(in crate::node) peer: PeerId,
    pub(in crate::node) address: Multiaddr,
    pub(in crate::node) exchange: Exchange,
    pub(in crate::node) store: Store,
    pub(in crate::node) tasks: Tasks,
    commands: mpsc::Sender<Command>,
    pub(in crate::node) providers: Arc<tokio::sync::Mutex<Vec<Multiaddr>>>,
    pub(in crate::node) searched: Arc<Mutex<HashSet<Cid>>>,
    _dir: TempDir,
}

impl Node {
    pub(in crate::node) async fn start() -> Self {
        Bare::start().await.exchange()
    }

    /// Returns when the connection stands and the exchange knows of it.
    pub(in crate::node) async fn dial(&self, address: &Multiaddr) {
        let peers = self.exchange.stats().peers;
        dial(&self.commands, address).await;
        self.until(|stats| stats.peers > peers).await;
    }

    pub(in crate::node) async fn hang_up(&self, peer: PeerId) {
        self.commands.send(Command::Hangup(peer)).await.unwrap();
    }

    pub(in crate::node) fn keep(&self, blocks: &[Block]) {
        for block in blocks {
            self.store.blocks().put(block.cid().hash(), &[block.bytes().clone()]).unwrap();
        }
    }

    pub(in crate::node) async fn fetch(&self, root: Cid, cid: Cid) -> Result<Block, IpfsError> {
        tokio::time::timeout(DEADLINE, self.exchange.fetch(Want { cid, root })).await.unwrap()
    }

    /// Fetches blocks, 16 at a time, and compares them.
    pub(in crate::node) async fn fetch_all(&self, blocks: &[Block]) {
        let root = *blocks[0].cid();
        futures::stream::iter(blocks)
            .for_each_concurrent(16, |block| async move {
                assert_eq!(self.fetch(root, *block.cid()).await.unwrap(), *block);
            })
            .await;
    }

    /// Waits until the statistics are as wanted.
    pub(in crate::node) async fn until(&self, wanted: impl Fn(&BitswapStats) -> bool) {
        let reached = async {
            while !wanted(&self.exchange.stats()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = tokio::time::timeout(DEADLINE, reached).await;
        reached.unwrap_or_else(|_| panic!("not reached: {:?}", self.exchange.stats()));
    }
}

/// A peer played by the test.
pub(in crate::node) struct Conversation {
    pub(in crate::node) address: Multiaddr,
    pub(in crate::node) control: Control,
    received: mpsc::Receiver<(PeerId, Message)>,
    _commands: mpsc::Sender<Command>,
    _tasks: Tasks,
}

impl Conversation {
    pub(in crate::node) async fn next(&mut self) -> Message {
        tokio::time::timeout(DEADLINE, self.received.recv()).await.unwrap().unwrap().1
    }

    pub(in crate::node) async fn open(&self, peer: PeerId) -> Stream {
        open(&self.control, peer, &protocols()).await
    }
}

/// A stream to a peer that is connected, or about to be.
pub(in crate::node) async fn open(control: &Control, peer: PeerId, protocols: &[StreamProtocol]) -> Stream {
    loop {
        match control.open(peer, protocols.to_vec()).await {
            Err(OpenError::NotConnected(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            opened => return opened.unwrap().1,
        }
    }
}

async fn read_message(stream: &mut Stream) -> Option<Message> {
    let (mut length, mut shift) = (0, 0);
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Message::decode(body.into()).unwrap())
}

pub(in crate::node) async fn send(stream: &mut Stream, message: &Outgoing) {
    for part in message.encode(Version::V1_2) {
        stream.write_all(&part).await.unwrap();
    }
    stream.flush().await.unwrap();
}

/// Blocks that differ, of the same size.
pub(in crate::node) fn blocks(count: usize, size_bytes: usize) -> Vec<Block> {
    let block = |number: usize| {
        let mut bytes = vec![number as u8; size_bytes];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Block::encode(RAW, Bytes::from(bytes))
    };
    (0..count).map(block).collect()
}
