//! Bitswap between two nodes in one process over loopback TCP, beside a bare libp2p stream in the same run.
//!
//! `cargo bench --bench bitswap [-- MiB]`: five rounds of 256 MiB in blocks of 1 MiB, 16 wanted at a time, as a file
//! reader does. Every block is hashed by the receiver; what crosses the bare stream is only counted.
//! `cargo bench --bench bitswap -- stream BYTES`: the bare stream alone, once; prints the seconds it took.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a bench fails loudly and prints its result")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt, stream};
use libp2p::swarm::{StreamProtocol, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, noise, tcp, yamux};
use shoal::ipfs::Want;
use shoal::ipld::block::RAW;
use shoal::ipld::{Block, Cid};
use shoal::node::bitswap::{BitswapLimits, Exchange, protocols};
use shoal::node::streams::{Behaviour, Control, Incoming};
use shoal::store::{Blockstore, Store, StoreOptions};
use shoal::tasks::Tasks;
use tokio::sync::mpsc;

const MIB: usize = 1 << 20;
const ROUNDS: usize = 5;
const IN_FLIGHT: usize = 16;
const BARE: StreamProtocol = StreamProtocol::new("/shoal/bench/bare");

struct Node {
    swarm: Swarm<Behaviour>,
    control: Control,
    incoming: mpsc::Receiver<Incoming>,
}

fn node(inbound: Vec<StreamProtocol>) -> Node {
    let (sender, incoming) = mpsc::channel(64);
    let (behaviour, control) = Behaviour::new(inbound, sender);
    let yamux = || {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(4093);
        config
    };
    let swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux)
        .unwrap()
        .with_behaviour(|_| behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(600)))
        .build();
    Node { swarm, control, incoming }
}

async fn listen(swarm: &mut Swarm<Behaviour>) -> Multiaddr {
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address;
        }
    }
}

/// Runs a swarm; names peers as they connect.
fn run(tasks: &Tasks, mut swarm: Swarm<Behaviour>, exchange: Option<Exchange>) -> mpsc::Receiver<PeerId> {
    let (connected, receiver) = mpsc::channel(4);
    tasks.spawn_short("swarm", |stop| async move {
        while let Some(event) = stop.run_until_cancelled(swarm.select_next_some()).await {
            if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
                if let Some(exchange) = &exchange {
                    exchange.connected(peer_id).await;
                }
                connected.send(peer_id).await.ok();
            }
        }
    });
    receiver
}

fn exchange(
    tasks: &Tasks,
    store: Blockstore,
    control: Control,
    incoming: mpsc::Receiver<Incoming>,
) -> Exchange {
    let (find, _) = mpsc::channel(1);
    Exchange::start(tasks, store, control, incoming, find, BitswapLimits::default())
}

/// Seconds that 1 MiB times `mebibytes` take by Bitswap.
async fn by_bitswap(store: Blockstore, cids: &[Cid]) -> f64 {
    let tasks = Tasks::new();
    let (mut server, mut client) = (node(protocols()), node(protocols()));
    let address = listen(&mut server.swarm).await;
    client.swarm.dial(address).unwrap();
    let served = exchange(&tasks, store, server.control, server.incoming);
    let empty = tempfile::tempdir().unwrap();
    let empty = Store::open(empty.path(), StoreOptions::default()).unwrap().blocks().clone();
    let fetcher = exchange(&tasks, empty, client.control, client.incoming);
    let _events = run(&tasks, server.swarm, Some(served));
    run(&tasks, client.swarm, Some(fetcher.clone())).recv().await.unwrap();

    let started = Instant::now();
    let root = cids[0];
    let fetches = stream::iter(cids.iter().map(|cid| fetcher.fetch(Want { cid: *cid, root })));
    let bytes: usize = fetches
        .buffered(IN_FLIGHT)
        .map(|block| block.unwrap().bytes().len())
        .fold(0, |a, b| async move { a + b })
        .await;
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(bytes, cids.len() * MIB);
    assert_eq!(fetcher.stats().bytes_wasted, 0);
    tasks.shutdown(Duration::from_secs(5)).await;
    seconds
}

/// Seconds that bytes take on a stream of their own.
async fn by_stream(blocks: Vec<Bytes>) -> f64 {
    let tasks = Tasks::new();
    let (mut server, mut client) = (node(vec![BARE]), node(vec![BARE]));
    let address = listen(&mut server.swarm).await;
    client.swarm.dial(address).unwrap();
    let _events = run(&tasks, server.swarm, None);
    let peer = run(&tasks, client.swarm, None).recv().await.unwrap();
    let mut incoming = server.incoming;
    let total: usize = blocks.iter().map(Bytes::len).sum();
    tasks.spawn_short("serve", |_| async move {
        let mut stream = incoming.recv().await.unwrap().stream;
        for block in blocks {
            stream.write_all(&block).await.unwrap();
        }
        stream.close().await.unwrap();
    });

    let started = Instant::now();
    let (_, mut stream) = client.control.open(peer, vec![BARE]).await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            read => bytes += read,
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(bytes, total);
    tasks.shutdown(Duration::from_secs(5)).await;
    seconds
}

/// `bytes` of zeros, in pieces of a block; what is encrypted takes as long whatever it is.
fn pieces(bytes: usize) -> Vec<Bytes> {
    let piece = Bytes::from(vec![0; MIB]);
    let mut pieces = vec![piece.clone(); bytes / MIB];
    pieces.push(piece.slice(..bytes % MIB));
    pieces
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let argument = std::env::args().find_map(|argument| argument.parse().ok());
    if std::env::args().any(|argument| argument == "stream") {
        println!("{:.4}", by_stream(pieces(argument.unwrap_or(256 * MIB))).await);
    } else {
        side_by_side(argument.unwrap_or(256)).await;
    }
}

async fn side_by_side(mebibytes: usize) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap().blocks().clone();
    let mut cids = Vec::new();
    for number in 0..mebibytes {
        let mut bytes = vec![number as u8; MIB];
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let block = Block::encode(RAW, bytes.into());
        store.put(block.cid().hash(), &[block.bytes().clone()]).unwrap();
        cids.push(*block.cid());
    }
    let (mut bitswap, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let blocks = cids.iter().map(|cid| store.get(cid.hash()).unwrap().unwrap()).collect();
        let stream = mebibytes as f64 / by_stream(blocks).await;
        let blocks = mebibytes as f64 / by_bitswap(store.clone(), &cids).await;
        println!(
            "round {round}: bitswap {blocks:.0} MiB/s, bare stream {stream:.0} MiB/s, ratio {:.2}",
            blocks / stream
        );
        bitswap.push(blocks);
        bare.push(stream);
        ratios.push(blocks / stream);
    }
    println!(
        "median of {ROUNDS}, {mebibytes} MiB: bitswap {:.0} MiB/s, bare stream {:.0} MiB/s, ratio {:.2}",
        median(&mut bitswap),
        median(&mut bare),
        median(&mut ratios)
    );
}
