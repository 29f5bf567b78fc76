//! The order of sources: the own root, then each readonly root as configured. The first that has it wins; "not there"
//! is said only when every source said so.

use std::ops::Range;

use bytes::Bytes;
use cid::Cid;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::roots::Follow;
use super::{Inner, Manifest, MirrorError, Origin, StoredBlob, layout, verify};
use crate::dag::file::Expected;
use crate::dag::{Entry, file};
use crate::ipld::block::RAW;
use crate::oci::manifest::{MANIFEST_BYTES_MAX, ParsedManifest};
use crate::oci::{Digest, Reference, RepoName, Tag};
use crate::store::IndexEntry;

/// A place to look.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Own(Cid),
    Readonly(&'a Follow),
}

impl Source<'_> {
    fn origin(&self) -> Origin {
        match self {
            Self::Own(_) => Origin::Own,
            Self::Readonly(follow) => Origin::Readonly(follow.name.clone()),
        }
    }

    /// The roots to look under, best first.
    pub(super) async fn roots(&self) -> Result<Vec<Cid>, MirrorError> {
        match self {
            Self::Own(root) => Ok(vec![*root]),
            Self::Readonly(follow) => follow.roots().await,
        }
    }
}

impl Inner {
    pub(super) fn sources(&self) -> impl Iterator<Item = Source<'_>> {
        let own = self.own.as_ref().map(|own| Source::Own(own.commits.root()));
        own.into_iter().chain(self.follows.iter().map(Source::Readonly))
    }

    /// Asks the sources in order. What a newer root of a source cannot deliver, the one before it may.
    async fn first<T, F>(&self, ask: impl Fn(Cid) -> F) -> Result<Option<(T, Origin)>, MirrorError>
    where
        F: Future<Output = Result<Option<T>, MirrorError>>,
    {
        let mut failure = None;
        for source in self.sources() {
            let roots = match source.roots().await {
                Ok(roots) => roots,
                Err(error) => {
                    failure = Some(error);
                    continue;
                }
            };
            for root in roots {
                match ask(root).await {
                    Ok(Some(found)) => return Ok(Some((found, source.origin()))),
                    Ok(None) => break,
                    Err(error) => failure = Some(error),
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }

    pub(super) async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<(Manifest, Origin)>, MirrorError> {
        self.first(|root| async move {
            match self.manifest_link(&root, repo, reference).await? {
                Some(digest) => self.manifest_at(&root, &digest).await.map(Some),
                None => Ok(None),
            }
        })
        .await
    }

    /// The digest of a manifest that a repository has under one root.
    pub(super) async fn manifest_link(
        &self,
        root: &Cid,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<Digest>, MirrorError> {
        match reference {
            Reference::Digest(digest) => {
                let link = self.tree.lookup(root, &layout::revision_link(repo, digest)).await?;
                Ok(link.map(|_| *digest))
            }
            Reference::Tag(tag) => self.tag(root, repo, tag).await,
        }
    }

    /// What a tag points to under one root.
    pub(super) async fn tag(
        &self,
        root: &Cid,
        repo: &RepoName,
        tag: &Tag,
    ) -> Result<Option<Digest>, MirrorError> {
        let path = layout::tag_link(repo, tag);
        let Some(link) = self.tree.lookup(root, &path).await? else { return Ok(None) };
        if let Some(digest) = self.links.get(&link.cid) {
            return Ok(Some(digest));
        }
        let content = self.small_file(&link.cid, root, layout::LINK_BYTES_MAX).await?;
        let digest = layout::parse_link(&content)
            .ok_or(MirrorError::Tree { path, what: "is not a link to a digest" })?;
        self.links.insert(link.cid, digest);
        Ok(Some(digest))
    }

    /// A manifest that a link says is there.
    pub(super) async fn manifest_at(&self, root: &Cid, digest: &Digest) -> Result<Manifest, MirrorError> {
        if let Some(manifest) = self.manifests.get(digest) {
            return Ok(manifest);
        }
        let path = layout::blob_data(digest);
        let Some(data) = self.tree.lookup(root, &path).await? else {
            return Err(MirrorError::Tree { path, what: "is missing though a link names it" });
        };
        self.read_manifest(root, &data.cid, digest).await
    }

    /// The manifest in a file, which must have the digest.
    pub(super) async fn read_manifest(
        &self,
        root: &Cid,
        cid: &Cid,
        digest: &Digest,
    ) -> Result<Manifest, MirrorError> {
        let bytes = self.small_file(cid, root, MANIFEST_BYTES_MAX as u64).await?;
        let actual = Digest::of(digest.algorithm(), &bytes);
        if actual != *digest {
            return Err(MirrorError::Forged { expected: *digest, actual });
        }
        let parsed = ParsedManifest::parse(None, &bytes)
            .map_err(|source| MirrorError::NoManifest { digest: *digest, source })?;
        let manifest = Manifest { digest: *digest, media_type: parsed.media_type, bytes };
        self.manifests.insert(*digest, manifest.clone());
        Ok(manifest)
    }

    /// The whole of a file that must not be larger than `bytes_max`.
    pub(super) async fn small_file(
        &self,
        cid: &Cid,
        root: &Cid,
        bytes_max: u64,
    ) -> Result<Bytes, MirrorError> {
        let blocks = self.tree.blocks();
        let size = file::file_size(blocks, cid, root).await?;
        if size > bytes_max {
            return Err(MirrorError::Tree {
                path: cid.to_string(),
                what: "is larger than what it stands for may be",
            });
        }
        let parts: Vec<Bytes> =
            file::read(blocks, *cid, *root, 0..size, Expected::Network).try_collect().await?;
        Ok(if parts.len() == 1 { parts[0].clone() } else { parts.concat().into() })
    }

    pub(super) async fn blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Option<(StoredBlob, Origin)>, MirrorError> {
        self.first(|root| async move {
            if !self.has_blob(&root, repo, digest).await? {
                return Ok(None);
            }
            let path = layout::blob_data(digest);
            let Some(data) = self.tree.lookup(&root, &path).await? else {
                return Err(MirrorError::Tree { path, what: "is missing though a link names it" });
            };
            self.blob_at(*digest, data, root).await.map(Some)
        })
        .await
    }

    /// A blob of any repository: by its data, which a repository shares with all others of its root.
    pub(super) async fn blob_anywhere(
        &self,
        digest: &Digest,
    ) -> Result<Option<(StoredBlob, Origin)>, MirrorError> {
        self.first(|root| async move {
            match self.tree.lookup(&root, &layout::blob_data(digest)).await? {
                Some(data) => self.blob_at(*digest, data, root).await.map(Some),
                None => Ok(None),
            }
        })
        .await
    }

    pub(super) async fn blob_at(
        &self,
        digest: Digest,
        data: Entry,
        root: Cid,
    ) -> Result<StoredBlob, MirrorError> {
        let is_named = is_named_by_its_digest(&digest, &data.cid);
        let known = match is_named {
            true => self.proven.at_hand(&digest),
            false => self.proven.get(&digest).await?,
        };
        let known = known.filter(|known| known.cid == data.cid);
        let size_bytes = match known {
            Some(known) => known.size_bytes,
            None => file::file_size(self.tree.blocks(), &data.cid, &root).await?,
        };
        let entry = IndexEntry { cid: data.cid, size_bytes, tsize: data.tsize };
        if is_named && known.is_none() {
            self.proven.note(digest, entry);
        }
        let proven = known.is_some() || is_named;
        Ok(StoredBlob { digest, size_bytes, entry, proven, session_root: None })
    }

    /// Whether a repository has a blob, or a manifest asked for as one, under one root.
    pub(super) async fn has_blob(
        &self,
        root: &Cid,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<bool, MirrorError> {
        if self.tree.lookup(root, &layout::layer_link(repo, digest)).await?.is_some() {
            return Ok(true);
        }
        Ok(self.tree.lookup(root, &layout::revision_link(repo, digest)).await?.is_some())
    }

    /// Streams a blob. A whole one whose bytes are not proven yet is hashed on its way, and its last chunk leaves only
    /// when the digest matched.
    pub(super) fn read(
        &self,
        blob: &StoredBlob,
        range: Range<u64>,
    ) -> BoxStream<'static, Result<Bytes, MirrorError>> {
        let (digest, entry) = (blob.digest, blob.entry);
        let whole = range == (0..blob.size_bytes);
        let expected = if blob.proven { Expected::Local } else { Expected::Network };
        let session_root = blob.session_root.as_deref().copied().unwrap_or(entry.cid);
        let bytes = file::read(self.tree.blocks(), entry.cid, session_root, range, expected)
            .map_err(move |source| MirrorError::Fetch { what: format!("blob {digest}"), source })
            .boxed();
        if blob.proven || !whole {
            return bytes;
        }
        let proven = self.proven.clone();
        verify::held_to_digest(bytes, digest, async move { proven.put(digest, entry).await })
    }
}

/// A blob in one leaf needs no proof: the multihash of its CID is its digest.
fn is_named_by_its_digest(digest: &Digest, cid: &Cid) -> bool {
    cid.codec() == RAW && *cid.hash() == digest.multihash()
}
