//! Two daemons with the same key, in whatever order they push, publish, stop, lose records and settle it: nothing that was
//! acknowledged is lost once one has adopted what the other has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Request, Response};
use libp2p::identity::Keypair;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{broadcast, watch};

use super::{VALIDITY, pass};
use crate::config::{NamingConfig, Validation};
use crate::ipfs::{Ipfs, IpfsError, Peer, PeerBody, Want};
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::ipld::{Block, Cid};
use crate::mirror::{
    Asked, Mirror, MirrorConfig, Origin, PublishState, Purpose, PutManifest, Signer, SigningKey,
};
use crate::naming::Naming;
use crate::oci::manifest::OCI_MANIFEST;
use crate::oci::{Algorithm, Digest, Reference, RepoName, Tag};
use crate::store::{Store, StoreOptions};
use crate::tasks::Tasks;

const CASES: u32 = 16;
const STEPS_MAX: usize = 14;
/// Rounds within which the two must have come to terms.
const ROUNDS_MAX: usize = 8;

/// What may happen; each by one of the two.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push {
        who: usize,
        tag: u8,
    },
    Wait {
        seconds: u64,
    },
    Adopt {
        who: usize,
    },
    Overwrite {
        who: usize,
    },
    Restart {
        who: usize,
    },
    /// Pubsub brings the newest record to both.
    Gossip,
    /// The network loses the record.
    Forget,
    /// One can, or cannot, be reached by the other and by the network.
    Cut {
        who: usize,
        is_cut: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..2_usize;
    prop_oneof![
        6 => (who.clone(), 0..3_u8).prop_map(|(who, tag)| Step::Push { who, tag }),
        4 => prop::sample::select(vec![1, 5, 500]).prop_map(|seconds| Step::Wait { seconds }),
        2 => who.clone().prop_map(|who| Step::Adopt { who }),
        1 => who.clone().prop_map(|who| Step::Overwrite { who }),
        2 => who.clone().prop_map(|who| Step::Restart { who }),
        2 => Just(Step::Gossip),
        1 => Just(Step::Forget),
        2 => (who, any::<bool>()).prop_map(|(who, is_cut)| Step::Cut { who, is_cut }),
    ]
}

/// The network between the two: one record, and the blocks of both.
#[derive(Default)]
struct World {
    record: Mutex<Option<IpnsRecord>>,
    stores: Mutex<[Option<Store>; 2]>,
    cut: Mutex<[bool; 2]>,
    /// What each has signed: a sequence never means two things.
    signed: Mutex<[BTreeMap<u64, Bytes>; 2]>,
}

/// How one of them sees it.
struct Side {
    world: Arc<World>,
    who: usize,
}

impl World {
    fn newest(&self) -> Option<IpnsRecord> {
        self.record.lock().unwrap().clone()
    }

    fn is_cut(&self, who: usize) -> bool {
        self.cut.lock().unwrap()[who]
    }
}

