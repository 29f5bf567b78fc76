//! What is pulled through is nobody's business: not by name, not by digest, not by CID.

use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::StreamProtocol;
use libp2p::swarm::Stream;
use shoal::ipld::block::RAW;
use shoal::ipld::{Cid, Multihash};
use shoal::node::bitswap::message::{Entry, Message, Outgoing, Presence, WantType};
use shoal::oci::Digest;

use crate::common::upstream::Upstream;
use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::peer::{Peer, peer_of, read_message, send};
use crate::{PREFIXED, REGISTRY, REPO, is_cached, mirror_of};

/// A mirror that has an image in its cache, and one that was pushed to it.
async fn scene(seed: u64) -> (Upstream, Daemon, Image, Image) {
    let (private, public) = (Image::new(seed, &[1000]), Image::new(seed + 1, &[1000]));
    let upstream = Upstream::with(REPO, "1", &private).await;
    let mirror = mirror_of(&upstream, "").start();
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), private);
    for blob in &private.blobs {
        is_cached(&mirror, &Digest::sha256(blob)).await;
    }
    mirror.push("library/public", "1", &public).await;
    (upstream, mirror, private, public)
}

/// What a blob or manifest is as a block.
fn cid_of(bytes: &[u8]) -> Cid {
    Cid::new_v1(RAW, Digest::sha256(bytes).multihash())
}

fn cids(image: &Image) -> Vec<Cid> {
    image.blobs.iter().chain([&image.manifest]).map(|bytes| cid_of(bytes)).collect()
}

async fn next_message(mut stream: Stream) -> Option<(Message, Stream)> {
    Some((read_message(&mut stream).await?, stream))
}

/// What a daemon gives a stranger of these by Bitswap.
async fn wanted(stranger: &mut Peer, daemon: &Daemon, cids: &[Cid]) -> Vec<Multihash> {
    let want =
        |cid: &Cid| Entry::Want { cid: *cid, want_type: WantType::Block, priority: 1, send_dont_have: true };
    let message = Outgoing { entries: cids.iter().map(want).collect(), ..Outgoing::default() };
    let mut stream = stranger.open(daemon).await;
    send(&mut stream, &message).await.unwrap();
    let (mut given, mut refused) = (Vec::new(), 0);
    let answers = async {
        // It may use several streams, and not write to each.
        let mut reading = FuturesUnordered::new();
        while given.len() + refused < cids.len() {
            tokio::select! {
                incoming = stranger.incoming.recv() => reading.push(next_message(incoming.unwrap().stream)),
                Some(read) = reading.next(), if !reading.is_empty() => {
                    let Some((message, stream)) = read else { continue };
                    reading.push(next_message(stream));
                    let refusals = message.presences.iter();
                    refused += refusals.filter(|one| matches!(one, Presence::DontHave(_))).count();
                    given.extend(message.blocks.into_iter().map(|block| block.identify().0));
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, answers).await.expect("each want is answered");
    given
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_nothing_by_cid() {
    let (_upstream, mirror, private, public) = scene(500).await;
    let mut stranger = Peer::start().await;
    stranger.meets(&mirror).await;
    let (hidden, open) = (cids(&private), cids(&public));
    let all: Vec<Cid> = hidden.iter().chain(&open).copied().collect();
    let mut given = wanted(&mut stranger, &mirror, &all).await;
    given.sort();
    let mut expected: Vec<Multihash> = open.iter().map(|cid| *cid.hash()).collect();
    expected.sort();
    assert_eq!(given, expected, "what was pushed is given, and nothing else");
}

/// Asks over HTTP on a libp2p stream; the status and the body.
async fn get(stranger: &Peer, daemon: &Daemon, target: &str) -> (u16, Vec<u8>) {
    let http = StreamProtocol::new("/http/1.1");
    let (_, mut stream) = stranger.control.open(peer_of(daemon), vec![http]).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nhost: peer\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_nothing_over_http() {
    let (_upstream, mirror, private, public) = scene(510).await;
    let stranger = Peer::start().await;
    stranger.meets(&mirror).await;
    let target = |cid: &Cid| format!("/ipfs/{cid}?format=raw");
    assert_eq!(
        get(&stranger, &mirror, &target(&cid_of(&public.blobs[1]))).await,
        (200, public.blobs[1].clone())
    );
    for cid in cids(&private) {
        let (status, _) = get(&stranger, &mirror, &target(&cid)).await;
        assert_eq!(status, 404, "{cid}");
    }
    let digest = Digest::sha256(&private.blobs[1]);
    for target in [
        format!("/v2/{PREFIXED}/manifests/1"),
        format!("/v2/{PREFIXED}/blobs/{digest}"),
        format!("/v2/{REPO}/blobs/{digest}?ns={REGISTRY}"),
    ] {
        let (status, body) = get(&stranger, &mirror, &target).await;
        assert!((400..500).contains(&status), "{target}: {status}");
        assert!(body != private.blobs[1], "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pulled_through_is_not_announced() {
    let (_upstream, mirror, private, public) = scene(520).await;
    let stranger = Peer::start().await;
    stranger.meets(&mirror).await;
    let known = |bytes: &[u8]| Digest::sha256(bytes).multihash().to_bytes();
    let begun = std::time::Instant::now();
    while stranger.providers(known(&public.manifest)).await == 0 {
        assert!(begun.elapsed() < PATIENCE, "not even what was pushed is announced");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for bytes in private.blobs.iter().chain([&private.manifest]) {
        assert_eq!(stranger.providers(known(bytes)).await, 0);
    }
}

#[tokio::test]
async fn a_daemon_that_is_only_connected_is_a_stranger() {
    let (upstream, mirror, private, _) = scene(530).await;
    let other = daemon().knows(&mirror).reads(&mirror.ipns).start();
    upstream.forget();
    let digest = Digest::sha256(&private.blobs[1]);
    for path in [
        format!("{PREFIXED}/manifests/1"),
        format!("{REPO}/manifests/1?ns={REGISTRY}"),
        format!("{PREFIXED}/blobs/{digest}"),
        format!("{REPO}/blobs/{digest}"),
        format!("ipfs/{}/manifests/1", cid_of(&private.manifest)),
    ] {
        let answer = other.get(&path).await;
        assert!(!answer.status().is_success(), "{path}: {}", answer.status());
    }
    assert!(upstream.seen().is_empty(), "nobody goes upstream for a stranger");
}
