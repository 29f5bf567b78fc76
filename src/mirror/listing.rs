//! Lists over all sources: the tags of a repository, and the repositories. Each is the sorted union, without doubles.

use std::collections::BinaryHeap;

use cid::Cid;

use super::lookup::Source;
use super::{Inner, MirrorError, Page, chain, layout};
use crate::dag::{DagError, Tree};
use crate::oci::RepoName;

/// Directories on the way to a repository: what a name of 255 bytes can have.
const DEPTH_MAX: usize = 128;
/// Directories below one directory that are looked into for repositories.
const CHILDREN_MAX: usize = 100_000;

impl Inner {
    /// A page of the union of the tags of all sources. A source that fails is left out if another one knows the
    /// repository.
    pub(super) async fn tags(
        &self,
        repo: &RepoName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Option<Page>, MirrorError> {
        let (mut union, mut failure) = (None::<Page>, None);
        for source in self.sources() {
            match self.tags_of(&source, repo, last, limit).await {
                Ok(Some(page)) => union = Some(union.map_or(page.clone(), |known| known.merge(page, limit))),
                Ok(None) => (),
                Err(error) => {
                    tracing::warn!(repo.name = %repo, error = %chain(&error), "tags of a source are missing");
                    failure = Some(error);
                }
            }
        }
        match (union, failure) {
            (None, Some(error)) => Err(error),
            (union, _) => Ok(union),
        }
    }

    async fn tags_of(
        &self,
        source: &Source<'_>,
        repo: &RepoName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Option<Page>, MirrorError> {
        let mut failure = None;
        for root in source.roots().await? {
            match self.tags_at(&root, repo, last, limit).await {
                Ok(page) => return Ok(page),
                Err(error) => failure = Some(error.into()),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    pub(super) async fn tags_at(
        &self,
        root: &Cid,
        repo: &RepoName,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Option<Page>, DagError> {
        if let Some(listing) = self.tree.list(root, &layout::tags(repo), last, limit).await? {
            return Ok(Some(Page { names: listing.names, more: listing.more }));
        }
        // A repository into which blobs were pushed and no tag yet has an empty list.
        let repository = self.tree.lookup(root, &layout::repository(repo)).await?;
        Ok(repository.map(|_| Page { names: Vec::new(), more: false }))
    }

    /// A page of the union of the repositories of all sources. A source that fails is left out if another one answers.
    pub(super) async fn catalog(&self, last: Option<&str>, limit: usize) -> Result<Page, MirrorError> {
        let (mut union, mut failure) = (None::<Page>, None);
        for source in self.sources() {
            match self.catalog_of(&source, last, limit).await {
                Ok(page) => union = Some(union.map_or(page.clone(), |known| known.merge(page, limit))),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "repositories of a source are missing");
                    failure = Some(error);
                }
            }
        }
        match (union, failure) {
            (None, Some(error)) => Err(error),
            (union, _) => Ok(union.unwrap_or_default()),
        }
    }

    async fn catalog_of(
        &self,
        source: &Source<'_>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Page, MirrorError> {
        let mut failure = None;
        for root in source.roots().await? {
            match repositories(&self.tree, &root, last, limit).await {
                Ok(page) => return Ok(page),
                Err(error) => failure = Some(error.into()),
            }
        }
        failure.map_or_else(|| Ok(Page::default()), Err)
    }
}

/// The repositories under one root behind `last`, at most `limit`. Takes memory for `limit` names and the directories on
/// the way to one; what cannot hold a name of the page is not looked into.
pub(super) async fn repositories(
    tree: &Tree,
    root: &Cid,
    last: Option<&str>,
    limit: usize,
) -> Result<Page, DagError> {
    let mut page = Smallest { names: BinaryHeap::new(), last, limit, more: false };
    let mut waiting = vec![(String::new(), 0)];
    while let Some((name, depth)) = waiting.pop() {
        if !page.may_hold_below(&name) {
            continue;
        }
        let slash = if name.is_empty() { "" } else { "/" };
        let path = format!("{}{slash}{name}", layout::REPOSITORIES);
        let Some(listing) = tree.list(root, &path, None, CHILDREN_MAX).await? else { continue };
        let is_repository =
            listing.names.iter().any(|child| [layout::LAYERS, layout::MANIFESTS].contains(&child.as_str()));
        if is_repository && name.parse::<RepoName>().is_ok() {
            page.offer(&name);
        }
        if depth < DEPTH_MAX {
            let children = listing.names.iter().filter(|child| !child.starts_with('_')).rev();
            waiting.extend(children.map(|child| (format!("{name}{slash}{child}"), depth + 1)));
        }
    }
    Ok(page.finish())
}

/// The smallest names behind a given one.
struct Smallest<'a> {
    /// The largest on top, at most `limit`.
    names: BinaryHeap<String>,
    last: Option<&'a str>,
    limit: usize,
    more: bool,
}

impl Smallest<'_> {
    fn offer(&mut self, name: &str) {
        if self.last.is_some_and(|last| name <= last) {
            return;
        }
        self.names.push(name.to_owned());
        if self.names.len() > self.limit {
            self.names.pop();
            self.more = true;
        }
    }

    /// Whether a name that is, or begins with, this one may belong to the page. All names below `a` lie between `a/`
    /// and `a0`, since `0` follows `/`.
    fn may_hold_below(&self, name: &str) -> bool {
        if name.is_empty() {
            return true;
        }
        let behind_last = self.last.is_none_or(|last| name > last || format!("{name}0").as_str() > last);
        let full = self.names.len() >= self.limit;
        let before_largest = self.names.peek().is_some_and(|largest| name < largest.as_str());
        // A full page need not know what else there is once it knows that there is more.
        behind_last && (!full || !self.more || before_largest)
    }

    fn finish(self) -> Page {
        Page { names: self.names.into_sorted_vec(), more: self.more }
    }
}
