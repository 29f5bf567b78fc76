//! The domain: what a pull and a push mean. Knows images and trees; nothing of HTTP, sockets or disks.

mod adopt;
mod announce;
mod caching;
mod commit;
mod delete;
mod elsewhere;
mod error;
mod found;
mod gc;
mod here;
mod kept_follow;
mod leases;
mod link;
mod listing;
mod lookup;
mod mesh;
mod publish;
mod pull_through;
mod push;
mod referrers;
mod replicate;
mod roots;
mod signer;
mod sources;
mod start;
#[cfg(test)]
mod tests;
mod trail;
mod upload;
mod verify;
mod writing;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use libp2p::identity::Keypair;
use moka::sync::Cache;

use crate::config::{FollowMode, Validation};
use crate::dag::{Tree, archive};
use crate::ipld::car::Scope;
use crate::ipld::{Block, TreeName};
use crate::naming::Naming;
use crate::oci::{Algorithm, Digest, Reference, RepoName, storage as layout};

pub use adopt::{Adopted, TagConflict};
use commit::Commits;
use elsewhere::Elsewhere;
pub use elsewhere::{KeptLayout, LayoutWriter};
pub use error::{BodyError, MirrorError, chain};
pub use found::{Age, Asked, Blob, Listed, Manifest, Origin, Page, Purpose, Served};
use found::{Content, StoredBlob};
pub use gc::Collected;
use gc::Collector;
pub use here::HeldBlob;
use leases::Leases;
pub use mesh::{ALIVE_PATH, HELD, HOLDINGS_PATH, HOP, Hop, PATH, REFER, fuzz};
use publish::Publisher;
pub use publish::{OwnStatus, PublishError, PublishState};
use pull_through::PullThrough;
pub use pull_through::{
    BlobForPeer, CachedImage, FillStatus, ManifestForPeer, Pins, PullThroughConfig, PullThroughStatus,
    SharedBlob,
};
pub use push::{PutManifest, Stored};
pub use referrers::Referrers;
pub use replicate::ReplicaStatus;
use roots::Follow;
pub use roots::FollowedStatus;
pub use signer::{Signer, SigningKey};
use upload::{Then, Uploads};
use verify::Proven;

/// What a mirror is started with.
pub struct MirrorConfig {
    /// The key of the own tree; `None` for a read-only daemon.
    pub signer: Option<Signer>,
    /// The names to read from, in the order they are asked, and what is brought here of each.
    pub readonly: Vec<(TreeName, FollowMode)>,
    /// Bytes of the store above which no further blob of a name is brought; `None`: no limit.
    pub follow_quota_bytes: Option<u64>,
    /// Uploads that may be open at once.
    pub uploads_max: usize,
    /// After this long without bytes an upload is dropped.
    pub upload_idle_timeout: Duration,
    pub delete_enabled: bool,
    pub validation: Validation,
    /// `None`: no registry is mirrored.
    pub pull_through: Option<PullThroughConfig>,
    /// Who is asked for names that are not IPNS's.
    pub naming: Naming,
}

/// What `status` tells.
#[derive(Clone, Debug)]
pub struct MirrorStatus {
    pub own: Option<OwnStatus>,
    pub readonly: Vec<FollowedStatus>,
    pub uploads: usize,
    /// Blobs that are being sent to clients.
    pub downloads: usize,
    /// `None`: no registry is mirrored.
    pub pull_through: Option<PullThroughStatus>,
}

/// The operations that HTTP calls. Cheap to clone. Every future may be dropped midway: a commit that was begun is
/// finished all the same.
#[derive(Clone)]
pub struct Mirror(Arc<Inner>);

/// Images in one store. The daemon has one, and one more for what it pulls through.
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
    pull_through: Option<PullThrough>,
    /// Absent where no repository means a place on IPFS.
    elsewhere: Option<Elsewhere>,
}

struct Own {
    commits: Commits,
    /// Absent where the tree is private.
    publisher: Option<Publisher>,
}

impl Mirror {
    /// Whether pushes are taken.
    pub fn is_writable(&self) -> bool {
        self.0.own.is_some()
    }

    /// `None` only if every source said that it has no such manifest. A client that names no registry gets one of another
    /// registry only if its blobs can be had, too.
    pub async fn manifest(
        &self,
        asked: &Asked<'_>,
        reference: &Reference,
        purpose: Purpose,
    ) -> Result<Option<Served>, MirrorError> {
        self.0.served_manifest(asked, reference, purpose).await
    }

    /// `None` only if every source said that the repository has no such blob. Does not read the blob, but begins to fetch
    /// one that another registry has. `resumes`: the client has its beginning already.
    pub async fn blob(
        &self,
        asked: &Asked<'_>,
        digest: &Digest,
        resumes: bool,
    ) -> Result<Option<(Blob, Origin)>, MirrorError> {
        self.0.served_blob(asked, digest, resumes).await
    }

    /// The size of a blob for a client that will rely on the answer: what is found in our own tree stays for an hour, or
    /// until a manifest that names it is deleted. Cannot be read from.
    pub async fn blob_to_be_named(
        &self,
        asked: &Asked<'_>,
        digest: &Digest,
    ) -> Result<Option<(Blob, Origin)>, MirrorError> {
        self.0.leases.touch(digest, Instant::now());
        self.0.served_blob_size(asked, digest).await
    }

