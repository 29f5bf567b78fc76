//! Opens index and packs together, and makes them agree: what the packs hold beyond the index is indexed, what is torn is
//! cut off, and an index that is missing or broken is built anew.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use super::blockstore::Blockstore;
use super::index::DigestIndex;
use super::packs::{Location, Packs, Segment};
use super::record::Kind;
use super::{StoreError, StoreOptions};

/// sled's page cache; its rows are small, and the operating system caches the file.
const INDEX_CACHE_BYTES: u64 = 16 << 20;

pub(super) fn open(folder: &Path, options: &StoreOptions) -> Result<(Blockstore, DigestIndex), StoreError> {
    let path = folder.join("index");
    let packs = Packs::open(&folder.join("packs"), options.segment_bytes_max)?;
    let (database, rebuild) = open_index(&path)?;
    let tree = |name: &str| {
        database.open_tree(name).map_err(|source| StoreError::Index { path: path.clone(), source })
    };
    let rows = Rows {
        path: path.clone(),
        blocks: tree("blocks")?,
        segments: tree("segments")?,
        database: database.clone(),
    };
    let digests = tree("digests")?;
    let mut recovered = 0;
    for segment in packs.all() {
        recovered += recover(&rows, &segment)?;
    }
    if rebuild && recovered > 0 {
        tracing::warn!(blocks = recovered, "the index was missing or broken: rebuilt from the packs");
    } else if recovered > 0 {
        tracing::info!(blocks = recovered, "took in what was written after the index was last flushed");
    }
    packs.resume();
    Ok((Blockstore::new(rows, packs), DigestIndex::new(digests, path)))
}

/// Opens sled; if it cannot, moves what is there aside and begins anew. Whether it did is returned.
fn open_index(path: &Path) -> Result<(sled::Db, bool), StoreError> {
    let fresh = !path.exists();
    let open = || {
        sled::Config::new()
            .path(path)
            .cache_capacity(INDEX_CACHE_BYTES)
            .flush_every_ms(None)
            .mode(sled::Mode::LowSpace)
            .open()
    };
    // sled may panic upon a damaged file.
    let reason = match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(database)) => return Ok((database, fresh)),
        Ok(Err(sled::Error::Io(error))) => return Err(StoreError::io("open", path, error)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it panicked".to_owned(),
    };
    let aside = path.with_file_name("index.broken");
    tracing::warn!(path = %path.display(), reason, aside = %aside.display(), "the index is broken: moved aside");
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(|error| StoreError::io("delete", &aside, error))?;
    }
    fs::rename(path, &aside).map_err(|error| StoreError::io("move", path, error))?;
    let database = open().map_err(|source| StoreError::Index { path: path.to_owned(), source })?;
    Ok((database, true))
}

/// The trees of sled that blocks need.
pub(super) struct Rows {
    path: std::path::PathBuf,
    /// Multihash → [`Location`].
    blocks: sled::Tree,
    /// Segment → how far it is indexed, and its live bytes.
    segments: sled::Tree,
    database: sled::Db,
}

impl Rows {
    pub(super) fn failed(&self, source: sled::Error) -> StoreError {
        match source {
            sled::Error::Io(error) => StoreError::io("write", &self.path, error),
            source => StoreError::Index { path: self.path.clone(), source },
        }
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

    pub(super) fn iter(&self) -> sled::Iter {
        self.blocks.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn checkpoint(&self, segment: &Segment, end: u64) -> Result<(), StoreError> {
        let row = [end.to_le_bytes(), segment.live_bytes().to_le_bytes()].concat();
        let written = self.segments.insert(segment.id.to_be_bytes(), row);
        written.map(drop).map_err(|source| self.failed(source))
    }

    pub(super) fn forget(&self, segment: &Segment) -> Result<(), StoreError> {
        self.segments.remove(segment.id.to_be_bytes()).map(drop).map_err(|source| self.failed(source))
    }

    pub(super) fn flush(&self) -> Result<(), StoreError> {
        self.database.flush().map(drop).map_err(|source| self.failed(source))
    }

    /// How far a segment is indexed, and its live bytes.
    fn known(&self, segment: &Segment) -> Result<(u64, i64), StoreError> {
        let row = self.segments.get(segment.id.to_be_bytes()).map_err(|source| self.failed(source))?;
        let number = |at: usize| row.as_ref().and_then(|row| row.get(at..at + 8)?.try_into().ok());
        Ok((number(0).map_or(0, u64::from_le_bytes), number(8).map_or(0, i64::from_le_bytes)))
    }
}

/// Indexes the records behind the checkpoint; cuts off what follows the last whole one. Returns how many there were.
fn recover(rows: &Rows, segment: &Arc<Segment>) -> Result<u64, StoreError> {
    let (mut at, live_bytes) = rows.known(segment)?;
    segment.count(live_bytes);
    let (end, mut count) = (segment.end(), 0);
    if at > end {
        // The file is shorter than what was synced: read it all again.
        (at, count) = (0, 0);
    }
    while at < end {
        let Some(header) = segment.header(at)? else { break };
        let location = Location { segment: segment.id, offset: at, body_bytes: header.body_bytes };
        if at + header.record_bytes() > end {
            break;
        }
        let key = header.key.to_bytes();
        if header.kind == Kind::Live {
            if segment.read(&header.key, location).is_err() {
                // The last record may be torn; one in the middle is damaged, and its neighbours are not.
                if at + header.record_bytes() == end {
                    break;
                }
                tracing::error!(segment = segment.id, offset = at, "a block is damaged and left out");
            } else if rows.get(&key)?.is_none() {
                rows.swap(&key, None, Some(location))?;
                segment.count(i64::try_from(header.record_bytes()).unwrap_or(0));
                count += 1;
            }
        }
        at += header.record_bytes();
    }
    if at < end {
        tracing::warn!(segment = segment.id, bytes = end - at, "cut off what a crash left half-written");
        segment.truncate(at)?;
    }
    rows.checkpoint(segment, at)?;
    Ok(count)
}

fn encode_location(location: Location) -> Vec<u8> {
    let mut row = Vec::with_capacity(16);
    row.extend_from_slice(&location.segment.to_le_bytes());
    row.extend_from_slice(&location.offset.to_le_bytes());
    row.extend_from_slice(&location.body_bytes.to_le_bytes());
    row
}

pub(super) fn decode_location(row: &[u8]) -> Option<Location> {
    Some(Location {
        segment: u32::from_le_bytes(row.get(..4)?.try_into().ok()?),
        offset: u64::from_le_bytes(row.get(4..12)?.try_into().ok()?),
        body_bytes: u32::from_le_bytes(row.get(12..16)?.try_into().ok()?),
    })
}
