//! How old a tag may be, and what is served while upstream does not answer.

use std::time::{Duration, Instant};

use futures::future::join_all;
use reqwest::{Response, StatusCode};
use shoal::oci::Digest;

use crate::common::upstream::{Fault, Rule, Upstream};
use crate::common::{Daemon, Image, PATIENCE};
use crate::{REPO, ask, ask_in_turn, header, is_cached, mirror_of};

async fn scene(seed: u64, more: &str) -> (Upstream, Daemon, Image) {
    let image = Image::new(seed, &[1000]);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let mirror = mirror_of(&upstream, more).start();
    let answer = ask(&mirror, "manifests/1").await;
    assert_eq!(answer.bytes().await.unwrap(), image.manifest);
    (upstream, mirror, image)
}

#[tokio::test]
async fn within_its_time_to_live_a_tag_is_not_asked_for_again() {
    let (upstream, mirror, image) = scene(200, "tagttl: 1h").await;
    upstream.forget();
    upstream.push(REPO, "1", &Image::new(201, &[1000]));
    for _ in 0..3 {
        let answer = ask(&mirror, "manifests/1").await;
        assert!(header(&answer, "age").parse::<u64>().is_ok(), "no age");
        assert_eq!(answer.bytes().await.unwrap(), image.manifest);
    }
    let asked = upstream.count("HEAD", "/manifests/") + upstream.count("GET", "/manifests/");
    assert_eq!(asked, 0, "{:?}", upstream.seen());
}

#[tokio::test]
async fn times_to_live_are_given_by_pattern() {
    let image = Image::new(202, &[1000]);
    let upstream = Upstream::with(REPO, "latest", &image).await;
    upstream.push(REPO, "v1", &image);
    // Nothing older is served, so that each answer waits for upstream.
    let keys = "tagttl: {\"*:latest\": 0s, \"v*\": 24h}, stalefor: 0s";
    let mirror = mirror_of(&upstream, keys).start();
    for tag in ["latest", "v1", "latest", "v1"] {
        assert_eq!(ask(&mirror, &format!("manifests/{tag}")).await.status(), StatusCode::OK);
    }
    assert_eq!(upstream.count("HEAD", "/manifests/latest"), 2);
    assert_eq!(upstream.count("HEAD", "/manifests/v1"), 1);
}

/// Asks until upstream has confirmed the tag: what it was before is served where that takes longer than a client is to wait.
async fn is_confirmed(mirror: &Daemon, what: &str, is: impl AsyncFn(Response) -> bool) {
    let begun = Instant::now();
    while !is(ask(mirror, "manifests/1").await).await {
        assert!(begun.elapsed() < PATIENCE, "{what}: upstream does not confirm it\n{}", mirror.log());
    }
}

#[tokio::test]
async fn a_tag_that_moved_is_seen_after_its_time_to_live() {
    let (upstream, mirror, before) = scene(203, "tagttl: 0s").await;
    let after = Image::new(204, &[1000]);
    upstream.push(REPO, "1", &after);
    is_confirmed(&mirror, "the tag that moved", async |answer| {
        let is_stale = !header(&answer, "warning").is_empty();
        let manifest = answer.bytes().await.unwrap();
        assert_eq!(manifest, if is_stale { &before.manifest[..] } else { &after.manifest[..] });
        !is_stale
    })
    .await;
    let answer = ask(&mirror, &format!("manifests/{}", Digest::sha256(&before.manifest))).await;
    assert_eq!(header(&answer, "x-shoal-source"), "cache");
    assert_eq!(answer.bytes().await.unwrap(), before.manifest);
}

