//! Peers that break Bitswap, each beside an honest daemon that has the image.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncWriteExt, future};
use reqwest::StatusCode;
use shoal::ipld::block::RAW;
use shoal::ipld::{Block, Cid, Multihash};
use shoal::node::bitswap::message::{Entry, Outgoing, Presence, WantType};
use tokio::sync::{Notify, mpsc};

use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::peer::{Peer, open, read_message, send};

const MIB: usize = 1 << 20;
/// What a daemon may take in memory while it is under attack, in a debug build.
const MEMORY_BYTES_MAX: u64 = 320 << 20;

/// A daemon that follows an honest one, and is connected to each of these.
fn victim(publisher: &Daemon, hostile: &[&Peer]) -> Daemon {
    let mut setup = daemon().reads(&publisher.ipns).read_only();
    for peer in hostile {
        setup = setup.dials(&peer.address);
    }
    setup.knows(publisher).start()
}

/// A daemon that knew nobody but `hostile` when an honest one came with the image; and that one.
async fn victim_before(publisher: &Daemon, hostile: &Peer, image: &Image) -> (Daemon, Daemon) {
    let victim = daemon().reads(&publisher.ipns).read_only().dials(&hostile.address).start();
    hostile.open(&victim).await;
    let honest = daemon().reads(&publisher.ipns).read_only().knows(publisher).knows(&victim).start();
    honest.serves("library/app", "1", image).await;
    (victim, honest)
}

async fn publisher(image: &Image) -> Daemon {
    let publisher = daemon().start();
    publisher.push("library/app", "1", image).await;
    publisher
}

