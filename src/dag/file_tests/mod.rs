//! Files as they are written, as others write them, and as nobody should.

mod flight;
mod hostile;
mod layouts;
mod ranges;
mod write;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use futures::TryStreamExt;

use super::file::{Expected, FileRoot, FileWriter, read};
use super::testing::Far;
use super::{Blocks, DagError};
use crate::ipld::Block;
use crate::ipld::block::RAW;
use crate::ipld::unixfs::{File, FileChild};
use crate::store::{Store, StoreOptions};

/// Somebody who has blocks, and somebody who has none and asks the former.
struct Fixture {
    origin: Blocks,
    reader: Blocks,
    far: Arc<Far>,
    _stores: [(Store, tempfile::TempDir); 2],
}

impl Fixture {
    fn new() -> Self {
        let stores = [(); 2].map(|()| {
            let folder = tempfile::tempdir().unwrap();
            (Store::open(folder.path(), StoreOptions::default()).unwrap(), folder)
        });
        let far = Far::with(Some(stores[0].0.blocks()));
        Self {
            origin: Blocks::new(stores[0].0.blocks().clone(), Far::with(None)),
            reader: Blocks::new(stores[1].0.blocks().clone(), far.clone()),
            far,
            _stores: stores,
        }
    }

    /// Writes a file at the origin, cut into pieces of these sizes, again and again.
    async fn write(&self, content: &Bytes, pieces: &[usize]) -> FileRoot {
        let mut writer = FileWriter::new(&self.origin);
        let (mut rest, mut sizes) = (content.clone(), pieces.iter().cycle());
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(*sizes.next().unwrap()));
            writer.write(piece).await.unwrap();
        }
        writer.finish().await.unwrap()
    }

    /// Has the origin keep blocks.
    fn put(&self, blocks: impl IntoIterator<Item = Block>) {
        for block in blocks {
            self.origin.store().put(block.cid().hash(), std::slice::from_ref(block.bytes())).unwrap();
        }
    }

    /// Has the origin keep a node, and returns what a link to it says.
    fn put_node(&self, node: &File) -> FileChild {
        let child = link(node);
        self.put([node.encode()]);
        child
    }

    async fn read(&self, root: Cid, range: Range<u64>) -> Result<Bytes, DagError> {
        let pieces = read(&self.reader, root, root, range, Expected::Network);
        let bytes: Vec<Bytes> = pieces.try_collect().await?;
        Ok(bytes.concat().into())
    }

    /// Reads in vain.
    async fn refusal(&self, root: Cid, range: Range<u64>) -> DagError {
        self.read(root, range).await.unwrap_err()
    }
}

/// What a link to a node of this content says.
fn link(node: &File) -> FileChild {
    let block = node.encode();
    let below: u64 = node.children.iter().map(|child| child.tsize).sum();
    FileChild { cid: *block.cid(), size_bytes: node.size_bytes(), tsize: block.bytes().len() as u64 + below }
}

fn node(children: Vec<FileChild>) -> File {
    File { data: Bytes::new(), children }
}

/// A raw leaf, and what a link to it says.
fn leaf(bytes: impl Into<Bytes>) -> (Block, FileChild) {
    let block = Block::encode(RAW, bytes.into());
    let size_bytes = block.bytes().len() as u64;
    let child = FileChild { cid: *block.cid(), size_bytes, tsize: size_bytes };
    (block, child)
}
