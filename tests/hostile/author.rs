//! An author with a valid key who publishes what he likes: the library's node, upon a store that the test fills.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use libp2p::identity::Keypair;
use shoal::dag::{Blocks, Edit, Entry, Tree};
use shoal::ipfs::Ipfs;
use shoal::ipld::block::RAW;
use shoal::ipld::ipns::IpnsRecord;
use shoal::ipld::{Block, Cid};
use shoal::node::{self, NodeClient, NodeConfig};
use shoal::oci::Digest;
use shoal::store::{Store, StoreOptions};
use shoal::tasks::Tasks;
use tempfile::TempDir;

use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::forge::{Forged, name_of};

const BASE: &str = "docker/registry/v2";

pub struct Author {
    pub key: Keypair,
    pub tree: Tree,
    node: NodeClient,
    _tasks: Tasks,
    _folder: TempDir,
}

impl Author {
    pub async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let (tasks, key) = (Tasks::new(), Keypair::generate_ed25519());
        let config = NodeConfig {
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
            pubsub: true,
            ..NodeConfig::alone("author")
        };
        let (node, _) = node::start(&tasks, &store, Keypair::generate_ed25519(), config).await.unwrap();
        let tree = Tree::new(Blocks::new(store.blocks().clone(), Arc::new(node.clone())));
        Self { key, tree, node, _tasks: tasks, _folder: folder }
    }

    pub fn name(&self) -> String {
        name_of(&self.key).to_string()
    }

    pub fn address(&self) -> String {
        self.node.listen_addresses()[0].to_string()
    }

    /// A daemon that follows the author.
    pub fn reader(&self) -> Daemon {
        daemon().dials(&self.address()).reads(&self.name()).read_only().start()
    }

    pub async fn put(&self, block: Block) -> Entry {
        let entry = Entry { cid: *block.cid(), tsize: block.bytes().len() as u64 };
        self.tree.blocks().put(vec![block]).await.unwrap();
        entry
    }

    pub async fn leaf(&self, content: &[u8]) -> Entry {
        self.put(Block::encode(RAW, Bytes::copy_from_slice(content))).await
    }

    pub async fn edit(&self, root: &Cid, path: &str, to: Entry) -> Cid {
        let edit = Edit { path: path.to_owned(), to: Some(to) };
        self.tree.edit(root, &[edit]).await.unwrap().cid
    }

    /// A tree with an image as `library/app:1`, as an honest daemon would publish it.
    pub async fn tree_of(&self, image: &Image) -> Cid {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for blob in &image.blobs {
            let digest = Digest::sha256(blob);
            files.insert(layer_link(&digest), digest.to_string().into_bytes());
            files.insert(blob_data(&digest), blob.clone());
        }
        let digest = Digest::sha256(&image.manifest);
        files.insert(revision_link(&digest), digest.to_string().into_bytes());
        files.insert(tag_link("1"), digest.to_string().into_bytes());
        files.insert(blob_data(&digest), image.manifest.clone());
        let mut root = self.tree.empty().await.unwrap().cid;
        for (path, content) in files {
            let mut writer = shoal::dag::file::FileWriter::new(self.tree.blocks());
            writer.write(content.into()).await.unwrap();
            let file = writer.finish().await.unwrap();
            root = self.edit(&root, &path, Entry { cid: file.cid, tsize: file.tsize }).await;
        }
        root
    }

    /// Signs a value and gives the record to who is connected, or will be.
    pub async fn publish(&self, record: &Forged) {
        let bytes = record.sign(&self.key);
        self.give(IpnsRecord::decode(&name_of(&self.key), &bytes).unwrap()).await;
    }

    /// The same with a root, for so long.
    pub async fn publish_for(&self, root: &Cid, sequence: u64, validity: Duration) {
        let until = Timestamp::now() + SignedDuration::try_from(validity).unwrap();
        let ttl = Duration::from_secs(1);
        self.give(IpnsRecord::sign(&self.key, root, sequence, until, ttl).unwrap()).await;
    }

    async fn give(&self, record: IpnsRecord) {
        let publishing = async {
            while self.node.publish(&record).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, publishing).await.expect("somebody takes the record");
    }

    pub async fn publish_root(&self, root: &Cid, sequence: u64) {
        self.publish(&Forged::new(&format!("/ipfs/{root}"), sequence)).await;
    }
}

/// Waits until a daemon has seen a record of the one name that it follows.
pub async fn has_seen(reader: &Daemon, sequence: u64) {
    let waiting = async {
        while reader.status().readonly[0].sequence != Some(sequence) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never {sequence}: {}", reader.log());
}

/// Waits until a daemon serves this root of the one name that it follows.
pub async fn has_taken(reader: &Daemon, root: &Cid) {
    let waiting = async {
        while reader.status().readonly[0].root != Some(root.to_string()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "never {root}: {}", reader.log());
}

pub fn blob_data(digest: &Digest) -> String {
    format!("{BASE}/blobs/sha256/{}/{}/data", &digest.hex()[..2], digest.hex())
}

pub fn layer_link(digest: &Digest) -> String {
    format!("{BASE}/repositories/library/app/_layers/sha256/{}/link", digest.hex())
}

pub fn revision_link(digest: &Digest) -> String {
    format!("{BASE}/repositories/library/app/_manifests/revisions/sha256/{}/link", digest.hex())
}

pub fn tags() -> String {
    format!("{BASE}/repositories/library/app/_manifests/tags")
}

pub fn tag_link(tag: &str) -> String {
    format!("{}/{tag}/current/link", tags())
}
