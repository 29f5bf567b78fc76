//! Opens index and packs together; an index that is missing or broken is built anew from the packs.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::blockstore::Blockstore;
use super::index::DigestIndex;
use super::notes::Notes;
use super::packs::Packs;
use super::recovery::{self, Recovered};
use super::rows::{self, Rows};
use super::{StoreError, StoreOptions};

/// sled's page cache; its rows are small, and the operating system caches the file.
const INDEX_CACHE_BYTES: u64 = 16 << 20;
/// sled gives its file back a little after its last handle was dropped. Our own lock keeps everybody else away.
const INDEX_HELD_WAIT: Duration = Duration::from_secs(5);
/// Pause between two tries.
const INDEX_HELD_PAUSE: Duration = Duration::from_millis(2);

/// What the one database and the packs beside it are used as.
pub(super) struct Opened {
    pub(super) blocks: Blockstore,
    pub(super) digests: DigestIndex,
    pub(super) notes: Notes,
}

pub(super) fn open(folder: &Path, options: &StoreOptions) -> Result<Opened, StoreError> {
    let path = folder.join("index");
    let packs = Packs::open(&folder.join("packs"), options.segment_bytes_max)?;
    let fresh = !path.exists();
    let (index, rebuilt) = match open_index(&path, &packs)? {
        Outcome::Opened(index) => (index, fresh),
        Outcome::Broken(reason) => {
            move_aside(&path, &reason)?;
            match open_index(&path, &packs)? {
                Outcome::Opened(index) => (index, true),
                Outcome::Broken(reason) => return Err(StoreError::Rebuild { path, reason }),
            }
        }
    };
    let Index { rows, digests, notes, recovered } = index;
    if rebuilt && recovered.added > 0 {
        tracing::warn!(blocks = recovered.added, "the index was missing or broken: rebuilt from the packs");
    } else if recovered.added > 0 {
        tracing::info!(blocks = recovered.added, "took in what was written after the index was last flushed");
    }
    packs.resume();
    let changed = recovered.changed;
    let blocks = Blockstore::new(rows, packs, recovered);
    if changed {
        blocks.flush()?;
    }
    blocks.delete_dead_segments()?;
    let (digests, notes) = (DigestIndex::new(digests, path.clone()), Notes::new(notes, path));
    Ok(Opened { blocks, digests, notes })
}

struct Index {
    rows: Rows,
    digests: sled::Tree,
    notes: sled::Tree,
    recovered: Recovered,
}

enum Outcome {
    Opened(Index),
    /// Damaged, and why.
    Broken(String),
}

/// Opens sled and makes it agree with the packs, which reads every row: what is damaged is found here.
fn open_index(path: &Path, packs: &Packs) -> Result<Outcome, StoreError> {
    let open = || {
        let database = open_database(path).map_err(|source| rows::failed(path, source))?;
        let digests = database.open_tree("digests").map_err(|source| rows::failed(path, source))?;
        let notes = database.open_tree("notes").map_err(|source| rows::failed(path, source))?;
        let readable = digests.iter().chain(notes.iter()).try_for_each(|row| row.map(drop));
        readable.map_err(|source| rows::failed(path, source))?;
        let rows = Rows::open(path, &database)?;
        let recovered = recovery::recover(&rows, packs)?;
        Ok(Index { rows, digests, notes, recovered })
    };
    // sled may panic upon a damaged file.
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(index)) => Ok(Outcome::Opened(index)),
        Ok(Err(StoreError::Index { source, .. })) => Ok(Outcome::Broken(source.to_string())),
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(Outcome::Broken("it panicked".to_owned())),
    }
}

fn open_database(path: &Path) -> Result<sled::Db, sled::Error> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(INDEX_CACHE_BYTES)
        .flush_every_ms(None)
        .mode(sled::Mode::LowSpace);
    let deadline = Instant::now() + INDEX_HELD_WAIT;
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if rows::is_held(&error) && Instant::now() < deadline => {
                thread::sleep(INDEX_HELD_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn move_aside(path: &Path, reason: &str) -> Result<(), StoreError> {
    let aside = path.with_file_name("index.broken");
    tracing::warn!(path = %path.display(), reason, aside = %aside.display(), "the index is broken: moved aside");
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(|error| StoreError::io("delete", &aside, error))?;
    }
    fs::rename(path, &aside).map_err(|error| StoreError::io("move", path, error))
}
