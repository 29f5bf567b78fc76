//! The domain: what a pull and a push mean. Knows images and trees; nothing of HTTP, sockets or disks.

mod announce;
mod commit;
mod delete;
mod error;
mod gc;
mod leases;
mod listing;
mod lookup;
mod publish;
mod push;
mod referrers;
mod roots;
#[cfg(test)]
mod tests;
mod upload;
mod verify;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use moka::sync::Cache;
use tokio::sync::broadcast;

use crate::config::Validation;
use crate::dag::{Blocks, Tree, archive};
use crate::ipfs::Ipfs;
use crate::ipld::Block;
use crate::ipld::car::Scope;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::oci::{Algorithm, Digest, Reference, RepoName, storage as layout};
use crate::store::{IndexEntry, Store};
use crate::tasks::Tasks;

use commit::Commits;
pub use error::{BodyError, MirrorError, chain};
pub use gc::Collected;
use gc::Collector;
use leases::Leases;
use publish::Publisher;
pub use publish::{OwnStatus, PublishState, Signer};
pub use push::{PutManifest, Stored};
pub use referrers::Referrers;
use roots::Follow;
pub use roots::FollowedStatus;
use upload::{Then, Uploads};
use verify::Proven;

/// Links whose target is kept in memory: the root CID of a link file → digest.
const LINKS_CACHED_MAX: u64 = 16_384;
/// Manifests kept in memory, in bytes.
const MANIFESTS_CACHED_BYTES_MAX: u64 = 16 << 20;
/// How often idle uploads are looked for.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// The root under which something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Own,
    Readonly(IpnsName),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Readonly(name) => fmt::Display::fmt(name, f),
        }
    }
}

/// A manifest, byte for byte as it was pushed.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
}

/// A blob that was found; its bytes may still be elsewhere.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: Digest,
    pub size_bytes: u64,
    entry: IndexEntry,
    /// Its bytes were held to the digest before.
    proven: bool,
}

/// A page of names, sorted bytewise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub names: Vec<String>,
    /// Whether more follow the last one.
    pub more: bool,
}

impl Page {
    /// The union of two pages that begin behind the same name, cut to `limit`.
    fn merge(self, other: Self, limit: usize) -> Self {
        let mut names: Vec<String> = self.names.into_iter().chain(other.names).collect();
        names.sort_unstable();
        names.dedup();
        let more = self.more || other.more || names.len() > limit;
        names.truncate(limit);
        Self { names, more }
    }
}

/// What a mirror is started with.
pub struct MirrorConfig {
    /// The key of the own tree; `None` for a read-only daemon.
    pub signer: Option<Signer>,
    /// The names to read from, in the order they are asked.
    pub readonly: Vec<IpnsName>,
    /// Uploads that may be open at once.
    pub uploads_max: usize,
    /// After this long without bytes an upload is dropped.
    pub upload_idle_timeout: Duration,
    pub delete_enabled: bool,
    pub validation: Validation,
}

/// What `status` tells.
#[derive(Clone, Debug)]
pub struct MirrorStatus {
    pub own: Option<OwnStatus>,
    pub readonly: Vec<FollowedStatus>,
    pub uploads: usize,
    /// Blobs that are being sent to clients.
    pub downloads: usize,
}

/// The operations that HTTP calls. Cheap to clone. Every future may be dropped midway: a commit that was begun is
/// finished all the same.
#[derive(Clone)]
pub struct Mirror(Arc<Inner>);

struct Inner {
    tree: Tree,
    leases: Arc<Leases>,
    collector: Collector,
    own: Option<Own>,
    follows: Vec<Follow>,
    uploads: Uploads,
    proven: Proven,
    links: Cache<Cid, Digest>,
    manifests: Cache<Digest, Manifest>,
    downloads: Arc<AtomicUsize>,
    delete_enabled: bool,
    validation: Validation,
}

