//! Floods: connections without end from one peer and from one network, records that nobody asked for, and peers that say
//! of themselves what does not end. Honest peers are served all the while.

use std::net::Ipv4Addr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt, stream};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p::core::{Endpoint, upgrade};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::StreamProtocol;
use libp2p::{Multiaddr, PeerId, SwarmBuilder, Transport, noise, tcp, yamux};
use prost::Message;
use shoal::ipld::Multihash;
use shoal::node::streams;
use shoal::tasks::Tasks;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use crate::common::{Daemon, Image, daemon};
use crate::forge::{Forged, name_of};
use crate::peer::{Peer, peer_of};

/// What a daemon may take in memory while it is flooded, in a debug build.
const MEMORY_BYTES_MAX: u64 = 256 << 20;
const CONNECTIONS: usize = 5000;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
/// Dials of the flood at once, and connections that it holds on to.
const AT_ONCE: usize = 64;
const HELD: usize = 700;

/// TCP from another network of this machine than the one that honest peers come from.
struct FromElsewhere(Ipv4Addr);

impl Transport for FromElsewhere {
    type Output = Compat<TcpStream>;
    type Error = std::io::Error;
    type ListenerUpgrade = BoxFuture<'static, Result<Self::Output, Self::Error>>;
    type Dial = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn listen_on(&mut self, _: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let port = address.iter().find_map(|part| match part {
            Protocol::Tcp(port) => Some(port),
            _ => None,
        });
        let port = port.ok_or(TransportError::MultiaddrNotSupported(address))?;
        let from = self.0;
        Ok(Box::pin(async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind((from, 0).into())?;
            Ok(socket.connect((Ipv4Addr::LOCALHOST, port).into()).await?.compat())
        }))
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Poll::Pending
    }
}