/// The daemon answers, and did not let itself be filled.
async fn is_well(victim: &Daemon) {
    let answer = victim.client.get(format!("{}/v2/", victim.registry)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let memory = victim.memory_bytes();
    assert!(memory < MEMORY_BYTES_MAX, "{} MiB of memory", memory >> 20);
}

/// Answers every want of whoever speaks to the peer; counts them.
fn answer_wants(peer: Peer, answer: impl Fn(Cid) -> Outgoing + Clone + Send + 'static) -> Arc<AtomicUsize> {
    let (tasks, control, answered) =
        (peer.tasks.clone(), peer.control.clone(), Arc::<AtomicUsize>::default());
    let count = answered.clone();
    tasks.clone().spawn_short("accept", |_| async move {
        let mut peer = peer; // The whole of it, since it hangs up when a part is dropped.
        while let Some(mut incoming) = peer.incoming.recv().await {
            let (answer, control, count) = (answer.clone(), control.clone(), count.clone());
            tasks.spawn_short("answer", |_| async move {
                let mut back = open(&control, incoming.peer).await;
                while let Some(message) = read_message(&mut incoming.stream).await {
                    for entry in message.entries {
                        let Entry::Want { cid, .. } = entry else { continue };
                        count.fetch_add(1, Ordering::SeqCst);
                        if send(&mut back, &answer(cid)).await.is_err() {
                            back = open(&control, incoming.peer).await;
                        }
                    }
                }
            });
        }
    });
    answered
}

/// Waits until somebody has wanted something: whoever was given an image need not have waited for all whom he asked.
async fn is_asked(answered: &AtomicUsize) {
    let asking = async {
        while answered.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("it is asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_wrong_bytes_spoils_no_image() {
    let image = Image::small(100);
    let (publisher, hostile) = (publisher(&image).await, Peer::start().await);
    let (victim, _honest) = victim_before(&publisher, &hostile, &image).await;
    let answered = answer_wants(hostile, |cid| Outgoing {
        blocks: vec![(cid, Bytes::from_static(b"not what was asked for"))],
        ..Outgoing::default()
    });
    victim.serves("library/app", "1", &image).await;
    is_asked(&answered).await;
    is_well(&victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_claims_to_have_everything_delays_only() {
    let image = Image::small(101);
    let (publisher, hostile) = (publisher(&image).await, Peer::start().await);
    let (victim, _honest) = victim_before(&publisher, &hostile, &image).await;
    let answered =
        answer_wants(hostile, |cid| Outgoing { presences: vec![Presence::Have(cid)], ..Outgoing::default() });
    victim.serves("library/app", "1", &image).await;
    is_asked(&answered).await;
    is_well(&victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_nothing_holds_nothing_up() {
    let image = Image::small(102);
    let (publisher, mut hostile) = (publisher(&image).await, Peer::start().await);
    let (victim, _honest) = victim_before(&publisher, &hostile, &image).await;
    hostile.tasks.clone().spawn_short("mute", |_| async move {
        while let Some(mut incoming) = hostile.incoming.recv().await {
            while read_message(&mut incoming.stream).await.is_some() {}
        }
    });
    victim.serves("library/app", "1", &image).await;
    is_well(&victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_over_the_limit_are_not_read() {
    let image = Image::small(103);
    let (publisher, hostile) = (publisher(&image).await, Peer::start().await);
    let victim = victim(&publisher, &[&hostile]);
    let flood = async {
        for length in [&[0x81, 0x80, 0x80, 0x02][..], &[0xff, 0xff, 0xff, 0x7f], &[0x80; 9]].repeat(20) {
            let mut stream = hostile.open(&victim).await;
            let body = [length, &vec![0; 5 * MIB]].concat();
            // It is reset in the middle.
            assert!(stream.write_all(&body).await.is_err() || stream.flush().await.is_err());
        }
    };
    future::join(flood, victim.serves("library/app", "1", &image)).await;
    is_well(&victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_without_end_are_not_waited_for() {
    let image = Image::small(104);
    let (publisher, hostile) = (publisher(&image).await, Peer::start().await);
    let victim = victim(&publisher, &[&hostile]);
    let flood = async {
        for _ in 0..200 {
            let mut stream = hostile.open(&victim).await;
            while stream.write_all(&[0x80; 4096]).await.is_ok() && stream.flush().await.is_ok() {}
        }
    };
    future::join(flood, victim.serves("library/app", "1", &image)).await;
    is_well(&victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_begin_and_never_end_hold_up_nobody_else() {
    let image = Image::small(105);
    let publisher = publisher(&image).await;
    let hostile = [Peer::start().await, Peer::start().await, Peer::start().await];
    let more = [Peer::start().await, Peer::start().await, Peer::start().await, Peer::start().await];
    let hostile: Vec<&Peer> = hostile.iter().chain(&more).collect();
    let victim = victim(&publisher, &hostile);
    let mut begun = Vec::new();
    for peer in &hostile {
        for _ in 0..3 {
            let mut stream = peer.open(&victim).await;
            stream.write_all(&[0x80, 0x80, 0x80, 0x02, 0]).await.unwrap(); // 4 MiB.
            stream.flush().await.unwrap();
            begun.push(stream);
        }
    }
    victim.serves("library/app", "1", &image).await;
    is_well(&victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wantlist_of_a_million_takes_bounded_memory() {
    let image = Image::small(106);
    let (publisher, hostile) = (publisher(&image).await, Peer::start().await);
    let victim = victim(&publisher, &[&hostile]);
    let flood = async {
        let mut stream = hostile.open(&victim).await;
        for message in 0..1000_u64 {
            let wants = (0..1000_u64).map(|n| {
                let hash = [(message * 1000 + n).to_be_bytes(); 4].concat();
                want(Cid::new_v1(RAW, Multihash::wrap(0x12, &hash).unwrap()))
            });
            send(&mut stream, &Outgoing { entries: wants.collect(), ..Outgoing::default() }).await.unwrap();
        }
    };
    future::join(flood, victim.serves("library/app", "1", &image)).await;
    is_well(&victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_wants_everything_and_reads_nothing_gets_little() {
    let image = Image::new(107, &[40 * MIB]);
    let (publisher, hostile) = (publisher(&image).await, Peer::start().await);
    let victim = victim(&publisher, &[&hostile]);
    victim.serves("library/app", "1", &image).await;
    let leaves = image.blobs[1]
        .chunks(MIB)
        .map(|chunk| want(*Block::encode(RAW, Bytes::copy_from_slice(chunk)).cid()));
    let entries: Vec<Entry> = leaves.collect();
    // Streams that are accepted and never read.
    let mut asking = Vec::new();
    for _ in 0..16 {
        let mut stream = hostile.open(&victim).await;
        let message = Outgoing { entries: entries.clone(), ..Outgoing::default() };
        send(&mut stream, &message).await.unwrap();
        asking.push(stream);
    }
    // Others are served by it meanwhile.
    let late = daemon().reads(&publisher.ipns).read_only().knows(&victim).start();
    late.serves("library/app", "1", &image).await;
    is_well(&victim).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_before_questions_and_streams_that_are_closed_halfway_hold_up_nothing() {
    let image = Image::small(108);
    let (publisher, hostile) = (publisher(&image).await, Peer::start().await);
    let victim = victim(&publisher, &[&hostile]);
    let block = Block::encode(RAW, Bytes::from_static(b"nobody asked"));
    let cid = *block.cid();
    let flood = async {
        for n in 0..300 {
            let mut stream = hostile.open(&victim).await;
            let message = match n % 4 {
                // A block that was never wanted, and what it has of it after that.
                0 => Outgoing { blocks: vec![(cid, block.bytes().clone())], ..Outgoing::default() },
                1 => Outgoing {
                    presences: vec![Presence::DontHave(cid), Presence::Have(cid)],
                    ..Outgoing::default()
                },
                // A want that is withdrawn before it is said, and said again and again.
                2 => Outgoing {
                    entries: vec![Entry::Cancel(cid), want(cid), want(cid)],
                    ..Outgoing::default()
                },
                _ => Outgoing::default(),
            };
            // It may have left us by now; what it has not read is lost.
            let _ = send(&mut stream, &message).await;
            if n % 4 == 3 {
                let _ = stream.write_all(&[0x80, 0x01, 0]).await;
            }
            let _ = stream.close().await;
        }
    };
    future::join(flood, victim.serves("library/app", "1", &image)).await;
    is_well(&victim).await;
}

fn want(cid: Cid) -> Entry {
    Entry::Want { cid, want_type: WantType::Block, priority: 1, send_dont_have: true }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_want_a_hundred_thousand_times_is_answered_once_a_message_at_most() {
    const MESSAGES: usize = 100;
    const WANTS: usize = 1000;
    let image = Image::new(109, &[MIB]);
    let (publisher, hostile) = (publisher(&image).await, Peer::start().await);
    let victim = victim(&publisher, &[&hostile]);
    victim.serves("library/app", "1", &image).await;
    let [last, leaf] = [0, 1].map(|n| Block::encode(RAW, Bytes::copy_from_slice(&image.blobs[n])));
    // The same on two streams, as if they were of two sessions.
    let mut streams = [hostile.open(&victim).await, hostile.open(&victim).await];
    let mut sizes = sizes_of_blocks(hostile);
    let begun = Notify::new();
    let flood = async {
        for number in 0..MESSAGES {
            let message = Outgoing { entries: vec![want(*leaf.cid()); WANTS], ..Outgoing::default() };
            send(&mut streams[number % 2], &message).await.unwrap();
        }
        // What is wanted again waits behind what came since.
        tokio::time::timeout(2 * PATIENCE, begun.notified()).await.expect("the first want is answered");
        let message = Outgoing { entries: vec![want(*last.cid())], ..Outgoing::default() };
        send(&mut streams[0], &message).await.unwrap();
    };
    let counting = async {
        let mut blocks = 0;
        while let Some(size) = sizes.recv().await {
            match size {
                MIB => {
                    blocks += 1;
                    begun.notify_one();
                }
                _ if size == last.bytes().len() => return blocks,
                _ => (),
            }
        }
        panic!("it is never answered");
    };
    let late = daemon().reads(&publisher.ipns).read_only().knows(&victim).start();
    let counting = tokio::time::timeout(4 * PATIENCE, counting);
    let ((), blocks, ()) = future::join3(flood, counting, late.serves("library/app", "1", &image)).await;
    let blocks = blocks.expect("the last want is answered");
    assert!((1..=MESSAGES).contains(&blocks), "{blocks} times the same block in {MESSAGES} messages");
    is_well(&victim).await;
}

/// The sizes of the blocks that a peer gets, on whatever stream, as they come.
fn sizes_of_blocks(peer: Peer) -> mpsc::Receiver<usize> {
    let (sizes, received) = mpsc::channel(64);
    peer.tasks.clone().spawn_short("accept", |_| async move {
        let mut peer = peer; // The whole of it, since it hangs up when a part is dropped.
        while let Some(mut incoming) = peer.incoming.recv().await {
            let sizes = sizes.clone();
            peer.tasks.spawn_short("receive", |_| async move {
                while let Some(message) = read_message(&mut incoming.stream).await {
                    for block in &message.blocks {
                        // The test may have ended.
                        let _ = sizes.send(block.size_bytes()).await;
                    }
                }
            });
        }
    });
    received
}