struct Own {
    commits: Commits,
    publisher: Publisher,
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
                let (root, record) = publish::first_root(&ipfs, &tree, state, &signer).await?;
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
                    record,
                    commits.clone(),
                    told,
                );
                Some(Own { commits, publisher })
            }
            None => None,
        };
        let mut follows = Vec::with_capacity(config.readonly.len());
        for name in config.readonly {
            let (ipfs, tree) = (ipfs.clone(), tree.clone());
            follows.push(Follow::start(tasks, ipfs, tree, state.clone(), name, updates.subscribe()).await?);
        }
        let uploads =
            Uploads::open(blocks, store.uploads().clone(), config.uploads_max, config.upload_idle_timeout)
                .await?;
        let idle = uploads.clone();
        tasks.spawn("uploads", |stop| async move {
            let mut check = tokio::time::interval(IDLE_CHECK_INTERVAL);
            while stop.run_until_cancelled(check.tick()).await.is_some() {
                idle.drop_idle().await;
            }
        });
        let (collector, requests) = Collector::channel();
        let inner = Arc::new(Inner {
            tree,
            leases,
            collector,
            own,
            follows,
            uploads,
            proven: Proven::new(store.index().clone()),
            links: Cache::new(LINKS_CACHED_MAX),
            manifests: Cache::builder()
                .max_capacity(MANIFESTS_CACHED_BYTES_MAX)
                .weigher(|_, manifest: &Manifest| {
                    u32::try_from(manifest.bytes.len() + 256).unwrap_or(u32::MAX)
                })
                .build(),
            downloads: Arc::default(),
            delete_enabled: config.delete_enabled,
            validation: config.validation,
        });
        let (mirror, index) = (inner.clone(), store.index().clone());
        tasks.spawn("gc", |stop| gc::run(mirror, index, requests, stop));
        Ok(Self(inner))
    }

    /// Whether pushes are taken.
    pub fn is_writable(&self) -> bool {
        self.0.own.is_some()
    }

    /// `None` only if every source said that it has no such manifest.
    pub async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<(Manifest, Origin)>, MirrorError> {
        self.0.manifest(repo, reference).await
    }

    /// `None` only if every source said that the repository has no such blob. Does not read the blob.
    pub async fn blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<(Blob, Origin)>, MirrorError> {
        self.0.blob(repo, digest).await
    }

    /// Like [`Mirror::blob`] for a client that will rely on the answer: what is found stays for an hour, or until a
    /// manifest that names it is deleted.
    pub async fn blob_to_be_named(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<(Blob, Origin)>, MirrorError> {
        self.0.leases.touch(digest, Instant::now());
        self.0.blob(repo, digest).await
    }

    /// The bytes of `range`, which lies within the blob, in chunks of up to 1 MiB. An error means: break the response off.
    pub fn read(&self, blob: &Blob, range: Range<u64>) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        let held = (Counted::new(&self.0.downloads), self.0.tree.blocks().keep());
        held.1.add(blob.entry.cid);
        self.0
            .read(blob, range)
            .inspect(move |_| {
                let _ = &held;
            })
            .boxed()
    }

    /// A block that is here and that anybody may have; never asks the network.
    pub async fn block(&self, cid: &Cid) -> Result<Option<Block>, MirrorError> {
        Ok(self.0.tree.blocks().get(cid).await?)
    }

    /// A CARv1 of a block that is here and of those below it, as [`archive`] has it. `None`: the block is not here. An
    /// error midway, which the lack of a block below is too, means: break the response off.
    pub async fn archive(
        &self,
        root: &Cid,
        scope: Scope,
    ) -> Result<Option<BoxStream<'static, Result<Bytes, MirrorError>>>, MirrorError> {
        let blocks = self.0.tree.blocks();
        let Some(root) = blocks.get(root).await? else { return Ok(None) };
        Ok(Some(archive(blocks.clone(), root, scope).map_err(MirrorError::from).boxed()))
    }

    /// The tags behind `last`, at most `limit`; `None`: no source knows the repository.
    pub async fn tags(
        &self,
        repo: &RepoName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Option<Page>, MirrorError> {
        self.0.tags(repo, last, limit).await
    }

    /// The repositories behind `last`, at most `limit`.
    pub async fn catalog(&self, last: Option<&str>, limit: usize) -> Result<Page, MirrorError> {
        self.0.catalog(last, limit).await
    }

    /// The manifests whose subject is `subject`, sorted by digest: those behind `last`, at most `limit`, of one type of
    /// artifact if that is given. A subject that nobody knows has none.
    pub async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Referrers, MirrorError> {
        self.0.referrers(repo, subject, artifact_type, last, limit).await
    }

    /// Deletes a tag, or a manifest and every tag that points to it, from the own tree. `false`: nobody has it. What a
    /// readonly root has is [`MirrorError::NotOurs`].
    pub async fn delete_manifest(&self, repo: &RepoName, reference: &Reference) -> Result<bool, MirrorError> {
        self.0.delete_manifest(repo, reference).await
    }

    /// Takes a blob from a repository of the own tree, as [`Mirror::delete_manifest`] does with manifests.
    pub async fn delete_blob(&self, repo: &RepoName, digest: &Digest) -> Result<bool, MirrorError> {
        self.0.delete_blob(repo, digest).await
    }

    /// Opens an upload that will be closed with a digest of `algorithm`; the id is a UUID.
    pub async fn start_upload(&self, repo: &RepoName, algorithm: Algorithm) -> Result<String, MirrorError> {
        self.0.own().await?;
        self.0.uploads.start(repo, algorithm).await
    }

    /// How many bytes an upload has received, up to the request that may be writing to it now.
    pub fn upload_status(&self, repo: &RepoName, id: &str) -> Result<u64, MirrorError> {
        self.0.uploads.received_bytes(repo, id)
    }

    /// Appends a body and returns the bytes received in all. `at`: where the client says the chunk begins; anything but
    /// the end is refused and the upload stays usable. A body that breaks off leaves what came of it.
    pub async fn append<S>(
        &self,
        repo: &RepoName,
        id: &str,
        at: Option<u64>,
        body: S,
    ) -> Result<u64, MirrorError>
    where
        S: Stream<Item = Result<Bytes, BodyError>> + Send + Unpin,
    {
        self.0.uploads.append(repo, id, at, body, Then::More).await
    }

    /// Appends the last body, as [`Mirror::append`] does, and closes the upload: durable and in the tree when this
    /// returns. After a mismatch the upload is gone.
    pub async fn append_and_finish<S>(
        &self,
        repo: &RepoName,
        id: &str,
        at: Option<u64>,
        body: S,
        digest: &Digest,
    ) -> Result<(), MirrorError>
    where
        S: Stream<Item = Result<Bytes, BodyError>> + Send + Unpin,
    {
        self.0.uploads.append(repo, id, at, body, Then::Finish).await?;
        self.0.finish(repo, id, digest).await
    }

    /// Ends an upload without a blob.
    pub async fn cancel_upload(&self, repo: &RepoName, id: &str) -> Result<(), MirrorError> {
        self.0.uploads.cancel(repo, id).await
    }

    /// Makes a blob of `from` (any repository if `None`) one of `repo`. `false`: it is not there, so upload it.
    pub async fn mount(
        &self,
        repo: &RepoName,
        from: Option<&RepoName>,
        digest: &Digest,
    ) -> Result<bool, MirrorError> {
        self.0.mount(repo, from, digest).await
    }

    /// Stores a manifest under its digest and its tags, in one commit.
    pub async fn put_manifest(&self, repo: &RepoName, put: PutManifest<'_>) -> Result<Stored, MirrorError> {
        self.0.put_manifest(repo, put).await
    }

    /// Publishes the own root at once; with `overwrite` also over a newer record that somebody else signed.
    pub async fn publish_now(&self, overwrite: bool) -> Result<OwnStatus, MirrorError> {
        self.0.own.as_ref().ok_or(MirrorError::ReadOnly)?.publisher.publish_now(overwrite).await
    }

    /// Frees what nothing needs. Goes on if the future is dropped. The error is a chain of causes.
    pub async fn collect_garbage(&self) -> Result<Collected, String> {
        self.0.collector.collect().await
    }

    pub fn status(&self) -> MirrorStatus {
        MirrorStatus {
            own: self.0.own.as_ref().map(|own| own.publisher.status()),
            readonly: self.0.follows.iter().map(Follow::status).collect(),
            uploads: self.0.uploads.len(),
            downloads: self.0.downloads.load(Ordering::Relaxed),
        }
    }
}

impl Inner {
    /// The own tree, once it may be written to.
    async fn own(&self) -> Result<&Own, MirrorError> {
        let own = self.own.as_ref().ok_or(MirrorError::ReadOnly)?;
        own.publisher.asked().await;
        Ok(own)
    }
}

/// Counts a thing for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
