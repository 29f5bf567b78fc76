//! Bytes pushed in, leaves and a balanced DAG out: profile `unixfs-v1-2025` (IPIP-0499: CIDv1, sha2-256, raw leaves of
//! 1 MiB, 1,024 links), so that the same bytes give the same CID as with Kubo.
//!
//! Split in three, so that the hashing can run where it likes: [`Chunker`] cuts, [`Leaf::cid`] hashes, [`Balanced`] grows
//! the DAG above the leaves.

use bytes::Bytes;
use cid::{Cid, Version};
use multihash_codetable::Code;
use sha2::{Digest as _, Sha256};
use unixfs_v1::file::adder::{FileBranchLink, rebuild_file_branch};

use super::block::{Block, Multihash, RAW};

/// Size of a leaf; the last one may be shorter.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Links of a node above the leaves.
pub const LINKS_PER_NODE: usize = 1024;

const SHA2_256: u64 = 0x12;

/// A leaf, in the parts in which it was pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    parts: Vec<Bytes>,
    size_bytes: usize,
}

impl Leaf {
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Hashes the leaf: about a millisecond for 1 MiB, so not on an async thread.
    pub fn cid(&self) -> Cid {
        let mut hasher = Sha256::new();
        self.parts.iter().for_each(|part| hasher.update(part));
        // 32 bytes fit the 64 of the type, so the fallback is never taken.
        Cid::new_v1(RAW, Multihash::wrap(SHA2_256, &hasher.finalize()).unwrap_or_default())
    }
}

/// Cuts pushed bytes into leaves, without copying them.
#[derive(Default)]
pub struct Chunker {
    open: Leaf,
}

impl Chunker {
    /// Takes bytes in; hands each leaf that they complete to `emit`.
    pub fn push(&mut self, mut bytes: Bytes, mut emit: impl FnMut(Leaf)) {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(CHUNK_BYTES - self.open.size_bytes));
            self.open.size_bytes += part.len();
            self.open.parts.push(part);
            if self.open.size_bytes == CHUNK_BYTES {
                emit(std::mem::take(&mut self.open));
            }
        }
    }

    /// What was pushed behind the last whole leaf.
    pub fn open(&self) -> &Leaf {
        &self.open
    }

    /// The last, shorter leaf, if there is one.
    pub fn finish(self) -> Option<Leaf> {
        (self.open.size_bytes > 0).then_some(self.open)
    }
}

/// The root of a file, and what a link to it states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRoot {
    pub cid: Cid,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Bytes of all blocks of its DAG.
    pub tsize: u64,
}

/// Grows a balanced DAG over leaves that come in order. Holds at most [`LINKS_PER_NODE`] links of each level.
#[derive(Default)]
pub struct Balanced {
    levels: Vec<Vec<FileRoot>>,
}

impl Balanced {
    /// Adds the next leaf; hands each node that it completes to `emit`.
    pub fn push(&mut self, leaf: FileRoot, mut emit: impl FnMut(Block)) {
        self.add(0, leaf, &mut emit);
    }

    fn add(&mut self, level: usize, child: FileRoot, emit: &mut impl FnMut(Block)) {
        if self.levels.len() == level {
            self.levels.push(Vec::new());
        }
        // A full level is closed by the child after it: a file of exactly 1,024 leaves has one node above them.
        if self.levels[level].len() == LINKS_PER_NODE {
            let node = parent(&std::mem::take(&mut self.levels[level]), emit);
            self.add(level + 1, node, emit);
        }
        self.levels[level].push(child);
    }

    /// Closes the DAG; an empty file is one empty leaf, which the caller stores like the others.
    pub fn finish(mut self, mut emit: impl FnMut(Block)) -> FileRoot {
        let mut level = 0;
        while level < self.levels.len() {
            let children = std::mem::take(&mut self.levels[level]);
            level += 1;
            let is_top = level == self.levels.len();
            match (children.as_slice(), is_top) {
                ([root], true) => return *root,
                (_, true) => return parent(&children, &mut emit),
                _ => {
                    let node = parent(&children, &mut emit);
                    self.add(level, node, &mut emit);
                }
            }
        }
        FileRoot { cid: Leaf::default().cid(), size_bytes: 0, tsize: 0 }
    }
}

