//! What is no block and must not be lost: roots, sequences, records, peers. A small JSON file each, replaced whole.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cid::Cid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::ipld::TreeName;
use crate::ipld::ipns::IpnsName;

/// The last record that we signed for a name of ours, whether or not it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRecord {
    pub sequence: u64,
    /// The root in it.
    pub root: Cid,
    /// The record as signed, to be put again.
    pub bytes: Vec<u8>,
}

/// A name that we follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The newest valid record seen, as it came; empty for a domain, whose records are all in `moved`.
    pub record: Vec<u8>,
    /// The records of the names that it leads on to, in their order.
    pub moved: Vec<MovedRecord>,
    /// The newest root that could be fetched: what is served. May be older than the record's.
    pub root: Option<Cid>,
}

/// The newest valid record of a name that another one leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedRecord {
    pub name: IpnsName,
    pub record: Vec<u8>,
}

/// A name of ours that was given up for another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerName {
    pub name: IpnsName,
    /// What the record points to.
    pub moved_to: IpnsName,
    /// The last record signed for it.
    pub record: Vec<u8>,
}

/// How much of a followed name is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaRow {
    /// All that was to be brought of this root is here.
    #[serde(with = "cid_text")]
    pub root: Cid,
    /// Blobs too, and how many there are; absent where only tags and manifests were to be brought.
    pub blobs: Option<usize>,
}

/// A peer worth dialling after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    /// base58.
    pub peer_id: String,
    pub addresses: Vec<String>,
    /// Seconds since 1970.
    pub seen_at_s: u64,
}

/// An image layout that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutRow {
    pub cid: String,
    /// What its folder was called.
    pub name: String,
    /// Of its files.
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub added_at_s: u64,
}

/// A tree that this daemon writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RootRow {
    /// The one that is published under a name.
    Own(IpnsName),
    /// The private one, of what was pulled through.
    Cache,
}

impl From<IpnsName> for RootRow {
    fn from(name: IpnsName) -> Self {
        Self::Own(name)
    }
}

impl fmt::Display for RootRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(name) => write!(f, "root-{name}"),
            Self::Cache => f.write_str("root-cache"),
        }
    }
}

/// The rows. Each `set_` returns when its row is on disk; each row has one writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct State {
    folder: Arc<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Root {
    root: String,
}

#[derive(Serialize, Deserialize)]
struct RecordRow {
    sequence: u64,
    root: String,
    record: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct RivalRow {
    record: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct FollowedRow {
    record: Vec<u8>,
    #[serde(default)]
    moved: Vec<MovedRecord>,
    root: Option<String>,
}

impl State {
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(|error| StoreError::io("create", folder, error))?;
        Ok(Self { folder: Arc::new(folder.to_owned()) })
    }

    /// The root of a tree of ours, as last committed.
    pub fn root(&self, row: impl Into<RootRow>) -> Result<Option<Cid>, StoreError> {
        let path = self.path(&row.into().to_string());
        self.read::<Root>(&path)?.map(|row| parse(&path, &row.root)).transpose()
    }

    pub fn set_root(&self, row: impl Into<RootRow>, root: &Cid) -> Result<(), StoreError> {
        self.write(&self.path(&row.into().to_string()), &Root { root: root.to_string() })
    }

    /// Images that are never evicted.
    pub fn pins(&self) -> Result<BTreeSet<String>, StoreError> {
        Ok(self.read(&self.path("pins"))?.unwrap_or_default())
    }

    /// Replaces the whole list; the caller bounds it.
    pub fn set_pins(&self, pins: &BTreeSet<String>) -> Result<(), StoreError> {
        self.write(&self.path("pins"), pins)
    }

    /// The image layouts that are kept, as they were added.
    pub fn layouts(&self) -> Result<Vec<LayoutRow>, StoreError> {
        Ok(self.read(&self.path("layouts"))?.unwrap_or_default())
    }

    /// Replaces the whole list; the caller bounds it.
    pub fn set_layouts(&self, layouts: &[LayoutRow]) -> Result<(), StoreError> {
        self.write(&self.path("layouts"), &layouts)
    }