#[async_trait]
impl Ipfs for Side {
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        let missing = || IpfsError::NoProvider(Box::new(want.cid));
        if self.world.is_cut(self.who) || self.world.is_cut(1 - self.who) {
            return Err(missing());
        }
        let other = self.world.stores.lock().unwrap()[1 - self.who].clone().ok_or_else(missing)?;
        let bytes = other.blocks().get(want.cid.hash()).unwrap();
        bytes.map(|bytes| Block::from_store(want.cid, bytes)).ok_or_else(missing)
    }

    async fn provide(&self, _: &[Cid]) -> Result<(), IpfsError> {
        Ok(())
    }

    async fn resolve(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        if self.world.is_cut(self.who) {
            return Err(IpfsError::NoPeers(name.to_string()));
        }
        self.world.newest().ok_or_else(|| IpfsError::NoRecord(Box::new(*name)))
    }

    async fn publish(&self, record: &IpnsRecord) -> Result<(), IpfsError> {
        if self.world.is_cut(self.who) {
            return Err(IpfsError::NoPeers(record.name().to_string()));
        }
        let known = self.world.newest().filter(|known| known.is_better_than(record));
        if known.is_some() {
            return Err(IpfsError::Publish { name: Box::new(*record.name()), stored: 0, wanted: 1 });
        }
        // What was taken over from the other may be put too.
        let by_other = self.world.signed.lock().unwrap()[1 - self.who].get(&record.sequence()).cloned();
        if by_other.as_ref() != Some(record.bytes()) {
            let mut signed = self.world.signed.lock().unwrap();
            let before = signed[self.who].insert(record.sequence(), record.bytes().clone());
            assert!(before.is_none_or(|before| before == record.bytes()), "a sequence was signed twice");
        }
        *self.world.record.lock().unwrap() = Some(record.clone());
        Ok(())
    }

    fn mesh(&self) -> watch::Receiver<Arc<[Peer]>> {
        watch::Sender::default().subscribe()
    }

    async fn request(&self, peer: &Peer, _: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError> {
        Err(IpfsError::NotConnected(peer.clone()))
    }
}

/// One of the two daemons.
struct Writer {
    who: usize,
    folder: TempDir,
    tasks: Tasks,
    mirror: Mirror,
    updates: broadcast::Sender<IpnsRecord>,
}

impl Writer {
    async fn start(world: &Arc<World>, key: &Keypair, who: usize, folder: TempDir) -> Self {
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        world.stores.lock().unwrap()[who] = Some(store.clone());
        let signer = Signer {
            key: SigningKey::Ours(Box::new(key.clone())),
            fresh: false,
            record_validity: VALIDITY,
            former: Vec::new(),
        };
        let config = MirrorConfig {
            signer: Some(signer),
            readonly: Vec::new(),
            follow_quota_bytes: None,
            uploads_max: 4,
            upload_idle_timeout: VALIDITY,
            delete_enabled: true,
            validation: Validation { image_blobs: true, index_manifests: false },
            pull_through: None,
            naming: Naming::new(&NamingConfig::default()).unwrap(),
        };
        let (tasks, updates) = (Tasks::new(), broadcast::channel(16).0);
        let ipfs = Arc::new(Side { world: world.clone(), who });
        let mirror = Mirror::start(&tasks, &store, ipfs, &updates, config).await.unwrap();
        Self { who, folder, tasks, mirror, updates }
    }

    /// Ends in order, and starts again upon the same folder.
    async fn restart(self, world: &Arc<World>, key: &Keypair) -> Self {
        let Self { who, folder, tasks, mirror, .. } = self;
        assert_eq!(tasks.shutdown(Duration::from_secs(10)).await, 0);
        drop(mirror);
        let store = world.stores.lock().unwrap()[who].take().unwrap();
        store.close().unwrap();
        drop(store);
        Self::start(world, key, who, folder).await
    }

