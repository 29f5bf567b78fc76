//! Which blocks of a DAG a Kubo lacks that has another one whole: both are walked side by side, and what they share is
//! passed over.

use std::collections::{HashMap, HashSet};

use cid::Cid;

use super::KuboClient;
use crate::ipfs::IpfsError;
use crate::ipld::Block;
use crate::ipld::block::{DAG_PB, IDENTITY};
use crate::ipld::dag_pb::Node;
use crate::store::{HashedSet, StoreError, off_thread};

/// A DAG on its way to Kubo, depth first, each block once.
pub(super) struct Walk {
    kubo: KuboClient,
    /// What is next is last: a block, and the one in its place in the other DAG.
    waiting: Vec<(Cid, Option<Cid>)>,
    /// Says yes by mistake once in an age; the pin then finds the gap.
    seen: HashedSet,
    /// Blocks that are not here: only Kubo or its peers can have them.
    pub(super) absent: u64,
}

impl Walk {
    /// `base`: what Kubo has whole.
    pub(super) fn new(kubo: &KuboClient, root: Cid, base: Option<Cid>) -> Self {
        Self { kubo: kubo.clone(), waiting: vec![(root, base)], seen: HashedSet::default(), absent: 0 }
    }

    /// The next block to be sent. May be dropped midway, and then has passed over one.
    pub(super) async fn next(&mut self) -> Result<Option<Block>, IpfsError> {
        while let Some((cid, base)) = self.waiting.pop() {
            if Some(cid) == base || cid.hash().code() == IDENTITY || !self.seen.insert(&cid) {
                continue;
            }
            let Some(block) = self.stored(cid).await? else {
                self.absent += 1;
                continue;
            };
            if cid.codec() == DAG_PB
                && let Ok(node) = Node::decode(&block)
            {
                self.go_below(node, base).await?;
            }
            return Ok(Some(block));
        }
        Ok(None)
    }

    async fn go_below(&mut self, node: Node, base: Option<Cid>) -> Result<(), IpfsError> {
        let other = match base.filter(|base| base.codec() == DAG_PB) {
            Some(base) => self.base_node(base).await?,
            None => Node::default(),
        };
        let shared: HashSet<Cid> = other.links.iter().map(|link| link.cid).collect();
        let named = other.links.into_iter().filter(|link| !link.name.is_empty());
        let named: HashMap<String, Cid> = named.map(|link| (link.name, link.cid)).collect();
        let new = node.links.into_iter().rev().filter(|link| !shared.contains(&link.cid));
        self.waiting.extend(new.map(|link| (link.cid, named.get(&link.name).copied())));
        Ok(())
    }

    /// A node that Kubo has; space may have been freed here since it was replaced.
    async fn base_node(&self, cid: Cid) -> Result<Node, IpfsError> {
        let block = match self.stored(cid).await? {
            Some(block) => block,
            None => self.kubo.block(&cid, true).await?,
        };
        Ok(Node::decode(&block).unwrap_or_default())
    }

    async fn stored(&self, cid: Cid) -> Result<Option<Block>, IpfsError> {
        let store = self.kubo.0.store.clone();
        let bytes = off_thread(move || store.get(cid.hash())).await;
        let failed = |error: StoreError| IpfsError::Refused(format!("block {cid} cannot be read: {error}"));
        Ok(bytes.map_err(failed)?.map(|bytes| Block::from_store(cid, bytes)))
    }
}