#[tokio::test]
async fn all_who_wait_for_a_tag_cost_one_request() {
    let (upstream, mirror, image) = scene(205, "tagttl: 0s").await;
    upstream.forget();
    upstream.fails(Rule::on("/manifests/", Fault::HoldHeader));
    let answers = join_all((0..16).map(|_| ask(&mirror, "manifests/1"))).await;
    for answer in answers {
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(!header(&answer, "warning").is_empty(), "upstream has not confirmed it");
        assert_eq!(answer.bytes().await.unwrap(), image.manifest);
    }
    assert_eq!(upstream.count("HEAD", "/manifests/1"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_while_a_manifest_is_fetched_costs_no_second_request() {
    let upstream = Upstream::start().await;
    let mirror = mirror_of(&upstream, "tagttl: 1h").start();
    for n in 0..50 {
        let (tag, image) = (format!("t{n}"), Image::new(2000 + n, &[1000]));
        upstream.push(REPO, &tag, &image);
        let below = format!("manifests/{tag}");
        ask_in_turn(&mirror, &below, &image.manifest).await;
        let asked = (upstream.count("HEAD", &below), upstream.count("GET", "/manifests/"));
        assert_eq!(asked, (1, 1), "{tag}: {:?}", upstream.seen());
        upstream.forget();

        let next = Image::new(3000 + n, &[1000]);
        upstream.push(REPO, &tag, &next);
        let below = format!("manifests/{}", Digest::sha256(&next.manifest));
        ask_in_turn(&mirror, &below, &next.manifest).await;
        assert_eq!(upstream.count("GET", &below), 1, "{tag}: {:?}", upstream.seen());
        upstream.forget();
    }
}

#[tokio::test]
async fn a_tag_is_served_as_it_last_was_while_upstream_does_not_answer() {
    let failing: [(u64, Rule); 5] = [
        (210, Rule::on("", Fault::Status(429, "retry-after: 3600"))),
        (211, Rule::on("", Fault::Status(503, ""))),
        (212, Rule::on("", Fault::Status(401, ""))),
        (213, Rule::on("", Fault::HoldHeader)),
        (214, Rule::on("", Fault::Reset)),
    ];
    for (seed, rule) in failing {
        let (upstream, mirror, image) = scene(seed, "tagttl: 0s").await;
        let what = format!("{rule:?}");
        upstream.fails(rule);
        is_stale(&mirror, &image, &what).await;
        upstream.heals();
    }
    let (mut upstream, mirror, image) = scene(215, "tagttl: 0s").await;
    upstream.stop().await;
    is_stale(&mirror, &image, "down").await;
}

async fn is_stale(mirror: &Daemon, image: &Image, what: &str) {
    let answer = ask(mirror, "manifests/1").await;
    assert_eq!(answer.status(), StatusCode::OK, "{what}");
    assert!(header(&answer, "age").parse::<u64>().is_ok(), "{what}: no age");
    assert!(header(&answer, "warning").starts_with("110 "), "{what}");
    assert_eq!(header(&answer, "x-shoal-source"), "cache", "{what}");
    assert_eq!(answer.bytes().await.unwrap(), image.manifest, "{what}");
    mirror.logs("served as it last was").await;
}

#[tokio::test]
async fn a_mirror_that_comes_back_serves_what_it_had_while_upstream_is_down() {
    let (mut upstream, mirror, image) = scene(220, "tagttl: 0s").await;
    is_cached(&mirror, &Digest::sha256(&image.blobs[1])).await;
    upstream.stop().await;
    let mirror = mirror.kill_and_restart();
    is_stale(&mirror, &image, "restarted").await;
    upstream.restart();
    let moved = Image::new(221, &[1000]);
    upstream.push(REPO, "1", &moved);
    let begun = Instant::now();
    while ask(&mirror, "manifests/1").await.bytes().await.unwrap() != moved.manifest {
        assert!(begun.elapsed() < PATIENCE, "upstream is back, and not asked");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_tag_that_is_too_old_is_not_served() {
    let (mut upstream, mirror, _) = scene(222, "tagttl: 0s, stalefor: 0s").await;
    upstream.stop().await;
    assert_eq!(ask(&mirror, "manifests/1").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_tag_that_upstream_has_deleted_is_gone_here() {
    let (upstream, mirror, _) = scene(223, "tagttl: 0s").await;
    upstream.delete_tag(REPO, "1");
    is_confirmed(&mirror, "the tag that is gone", async |answer| {
        let is_stale = !header(&answer, "warning").is_empty();
        assert_eq!(answer.status(), if is_stale { StatusCode::OK } else { StatusCode::NOT_FOUND });
        !is_stale
    })
    .await;
}

#[tokio::test]
async fn what_is_asked_for_by_digest_is_never_asked_for_again() {
    let (upstream, mirror, image) = scene(224, "tagttl: 0s, prefetch: false").await;
    let digest = Digest::sha256(&image.manifest);
    upstream.forget();
    for _ in 0..3 {
        let answer = ask(&mirror, &format!("manifests/{digest}")).await;
        assert_eq!(answer.bytes().await.unwrap(), image.manifest);
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
}

#[tokio::test]
async fn no_is_remembered_for_a_moment() {
    let (upstream, mirror, _) = scene(225, "negativettl: 1h").await;
    upstream.forget();
    let digest = Digest::sha256(b"nobody has it");
    for _ in 0..3 {
        assert_eq!(ask(&mirror, "manifests/none").await.status(), StatusCode::NOT_FOUND);
        assert_eq!(ask(&mirror, &format!("blobs/{digest}")).await.status(), StatusCode::NOT_FOUND);
    }
    assert_eq!(upstream.count("HEAD", "/manifests/none"), 1);
    assert_eq!(upstream.count("GET", &digest.to_string()), 1, "{:?}", upstream.seen());
}

#[tokio::test]
async fn no_is_not_remembered_for_longer_than_that() {
    let (upstream, mirror, image) = scene(226, "negativettl: 0s").await;
    assert_eq!(ask(&mirror, "manifests/2").await.status(), StatusCode::NOT_FOUND);
    upstream.push(REPO, "2", &image);
    assert_eq!(ask(&mirror, "manifests/2").await.status(), StatusCode::OK);
}