    /// Pushes an image of one blob, and returns its digest, acknowledged.
    async fn push(&self, tag: &Tag, seed: usize) -> (Digest, Digest) {
        let blob = Bytes::from(format!("{{\"by\":{},\"seed\":{seed}}}", self.who));
        let digest = Digest::sha256(&blob);
        let size = blob.len();
        let id = self.mirror.start_upload(&repo(), Algorithm::Sha256).await.unwrap();
        let body = futures::stream::iter([Ok(blob)]);
        self.mirror.append_and_finish(&repo(), &id, None, body, &digest).await.unwrap();
        let described = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest.to_string(), "size": size});
        let manifest =
            json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": []});
        let put = PutManifest {
            tags: std::slice::from_ref(tag),
            expected: None,
            content_type: Some(OCI_MANIFEST),
            bytes: manifest.to_string().into(),
        };
        (self.mirror.put_manifest(&repo(), put).await.unwrap().digest, digest)
    }

    async fn find(&self, reference: &Reference) -> Option<Digest> {
        let repo = repo();
        let asked = Asked { repo: &repo, registry: None, via: None, is_ours: false };
        let found = self.mirror.manifest(&asked, reference, Purpose::Manifest).await.unwrap()?;
        assert_eq!(found.origin, Origin::Own);
        Some(found.manifest.digest)
    }

    async fn has_blob(&self, digest: &Digest) -> bool {
        let repo = repo();
        let asked = Asked { repo: &repo, registry: None, via: None, is_ours: false };
        let Some((blob, _)) = self.mirror.blob(&asked, digest, false).await.unwrap() else { return false };
        let bytes = self.mirror.read(&blob, 0..blob.size_bytes);
        futures::TryStreamExt::try_collect::<Vec<Bytes>>(bytes).await.is_ok()
    }

    fn is_blocked(&self) -> bool {
        self.mirror.status().own.unwrap().state == PublishState::Blocked
    }
}

fn repo() -> RepoName {
    "library/app".parse().unwrap()
}

/// The two, and what was acknowledged.
struct Scene {
    world: Arc<World>,
    key: Keypair,
    writers: [Option<Writer>; 2],
    images: Vec<(Digest, Digest)>,
    tags: BTreeMap<Tag, BTreeSet<Digest>>,
}

impl Scene {
    async fn new() -> Self {
        let (world, key) = (Arc::new(World::default()), Keypair::generate_ed25519());
        let first = Writer::start(&world, &key, 0, TempDir::new().unwrap()).await;
        let second = Writer::start(&world, &key, 1, TempDir::new().unwrap()).await;
        let writers = [Some(first), Some(second)];
        Self { world, key, writers, images: Vec::new(), tags: BTreeMap::new() }
    }

    fn writer(&self, who: usize) -> &Writer {
        self.writers[who].as_ref().unwrap()
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Push { who, tag } => {
                let tag: Tag = format!("t{tag}").parse().unwrap();
                let image = self.writer(who).push(&tag, self.images.len()).await;
                self.tags.entry(tag).or_default().insert(image.0);
                self.images.push(image);
            }
            Step::Wait { seconds } => pass(Duration::from_secs(seconds)).await,
            // With nobody in the way, or nobody to be reached, it is refused, and nothing has changed.
            Step::Adopt { who } => drop(self.writer(who).mirror.adopt().await),
            Step::Overwrite { who } => drop(self.writer(who).mirror.overwrite().await.unwrap()),
            Step::Restart { who } => {
                let writer = self.writers[who].take().unwrap();
                self.writers[who] = Some(writer.restart(&self.world, &self.key).await);
            }
            Step::Gossip => self.gossip().await,
            Step::Forget => *self.world.record.lock().unwrap() = None,
            Step::Cut { who, is_cut } => self.world.cut.lock().unwrap()[who] = is_cut,
        }
    }

    /// The second pushes this tag and another one while it is cut off; the first two images as `t0`, in two records. Then
    /// the second comes back, whose record is the older one.
    async fn diverge(&mut self, tag: u8) {
        self.run(Step::Cut { who: 1, is_cut: true }).await;
        for _ in 0..2 {
            self.run(Step::Push { who: 0, tag: 0 }).await;
            self.run(Step::Wait { seconds: 5 }).await;
        }
        self.run(Step::Push { who: 1, tag }).await;
        self.run(Step::Push { who: 1, tag: 1 }).await;
        self.run(Step::Wait { seconds: 30 }).await;
        self.run(Step::Cut { who: 1, is_cut: false }).await;
        self.run(Step::Wait { seconds: 30 }).await;
    }

    async fn gossip(&self) {
        let Some(record) = self.world.newest() else { return };
        for writer in self.writers.iter().flatten().filter(|writer| !self.world.is_cut(writer.who)) {
            drop(writer.updates.send(record.clone()));
        }
        pass(Duration::from_secs(1)).await;
    }

    /// Everybody can be reached again; the second brings out what it has, and the first takes that in.
    async fn come_to_terms(&self) {
        *self.world.cut.lock().unwrap() = [false; 2];
        for _ in 0..ROUNDS_MAX {
            for who in [1, 0] {
                // Long enough for a record to be put again, and for both to have asked.
                pass(Duration::from_secs(6 * 3600)).await;
                self.gossip().await;
                if self.writer(who).is_blocked() {
                    let adopted = self.writer(who).mirror.adopt().await.unwrap();
                    assert_eq!(adopted.missing_files, 0);
                }
            }
            if self.holds_all(0).await {
                return;
            }
        }
        panic!("the first never has all that was acknowledged: {:?}", self.writer(0).mirror.status().own);
    }

    async fn holds_all(&self, who: usize) -> bool {
        for (manifest, blob) in &self.images {
            let is_here = self.writer(who).find(&Reference::Digest(*manifest)).await == Some(*manifest);
            if !is_here || !self.writer(who).has_blob(blob).await {
                return false;
            }
        }
        for (tag, pushed) in &self.tags {
            match self.writer(who).find(&Reference::Tag(tag.clone())).await {
                Some(digest) if pushed.contains(&digest) => (),
                _ => return false,
            }
        }
        true
    }
}

