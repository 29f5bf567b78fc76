//! Exchanges over real connections, honest and hostile.

use std::time::Duration;

use bytes::Bytes;
use futures::AsyncWriteExt;

use super::message::{Entry, Outgoing, Presence, WantType};
use super::testing::{Bare, DEADLINE, Node, blocks, open, send};
use crate::ipfs::IpfsError;
use crate::ipld::block::RAW;
use crate::ipld::{Block, Cid, Multihash};

fn want(cid: Cid, want_type: WantType) -> Entry {
    Entry::Want { cid, want_type, priority: 1, send_dont_have: true }
}

fn wants(entries: Vec<Entry>) -> Outgoing {
    Outgoing { entries, ..Outgoing::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_mebibytes_cross_once() {
    let (server, client) = (Node::start().await, Node::start().await);
    let blocks = blocks(64, 1 << 20);
    server.keep(&blocks);
    client.dial(&server.address).await;
    client.fetch_all(&blocks).await;
    let stats = client.exchange.stats();
    assert_eq!((stats.blocks_received, stats.bytes_wasted, stats.fetches), (64, 0, 0));
    server.until(|stats| stats.blocks_sent == 64 && stats.wants_of_peers == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_blocks_come_from_both_of_two_peers() {
    let (one, other, client) = (Node::start().await, Node::start().await, Node::start().await);
    let blocks = blocks(3000, 10_000);
    one.keep(&blocks);
    other.keep(&blocks);
    client.dial(&one.address).await;
    client.dial(&other.address).await;
    let root = *blocks[0].cid();
    let all = blocks.iter().map(|block| client.fetch(root, *block.cid()));
    futures::future::join_all(all).await.into_iter().for_each(|block| _ = block.unwrap());
    let sent = [&one, &other].map(|node| node.exchange.stats().blocks_sent);
    assert!(sent.iter().all(|sent| *sent > 100), "{sent:?}, {:?}", client.exchange.stats());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_short_runs_all_end() {
    let server = Node::start().await;
    let blocks = blocks(5, 1000);
    server.keep(&blocks);
    for _ in 0..100 {
        let client = Node::start().await;
        client.dial(&server.address).await;
        client.fetch_all(&blocks).await;
        assert_eq!(client.tasks.shutdown(DEADLINE).await, 0);
    }
    server.until(|stats| stats.peers == 0 && stats.wants_of_peers == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_found_is_dialled_and_serves() {
    let (empty, server, client) = (Node::start().await, Node::start().await, Node::start().await);
    let blocks = blocks(20, 1000);
    server.keep(&blocks);
    client.dial(&empty.address).await;
    client.providers.lock().await.push(server.address.clone());
    client.fetch_all(&blocks).await;
    assert!(client.searched.lock().unwrap().contains(blocks[0].cid()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_fails_soon_and_says_so() {
    let (empty, client) = (Node::start().await, Node::start().await);
    let cid = *blocks(1, 100)[0].cid();
    assert!(matches!(client.fetch(cid, cid).await, Err(IpfsError::NoPeers(_))));
    client.dial(&empty.address).await;
    assert!(matches!(client.fetch(cid, cid).await, Err(IpfsError::NoProvider(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_want_is_served_when_the_block_comes_later() {
    let mut peer = Bare::start().await.conversation();
    let server = Node::start().await;
    let block = blocks(1, 100).remove(0);
    server.dial(&peer.address).await;
    let mut stream = peer.open(server.peer).await;
    send(&mut stream, &wants(vec![want(*block.cid(), WantType::Block)])).await;
    assert_eq!(peer.next().await.presences, [Presence::DontHave(*block.cid())]);
    server.keep(std::slice::from_ref(&block));
    server.exchange.notify_stored(&[*block.cid()]);
    let came = peer.next().await.blocks.remove(0);
    assert_eq!(came.identify(), (*block.cid().hash(), block.into_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_fetch_is_cancelled_at_the_peer() {
    let mut peer = Bare::start().await.conversation();
    let client = Node::start().await;
    client.dial(&peer.address).await;
    let cid = *blocks(1, 100)[0].cid();
    let asked = tokio::select! {
        fetched = client.fetch(cid, cid) => panic!("nobody has it: {fetched:?}"),
        asked = peer.next() => asked,
    };
    assert!(asked.full);
    assert_eq!(asked.entries, [want(cid, WantType::Block)]);
    assert_eq!(peer.next().await.entries, [Entry::Cancel(cid)]);
    assert_eq!(client.exchange.stats().wants, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn presences_and_small_blocks_answer_want_have() {
    let mut peer = Bare::start().await.conversation();
    let server = Node::start().await;
    let (small, large) = (blocks(1, 1024).remove(0), blocks(1, 1025).remove(0));
    let missing = *blocks(1, 50)[0].cid();
    server.keep(&[small.clone(), large.clone()]);
    server.dial(&peer.address).await;
    let mut stream = peer.open(server.peer).await;
    let have = [*small.cid(), *large.cid(), missing].map(|cid| want(cid, WantType::Have)).to_vec();
    send(&mut stream, &wants(have)).await;
    let answer = peer.next().await;
    assert_eq!(answer.presences, [Presence::Have(*large.cid()), Presence::DontHave(missing)]);
    let blocks: Vec<_> = answer.blocks.into_iter().map(|block| block.identify().0).collect();
    assert_eq!(blocks, [*small.cid().hash()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_dropped_and_an_honest_peer_serves() {
    let mut liar = Bare::start().await.conversation();
    let (honest, client) = (Node::start().await, Node::start().await);
    let blocks = blocks(8, 5000);
    honest.keep(&blocks);
    client.dial(&liar.address).await;
    // The honest one is found when the liar has been found out.
    let mut providers = client.providers.clone().lock_owned().await;
    let lie = async {
        let asked = liar.next().await;
        assert_eq!(asked.entries.len(), 1);
        let mut stream = liar.open(client.peer).await;
        for entry in asked.entries {
            // The right prefix, the wrong bytes.
            let wrong = (*entry.cid(), Bytes::from_static(b"not the block"));
            let again = (*entry.cid(), Bytes::from_static(b"neither"));
            send(&mut stream, &Outgoing { blocks: vec![wrong, again], ..Outgoing::default() }).await;
        }
        client.until(|stats| stats.peers == 0).await;
        providers.push(honest.address.clone());
        drop(providers);
    };
    let (block, ()) = futures::join!(client.fetch(*blocks[0].cid(), *blocks[0].cid()), lie);
    assert_eq!(block.unwrap(), blocks[0]);
    assert_eq!(client.exchange.stats().peers, 1, "the liar stays away");
    client.fetch_all(&blocks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_holds_nothing_up() {
    let mute = Bare::start().await.conversation();
    let (honest, client) = (Node::start().await, Node::start().await);
    let blocks = blocks(50, 5000);
    honest.keep(&blocks);
    client.dial(&mute.address).await;
    client.dial(&honest.address).await;
    let started = std::time::Instant::now();
    client.fetch_all(&blocks).await;
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_ends_the_stream_and_the_trust() {
    let peer = Bare::start().await.conversation();
    let client = Node::start().await;
    client.dial(&peer.address).await;
    let mut stream = peer.open(client.peer).await;
    stream.write_all(&[0x81, 0x80, 0x80, 0x02]).await.unwrap(); // 4 MiB + 1.
    stream.flush().await.unwrap();
    client.until(|stats| stats.peers == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wantlist_without_end_takes_bounded_memory() {
    let peer = Bare::start().await.conversation();
    let server = Node::start().await;
    server.dial(&peer.address).await;
    let mut stream = peer.open(server.peer).await;
    let mut name = 0_u64;
    for _ in 0..50 {
        let entries = (0..1000).map(|_| {
            name += 1;
            let hash = [name.to_be_bytes(); 4].concat();
            want(Cid::new_v1(RAW, Multihash::wrap(0x12, &hash).unwrap()), WantType::Block)
        });
        send(&mut stream, &wants(entries.collect())).await;
        assert!(server.exchange.stats().wants_of_peers <= super::ledger::WANTS_PER_PEER_MAX);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_nothing_holds_back_only_itself() {
    let greedy = Bare::speaking(super::protocols(), 1).await; // Takes one stream and never reads it.
    let (server, client) = (Node::start().await, Node::start().await);
    let blocks = blocks(32, 1 << 20);
    server.keep(&blocks);
    server.dial(&greedy.address).await;
    let mut stream = open(&greedy.control, server.peer, &super::protocols()).await;
    let entries = blocks.iter().map(|block| want(*block.cid(), WantType::Block)).collect();
    send(&mut stream, &wants(entries)).await;
    server.until(|stats| stats.wants_of_peers >= 28).await;
    client.dial(&server.address).await;
    client.fetch_all(&blocks).await;
    // Two messages at most were loaded for it.
    assert!(server.exchange.stats().blocks_sent <= 32 + 2);
    assert!(server.exchange.stats().wants_of_peers >= 28);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_when_its_peer_hangs_up_and_another_connects() {
    let (first, second, client) = (Node::start().await, Node::start().await, Node::start().await);
    let blocks = blocks(200, 100_000);
    // What the first lacks the second gives, however late the first hangs up.
    first.keep(&blocks[..199]);
    second.keep(&blocks);
    client.dial(&first.address).await;
    client.providers.lock().await.push(second.address.clone());
    let cut = async {
        client.until(|stats| stats.blocks_received >= 20).await;
        client.hang_up(first.peer).await;
    };
    futures::join!(client.fetch_all(&blocks), cut);
    second.until(|stats| stats.blocks_sent > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_end_when_the_daemon_stops() {
    let mute = Bare::start().await.conversation();
    let client = Node::start().await;
    client.dial(&mute.address).await;
    let cid = *blocks(1, 100)[0].cid();
    let (fetched, aborted) = futures::join!(client.fetch(cid, cid), client.tasks.shutdown(DEADLINE));
    assert!(matches!(fetched, Err(IpfsError::Closed)));
    assert_eq!(aborted, 0);
    assert!(matches!(client.fetch(cid, cid).await, Err(IpfsError::Closed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_dropped_fetches_leave_nothing() {
    let mute = Bare::start().await.conversation();
    let client = Node::start().await;
    client.dial(&mute.address).await;
    let tasks = client.tasks.len();
    for block in blocks(1000, 100) {
        let fetch = client.fetch(*block.cid(), *block.cid());
        assert!(tokio::time::timeout(Duration::from_micros(200), fetch).await.is_err());
    }
    assert_eq!((client.exchange.stats().fetches, client.exchange.stats().wants), (0, 0));
    client.until(|_| client.tasks.len() <= tasks + 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_no_bytes_and_unknown_hashes_need_no_peer() {
    let client = Node::start().await;
    let inline = Cid::new_v1(RAW, Multihash::wrap(0, b"tiny").unwrap());
    assert_eq!(client.fetch(inline, inline).await.unwrap(), Block::inline(&inline).unwrap());
    let empty = Block::encode(RAW, Bytes::new());
    assert_eq!(client.fetch(*empty.cid(), *empty.cid()).await.unwrap(), empty);
    let strange = Cid::new_v1(RAW, Multihash::wrap(0xb220, &[0; 32]).unwrap());
    assert!(matches!(client.fetch(strange, strange).await, Err(IpfsError::NoProvider(_))));
}
