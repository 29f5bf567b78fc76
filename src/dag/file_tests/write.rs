//! What is written has the CIDs that Kubo gives it, however it comes.

use bytes::Bytes;

use super::{Fixture, leaf, link, node};
use crate::dag::file::{FileWriter, file_size};
use crate::ipld::file_builder::tests::golden_bytes;
use crate::ipld::file_builder::{CHUNK_BYTES, LINKS_PER_NODE};

/// The golden files of what is written: size and CID. The large ones are left to the tests of the builder.
fn golden_files() -> Vec<(usize, String)> {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/fixtures/unixfs/golden.json")).unwrap();
    let files = golden["files"].as_array().unwrap().iter();
    let ours = files.filter(|file| file["profile"] == "unixfs-v1-2025" && file["variant"] == "plain");
    ours.map(|file| (file["size"].as_u64().unwrap() as usize, file["cid"].as_str().unwrap().to_owned()))
        .filter(|(size, _)| *size <= 6 << 20)
        .collect()
}

#[tokio::test]
async fn files_have_the_cids_of_kubo_and_are_read_back() {
    let f = Fixture::new();
    let files = golden_files();
    assert!(files.len() >= 11);
    for (size, cid) in files {
        let content = Bytes::from(golden_bytes("shoal", size));
        let odd = [1, 4095, 65_536, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 7];
        let root = f.write(&content, &odd).await;
        assert_eq!(root.cid.to_string(), cid, "{size} bytes");
        assert_eq!(root.size_bytes, size as u64);
        assert_eq!(file_size(&f.reader, &root.cid, &root.cid).await.unwrap(), size as u64);
        assert!(f.read(root.cid, 0..size as u64).await.unwrap() == content, "{size} bytes");
    }
}

#[tokio::test]
async fn behind_1024_leaves_there_is_a_second_level() {
    let f = Fixture::new();
    let chunk = Bytes::from(golden_bytes("leaf", CHUNK_BYTES));
    let mut writer = FileWriter::new(&f.origin);
    for _ in 0..LINKS_PER_NODE {
        writer.write(chunk.clone()).await.unwrap();
    }
    writer.write(Bytes::from_static(b"end")).await.unwrap();
    let root = writer.finish().await.unwrap();

    let first = node(vec![leaf(chunk.clone()).1; LINKS_PER_NODE]);
    let second = node(vec![leaf(&b"end"[..]).1]);
    let expected = link(&node(vec![link(&first), link(&second)]));
    assert_eq!((root.cid, root.size_bytes, root.tsize), (expected.cid, expected.size_bytes, expected.tsize));

    let end = root.size_bytes;
    let tail = [&chunk[CHUNK_BYTES - 5..], b"end"].concat();
    assert_eq!(f.read(root.cid, end - 8..end).await.unwrap(), tail);
    assert_eq!(f.far.fetched(), 5, "the root, two nodes, two leaves");
    assert_eq!(f.read(root.cid, end - 3..end).await.unwrap(), b"end"[..]);
    assert_eq!(f.far.fetched(), 0);
}

#[tokio::test]
async fn what_is_fed_before_the_writer_is_dropped_harms_nobody() {
    let f = Fixture::new();
    let content = Bytes::from(golden_bytes("dropped", 5 * CHUNK_BYTES));
    let mut writer = FileWriter::new(&f.origin);
    writer.feed(content.clone());
    // Dropped midway: what was fed stays fed.
    assert!(futures::FutureExt::now_or_never(writer.settle()).is_none());
    let root = writer.finish().await.unwrap();
    assert_eq!(root, f.write(&content, &[CHUNK_BYTES]).await);

    let mut writer = FileWriter::new(&f.origin);
    writer.feed(content);
    drop(writer);
}

#[tokio::test]
async fn a_written_file_is_durable_after_a_flush() {
    let folder = tempfile::tempdir().unwrap();
    let content = Bytes::from(golden_bytes("durable", 3 * CHUNK_BYTES + 1));
    let open = || crate::store::Store::open(folder.path(), crate::store::StoreOptions::default()).unwrap();
    let root = {
        let store = open();
        let blocks = super::Blocks::new(store.blocks().clone(), super::Far::with(None));
        let mut writer = FileWriter::new(&blocks);
        writer.write(content.clone()).await.unwrap();
        let root = writer.finish().await.unwrap();
        blocks.flush().await.unwrap();
        root
    };
    let store = open();
    let blocks = super::Blocks::new(store.blocks().clone(), super::Far::with(None));
    let pieces = super::read(&blocks, root.cid, root.cid, 0..root.size_bytes, super::Expected::Local);
    let bytes: Vec<Bytes> = futures::TryStreamExt::try_collect(pieces).await.unwrap();
    assert_eq!(bytes.concat(), content);
}