fn with_paused_clock(run: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.unwrap().block_on(run);
}

#[test]
fn nothing_acknowledged_is_lost_whatever_two_writers_do() {
    let mut runner = TestRunner::new(Config { cases: CASES, max_shrink_iters: 64, ..Config::default() });
    let outcome = runner.run(&vec(step(), 1..STEPS_MAX), |steps| {
        with_paused_clock(async {
            let mut scene = Scene::new().await;
            for step in steps {
                scene.run(step).await;
            }
            scene.come_to_terms().await;
        });
        Ok(())
    });
    outcome.unwrap();
}

#[tokio::test(start_paused = true)]
async fn adopting_lists_tags_that_point_elsewhere_and_keeps_both_images() {
    let mut scene = Scene::new().await;
    scene.diverge(0).await;
    assert!(scene.writer(1).is_blocked() && !scene.writer(0).is_blocked(), "the later one stops");

    let adopted = scene.writer(1).mirror.adopt().await.unwrap();
    assert_eq!(adopted.status.state, PublishState::Published);
    let [conflict] = adopted.conflicts.as_slice() else { panic!("{:?}", adopted.conflicts) };
    let tag: Tag = "t0".parse().unwrap();
    assert_eq!((&conflict.repo, &conflict.tag), (&repo(), &tag));
    assert_eq!((conflict.ours, conflict.theirs), (scene.images[2].0, scene.images[1].0));
    assert_eq!(scene.writer(1).find(&Reference::Tag(tag)).await, Some(conflict.ours));
    assert!(scene.holds_all(1).await);
    assert!(scene.writer(1).mirror.adopt().await.is_err(), "there is nothing more to adopt");
    assert_eq!(scene.world.newest().unwrap().root(), Some(adopted.status.root));

    scene.gossip().await;
    assert!(scene.writer(0).is_blocked(), "now the first is behind");
    let adopted = scene.writer(0).mirror.adopt().await.unwrap();
    assert_eq!(adopted.conflicts.len(), 1);
    assert!(scene.holds_all(0).await);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_not_adopted_and_changes_nothing() {
    let mut scene = Scene::new().await;
    scene.diverge(2).await;
    scene.run(Step::Cut { who: 0, is_cut: true }).await;
    let before = scene.writer(1).mirror.status().own.unwrap().root;
    assert!(scene.writer(1).mirror.adopt().await.is_err());
    let own = scene.writer(1).mirror.status().own.unwrap();
    assert_eq!((own.root, own.state), (before, PublishState::Blocked));
}
