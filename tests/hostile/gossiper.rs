//! A peer made of plain libp2p that speaks gossipsub and the fetch protocol, and takes part in no DHT: what comes from it,
//! or gets to it, came that way. What it says is the test's choice; it checks nothing.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::gossipsub::{self, ConfigBuilder, IdentTopic, MessageAuthenticity};
use libp2p::identity::Keypair;
use libp2p::swarm::{NetworkBehaviour, Stream, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify, noise, tcp, yamux};
use multibase::Base;
use prost::Message;
use shoal::ipld::ipns::IpnsName;
use shoal::node::streams::{self, Control, Incoming};
use shoal::tasks::Tasks;
use tokio::sync::mpsc;

use crate::common::{Daemon, PATIENCE};
use crate::peer::{from_new_port, peer_of};

const FETCH: StreamProtocol = StreamProtocol::new("/libp2p/fetch/0.0.1");
/// Far more than any daemon takes.
const FRAME_BYTES_MAX: usize = 4 << 20;
/// What is heard and not looked at by the test; more is lost.
const EVENTS_QUEUED_MAX: usize = 1024;

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    gossip: gossipsub::Behaviour,
    streams: streams::Behaviour,
}

enum Command {
    Dial(Multiaddr),
    Say(Vec<u8>),
}

/// The messages of the fetch protocol (libp2p specification "Fetch").
#[derive(Clone, PartialEq, Message)]
pub struct FetchRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub identifier: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct FetchAnswer {
    #[prost(int32, tag = "1")]
    pub status: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub data: Vec<u8>,
}

pub const NOT_FOUND: i32 = 1;

/// The topic of a name (specification of the IPNS PubSub router).
pub fn topic(name: &IpnsName) -> String {
    format!("/record/{}", Base::Base64Url.encode(name.routing_key()))
}

pub struct Gossiper {
    pub control: Control,
    /// Fetches that are asked of it.
    asked: mpsc::Receiver<Incoming>,
    /// The one that was asked of it when it came, unless it is answered.
    pending: Option<Incoming>,
    /// What others say on the topic and a daemon passes on. What it knows it says itself as well, whenever it likes.
    pub heard: mpsc::Receiver<Vec<u8>>,
    /// Who has come to the topic.
    joined: mpsc::Receiver<PeerId>,
    commands: mpsc::Sender<Command>,
    _tasks: Tasks,
}

impl Gossiper {
    /// On the topic of a name.
    pub fn start(name: &IpnsName) -> Self {
        let topic = IdentTopic::new(topic(name));
        let (sender, asked) = mpsc::channel(64);
        let (streams, control) = streams::Behaviour::new(vec![FETCH], sender);
        let swarm = SwarmBuilder::with_existing_identity(Keypair::generate_ed25519())
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|key| {
                let config = ConfigBuilder::default()
                    .max_transmit_size(FRAME_BYTES_MAX)
                    .max_control_message_size(FRAME_BYTES_MAX)
                    .build()
                    .unwrap();
                let signed = MessageAuthenticity::Signed(key.clone());
                let mut gossip = gossipsub::Behaviour::new(signed, config).unwrap();
                gossip.subscribe(&topic).unwrap();
                let identify = identify::Config::new("ipfs/0.1.0".to_owned(), key.public());
                Behaviour { identify: identify::Behaviour::new(identify), gossip, streams }
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
            .build();
        let (commands, inbox) = mpsc::channel(64);
        let (ears, heard) = mpsc::channel(EVENTS_QUEUED_MAX);
        let (eyes, joined) = mpsc::channel(EVENTS_QUEUED_MAX);
        let tasks = Tasks::new();
        tasks.spawn_short("gossiper", |_| run(swarm, topic, inbox, ears, eyes));
        Self { control, asked, pending: None, heard, joined, commands, _tasks: tasks }
    }

    /// Dials a daemon that follows the name; returns when each of the two has seen the other on the topic: from then on
    /// what either hears is passed on.
    pub async fn meets(&mut self, daemon: &Daemon) {
        self.commands.send(Command::Dial(daemon.address.parse().unwrap())).await.ok().unwrap();
        let joined = tokio::time::timeout(PATIENCE, self.joined.recv()).await;
        assert_eq!(joined.expect("the daemon comes to the topic"), Some(peer_of(daemon)));
        // Whom it sees on the topic it asks for the newest record.
        self.pending = Some(self.is_asked().await);
    }

    async fn is_asked(&mut self) -> Incoming {
        if let Some(pending) = self.pending.take() {
            return pending;
        }
        tokio::time::timeout(PATIENCE, self.asked.recv()).await.expect("it is asked").unwrap()
    }

    pub async fn say(&self, value: Vec<u8>) {
        self.commands.send(Command::Say(value)).await.ok().unwrap();
    }

    /// The next that is passed on.
    pub async fn hears(&mut self) -> Vec<u8> {
        tokio::time::timeout(PATIENCE, self.heard.recv()).await.expect("something is said").unwrap()
    }

    /// Answers the next fetch with `answer`; returns the key that was asked for.
    pub async fn answers(&mut self, answer: &FetchAnswer) -> Vec<u8> {
        let mut stream = self.is_asked().await.stream;
        let request: FetchRequest = read(&mut stream).await.unwrap();
        stream.write_all(&answer.encode_length_delimited_to_vec()).await.unwrap();
        stream.close().await.unwrap();
        request.identifier
    }

    /// Asks a daemon for the newest record of `key`; `None`: the stream was reset.
    pub async fn fetch(&self, daemon: &Daemon, key: &[u8]) -> Option<FetchAnswer> {
        let (_, mut stream) = self.control.open(peer_of(daemon), vec![FETCH]).await.ok()?;
        let request = FetchRequest { identifier: key.to_vec() };
        stream.write_all(&request.encode_length_delimited_to_vec()).await.ok()?;
        stream.close().await.ok()?;
        read(&mut stream).await
    }
}

async fn read<M: Message + Default>(stream: &mut Stream) -> Option<M> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.ok()?;
    M::decode_length_delimited(bytes.as_slice()).ok()
}

async fn run(
    mut swarm: Swarm<Behaviour>,
    topic: IdentTopic,
    mut inbox: mpsc::Receiver<Command>,
    ears: mpsc::Sender<Vec<u8>>,
    eyes: mpsc::Sender<PeerId>,
) {
    loop {
        tokio::select! {
            command = inbox.recv() => match command {
                Some(Command::Dial(address)) => swarm.dial(from_new_port(address)).unwrap(),
                // A full queue is the daemon's way of not listening.
                Some(Command::Say(value)) => drop(swarm.behaviour_mut().gossip.publish(topic.hash(), value)),
                None => return,
            },
            event = swarm.select_next_some() => match event {
                SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Message {
                    propagation_source, message, ..
                })) if message.source != Some(propagation_source) => {
                    let _ = ears.try_send(message.data);
                }
                SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Subscribed { peer_id, .. })) => {
                    let _ = eyes.try_send(peer_id);
                }
                _ => (),
            }
        }
    }
}
