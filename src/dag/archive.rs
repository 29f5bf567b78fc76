//! A DAG as a CARv1, from what is here: nothing is fetched for it.

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};

use super::{Blocks, DagError};
use crate::ipld::car::{self, Scope};
use crate::ipld::{Block, Cid};
use crate::store::HashedSet;

/// Blocks that one archive may have, and links that may wait to be followed: eight bytes of memory for each of the first,
/// a hundred for each of the others.
const BLOCKS_MAX: usize = 1 << 17;
const WAITING_MAX: usize = 1 << 16;

struct Walk {
    blocks: Blocks,
    scope: Scope,
    /// What is next is last.
    waiting: Vec<Cid>,
    seen: HashedSet,
}

/// The blocks in `scope`, depth first, each once. A block that is not here ends the stream with an error, as does a DAG
/// that is too large.
pub fn archive(
    blocks: Blocks,
    root: Block,
    scope: Scope,
) -> impl Stream<Item = Result<Bytes, DagError>> + Send + 'static {
    let cid = *root.cid();
    let walk = Walk { blocks, scope, waiting: vec![cid], seen: HashedSet::default() };
    let rest = stream::try_unfold(walk, |mut walk| async move {
        let entry = walk.next().await?;
        Ok::<_, DagError>(entry.map(|entry| (entry, walk)))
    });
    let entries = rest.map_ok(|entry| stream::iter(entry.map(Ok)));
    stream::once(async move { Ok(car::header(&cid)) }).chain(entries.try_flatten())
}

impl Walk {
    async fn next(&mut self) -> Result<Option<[Bytes; 2]>, DagError> {
        let invalid = |cid, what| DagError::Invalid { cid: Box::new(cid), what };
        while let Some(cid) = self.waiting.pop() {
            if !self.seen.insert(&cid) {
                continue;
            }
            if self.seen.len() > BLOCKS_MAX {
                return Err(invalid(cid, "too many blocks for one archive"));
            }
            let Some(block) = self.blocks.get(&cid).await? else {
                return Err(invalid(cid, "a block is missing"));
            };
            self.waiting.extend(car::below(&block, self.scope)?.into_iter().rev());
            if self.waiting.len() > WAITING_MAX {
                return Err(invalid(cid, "too many links for one archive"));
            }
            return Ok(Some(car::entry(&block)));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dag::testing::Far;
    use crate::ipld::block::RAW;
    use crate::ipld::dag_pb::Link;
    use crate::ipld::unixfs::encode_directory;
    use crate::store::{Store, StoreOptions};

    fn leaf(text: &'static str) -> Block {
        Block::encode(RAW, Bytes::from_static(text.as_bytes()))
    }

    fn directory(entries: &[(&str, &Block)]) -> Block {
        let link = |(name, block): &(&str, &Block)| Link {
            name: (*name).to_owned(),
            cid: *block.cid(),
            tsize: block.bytes().len() as u64,
        };
        encode_directory(entries.iter().map(link).collect())
    }

    #[tokio::test]
    async fn each_block_comes_once_and_before_those_below_it() {
        let (a, b) = (leaf("a"), leaf("b"));
        let inner = directory(&[("1", &a), ("2", &b)]);
        let root = directory(&[("1", &inner), ("2", &a), ("3", &inner), ("4", &b)]);
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let far = Far::with(None);
        let blocks = Blocks::new(store.blocks().clone(), far.clone());
        let keep = |kept: &[&Block]| {
            let put =
                |block: &&Block| store.blocks().put(block.cid().hash(), &[block.bytes().clone()]).unwrap();
            kept.iter().for_each(put);
        };
        let archived =
            async |scope| archive(blocks.clone(), root.clone(), scope).try_collect::<Vec<Bytes>>().await;
        let expected = |entries: &[&Block]| {
            let entries = entries.iter().flat_map(|block| car::entry(block));
            std::iter::once(car::header(root.cid())).chain(entries).collect::<Vec<Bytes>>()
        };
        keep(&[&root, &inner, &a]);
        assert_eq!(archived(Scope::Block).await.unwrap(), expected(&[&root]));
        assert_eq!(archived(Scope::Entity).await.unwrap(), expected(&[&root]));
        assert!(matches!(archived(Scope::All).await, Err(DagError::Invalid { .. })), "b is missing");
        keep(&[&b]);
        assert_eq!(archived(Scope::All).await.unwrap(), expected(&[&root, &inner, &a, &b]));
        assert_eq!(far.fetched(), 0);
    }
}
