//! Files as Kubo has written them since long: `unixfs-v0-2015` and trickle, built here by hand.

use std::collections::VecDeque;

use bytes::Bytes;
use cid::Cid;

use super::{Fixture, node};
use crate::ipld::file_builder::tests::golden_bytes;
use crate::ipld::unixfs::{File, FileChild};

/// Leaves of Kubo's profile `unixfs-v0-2015`.
const CHUNK_BYTES: usize = 262_144;
const LINKS_PER_NODE: usize = 174;

fn put_v0(f: &Fixture, node: &File) -> FileChild {
    let child = f.put_node(node);
    FileChild { cid: Cid::new_v0(*child.cid.hash()).unwrap(), ..child }
}

fn leaves(f: &Fixture, content: &Bytes, chunk_bytes: usize) -> Vec<FileChild> {
    let leaf = |chunk: &[u8]| File { data: content.slice_ref(chunk), children: Vec::new() };
    content.chunks(chunk_bytes).map(|chunk| put_v0(f, &leaf(chunk))).collect()
}

async fn assert_reads(f: &Fixture, root: Cid, content: &Bytes) {
    let size = content.len();
    assert!(f.read(root, 0..size as u64).await.unwrap() == *content);
    for (start, end) in [(0, 1), (size / 2 - 1, size / 2 + 1), (size / 3, size - 1), (size - 1, size)] {
        let bytes = f.read(root, start as u64..end as u64).await.unwrap();
        assert!(bytes == content[start..end], "{start}..{end} of {size}");
    }
}

#[tokio::test]
async fn balanced_files_of_version_0() {
    for (size, cid) in [
        (255, "QmQRdB9LdpfN55YyFFkNutbXkkybCBNV99JGD8WPtkWgPp"),
        (262_145, "QmWSvsdnoGHyyiChpXndiCQPUMRCo9aSBcFS7p4roTx1pX"),
        (5_242_883, "QmbXiLoLPY2HV9sR9BZJaesGwiSCZhc84av8shah6zRNEs"),
        (45_613_057, "QmNLhhCZQMEHFfUFGaVfS4X29NjArNN26adUzqq8j2PYBM"),
    ] {
        let f = Fixture::new();
        let content = Bytes::from(golden_bytes("shoal", size));
        let mut level = leaves(&f, &content, CHUNK_BYTES);
        while level.len() > 1 {
            level = level.chunks(LINKS_PER_NODE).map(|part| put_v0(&f, &node(part.to_vec()))).collect();
        }
        let root = level[0].cid;
        assert_eq!(root.to_string(), cid, "{size} bytes");
        assert_reads(&f, root, &content).await;
    }
}

/// A trickle node: some leaves first, then sub-tries that grow deeper. Takes what it needs from `leaves`.
fn trickle(f: &Fixture, leaves: &mut VecDeque<FileChild>, depth: usize) -> FileChild {
    let mut children: Vec<_> = leaves.drain(..leaves.len().min(4)).collect();
    for level in (0..depth).flat_map(|level| [level, level]) {
        if !leaves.is_empty() {
            children.push(trickle(f, leaves, level));
        }
    }
    put_v0(f, &node(children))
}

#[tokio::test]
async fn trickle_files() {
    for (size, chunk_bytes) in [(5_000, 100), (20_000_001, CHUNK_BYTES)] {
        let f = Fixture::new();
        let content = Bytes::from(golden_bytes("trickle", size));
        let mut rest = leaves(&f, &content, chunk_bytes).into();
        let root = trickle(&f, &mut rest, 4);
        assert!(rest.is_empty(), "all leaves are in the file");
        assert_eq!(root.size_bytes, size as u64);
        assert_reads(&f, root.cid, &content).await;
    }
}
