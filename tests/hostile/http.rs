//! Peers that open streams for HTTP and mean ill, beside one that asks as it should.

use futures::future::join_all;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::swarm::Stream;

use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::peer::{Peer, peer_of};

const HTTP: StreamProtocol = StreamProtocol::new("/http/1.1");
const REQUEST: &[u8] = b"GET /.well-known/libp2p/protocols HTTP/1.1\r\nHost: x\r\n\r\n";
/// What is tried …
const STREAMS: usize = 1000;
/// … and what must come of it: a connection carries some five hundred at once, whoever asks for more.
const STREAMS_CARRIED_MIN: usize = 450;
/// How often some are opened.
const ROUNDS_MAX: usize = 80;
/// What a daemon may take in memory while it is under attack, in a debug build.
const MEMORY_BYTES_MAX: u64 = 320 << 20;

async fn open(peer: &Peer, daemon: &Daemon) -> Option<Stream> {
    peer.control.open(peer_of(daemon), vec![HTTP]).await.ok().map(|(_, stream)| stream)
}

/// The first bytes of the answer to an honest request; `None`: the stream ended without.
async fn ask(peer: &Peer, daemon: &Daemon) -> Option<String> {
    let mut stream = open(peer, daemon).await?;
    stream.write_all(REQUEST).await.ok()?;
    stream.flush().await.ok()?;
    let mut answer = [0; 15];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap();
    read.ok().map(|()| String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_streams_that_say_nothing_or_half_of_it_keep_nobody_out() {
    let daemon = daemon().start();
    let (hostile, honest) = (Peer::start().await, Peer::start().await);
    hostile.meets(&daemon).await;
    honest.meets(&daemon).await;

    let mut held = Vec::new();
    for _ in 0..ROUNDS_MAX {
        // As many as may be in negotiation at once; of these some may be refused.
        let opened = join_all((0..25).map(|_| open(&hostile, &daemon))).await;
        held.extend(opened.into_iter().flatten());
        if held.len() >= STREAMS {
            break;
        }
    }
    assert!(held.len() >= STREAMS_CARRIED_MIN, "only {} streams were opened", held.len());
    for (number, stream) in held.iter_mut().enumerate() {
        let said: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET / HT",
            _ => b"GET / HTTP/1.1\r\nX-Long: ",
        };
        // Those above the peer's share were reset.
        let _ = stream.write_all(said).await;
        let _ = stream.flush().await;
    }
    assert_eq!(ask(&honest, &daemon).await.as_deref(), Some("HTTP/1.1 200 OK"));
    let image = Image::small(1);
    daemon.push("library/app", "1", &image).await;
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), image);
    assert!(daemon.memory_bytes() < MEMORY_BYTES_MAX, "{} MiB", daemon.memory_bytes() >> 20);
}