    /// The bytes of `range`, which lies within the blob, in chunks of up to 1 MiB. An error means: break the response off.
    pub fn read(&self, blob: &Blob, range: Range<u64>) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        let counted = Counted::new(&self.0.downloads);
        let bytes = match &blob.content {
            Content::Rooted(stored) => self.0.read_held(stored, range),
            Content::PulledThrough(found) => match &self.0.pull_through {
                Some(pull_through) => pull_through.read(found, range),
                None => futures::stream::empty().boxed(),
            },
            Content::SizeAlone => futures::stream::empty().boxed(),
        };
        bytes
            .inspect(move |_| {
                let _ = &counted;
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

    /// The tags behind `last`, at most `limit`, of all trees and of the registry that is meant; `None`: no source knows the
    /// repository.
    pub async fn tags(
        &self,
        asked: &Asked<'_>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Option<Listed<Page>>, MirrorError> {
        match self.0.address_of(asked.repo)? {
            Some(address) => {
                let found = self.0.tags_elsewhere(&address, last, limit).await?;
                Ok(found.map(|page| Listed { page, age: None }))
            }
            None => self.0.listed_tags(asked, last, limit).await,
        }
    }

    /// The repositories behind `last`, at most `limit`.
    pub async fn catalog(&self, last: Option<&str>, limit: usize) -> Result<Page, MirrorError> {
        self.0.catalog(last, limit).await
    }

    /// The manifests whose subject is `subject`, sorted by digest: those behind `last`, at most `limit`, of one type of
    /// artifact if that is given. A subject that nobody knows has none.
    pub async fn referrers(
        &self,
        asked: &Asked<'_>,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Listed<Referrers>, MirrorError> {
        match self.0.address_of(asked.repo)? {
            Some(address) => {
                let page = self.0.referrers_elsewhere(&address, subject, artifact_type, last, limit).await?;
                Ok(Listed { page, age: None })
            }
            None => self.0.listed_referrers(asked, subject, artifact_type, last, limit).await,
        }
    }

    /// Deletes a tag, or a manifest and every tag that points to it, from the own tree. `false`: nobody has it. What a
    /// readonly root has is [`MirrorError::NotOurs`].
    pub async fn delete_manifest(&self, repo: &RepoName, reference: &Reference) -> Result<bool, MirrorError> {
        self.0.refuse_elsewhere(repo)?;
        self.0.delete_manifest(repo, reference).await
    }

    /// Takes a blob from a repository of the own tree, as [`Mirror::delete_manifest`] does with manifests.
    pub async fn delete_blob(&self, repo: &RepoName, digest: &Digest) -> Result<bool, MirrorError> {
        self.0.refuse_elsewhere(repo)?;
        self.0.delete_blob(repo, digest).await
    }

    /// Opens an upload that will be closed with a digest of `algorithm`; the id is a UUID.
    pub async fn start_upload(&self, repo: &RepoName, algorithm: Algorithm) -> Result<String, MirrorError> {
        self.0.refuse_elsewhere(repo)?;
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
        self.0.refuse_elsewhere(repo)?;
        self.0.mount(repo, from, digest).await
    }

    /// Stores a manifest under its digest and its tags, in one commit.
    pub async fn put_manifest(&self, repo: &RepoName, put: PutManifest<'_>) -> Result<Stored, MirrorError> {
        self.0.refuse_elsewhere(repo)?;
        self.0.put_manifest(repo, put).await
    }

    /// Publishes the own root at once, unless another writer with the same key is in the way, which the status says.
    pub async fn publish_now(&self) -> Result<OwnStatus, MirrorError> {
        self.0.publisher()?.publish_now().await
    }

    /// Publishes the own root at once, also over what another writer has published with the same key: nobody sees that any
    /// more.
    pub async fn overwrite(&self) -> Result<OwnStatus, MirrorError> {
        self.0.publisher()?.overwrite().await
    }

    /// Merges what another writer has published with the same key into the own tree, and publishes that. What nobody
    /// delivers within its time is left out of what is fetched, not of the tree. Dropped midway, nothing is merged, or all is
    /// and waits to be published: then it is to be done again.
    pub async fn adopt(&self) -> Result<Adopted, MirrorError> {
        Box::pin(self.0.adopt()).await
    }

    /// Gives the own name up for that of `key`, under which the tree is published from now on; the old name leads there.
    pub async fn rotate(&self, key: Keypair) -> Result<OwnStatus, MirrorError> {
        self.0.publisher()?.rotate(key).await
    }

    /// Frees what nothing needs. Goes on if the future is dropped. The error is a chain of causes.
    pub async fn collect_garbage(&self) -> Result<Collected, String> {
        self.0.collector.collect().await
    }

    pub fn status(&self) -> MirrorStatus {
        MirrorStatus {
            own: self.0.own.as_ref().and_then(|own| own.publisher.as_ref()).map(Publisher::status),
            readonly: self.0.follows.iter().map(Follow::status).collect(),
            uploads: self.0.uploads.len(),
            downloads: self.0.downloads.load(Ordering::Relaxed),
            pull_through: self.0.pull_through.as_ref().map(PullThrough::status),
        }
    }
}

impl Inner {
    /// What publishes the own tree.
    fn publisher(&self) -> Result<&Publisher, MirrorError> {
        self.own.as_ref().and_then(|own| own.publisher.as_ref()).ok_or(MirrorError::ReadOnly)
    }

    /// The own tree, once it may be written to.
    async fn own(&self) -> Result<&Own, MirrorError> {
        let own = self.own.as_ref().ok_or(MirrorError::ReadOnly)?;
        if let Some(publisher) = &own.publisher {
            publisher.asked().await;
        }
        Ok(own)
    }

    /// Like [`Inner::read`]; the blob stays for as long as it is read.
    fn read_held(
        &self,
        blob: &StoredBlob,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        let keep = self.tree.blocks().keep();
        keep.add(blob.entry.cid);
        self.read(blob, range)
            .inspect(move |_| {
                let _ = &keep;
            })
            .boxed()
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