    pub fn own_record(&self, name: &IpnsName) -> Result<Option<OwnRecord>, StoreError> {
        let path = self.path(&format!("record-{name}"));
        let Some(row) = self.read::<RecordRow>(&path)? else { return Ok(None) };
        Ok(Some(OwnRecord { sequence: row.sequence, root: parse(&path, &row.root)?, bytes: row.record }))
    }

    pub fn set_own_record(&self, name: &IpnsName, record: &OwnRecord) -> Result<(), StoreError> {
        let row = RecordRow {
            sequence: record.sequence,
            root: record.root.to_string(),
            record: record.bytes.clone(),
        };
        self.write(&self.path(&format!("record-{name}")), &row)
    }

    pub fn followed(&self, name: &TreeName) -> Result<Option<Followed>, StoreError> {
        let path = self.path(&format!("followed-{name}"));
        let Some(row) = self.read::<FollowedRow>(&path)? else { return Ok(None) };
        let root = row.root.map(|root| parse(&path, &root)).transpose()?;
        Ok(Some(Followed { record: row.record, moved: row.moved, root }))
    }

    pub fn set_followed(&self, name: &TreeName, followed: &Followed) -> Result<(), StoreError> {
        let row = FollowedRow {
            record: followed.record.clone(),
            moved: followed.moved.clone(),
            root: followed.root.map(|root| root.to_string()),
        };
        self.write(&self.path(&format!("followed-{name}")), &row)
    }

    /// The newest record that somebody else signed with a key of ours, whether or not it was settled since.
    pub fn rival(&self, name: &IpnsName) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.read::<RivalRow>(&self.path(&format!("rival-{name}")))?.map(|row| row.record))
    }

    pub fn set_rival(&self, name: &IpnsName, record: &[u8]) -> Result<(), StoreError> {
        self.write(&self.path(&format!("rival-{name}")), &RivalRow { record: record.to_vec() })
    }

    /// The names that were given up, the oldest first.
    pub fn former_names(&self) -> Result<Vec<FormerName>, StoreError> {
        Ok(self.read(&self.path("former"))?.unwrap_or_default())
    }

    /// Replaces the whole list; the caller bounds it.
    pub fn set_former_names(&self, names: &[FormerName]) -> Result<(), StoreError> {
        self.write(&self.path("former"), &names)
    }

    pub fn replica(&self, name: &TreeName) -> Result<Option<ReplicaRow>, StoreError> {
        self.read(&self.path(&format!("replica-{name}")))
    }

    pub fn set_replica(&self, name: &TreeName, row: &ReplicaRow) -> Result<(), StoreError> {
        self.write(&self.path(&format!("replica-{name}")), row)
    }

    pub fn peers(&self) -> Result<Vec<KnownPeer>, StoreError> {
        Ok(self.read(&self.path("peers"))?.unwrap_or_default())
    }

    /// Replaces the whole list; the caller bounds it.
    pub fn set_peers(&self, peers: &[KnownPeer]) -> Result<(), StoreError> {
        self.write(&self.path("peers"), &peers)
    }

    fn path(&self, row: &str) -> PathBuf {
        self.folder.join(format!("{row}.json"))
    }

    fn read<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, StoreError> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| StoreError::io("read", path, error))?,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(path, &error))
    }

    fn write(&self, path: &Path, row: &impl Serialize) -> Result<(), StoreError> {
        replace(path, &serde_json::to_vec(row).map_err(|error| damaged(path, &error))?)
    }
}

