//! HTTP between whole nodes in one process, and who is in whose mesh.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::bitswap::testing::Bare;
use super::tests::reserved_place;
use super::{NodeClient, NodeConfig, start};
use crate::ipfs::{Ipfs, IpfsError, Peer, PeerStream, PeerStreams};
use crate::store::{Store, StoreOptions};
use crate::tasks::Tasks;

const PATIENCE: Duration = Duration::from_secs(30);

struct Node {
    client: NodeClient,
    streams: PeerStreams,
    tasks: Tasks,
    _folder: TempDir,
}

impl Node {
    async fn trusting(peers: Vec<Multiaddr>) -> Self {
        Self::listening("/ip4/127.0.0.1/tcp/0".parse().unwrap(), peers).await
    }

    async fn listening(address: Multiaddr, peers: Vec<Multiaddr>) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let tasks = Tasks::new();
        let config = NodeConfig { listen: vec![address], peers, ..NodeConfig::alone("shoal/test") };
        let (client, streams) = start(&tasks, &store, Keypair::generate_ed25519(), config).await.unwrap();
        Self { client, streams, tasks, _folder: folder }
    }

    fn peer(&self) -> Peer {
        Peer::new(&self.client.peer_id().to_base58())
    }

    fn address(&self) -> Multiaddr {
        self.client.listen_addresses().swap_remove(0)
    }

    async fn dials(&self, other: &Node) {
        self.client.dial(other.address()).await.unwrap();
        until("both are connected", || self.has_peers() && other.has_peers()).await;
    }

    fn has_peers(&self) -> bool {
        self.client.stats().peers > 0
    }

    async fn until_mesh(&self, wanted: &[Peer]) {
        let mut mesh = self.client.mesh();
        let reached = timeout(PATIENCE, mesh.wait_for(|mesh| **mesh == *wanted)).await;
        reached.unwrap_or_else(|_| panic!("the mesh never was {wanted:?}")).unwrap();
    }

    /// The next stream that a peer opens.
    async fn next(&mut self) -> PeerStream {
        timeout(PATIENCE, self.streams.next()).await.unwrap().unwrap()
    }

    /// Answers what comes on the next stream with `body`.
    async fn answers<S>(&mut self, body: impl Fn(Request<Incoming>) -> S + Send + Sync + Clone + 'static)
    where
        S: futures::Stream<Item = Bytes> + Send + 'static,
    {
        let PeerStream { io, .. } = self.next().await;
        self.tasks.spawn_short("answer", move |_| async move {
            let service = service_fn(move |request| {
                let frames = body(request).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
                async move { Ok::<_, Infallible>(Response::new(StreamBody::new(Box::pin(frames)))) }
            });
            // The client may leave in the middle.
            let _ = http1::Builder::new().writev(true).serve_connection(TokioIo::new(io), service).await;
        });
    }
}

async fn until(what: &str, reached: impl Fn() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(PATIENCE, waiting).await.is_ok(), "never: {what}");
}

fn get(path: &str) -> Request<Bytes> {
    Request::get(path).body(Bytes::new()).unwrap()
}

