//! Peers that misbehave, over pipes in memory and on a paused clock.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, watch};

use super::{STRANGERS_STREAMS_PER_PEER_MAX, limits, serve};
use crate::ipfs::{Peer, PeerStream, Trust};
use crate::tasks::Tasks;

const WINDOW_BYTES: usize = 64 * 1024;

/// A daemon's end of the streams of its peers.
struct Daemon {
    streams: mpsc::Sender<PeerStream>,
    trusted: watch::Sender<Arc<HashSet<Peer>>>,
    _tasks: Tasks,
}

impl Daemon {
    fn start() -> Self {
        let (streams, received) = mpsc::channel(8);
        let received = futures::stream::unfold(received, |mut received| async move {
            Some((received.recv().await?, received))
        });
        let who = async |Extension(peer): Extension<Peer>| format!("to {peer}.");
        let endless =
            || futures::stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[7; 16 * 1024])));
        let anybody = Router::new()
            .route("/who", get(who))
            .route("/endless", get(async move || Body::from_stream(endless())));
        let mesh = anybody.clone().route("/private", get(async || "private."));
        let tasks = Tasks::new();
        serve(&tasks, received.boxed(), anybody, mesh);
        Self { streams, trusted: watch::Sender::default(), _tasks: tasks }
    }

    fn trusts(&self, peers: &[&str]) {
        self.trusted.send_replace(Arc::new(peers.iter().map(|peer| Peer::new(peer)).collect()));
    }

    /// A stream that `peer` opens.
    async fn stream(&self, peer: &str) -> DuplexStream {
        let (ours, theirs) = duplex(WINDOW_BYTES);
        let peer = Peer::new(peer);
        let trust = Trust::new(peer.clone(), self.trusted.subscribe());
        self.streams.send(PeerStream { peer, trust, io: Box::new(theirs) }).await.ok().unwrap();
        ours
    }
}

/// Asks on an open stream, and reads until the answer ends with a full stop, or the stream does.
async fn ask(stream: &mut DuplexStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    // A stream that was reset takes nothing.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b".") && !answer.ends_with(b"content-length: 0\r\n\r\n") {
        match stream.read_buf(&mut answer).await {
            Ok(read) if read > 0 => (),
            _ => break,
        }
        if let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n")
            && answer[..head].windows(4).any(|window| window == b" 404")
        {
            break;
        }
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads to the end of a stream, be it clean or not.
async fn rest(mut stream: DuplexStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // An error is an end too.
    let _ = stream.read_to_end(&mut bytes).await;
    bytes
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_may_ask_follows_the_trust_in_it_on_an_open_stream_too() {
    let daemon = Daemon::start();
    let mut stream = daemon.stream("friend").await;
    assert!(ask(&mut stream, "/who").await.ends_with("to friend."));
    assert!(ask(&mut stream, "/private").await.starts_with("HTTP/1.1 404"));
    daemon.trusts(&["friend"]);
    assert!(ask(&mut stream, "/private").await.ends_with("private."));
    daemon.trusts(&[]);
    assert!(ask(&mut stream, "/private").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_silent_streams_of_strangers_leave_the_mesh_its_room() {
    let daemon = Daemon::start();
    daemon.trusts(&["friend"]);
    let mut held = Vec::new();
    for number in 0..1000 {
        held.push(daemon.stream(&format!("stranger {}", number % 50)).await);
    }
    let mut friend = daemon.stream("friend").await;
    assert!(ask(&mut friend, "/private").await.ends_with("private."));

    // Those that say nothing are let go, so that an honest stranger gets room again.
    tokio::time::sleep(2 * limits().idle_timeout).await;
    let mut honest = daemon.stream("honest").await;
    assert!(ask(&mut honest, "/who").await.ends_with("to honest."));
}

#[tokio::test(start_paused = true)]
async fn a_stranger_gets_its_share_and_another_one_is_served() {
    let daemon = Daemon::start();
    let mut held = Vec::new();
    for _ in 0..STRANGERS_STREAMS_PER_PEER_MAX {
        held.push(daemon.stream("greedy").await);
    }
    let mut above = daemon.stream("greedy").await;
    assert_eq!(ask(&mut above, "/who").await, "");
    let mut other = daemon.stream("modest").await;
    assert!(ask(&mut other, "/who").await.ends_with("to modest."));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_takes_nothing_is_let_go() {
    let daemon = Daemon::start();
    let mut stream = daemon.stream("slow").await;
    stream.write_all(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    tokio::time::sleep(limits().send_stall_timeout + Duration::from_secs(1)).await;
    assert!(rest(stream).await.len() <= WINDOW_BYTES, "the daemon went on sending");
}

#[tokio::test(start_paused = true)]
async fn a_giant_header_is_refused() {
    let daemon = Daemon::start();
    let mut stream = daemon.stream("loud").await;
    let begun = format!("GET /who HTTP/1.1\r\nHost: h\r\nX-Long: {}", "x".repeat(limits().header_bytes_max));
    // The refusal may come before all is written.
    let _ = stream.write_all(begun.as_bytes()).await;
    assert!(rest(stream).await.starts_with(b"HTTP/1.1 431"));
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_is_answered_and_ends() {
    let daemon = Daemon::start();
    let mut stream = daemon.stream("brief").await;
    stream.write_all(b"GET /who HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(rest(stream).await.ends_with(b"to brief."));

    let mut half = daemon.stream("half").await;
    half.write_all(b"GET /who HT").await.unwrap();
    half.shutdown().await.unwrap();
    assert!(!rest(half).await.starts_with(b"HTTP/1.1 200"));
}
