//! A peer made of plain libp2p: it connects, introduces itself and takes part in the DHT of private addresses as anybody
//! does. What it says on its streams, and what it puts, is the test's choice.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::kad::store::MemoryStore;
use libp2p::kad::{self, QueryId, QueryResult, Quorum, Record, RecordKey};
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{NetworkBehaviour, Stream, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify, noise, tcp, yamux};
use shoal::node::bitswap::message::{Message, Outgoing, Version};
use shoal::node::bitswap::protocols;
use shoal::node::streams::{self, Control, Incoming, OpenError};
use shoal::tasks::Tasks;
use tokio::sync::{mpsc, oneshot, watch};

use crate::common::{Daemon, PATIENCE};

const LAN: StreamProtocol = StreamProtocol::new("/ipfs/lan/kad/1.0.0");

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    kad: Toggle<kad::Behaviour<MemoryStore>>,
    streams: streams::Behaviour,
}

enum Command {
    Dial(Multiaddr),
    Put { to: PeerId, key: Vec<u8>, value: Vec<u8>, done: oneshot::Sender<()> },
    Get { key: RecordKey, found: oneshot::Sender<Vec<Vec<u8>>> },
    Provide { key: RecordKey, done: oneshot::Sender<()> },
    GetProviders { key: RecordKey, found: oneshot::Sender<usize> },
}

enum Asked {
    /// Something is put, and nothing comes back.
    Put(oneshot::Sender<()>),
    Get(Vec<Vec<u8>>, oneshot::Sender<Vec<Vec<u8>>>),
    GetProviders(usize, oneshot::Sender<usize>),
}

pub struct Peer {
    /// With the peer id at its end.
    pub address: String,
    pub control: Control,
    pub incoming: mpsc::Receiver<Incoming>,
    pub tasks: Tasks,
    commands: mpsc::Sender<Command>,
    /// Who has introduced himself.
    known: watch::Receiver<HashSet<PeerId>>,
}

impl Peer {
    pub async fn start() -> Self {
        Self::speaking(protocols(), true).await
    }

    /// One that says it takes part in the DHT, and answers nothing there.
    pub async fn mute_in_the_dht() -> Self {
        let mut spoken = protocols();
        spoken.push(LAN);
        Self::speaking(spoken, false).await
    }

    /// One that takes streams of these protocols instead. Who takes none of gossipsub is heard by nobody there.
    pub async fn serving(streams: Vec<StreamProtocol>) -> Self {
        Self::speaking(streams, true).await
    }

