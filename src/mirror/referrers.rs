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

impl Referrers {
    /// The part of a list, sorted by digest, that lies behind `last`, of one type of artifact if that is given.
    pub(super) fn of(
        all: Vec<Referrer>,
        artifact_type: Option<&str>,
        last: Option<&str>,
        limit: usize,
    ) -> Self {
        let mut page = Filling::new(artifact_type, limit);
        let behind =
            |referrer: &Referrer| last.is_none_or(|last| referrer.digest.to_string().as_str() > last);
        for referrer in all.into_iter().filter(behind) {
            if !page.takes(referrer) {
                break;
            }
        }
        page.finish(false)
    }

    /// The union of two parts that begin behind the same digest, cut to `limit`.
    pub(super) fn merge(self, other: Self, limit: usize) -> Self {
        // Behind the last of a part that goes on nothing is known of its list.
        let end = |part: &Self| part.referrers.last().filter(|_| part.more).map(|last| last.digest);
        let end = [end(&self), end(&other)].into_iter().flatten().min();
        let more = self.more || other.more;
        let both = self.referrers.into_iter().chain(other.referrers);
        let union: BTreeMap<Digest, Referrer> = both.map(|referrer| (referrer.digest, referrer)).collect();
        let known = union.into_values().filter(|referrer| end.is_none_or(|end| referrer.digest <= end));
        let union = Self::of(known.collect(), None, None, limit);
        Self { more: union.more || more, ..union }
    }
}

/// A page that is being filled, in order.
struct Filling<'a> {
    artifact_type: Option<&'a str>,
    limit: usize,
    page: Referrers,
    page_bytes: usize,
}

impl<'a> Filling<'a> {
    fn new(artifact_type: Option<&'a str>, limit: usize) -> Self {
        Self { artifact_type, limit, page: Referrers::default(), page_bytes: 0 }
    }

    /// Takes one in, or leaves it out if it is of another type. `false`: the page is full.
    fn takes(&mut self, referrer: Referrer) -> bool {
        if self.artifact_type.is_some_and(|wanted| referrer.artifact_type.as_deref() != Some(wanted)) {
            return true;
        }
        if self.page.referrers.len() >= self.limit || self.page_bytes > PAGE_BYTES_MAX {
            self.page.more = true;
            return false;
        }
        self.page_bytes +=
            referrer.annotations.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        self.page.referrers.push(referrer);
        true
    }

    /// `more`: behind what was offered.
    fn finish(self, more: bool) -> Referrers {
        Referrers { more: self.page.more || more, ..self.page }
    }
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
        let mut page = Filling::new(artifact_type, limit);
        for (digest, noted) in noted {
            let Some(referrer) = self.describe(repo, digest, noted).await? else { continue };
            if !page.takes(referrer) {
                break;
            }
        }
        Ok(page.finish(more))
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
        let Some(tag) = Tag::of_referrers(subject) else { return Ok(Vec::new()) };
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
