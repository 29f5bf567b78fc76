//! Puts a mirror together, and starts the tasks that keep it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use moka::sync::Cache;
use tokio::sync::broadcast;

use super::commit::Commits;
use super::elsewhere::{Elsewhere, held};
use super::gc::{self, Collector};
use super::leases::Leases;
use super::publish::{self, Publisher};
use super::pull_through::PullThrough;
use super::roots::{Follow, Following};
use super::upload::Uploads;
use super::verify::Proven;
use super::{Inner, Manifest, Mirror, MirrorConfig, MirrorError, Own, announce, kept_follow, replicate};
use crate::config::{FollowMode, Validation};
use crate::dag::{Blocks, Tree};
use crate::ipfs::{Ipfs, Nowhere};
use crate::ipld::ipns::IpnsRecord;
use crate::oci::Digest;
use crate::store::{RootRow, Store, off_thread};
use crate::tasks::Tasks;

/// Links whose target is kept in memory: the root CID of a link file → digest.
const LINKS_CACHED_MAX: u64 = 16_384;
/// Manifests kept in memory, in bytes.
const MANIFESTS_CACHED_BYTES_MAX: u64 = 16 << 20;
/// Fills that broke off and wait for somebody who goes on with them, and how long they wait.
const FILLS_BROKEN_OFF_MAX: usize = 1024;
const FILL_IDLE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// How often idle uploads are looked for.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// What an [`Inner`] is put together from.
struct Parts {
    tree: Tree,
    leases: Arc<Leases>,
    own: Option<Own>,
    follows: Vec<Follow>,
    uploads: Uploads,
    delete_enabled: bool,
    validation: Validation,
    pull_through: Option<PullThrough>,
    elsewhere: Option<Elsewhere>,
}

impl Mirror {
    /// Loads the roots and starts the tasks that keep them. `updates` carries records that peers put to us. With a key
    /// that was not made just now and no tree on disk, waits up to half a minute for the network's answer.
    pub async fn start(
        tasks: &Tasks,
        store: &Store,
        ipfs: Arc<dyn Ipfs>,
        updates: &broadcast::Sender<IpnsRecord>,
        config: MirrorConfig,
    ) -> Result<Self, MirrorError> {
        let blocks = Blocks::new(store.blocks().clone(), ipfs.clone());
        let (tree, state) = (Tree::new(blocks.clone()), store.state());
        let leases = Arc::new(Leases::new(Instant::now()));
        let own = match config.signer {
            Some(signer) => {
                let (root, known) = publish::first_root(&ipfs, &tree, state, &signer).await?;
                let commits =
                    Commits::start(tasks, tree.clone(), state.clone(), leases.clone(), signer.name(), root);
                let told = updates.subscribe();
                let (announced, network, writer) = (tree.clone(), ipfs.clone(), commits.clone());
                tasks.spawn("announce", |stop| announce::announce_tree(announced, network, writer, stop));
                let publisher = Publisher::start(
                    tasks,
                    ipfs.clone(),
                    state.clone(),
                    signer,
                    known,
                    commits.clone(),
                    told,
                );
                Some(Own { commits, publisher: Some(publisher) })
            }
            None => None,
        };
        let following =
            Following::new(ipfs.clone(), config.naming.clone(), tree.clone(), state.clone(), Timestamp::now);
        let mut follows = Vec::with_capacity(config.readonly.len());
        for name in &config.readonly {
            follows.push(Follow::start(tasks, following.clone(), name.clone(), updates.subscribe()).await?);
        }
        let uploads =
            Uploads::open(blocks, store.uploads().clone(), config.uploads_max, config.upload_idle_timeout)
                .await?;
        let pull_through = match config.pull_through {
            Some(config) => Some(PullThrough::start(tasks, ipfs.clone(), config).await?),
            None => None,
        };
        let elsewhere = Elsewhere::open(ipfs.clone(), config.naming, state.clone()).await?;
        let (kept, changed, keeper) = (elsewhere.kept.clone(), elsewhere.changed.clone(), ipfs.clone());
        tasks.spawn("layouts", |stop| held::run(kept, ipfs, changed, stop));
        let MirrorConfig { delete_enabled, validation, follow_quota_bytes, .. } = config;
        let elsewhere = Some(elsewhere);
        let parts = Parts {
            tree,
            leases,
            own,
            follows,
            uploads,
            delete_enabled,
            validation,
            pull_through,
            elsewhere,
        };
        let inner = Inner::assemble(tasks, store, parts);
        for follow in inner.follows.iter().filter(|follow| follow.mode != FollowMode::None) {
            let (inner, follow, ipfs) = (inner.clone(), follow.clone(), keeper.clone());
            tasks.spawn("replicate", |stop| replicate::run(inner, follow, ipfs, follow_quota_bytes, stop));
        }
        let names = inner.follows.iter().map(|follow| follow.name.clone()).collect();
        for follow in inner.follows.clone() {
            let ipfs = keeper.clone();
            tasks.spawn("kept-follow", |stop| kept_follow::run(follow, ipfs, stop));
        }
        tasks.spawn("kept-former", |stop| kept_follow::let_go_of_former(names, keeper, stop));
        Ok(Self(inner))
    }
}

