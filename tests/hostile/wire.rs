//! What breaks the framing of each protocol that puts messages behind their length: lengths without end or of far too
//! much, messages that begin and never end, and streams of which one side ends.

use std::time::Duration;

use futures::future::join_all;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::swarm::Stream;
use prost::Message;
use shoal::ipld::Multihash;

use crate::common::{Daemon, PATIENCE};
use crate::flood::{Talker, say};
use crate::honest::Honest;
use crate::peer::{Peer, peer_of};

const KAD: StreamProtocol = StreamProtocol::new("/ipfs/lan/kad/1.0.0");
const IDENTIFY_PUSH: StreamProtocol = StreamProtocol::new("/ipfs/id/push/1.0.0");
const GOSSIPSUB: StreamProtocol = StreamProtocol::new("/meshsub/1.1.0");
const FETCH: StreamProtocol = StreamProtocol::new("/libp2p/fetch/0.0.1");
const BITSWAP: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");
const FRAMED: [StreamProtocol; 5] = [KAD, IDENTIFY_PUSH, GOSSIPSUB, FETCH, BITSWAP];

/// What a stream carries at most beyond what its reader takes: a window, and what is on the way.
const TAKEN_BYTES_MAX: usize = 4 << 20;
/// A stream that takes nothing for so long takes nothing any more.
const STILL: Duration = Duration::from_secs(2);
/// Streams of each protocol that say nothing, or half of it. A connection of a plain peer carries five hundred.
const HELD_STREAMS: usize = 60;

/// A stream to a daemon that is connected; `None`: it is refused.
async fn open(peer: &Peer, daemon: &Daemon, protocol: &StreamProtocol) -> Option<Stream> {
    peer.control.open(peer_of(daemon), vec![protocol.clone()]).await.ok().map(|(_, stream)| stream)
}

