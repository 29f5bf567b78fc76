//! Published fixtures of the field: archives with UnixFS in them, and IPNS records, sound and broken.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use jiff::Timestamp;
use shoal::dag::file::{Expected, file_size, read};
use shoal::dag::{Blocks, DagError, Tree};
use shoal::ipfs::Nowhere;
use shoal::ipld::ipns::{IpnsName, IpnsRecord};
use shoal::ipld::{Block, Cid, car};
use shoal::oci::Digest;
use shoal::store::{Store, StoreOptions};
use tempfile::TempDir;

/// Of the file of several blocks that most of the archives have.
const TEXT_SHA256: &str = "sha256:998785f13287a9aabc2d7048e4c2905d502ff13ef40f2d135f163b5a762701c5";
/// Of the sorted names of the sharded directory, a line each.
const NAMES_SHA256: &str = "sha256:2f9027bc71d018746a77b075252b86657bea97cc83f53590bd30b711524da2cb";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gateway-conformance")
}

/// What an archive has, and nobody else to ask.
struct Archive {
    root: Cid,
    blocks: usize,
    tree: Tree,
    _folder: TempDir,
}

impl Archive {
    async fn open(name: &str) -> Self {
        let bytes = std::fs::read(fixtures().join(name)).unwrap();
        let mut decoder = car::Decoder::default();
        let mut found = Vec::new();
        for piece in bytes.chunks(1000) {
            decoder.push(piece);
            while let Some((cid, content)) = decoder.next_entry().unwrap() {
                found.push(Block::verify(cid, content).unwrap());
            }
        }
        decoder.finish().unwrap();
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let tree = Tree::new(Blocks::new(store.blocks().clone(), Arc::new(Nowhere)));
        let (root, blocks) = (*found[0].cid(), found.len());
        tree.blocks().put(found).await.unwrap();
        Self { root, blocks, tree, _folder: folder }
    }

    async fn file(&self, path: &str) -> Result<Bytes, DagError> {
        let entry = self.tree.lookup(&self.root, path).await?.unwrap();
        self.content(entry.cid).await
    }

    async fn content(&self, cid: Cid) -> Result<Bytes, DagError> {
        let blocks = self.tree.blocks();
        let size = file_size(blocks, &cid, &self.root).await?;
        let parts: Vec<Bytes> =
            read(blocks, cid, self.root, 0..size, Expected::Network).try_collect().await?;
        Ok(parts.concat().into())
    }

    async fn names(&self, path: &str) -> Vec<String> {
        self.tree.list(&self.root, path, None, 2000).await.unwrap().unwrap().names
    }
}

#[tokio::test]
async fn directories_and_files_of_several_blocks_are_read() {
    let flat = Archive::open("dir-with-files.car").await;
    assert_eq!(flat.names("").await, ["ascii-copy.txt", "ascii.txt", "hello.txt", "multiblock.txt"]);
    assert_eq!(flat.file("hello.txt").await.unwrap(), "hello world\n");
    assert_eq!(flat.file("ascii.txt").await.unwrap(), "hello application/vnd.ipld.car\n");
    assert_eq!(Digest::sha256(&flat.file("multiblock.txt").await.unwrap()).to_string(), TEXT_SHA256);

    let deep = Archive::open("subdir-with-mixed-block-files.car").await;
    assert_eq!(deep.names("subdir").await, ["ascii.txt", "hello.txt", "multiblock.txt"]);
    let text = deep.file("subdir/multiblock.txt").await.unwrap();
    assert_eq!(Digest::sha256(&text).to_string(), TEXT_SHA256);
}

#[tokio::test]
async fn a_sharded_directory_is_listed_and_looked_up_in() {
    let archive = Archive::open("single-layer-hamt-with-multi-block-files.car").await;
    assert_eq!(archive.blocks, 243);
    let names = archive.names("").await;
    let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
    assert_eq!((names.len(), Digest::sha256(lines.as_bytes()).to_string().as_str()), (1000, NAMES_SHA256));
    let text = archive.file("1.txt").await.unwrap();
    assert_eq!(Digest::sha256(&text).to_string(), TEXT_SHA256);
    assert!(archive.tree.lookup(&archive.root, "1001.txt").await.unwrap().is_none());
}

#[tokio::test]
async fn a_file_whose_second_block_is_missing_fails_and_is_not_cut_short() {
    let archive = Archive::open("file-3k-and-3-blocks-missing-block.car").await;
    assert!(archive.content(archive.root).await.unwrap_err().is_fetch());
    let blocks = archive.tree.blocks();
    let first: Vec<Bytes> =
        read(blocks, archive.root, archive.root, 0..1024, Expected::Network).try_collect().await.unwrap();
    assert_eq!(first.concat().len(), 1024);
}

#[test]
fn records_are_believed_by_their_second_signature_alone() {
    let mut read = 0;
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let Some(stem) = file.strip_suffix(".ipns-record") else { continue };
        let (name, kind) = stem.split_once('_').unwrap();
        let name: IpnsName = name.parse().unwrap();
        let bytes = std::fs::read(fixtures().join(&file)).unwrap();
        let record = IpnsRecord::decode(&name, &bytes);
        let expected = match kind {
            "v1-v2" => Some("/ipfs/bafkqaddwgevxmmraojswg33smq"),
            "v2" => Some("/ipfs/bafkqadtwgiww63tmpeqhezldn5zgi"),
            // Nobody checks the first one any more.
            "v1-v2-broken-signature-v1" => {
                Some("/ipfs/bafkqahtwgevxmmrao5uxi2bamjzg623fnyqhg2lhnzqxi5lsmuqhmmi")
            }
            "v1" | "v1-v2-broken-signature-v2" | "v1-v2-broken-v1-value" => None,
            other => panic!("{other} is not expected"),
        };
        assert_eq!(record.as_ref().ok().map(|record| record.value()), expected, "{kind}");
        if let Ok(record) = record {
            record.check_validity(Timestamp::now()).unwrap();
        }
        read += 1;
    }
    assert_eq!(read, 6);
}
