//! What a push changes in the own tree: a blob, a mount, a manifest, each one commit.

use std::collections::BTreeSet;
use std::time::Instant;

use bytes::Bytes;
use cid::Cid;
use futures::TryStreamExt;

use super::commit::Changes;
use super::verify::StreamHasher;
use super::writing::Received;
use super::{Inner, MirrorError, Origin, Own, StoredBlob, layout};
use crate::dag::file::Expected;
use crate::dag::file::FileRoot;
use crate::dag::{Entry, file};
use crate::oci::manifest::{MANIFEST_BYTES_MAX, ParsedManifest};
use crate::oci::{Algorithm, Digest, RepoName, Tag};
use crate::store::IndexEntry;

/// A manifest to be stored.
pub struct PutManifest<'a> {
    pub tags: &'a [Tag],
    /// What the client says that its digest is; without it sha256 is taken.
    pub expected: Option<Digest>,
    /// As the client sent it.
    pub content_type: Option<&'a str>,
    pub bytes: Bytes,
}

/// A manifest that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    /// What it refers to.
    pub subject: Option<Digest>,
}

impl Inner {
    pub(super) async fn finish(&self, repo: &RepoName, id: &str, digest: &Digest) -> Result<(), MirrorError> {
        let own = self.own().await?;
        let received = self.uploads.finish(repo, id).await?;
        let committed = self.commit_upload(own, repo, digest, received).await;
        if let Ok(id) = id.parse() {
            self.uploads.forget_journal(id).await?;
        }
        committed
    }

    pub(super) async fn commit_upload(
        &self,
        own: &Own,
        repo: &RepoName,
        digest: &Digest,
        received: Received,
    ) -> Result<(), MirrorError> {
        let FileRoot { cid, size_bytes, tsize } = received.file;
        let entry = IndexEntry { cid, size_bytes, tsize };
        let actual = if received.digest.algorithm() == digest.algorithm() {
            received.digest
        } else {
            self.digest_of(&entry, digest.algorithm()).await?
        };
        if actual != *digest {
            return Err(MirrorError::DigestMismatch { expected: *digest, actual });
        }
        self.leases.touch(digest, Instant::now());
        let mut changes = Changes::default();
        changes.hold(received.keep);
        self.add_blob(&mut changes, repo, digest, &entry);
        // Before the commit, whose flush makes it durable too.
        self.proven.put(*digest, entry).await?;
        own.commits.apply(changes).await.map(drop)
    }

    /// The digest under an algorithm that was not known while the bytes came: reads them back.
    async fn digest_of(&self, entry: &IndexEntry, algorithm: Algorithm) -> Result<Digest, MirrorError> {
        let mut hasher = StreamHasher::new(algorithm);
        let mut bytes =
            file::read(self.tree.blocks(), entry.cid, entry.cid, 0..entry.size_bytes, Expected::Local);
        while let Some(chunk) = bytes.try_next().await? {
            hasher.feed(chunk);
            hasher.settle().await?;
        }
        hasher.finish().await
    }

    fn add_blob(&self, changes: &mut Changes, repo: &RepoName, digest: &Digest, entry: &IndexEntry) {
        changes.set(layout::blob_data(digest), Entry { cid: entry.cid, tsize: entry.tsize });
        changes.write(layout::layer_link(repo, digest), layout::link_content(digest));
        changes.announce_blob(digest, entry.cid);
    }

    pub(super) async fn mount(
        &self,
        repo: &RepoName,
        from: Option<&RepoName>,
        digest: &Digest,
    ) -> Result<bool, MirrorError> {
        let own = self.own().await?;
        self.leases.touch(digest, Instant::now());
        let mut changes = Changes::default();
        let found = match from {
            Some(from) => self.blob(from, digest).await?,
            None => self.blob_anywhere(digest).await?,
        };
        let Some((blob, origin)) = found else { return Ok(false) };
        let entry = self.keep(&mut changes, &blob, origin).await?;
        self.add_blob(&mut changes, repo, digest, &entry);
        own.commits.apply(changes).await?;
        Ok(true)
    }

