//! What one tree has that another lacks, as edits: how two trees become one that drops nothing.

use cid::Cid;

use super::DagError;
use super::tree::{Edit, Tree, invalid};
use crate::ipld::path::join;

/// Entries that are compared to merge two trees: enough for some hundred thousand tags or blobs that differ.
const COMPARED_MAX: usize = 500_000;
/// Names read at a time.
const PAGE: usize = 10_000;

/// What has to be set in one tree so that it has all of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Additions {
    /// Directories whole where the tree has nothing in their place.
    pub edits: Vec<Edit>,
    /// Paths at which both have something, not the same, that are not directories both. The tree keeps its own there.
    pub clashes: Vec<String>,
}

impl Tree {
    /// What `base` lacks of `other`. Directories that are the same in both are not looked into. Fails if more than 500,000
    /// entries have to be compared. May be dropped midway.
    pub async fn additions(&self, base: &Cid, other: &Cid) -> Result<Additions, DagError> {
        let mut additions = Additions::default();
        let mut compared = 0_usize;
        let mut waiting = match base == other {
            true => Vec::new(),
            false => vec![(String::new(), *base, *other)],
        };
        while let Some((path, ours, theirs)) = waiting.pop() {
            let (Some(ours), Some(node)) = (self.node(base, &ours).await?, self.node(other, &theirs).await?)
            else {
                additions.clashes.push(path);
                continue;
            };
            let mut after = None::<String>;
            while let Some(page) = self.list(other, &path, after.as_deref(), PAGE).await? {
                compared += page.names.len();
                if compared > COMPARED_MAX {
                    return Err(invalid(other, "a tree that differs in more entries than are merged"));
                }
                for name in &page.names {
                    let Some(theirs) = self.find(other, &node, name).await? else { continue };
                    let path = join(&path, name);
                    match self.find(base, &ours, name).await? {
                        Some(ours) if ours.cid == theirs.cid => (),
                        Some(ours) => waiting.push((path, ours.cid, theirs.cid)),
                        None => additions.edits.push(Edit { path, to: Some(theirs) }),
                    }
                }
                after = page.names.into_iter().next_back();
                if !page.more {
                    break;
                }
            }
        }
        Ok(additions)
    }
}