/// A CID as its text.
mod cid_text {
    use cid::Cid;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(cid: &Cid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(cid)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cid, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn parse(path: &Path, root: &str) -> Result<Cid, StoreError> {
    root.parse().map_err(|error: cid::Error| damaged(path, &error))
}

pub(super) fn damaged(path: &Path, reason: &dyn fmt::Display) -> StoreError {
    StoreError::State { path: path.to_owned(), reason: reason.to_string() }
}

/// Puts a file in place whole: written beside, synced, renamed, the folder synced. A crash leaves the old or the new one.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), StoreError> {
    let draft = path.with_extension("new");
    let replaced = (|| {
        let mut file = File::create(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    replaced.map_err(|error| StoreError::io("write", path, error))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn name() -> IpnsName {
        "k51qzi5uqu5dhw0vim1qjkzo4ddl00af1k7ellfca8qdnhoqfri0c5q69rr01e".parse().unwrap()
    }

    fn root() -> Cid {
        "bafkreid64eywgjs445ao6ucabvyfucyj4gcxe7nhkgj5ehiv6tdwjze2ra".parse().unwrap()
    }

    #[test]
    fn rows_are_there_after_opening_again() {
        let folder = TempDir::new().unwrap();
        let state = State::open(folder.path()).unwrap();
        assert_eq!(state.root(name()).unwrap(), None);
        let record = OwnRecord { sequence: 7, root: root(), bytes: vec![1, 2, 3] };
        let followed = Followed {
            record: vec![4],
            moved: vec![MovedRecord { name: name(), record: vec![5] }],
            root: Some(root()),
        };
        let former = FormerName { name: name(), moved_to: name(), record: vec![6] };
        let replica = ReplicaRow { root: root(), blobs: Some(3) };
        let peer =
            KnownPeer { peer_id: "x".to_owned(), addresses: vec!["/ip4/1.1.1.1".to_owned()], seen_at_s: 5 };
        state.set_root(name(), &root()).unwrap();
        state.set_own_record(&name(), &record).unwrap();
        state.set_followed(&name().into(), &followed).unwrap();
        state.set_peers(std::slice::from_ref(&peer)).unwrap();
        state.set_rival(&name(), &[7]).unwrap();
        state.set_former_names(std::slice::from_ref(&former)).unwrap();
        state.set_replica(&name().into(), &replica).unwrap();

        let state = State::open(folder.path()).unwrap();
        assert_eq!(state.root(name()).unwrap(), Some(root()));
        assert_eq!(state.own_record(&name()).unwrap(), Some(record));
        assert_eq!(state.followed(&name().into()).unwrap(), Some(followed));
        assert_eq!(state.peers().unwrap(), [peer]);
        assert_eq!(state.rival(&name()).unwrap(), Some(vec![7]));
        assert_eq!(state.former_names().unwrap(), [former]);
        assert_eq!(state.replica(&name().into()).unwrap(), Some(replica));
    }

    #[test]
    fn a_damaged_row_is_an_error_and_not_absent() {
        let folder = TempDir::new().unwrap();
        let state = State::open(folder.path()).unwrap();
        state.set_root(name(), &root()).unwrap();
        fs::write(state.path(&format!("root-{}", name())), b"{\"root\":\"baf").unwrap();
        assert!(matches!(state.root(name()), Err(StoreError::State { .. })));
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_row() {
        let folder = TempDir::new().unwrap();
        let state = State::open(folder.path()).unwrap();
        let row = state.path(&format!("root-{}", name()));
        let draft = row.with_extension("new");
        for half_written in [&b""[..], b"{\"root\":\"baf", &[0; 5000]] {
            state.set_root(name(), &root()).unwrap();
            fs::write(&draft, half_written).unwrap();
            let state = State::open(folder.path()).unwrap();
            assert_eq!(state.root(name()).unwrap(), Some(root()));
            let other = Cid::new_v1(0x70, *root().hash());
            state.set_root(name(), &other).unwrap();
            assert_eq!(state.root(name()).unwrap(), Some(other));
            assert!(!draft.exists());
        }
    }

    #[test]
    fn a_draft_without_a_row_is_absent() {
        let folder = TempDir::new().unwrap();
        let state = State::open(folder.path()).unwrap();
        fs::write(state.path("peers").with_extension("new"), "[").unwrap();
        assert_eq!(state.peers().unwrap(), []);
    }

    #[test]
    fn a_row_that_cannot_be_written_is_named_and_stays_as_it_was() {
        let folder = TempDir::new().unwrap();
        let state = State::open(folder.path()).unwrap();
        state.set_root(name(), &root()).unwrap();
        let row = state.path(&format!("root-{}", name()));
        fs::create_dir(row.with_extension("new")).unwrap();
        let error = state.set_root(name(), &Cid::new_v1(0x70, *root().hash())).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}", row.display()));
        assert_eq!(state.root(name()).unwrap(), Some(root()));
    }
}
