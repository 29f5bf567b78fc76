//! Every range of every shape gives the bytes that lie there, and fetches nothing else.

use bytes::Bytes;
use cid::Cid;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::{Fixture, leaf, link};
use crate::dag::DagError;
use crate::ipld::block::{IDENTITY, RAW};
use crate::ipld::file_builder::CHUNK_BYTES;
use crate::ipld::file_builder::tests::golden_bytes;
use crate::ipld::unixfs::{File, FileChild};
use crate::ipld::{Block, Multihash};

#[tokio::test]
async fn ranges_around_the_edges_of_chunks() {
    let f = Fixture::new();
    let size = 3 * CHUNK_BYTES + 10;
    let content = Bytes::from(golden_bytes("edges", size));
    let root = f.write(&content, &[CHUNK_BYTES]).await.cid;
    let edges = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, size - 1, size];
    for start in edges {
        for end in edges.into_iter().filter(|end| *end >= start) {
            let bytes = f.read(root, start as u64..end as u64).await.unwrap();
            assert!(bytes == content[start..end], "{start}..{end}");
        }
    }
}

#[tokio::test]
async fn what_lies_outside_of_a_range_is_not_fetched() {
    let f = Fixture::new();
    let content = Bytes::from(golden_bytes("outside", 40 * CHUNK_BYTES));
    let root = f.write(&content, &[CHUNK_BYTES]).await.cid;
    let at = (30 * CHUNK_BYTES) as u64;
    for (range, fetched) in [(at + 5..at + 6, 2), (at..at + 1, 0), (at - 1..at + 1, 1), (0..0, 0)] {
        f.read(root, range.clone()).await.unwrap();
        assert_eq!(f.far.fetched(), fetched, "{range:?}");
    }
}

#[tokio::test]
async fn a_range_behind_the_end_is_refused() {
    let f = Fixture::new();
    let root = f.write(&Bytes::from_static(b"twelve bytes"), &[5]).await.cid;
    for range in [0..13, 12..13, 5..u64::MAX] {
        let error = f.refusal(root, range).await;
        assert!(error.to_string().starts_with("a range behind the end"), "{error}");
    }
}

#[tokio::test]
async fn a_block_that_nobody_has_is_an_error_after_what_came() {
    let f = Fixture::new();
    let (here, away) = (leaf(&b"here"[..]), leaf(&b"away"[..]));
    f.put([here.0]);
    let root = f.put_node(&File { data: Bytes::new(), children: vec![here.1, away.1] }).cid;
    assert_eq!(f.read(root, 0..4).await.unwrap(), b"here"[..]);
    let error = f.refusal(root, 0..8).await;
    assert!(error.is_fetch(), "{error}");
    assert!(!matches!(error, DagError::Invalid { .. }));
}

/// Numbers for a random shape, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % sides
    }
}

/// Builds any shape that UnixFS allows over `content`: leaves of each kind, bytes within inner nodes, empty parts.
fn grow(f: &Fixture, dice: &mut Dice, content: &Bytes, depth: usize) -> FileChild {
    if depth == 0 || content.len() < 2 || dice.roll(8) == 0 {
        return any_leaf(f, dice, content);
    }
    let mut rest = content.clone();
    let data = if dice.roll(2) == 0 { rest.split_to(dice.roll(rest.len()).min(500)) } else { Bytes::new() };
    let parts = 1 + dice.roll(4);
    let mut children = Vec::new();
    for part in 0..parts {
        let bytes = if part + 1 == parts { rest.len() } else { dice.roll(rest.len() + 1) };
        children.push(grow(f, dice, &rest.split_to(bytes), depth - 1));
    }
    with_version(f, dice, &File { data, children })
}

fn any_leaf(f: &Fixture, dice: &mut Dice, content: &Bytes) -> FileChild {
    let size_bytes = content.len() as u64;
    match dice.roll(4) {
        0 if content.len() <= 64 => {
            let cid = Cid::new_v1(RAW, Multihash::wrap(IDENTITY, content).unwrap());
            FileChild { cid, size_bytes, tsize: size_bytes }
        }
        1 => with_version(f, dice, &File { data: content.clone(), children: Vec::new() }),
        _ => {
            let (block, child) = leaf(content.clone());
            f.put([block]);
            child
        }
    }
}

fn with_version(f: &Fixture, dice: &mut Dice, node: &File) -> FileChild {
    let child = f.put_node(node);
    if dice.roll(2) == 0 {
        child
    } else {
        FileChild { cid: Cid::new_v0(*child.cid.hash()).unwrap(), ..child }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_range_of_any_shape(
        seed in any::<u64>(),
        size in prop_oneof![0_usize..5000, 0_usize..3_000_000],
        ranges in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 6),
    ) {
        Runtime::new().unwrap().block_on(async {
            let f = Fixture::new();
            let content = Bytes::from(golden_bytes("shape", size));
            let mut dice = Dice(seed);
            // The leaves must fit blocks: a first cut into parts of 2 MiB at most, then anything.
            let children: Vec<_> =
                content.chunks(1 << 20).map(|part| grow(&f, &mut dice, &content.slice_ref(part), 4)).collect();
            let whole = File { data: Bytes::new(), children };
            f.put([whole.encode()]);
            let root = link(&whole).cid;
            assert!(f.read(root, 0..size as u64).await.unwrap() == content);
            for (a, b) in ranges {
                let (a, b) = (a.index(size + 1), b.index(size + 1));
                let (start, end) = (a.min(b), a.max(b));
                let bytes = f.read(root, start as u64..end as u64).await.unwrap();
                assert!(bytes == content[start..end], "{start}..{end} of {size}");
            }
        });
    }

    #[test]
    fn any_range_of_a_written_file(
        size in 0_usize..3_000_000,
        pieces in proptest::collection::vec(1_usize..1_500_000, 1..5),
        ranges in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 6),
    ) {
        Runtime::new().unwrap().block_on(async {
            let f = Fixture::new();
            let content = Bytes::from(golden_bytes("written", size));
            let root = f.write(&content, &pieces).await.cid;
            for (a, b) in ranges {
                let (a, b) = (a.index(size + 1), b.index(size + 1));
                let (start, end) = (a.min(b), a.max(b));
                let bytes = f.read(root, start as u64..end as u64).await.unwrap();
                assert!(bytes == content[start..end], "{start}..{end} of {size}");
            }
        });
    }
}

#[tokio::test]
async fn an_identity_cid_as_a_root_asks_nobody() {
    let f = Fixture::new();
    let cid = Cid::new_v1(RAW, Multihash::wrap(IDENTITY, b"tiny").unwrap());
    assert_eq!(f.read(cid, 1..3).await.unwrap(), b"in"[..]);
    let inlined = File { data: Bytes::from_static(b"small"), children: Vec::new() }.encode();
    let cid = Cid::new_v1(0x70, Multihash::wrap(IDENTITY, inlined.bytes()).unwrap());
    assert_eq!(f.read(cid, 0..5).await.unwrap(), b"small"[..]);
    assert_eq!(f.far.fetched(), 0);
    assert!(Block::inline(&cid).is_some());
}
