//! What another writer with our key has published, taken into the own tree: nothing of either is dropped. Where a tag points
//! elsewhere in both, ours stays, and theirs is listed; its manifest is there by digest.

use std::time::Duration;

use cid::Cid;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::timeout;

use super::commit::Changes;
use super::{Inner, MirrorError, OwnStatus, chain, layout};
use crate::dag::file::{self, Expected};
use crate::dag::{Additions, DagError, Edit};
use crate::ipld::path::join;
use crate::oci::{Digest, RepoName, Tag};

/// Nodes of directories that the other tree may have beyond those of ours.
const NODES_MAX: usize = 500_000;
/// Files that are brought of it, and at once.
const FILES_MAX: usize = 1_000_000;
const FILES_AT_ONCE: usize = 16;
/// Names read at a time.
const PAGE: usize = 10_000;
/// How long the directories may take to come.
const DIRECTORIES_TIMEOUT: Duration = Duration::from_secs(600);
/// Files that nobody delivers before the rest is left to be fetched when it is asked for.
const FAILURES_MAX: usize = 8;
/// Conflicts that are told of one by one.
const CONFLICTS_LISTED_MAX: usize = 10_000;

/// A tag that another writer has pointed elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagConflict {
    pub repo: RepoName,
    pub tag: Tag,
    /// What it points to from now on.
    pub ours: Digest,
    /// What it pointed to there.
    pub theirs: Digest,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Adopted {
    pub status: OwnStatus,
    /// The first 10,000.
    pub conflicts: Vec<TagConflict>,
    /// Files of the other tree that nobody delivered: they are in the own tree, and fetched when they are asked for.
    pub missing_files: usize,
}

impl Inner {
    /// See [`super::Mirror::adopt`].
    pub(super) async fn adopt(&self) -> Result<Adopted, MirrorError> {
        let (own, publisher) = (self.own.as_ref().ok_or(MirrorError::ReadOnly)?, self.publisher()?);
        let rival = publisher.status().rival.ok_or(MirrorError::NoOtherWriter)?;
        let no_tree = || MirrorError::NotAdoptable { value: rival.value().to_owned() };
        let theirs = rival.root().ok_or_else(no_tree)?;
        let keep = self.tree.blocks().keep();
        keep.add(theirs);
        self.fetch_directories_of(theirs, own.commits.root()).await?;
        let additions = self.tree.additions(&own.commits.root(), &theirs).await?;
        let conflicts = self.conflicts(&own.commits.root(), &theirs, &additions.clashes).await?;
        let (missing_files, contents) = self.bring(&theirs, &additions).await?;
        self.tree.blocks().flush().await?;
        own.commits.merge(theirs).await?;
        let mut changes = Changes::default();
        contents.into_iter().for_each(|cid| changes.announce(cid));
        own.commits.apply(changes).await?;
        let status = publisher.adopted(rival).await?;
        tracing::info!(root = %status.root, adopted = %theirs, conflicts = conflicts.len(), missing_files, "the tree of another writer is merged into ours");
        Ok(Adopted { status, conflicts, missing_files })
    }

    async fn fetch_directories_of(&self, theirs: Cid, ours: Cid) -> Result<(), MirrorError> {
        let fetched = self.tree.fetch_directories(Some(&ours), &theirs, NODES_MAX);
        let what = || format!("the tree /ipfs/{theirs} of another writer");
        let failed = |source| MirrorError::Fetch { what: what(), source };
        match timeout(DIRECTORIES_TIMEOUT, fetched).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(MirrorError::Tree {
                path: format!("/ipfs/{theirs}"),
                what: "has more directories than are merged",
            }),
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(failed(DagError::Cancelled("its directories took too long to come"))),
        }
    }

    /// Fetches the files that are to be added; returns how many nobody delivered, and the blobs and manifests among them all.
    async fn bring(&self, theirs: &Cid, additions: &Additions) -> Result<(usize, Vec<Cid>), MirrorError> {
        let (mut files, mut contents) = (Vec::new(), Vec::new());
        let added = additions.edits.iter().filter_map(|Edit { path, to }| Some((path.clone(), (*to)?.cid)));
        let mut waiting: Vec<(String, Cid)> = added.collect();
        while let Some((path, cid)) = waiting.pop() {
            let Some(names) = self.names_in(theirs, &path).await? else {
                if path.rsplit('/').next().is_some_and(layout::is_content) {
                    contents.push(cid);
                }
                files.push(cid);
                continue;
            };
            if waiting.len() + files.len() + names.len() > FILES_MAX {
                let what = "has more files than are merged";
                return Err(MirrorError::Tree { path: format!("/ipfs/{theirs}"), what });
            }
            for name in names {
                let path = join(&path, &name);
                if let Some(entry) = self.tree.lookup(theirs, &path).await? {
                    waiting.push((path, entry.cid));
                }
            }
        }
        let all = files.len();
        let mut reading = stream::iter(files)
            .map(|cid| async move { self.read_through(theirs, cid).await })
            .buffer_unordered(FILES_AT_ONCE);
        let (mut came, mut failures) = (0, 0);
        while let Some(outcome) = reading.next().await {
            match outcome {
                Ok(()) => came += 1,
                Err(error) if error.is_fetch() && failures < FAILURES_MAX => {
                    tracing::warn!(error = %chain(&error), "a file of another writer's tree did not come");
                    failures += 1;
                }
                Err(error) if error.is_fetch() => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok((all - came, contents))
    }

    /// All names in the directory at `path`; `None`: it is a file.
    async fn names_in(&self, root: &Cid, path: &str) -> Result<Option<Vec<String>>, DagError> {
        let (mut all, mut after) = (Vec::new(), None::<String>);
        loop {
            let Some(page) = self.tree.list(root, path, after.as_deref(), PAGE).await? else {
                return Ok(None);
            };
            after = page.names.last().cloned();
            all.extend(page.names);
            if !page.more || all.len() > FILES_MAX {
                return Ok(Some(all));
            }
        }
    }

    async fn read_through(&self, root: &Cid, cid: Cid) -> Result<(), DagError> {
        let blocks = self.tree.blocks();
        let size = file::file_size(blocks, &cid, root).await?;
        file::read(blocks, cid, *root, 0..size, Expected::Network).try_for_each(|_| async { Ok(()) }).await
    }

    /// The tags among the paths that both trees have.
    async fn conflicts(
        &self,
        ours: &Cid,
        theirs: &Cid,
        clashes: &[String],
    ) -> Result<Vec<TagConflict>, MirrorError> {
        let mut conflicts = Vec::new();
        for (repo, tag) in clashes.iter().filter_map(|path| layout::parse_tag_link(path)) {
            if conflicts.len() >= CONFLICTS_LISTED_MAX {
                break;
            }
            let both = (self.tag(ours, &repo, &tag).await?, self.tag(theirs, &repo, &tag).await?);
            if let (Some(ours), Some(theirs)) = both
                && ours != theirs
            {
                conflicts.push(TagConflict { repo, tag, ours, theirs });
            }
        }
        Ok(conflicts)
    }
}
