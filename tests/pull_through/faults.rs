//! What a client sees of each fault of an upstream: the image, whenever it can be had, else an answer that sends the client
//! to upstream itself, and says why.

use reqwest::StatusCode;
use shoal::oci::Digest;

use crate::common::upstream::{Access, Fault, Rule, TOKENS, Upstream};
use crate::common::{Daemon, IMAGE_MANIFEST, Image, random_bytes};
use crate::{PREFIXED, REPO, ask, error, header, mirror_of};

async fn scene(seed: u64, more: &str) -> (Upstream, Daemon, Image) {
    let image = Image::new(seed, &[1000, 2_500_000]);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let mirror = mirror_of(&upstream, more).start();
    (upstream, mirror, image)
}

/// The answer that sends a client on: 404 with an error of the specification, whose detail has this word.
async fn is_sent_on(mirror: &Daemon, below: &str, word: &str, what: &str) {
    let answer = ask(mirror, below).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{what}");
    let (code, detail) = error(answer).await;
    assert!(["MANIFEST_UNKNOWN", "BLOB_UNKNOWN"].contains(&code.as_str()), "{what}: {code}");
    assert!(detail.contains(word), "{what}: {detail:?} does not tell why");
    if !word.is_empty() {
        mirror.logs(word).await;
    }
}

/// What is in the way of an answer at all, and the word that tells the client of it.
fn refusals() -> Vec<(Fault, &'static str)> {
    vec![
        (Fault::Status(401, ""), "401"),
        (Fault::Status(403, ""), "no right"),
        (Fault::Status(404, ""), ""),
        (Fault::Status(408, ""), "408"),
        (Fault::Status(429, "retry-after: 60"), "too many requests"),
        (Fault::Status(500, ""), "500"),
        (Fault::Status(503, "retry-after: 60"), "503"),
        (Fault::Reset, "cannot be reached"),
        (Fault::RedirectToItself, "redirects"),
    ]
}

#[tokio::test]
async fn a_manifest_that_upstream_refuses_is_404_with_the_reason() {
    for (seed, (fault, word)) in (300..).zip(refusals()) {
        let (upstream, mirror, _) = scene(seed, "").await;
        let what = format!("{fault:?}");
        upstream.fails(Rule::on("/manifests/", fault));
        is_sent_on(&mirror, "manifests/1", word, &what).await;
        let digest = Digest::sha256(b"another");
        is_sent_on(&mirror, &format!("manifests/{digest}"), word, &what).await;
    }
}

#[tokio::test]
async fn a_blob_that_upstream_refuses_is_404_with_the_reason() {
    for (seed, (fault, word)) in (320..).zip(refusals()) {
        let (upstream, mirror, image) = scene(seed, "").await;
        let what = format!("{fault:?}");
        upstream.fails(Rule::on("/blobs/", fault));
        is_sent_on(&mirror, &format!("blobs/{}", Digest::sha256(&image.blobs[2])), word, &what).await;
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_what_was_asked_for_is_404_with_the_reason() {
    let faults = [
        (Fault::EndAfter(10), "broke off"),
        (Fault::ResetAfter(10), "broke off"),
        (Fault::LengthOff(5), "broke off"),
        (Fault::LengthOff(-5), "sent sha256:"),
        (Fault::WrongByteAt(3), "sent sha256:"),
        (Fault::HoldAfter(10), "sent nothing"),
    ];
    for (seed, (fault, word)) in (340..).zip(faults) {
        let (upstream, mirror, image) = scene(seed, "").await;
        let what = format!("{fault:?}");
        upstream.fails(Rule::on("/manifests/", fault).method("GET"));
        is_sent_on(&mirror, "manifests/1", word, &what).await;
        upstream.heals();
        assert_eq!(upstream.count("GET", "/blobs/"), 0, "{what}: believed");
        let mirror = mirror.kill_and_restart();
        assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image, "{what}");
    }
}

#[tokio::test]
async fn an_upstream_that_hangs_before_its_header_is_404_in_time() {
    let (upstream, mirror, _) = scene(350, "").await;
    upstream.fails(Rule::on("/manifests/", Fault::HoldHeader));
    is_sent_on(&mirror, "manifests/1", "no answer within 10 s", "hangs").await;
    // As containerd does next, which has the digest from upstream itself.
    let by_digest = format!("manifests/{}", Digest::sha256(b"another"));
    is_sent_on(&mirror, &by_digest, "no answer within 1 s", "hangs again").await;
}

#[tokio::test]
async fn an_upstream_that_speaks_oddly_is_understood() {
    let faults = [
        Fault::Without("docker-content-digest"),
        Fault::Without("content-type"),
        Fault::Chunked,
        Fault::Http10,
        Fault::With("ratelimit-limit: 100;w=21600\r\nratelimit-remaining: 3;w=21600"),
        Fault::BytesPerSecond(20_000_000),
    ];
    for (seed, fault) in (360..).zip(faults) {
        let (upstream, mirror, image) = scene(seed, "").await;
        let what = format!("{fault:?}");
        upstream.fails(Rule::on("", fault));
        let answer = ask(&mirror, "manifests/1").await;
        assert_eq!(answer.status(), StatusCode::OK, "{what}\n{}", mirror.log());
        let digest = Digest::sha256(&image.manifest).to_string();
        assert_eq!(header(&answer, "docker-content-digest"), digest, "{what}");
        assert_eq!(header(&answer, "content-type"), IMAGE_MANIFEST, "{what}");
        assert_eq!(answer.content_length(), Some(image.manifest.len() as u64), "{what}");
        assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image, "{what}");
    }
}

