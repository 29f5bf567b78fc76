//! All places for connections taken by strangers from a few networks, who do nothing and come anew for ever. Who comes
//! for something has a place, and who is in the middle of something keeps it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use libp2p::swarm::{Stream, StreamProtocol};

use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::flood::flood_from;
use crate::peer::{Peer, peer_of};

const HTTP: StreamProtocol = StreamProtocol::new("/http/1.1");
const LAYER_BYTES: usize = 48 << 20;
/// What a slow peer reads at a time, and how long it then rests.
const STEP_BYTES: usize = 256 * 1024;
const REST: Duration = Duration::from_millis(200);

/// Begins to read the whole tree of a daemon over HTTP.
async fn begin_transfer(peer: &Peer, from: &Daemon) -> Stream {
    let root = from.status().own.unwrap().root;
    let (_, mut stream) = peer.control.open(peer_of(from), vec![HTTP]).await.unwrap();
    let request = format!("GET /ipfs/{root}?format=car HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// Reads on slowly until `done`, and then to the end; returns the bytes that came.
async fn read_slowly(mut stream: Stream, done: &AtomicBool) -> usize {
    let (mut step, mut total) = (vec![0; STEP_BYTES], 0);
    loop {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut step)).await.unwrap().unwrap();
        total += read;
        if read == 0 || total >= LAYER_BYTES {
            return total;
        }
        if !done.load(Ordering::SeqCst) {
            tokio::time::sleep(REST).await;
        }
    }
}

/// Whether as many peers are there as may come, and never more, beside those that are closing.
fn is_full(victim: &Daemon) -> bool {
    let peers = victim.status().node.peers;
    assert!(peers <= 600, "{peers} peers, where 512 may come");
    peers >= 500
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_strangers_make_room_and_a_transfer_goes_on() {
    let victim = daemon().start();
    victim.push("library/app", "1", &Image::new(530, &[LAYER_BYTES])).await;
    victim.push("library/app", "2", &Image::small(531)).await;
    let slow = Peer::start().await;
    slow.meets(&victim).await;
    let transfer = begin_transfer(&slow, &victim).await;

    let (to, done): (Multiaddr, _) = (victim.address.parse().unwrap(), AtomicBool::new(false));
    let attack = async {
        let mut held = Vec::new();
        for from in [Ipv4Addr::new(127, 0, 1, 1), Ipv4Addr::new(127, 0, 2, 1)] {
            held.push(flood_from(from, to.clone(), 600, Keypair::generate_ed25519).await);
        }
        let filling = async {
            // The last ones may be in their handshake yet.
            while !is_full(&victim) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, filling).await.expect("all places are taken");
        // While they come anew.
        let honest = async {
            let reader = daemon().knows(&victim).reads(&victim.ipns).read_only().start();
            reader.serves("library/app", "2", &Image::small(531)).await;
        };
        let flood = flood_from(Ipv4Addr::new(127, 0, 1, 1), to.clone(), 600, Keypair::generate_ed25519);
        let (_, _held) = tokio::join!(honest, flood);
        done.store(true, Ordering::SeqCst);
    };
    let (read, ()) = tokio::join!(read_slowly(transfer, &done), attack);
    assert!(read >= LAYER_BYTES, "the transfer broke off after {read} bytes");
    assert!(victim.status().node.peers <= 600);
}
