//! What the mirror of other registries promises its clients, from the outside: the real binary before a registry that
//! counts what it is asked and fails as it is told to.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod cache;
#[path = "../common/mod.rs"]
mod common;
mod faults;
mod lists;
mod names;
mod one_source;
#[path = "../hostile/peer.rs"]
#[allow(dead_code, reason = "the tests of hostile peers use the rest")]
mod peer;
mod privacy;
mod streaming;
mod tags;

use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::Response;
use serde_json::Value;
use shoal::oci::Digest;

use common::upstream::Upstream;
use common::{Daemon, PATIENCE, Setup, daemon};

/// The registry that is mirrored, as clients name it; nobody can dial it.
const REGISTRY: &str = "registry.example";
const REPO: &str = "library/app";
/// The same repository in the path of a client that sends no `ns`.
const PREFIXED: &str = "registry.example/library/app";

/// A mirror of `upstream`, with more keys for it such as `tagttl: 0s`.
fn mirror_of(upstream: &Upstream, more: &str) -> Setup {
    daemon().mirror(&format!("{{registries: {{{REGISTRY}: {{upstream: \"{}\", {more}}}}}}}", upstream.url()))
}

/// Asks as containerd does.
async fn ask(mirror: &Daemon, below: &str) -> Response {
    mirror.get(&format!("{REPO}/{below}?ns={REGISTRY}")).await
}

/// Asks as 24 do who come a millisecond after each other: some of them just as what the first began comes to its end.
async fn ask_in_turn(mirror: &Daemon, below: &str, expected: &[u8]) {
    let clients = (0..24).map(async |n| {
        tokio::time::sleep(Duration::from_millis(n)).await;
        assert!(ask(mirror, below).await.bytes().await.unwrap() == expected, "{below}");
    });
    join_all(clients).await;
}

/// Asks as containerd does for a part of a blob.
async fn ask_range(mirror: &Daemon, digest: &Digest, range: &str) -> Response {
    let url = mirror.url(&format!("{REPO}/blobs/{digest}?ns={REGISTRY}"));
    mirror.client.get(url).header("range", range).send().await.unwrap()
}

/// Reads so much of a body, and whatever came with it.
async fn read_at_least(response: &mut Response, bytes: usize) -> Vec<u8> {
    let mut read = Vec::new();
    let reading = async {
        while read.len() < bytes {
            read.extend(response.chunk().await.unwrap().expect("the body is longer"));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the bytes come");
    read
}

/// Waits until the blob is in the cache whole.
async fn is_cached(mirror: &Daemon, digest: &Digest) {
    let begun = Instant::now();
    while mirror.status().fills.iter().any(|fill| fill.digest == digest.to_string())
        || header(&ask_range(mirror, digest, "bytes=0-0").await, "x-shoal-source") != "cache"
    {
        assert!(begun.elapsed() < PATIENCE, "{digest} is not cached\n{}", mirror.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Empty if there is no such header.
fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

/// Code and detail of the first error in a body.
async fn error(response: Response) -> (String, String) {
    let body: Value = response.json().await.unwrap();
    let text = |key: &str| body["errors"][0][key].as_str().unwrap_or_default().to_owned();
    (text("code"), text("detail"))
}