/// Bytes that differ from place to place.
fn chunks(count: usize) -> impl futures::Stream<Item = Bytes> {
    stream::iter((0..count).map(|number| Bytes::from(vec![number as u8; 256 * 1024])))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_goes_to_a_peer_and_its_answer_streams_back_either_way() {
    const CHUNKS: usize = 40;
    let (mut one, mut other) = (Node::trusting(vec![]).await, Node::trusting(vec![]).await);
    one.dials(&other).await;
    for _ in 0..2 {
        let asking = {
            let (client, peer) = (one.client.clone(), other.peer());
            async move {
                let answer = client.request(&peer, get("/a/path?b=c")).await.unwrap();
                answer.into_body().try_collect::<Vec<Bytes>>().await.unwrap().concat()
            }
        };
        let host = other.peer().to_string();
        let answering = other.answers(move |request| {
            assert_eq!(request.uri(), "/a/path?b=c");
            assert_eq!(request.headers()["host"], host.as_str());
            chunks(CHUNKS)
        });
        let (body, ()) = futures::join!(asking, answering);
        assert!(body == chunks(CHUNKS).collect::<Vec<Bytes>>().await.concat());
        std::mem::swap(&mut one, &mut other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_drops_the_body_stops_the_sender() {
    let (one, mut other) = (Node::trusting(vec![]).await, Node::trusting(vec![]).await);
    one.dials(&other).await;
    let (ended, mut told) = mpsc::channel::<()>(1);
    let peer = other.peer();
    let asking = one.client.request(&peer, get("/"));
    let answering = other.answers(move |_| {
        let ended = ended.clone();
        stream::repeat_with(move || {
            assert!(!ended.is_closed());
            Bytes::from_static(&[1; 64 * 1024])
        })
    });
    let (answer, ()) = futures::join!(asking, answering);
    let mut body = answer.unwrap().into_body();
    body.try_next().await.unwrap().unwrap();
    drop(body);
    // The channel closes with the stream of the answer's chunks.
    assert_eq!(timeout(PATIENCE, told.recv()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_there_or_speaks_no_http_is_an_error_at_once() {
    let one = Node::trusting(vec![]).await;
    let nobody = Peer::new(&libp2p::PeerId::random().to_base58());
    let absent = one.client.request(&nobody, get("/")).await;
    assert!(matches!(absent, Err(IpfsError::NotConnected(_))));
    assert!(matches!(one.client.request(&Peer::new("x"), get("/")).await, Err(IpfsError::NotConnected(_))));

    let bare = Bare::start().await;
    one.client.dial(bare.address.clone()).await.unwrap();
    until("they are connected", || one.has_peers()).await;
    let mute = one.client.request(&Peer::new(&bare.peer.to_base58()), get("/")).await;
    assert!(matches!(mute, Err(IpfsError::NoHttp(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_an_error_not_an_end() {
    let (one, mut other) = (Node::trusting(vec![]).await, Node::trusting(vec![]).await);
    one.dials(&other).await;
    let peer = other.peer();
    let asking = one.client.request(&peer, get("/"));
    let breaking = async {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let PeerStream { mut io, .. } = other.next().await;
        let mut head = [0; 1024];
        assert!(io.read(&mut head).await.unwrap() > 0);
        io.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc").await.unwrap();
        io.flush().await.unwrap();
        io.shutdown().await.unwrap();
    };
    let (answer, ()) = futures::join!(asking, breaking);
    let body = answer.unwrap().into_body().try_collect::<Vec<Bytes>>().await;
    assert!(matches!(body, Err(IpfsError::Request { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_is_who_the_config_trusts_for_as_long_as_they_are_connected() {
    let mut trusted = Node::trusting(vec![]).await;
    let stranger = Node::trusting(vec![]).await;
    let one = Node::trusting(vec![trusted.address()]).await;
    stranger.dials(&one).await;
    one.until_mesh(&[trusted.peer()]).await;

    // Trust is not mutual: who is trusted here need not trust us.
    assert_eq!(*trusted.client.mesh().borrow().clone(), []);
    let peer = trusted.peer();
    let (asking, stream) = (one.client.request(&peer, get("/")), trusted.next());
    let stream = tokio::select! {
        answer = asking => panic!("nobody answers: {:?}", answer.err()),
        stream = stream => stream,
    };
    assert_eq!(stream.peer, one.peer());
    assert!(!stream.trust.holds());

    trusted.tasks.shutdown(PATIENCE).await;
    one.until_mesh(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_our_own_is_left_alone_and_the_other_daemon_there_is_found() {
    let one = Node::trusting(vec![]).await;
    // The node is told of it before it listens.
    let (_reserved, own_port) = reserved_place();
    let other: Multiaddr = one.address().iter().take(2).collect();
    let two = Node::listening(own_port.clone(), vec![own_port, other]).await;
    two.until_mesh(&[one.peer()]).await;
    assert_eq!(two.client.stats().peers, 1);
}
