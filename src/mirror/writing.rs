//! One blob as it comes in: bytes go into the blockstore leaf by leaf, are hashed on two levels, and are noted in a
//! journal, so that it goes on after a restart.

use bytes::Bytes;
use cid::Cid;
use uuid::Uuid;

use super::MirrorError;
use super::verify::StreamHasher;
use crate::dag::file::{FileRoot, FileWriter};
use crate::dag::{Blocks, DagError, Keep};
use crate::oci::{Algorithm, Digest};
use crate::store::{UploadJournal, UploadJournals, UploadStep, off_thread};

/// Where the bytes of one blob go.
pub(super) struct Writing {
    pub(super) file: FileWriter,
    hasher: StreamHasher,
    pub(super) received_bytes: u64,
    pub(super) algorithm: Algorithm,
    /// How much of it is in the journal.
    pub(super) noted_bytes: u64,
    noted_leaves: usize,
    /// What was behind the leaves then.
    pub(super) tail: Option<Cid>,
}

/// A finished blob: in the store, not yet in a tree.
pub(super) struct Received {
    pub(super) file: FileRoot,
    /// Under the algorithm that it was begun with.
    pub(super) digest: Digest,
    /// To be held until a root names the file.
    pub(super) keep: Keep,
}

impl Writing {
    pub(super) fn new(blocks: &Blocks, algorithm: Algorithm) -> Self {
        let (file, hasher) = (FileWriter::new(blocks), StreamHasher::new(algorithm));
        Self { file, hasher, received_bytes: 0, algorithm, noted_bytes: 0, noted_leaves: 0, tail: None }
    }

    pub(super) async fn restore(blocks: &Blocks, journal: &UploadJournal) -> Result<Self, MirrorError> {
        let mut writing = Self::new(blocks, journal.algorithm);
        let get = async |cid| {
            let block = blocks.get(cid).await?;
            Ok::<_, DagError>(block.ok_or(DagError::Cancelled("a block of the upload is gone"))?.into_bytes())
        };
        for cid in &journal.leaves {
            let bytes = get(cid).await?;
            let size_bytes = bytes.len() as u64;
            writing.hasher.feed(bytes);
            writing.hasher.settle().await?;
            writing.file.adopt(FileRoot { cid: *cid, size_bytes, tsize: size_bytes });
            writing.file.settle().await?;
            writing.received_bytes += size_bytes;
        }
        writing.noted_leaves = journal.leaves.len();
        if let Some(tail) = &journal.tail {
            writing.write(get(tail).await?).await?;
        }
        (writing.noted_bytes, writing.tail) = (writing.received_bytes, journal.tail);
        if writing.received_bytes != journal.received_bytes {
            return Err(DagError::Cancelled("the journal of the upload does not add up").into());
        }
        Ok(writing)
    }

    /// The bytes count as received from here on, also if the future is dropped while they wait for the store.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), MirrorError> {
        self.received_bytes += bytes.len() as u64;
        self.hasher.feed(bytes.clone());
        self.file.feed(bytes);
        self.hasher.settle().await?;
        Ok(self.file.settle().await?)
    }

    /// Notes down what has been received. May be dropped midway: the next note makes up for it.
    pub(super) async fn note(&mut self, journals: &UploadJournals, id: Uuid) -> Result<(), MirrorError> {
        let received_bytes = self.received_bytes;
        let tail = self.file.checkpoint().await?;
        let leaves = self.file.leaves();
        let count = leaves.len();
        let leaves = leaves[self.noted_leaves..].to_vec();
        let step = UploadStep { leaves_before: self.noted_leaves, leaves, tail, received_bytes };
        let journals = journals.clone();
        off_thread(move || journals.append(&id, &step)).await?;
        (self.noted_bytes, self.noted_leaves, self.tail) = (received_bytes, count, tail);
        Ok(())
    }

    /// Closes it: the blocks are written, not yet flushed.
    pub(super) async fn finish(self) -> Result<Received, MirrorError> {
        let Self { file, hasher, .. } = self;
        let keep = file.keep().clone();
        let (file, digest) =
            tokio::try_join!(async { file.finish().await.map_err(MirrorError::from) }, hasher.finish())?;
        Ok(Received { file, digest, keep })
    }
}
