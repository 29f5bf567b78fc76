//! The rows of sled that say where blocks lie, and how far each segment is indexed.

use std::path::{Path, PathBuf};

use super::StoreError;
use super::packs::Location;
use crate::ipld::Multihash;

/// Where blocks lie. Calls are durable after the next [`Rows::flush`], and then in the order in which they were made.
pub(super) struct Rows {
    path: PathBuf,
    /// Multihash → [`Location`].
    blocks: sled::Tree,
    /// Segment → how far it is indexed, in bytes.
    segments: sled::Tree,
    database: sled::Db,
}

impl Rows {
    pub(super) fn open(path: &Path, database: &sled::Db) -> Result<Self, StoreError> {
        let tree = |name: &str| database.open_tree(name).map_err(|source| failed(path, source));
        Ok(Self {
            path: path.to_owned(),
            blocks: tree("blocks")?,
            segments: tree("segments")?,
            database: database.clone(),
        })
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Location>, StoreError> {
        let row = self.blocks.get(key).map_err(|source| self.failed(source))?;
        Ok(row.and_then(|row| decode_location(&row)))
    }

    /// Points `key` to `new` if it points to `old`.
    pub(super) fn swap(
        &self,
        key: &[u8],
        old: Option<Location>,
        new: Option<Location>,
    ) -> Result<bool, StoreError> {
        let swapped = self.blocks.compare_and_swap(key, old.map(encode_location), new.map(encode_location));
        Ok(swapped.map_err(|source| self.failed(source))?.is_ok())
    }

    /// Every row that is here when the walk comes to it; what is no row is left out.
    pub(super) fn iter(&self) -> impl Iterator<Item = Result<(Multihash, Location), StoreError>> {
        self.blocks.iter().filter_map(|row| match row {
            Ok((key, location)) => Some(Ok((Multihash::from_bytes(&key).ok()?, decode_location(&location)?))),
            Err(source) => Some(Err(self.failed(source))),
        })
    }

    /// Notes that all records of a segment below `end` are indexed.
    pub(super) fn checkpoint(&self, segment: u32, end: u64) -> Result<(), StoreError> {
        let written = self.segments.insert(segment.to_be_bytes(), &end.to_le_bytes());
        written.map(drop).map_err(|source| self.failed(source))
    }

    /// How far a segment is indexed.
    pub(super) fn indexed_bytes(&self, segment: u32) -> Result<u64, StoreError> {
        let row = self.segments.get(segment.to_be_bytes()).map_err(|source| self.failed(source))?;
        Ok(row.and_then(|row| row.get(..8)?.try_into().ok()).map_or(0, u64::from_le_bytes))
    }

    /// The segments that have a checkpoint.
    pub(super) fn segments(&self) -> Result<Vec<u32>, StoreError> {
        let ids = self.segments.iter().keys().filter_map(|id| match id {
            Ok(id) => Some(Ok(u32::from_be_bytes(id.as_ref().try_into().ok()?))),
            Err(source) => Some(Err(self.failed(source))),
        });
        ids.collect()
    }

    pub(super) fn forget(&self, segment: u32) -> Result<(), StoreError> {
        self.segments.remove(segment.to_be_bytes()).map(drop).map_err(|source| self.failed(source))
    }

    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.database.flush().map(drop).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: sled::Error) -> StoreError {
        failed(&self.path, source)
    }
}

/// Tells what the system refused from what sled found damaged, which it reports as I/O errors too, of its own making.
pub(super) fn failed(path: &Path, source: sled::Error) -> StoreError {
    match source {
        sled::Error::Io(error) if error.raw_os_error().is_some() || is_held(&error) => {
            StoreError::io("use", path, error)
        }
        source => StoreError::Index { path: path.to_owned(), source },
    }
}

/// sled locks its file, and says so only in words.
pub(super) fn is_held(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn encode_location(location: Location) -> Vec<u8> {
    let mut row = Vec::with_capacity(16);
    row.extend_from_slice(&location.segment.to_le_bytes());
    row.extend_from_slice(&location.offset.to_le_bytes());
    row.extend_from_slice(&location.body_bytes.to_le_bytes());
    row
}

fn decode_location(row: &[u8]) -> Option<Location> {
    Some(Location {
        segment: u32::from_le_bytes(row.get(..4)?.try_into().ok()?),
        offset: u64::from_le_bytes(row.get(4..12)?.try_into().ok()?),
        body_bytes: u32::from_le_bytes(row.get(12..16)?.try_into().ok()?),
    })
}
