//! Edits and look-ups of a tree: what a commit of one tag, and a pull, cost beside the bytes.
//!
//! An edit among 100,000 tags may take twice as long as one among 100.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

mod common;

use std::sync::Arc;

use common::Nobody;
use divan::{Bencher, black_box};
use shoal::dag::{Blocks, Edit, Entry, Tree};
use shoal::ipld::block::RAW;
use shoal::ipld::{Block, Cid};
use shoal::store::{Store, StoreOptions};
use tokio::runtime::Runtime;

const TAGS: &str = "docker/registry/v2/repositories/library/app/_manifests/tags";

fn main() {
    divan::main();
}

struct Fixture {
    tree: Tree,
    root: Cid,
    runtime: Runtime,
    _store: Store,
    _dir: tempfile::TempDir,
}

fn link(text: &str) -> Entry {
    Entry { cid: *Block::encode(RAW, text.as_bytes().to_vec().into()).cid(), tsize: 71 }
}

fn tag(number: u64) -> Edit {
    Edit { path: format!("{TAGS}/v1.0.{number}"), to: Some(link(&number.to_string())) }
}

impl Fixture {
    fn new(tags: u64) -> Self {
        let runtime = Runtime::new().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        let tree = Tree::new(Blocks::new(store.blocks().clone(), Arc::new(Nobody)));
        let edits: Vec<_> = (0..tags).map(tag).collect();
        let root = runtime.block_on(async {
            let empty = tree.empty().await.unwrap();
            tree.edit(&empty.cid, &edits).await.unwrap().cid
        });
        Self { tree, root, runtime, _store: store, _dir: dir }
    }
}

#[divan::bench(args = [100, 100_000])]
fn set_one_tag_among(bencher: Bencher<'_, '_>, tags: u64) {
    let mut f = Fixture::new(tags);
    let mut next = tags;
    bencher.bench_local(|| {
        next += 1;
        f.root = f.runtime.block_on(f.tree.edit(&f.root, &[tag(next)])).unwrap().cid;
    });
}

#[divan::bench(args = [100, 100_000])]
fn remove_one_tag_among(bencher: Bencher<'_, '_>, tags: u64) {
    let f = Fixture::new(tags);
    let edit = [Edit { to: None, ..tag(77) }];
    bencher.bench_local(|| f.runtime.block_on(f.tree.edit(&f.root, &edit)).unwrap());
}

#[divan::bench(args = [100, 100_000])]
fn look_up_again_among(bencher: Bencher<'_, '_>, tags: u64) {
    let f = Fixture::new(tags);
    let path = tag(77).path;
    bencher.bench_local(|| black_box(f.runtime.block_on(f.tree.lookup(&f.root, &path)).unwrap()));
}

#[divan::bench(args = [100, 100_000])]
fn look_up_at_a_new_root_among(bencher: Bencher<'_, '_>, tags: u64) {
    let f = Fixture::new(tags);
    let mut next = 0;
    bencher
        .with_inputs(|| {
            next += 1;
            let edit = [Edit { path: "other".to_owned(), to: Some(link(&next.to_string())) }];
            (f.runtime.block_on(f.tree.edit(&f.root, &edit)).unwrap().cid, tag(next % tags).path)
        })
        .bench_local_values(|(root, path)| {
            black_box(f.runtime.block_on(f.tree.lookup(&root, &path)).unwrap())
        });
}

#[divan::bench(args = [100, 100_000])]
fn list_a_page_among(bencher: Bencher<'_, '_>, tags: u64) {
    let f = Fixture::new(tags);
    bencher.bench_local(|| f.runtime.block_on(f.tree.list(&f.root, TAGS, None, 100)).unwrap());
}
