//! What is remembered beside the blocks and may be lost with the index: when a tag was last confirmed, when an image was
//! last used. Short texts by key, of whatever form the caller gives them.

use std::path::PathBuf;
use std::sync::Arc;

use super::{StoreError, rows};

/// Rows are durable after the next flush of the blockstore. Cheap to clone.
#[derive(Clone)]
pub struct Notes {
    rows: sled::Tree,
    path: Arc<PathBuf>,
}

impl Notes {
    pub(super) fn new(rows: sled::Tree, path: PathBuf) -> Self {
        Self { rows, path: Arc::new(path) }
    }

    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self.rows.get(key).map_err(|source| self.failed(source))?;
        Ok(row.map(|row| row.to_vec()))
    }

    pub fn put(&self, key: &str, note: &[u8]) -> Result<(), StoreError> {
        self.rows.insert(key, note).map(drop).map_err(|source| self.failed(source))
    }

    pub fn remove(&self, key: &str) -> Result<(), StoreError> {
        self.rows.remove(key).map(drop).map_err(|source| self.failed(source))
    }

    /// All rows whose key begins with `prefix`, without it, sorted by key.
    pub fn below(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let rows = self.rows.scan_prefix(prefix).map(|row| {
            let (key, note) = row.map_err(|source| self.failed(source))?;
            let key = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            Ok((key, note.to_vec()))
        });
        rows.collect()
    }

    fn failed(&self, source: sled::Error) -> StoreError {
        rows::failed(&self.path, source)
    }
}
