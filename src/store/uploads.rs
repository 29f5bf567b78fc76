//! Journals of open uploads: a file of JSON lines each, the first says what it is, every other adds what came since.
//!
//! Nothing here is synced: an upload is acknowledged when it is closed, and what the journal names is looked for when it
//! is gone on with. A line that a crash cut short, and all behind it, count as never written.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use cid::Cid;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::StoreError;
use crate::oci::{Algorithm, RepoName};

/// The largest journal that is read: an upload of a tebibyte has some 60 MiB.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;

/// An upload as it stood when it was last written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadJournal {
    pub id: Uuid,
    pub repo: RepoName,
    /// Of the digest that it will be closed with.
    pub algorithm: Algorithm,
    /// The whole leaves, in their order.
    pub leaves: Vec<Cid>,
    /// What came behind them, less than a leaf.
    pub tail: Option<Cid>,
    pub received_bytes: u64,
    pub touched_at: SystemTime,
}

/// What an upload has received since an earlier step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadStep {
    /// How many leaves are before these; what was written down behind them is replaced.
    pub leaves_before: usize,
    pub leaves: Vec<Cid>,
    pub tail: Option<Cid>,
    /// In all.
    pub received_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct Head {
    repo: String,
    algorithm: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    leaves_before: usize,
    leaves: Vec<String>,
    tail: Option<String>,
    received_bytes: u64,
}

/// The folder of them. Each journal has one writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct UploadJournals {
    folder: Arc<PathBuf>,
}

