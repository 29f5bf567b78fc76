//! Which of the blocks that are here lie below some roots. Asks no network: what is not here needs no mark.

use cid::Cid;
use tokio_util::sync::CancellationToken;

use super::DagError;
use crate::ipld::block::{DAG_PB, IDENTITY};
use crate::ipld::dag_pb::Node;
use crate::ipld::{Block, Multihash};
use crate::store::{HashedSet, Sweep};

/// Blocks that something needs: eight bytes for each.
#[derive(Default)]
pub struct Marks {
    keys: HashedSet,
    /// Nodes whose links were followed. A block may be named as a leaf first, and as a node then.
    followed: HashedSet,
}

impl Marks {
    /// Marks everything below `roots`. Takes memory for the links of one path from a root. Blocks: to be called on a
    /// blocking thread.
    pub fn mark(
        &mut self,
        sweep: &Sweep,
        roots: impl IntoIterator<Item = Cid>,
        stop: &CancellationToken,
    ) -> Result<(), DagError> {
        self.walk(sweep, roots, |_| true, stop)
    }

    /// Marks what is below `roots`, but for what has a name that `is_content` says yes to, and all below that. Comes
    /// after all calls of [`Marks::mark`]: what was passed over once is not looked at again.
    pub fn mark_without(
        &mut self,
        sweep: &Sweep,
        roots: impl IntoIterator<Item = Cid>,
        is_content: impl Fn(&str) -> bool,
        stop: &CancellationToken,
    ) -> Result<(), DagError> {
        self.walk(sweep, roots, |name| !is_content(name), stop)
    }

    fn walk(
        &mut self,
        sweep: &Sweep,
        roots: impl IntoIterator<Item = Cid>,
        goes_down: impl Fn(&str) -> bool,
        stop: &CancellationToken,
    ) -> Result<(), DagError> {
        let mut waiting: Vec<Cid> = roots.into_iter().collect();
        while let Some(cid) = waiting.pop() {
            if cid.hash().code() == IDENTITY {
                continue;
            }
            self.keys.insert(cid.hash());
            if cid.codec() != DAG_PB || !self.followed.insert(cid.hash()) {
                continue;
            }
            if stop.is_cancelled() {
                return Err(DagError::Cancelled("the daemon is shutting down"));
            }
            let Some(bytes) = sweep.peek(cid.hash())? else { continue };
            // What is no node has nothing below it.
            if let Ok(node) = Node::decode(&Block::from_store(cid, bytes)) {
                let below = node.links.into_iter().filter(|link| goes_down(&link.name));
                waiting.extend(below.map(|link| link.cid));
            }
        }
        Ok(())
    }

    pub fn contains(&self, key: &Multihash) -> bool {
        self.keys.contains(key)
    }
}
