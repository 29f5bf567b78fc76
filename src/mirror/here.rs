//! Blobs that are here and that anybody may have who knows their digest: of the own tree, and of names that are followed.

use std::ops::Range;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::{Mirror, MirrorError};
use crate::dag::file::Expected;
use crate::dag::{Blocks, Keep, file};
use crate::ipld::Cid;
use crate::ipld::block::RAW;
use crate::oci::Digest;

/// A blob that is here. It stays for as long as this lives, or is read.
pub struct HeldBlob {
    pub size_bytes: u64,
    root: Cid,
    /// Without the network: what a stranger asks for never makes us fetch.
    blocks: Blocks,
    keep: Keep,
}

impl HeldBlob {
    /// The bytes of `range`. An error, which the lack of a part is too, means: break the response off.
    pub fn read(self, range: Range<u64>) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        let Self { root, blocks, keep, .. } = self;
        file::read(&blocks, root, root, range, Expected::Local)
            .map_err(MirrorError::from)
            .inspect(move |_| {
                let _ = &keep;
            })
            .boxed()
    }
}

impl Mirror {
    /// A blob or manifest that was once held to its digest here, or is one block; never asks the network. `None`: it is not
    /// here, or not public.
    pub async fn blob_here(&self, digest: &Digest) -> Result<Option<HeldBlob>, MirrorError> {
        let blocks = self.0.tree.blocks();
        let proven = self.0.proven.get(digest).await?;
        let root = proven.map_or_else(|| Cid::new_v1(RAW, digest.multihash()), |entry| entry.cid);
        let keep = blocks.keep();
        keep.add(root);
        // What is proven may have gone since.
        let Some(block) = blocks.get(&root).await? else { return Ok(None) };
        let size_bytes = proven.map_or(block.bytes().len() as u64, |entry| entry.size_bytes);
        Ok(Some(HeldBlob { size_bytes, root, blocks: blocks.offline(), keep }))
    }
}
