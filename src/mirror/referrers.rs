//! Subjects and who refers to them (distribution specification, "Listing Referrers"). A manifest with a subject is noted
//! below it in the published tree, so that a reader of the tree answers too; what an old client wrote into the
//! fallback tag `sha256-<hex>` counts as well.

use std::collections::BTreeMap;

use cid::Cid;

use super::{Inner, MirrorError, layout};
use crate::oci::manifest::{ParsedManifest, Referrer, parse_referrers};
use crate::oci::{Algorithm, Digest, RepoName, Tag};

/// Referrers of one subject that are looked at for one page.
const LISTED_MAX: usize = 10_000;
/// What the descriptors of one page may take, in bytes; a page has one at least.
const PAGE_BYTES_MAX: usize = 2 << 20;

/// A part of the referrers of a subject, sorted by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Referrers {
    pub referrers: Vec<Referrer>,
    /// Whether more follow the last one.
    pub more: bool,
}

/// Where a referrer was found.
enum Noted {
    /// As a manifest under this root.
    Manifest(Cid),
    /// In an index under the fallback tag.
    Fallback(Referrer),
}

impl Inner {
    /// See [`super::Mirror::referrers`].
    pub(super) async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Referrers, MirrorError> {
        let mut noted = BTreeMap::new();
        let mut more = false;
        for source in self.sources() {
            let mut failure = None;
            for root in source.roots().await? {
                match self.noted_at(&root, repo, subject, last, &mut noted).await {
                    Ok(further) => {
                        more |= further;
                        failure = None;
                        break;
                    }
                    Err(error) => failure = Some(error),
                }
            }
            // Who verifies signatures must not take a part for the whole.
            failure.map_or(Ok(()), Err)?;
        }
        self.referrers_page(repo, noted, more, artifact_type, limit).await
    }

    /// The same under one root alone.
    pub(super) async fn referrers_at(
        &self,
        root: &Cid,
        repo: &RepoName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Referrers, MirrorError> {
        let mut noted = BTreeMap::new();
        let more = self.noted_at(root, repo, subject, last, &mut noted).await?;
        self.referrers_page(repo, noted, more, artifact_type, limit).await
    }

    async fn referrers_page(
        &self,
        repo: &RepoName,
        noted: BTreeMap<Digest, Noted>,
        more: bool,
        artifact_type: Option<&str>,
        limit: usize,
    ) -> Result<Referrers, MirrorError> {
        let mut page = Referrers { referrers: Vec::new(), more };
        let mut page_bytes = 0;
        for (digest, noted) in noted {
            let Some(referrer) = self.describe(repo, digest, noted).await? else { continue };
            if artifact_type.is_some_and(|wanted| referrer.artifact_type.as_deref() != Some(wanted)) {
                continue;
            }
            if page.referrers.len() >= limit || page_bytes > PAGE_BYTES_MAX {
                page.more = true;
                break;
            }
            page_bytes +=
                referrer.annotations.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
            page.referrers.push(referrer);
        }
        Ok(page)
    }

    /// Notes the referrers under one root that sort behind `last`; returns whether there are more.
    async fn noted_at(
        &self,
        root: &Cid,
        repo: &RepoName,
        subject: &Digest,
        last: Option<&str>,
        noted: &mut BTreeMap<Digest, Noted>,
    ) -> Result<bool, MirrorError> {
        let mut more = false;
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let prefix = format!("{}:", algorithm.as_str());
            let path = format!("{}/{}", layout::referrers(repo, subject), algorithm.as_str());
            let after = match last {
                Some(last) if last.starts_with(&prefix) => Some(&last[prefix.len()..]),
                Some(last) if last > prefix.as_str() => continue,
                _ => None,
            };
            let Some(listing) = self.tree.list(root, &path, after, LISTED_MAX).await? else { continue };
            more |= listing.more;
            for name in listing.names {
                if let Ok(digest) = format!("{prefix}{name}").parse() {
                    noted.entry(digest).or_insert(Noted::Manifest(*root));
                }
            }
        }
        for referrer in self.under_fallback_tag(root, repo, subject).await? {
            let is_behind = last.is_none_or(|last| referrer.digest.to_string().as_str() > last);
            if is_behind {
                noted.entry(referrer.digest).or_insert(Noted::Fallback(referrer));
            }
        }
        Ok(more)
    }

    async fn under_fallback_tag(
        &self,
        root: &Cid,
        repo: &RepoName,
        subject: &Digest,
    ) -> Result<Vec<Referrer>, MirrorError> {
        // A sha512 digest is cut to the length of a tag (specification, "Referrers Tag Schema").
        let tag: String =
            format!("{}-{}", subject.algorithm().as_str(), subject.hex()).chars().take(128).collect();
        let Ok(tag) = tag.parse::<Tag>() else { return Ok(Vec::new()) };
        let Some(digest) = self.tag(root, repo, &tag).await? else { return Ok(Vec::new()) };
        let manifest = self.manifest_at(root, &digest).await?;
        Ok(parse_referrers(&manifest.bytes).unwrap_or_default())
    }

    /// The descriptor of a referrer; `None`: the manifest was deleted.
    async fn describe(
        &self,
        repo: &RepoName,
        digest: Digest,
        noted: Noted,
    ) -> Result<Option<Referrer>, MirrorError> {
        let root = match noted {
            Noted::Fallback(referrer) => return Ok(Some(referrer)),
            Noted::Manifest(root) => root,
        };
        if self.tree.lookup(&root, &layout::revision_link(repo, &digest)).await?.is_none() {
            return Ok(None);
        }
        let manifest = self.manifest_at(&root, &digest).await?;
        let parsed = ParsedManifest::parse(Some(&manifest.media_type), &manifest.bytes)
            .map_err(|source| MirrorError::NoManifest { digest, source })?;
        Ok(Some(parsed.referrer(digest, manifest.bytes.len())))
    }
}
