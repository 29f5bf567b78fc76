//! Deletes: of a tag, of a manifest with the tags that point to it, of a repository's blob. Each is a commit that takes
//! links away; the bytes go when nothing needs them any more.

use cid::Cid;
use futures::future::try_join_all;

use super::commit::Changes;
use super::{Inner, MirrorError, Own, layout};
use crate::oci::manifest::ParsedManifest;
use crate::oci::{Digest, Reference, RepoName, Tag};

/// Tags read at a time to find those that point to a manifest.
const TAGS_PAGE: usize = 10_000;
/// Tags looked up at once.
const TAGS_AT_ONCE: usize = 16;

impl Inner {
    /// See [`super::Mirror::delete_manifest`].
    pub(super) async fn delete_manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<bool, MirrorError> {
        let own = self.deletable().await?;
        let link = match reference {
            Reference::Tag(tag) => layout::tag_link(repo, tag),
            Reference::Digest(digest) => layout::revision_link(repo, digest),
        };
        if self.tree.lookup(&own.commits.root(), &link).await?.is_none() {
            return match self.manifest(repo, reference).await? {
                Some((_, origin)) => {
                    Err(MirrorError::NotOurs { what: format!("{repo}:{reference}"), origin })
                }
                None => Ok(false),
            };
        }
        match reference {
            Reference::Tag(tag) => {
                let mut changes = Changes::default();
                changes.remove(layout::tag(repo, tag));
                own.commits.apply(changes).await?;
            }
            Reference::Digest(digest) => self.delete_revision(own, repo, digest).await?,
        }
        Ok(true)
    }

    /// Takes a manifest away, and what points to it. A tag that was pushed while the others were looked for goes too,
    /// unless the manifest came back with it.
    async fn delete_revision(&self, own: &Own, repo: &RepoName, digest: &Digest) -> Result<(), MirrorError> {
        let revision = layout::revision_link(repo, digest);
        let parsed = self.parsed(&own.commits.root(), digest).await;
        loop {
            let root = own.commits.root();
            let mut changes = Changes::default();
            changes.remove(layout::directory_of(&revision));
            if let Some(subject) = parsed.as_ref().and_then(|parsed| parsed.subject) {
                changes.remove(layout::directory_of(&layout::referrer_link(repo, &subject, digest)));
            }
            for tag in self.tags_that_point_to(&root, repo, digest).await? {
                changes.remove(layout::tag(repo, &tag));
            }
            let upon = own.commits.apply(changes).await?;
            let is_back = self.tree.lookup(&own.commits.root(), &revision).await?.is_some();
            if upon == Some(root) || is_back {
                break;
            }
        }
        let named = parsed.iter().flat_map(|parsed| parsed.blobs.iter().chain(&parsed.manifests));
        named.map(|named| named.digest).chain([*digest]).for_each(|digest| self.leases.release(&digest));
        self.collector.note_deletion();
        Ok(())
    }

    /// What a manifest says. One that cannot be read any more must still be deletable.
    async fn parsed(&self, root: &Cid, digest: &Digest) -> Option<ParsedManifest> {
        let manifest = self.manifest_at(root, digest).await.ok()?;
        ParsedManifest::parse(None, &manifest.bytes).ok()
    }

    /// The tags of a repository of the own tree that point to a manifest.
    pub(super) async fn tags_pointing_to(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Vec<Tag>, MirrorError> {
        let root = self.own().await?.commits.root();
        self.tags_that_point_to(&root, repo, digest).await
    }

    async fn tags_that_point_to(
        &self,
        root: &Cid,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Vec<Tag>, MirrorError> {
        let (mut found, mut last) = (Vec::new(), None::<String>);
        loop {
            let page = self.tree.list(root, &layout::tags(repo), last.as_deref(), TAGS_PAGE).await?;
            let Some(page) = page else { return Ok(found) };
            last = page.names.last().cloned();
            let tags: Vec<Tag> = page.names.iter().filter_map(|name| name.parse().ok()).collect();
            for tags in tags.chunks(TAGS_AT_ONCE) {
                let pointed = try_join_all(tags.iter().map(|tag| self.tag(root, repo, tag))).await?;
                let points = tags.iter().zip(pointed).filter(|(_, to)| *to == Some(*digest));
                found.extend(points.map(|(tag, _)| tag.clone()));
            }
            if !page.more {
                return Ok(found);
            }
        }
    }

    /// See [`super::Mirror::delete_blob`].
    pub(super) async fn delete_blob(&self, repo: &RepoName, digest: &Digest) -> Result<bool, MirrorError> {
        let own = self.deletable().await?;
        let link = layout::layer_link(repo, digest);
        if self.tree.lookup(&own.commits.root(), &link).await?.is_none() {
            return match self.blob(repo, digest).await? {
                Some((_, origin)) => {
                    Err(MirrorError::NotOurs { what: format!("blob {digest} of {repo}"), origin })
                }
                None => Ok(false),
            };
        }
        let mut changes = Changes::default();
        changes.remove(layout::directory_of(&link));
        own.commits.apply(changes).await?;
        self.leases.release(digest);
        self.collector.note_deletion();
        Ok(true)
    }

    async fn deletable(&self) -> Result<&Own, MirrorError> {
        let own = self.own().await?;
        if self.delete_enabled { Ok(own) } else { Err(MirrorError::DeleteDisabled) }
    }
}