/// Writes a length, then bytes for as long as they are taken; how many were. A stream that its other end gave up after
/// it had ended its own side takes no more, and says nothing.
async fn pour(stream: &mut Stream, length: &[u8]) -> usize {
    let (mut taken, chunk) = (0, [0x80; 16 * 1024]);
    let _ = stream.write_all(length).await;
    while taken <= TAKEN_BYTES_MAX {
        let writing = async {
            stream.write_all(&chunk).await?;
            stream.flush().await
        };
        match tokio::time::timeout(STILL, writing).await {
            Ok(Ok(())) => taken += chunk.len(),
            Ok(Err(_)) | Err(_) => break,
        }
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_without_end_or_of_far_too_much_end_their_stream() {
    let lengths: [&[u8]; 5] = [
        &[0x80; 4096],
        &[0xff; 11],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], // 2^64 - 1.
        &[0xff, 0xff, 0xff, 0xff, 0x0f],                               // 4 GiB.
        &[0x81, 0x80, 0x80, 0x04],                                     // A little over 8 MiB.
    ];
    let honest = Honest::start(600).await;
    let peer = Peer::serving(vec![GOSSIPSUB]).await;
    peer.meets(&honest.victim).await;
    let attack = async {
        for protocol in &FRAMED {
            let mut opened = 0;
            for length in lengths.into_iter().cycle().take(3 * lengths.len()) {
                // After some of these a daemon may speak the protocol with this peer no more.
                let Some(mut stream) = open(&peer, &honest.victim, protocol).await else { break };
                opened += 1;
                let taken = pour(&mut stream, length).await;
                assert!(taken < TAKEN_BYTES_MAX, "{protocol} took {taken} bytes after {length:02x?}");
            }
            assert!(opened >= 5, "only {opened} streams of {protocol}");
        }
    };
    honest.during("giant lengths", attack).await;
    assert!(honest.victim.status().node.peers >= 2, "neither is sent away for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_never_end_take_no_place_of_others() {
    let honest = Honest::start(610).await;
    let (peer, witness) = (Peer::serving(vec![GOSSIPSUB]).await, Peer::start().await);
    peer.meets(&honest.victim).await;
    witness.meets(&honest.victim).await;
    let attack = async {
        let mut held = Vec::new();
        for protocol in &FRAMED {
            for begun in [&[][..], &[0x80], &[100, 1, 2, 3]].into_iter().cycle().take(HELD_STREAMS) {
                let Some(mut stream) = open(&peer, &honest.victim, protocol).await else { continue };
                // Above its share it is reset.
                let _ = stream.write_all(begun).await;
                let _ = stream.flush().await;
                held.push(stream);
            }
        }
        assert!(held.len() > HELD_STREAMS);
        held
    };
    let held = honest.during("messages without end", attack).await;
    assert!(asks_kad(&witness, &honest.victim).await.is_some(), "another peer is answered");
    drop(held);
}

/// The message of Kademlia (libp2p specification `kad-dht`), as far as a request goes.
#[derive(Clone, PartialEq, Message)]
struct KadMessage {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    closer: Vec<Vec<u8>>,
}

const FIND_NODE: i32 = 4;

fn find_node() -> Vec<u8> {
    let key = Multihash::wrap(0x12, &[7; 32]).unwrap().to_bytes();
    KadMessage { kind: FIND_NODE, key, closer: Vec::new() }.encode_length_delimited_to_vec()
}

/// Sends a request, ends the own side, and reads all that comes back.
async fn asks_kad(peer: &Peer, daemon: &Daemon) -> Option<KadMessage> {
    let mut stream = open(peer, daemon, &KAD).await?;
    stream.write_all(&find_node()).await.ok()?;
    stream.close().await.ok()?;
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the stream ends").ok()?;
    KadMessage::decode_length_delimited(answer.as_slice()).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closed_streams_of_kademlia_are_answered_and_end() {
    const ROUNDS: usize = 300;
    let honest = Honest::start(620).await;
    let (peer, witness) = (Peer::start().await, Peer::start().await);
    peer.meets(&honest.victim).await;
    witness.meets(&honest.victim).await;
    let attack = async {
        for round in 0..ROUNDS {
            let Some(mut stream) = open(&peer, &honest.victim, &KAD).await else { continue };
            let request = find_node();
            let said = match round % 4 {
                0 => &request[..],
                1 => &request[..request.len() / 2],
                2 => &[],
                // Asked, and gone before the answer.
                _ => {
                    let _ = stream.write_all(&request).await;
                    continue;
                }
            };
            let _ = stream.write_all(said).await;
            let _ = stream.close().await;
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "a stream of which our side ended stays open, after {} bytes", said.len());
            assert_eq!(answer.is_empty(), said.len() < request.len(), "half a request is no request");
        }
    };
    honest.during("half-closed streams", attack).await;
    let answer = asks_kad(&witness, &honest.victim).await.expect("others are answered");
    assert_eq!(answer.kind, FIND_NODE);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_on_one_stream_without_end_is_answered_at_the_readers_pace() {
    const REQUESTS: usize = 20_000;
    let honest = Honest::start(630).await;
    let peer = Peer::start().await;
    peer.meets(&honest.victim).await;
    let attack = async {
        let mut stream = open(&peer, &honest.victim, &KAD).await.unwrap();
        let many = find_node().repeat(REQUESTS / 100);
        let pouring = async {
            for _ in 0..100 {
                if stream.write_all(&many).await.is_err() || stream.flush().await.is_err() {
                    break;
                }
            }
        };
        // Nothing is read of what it answers, so that it may stop reading too.
        let _ = tokio::time::timeout(Duration::from_secs(5), pouring).await;
        stream
    };
    let held = honest.during("the same request", attack).await;
    assert!(asks_kad(&peer, &honest.victim).await.is_some(), "another stream is answered");
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_identify_with_what_has_no_end_is_a_peer_like_any_other() {
    let honest = Honest::start(640).await;
    let lengths: [&[u8]; 4] = [&[0x80; 4096], &[0xff; 11], &[0xff, 0xff, 0xff, 0xff, 0x0f], &[100, 1]];
    let attack = join_all(lengths.map(async |length| {
        let mut talker = Talker::start(&honest.victim);
        let asked = tokio::time::timeout(PATIENCE, talker.incoming.recv()).await;
        let mut stream = asked.expect("it is asked who it is").unwrap().stream;
        let taken = match length.len() {
            // The answer stays half of one for as long as it is waited for.
            2 => stream.write_all(length).await.map_or(0, |()| 0),
            _ => pour(&mut stream, length).await,
        };
        assert!(taken < TAKEN_BYTES_MAX, "{taken} bytes were taken after {length:02x?}");
        // What it says of itself later counts.
        let (_, mut push) = talker.control.open(peer_of(&honest.victim), vec![IDENTIFY_PUSH]).await.unwrap();
        say(&mut push, &talker.says(0)).await;
        (talker, stream)
    }));
    honest.during("identify without end", attack).await;
}