#[tokio::test]
async fn a_manifest_that_was_compressed_unasked_is_handed_on_as_it_was_pushed() {
    let (upstream, mirror, image) = scene(370, "prefetch: false").await;
    upstream.fails(Rule::on("/manifests/", Fault::Gzip));
    let answer = ask(&mirror, "manifests/1").await;
    assert_eq!(header(&answer, "content-encoding"), "");
    assert_eq!(answer.bytes().await.unwrap(), image.manifest);
    // Of a blob there is no telling whose compression it is: the client asks upstream itself.
    upstream.fails(Rule::on("/blobs/", Fault::Gzip));
    is_sent_on(&mirror, &format!("blobs/{}", Digest::sha256(&image.blobs[2])), "Content-Encoding", "gzip")
        .await;
}

#[tokio::test]
async fn a_blob_whose_length_is_not_that_of_the_manifest_is_404_with_the_reason() {
    for (seed, fault) in [(371, Fault::LengthOff(5)), (372, Fault::LengthOff(-5))] {
        let (upstream, mirror, image) = scene(seed, "prefetch: false").await;
        assert_eq!(ask(&mirror, "manifests/1").await.status(), StatusCode::OK);
        let what = format!("{fault:?}");
        upstream.fails(Rule::on("/blobs/", fault));
        is_sent_on(&mirror, &format!("blobs/{}", Digest::sha256(&image.blobs[2])), "2500000 bytes", &what)
            .await;
    }
}

#[tokio::test]
async fn a_fault_in_the_middle_of_a_blob_is_not_seen_by_the_client() {
    let faults = [
        Fault::EndAfter(1_000_000),
        Fault::ResetAfter(1_000_000),
        Fault::HoldAfter(1_000_000),
        Fault::LengthOff(1_000_000),
    ];
    for (seed, fault) in (380..).zip(faults) {
        let blob = random_bytes(seed, 3_000_000);
        let upstream = Upstream::start().await;
        let digest = upstream.push_blob(&blob);
        let mirror = mirror_of(&upstream, "").start();
        let what = format!("{fault:?}");
        upstream.fails(Rule::on("/blobs/", fault.clone()).times(1));
        let answer = ask(&mirror, &format!("blobs/{digest}")).await;
        assert_eq!(answer.status(), StatusCode::OK, "{what}");
        let read = answer.bytes().await;
        if matches!(fault, Fault::LengthOff(_)) {
            // The client was told that length too.
            assert!(read.is_err(), "{what}");
        } else {
            assert!(read.unwrap() == blob, "{what}");
        }
    }
}

#[tokio::test]
async fn a_refusal_that_passes_is_not_seen_by_the_client() {
    for (seed, fault) in [(390, Fault::Status(500, "")), (391, Fault::Status(503, "")), (392, Fault::Reset)] {
        let (upstream, mirror, image) = scene(seed, "prefetch: false").await;
        let what = format!("{fault:?}");
        assert_eq!(ask(&mirror, "manifests/1").await.status(), StatusCode::OK, "{what}");
        upstream.fails(Rule::on("/blobs/", fault).times(1));
        let answer = ask(&mirror, &format!("blobs/{}", Digest::sha256(&image.blobs[2]))).await;
        assert_eq!(answer.status(), StatusCode::OK, "{what}");
        assert!(answer.bytes().await.unwrap() == image.blobs[2], "{what}");
    }
}

#[tokio::test]
async fn who_has_no_way_around_the_mirror_gets_no_manifest_whose_blobs_cannot_be_had() {
    let (mut upstream, mirror, image) = scene(395, "tagttl: 0s, prefetch: false").await;
    assert_eq!(ask(&mirror, "manifests/1").await.status(), StatusCode::OK);
    upstream.stop().await;
    let prefixed = format!("{PREFIXED}/manifests/1");
    assert_eq!(ask(&mirror, "manifests/1").await.status(), StatusCode::OK, "containerd has upstream");
    assert_eq!(mirror.get(&prefixed).await.status(), StatusCode::NOT_FOUND, "podman has not");

    upstream.restart();
    let mirror = mirror.kill_and_restart();
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image);
    upstream.stop().await;
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image, "all of it is here");
}

#[tokio::test]
async fn credentials_are_shown_to_who_asks_for_them() {
    for (seed, access) in [(396, Access::Basic("alice", "secret")), (397, Access::Bearer("alice", "secret"))]
    {
        // What it was before is never served: an answer means that upstream has confirmed it.
        let keys = "username: alice, password: secret, tagttl: 0s, stalefor: 0s";
        let (upstream, mirror, image) = scene(seed, keys).await;
        upstream.admits(access.clone());
        assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image);
        if matches!(access, Access::Bearer(..)) {
            assert_eq!(upstream.count("GET", TOKENS), 1, "one token does for all");
            upstream.expire_tokens();
            let status = ask(&mirror, "manifests/1").await.status();
            assert_eq!(status, StatusCode::OK, "a token that has expired is renewed");
            assert_eq!(upstream.count("GET", TOKENS), 2);
        }
    }
}

#[tokio::test]
async fn wrong_credentials_are_404_and_no_challenge_to_the_client() {
    for (seed, access) in [(398, Access::Basic("alice", "secret")), (399, Access::Bearer("alice", "secret"))]
    {
        let (upstream, mirror, _) = scene(seed, "username: alice, password: wrong").await;
        upstream.admits(access);
        let answer = ask(&mirror, "manifests/1").await;
        assert_eq!(header(&answer, "www-authenticate"), "");
        is_sent_on(&mirror, "manifests/1", "credentials", "wrong password").await;
        assert!(!mirror.log().contains("wrong\""), "the password is in the log");
    }
}
