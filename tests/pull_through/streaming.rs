//! Blobs on their way: who gets which bytes when, and what becomes of a download that breaks off.

use futures::future::join_all;
use reqwest::StatusCode;
use shoal::oci::Digest;

use crate::common::upstream::{Fault, Rule, Upstream};
use crate::common::{Daemon, random_bytes};
use crate::{ask, ask_in_turn, ask_range, header, is_cached, mirror_of, read_at_least};

const MIB: usize = 1 << 20;

/// An upstream that has a blob, and a mirror of it.
async fn scene(seed: u64, size: usize) -> (Upstream, Daemon, Digest, Vec<u8>) {
    let blob = random_bytes(seed, size);
    let upstream = Upstream::start().await;
    let digest = upstream.push_blob(&blob);
    let mirror = mirror_of(&upstream, "").start();
    (upstream, mirror, digest, blob)
}

fn downloads(upstream: &Upstream, digest: &Digest) -> usize {
    upstream.count("GET", &digest.to_string())
}

#[tokio::test]
async fn the_first_byte_leaves_before_the_last_one_came() {
    let (upstream, mirror, digest, blob) = scene(100, 3_000_000).await;
    upstream.fails(Rule::on("/blobs/", Fault::HoldAfter(1_000_000)));
    let mut answer = ask(&mirror, &format!("blobs/{digest}")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.content_length(), Some(3_000_000));
    let mut read = read_at_least(&mut answer, 1_000_000).await;
    assert_eq!(read.len(), 1_000_000, "upstream has sent no more");
    upstream.release();
    read.extend(answer.bytes().await.unwrap());
    assert!(read == blob);
    assert_eq!(downloads(&upstream, &digest), 1);
}

