//! The domain: what a pull and a push mean. Knows images and trees; nothing of HTTP, sockets or disks.

mod announce;
mod commit;
mod layout;
mod lookup;
mod publish;
mod push;
mod roots;
mod upload;
mod verify;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use moka::sync::Cache;
use tokio::sync::broadcast;

use crate::dag::{Blocks, DagError, Tree};
use crate::ipfs::Ipfs;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::oci::{Digest, Reference, RepoName, Tag};
use crate::store::{IndexEntry, Store, StoreError};
use crate::tasks::Tasks;

use commit::Commits;
use publish::Publisher;
pub use publish::{OwnStatus, PublishState, Signer};
use roots::Follow;
pub use roots::FollowedStatus;
use upload::Uploads;
use verify::Proven;

/// Links whose target is kept in memory: the root CID of a link file → digest.
const LINKS_CACHED_MAX: u64 = 16_384;
/// Manifests kept in memory, in bytes.
const MANIFESTS_CACHED_BYTES_MAX: u64 = 16 << 20;
/// How often idle uploads are looked for.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// What went wrong, as far as somebody tells it apart.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error("this daemon is read-only: set storage.ipfs.writeipnskey to push to it")]
    ReadOnly,
    #[error("upload {0} is unknown: it was finished, cancelled, or idle for too long")]
    UploadUnknown(String),
    #[error("the chunk begins at byte {at}, but upload {id} of {repo} has received {received}")]
    UploadRange { repo: RepoName, id: String, at: u64, received: u64 },
    #[error("upload {0} is being written to by another request")]
    UploadBusy(String),
    #[error("{0} uploads are open: finish some first")]
    TooManyUploads(usize),
    #[error("the content has digest {actual}, not {expected}")]
    DigestMismatch { expected: Digest, actual: Digest },
    #[error("the request body broke off")]
    Body(#[source] BodyError),
    #[error("manifest is not valid: {0}")]
    ManifestInvalid(String),
    #[error("manifest has more than {0} bytes")]
    ManifestTooLarge(usize),
    #[error("manifest names what is not in {repo}: {}", list(.digests))]
    Missing { repo: RepoName, digests: Vec<Digest> },
    /// Nobody could be asked, or who has it did not deliver: unlike absence.
    #[error("{what} could not be fetched")]
    Fetch {
        what: String,
        #[source]
        source: DagError,
    },
    /// A followed name that nobody has told the root of yet: what lies below is unknown, not absent.
    #[error("ipns name {0} is not resolved yet: is one of its readers, or its author, among the peers?")]
    Unresolved(IpnsName),
    /// A tree that is not what distribution would have written.
    #[error("{path} {what}")]
    Tree { path: String, what: &'static str },
    #[error("the push could not be committed")]
    Commit(#[source] Arc<DagError>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Dag(#[from] DagError),
    #[error("the daemon is shutting down")]
    Closed,
}

fn list(digests: &[Digest]) -> String {
    digests.iter().map(Digest::to_string).collect::<Vec<_>>().join(", ")
}

/// An error with its causes, on one line, for logs and status.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What a request body broke off with.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    own: Option<Own>,
    follows: Vec<Follow>,
    uploads: Uploads,
    proven: Proven,
    links: Cache<Cid, Digest>,
    manifests: Cache<Digest, Manifest>,
    downloads: Arc<AtomicUsize>,
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
        let own = match config.signer {
            Some(signer) => {
                let (root, record) = publish::first_root(&ipfs, &tree, state, &signer).await?;
                let commits = Commits::start(tasks, tree.clone(), state.clone(), signer.name(), root);
                let told = updates.subscribe();
                let (announced, network) = (tree.clone(), ipfs.clone());
                tasks.spawn("announce", |stop| announce::announce_tree(announced, network, root, stop));
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
        let uploads = Uploads::new(blocks, config.uploads_max, config.upload_idle_timeout);
        let idle = uploads.clone();
        tasks.spawn("uploads", |stop| async move {
            let mut check = tokio::time::interval(IDLE_CHECK_INTERVAL);
            while stop.run_until_cancelled(check.tick()).await.is_some() {
                idle.drop_idle();
            }
        });
        Ok(Self(Arc::new(Inner {
            tree,
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
        })))
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
    ) -> Result<Option<Manifest>, MirrorError> {
        self.0.manifest(repo, reference).await
    }

    /// `None` only if every source said that the repository has no such blob. Does not read the blob.
    pub async fn blob(&self, repo: &RepoName, digest: &Digest) -> Result<Option<Blob>, MirrorError> {
        self.0.blob(repo, digest).await
    }

    /// The bytes of `range`, which lies within the blob, in chunks of up to 1 MiB. An error means: break the response off.
    pub fn read(&self, blob: &Blob, range: Range<u64>) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        let counted = Counted::new(&self.0.downloads);
        self.0
            .read(blob, range)
            .inspect(move |_| {
                let _ = &counted;
            })
            .boxed()
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

    /// Opens an upload; the id is a UUID.
    pub async fn start_upload(&self, repo: &RepoName) -> Result<String, MirrorError> {
        self.0.own().await?;
        self.0.uploads.start(repo)
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
        self.0.uploads.append(repo, id, at, body).await
    }

    /// Closes an upload: durable and in the tree when this returns. After a mismatch the upload is gone.
    pub async fn finish(&self, repo: &RepoName, id: &str, digest: &Digest) -> Result<(), MirrorError> {
        self.0.finish(repo, id, digest).await
    }

    /// Ends an upload without a blob.
    pub fn cancel_upload(&self, repo: &RepoName, id: &str) -> Result<(), MirrorError> {
        self.0.uploads.cancel(repo, id)
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

    /// Stores a manifest under its digest, which is `expected` or else the SHA-256, and moves `tags` to it, all or none.
    /// `content_type` as the client sent it.
    pub async fn put_manifest(
        &self,
        repo: &RepoName,
        expected: Option<&Digest>,
        tags: &[Tag],
        content_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<Digest, MirrorError> {
        self.0.put_manifest(repo, expected, tags, content_type, bytes).await
    }

    /// Publishes the own root at once; with `overwrite` also over a newer record that somebody else signed.
    pub async fn publish_now(&self, overwrite: bool) -> Result<OwnStatus, MirrorError> {
        self.0.own.as_ref().ok_or(MirrorError::ReadOnly)?.publisher.publish_now(overwrite).await
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
