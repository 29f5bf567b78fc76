//! Daemons that never heard of each other's names help each other all the same: a blob is found by its OCI digest, where its
//! registry gives no answer.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::Uri;
use axum::response::IntoResponse;
use common::upstream::{Access, Upstream};
use common::{Daemon, Image, PATIENCE, daemon};
use futures::StreamExt;
use libp2p::identity::Keypair;
use reqwest::{Response, StatusCode};
use shoal::http::peer;
use shoal::ipfs::{Ipfs, Peer, PeerStreams};
use shoal::node::{self, NodeClient, NodeConfig};
use shoal::oci::Digest;
use shoal::store::{Store, StoreOptions};
use shoal::tasks::Tasks;
use tempfile::TempDir;

const REGISTRY: &str = "registry.example";
const REPO: &str = "library/app";
/// Where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";
/// What a reader logs when it has announced all of a name.
const FOLLOWED: &str = "blobs of a name are announced by their digests";

/// The path below `/v2/library/app/` of each part of an image, and what it is.
fn parts(image: &Image) -> Vec<(String, &[u8])> {
    let blobs = image.blobs.iter().map(|blob| (format!("blobs/{}", Digest::sha256(blob)), blob.as_slice()));
    let manifest = (format!("manifests/{}", Digest::sha256(&image.manifest)), image.manifest.as_slice());
    std::iter::once(manifest).chain(blobs).collect()
}

/// A mirror of a registry that is not there, which knows nobody's name and can ask `other`.
async fn mirror_of_the_dead(other: &Daemon, more: &str) -> Daemon {
    mirror_of(NOBODY, other, more).await
}

async fn mirror_of(upstream: &str, other: &Daemon, more: &str) -> Daemon {
    let config = format!("{{registries: {{{REGISTRY}: {{upstream: \"{upstream}\", {more}}}}}}}");
    let mirror = daemon().mirror(&config).knows(other).start();
    // That nobody was found is remembered for half a minute.
    mirror.logs("takes part in a DHT").await;
    mirror
}

async fn ask(mirror: &Daemon, below: &str) -> Response {
    mirror.get(&format!("{REPO}/{below}?ns={REGISTRY}")).await
}

fn source(response: &Response) -> String {
    response.headers()["x-shoal-source"].to_str().unwrap().to_owned()
}

/// A daemon that knows `other` and has published an image, and the image.
async fn publisher(other: &Daemon, seed: u64) -> (Daemon, Image) {
    let publisher = daemon().knows(other).start();
    let image = Image::new(seed, &[3_000_000, 1000]);
    publisher.push(REPO, "1", &image).await;
    is_found(other, &peer_of(&publisher), &digests(&image)).await;
    (publisher, image)
}

fn digests(image: &Image) -> Vec<Digest> {
    image.blobs.iter().chain([&image.manifest]).map(|bytes| Digest::sha256(bytes)).collect()
}

fn peer_of(daemon: &Daemon) -> Peer {
    Peer::new(daemon.address.rsplit('/').next().unwrap())
}

/// A node that knows `other`; it ends with what is returned.
async fn node(agent: &str, other: &Daemon) -> (NodeClient, PeerStreams, Tasks, TempDir) {
    let (folder, tasks) = (TempDir::new().unwrap(), Tasks::new());
    let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
    let config = NodeConfig {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        bootstrap: vec![other.address.parse().unwrap()],
        ..NodeConfig::alone(agent)
    };
    let (client, streams) = node::start(&tasks, &store, Keypair::generate_ed25519(), config).await.unwrap();
    (client, streams, tasks, folder)
}

