//! What stays of what was pulled through, for how long, and what goes first.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use shoal::api::{CachedImage, SOCKET};
use shoal::oci::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::common::upstream::Upstream;
use crate::common::{Daemon, Image, PATIENCE};
use crate::{PREFIXED, REPO, is_cached, mirror_of};

/// Asks the control socket; the body of what must be a success.
async fn control(mirror: &Daemon, method: &str, target: &str) -> Value {
    let mut socket = UnixStream::connect(mirror.data().join(SOCKET)).await.unwrap();
    let request = format!("{method} {target} HTTP/1.1\r\nhost: shoal\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{method} {target}: {answer}");
    serde_json::from_str(body).unwrap()
}

async fn images(mirror: &Daemon) -> Vec<CachedImage> {
    serde_json::from_value(control(mirror, "GET", "/v0/cache").await).unwrap()
}

async fn change(mirror: &Daemon, what: &str, tag: &str) -> bool {
    let changed = control(mirror, "POST", &format!("/v0/cache/{what}?image={PREFIXED}:{tag}")).await;
    changed["changed"].as_bool().unwrap()
}

/// Waits until the cache has these tags, and no others.
async fn has(mirror: &Daemon, tags: &[&str]) {
    let begun = Instant::now();
    loop {
        let mut found: Vec<String> = images(mirror).await.into_iter().flat_map(|image| image.tags).collect();
        found.sort();
        if found == tags {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "the cache has {found:?}, not {tags:?}\n{}", mirror.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Uses are told apart by the second.
async fn next_second() {
    let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = now_s();
    while now_s() == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Of the quota, which is the least that is allowed, two images take less than what is left after an eviction.
const QUOTA: &str = "64MiB";
const IMAGE_BYTES: usize = 26_000_000;

/// Images under the tags 1, 2, …
async fn scene(seed: u64, count: usize, quota: &str) -> (Upstream, Daemon, Vec<Image>) {
    let upstream = Upstream::start().await;
    let images: Vec<Image> = (0..count as u64).map(|n| Image::new(seed + n, &[IMAGE_BYTES])).collect();
    for (n, image) in images.iter().enumerate() {
        upstream.push(REPO, &(n + 1).to_string(), image);
    }
    let mirror = mirror_of(&upstream, "tagttl: 1h").env("REGISTRY_STORAGE_IPFS_QUOTA", quota).start();
    (upstream, mirror, images)
}

async fn pull(mirror: &Daemon, tag: &str, image: &Image) {
    assert_eq!(&mirror.pull(PREFIXED, tag).await.unwrap(), image);
    // The commit of its last blob may come after its last byte.
    for blob in &image.blobs {
        is_cached(mirror, &Digest::sha256(blob)).await;
    }
}

#[tokio::test]
async fn above_the_quota_the_image_goes_that_was_not_used_for_longest() {
    let (_upstream, mirror, all) = scene(400, 3, QUOTA).await;
    pull(&mirror, "1", &all[0]).await;
    next_second().await;
    pull(&mirror, "2", &all[1]).await;
    next_second().await;
    pull(&mirror, "1", &all[0]).await;
    next_second().await;
    pull(&mirror, "3", &all[2]).await;
    has(&mirror, &["1", "3"]).await;
    let begun = Instant::now();
    // What was evicted gives its space back.
    while control(&mirror, "GET", "/v0/cache").await.as_array().unwrap().len() != 2 {
        assert!(begun.elapsed() < PATIENCE);
    }
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), all[0]);
    assert_eq!(mirror.pull(PREFIXED, "2").await.unwrap(), all[1], "it can be had again");
}

#[tokio::test]
async fn a_pinned_image_stays_and_outlives_a_restart() {
    let (_upstream, mirror, all) = scene(410, 3, QUOTA).await;
    pull(&mirror, "1", &all[0]).await;
    assert!(change(&mirror, "pin", "1").await);
    let mirror = mirror.kill_and_restart();
    next_second().await;
    pull(&mirror, "2", &all[1]).await;
    next_second().await;
    pull(&mirror, "3", &all[2]).await;
    has(&mirror, &["1", "3"]).await;
    assert!(change(&mirror, "unpin", "1").await);
    assert!(!change(&mirror, "unpin", "1").await);
}

#[tokio::test]
async fn an_image_that_was_evicted_leaves_what_another_one_needs() {
    let (mut upstream, mirror, _) = scene(420, 0, "").await;
    let one = Image::new(421, &[1_000_000, 2_000_000]);
    let mut other = Image::new(422, &[500_000]);
    let manifest = String::from_utf8(other.manifest.clone()).unwrap();
    // The other image has the last layer of the first one in the place of its own.
    let (shared, own) = (one.blobs[2].clone(), other.blobs[1].clone());
    let manifest = manifest
        .replace(&Digest::sha256(&own).to_string(), &Digest::sha256(&shared).to_string())
        .replace("500000", "2000000");
    other.blobs[1] = shared;
    other.manifest = manifest.into_bytes();
    upstream.push(REPO, "one", &one);
    upstream.push(REPO, "other", &other);
    pull(&mirror, "one", &one).await;
    pull(&mirror, "other", &other).await;
    assert!(change(&mirror, "evict", "one").await);
    has(&mirror, &["other"]).await;
    upstream.stop().await;
    assert_eq!(mirror.pull(PREFIXED, "other").await.unwrap(), other);
    assert!(mirror.pull(PREFIXED, "one").await.is_err());
}

#[tokio::test]
async fn an_image_that_was_prefetched_is_pulled_without_upstream() {
    let (mut upstream, mirror, all) = scene(430, 1, "").await;
    assert!(change(&mirror, "prefetch", "1").await);
    upstream.stop().await;
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), all[0]);
}

#[tokio::test]
async fn the_blobs_of_an_image_come_before_they_are_asked_for() {
    let (mut upstream, mirror, all) = scene(440, 1, "").await;
    let manifest = mirror.get(&format!("{PREFIXED}/manifests/1")).await;
    assert_eq!(manifest.bytes().await.unwrap(), all[0].manifest);
    upstream.is_asked("GET", "/blobs/", 2).await;
    let begun = Instant::now();
    while images(&mirror).await.iter().any(|image| image.missing_blobs > 0) {
        assert!(begun.elapsed() < PATIENCE, "not prefetched\n{}", mirror.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    upstream.stop().await;
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), all[0]);
}
