//! What readers have in flight: several blocks at once, never too many, and nothing that nobody waits for.

use bytes::Bytes;
use futures::future::join_all;
use futures::{FutureExt, StreamExt, TryStreamExt};

use super::{Fixture, leaf, node};
use crate::dag::file::{Expected, file_size, read};
use crate::ipfs::Want;
use crate::ipld::Cid;
use crate::ipld::block::BLOCK_BYTES_MAX;
use crate::ipld::file_builder::CHUNK_BYTES;
use crate::ipld::file_builder::tests::golden_bytes;

/// A file whose leaves have these sizes, its root known to the reader.
async fn file_of(f: &Fixture, sizes: impl IntoIterator<Item = usize>) -> (Cid, u64) {
    let mut children = Vec::new();
    for (n, size) in sizes.into_iter().enumerate() {
        let mut bytes = vec![0x5a; size];
        bytes.iter_mut().zip(n.to_le_bytes()).for_each(|(byte, digit)| *byte = digit);
        let (block, child) = leaf(bytes);
        f.put([block]);
        children.push(child);
    }
    let root = f.put_node(&node(children));
    file_size(&f.reader, &root.cid, &root.cid).await.unwrap();
    (root.cid, root.size_bytes)
}

#[tokio::test]
async fn several_blocks_are_in_flight_and_never_more_than_12_mib() {
    let mixed = std::iter::once(1).chain(std::iter::repeat_n(BLOCK_BYTES_MAX, 10));
    let files: [(Vec<usize>, Expected, usize); 5] = [
        (vec![CHUNK_BYTES; 20], Expected::Network, 12),
        (vec![BLOCK_BYTES_MAX; 10], Expected::Network, 6),
        (vec![1000; 100], Expected::Network, 48),
        (mixed.collect(), Expected::Network, 6),
        (vec![CHUNK_BYTES; 10], Expected::Local, 3),
    ];
    for (sizes, expected, in_flight) in files {
        let f = Fixture::new();
        let (root, size) = file_of(&f, sizes).await;
        f.far.hold();
        let mut pieces = read(&f.reader, root, root, 0..size, expected);
        tokio::select! {
            piece = pieces.next() => panic!("read {:?} of a network that holds", piece.map(|piece| piece.is_ok())),
            () = f.far.until_pending(in_flight) => (),
        }
        f.far.release();
        let read: usize =
            pieces.map_ok(|bytes| bytes.len()).try_fold(0, |a, b| async move { Ok(a + b) }).await.unwrap();
        assert_eq!(read as u64, size);
        assert_eq!(f.far.pending_peak(), in_flight);
    }
}

#[tokio::test]
async fn a_reader_that_stops_reading_fetches_no_more() {
    let f = Fixture::new();
    let (root, size) = file_of(&f, vec![CHUNK_BYTES; 40]).await;
    f.far.fetched();
    let mut pieces = read(&f.reader, root, root, 0..size, Expected::Network);
    for _ in 0..5 {
        pieces.next().await.unwrap().unwrap();
    }
    assert!(f.far.fetched() <= 5 + 12);
}

#[tokio::test]
async fn dropping_a_stream_withdraws_what_it_waited_for() {
    let f = Fixture::new();
    let (root, size) = file_of(&f, vec![CHUNK_BYTES; 20]).await;
    f.far.hold();
    let mut pieces = read(&f.reader, root, root, 0..size, Expected::Network);
    assert!(pieces.next().now_or_never().is_none());
    tokio::select! {
        _ = pieces.next() => panic!("read of a network that holds"),
        () = f.far.until_pending(12) => (),
    }
    drop(pieces);
    assert_eq!(f.far.pending(), 0);
    f.far.release();
    assert_eq!(f.read(root, 0..size).await.unwrap().len() as u64, size);
}

#[tokio::test]
async fn readers_of_one_file_share_its_fetches() {
    let f = Fixture::new();
    let content = Bytes::from(golden_bytes("shared", 6 * CHUNK_BYTES));
    let root = f.write(&content, &[CHUNK_BYTES]).await;
    let readers = (0..10).map(|_| f.read(root.cid, 0..root.size_bytes));
    for read in join_all(readers).await {
        assert!(read.unwrap() == content);
    }
    assert_eq!(f.far.fetched(), 7, "the root and six leaves, each once");
}

#[tokio::test]
async fn a_fetch_ends_with_the_last_who_waits_for_it() {
    let f = Fixture::new();
    let (block, child) = leaf(&b"wanted"[..]);
    f.put([block.clone()]);
    f.far.hold();
    let want = Want { cid: child.cid, root: child.cid };
    let mut waiting: Vec<_> = (0..5).map(|_| Box::pin(f.reader.fetch(want))).collect();
    let all_wait = async {
        while f.reader.waiting(&child.cid) < 5 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = join_all(&mut waiting) => panic!("fetched from a network that holds"),
        ((), ()) = async { tokio::join!(f.far.until_pending(1), all_wait) } => (),
    }
    let last = waiting.split_off(4);
    drop(waiting);
    assert_eq!((f.far.pending(), f.far.fetched()), (1, 1));
    drop(last);
    assert_eq!(f.far.pending(), 0);
    f.far.release();
    assert_eq!(f.reader.fetch(want).await.unwrap(), block);
}