    async fn speaking(streams: Vec<StreamProtocol>, in_the_dht: bool) -> Self {
        let (sender, incoming) = mpsc::channel(64);
        let (streams, control) = streams::Behaviour::new(streams, sender);
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|key| {
                let peer = key.public().to_peer_id();
                let mut config = kad::Config::new(LAN);
                config.set_parallelism(NonZeroUsize::MIN).set_query_timeout(PATIENCE);
                let mut kad = kad::Behaviour::with_config(peer, MemoryStore::new(peer), config);
                kad.set_mode(Some(kad::Mode::Server));
                let identify = identify::Config::new("ipfs/0.1.0".to_owned(), key.public());
                let kad = Toggle::from(in_the_dht.then_some(kad));
                Behaviour { identify: identify::Behaviour::new(identify), kad, streams }
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
            .build();
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        let address = format!("{address}/p2p/{}", swarm.local_peer_id());
        let (commands, inbox) = mpsc::channel(64);
        let (introduced, known) = watch::channel(HashSet::new());
        let tasks = Tasks::new();
        tasks.spawn_short("hostile", |_| run(swarm, inbox, introduced));
        Self { address, control, incoming, tasks, commands, known }
    }

    /// A stream for Bitswap to a daemon that is connected, or about to be.
    pub async fn open(&self, daemon: &Daemon) -> Stream {
        open(&self.control, peer_of(daemon)).await
    }

    /// Dials a daemon; returns when it has introduced itself: who is not known yet is asked nothing in the DHT, and told
    /// nothing.
    pub async fn meets(&self, daemon: &Daemon) {
        self.commands.send(Command::Dial(daemon.address.parse().unwrap())).await.ok().unwrap();
        self.open(daemon).await;
        let (mut known, peer) = (self.known.clone(), peer_of(daemon));
        let introduced = tokio::time::timeout(PATIENCE, known.wait_for(|known| known.contains(&peer))).await;
        introduced.expect("it introduces itself").unwrap();
    }

    /// Puts a record to a daemon, by the rules or not; returns when it has answered, or will not.
    pub async fn put(&self, daemon: &Daemon, key: &[u8], value: &[u8]) {
        let (done, answered) = oneshot::channel();
        let command = Command::Put { to: peer_of(daemon), key: key.to_vec(), value: value.to_vec(), done };
        self.commands.send(command).await.ok().unwrap();
        answered.await.unwrap();
    }

    /// The values that those in the DHT give for a key.
    pub async fn get(&self, key: &[u8]) -> Vec<Vec<u8>> {
        let (found, values) = oneshot::channel();
        self.commands.send(Command::Get { key: RecordKey::new(&key), found }).await.ok().unwrap();
        values.await.unwrap()
    }

    /// How many say that they have what `key` names.
    pub async fn providers(&self, key: Vec<u8>) -> usize {
        let (found, providers) = oneshot::channel();
        self.commands.send(Command::GetProviders { key: key.into(), found }).await.ok().unwrap();
        providers.await.unwrap()
    }

    /// Says that it has what `key` names; returns when it is said, or was given up.
    pub async fn provide(&self, key: Vec<u8>) {
        let (done, said) = oneshot::channel();
        self.commands.send(Command::Provide { key: key.into(), done }).await.ok().unwrap();
        said.await.unwrap();
    }
}

pub fn peer_of(daemon: &Daemon) -> PeerId {
    daemon.address.rsplit('/').next().unwrap().parse().unwrap()
}

pub async fn open(control: &Control, peer: PeerId) -> Stream {
    let opening = async {
        loop {
            match control.open(peer, protocols()).await {
                Err(OpenError::NotConnected(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                opened => return opened.unwrap().1,
            }
        }
    };
    tokio::time::timeout(PATIENCE, opening).await.expect("a stream is opened")
}

/// Not from the port that it listens on, which among so many connections on one machine may be taken by one of them.
pub fn from_new_port(address: Multiaddr) -> DialOpts {
    DialOpts::unknown_peer_id().address(address).allocate_new_port().build()
}

async fn run(
    mut swarm: Swarm<Behaviour>,
    mut inbox: mpsc::Receiver<Command>,
    introduced: watch::Sender<HashSet<PeerId>>,
) {
    let mut asked: HashMap<QueryId, Asked> = HashMap::new();
    loop {
        tokio::select! {
            command = inbox.recv() => match command {
                Some(Command::Dial(address)) => swarm.dial(from_new_port(address)).unwrap(),
                Some(command) => begin(&mut swarm, &mut asked, command),
                None => return,
            },
            event = swarm.select_next_some() => match event {
                SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                    peer_id, info, ..
                })) => {
                    let addresses: Vec<Multiaddr> = info.listen_addrs;
                    for address in addresses {
                        if let Some(kad) = swarm.behaviour_mut().kad.as_mut() {
                            kad.add_address(&peer_id, address);
                        }
                    }
                    introduced.send_modify(|known| _ = known.insert(peer_id));
                }
                SwarmEvent::Behaviour(BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed {
                    id, result, step, ..
                })) => {
                    match (result, asked.get_mut(&id)) {
                        (
                            QueryResult::GetRecord(Ok(kad::GetRecordOk::FoundRecord(found))),
                            Some(Asked::Get(values, _)),
                        ) => values.push(found.record.value),
                        (
                            QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })),
                            Some(Asked::GetProviders(count, _)),
                        ) => *count += providers.len(),
                        _ => (),
                    }
                    if step.last {
                        match asked.remove(&id) {
                            Some(Asked::Put(done)) => drop(done.send(())),
                            Some(Asked::Get(values, found)) => drop(found.send(values)),
                            Some(Asked::GetProviders(count, found)) => drop(found.send(count)),
                            None => (),
                        }
                    }
                }
                _ => (),
            }
        }
    }
}

fn begin(swarm: &mut Swarm<Behaviour>, asked: &mut HashMap<QueryId, Asked>, command: Command) {
    let Some(kad) = swarm.behaviour_mut().kad.as_mut() else { return };
    match command {
        Command::Dial(_) => (),
        Command::Put { to, key, value, done } => {
            let id = kad.put_record_to(Record::new(key, value), std::iter::once(to), Quorum::One);
            asked.insert(id, Asked::Put(done));
        }
        Command::Get { key, found } => {
            let id = kad.get_record(key);
            asked.insert(id, Asked::Get(Vec::new(), found));
        }
        Command::GetProviders { key, found } => {
            let id = kad.get_providers(key);
            asked.insert(id, Asked::GetProviders(0, found));
        }
        Command::Provide { key, done } => {
            let id = kad.start_providing(key.clone()).unwrap();
            asked.insert(id, Asked::Put(done));
            kad.stop_providing(&key); // Only others are to know of it.
        }
    }
}

/// The next message on a stream; `None` at its end.
pub async fn read_message(stream: &mut Stream) -> Option<Message> {
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
    Message::decode(body.into()).ok()
}

/// Sends a message; an error is the daemon's answer to what came before.
pub async fn send(stream: &mut Stream, message: &Outgoing) -> std::io::Result<()> {
    for part in message.encode(Version::V1_2) {
        stream.write_all(&part).await?;
    }
    stream.flush().await
}
