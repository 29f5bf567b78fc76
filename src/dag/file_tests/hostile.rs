//! Files that lie. Each is refused with a word on what is wrong with it, and after bounded work.

use bytes::Bytes;
use cid::Cid;

use super::{Fixture, leaf, node};
use crate::dag::DagError;
use crate::dag::file::file_size;
use crate::ipld::Block;
use crate::ipld::block::{BLOCK_BYTES_MAX, DAG_PB, RAW};
use crate::ipld::hamt::{Fanout, HamtNode};
use crate::ipld::unixfs::{File, FileChild, encode_directory};

/// A link that says something else of the size than the child does.
fn claiming(child: &FileChild, size_bytes: u64) -> FileChild {
    FileChild { size_bytes, ..child.clone() }
}

#[track_caller]
fn assert_invalid(error: &DagError, what: &str) {
    assert!(matches!(error, DagError::Invalid { .. }), "{error}");
    assert!(error.to_string().contains(what), "{error}");
}

#[tokio::test]
async fn a_child_of_another_size_than_stated_is_refused() {
    let f = Fixture::new();
    let (block, raw) = leaf(&b"0123456789"[..]);
    f.put([block]);
    let inner = f.put_node(&node(vec![raw.clone()]));
    let inline = f.put_node(&File { data: Bytes::from_static(b"0123456789"), children: Vec::new() });
    for child in [raw, inner, inline] {
        for size_bytes in [1, 9, 11, BLOCK_BYTES_MAX as u64 + 1, 1 << 40] {
            let root = f.put_node(&node(vec![claiming(&child, size_bytes)])).cid;
            for range in [0..1, 0..size_bytes] {
                assert_invalid(&f.refusal(root, range).await, "the size is not what the parent states");
            }
        }
    }
    assert!(f.far.fetched() <= 3 + 3 * 5);
}

#[tokio::test]
async fn a_stated_length_beyond_all_bounds_costs_nothing() {
    let f = Fixture::new();
    let (block, raw) = leaf(&b"x"[..]);
    f.put([block]);
    let small = f.put_node(&node(vec![raw.clone()]));
    for child in [raw, small] {
        let root = f.put_node(&node(vec![claiming(&child, 1 << 40); 1000])).cid;
        let length = 1000 << 40;
        assert_eq!(file_size(&f.reader, &root, &root).await.unwrap(), length);
        assert_invalid(&f.refusal(root, 0..length).await, "the size is not what the parent states");
        assert!(f.far.fetched() <= 2);
    }
    let root = f.put_node(&node(vec![claiming(&leaf(&b"y"[..]).1, u64::MAX)])).cid;
    assert!(f.refusal(root, u64::MAX - 1..u64::MAX).await.is_fetch());
}

/// A chain of nodes with one child each.
fn chain(f: &Fixture, mut child: FileChild, length: usize) -> FileChild {
    for _ in 0..length {
        child = f.put_node(&node(vec![child]));
    }
    child
}

#[tokio::test]
async fn depth_has_an_end() {
    let f = Fixture::new();
    let (block, small) = leaf(&b"deep"[..]);
    f.put([block]);
    // Larger than a block, so that the levels are walked one by one.
    let large = f.put_node(&node(vec![small.clone(), claiming(&small, 4 << 20)]));
    for bottom in [small.clone(), large] {
        let root = chain(&f, bottom, 500).cid;
        assert_invalid(&f.refusal(root, 0..4).await, "the file is too deep");
        assert!(f.far.fetched() <= 66);
    }
    let root = chain(&f, small, 60).cid;
    assert_eq!(f.read(root, 0..4).await.unwrap(), b"deep"[..]);
}

#[tokio::test]
async fn parts_of_a_block_have_a_greatest_number() {
    let f = Fixture::new();
    let (block, child) = leaf(&b"x"[..]);
    f.put([block]);
    let fan = f.put_node(&node(vec![child; 1000]));
    let allowed = f.put_node(&node(vec![fan.clone(); 60]));
    assert_eq!(f.read(allowed.cid, 0..60_000).await.unwrap(), vec![b'x'; 60_000]);
    // As a part of the root it is read as one piece.
    let excessive = f.put_node(&node(vec![fan; 70]));
    let root = f.put_node(&node(vec![excessive])).cid;
    assert_invalid(&f.refusal(root, 0..70_000).await, "too many parts");
    assert_eq!(f.read(root, 69_999..70_000).await.unwrap(), b"x"[..]);
}

#[tokio::test]
async fn what_is_no_file_is_refused() {
    let f = Fixture::new();
    let directory = encode_directory(Vec::new());
    let shard = HamtNode::new(Fanout::F256).encode();
    for block in [directory, shard] {
        let cid = *block.cid();
        let size_bytes = block.bytes().len() as u64;
        f.put([block]);
        assert_invalid(&f.refusal(cid, 0..1).await, "a file was expected");
        assert!(file_size(&f.reader, &cid, &cid).await.is_err());
        let root = f.put_node(&node(vec![FileChild { cid, size_bytes, tsize: size_bytes }])).cid;
        let error = f.refusal(root, 0..1).await;
        assert_invalid(&error, &cid.to_string());
    }
}

#[tokio::test]
async fn what_is_no_unixfs_is_refused() {
    let f = Fixture::new();
    let cbor = Block::encode(0x71, Bytes::from_static(b"\xa0"));
    let junk = Block::encode(DAG_PB, Bytes::from_static(b"\xff\xff\xff"));
    let empty = Block::encode(DAG_PB, Bytes::new());
    let too_much = Block::encode(DAG_PB, Bytes::from_static(b"\x0a\x06\x08\x02\x18\xff\xff\x03"));
    for block in [cbor, junk, empty, too_much] {
        f.put([block.clone()]);
        let error = f.refusal(*block.cid(), 0..1).await;
        assert!(matches!(error, DagError::Format(_)), "{error}");
        assert!(error.to_string().contains(&block.cid().to_string()), "{error}");
    }
}

#[tokio::test]
async fn empty_parts_are_not_fetched() {
    let f = Fixture::new();
    let (block, child) = leaf(&b"x"[..]);
    f.put([block]);
    let nobody_has = Cid::new_v1(RAW, *leaf(&b"nobody"[..]).1.cid.hash());
    let empty = FileChild { cid: nobody_has, size_bytes: 0, tsize: 0 };
    let mut children = vec![empty; 5000];
    children.insert(2500, child);
    let root = f.put_node(&node(children)).cid;
    assert_eq!(f.read(root, 0..1).await.unwrap(), b"x"[..]);
    assert_eq!(f.far.fetched(), 2);
}
