//! One suite for whatever is the network behind the seam: the embedded node, a scripted fake, a Kubo by its RPC API, and a
//! double of that API; then what only the double can be made to do; and daemons that have a Kubo for their network.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "../common/mod.rs"]
mod common;

mod attached;
mod double;
mod fake;
mod faults;
mod kubo;
mod ways_in;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::PATIENCE;
use double::Double;
use hyper::Request;
use jiff::Timestamp;
use kubo::{Kubo, Release};
use libp2p::identity::Keypair;
use shoal::ipfs::{Ipfs, IpfsError, Peer, Want};
use shoal::ipld::Block;
use shoal::ipld::block::RAW;
use shoal::ipld::ipns::{IpnsName, IpnsRecord};
use shoal::kubo::KuboClient;
use shoal::node::{self, NodeConfig};
use shoal::store::{Store, StoreOptions};
use shoal::tasks::Tasks;
use tempfile::TempDir;

/// A network as it is seen through the seam, with somebody on it who has `far`.
pub struct Subject {
    pub ipfs: Arc<dyn Ipfs>,
    pub far: Block,
    /// What lives as long as the test.
    _rest: Box<dyn std::any::Any>,
}

pub fn leaf(text: &'static str) -> Block {
    Block::encode(RAW, Bytes::from_static(text.as_bytes()))
}

pub fn store(folder: &TempDir) -> Store {
    Store::open(folder.path(), StoreOptions::default()).unwrap()
}

fn signed(key: &Keypair, root: &Block, sequence: u64) -> IpnsRecord {
    let until = Timestamp::now() + Duration::from_secs(3600);
    IpnsRecord::sign(key, root.cid(), sequence, until, Duration::from_secs(60)).unwrap()
}

/// What the trait promises.
async fn conforms(subject: &Subject) {
    let Subject { ipfs, far, .. } = subject;
    let want = Want { cid: *far.cid(), root: *far.cid() };
    let begun = Instant::now();
    let fetched = loop {
        match ipfs.fetch(want).await {
            // Connections are being made.
            Err(error) if error.is_nobody_there() && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            fetched => break fetched,
        }
    };
    assert_eq!(fetched.unwrap(), *far);
    let empty = leaf("");
    let want = Want { cid: *empty.cid(), root: *far.cid() };
    assert_eq!(ipfs.fetch(want).await.unwrap(), empty, "no bytes need nobody");

    let key = Keypair::generate_ed25519();
    let name = IpnsName::from_peer_id(key.public().to_peer_id());
    let unknown = ipfs.resolve(&name).await;
    assert!(matches!(unknown, Err(IpfsError::NoRecord(_))), "{unknown:?}");
    let (first, second) = (signed(&key, &leaf("one"), 1), signed(&key, &leaf("two"), 2));
    ipfs.publish(&second).await.unwrap();
    assert_eq!(ipfs.resolve(&name).await.unwrap().bytes(), second.bytes());
    // An older one is refused or comes to nothing.
    let _ = ipfs.publish(&first).await;
    assert_eq!(ipfs.resolve(&name).await.unwrap().bytes(), second.bytes());

    ipfs.provide(&[*far.cid()]).await.unwrap();
    let stranger = Peer::new("12D3KooWSahP5pFRCEfaziPEba7urXtpZyzUCdLJNdXfsg3vRfyb");
    let asked = ipfs.request(&stranger, Request::get("/").body(Bytes::new()).unwrap()).await;
    assert!(matches!(asked, Err(IpfsError::NotConnected(_))), "{:?}", asked.err());
    assert!(ipfs.mesh().borrow().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_node_conforms() {
    let tasks = Tasks::new();
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let stores = [store(&folders[0]), store(&folders[1])];
    let config = |listen: &[&str], bootstrap: Vec<libp2p::Multiaddr>| NodeConfig {
        listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
        bootstrap,
        ..NodeConfig::alone("shoal/test")
    };
    let far = leaf("far away");
    stores[0].blocks().put(far.cid().hash(), &[far.bytes().clone()]).unwrap();
    let listening = config(&["/ip4/127.0.0.1/tcp/0"], Vec::new());
    let (other, streams) =
        node::start(&tasks, &stores[0], Keypair::generate_ed25519(), listening).await.unwrap();
    let dialling = config(&["/ip4/127.0.0.1/tcp/0"], other.listen_addresses());
    let (node, more) = node::start(&tasks, &stores[1], Keypair::generate_ed25519(), dialling).await.unwrap();
    let rest = Box::new((folders, streams, more, other));
    conforms(&Subject { ipfs: Arc::new(node), far, _rest: rest }).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_scripted_fake_conforms() {
    let far = leaf("far away");
    let fake = fake::Fake::with(&far);
    conforms(&Subject { ipfs: Arc::new(fake), far, _rest: Box::new(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_double_of_kubos_api_conforms() {
    let (double, folder, tasks) = (Double::start().await, TempDir::new().unwrap(), Tasks::new());
    let far = leaf("far away");
    double.inside().blocks.insert(*far.cid(), far.bytes().clone());
    let (kubo, _) = KuboClient::start(&tasks, &store(&folder), double.config()).await.unwrap();
    conforms(&Subject { ipfs: Arc::new(kubo), far, _rest: Box::new((double, folder)) }).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

/// A real one, with another that has what is far away.
async fn kubo_conforms(release: Release) {
    let Some((kubo, other)) = Kubo::pair_with(release, &[]) else { return };
    let far = leaf("far away");
    other.put(&far);
    let (folder, tasks) = (TempDir::new().unwrap(), Tasks::new());
    let (client, keys) = KuboClient::start(&tasks, &store(&folder), kubo.config()).await.unwrap();
    assert!(keys.unwrap().find("self").is_some());
    conforms(&Subject { ipfs: Arc::new(client), far, _rest: Box::new((kubo, other, folder)) }).await;
    tasks.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_kubo_conforms() {
    kubo_conforms(Release::Newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_kubo_conforms() {
    kubo_conforms(Release::Oldest).await;
}
