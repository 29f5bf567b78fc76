//! Writing and reading files of 64 MiB, beside plain sha256 of the same bytes, in the same run.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

mod common;

use std::sync::Arc;

use bytes::Bytes;
use common::Nobody;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use shoal::dag::Blocks;
use shoal::dag::file::{Expected, FileRoot, FileWriter, read};
use shoal::store::{Store, StoreOptions};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const FILE_BYTES: usize = 64 << 20;
/// What a client's body comes in.
const PIECE_BYTES: usize = 64 << 10;

fn main() {
    divan::main();
}

/// A store of its own for each round, so that nothing is there already.
struct Fixture {
    blocks: Blocks,
    _store: Store,
    _folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        Self { blocks: Blocks::new(store.blocks().clone(), Arc::new(Nobody)), _store: store, _folder: folder }
    }

    async fn write(&self, content: &Bytes) -> FileRoot {
        let mut writer = FileWriter::new(&self.blocks);
        for piece in content.chunks(PIECE_BYTES) {
            writer.write(content.slice_ref(piece)).await.unwrap();
        }
        writer.finish().await.unwrap()
    }
}

/// Bytes of which no two leaves are the same.
fn content() -> Bytes {
    let mut bytes = vec![0x5a; FILE_BYTES];
    for (n, piece) in bytes.chunks_mut(PIECE_BYTES).enumerate() {
        piece[..8].copy_from_slice(&n.to_le_bytes());
    }
    bytes.into()
}

#[divan::bench(sample_count = 10)]
fn sha256(bencher: Bencher<'_, '_>) {
    let content = content();
    bencher.counter(BytesCount::new(FILE_BYTES)).bench_local(|| black_box(Sha256::digest(&content)));
}

#[divan::bench(sample_count = 10)]
fn write(bencher: Bencher<'_, '_>) {
    let (content, runtime) = (content(), Runtime::new().unwrap());
    bencher
        .counter(BytesCount::new(FILE_BYTES))
        .with_inputs(Fixture::new)
        .bench_local_refs(|f| runtime.block_on(f.write(&content)));
}

#[divan::bench(sample_count = 10)]
fn write_and_flush(bencher: Bencher<'_, '_>) {
    let (content, runtime) = (content(), Runtime::new().unwrap());
    bencher.counter(BytesCount::new(FILE_BYTES)).with_inputs(Fixture::new).bench_local_refs(|f| {
        runtime.block_on(async {
            f.write(&content).await;
            f.blocks.flush().await.unwrap();
        });
    });
}

#[divan::bench(sample_count = 10)]
fn read_what_is_here(bencher: Bencher<'_, '_>) {
    let runtime = Runtime::new().unwrap();
    let f = Fixture::new();
    let root = runtime.block_on(f.write(&content()));
    bencher.counter(BytesCount::new(FILE_BYTES)).bench_local(|| {
        runtime.block_on(async {
            let mut pieces = read(&f.blocks, root.cid, root.cid, 0..root.size_bytes, Expected::Local);
            while let Some(bytes) = pieces.try_next().await.unwrap() {
                black_box(bytes);
            }
        });
    });
}