impl Inner {
    /// Images that nobody but this daemon knows of: a tree that is not published, in a store that no peer is served from.
    pub(super) async fn private(tasks: &Tasks, store: &Store) -> Result<Arc<Self>, MirrorError> {
        let blocks = Blocks::new(store.blocks().clone(), Arc::new(Nowhere));
        let (tree, state) = (Tree::new(blocks.clone()), store.state().clone());
        let row = state.clone();
        let root = match off_thread(move || row.root(RootRow::Cache)).await? {
            Some(root) => root,
            None => {
                let root = tree.empty().await?.cid;
                blocks.flush().await?;
                root
            }
        };
        let leases = Arc::new(Leases::new(Instant::now()));
        let commits = Commits::start(tasks, tree.clone(), state, leases.clone(), RootRow::Cache, root);
        let uploads = Uploads::open(blocks, store.uploads().clone(), FILLS_BROKEN_OFF_MAX, FILL_IDLE_TIMEOUT);
        let parts = Parts {
            tree,
            leases,
            own: Some(Own { commits, publisher: None }),
            follows: Vec::new(),
            uploads: uploads.await?,
            delete_enabled: true,
            validation: Validation { image_blobs: false, index_manifests: false },
            pull_through: None,
            elsewhere: None,
        };
        Ok(Self::assemble(tasks, store, parts))
    }

    /// Puts the parts together and starts the tasks that keep them.
    fn assemble(tasks: &Tasks, store: &Store, parts: Parts) -> Arc<Self> {
        let Parts {
            tree,
            leases,
            own,
            follows,
            uploads,
            delete_enabled,
            validation,
            pull_through,
            elsewhere,
        } = parts;
        let idle = uploads.clone();
        tasks.spawn("uploads", |stop| async move {
            let mut check = tokio::time::interval(IDLE_CHECK_INTERVAL);
            while stop.run_until_cancelled(check.tick()).await.is_some() {
                idle.drop_idle().await;
            }
        });
        let (collector, requests) = Collector::channel();
        let weigh =
            |_: &Digest, manifest: &Manifest| u32::try_from(manifest.bytes.len() + 256).unwrap_or(u32::MAX);
        let inner = Arc::new(Self {
            tree,
            leases,
            collector,
            own,
            follows,
            uploads,
            proven: Proven::new(store.index().clone()),
            links: Cache::new(LINKS_CACHED_MAX),
            manifests: Cache::builder().max_capacity(MANIFESTS_CACHED_BYTES_MAX).weigher(weigh).build(),
            downloads: Arc::default(),
            delete_enabled,
            validation,
            pull_through,
            elsewhere,
        });
        let (collected, index) = (inner.clone(), store.index().clone());
        tasks.spawn("gc", |stop| gc::run(collected, index, requests, stop));
        inner
    }
}