#[tokio::test]
async fn any_number_of_clients_follow_one_download() {
    let (upstream, mirror, digest, blob) = scene(101, 5_000_000).await;
    upstream.fails(Rule::on("/blobs/", Fault::HoldAfter(2_500_000)));
    let below = format!("blobs/{digest}");
    let mut answers = join_all((0..16).map(|_| ask(&mirror, &below))).await;
    let mut read = join_all(answers.iter_mut().map(|answer| read_at_least(answer, 2_500_000))).await;
    upstream.release();
    for (mut read, answer) in read.drain(..).zip(answers) {
        read.extend(answer.bytes().await.unwrap());
        assert!(read == blob);
    }
    assert_eq!(downloads(&upstream, &digest), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_while_a_download_ends_costs_no_second_one() {
    let upstream = Upstream::start().await;
    let mirror = mirror_of(&upstream, "").start();
    for seed in 0..100 {
        let blob = random_bytes(1000 + seed, 1000);
        let digest = upstream.push_blob(&blob);
        ask_in_turn(&mirror, &format!("blobs/{digest}"), &blob).await;
        assert_eq!(downloads(&upstream, &digest), 1, "{seed}: {:?}", upstream.seen().last());
    }
}

#[tokio::test]
async fn a_range_that_has_come_is_served_while_the_rest_is_on_its_way() {
    let (upstream, mirror, digest, blob) = scene(102, 5_000_000).await;
    upstream.fails(Rule::on("/blobs/", Fault::HoldAfter(2_500_000)));
    let mut first = ask(&mirror, &format!("blobs/{digest}")).await;
    read_at_least(&mut first, 2_500_000).await;
    for (from, to) in [(100, 199), (MIB - 1, MIB), (2_400_000, 2_499_999)] {
        let part = ask_range(&mirror, &digest, &format!("bytes={from}-{to}")).await;
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(header(&part, "content-range"), format!("bytes {from}-{to}/5000000"));
        assert!(part.bytes().await.unwrap() == blob[from..=to]);
    }
    let beyond = ask_range(&mirror, &digest, "bytes=5000000-").await;
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let mut rest = ask_range(&mirror, &digest, "bytes=1000000-").await;
    let mut read = read_at_least(&mut rest, 1_500_000).await;
    upstream.release();
    read.extend(rest.bytes().await.unwrap());
    assert!(read == blob[1_000_000..]);
    assert_eq!(downloads(&upstream, &digest), 1);
}

#[tokio::test]
async fn a_range_far_ahead_does_not_wait_for_what_lies_before_it() {
    let (upstream, mirror, digest, blob) = scene(103, 20 * MIB).await;
    upstream.fails(Rule::on("/blobs/", Fault::HoldAfter(MIB)).times(1));
    let mut first = ask(&mirror, &format!("blobs/{digest}")).await;
    read_at_least(&mut first, MIB).await;
    let part = ask_range(&mirror, &digest, "bytes=15000000-15000099").await;
    assert!(part.bytes().await.unwrap() == blob[15_000_000..15_000_100]);
    let ranges: Vec<_> =
        upstream.seen().iter().map(|seen| seen.header("range").unwrap_or_default().to_owned()).collect();
    assert!(ranges.contains(&"bytes=15000000-15000099".to_owned()), "{ranges:?}");
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_the_download() {
    let (upstream, mirror, digest, blob) = scene(104, 3_000_000).await;
    upstream.fails(Rule::on("/blobs/", Fault::HoldAfter(1_000_000)));
    let mut answer = ask(&mirror, &format!("blobs/{digest}")).await;
    read_at_least(&mut answer, 1000).await;
    drop(answer);
    upstream.release();
    is_cached(&mirror, &digest).await;
    let answer = ask(&mirror, &format!("blobs/{digest}")).await;
    assert!(answer.bytes().await.unwrap() == blob);
    assert_eq!(downloads(&upstream, &digest), 1);
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    for (seed, fault) in [(105, Fault::EndAfter(1_000_000)), (106, Fault::ResetAfter(1_000_000))] {
        let (upstream, mirror, digest, blob) = scene(seed, 3_000_000).await;
        upstream.fails(Rule::on("/blobs/", fault.clone()).times(2));
        let answer = ask(&mirror, &format!("blobs/{digest}")).await;
        assert!(answer.bytes().await.unwrap() == blob, "{fault:?}");
        let ranges: Vec<_> =
            upstream.seen().iter().map(|seen| seen.header("range").unwrap_or_default().to_owned()).collect();
        assert_eq!(ranges[0], "");
        if matches!(fault, Fault::EndAfter(_)) {
            assert_eq!(ranges[1..], ["bytes=1000000-", "bytes=2000000-"], "{fault:?}");
        }
        assert!(ranges[1..].iter().all(|range| !range.is_empty()), "{fault:?}: {ranges:?}");
    }
}

#[tokio::test]
async fn an_upstream_without_ranges_is_asked_anew_and_the_client_does_not_notice() {
    let (upstream, mirror, digest, blob) = scene(107, 3_000_000).await;
    upstream.fails(Rule::on("/blobs/", Fault::EndAfter(1_000_000)).times(1));
    upstream.fails(Rule::on("/blobs/", Fault::IgnoresRanges));
    let answer = ask(&mirror, &format!("blobs/{digest}")).await;
    assert!(answer.bytes().await.unwrap() == blob);
    assert_eq!(downloads(&upstream, &digest), 2);
}

#[tokio::test]
async fn a_download_goes_on_where_it_was_when_the_daemon_was_killed() {
    const SIZE: usize = 72 * MIB;
    let (upstream, mirror, digest, blob) = scene(108, SIZE).await;
    upstream.fails(Rule::on("/blobs/", Fault::HoldAfter(70 * MIB)).times(1));
    let mut answer = ask(&mirror, &format!("blobs/{digest}")).await;
    read_at_least(&mut answer, 69 * MIB).await;
    let mirror = mirror.kill_and_restart();
    let answer = ask(&mirror, &format!("blobs/{digest}")).await;
    assert!(answer.bytes().await.unwrap() == blob);
    let seen = upstream.seen();
    let range = seen.last().unwrap().header("range").unwrap_or("bytes=0-");
    let from: usize = range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap();
    assert!(from >= 64 * MIB, "what was noted down was fetched again: {range}");
}

#[tokio::test]
async fn wrong_bytes_get_no_clean_end_and_are_not_kept() {
    let (upstream, mirror, digest, blob) = scene(109, 3_000_000).await;
    // The wrong byte comes when the client has the beginning.
    upstream.fails(Rule::on("/blobs/", Fault::EndAfter(1_000_000)).times(1));
    upstream.fails(Rule::on("/blobs/", Fault::WrongByteAt(1_500_000)));
    let answer = ask(&mirror, &format!("blobs/{digest}")).await;
    assert_eq!(answer.content_length(), Some(3_000_000));
    assert!(answer.bytes().await.is_err(), "the client is given wrong bytes with a clean end");
    let rest = ask_range(&mirror, &digest, "bytes=2000000-").await;
    assert_eq!(rest.status(), StatusCode::SERVICE_UNAVAILABLE, "who has the wrong beginning must begin anew");

    upstream.heals();
    let answer = ask(&mirror, &format!("blobs/{digest}")).await;
    assert!(answer.bytes().await.unwrap() == blob);
}

#[tokio::test]
async fn a_small_blob_is_given_whole_or_not_at_all() {
    for (seed, size) in [(110, 1000), (111, 2_000_000)] {
        let (upstream, mirror, digest, blob) = scene(seed, size).await;
        upstream.fails(Rule::on("/blobs/", Fault::WrongByteAt(500)));
        let answer = ask(&mirror, &format!("blobs/{digest}")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "the client can go elsewhere");
        upstream.heals();
        let answer = ask(&mirror, &format!("blobs/{digest}")).await;
        assert!(answer.bytes().await.unwrap() == blob);
    }
}