/// Waits until whoever knows `other` and looks for these finds `holder`: that all is on its way to be announced says nothing
/// of when it is.
async fn is_found(other: &Daemon, holder: &Peer, digests: &[Digest]) {
    let (client, _streams, tasks, _folder) = node("seeker", other).await;
    for digest in digests {
        let begun = Instant::now();
        while !client.find_digest(&digest.multihash()).any(|found| ready(found == *holder)).await {
            assert!(begun.elapsed() < PATIENCE, "{digest} is not found at {holder}\n{}", other.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    tasks.shutdown(PATIENCE).await;
}

/// How often the log has `text`.
fn count(daemon: &Daemon, text: &str) -> usize {
    daemon.log().matches(text).count()
}

/// Waits until the log, which goes on after a restart, has `text` once more than `before`.
async fn says_again(daemon: &Daemon, text: &str, before: usize) {
    let begun = Instant::now();
    while count(daemon, text) <= before {
        assert!(begun.elapsed() < PATIENCE, "{text:?} is not logged again\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether all parts of an image come from `peer`.
async fn comes_from(mirror: &Daemon, image: &Image, peer: &Daemon) {
    for (path, bytes) in parts(image) {
        let response = ask(mirror, &path).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}\n{}", mirror.log());
        assert_eq!(source(&response), format!("peer={}", peer.status().node.peer_id), "{path}");
        assert_eq!(response.bytes().await.unwrap(), bytes, "{path}");
    }
}

#[tokio::test]
async fn an_image_of_a_dead_registry_comes_from_whoever_announces_it() {
    let third = daemon().start();
    let (publisher, image) = publisher(&third, 8000).await;
    let mirror = mirror_of_the_dead(&third, "prefetch: false").await;
    comes_from(&mirror, &image, &publisher).await;

    // All of it is announced anew after a start: nobody is left who was told before.
    drop((mirror, third));
    let before = count(&publisher, "own tree announced");
    let publisher = publisher.kill_and_restart();
    says_again(&publisher, "own tree announced", before).await;
    let another = mirror_of_the_dead(&publisher, "prefetch: false").await;
    comes_from(&another, &image, &publisher).await;
}

#[tokio::test]
async fn a_reader_that_holds_every_blob_is_found_when_the_author_is_gone() {
    let third = daemon().start();
    let (author, image) = publisher(&third, 8010).await;
    let reader = daemon()
        .knows(&third)
        .reads(&author.ipns)
        .read_only()
        .env("REGISTRY_STORAGE_IPFS_FOLLOW", "all")
        .start();
    is_found(&third, &peer_of(&reader), &digests(&image)).await;
    author.kill();
    let mirror = mirror_of_the_dead(&third, "prefetch: false").await;
    comes_from(&mirror, &image, &reader).await;
}

#[tokio::test]
async fn a_reader_that_held_every_blob_before_a_restart_announces_them_again() {
    let third = daemon().start();
    let (author, image) = publisher(&third, 8050).await;
    let reader = daemon().knows(&third).reads(&author.ipns).read_only();
    let reader = reader.env("REGISTRY_STORAGE_IPFS_FOLLOW", "all").start();
    reader.logs(FOLLOWED).await;
    drop((author, third));

    let before = count(&reader, FOLLOWED);
    let reader = reader.kill_and_restart();
    says_again(&reader, FOLLOWED, before).await;
    // Nobody else is left who was told before.
    let mirror = mirror_of_the_dead(&reader, "prefetch: false").await;
    comes_from(&mirror, &image, &reader).await;
}

#[tokio::test]
async fn what_may_not_be_for_everybody_is_asked_of_nobody_else() {
    let third = daemon().start();
    let (_publisher, image) = publisher(&third, 8020).await;
    for more in ["username: user, password: secret", "share: no"] {
        let mirror = mirror_of_the_dead(&third, more).await;
        for (path, _) in parts(&image) {
            let response = ask(&mirror, &path).await;
            assert!(!response.status().is_success(), "{path} with {more}\n{}", mirror.log());
        }
    }
}

#[tokio::test]
async fn a_refusal_of_the_registry_is_not_gone_around() {
    let third = daemon().start();
    let (_publisher, image) = publisher(&third, 8030).await;
    let upstream = Upstream::start().await;
    let mirror = mirror_of(&upstream.url(), &third, "").await;
    for access in [None, Some(Access::Basic("user", "secret"))] {
        if let Some(access) = access {
            upstream.admits(access);
        }
        for (path, _) in parts(&image) {
            let response = ask(&mirror, &path).await;
            assert!(!response.status().is_success(), "{path}\n{}", mirror.log());
        }
    }
}

/// A node that announces a blob and serves other bytes of the same length. Returns the requests that it got.
async fn liar(other: &Daemon, blob: &[u8]) -> (Tasks, TempDir, Arc<Mutex<Vec<String>>>) {
    let (client, streams, tasks, folder) = node("liar", other).await;
    let (seen, size) = (Arc::<Mutex<Vec<String>>>::default(), blob.len());
    let log = seen.clone();
    let answers = Router::new().fallback(async move |asked: Uri| {
        log.lock().unwrap().push(asked.path().to_owned());
        vec![b'x'; size].into_response()
    });
    peer::serve(&tasks, streams, answers.clone(), answers);
    let digest = Digest::sha256(blob);
    client.provide_digests(&[digest.multihash()]).await.unwrap();
    is_found(other, &Peer::new(&client.peer_id().to_base58()), &[digest]).await;
    (tasks, folder, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_announces_a_blob_and_gives_other_bytes_is_found_out_and_not_asked_again() {
    let third = daemon().start();
    let image = Image::new(8040, &[2_000_000]);
    let (_tasks, _folder, seen) = liar(&third, &image.blobs[1]).await;
    let mirror = mirror_of_the_dead(&third, "").await;
    let path = format!("blobs/{}", Digest::sha256(&image.blobs[1]));
    for _ in 0..2 {
        let response = ask(&mirror, &path).await;
        let came = if response.status().is_success() { response.bytes().await.ok() } else { None };
        assert!(came.is_none(), "wrong bytes reached a client\n{}", mirror.log());
    }
    mirror.logs("peer sent wrong bytes").await;
    assert_eq!(*seen.lock().unwrap(), [format!("/v2/any/{path}")], "{}", mirror.log());
}