    /// Sees to it that the whole of a blob is here, has its digest, and stays until `changes` are made: what is
    /// acknowledged must not depend on others. What the own root has is so already.
    async fn keep(
        &self,
        changes: &mut Changes,
        blob: &StoredBlob,
        origin: Origin,
    ) -> Result<IndexEntry, MirrorError> {
        let keep = self.tree.blocks().keep();
        keep.add(blob.entry.cid);
        changes.hold(keep);
        if origin != Origin::Own {
            let mut bytes = self.read(blob, 0..blob.size_bytes);
            while bytes.try_next().await?.is_some() {}
        }
        Ok(blob.entry)
    }

    pub(super) async fn put_manifest(
        &self,
        repo: &RepoName,
        put: PutManifest<'_>,
    ) -> Result<Stored, MirrorError> {
        let own = self.own().await?;
        let PutManifest { tags, expected, content_type, bytes } = put;
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(MirrorError::ManifestTooLarge(MANIFEST_BYTES_MAX));
        }
        let algorithm = expected.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let digest = Digest::of(algorithm, &bytes);
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(MirrorError::DigestMismatch { expected, actual: digest });
        }
        let parsed = ParsedManifest::parse(content_type, &bytes)
            .map_err(|error| MirrorError::ManifestInvalid(error.to_string()))?;

        let mut changes = Changes::default();
        let named: Vec<Digest> =
            parsed.blobs.iter().chain(&parsed.manifests).map(|named| named.digest).chain([digest]).collect();
        named.iter().for_each(|digest| self.leases.touch(digest, Instant::now()));
        self.require_content(&mut changes, &own.commits.root(), repo, &parsed).await?;
        let entry = self.write_file(&mut changes, layout::blob_data(&digest), bytes).await?;
        changes.announce_blob(&digest, entry.cid);
        let link = layout::link_content(&digest);
        changes.write(layout::revision_link(repo, &digest), link.clone());
        for tag in tags {
            changes.write(layout::tag_index_link(repo, tag, &digest), link.clone());
            changes.write(layout::tag_link(repo, tag), link.clone());
        }
        if let Some(subject) = &parsed.subject {
            changes.write(layout::referrer_link(repo, subject, &digest), link);
        }
        own.commits.apply(changes).await?;
        named.iter().for_each(|digest| self.leases.name(digest, Instant::now()));
        Ok(Stored { digest, subject: parsed.subject })
    }

    /// A manifest may exceed one block.
    async fn write_file(
        &self,
        changes: &mut Changes,
        path: String,
        bytes: Bytes,
    ) -> Result<Entry, MirrorError> {
        let mut writer = file::FileWriter::new(self.tree.blocks());
        changes.hold(writer.keep().clone());
        writer.write(bytes).await?;
        let root = writer.finish().await?;
        let entry = Entry { cid: root.cid, tsize: root.tsize };
        changes.set(path, entry);
        Ok(entry)
    }

    /// What a manifest names must be there. What is so only by a readonly root becomes part of the own tree, so that
    /// the own tree is whole by itself.
    async fn require_content(
        &self,
        changes: &mut Changes,
        root: &Cid,
        repo: &RepoName,
        manifest: &ParsedManifest,
    ) -> Result<(), MirrorError> {
        let mut missing = Vec::new();
        let blobs =
            manifest.blobs.iter().filter(|blob| !blob.non_distributable && self.validation.image_blobs);
        let blobs = blobs.map(|blob| (blob.digest, false));
        let manifests = manifest.manifests.iter().filter(|_| self.validation.index_manifests);
        let manifests = manifests.map(|manifest| (manifest.digest, true));
        let distinct: BTreeSet<(Digest, bool)> = blobs.chain(manifests).collect();
        for (digest, is_manifest) in distinct {
            if self.has_blob(root, repo, &digest).await? {
                continue;
            }
            match self.blob(repo, &digest).await? {
                Some((blob, origin)) => {
                    let entry = self.keep(changes, &blob, origin).await?;
                    self.add_blob(changes, repo, &digest, &entry);
                    if is_manifest {
                        changes.write(layout::revision_link(repo, &digest), layout::link_content(&digest));
                    }
                }
                None => missing.push(digest),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(MirrorError::Missing { repo: repo.clone(), digests: missing })
    }
}