/// A connection of the peer with this key, as far as it comes.
async fn connect(key: &Keypair, from: Ipv4Addr, to: &Multiaddr) -> Option<(PeerId, StreamMuxerBox)> {
    let mut transport = FromElsewhere(from)
        .upgrade(upgrade::Version::V1)
        .authenticate(noise::Config::new(key).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    let dialled = transport.dial(to.clone(), options).unwrap();
    tokio::time::timeout(Duration::from_secs(20), dialled).await.ok()?.ok()
}

/// Opens connections in the name of what `key` gives, and holds the last of them until it is dropped.
async fn flood(to: Multiaddr, key: impl Fn() -> Keypair) -> Vec<(PeerId, StreamMuxerBox)> {
    flood_from(ELSEWHERE, to, CONNECTIONS, key).await
}

/// The same from another place, and with so many.
pub async fn flood_from(
    from: Ipv4Addr,
    to: Multiaddr,
    connections: usize,
    key: impl Fn() -> Keypair,
) -> Vec<(PeerId, StreamMuxerBox)> {
    let mut held = std::collections::VecDeque::new();
    let dials = stream::iter(0..connections).map(|_| {
        let (key, to) = (key(), to.clone());
        async move { connect(&key, from, &to).await }
    });
    let mut dials = std::pin::pin!(dials.buffer_unordered(AT_ONCE));
    while let Some(dialled) = dials.next().await {
        held.extend(dialled);
        if held.len() > HELD {
            held.pop_front();
        }
    }
    held.into()
}

fn is_well(victim: &Daemon, what: &str) {
    let memory = victim.memory_bytes();
    assert!(memory < MEMORY_BYTES_MAX, "{} MiB of memory after {what}", memory >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_network_leave_room_for_others() {
    let victim = daemon().start();
    victim.push("library/app", "0", &Image::small(500)).await;
    let reader = daemon().knows(&victim).reads(&victim.ipns).read_only().start();
    reader.serves("library/app", "0", &Image::small(500)).await;
    let to: Multiaddr = victim.address.parse().unwrap();

    let one_peer = Keypair::generate_ed25519();
    let held = flood(to.clone(), || one_peer.clone()).await;
    assert!(victim.status().node.peers <= 2, "it is one peer beside the reader");
    is_well(&victim, "many connections of one peer");
    drop(held);

    let honest = async {
        for tag in 1..=5 {
            let image = Image::small(500 + tag);
            victim.push("library/app", &tag.to_string(), &image).await;
            reader.serves("library/app", &tag.to_string(), &image).await;
        }
    };
    let (held, ()) = tokio::join!(flood(to, Keypair::generate_ed25519), honest);
    let peers = victim.status().node.peers;
    assert!(
        (100..=449).contains(&peers),
        "{peers} peers, of which three quarters of 512 may be of one network, beside 64 that are closing"
    );
    is_well(&victim, "many peers of one network");
    let newcomer = daemon().knows(&victim).reads(&victim.ipns).read_only().start();
    newcomer.serves("library/app", "5", &Image::small(505)).await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_without_end_leave_room_for_those_of_others() {
    const RECORDS: usize = 3000;
    let victim = daemon().start();
    victim.push("library/app", "0", &Image::small(510)).await;
    let reader = daemon().knows(&victim).reads(&victim.ipns).read_only().start();
    reader.serves("library/app", "0", &Image::small(510)).await;

    let hostile = Peer::start().await;
    hostile.meets(&victim).await;
    let root = Multihash::wrap(0x12, &[7; 32]).unwrap();
    let value = format!("/ipfs/{}", shoal::ipld::Cid::new_v1(0x55, root));
    let putting = stream::iter(0..RECORDS).for_each_concurrent(32, |n| {
        let key = Keypair::generate_ed25519();
        let record = Forged { padding: 8 * 1024, ..Forged::new(&value, n as u64) }.sign(&key);
        let (hostile, victim) = (&hostile, &victim);
        async move { hostile.put(victim, &name_of(&key).routing_key(), &record).await }
    });
    let providing =
        stream::iter(0..RECORDS).for_each_concurrent(32, |n| hostile.provide(n.to_be_bytes().repeat(4)));
    let honest = async {
        for tag in 1..=5 {
            let image = Image::small(510 + tag);
            victim.push("library/app", &tag.to_string(), &image).await;
            reader.serves("library/app", &tag.to_string(), &image).await;
        }
    };
    tokio::join!(putting, providing, honest);
    is_well(&victim, "many records");
    // Who comes now learns the name's record from who holds it.
    let newcomer = daemon().knows(&victim).reads(&victim.ipns).read_only().start();
    newcomer.serves("library/app", "5", &Image::small(515)).await;
}

/// The message of identify (libp2p specification `identify`).
#[derive(Clone, PartialEq, Message)]
pub struct Identify {
    #[prost(bytes = "vec", optional, tag = "1")]
    public_key: Option<Vec<u8>>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    listen_addresses: Vec<Vec<u8>>,
    #[prost(string, repeated, tag = "3")]
    protocols: Vec<String>,
    #[prost(bytes = "vec", optional, tag = "4")]
    observed_address: Option<Vec<u8>>,
}

const IDENTIFY: StreamProtocol = StreamProtocol::new("/ipfs/id/1.0.0");
const PUSH: StreamProtocol = StreamProtocol::new("/ipfs/id/push/1.0.0");

/// A peer that answers nothing but what it says of itself.
pub struct Talker {
    pub control: streams::Control,
    pub incoming: mpsc::Receiver<streams::Incoming>,
    key: Keypair,
    _tasks: Tasks,
}

impl Talker {
    pub fn start(victim: &Daemon) -> Self {
        let key = Keypair::generate_ed25519();
        let (sender, incoming) = mpsc::channel(64);
        let (behaviour, control) = streams::Behaviour::new(vec![IDENTIFY], sender);
        let mut swarm = SwarmBuilder::with_existing_identity(key.clone())
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| behaviour)
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
            .build();
        swarm.dial(victim.address.parse::<Multiaddr>().unwrap()).unwrap();
        let tasks = Tasks::new();
        tasks.spawn_short("talker", |stop| async move {
            while stop.run_until_cancelled(swarm.select_next_some()).await.is_some() {}
        });
        Self { control, incoming, key, _tasks: tasks }
    }

    /// As many addresses as fit, all of them others each time; and as many protocols, or long ones.
    pub fn says(&self, round: usize) -> Identify {
        let address = |n: usize| {
            let net = ["8.8", "10.0", "192.168", "127.0"][n % 4];
            let text = format!("/ip4/{net}.{}.{}/tcp/{}", round % 250, n % 250, 1 + n);
            text.parse::<Multiaddr>().unwrap().to_vec()
        };
        Identify {
            public_key: Some(self.key.public().encode_protobuf()),
            listen_addresses: (0..200).map(address).collect(),
            protocols: (0..60)
                .map(|n| format!("/ipfs/lan/kad/1.0.{}", if n == 0 { 0 } else { round * 60 + n }))
                .collect(),
            observed_address: Some(address(4 * round)),
        }
    }
}

pub async fn say(stream: &mut libp2p::swarm::Stream, message: &Identify) {
    // The daemon may have heard enough.
    let _ = stream.write_all(&message.encode_length_delimited_to_vec()).await;
    let _ = stream.close().await;
    let _ = stream.read(&mut [0; 16]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_says_of_itself_is_bounded() {
    const ROUNDS: usize = 500;
    let victim = daemon().start();
    victim.push("library/app", "1", &Image::small(520)).await;
    let before = victim.memory_bytes();
    let mut talker = Talker::start(&victim);
    let mut asked =
        tokio::time::timeout(Duration::from_secs(20), talker.incoming.recv()).await.unwrap().unwrap();
    let first = talker.says(0);
    assert!(first.encoded_len() <= 4096, "{} bytes are more than identify takes", first.encoded_len());
    say(&mut asked.stream, &first).await;
    for round in 1..=ROUNDS {
        let (_, mut push) = talker.control.open(peer_of(&victim), vec![PUSH]).await.unwrap();
        say(&mut push, &talker.says(round)).await;
    }
    let giant = Identify { protocols: vec!["/x".repeat(1 << 20)], ..talker.says(0) };
    let (_, mut push) = talker.control.open(peer_of(&victim), vec![PUSH]).await.unwrap();
    say(&mut push, &giant).await;

    let grown = victim.memory_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{} MiB more than before", grown >> 20);
    let reader = daemon().knows(&victim).reads(&victim.ipns).read_only().start();
    reader.serves("library/app", "1", &Image::small(520)).await;
}