impl UploadJournals {
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(|error| StoreError::io("create", folder, error))?;
        Ok(Self { folder: Arc::new(folder.to_owned()) })
    }

    pub fn create(&self, id: &Uuid, repo: &RepoName, algorithm: Algorithm) -> Result<(), StoreError> {
        let head = Head { repo: repo.to_string(), algorithm: algorithm.as_str().to_owned() };
        self.write(id, &head)
    }

    pub fn append(&self, id: &Uuid, step: &UploadStep) -> Result<(), StoreError> {
        self.write(
            id,
            &Line {
                leaves_before: step.leaves_before,
                leaves: step.leaves.iter().map(Cid::to_string).collect(),
                tail: step.tail.map(|tail| tail.to_string()),
                received_bytes: step.received_bytes,
            },
        )
    }

    /// Forgets an upload; one that is not there is forgotten already.
    pub fn remove(&self, id: &Uuid) -> Result<(), StoreError> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("delete", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// All uploads that were open. What is no journal is left out, and left alone.
    pub fn list(&self) -> Result<Vec<UploadJournal>, StoreError> {
        let failed = |error| StoreError::io("list", &self.folder, error);
        let mut journals = Vec::new();
        for entry in fs::read_dir(self.folder.as_ref()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let id = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(id) = id {
                journals.extend(self.read(&id)?);
            }
        }
        Ok(journals)
    }

    fn read(&self, id: &Uuid) -> Result<Option<UploadJournal>, StoreError> {
        let path = self.path(id);
        let failed = |error| StoreError::io("read", &path, error);
        let metadata = fs::metadata(&path).map_err(failed)?;
        if metadata.len() > JOURNAL_BYTES_MAX {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(failed)?;
        let touched_at = metadata.modified().map_err(failed)?;
        Ok(parse(*id, &text, touched_at))
    }

    fn write(&self, id: &Uuid, line: &impl Serialize) -> Result<(), StoreError> {
        let path = self.path(id);
        let mut text = serde_json::to_vec(line).map_err(|error| super::state::damaged(&path, &error))?;
        text.push(b'\n');
        let written =
            File::options().create(true).append(true).open(&path).and_then(|mut file| file.write_all(&text));
        written.map_err(|error| StoreError::io("write", &path, error))
    }

    fn path(&self, id: &Uuid) -> PathBuf {
        self.folder.join(id.to_string())
    }
}

fn parse(id: Uuid, text: &str, touched_at: SystemTime) -> Option<UploadJournal> {
    let mut lines = text.split_inclusive('\n').map_while(|line| line.strip_suffix('\n'));
    let head: Head = serde_json::from_str(lines.next()?).ok()?;
    let mut journal = UploadJournal {
        id,
        repo: head.repo.parse().ok()?,
        algorithm: head.algorithm.parse().ok()?,
        leaves: Vec::new(),
        tail: None,
        received_bytes: 0,
        touched_at,
    };
    for line in lines {
        let Ok(line) = serde_json::from_str::<Line>(line) else { break };
        let leaves: Result<Vec<Cid>, _> = line.leaves.iter().map(|leaf| leaf.parse()).collect();
        let (Ok(leaves), Ok(tail)) = (leaves, line.tail.map(|tail| tail.parse()).transpose()) else { break };
        if line.leaves_before > journal.leaves.len() {
            break;
        }
        journal.leaves.truncate(line.leaves_before);
        journal.leaves.extend(leaves);
        journal.tail = tail;
        journal.received_bytes = line.received_bytes;
    }
    Some(journal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::ipld::Block;
    use crate::ipld::block::RAW;

    fn leaf(number: u8) -> Cid {
        *Block::encode(RAW, vec![number].into()).cid()
    }

    fn step(leaves_before: usize, leaves: &[u8], tail: Option<u8>, received_bytes: u64) -> UploadStep {
        UploadStep {
            leaves_before,
            leaves: leaves.iter().map(|number| leaf(*number)).collect(),
            tail: tail.map(leaf),
            received_bytes,
        }
    }

    #[test]
    fn an_upload_is_found_as_it_was_last_written_down() {
        let folder = TempDir::new().unwrap();
        let journals = UploadJournals::open(folder.path()).unwrap();
        let (id, repo) = (Uuid::new_v4(), "library/app".parse().unwrap());
        journals.create(&id, &repo, Algorithm::Sha512).unwrap();
        journals.append(&id, &step(0, &[1, 2], Some(9), 25)).unwrap();
        // Written twice, since nobody saw the end of the first.
        journals.append(&id, &step(2, &[7], None, 30)).unwrap();
        journals.append(&id, &step(2, &[3], None, 30)).unwrap();
        fs::write(folder.path().join("junk"), "x").unwrap();

        let [found] = journals.list().unwrap().try_into().unwrap();
        let wanted = UploadJournal {
            id,
            repo,
            algorithm: Algorithm::Sha512,
            leaves: vec![leaf(1), leaf(2), leaf(3)],
            tail: None,
            received_bytes: 30,
            touched_at: found.touched_at,
        };
        assert_eq!(found, wanted);
        journals.remove(&id).unwrap();
        journals.remove(&id).unwrap();
        assert_eq!(journals.list().unwrap(), []);
    }

    proptest! {
        #[test]
        fn a_line_that_was_cut_short_counts_as_never_written(cut in 1..400_usize) {
            let folder = TempDir::new().unwrap();
            let journals = UploadJournals::open(folder.path()).unwrap();
            let id = Uuid::new_v4();
            journals.create(&id, &"a".parse().unwrap(), Algorithm::Sha256).unwrap();
            let whole = fs::read(journals.path(&id)).unwrap().len();
            journals.append(&id, &step(0, &[1], Some(2), 10)).unwrap();
            let first = fs::read(journals.path(&id)).unwrap().len();
            journals.append(&id, &step(1, &[3], Some(4), 20)).unwrap();
            let bytes = fs::read(journals.path(&id)).unwrap();
            let left = bytes.len().saturating_sub(cut);
            fs::write(journals.path(&id), &bytes[..left]).unwrap();

            let found = journals.list().unwrap();
            let received = found.first().map(|journal| (journal.received_bytes, journal.leaves.len()));
            let wanted = match left {
                left if left >= first => Some((10, 1)),
                left if left >= whole => Some((0, 0)),
                _ => None,
            };
            prop_assert_eq!(received, wanted);
        }
    }
}
