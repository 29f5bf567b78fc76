//! Paths that clients may ask for, and directories that strangers may have written.

use bytes::Bytes;
use cid::Cid;

use super::{Fixture, link, raw, remove, set};
use crate::dag::DagError;
use crate::dag::tree::Entry;
use crate::ipld::Block;
use crate::ipld::hamt::{Fanout, HamtNode, NameHash, Place, Slot};
use crate::ipld::unixfs::{Shard, encode_directory};

#[tokio::test]
async fn unusable_paths_change_nothing() {
    let f = Fixture::new();
    let root = f.build(&[set("a/file", 1)]).await;
    let long = "x".repeat(256);
    for path in ["", "/", "a//b", "/a", "a/", ".", "a/../b", "a/file/x", long.as_str()] {
        let error = f.tree.edit(&root.cid, &[set("ok", 1), set(path, 1)]).await.unwrap_err();
        assert!(matches!(error, DagError::Invalid { .. }), "{path}: {error}");
    }
    for path in ["a/file/x", "a/file/x/y", "/", "a/", "a//file", "b", "a/.", "a/.."] {
        assert_eq!(f.tree.lookup(&root.cid, path).await.unwrap(), None, "{path}");
        assert_eq!(f.tree.list(&root.cid, path, None, 9).await.unwrap(), None, "{path}");
    }
    let file = raw("a/file", 1).cid;
    assert_eq!(f.tree.lookup(&file, "x").await.unwrap(), None);
    assert!(f.tree.edit(&file, &[set("x", 1)]).await.is_err());
    assert_eq!(f.fetched(), 0, "a raw leaf is not fetched to see that it is no directory");
}

#[tokio::test]
async fn a_failure_is_not_taken_for_absence() {
    let f = Fixture::new();
    let away = Fixture::new();
    let root = away.build(&[set("a/b", 1)]).await;
    assert!(f.tree.lookup(&root.cid, "a/x").await.unwrap_err().is_fetch());
    for cid in away.nodes(&root.cid).await {
        let bytes = away.store.blocks().get(cid.hash()).unwrap().unwrap();
        f.put(Block::from_store(cid, bytes)).await;
    }
    assert_eq!(f.tree.lookup(&root.cid, "a/x").await.unwrap(), None);
    assert_eq!(f.tree.lookup(&root.cid, "a/b").await.unwrap(), Some(raw("a/b", 1)));
}

#[tokio::test]
async fn trees_of_version_0_can_be_edited() {
    let f = Fixture::new();
    let v0 = |block: Block| Block::from_store(Cid::new_v0(*block.cid().hash()).unwrap(), block.into_bytes());
    let kept = f.put(v0(encode_directory(vec![link("k", raw("k", 1).cid)]))).await;
    let touched = f.put(v0(encode_directory(vec![link("t", raw("t", 1).cid)]))).await;
    let root = f.put(v0(encode_directory(vec![link("kept", kept), link("touched", touched)]))).await;

    let unchanged = f.tree.edit(&root, &[remove("touched/u"), remove("v/w")]).await.unwrap();
    assert_eq!(unchanged.cid, root);
    let edited = f.tree.edit(&root, &[set("touched/u", 2)]).await.unwrap();
    assert_eq!(f.tree.lookup(&edited.cid, "kept").await.unwrap().unwrap().cid, kept);
    assert_eq!(f.tree.list(&edited.cid, "touched", None, 9).await.unwrap().unwrap().names, ["t", "u"]);
    assert_eq!(edited.cid.version(), cid::Version::V1);
}

#[tokio::test]
async fn of_equal_names_the_first_counts_and_odd_names_are_not_listed() {
    let f = Fixture::new();
    let [first, second] = ["1", "2"].map(|text| raw(text, 1).cid);
    let links = ["twice", "twice", "", ".", "..", "a/b", "z"];
    let cids = [first, second, first, first, first, first, first];
    let block = encode_directory(links.iter().zip(cids).map(|(name, cid)| link(name, cid)).collect());
    let root = f.put(block).await;
    assert_eq!(f.tree.lookup(&root, "twice").await.unwrap().unwrap().cid, first);
    assert_eq!(f.names(&root).await, ["twice", "z"]);
    let page = f.tree.list(&root, "", None, 2).await.unwrap().unwrap();
    assert!(!page.more);
    let edited = f.tree.edit(&root, &[remove("twice")]).await.unwrap();
    assert_eq!(f.tree.lookup(&edited.cid, "twice").await.unwrap(), None);
}

