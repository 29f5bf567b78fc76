//! What a push changes in the own tree: a blob, a mount, a manifest, each one commit.

use std::collections::BTreeSet;

use bytes::Bytes;
use cid::Cid;
use futures::TryStreamExt;

use super::commit::Changes;
use super::verify::StreamHasher;
use super::{Blob, Inner, MirrorError, layout};
use crate::dag::file::Expected;
use crate::dag::{Entry, file};
use crate::oci::manifest::{MANIFEST_BYTES_MAX, ParsedManifest};
use crate::oci::{Algorithm, Digest, RepoName, Tag};
use crate::store::IndexEntry;

impl Inner {
    pub(super) async fn finish(&self, repo: &RepoName, id: &str, digest: &Digest) -> Result<(), MirrorError> {
        let own = self.own().await?;
        let received = self.uploads.finish(repo, id).await?;
        let entry = IndexEntry {
            cid: received.file.cid,
            size_bytes: received.file.size_bytes,
            tsize: received.file.tsize,
        };
        let actual = match digest.algorithm() {
            Algorithm::Sha256 => received.sha256,
            algorithm => self.digest_of(&entry, algorithm).await?,
        };
        if actual != *digest {
            return Err(MirrorError::DigestMismatch { expected: *digest, actual });
        }
        let mut changes = Changes::default();
        self.add_blob(&mut changes, repo, digest, &entry);
        own.commits.apply(changes).await?;
        Ok(self.proven.put(*digest, entry).await?)
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
        changes.announce(entry.cid);
    }

    pub(super) async fn mount(
        &self,
        repo: &RepoName,
        from: Option<&RepoName>,
        digest: &Digest,
    ) -> Result<bool, MirrorError> {
        let own = self.own().await?;
        let entry = match from {
            Some(from) => match self.blob(from, digest).await? {
                Some(blob) => self.keep(&blob).await?,
                None => return Ok(false),
            },
            // Without a source only what this daemon itself was given is found: by the data, whoever's it is.
            None => match self.own_blob(&own.commits.root(), digest).await? {
                Some(entry) => entry,
                None => return Ok(false),
            },
        };
        let mut changes = Changes::default();
        self.add_blob(&mut changes, repo, digest, &entry);
        own.commits.apply(changes).await?;
        Ok(true)
    }

    /// Sees to it that the whole of a blob is here and has its digest: what is acknowledged must not depend on others.
    async fn keep(&self, blob: &Blob) -> Result<IndexEntry, MirrorError> {
        let mut bytes = self.read(blob, 0..blob.size_bytes);
        while bytes.try_next().await?.is_some() {}
        Ok(blob.entry)
    }

    async fn own_blob(&self, root: &Cid, digest: &Digest) -> Result<Option<IndexEntry>, MirrorError> {
        let Some(data) = self.tree.lookup(root, &layout::blob_data(digest)).await? else { return Ok(None) };
        let size_bytes = file::file_size(self.tree.blocks(), &data.cid, root).await?;
        Ok(Some(IndexEntry { cid: data.cid, size_bytes, tsize: data.tsize }))
    }

    pub(super) async fn put_manifest(
        &self,
        repo: &RepoName,
        expected: Option<&Digest>,
        tags: &[Tag],
        content_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<Digest, MirrorError> {
        let own = self.own().await?;
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(MirrorError::ManifestTooLarge(MANIFEST_BYTES_MAX));
        }
        let digest = Digest::of(expected.map_or(Algorithm::Sha256, Digest::algorithm), &bytes);
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(MirrorError::DigestMismatch { expected: *expected, actual: digest });
        }
        let parsed = ParsedManifest::parse(content_type, &bytes)
            .map_err(|error| MirrorError::ManifestInvalid(error.to_string()))?;

        let mut changes = Changes::default();
        self.require_content(&mut changes, &own.commits.root(), repo, &parsed).await?;
        let entry = self.write_file(&mut changes, layout::blob_data(&digest), bytes).await?;
        changes.announce(entry.cid);
        let link = layout::link_content(&digest);
        changes.write(layout::revision_link(repo, &digest), link.clone());
        for tag in tags {
            changes.write(layout::tag_index_link(repo, tag, &digest), link.clone());
            changes.write(layout::tag_link(repo, tag), link.clone());
        }
        own.commits.apply(changes).await?;
        Ok(digest)
    }

    /// A manifest may exceed one block.
    async fn write_file(
        &self,
        changes: &mut Changes,
        path: String,
        bytes: Bytes,
    ) -> Result<Entry, MirrorError> {
        let mut writer = file::FileWriter::new(self.tree.blocks());
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
            manifest.blobs.iter().filter(|blob| !blob.non_distributable).map(|blob| (blob.digest, false));
        let manifests = manifest.manifests.iter().map(|manifest| (manifest.digest, true));
        let distinct: BTreeSet<(Digest, bool)> = blobs.chain(manifests).collect();
        for (digest, is_manifest) in distinct {
            if self.has_blob(root, repo, &digest).await? {
                continue;
            }
            match self.blob(repo, &digest).await? {
                Some(blob) => {
                    let entry = self.keep(&blob).await?;
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
