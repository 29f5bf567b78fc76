//! Whole daemons that trust each other: by address, by name, by the key of a private network; and what strangers may ask.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use common::upstream::{Fault, Rule, Upstream};
use common::{Daemon, Image, PATIENCE, bound, daemon};
use futures::{StreamExt, TryStreamExt, stream};
use hyper::{Request, StatusCode};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use shoal::http::peer;
use shoal::ipfs::{Ipfs, IpfsError, Peer, PeerBody, PeerStreams};
use shoal::ipld::{Block, Cid, car};
use shoal::node::{self, NodeClient, NodeConfig};
use shoal::oci::Digest;
use shoal::store::{Store, StoreOptions};
use shoal::tasks::Tasks;
use tempfile::{NamedTempFile, TempDir};

/// Waits until the status is as wanted.
async fn until(daemon: &Daemon, wanted: impl Fn(&shoal::api::Node) -> bool) {
    let begun = Instant::now();
    loop {
        let node = daemon.status().node;
        if wanted(&node) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{node:?}\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until something has come of what is pulled through.
async fn has_bytes(daemon: &Daemon) {
    let begun = Instant::now();
    while daemon.status().fills.iter().all(|fill| fill.received_bytes == 0) {
        assert!(begun.elapsed() < PATIENCE, "nothing comes\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where a daemon listens, without saying that it is this daemon.
fn place(daemon: &Daemon) -> String {
    daemon.address.split("/p2p/").next().unwrap().to_owned()
}

fn swarm_key(byte: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    write!(file, "/key/swarm/psk/1.0.0/\n/base16/\n{}\n", byte.repeat(32)).unwrap();
    file
}

#[tokio::test]
async fn whoever_answers_at_a_trusted_address_or_name_is_in_the_mesh() {
    let other = daemon().start();
    let by_name = place(&other).replace("/ip4/127.0.0.1/", "/dns4/localhost/");
    for trusted in [other.address.clone(), place(&other), by_name] {
        let one = daemon().env("REGISTRY_P2P_PEERS", &format!("[{trusted}]")).start();
        until(&one, |node| node.mesh_peers == 1).await;
        assert_eq!(other.status().node.mesh_peers, 0, "trust is not mutual by itself");
    }
}

#[tokio::test]
async fn a_lost_peer_of_the_mesh_is_found_again_at_its_address() {
    let other = daemon().start();
    let port: u16 = place(&other).rsplit_once('/').unwrap().1.parse().unwrap();
    let _kept = bound(SocketAddr::from(([127, 0, 0, 1], port)));
    let one = daemon().env("REGISTRY_P2P_PEERS", &format!("[/dns4/localhost/tcp/{port}]")).start();
    until(&one, |node| node.mesh_peers == 1).await;
    drop(other);
    until(&one, |node| node.mesh_peers == 0).await;
    // Somebody with another key, at the same place.
    let _new = daemon().env("REGISTRY_P2P_LISTEN", &format!("[/ip4/127.0.0.1/tcp/{port}]")).start();
    until(&one, |node| node.mesh_peers == 1).await;
}

#[tokio::test]
async fn a_private_network_is_closed_to_who_has_no_key_or_another_one() {
    let (key, another) = (swarm_key("ab"), swarm_key("cd"));
    let with = |key: &NamedTempFile| daemon().env("REGISTRY_P2P_SWARMKEY", key.path().to_str().unwrap());
    let publisher = with(&key).start();
    let image = Image::small(1);
    publisher.push("library/app", "1", &image).await;
    let reader = with(&key).knows(&publisher).reads(&publisher.ipns).read_only().start();
    reader.serves("library/app", "1", &image).await;
    until(&publisher, |node| node.mesh_peers == 1).await;
    until(&reader, |node| node.mesh_peers == 1).await;

    for stranger in [daemon().knows(&publisher).start(), with(&another).knows(&publisher).start()] {
        stranger.logs("not connected").await;
        assert_eq!(stranger.status().node.peers, 0);
        assert_eq!(publisher.status().node.peers, 1);
    }
}

#[test]
fn a_bad_swarm_key_is_named_and_not_shown() {
    let mut file = NamedTempFile::new().unwrap();
    write!(file, "/key/swarm/psk/1.0.0/\n/base16/\nabab").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_shoal"))
        .arg("serve")
        .env("REGISTRY_P2P_SWARMKEY", file.path())
        .env("REGISTRY_P2P_LISTEN", "[]")
        .env("REGISTRY_HTTP_ADDR", "127.0.0.1:0")
        .env("REGISTRY_HTTP_DEBUG_ADDR", "")
        .env("REGISTRY_STORAGE_IPFS_ROOTDIRECTORY", TempDir::new().unwrap().path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("config key p2p.swarmkey: the third line") && !said.contains("abab"), "{said}");
}

/// A node that the daemon does not trust.
struct Stranger {
    client: NodeClient,
    daemon: Peer,
    _tasks: Tasks,
    _folder: TempDir,
}

impl Stranger {
    async fn of(daemon: &Daemon) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let tasks = Tasks::new();
        let config =
            NodeConfig { bootstrap: vec![daemon.address.parse().unwrap()], ..NodeConfig::alone("stranger") };
        let (client, _) = node::start(&tasks, &store, Keypair::generate_ed25519(), config).await.unwrap();
        let address: Multiaddr = daemon.address.parse().unwrap();
        let Some(Protocol::P2p(peer)) = address.iter().last() else { panic!("{address} has no peer id") };
        Self { client, daemon: Peer::new(&peer.to_base58()), _tasks: tasks, _folder: folder }
    }

    async fn get(&self, path: &str) -> (StatusCode, Bytes) {
        let begun = Instant::now();
        loop {
            match self.client.request(&self.daemon, Request::get(path).body(Bytes::new()).unwrap()).await {
                Ok(answer) => {
                    let status = answer.status();
                    let body: Vec<Bytes> = answer.into_body().try_collect().await.unwrap();
                    return (status, body.concat().into());
                }
                Err(IpfsError::NotConnected(_)) if begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_public_blocks_by_cid_and_blobs_by_digest_and_nothing_else() {
    let (daemon, image) = (daemon().start(), Image::small(1));
    daemon.push("library/app", "1", &image).await;
    let root: Cid = daemon.status().own.unwrap().root.parse().unwrap();
    let stranger = Stranger::of(&daemon).await;

    let (status, bytes) = stranger.get(&format!("/ipfs/{root}?format=raw")).await;
    assert_eq!(status, StatusCode::OK);
    Block::verify(root, bytes).unwrap();
    let (status, archive) = stranger.get(&format!("/ipfs/{root}?format=car&dag-scope=all")).await;
    assert_eq!(status, StatusCode::OK);
    assert!(archive.starts_with(&car::header(&root)));
    let absent = *Block::encode(0x55, Bytes::from_static(b"absent")).cid();
    let (status, _) = stranger.get(&format!("/ipfs/{absent}?format=raw")).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, protocols) = stranger.get("/.well-known/libp2p/protocols").await;
    assert_eq!(
        (status, protocols.as_ref()),
        (StatusCode::OK, br#"{"/ipfs/gateway":{"path":"/"}}"#.as_slice())
    );
    for blob in image.blobs.iter().chain([&image.manifest]) {
        let (status, bytes) = stranger.get(&format!("/v2/any/blobs/{}", Digest::sha256(blob))).await;
        assert_eq!((status, bytes.as_ref()), (StatusCode::OK, blob.as_slice()));
    }
    for (path, expected) in [
        (format!("/v2/any/blobs/{}", Digest::sha256(b"absent")), StatusCode::NOT_FOUND),
        ("/v2/any/blobs/sha256:ab".to_owned(), StatusCode::BAD_REQUEST),
        ("/v2/".to_owned(), StatusCode::NOT_FOUND),
        ("/v2/library/app/manifests/1".to_owned(), StatusCode::NOT_FOUND),
        ("/mesh/anything".to_owned(), StatusCode::NOT_FOUND),
        ("/ipfs/no-cid?format=raw".to_owned(), StatusCode::BAD_REQUEST),
        (format!("/ipfs/{root}"), StatusCode::NOT_ACCEPTABLE),
        (format!("/ipfs/{root}?format=tar"), StatusCode::NOT_ACCEPTABLE),
    ] {
        assert_eq!(stranger.get(&path).await.0, expected, "{path}");
    }
}

/// A node that others dial and trust, whose part a test plays.
struct Played {
    client: NodeClient,
    address: String,
    streams: PeerStreams,
    tasks: Tasks,
    folder: TempDir,
}

impl Played {
    async fn start(agent: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let (tasks, key) = (Tasks::new(), Keypair::generate_ed25519());
        let listen = vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()];
        let config = NodeConfig { listen, ..NodeConfig::alone(agent) };
        let (client, streams) = node::start(&tasks, &store, key, config).await.unwrap();
        let address = client.listen_addresses()[0].to_string();
        Self { client, address, streams, tasks, folder }
    }
}

/// A peer that is trusted, and lies: it says that it holds everything it was told to, and serves other bytes.
struct Liar {
    address: String,
    /// The paths of blobs that it was asked for.
    seen: Arc<Mutex<Vec<String>>>,
    _tasks: Tasks,
    _folder: TempDir,
}

impl Liar {
    /// Each of `holds` is served with `longer` more bytes than it has.
    async fn with(holds: &[&[u8]], longer: usize) -> Self {
        let Played { address, streams, tasks, folder, .. } = Played::start("liar").await;
        let seen = Arc::<Mutex<Vec<String>>>::default();
        let sizes =
            holds.iter().map(|held| (Digest::sha256(held).to_string(), held.len() + longer)).collect();
        let (holdings, log) = (holdings(holds, WHOLE), seen.clone());
        let answers =
            Router::new().fallback(async move |asked: Uri| lie(asked, &sizes, &holdings, &log).await);
        peer::serve(&tasks, streams, answers.clone(), answers);
        Self { address, seen, _tasks: tasks, _folder: folder }
    }

    fn asked(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

/// How much a daemon says that it holds of something, as it is sent.
const WHOLE: u64 = 0b10;
const FETCHING: u64 = 0b11;

/// What a daemon says that holds so much of each of these.
fn holdings(holds: &[&[u8]], held: u64) -> Bytes {
    let mut message = BytesMut::new();
    message.put_slice(&[1, 0]);
    message.put_u64(7);
    message.put_u64(1);
    message.put_u32(u32::try_from(holds.len()).unwrap());
    let mut entries: Vec<u64> = holds
        .iter()
        .map(|blob| {
            let hash: [u8; 8] = Digest::sha256(blob).as_bytes()[..8].try_into().unwrap();
            (u64::from_be_bytes(hash) & !0b11) | held
        })
        .collect();
    entries.sort_unstable();
    entries.into_iter().for_each(|entry| message.put_u64(entry));
    message.freeze()
}

/// The answer to who asks what it holds.
async fn told(asked: &Uri, holdings: &Bytes) -> Response {
    // The first question is answered at once, later ones when there might be news.
    if asked.query().is_some_and(|query| query.contains("epoch=7")) {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    holdings.clone().into_response()
}

async fn lie(
    asked: Uri,
    sizes: &std::collections::HashMap<String, usize>,
    holdings: &Bytes,
    seen: &Mutex<Vec<String>>,
) -> Response {
    let path = asked.path();
    if path == "/mesh/holdings" {
        return told(&asked, holdings).await;
    }
    let Some(size) = path.rsplit_once('/').and_then(|(_, last)| sizes.get(last)) else {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    };
    seen.lock().unwrap().push(path.to_owned());
    vec![b'x'; *size].into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_other_bytes_is_found_out_and_not_asked_again() {
    const REPO: &str = "library/app";
    for longer in [0, 5] {
        let (first, second) = (Image::new(700, &[300_000]), Image::new(701, &[400_000]));
        let upstream = Upstream::with(REPO, "1", &first).await;
        upstream.push(REPO, "2", &second);
        let holds: Vec<&[u8]> = first.blobs.iter().chain(&second.blobs).map(Vec::as_slice).collect();
        let liar = Liar::with(&holds, longer).await;
        let config = format!(
            "{{registries: {{registry.example: {{upstream: \"{}\", prefetch: false}}}}}}",
            upstream.url()
        );
        let daemon = daemon().mirror(&config).peers([liar.address.as_str()]).start();
        daemon.logs("peer said what it holds").await;
        for (tag, image) in [("1", &first), ("2", &second)] {
            let pulled = daemon.pull("registry.example/library/app", tag).await;
            assert_eq!(pulled.as_ref(), Ok(image), "{}", daemon.log());
        }
        assert_eq!(liar.asked().len(), 1, "{:?}\n{}", liar.asked(), daemon.log());
        if longer == 0 {
            daemon.logs("peer sent wrong bytes").await;
        }
        let upstream_gave = upstream.count("GET", "/blobs/");
        assert_eq!(upstream_gave, 4, "all blobs came from elsewhere");
    }
}

/// A daemon of which nothing is real but that its fill follows another's: it gives what it will have by it.
struct Echo {
    client: NodeClient,
    address: String,
    follows: Arc<AtomicBool>,
    _tasks: Tasks,
    _folder: TempDir,
}

impl Echo {
    /// It says that it holds `blob`.
    async fn of(blob: &[u8]) -> Self {
        let Played { client, address, streams, tasks, folder } = Played::start("echo").await;
        let follows = Arc::<AtomicBool>::default();
        let (holdings, is_following, size) = (holdings(&[blob], WHOLE), follows.clone(), blob.len());
        let answers = Router::new().fallback(async move |asked: Uri, headers: HeaderMap| {
            if asked.path() == "/mesh/holdings" {
                return told(&asked, &holdings).await;
            }
            if asked.path() == "/mesh/alive" {
                return StatusCode::OK.into_response();
            }
            if !is_following.load(Ordering::SeqCst) {
                return StatusCode::NOT_FOUND.into_response();
            }
            let from = headers.get("range").map_or("0", |range| {
                range.to_str().unwrap().trim_start_matches("bytes=").trim_end_matches('-')
            });
            // Nothing comes before the other has it.
            let body = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
            let range = format!("bytes {from}-{}/{size}", size - 1);
            (StatusCode::PARTIAL_CONTENT, [("content-range", range)], body).into_response()
        });
        peer::serve(&tasks, streams, answers.clone(), answers);
        Self { client, address, follows, _tasks: tasks, _folder: folder }
    }

    /// Follows the fill of `daemon`, for as long as what is returned lives.
    async fn follow(&self, daemon: &Daemon, path: &str) -> PeerBody {
        let peer = Peer::new(daemon.address.rsplit_once('/').unwrap().1);
        let request = Request::get(path).header("shoal-hop", "held").body(Bytes::new()).unwrap();
        let answer = self.client.request(&peer, request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{}", daemon.log());
        let held_bytes: u64 = answer.headers()["shoal-held"].to_str().unwrap().parse().unwrap();
        assert!(held_bytes <= 1 << 20, "{held_bytes}");
        let mut body = answer.into_body();
        body.try_next().await.unwrap().expect("some of it is there");
        self.follows.store(true, Ordering::SeqCst);
        body
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_two_fills_wait_for_each_other() {
    let image = Image::new(720, &[3 << 20]);
    let layer = &image.blobs[1];
    let path = format!("registry.example/library/app/blobs/{}", Digest::sha256(layer));
    let mut upstream = Upstream::with("library/app", "1", &image).await;
    upstream.fails(Rule::on("/blobs/", Fault::HoldAfter(1 << 20)).times(1));
    let echo = Echo::of(layer).await;
    let config = format!("{{registries: {{registry.example: {{upstream: \"{}\"}}}}}}", upstream.url());
    let daemon = daemon().mirror(&config).peers([echo.address.as_str()]).start();
    daemon.logs("peer said what it holds").await;

    let pull = async { daemon.get(&path).await.bytes().await.unwrap() };
    let break_off = async {
        has_bytes(&daemon).await;
        let _following = echo.follow(&daemon, &format!("/v2/{path}")).await;
        upstream.stop().await;
        upstream.restart();
        // It is not even begun to be read: a peer that sends nothing would be found out only after some time.
        daemon.logs("peer has the blob by way of ourselves").await;
        upstream.is_asked("GET", "/blobs/", 2).await;
    };
    let (pulled, ()) = tokio::join!(pull, break_off);
    assert!(pulled == *layer);
    assert!(!daemon.log().contains("another takes over"), "{}", daemon.log());
}

/// A peer that is trusted and fetches a blob: it gives ten MiB of it at once and goes on slowly.
struct Halfway {
    address: String,
    _tasks: Tasks,
    _folder: TempDir,
}

impl Halfway {
    /// It says that it had so much of `blob`.
    async fn with(blob: &[u8], held_bytes: u64) -> Self {
        let Played { address, streams, tasks, folder, .. } = Played::start("halfway").await;
        let (holdings, blob) = (holdings(&[blob], FETCHING), Bytes::copy_from_slice(blob));
        let answers = Router::new().fallback(async move |asked: Uri| {
            match asked.path() {
                "/mesh/holdings" => return told(&asked, &holdings).await,
                "/mesh/alive" => return StatusCode::OK.into_response(),
                _ => (),
            }
            let (first, rest) = blob.split_at(10 << 20);
            let first = stream::iter([Bytes::copy_from_slice(first)]);
            // So slowly that the beginning came much faster on any machine.
            let rest: Vec<Bytes> = rest.chunks(16 << 10).map(Bytes::copy_from_slice).collect();
            let slowly = stream::iter(rest).then(async |chunk| {
                tokio::time::sleep(Duration::from_millis(125)).await;
                chunk
            });
            let range = format!("bytes 0-{}/{}", blob.len() - 1, blob.len());
            let headers = [("content-range", range), ("shoal-held", held_bytes.to_string())];
            let body = Body::from_stream(first.chain(slowly).map(Ok::<_, std::io::Error>));
            (StatusCode::PARTIAL_CONTENT, headers, body).into_response()
        });
        peer::serve(&tasks, streams, answers.clone(), answers);
        Self { address, _tasks: tasks, _folder: folder }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_held_to_what_it_got_itself_and_not_to_what_it_had() {
    let image = Image::new(730, &[11 << 20]);
    let layer = &image.blobs[1];
    let is_left = async |held_bytes: u64| {
        let upstream = Upstream::with("library/app", "1", &image).await;
        let halfway = Halfway::with(layer, held_bytes).await;
        let config = format!("{{registries: {{registry.example: {{upstream: \"{}\"}}}}}}", upstream.url());
        let daemon = daemon().mirror(&config).peers([halfway.address.as_str()]).start();
        daemon.logs("peer said what it holds").await;
        let path = format!("registry.example/library/app/blobs/{}", Digest::sha256(layer));
        let pulled = daemon.get(&path).await.bytes().await.unwrap();
        assert!(pulled == *layer, "{}", daemon.log());
        let is_left = daemon.log().contains("peer is too slow");
        assert_eq!(upstream.count("GET", "/blobs/"), usize::from(is_left), "{}", daemon.log());
        is_left
    };
    assert_eq!(tokio::join!(is_left(10 << 20), is_left(0)), (false, true));
}
