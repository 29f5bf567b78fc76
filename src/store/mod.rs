//! What is on disk. Only here is sled named. Calls are synchronous: async code goes through [`off_thread`], or
//! through [`Batched`] for single blocks.
//!
//! ```text
//! FORMAT   the version of all this
//! LOCK     held by the one process that uses it
//! packs/   blocks, in append-only segments
//! index/   sled: multihash → segment and offset; digest → CID; notes. Disposable: rebuilt from the packs
//! state/   roots, records, peers: a small file each. Not disposable
//! uploads/ what open uploads have received: a journal each, so that they go on after a restart
//! ```
//!
//! A daemon that mirrors registries has a second one like it in `cache/`, for what it pulled through: private, so nothing
//! that answers strangers has a handle to it.
//!
//! Order of a durable write: packs synced, index flushed, then acknowledged.

mod batched;
mod blockstore;
mod buffers;
mod compaction;
mod database;
mod hashed_set;
mod index;
mod lock;
mod notes;
mod packs;
mod record;
mod recovery;
mod rows;
mod state;
mod sweep;
#[cfg(test)]
mod tests;
mod uploads;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use batched::Batched;
pub use blockstore::{Blockstore, StoreStats};
pub use buffers::{Buffer, Buffers};
pub use hashed_set::HashedSet;
pub use index::{DigestIndex, IndexEntry};
pub use notes::Notes;
#[doc(hidden)]
pub use record::fuzz;
pub use state::{
    Followed, FormerName, KnownPeer, LayoutRow, MovedRecord, OwnRecord, ReplicaRow, RootRow, State,
};
pub use sweep::Sweep;
pub use uploads::{UploadJournal, UploadJournals, UploadStep};

use crate::ipld::Multihash;

/// The folder, within that of the store, of the one for what is pulled through.
pub const CACHE_FOLDER: &str = "cache";
/// The content of `FORMAT`.
const FORMAT: &str = "shoal store 1\n";

/// What goes wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{} is in use by process {pid}: one daemon at a time can have it", .folder.display())]
    Locked { folder: PathBuf, pid: String },
    #[error("{} was written by another version of shoal: {found:?} is not {FORMAT:?}", .folder.display())]
    Format { folder: PathBuf, found: String },
    #[error("no space is left for {}: free some", .0.display())]
    Full(PathBuf),
    #[error("cannot {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("block {key} is damaged in {} at byte {offset}", .path.display())]
    Corrupt { key: String, path: PathBuf, offset: u64 },
    #[error("the header of a block is damaged in {} at byte {offset}", .path.display())]
    CorruptHeader { path: PathBuf, offset: u64 },
    #[error("block {key} was to be in segment {segment}, which is not there: restart to repair the index")]
    Dangling { key: String, segment: u32 },
    #[error("{} is damaged: {reason}", .path.display())]
    State { path: PathBuf, reason: String },
    #[error("the index in {} failed", .path.display())]
    Index {
        path: PathBuf,
        #[source]
        source: sled::Error,
    },
    #[error("cannot rebuild the index in {}: {reason}", .path.display())]
    Rebuild { path: PathBuf, reason: String },
    #[error("the store is shutting down")]
    Closed,
}

impl StoreError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(path.to_owned()),
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    fn corrupt(key: &Multihash, path: &Path, offset: u64) -> Self {
        Self::Corrupt { key: name(key), path: path.to_owned(), offset }
    }

    fn dangling(key: &Multihash, segment: u32) -> Self {
        Self::Dangling { key: name(key), segment }
    }
}

fn name(key: &Multihash) -> String {
    format!("{}:{}", key.code(), hex(key.digest()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a store is kept.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// A segment is closed before it grows past this size.
    pub segment_bytes_max: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { segment_bytes_max: 256 << 20 }
    }
}

/// Everything in one directory, used by one process at a time. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    blocks: Blockstore,
    index: DigestIndex,
    notes: Notes,
    state: State,
    uploads: UploadJournals,
    _lock: Arc<lock::Lock>,
}

impl Store {
    /// Opens or makes a store. What a crash left half-written is cut off; a missing or broken index is rebuilt.
    pub fn open(folder: &Path, options: StoreOptions) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(|error| StoreError::io("create", folder, error))?;
        let lock = lock::Lock::take(folder)?;
        check_format(folder)?;
        let database::Opened { blocks, digests, notes } = database::open(folder, &options)?;
        let state = State::open(&folder.join("state"))?;
        let uploads = UploadJournals::open(&folder.join("uploads"))?;
        Ok(Self { blocks, index: digests, notes, state, uploads, _lock: Arc::new(lock) })
    }

    pub fn blocks(&self) -> &Blockstore {
        &self.blocks
    }

    pub fn index(&self) -> &DigestIndex {
        &self.index
    }

    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn uploads(&self) -> &UploadJournals {
        &self.uploads
    }

    /// Flushes. The lock is given back when the last clone is dropped.
    pub fn close(&self) -> Result<(), StoreError> {
        self.blocks.flush()
    }
}

fn check_format(folder: &Path) -> Result<(), StoreError> {
    let path = folder.join("FORMAT");
    match fs::read_to_string(&path) {
        Ok(found) if found == FORMAT => Ok(()),
        Ok(found) => Err(StoreError::Format { folder: folder.to_owned(), found }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => state::replace(&path, FORMAT.as_bytes()),
        Err(error) => Err(StoreError::io("read", &path, error)),
    }
}

/// Runs blocking work on tokio's blocking threads. Once begun it is finished, also if the future is dropped.
pub async fn off_thread<T, F>(work: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StoreError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(StoreError::Closed))
}
