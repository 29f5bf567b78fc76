//! OCI digest → root CID of the blob's file: a cache of what was once held to its digest, which the tree can rebuild.

use std::path::PathBuf;
use std::sync::Arc;

use cid::Cid;

use super::{StoreError, rows};
use crate::oci::Digest;

/// Where a blob lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    pub cid: Cid,
    /// Bytes of the blob.
    pub size_bytes: u64,
    /// Bytes of all blocks of its DAG: what a directory link to it states as tsize.
    pub tsize: u64,
}

/// Rows are durable after the next flush of the blockstore. Cheap to clone.
#[derive(Clone)]
pub struct DigestIndex {
    rows: sled::Tree,
    path: Arc<PathBuf>,
}

impl DigestIndex {
    pub(super) fn new(rows: sled::Tree, path: PathBuf) -> Self {
        Self { rows, path: Arc::new(path) }
    }

    pub fn get(&self, digest: &Digest) -> Result<Option<IndexEntry>, StoreError> {
        let row = self.rows.get(digest.multihash().to_bytes()).map_err(|source| self.failed(source))?;
        Ok(row.and_then(|row| decode(&row)))
    }

    pub fn put(&self, digest: &Digest, entry: &IndexEntry) -> Result<(), StoreError> {
        let row =
            [&entry.size_bytes.to_le_bytes()[..], &entry.tsize.to_le_bytes(), &entry.cid.to_bytes()].concat();
        let written = self.rows.insert(digest.multihash().to_bytes(), row);
        written.map(drop).map_err(|source| self.failed(source))
    }

    /// Removes the rows that `keep` says no to.
    pub fn retain(&self, keep: impl Fn(&IndexEntry) -> bool) -> Result<(), StoreError> {
        for row in self.rows.iter() {
            let (key, row) = row.map_err(|source| self.failed(source))?;
            if !decode(&row).is_some_and(|entry| keep(&entry)) {
                // Only as it was read: a row that was written since is of a later time.
                let swapped = self.rows.compare_and_swap(key, Some(row), None::<&[u8]>);
                swapped.map(drop).map_err(|source| self.failed(source))?;
            }
        }
        Ok(())
    }

    pub fn remove(&self, digest: &Digest) -> Result<(), StoreError> {
        let removed = self.rows.remove(digest.multihash().to_bytes());
        removed.map(drop).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: sled::Error) -> StoreError {
        rows::failed(&self.path, source)
    }
}

fn decode(row: &[u8]) -> Option<IndexEntry> {
    Some(IndexEntry {
        size_bytes: u64::from_le_bytes(row.get(..8)?.try_into().ok()?),
        tsize: u64::from_le_bytes(row.get(8..16)?.try_into().ok()?),
        cid: Cid::try_from(row.get(16..)?).ok()?,
    })
}