/// The node above `children`.
fn parent(children: &[FileRoot], emit: &mut impl FnMut(Block)) -> FileRoot {
    let links: Vec<FileBranchLink> = children
        .iter()
        .map(|child| FileBranchLink { cid: child.cid, blocksize: child.size_bytes, tsize: child.tsize })
        .collect();
    let size_bytes = children.iter().map(|child| child.size_bytes).sum();
    let (cid, bytes) = rebuild_file_branch(size_bytes, &links, Version::V1, Code::Sha2_256);
    let tsize = bytes.len() as u64 + children.iter().map(|child| child.tsize).sum::<u64>();
    emit(Block::built(cid, bytes.into()));
    FileRoot { cid, size_bytes, tsize }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use sha3::Shake128;
    use sha3::digest::{ExtendableOutput, Update, XofReader};

    use super::*;

    /// The first `size` bytes of SHAKE-128 of `seed`: the inputs of the golden CIDs.
    pub(crate) fn golden_bytes(seed: &str, size: usize) -> Vec<u8> {
        let mut hasher = Shake128::default();
        hasher.update(seed.as_bytes());
        let mut bytes = vec![0; size];
        hasher.finalize_xof().read(&mut bytes);
        bytes
    }

    /// Builds a file in memory: its root and all of its blocks.
    pub(crate) fn build(content: &Bytes, part_bytes: usize) -> (FileRoot, Vec<Block>) {
        let (mut chunker, mut dag, mut leaves, mut blocks) =
            (Chunker::default(), Balanced::default(), Vec::new(), Vec::new());
        for part in content.chunks(part_bytes.max(1)) {
            chunker.push(content.slice_ref(part), |leaf| leaves.push(leaf));
        }
        leaves.extend(chunker.finish());
        if leaves.is_empty() {
            leaves.push(Leaf::default());
        }
        for leaf in leaves {
            let size_bytes = leaf.size_bytes() as u64;
            blocks.push(Block::verify(leaf.cid(), leaf.parts().concat().into()).unwrap());
            if size_bytes > 0 {
                dag.push(FileRoot { cid: leaf.cid(), size_bytes, tsize: size_bytes }, |node| {
                    blocks.push(node)
                });
            }
        }
        let root = dag.finish(|node| blocks.push(node));
        (root, blocks)
    }

    #[test]
    fn files_have_the_cids_that_kubo_gives_them() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/fixtures/unixfs/golden.json")).unwrap();
        let mut compared = 0;
        for file in golden["files"].as_array().unwrap() {
            let size = usize::try_from(file["size"].as_u64().unwrap()).unwrap();
            if file["profile"] == "unixfs-v1-2025" && file["variant"] == "plain" && size <= 64 << 20 {
                let (root, _) = build(&golden_bytes("shoal", size).into(), 1 << 20);
                assert_eq!(root.cid.to_string(), file["cid"].as_str().unwrap(), "{size} bytes");
                assert_eq!(root.size_bytes, size as u64);
                compared += 1;
            }
        }
        assert!(compared >= 12, "only {compared} golden files were compared");
    }

    #[test]
    fn a_second_level_begins_behind_1024_leaves() {
        let leaf = FileRoot { cid: Leaf::default().cid(), size_bytes: 1, tsize: 1 };
        for (leaves, nodes) in
            [(1, 0), (2, 1), (1024, 1), (1025, 3), (2048, 3), (1024 * 1024, 1025), (1024 * 1024 + 1, 1028)]
        {
            let (mut dag, mut emitted, mut bytes) = (Balanced::default(), 0, 0);
            let mut count = |block: Block| {
                emitted += 1;
                bytes += block.bytes().len() as u64;
            };
            for _ in 0..leaves {
                dag.push(leaf, &mut count);
            }
            let root = dag.finish(&mut count);
            assert_eq!(
                (emitted, root.size_bytes, root.tsize),
                (nodes, leaves, leaves + bytes),
                "{leaves} leaves"
            );
        }
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_into_parts_does_not_matter(size in 0_usize..3_000_000, part in 1_usize..1_500_000) {
            let content = Bytes::from(golden_bytes("parts", size));
            let whole = build(&content, size);
            let cut = build(&content, part);
            prop_assert_eq!(whole, cut);
        }
    }
}