/// A chain of shards of this fan-out along the hash of `name`, so long that its hash has no bits left.
async fn endless_chain(f: &Fixture, name: &str, fanout: Fanout) -> Cid {
    let hash = NameHash::of(name);
    let mut positions = vec![];
    let mut place = Some(Place::root(fanout));
    while let Some(at) = place {
        positions.push(hash.position(at));
        place = at.below(hash.position(at));
    }
    let mut cid = raw("leaf", 1).cid;
    for position in positions.into_iter().rev() {
        let mut node = HamtNode::new(fanout);
        node.set(position, Some(Slot::Sub(Entry { cid, tsize: 1 })));
        cid = f.put(node.encode()).await;
    }
    cid
}

#[tokio::test]
async fn shards_without_end_are_refused() {
    for fanout in [8, 256, 1024] {
        let f = Fixture::new();
        let root = endless_chain(&f, "name", Fanout::new(fanout).unwrap()).await;
        assert!(matches!(f.tree.lookup(&root, "name").await, Err(DagError::Invalid { .. })));
        assert!(matches!(f.tree.list(&root, "", None, 9).await, Err(DagError::Invalid { .. })));
        assert!(matches!(f.tree.edit(&root, &[set("name", 1)]).await, Err(DagError::Invalid { .. })));
        assert!(f.tree.fetch_directories(None, &root, 1000).await.unwrap());
    }
}

#[tokio::test]
async fn shards_that_do_not_fit_together_are_refused() {
    let f = Fixture::new();
    let hash = NameHash::of("name");
    let place = Place::root(Fanout::F256);
    let other_fanout = HamtNode::new(Fanout::new(16).unwrap()).encode();
    let no_shard = encode_directory(Vec::new());
    for child in [other_fanout, no_shard] {
        let sub = f.put(child).await;
        let mut node = HamtNode::new(Fanout::F256);
        node.set(hash.position(place), Some(Slot::Sub(Entry { cid: sub, tsize: 1 })));
        let root = f.put(node.encode()).await;
        assert!(matches!(f.tree.lookup(&root, "name").await, Err(DagError::Invalid { .. })));
        assert!(matches!(f.tree.list(&root, "", None, 9).await, Err(DagError::Invalid { .. })));
        assert!(matches!(f.tree.edit(&root, &[set("name", 1)]).await, Err(DagError::Invalid { .. })));
    }
    let short =
        Shard { bitfield: Bytes::from_static(&[1]), fanout: 256, links: vec![link("0", raw("x", 1).cid)] };
    let root = f.put(short.encode()).await;
    assert!(matches!(f.tree.lookup(&root, "x").await, Err(DagError::Format(_))));
}

#[tokio::test]
async fn an_entry_in_the_wrong_place_is_not_there() {
    let f = Fixture::new();
    let right = NameHash::of("name").position(Place::root(Fanout::F256));
    let neighbour = (0..)
        .map(|i| format!("n{i}"))
        .find(|n| NameHash::of(n).position(Place::root(Fanout::F256)) == right ^ 1);
    let mut node = HamtNode::new(Fanout::F256);
    node.set(right ^ 1, Some(Slot::Value("name".to_owned(), raw("name", 1))));
    let root = f.put(node.encode()).await;
    assert_eq!(f.tree.lookup(&root, "name").await.unwrap(), None);
    assert_eq!(f.names(&root).await, [""; 0]);
    assert!(f.tree.edit(&root, &[set(&neighbour.unwrap(), 1)]).await.is_err());
}

#[tokio::test]
async fn a_listing_visits_no_more_shards_than_a_directory_may_have() {
    let f = Fixture::new();
    let fanout = Fanout::new(1024).unwrap();
    let mut bottom = HamtNode::new(fanout);
    bottom.set(0, Some(Slot::Value("name".to_owned(), raw("name", 1))));
    let mut cid = f.put(bottom.encode()).await;
    for _ in 0..2 {
        let mut node = HamtNode::new(fanout);
        (0..1024).for_each(|position| node.set(position, Some(Slot::Sub(Entry { cid, tsize: 1 }))));
        cid = f.put(node.encode()).await;
    }
    assert!(matches!(f.tree.list(&cid, "", None, 9).await, Err(DagError::Invalid { .. })));
}
