//! Look-ups, listings, and what is fetched of a new root.

use bytes::Bytes;
use proptest::prelude::*;

use super::{Fixture, link, raw, remove, set};
use crate::dag::tree::Listing;
use crate::ipld::Block;
use crate::ipld::block::DAG_PB;
use crate::ipld::directory::DIRECTORY_BYTES_MAX;
use crate::ipld::unixfs::encode_directory;

proptest! {
    #[test]
    fn pages_are_the_parts_of_the_sorted_names(
        names in proptest::collection::btree_set("[a-zé]{1,3}", 0..80),
        after in proptest::option::of("[a-zé]{0,3}"),
        limit in 0_usize..20,
        threshold in prop_oneof![Just(200), Just(DIRECTORY_BYTES_MAX)],
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let f = Fixture::behind(None, threshold);
            let edits: Vec<_> = names.iter().map(|name| set(&format!("dir/{name}"), 1)).collect();
            let root = f.build(&[edits, vec![set("dir/é", 1)]].concat()).await;
            let mut names = names;
            names.insert("é".to_owned());
            let behind: Vec<_> = names.into_iter().filter(|name| after.as_ref().is_none_or(|after| name > after)).collect();
            let listing = f.tree.list(&root.cid, "dir", after.as_deref(), limit).await.unwrap().unwrap();
            let more = behind.len() > limit;
            assert_eq!(listing, Listing { names: behind.into_iter().take(limit).collect(), more });
        });
    }
}

#[tokio::test]
async fn a_warm_look_up_reads_nothing() {
    let f = Fixture::new();
    let root = f.build(&[set("a/b", 1)]).await;
    let cold = Fixture::behind(Some(&f.store), DIRECTORY_BYTES_MAX);
    for path in ["a/b", "a/c"] {
        let found = cold.tree.lookup(&root.cid, path).await.unwrap();
        for cid in f.nodes(&root.cid).await {
            cold.store.blocks().remove(cid.hash()).unwrap();
        }
        cold.fetched();
        assert_eq!(cold.tree.lookup(&root.cid, path).await.unwrap(), found);
        assert_eq!(cold.fetched(), 0);
    }
}

#[tokio::test]
async fn only_what_a_new_root_adds_is_fetched() {
    let f = Fixture::behind(None, 700);
    let name = |repo: usize, tag: usize| set(&format!("repositories/app{repo}/tags/{tag}/link"), 71);
    let edits: Vec<_> = (0..30).flat_map(|repo| (0..30).map(move |tag| name(repo, tag))).collect();
    let first = f.build(&edits).await;
    let reader = Fixture::behind(Some(&f.store), 700);
    assert!(!reader.tree.fetch_directories(None, &first.cid, 100).await.unwrap());
    assert_eq!(reader.fetched(), 100);
    assert!(reader.tree.fetch_directories(None, &first.cid, 100_000).await.unwrap());
    assert_eq!(reader.fetched(), f.nodes(&first.cid).await.len() - 100);

    let mut root = first;
    let grow = (31..90).map(|repo| name(repo, 1)).collect();
    let shrink = (5..90).map(|repo| remove(&format!("repositories/app{repo}"))).collect();
    for edits in [vec![name(7, 99)], vec![remove("repositories/app3/tags/5")], grow, shrink] {
        let next = f.tree.edit(&root.cid, &edits).await.unwrap();
        assert!(reader.tree.fetch_directories(Some(&root.cid), &next.cid, 1000).await.unwrap());
        let (old, new) = (f.nodes(&root.cid).await, f.nodes(&next.cid).await);
        assert_eq!(reader.fetched(), new.difference(&old).count());
        let offline = Fixture::behind(Some(&reader.store), 700);
        assert_eq!(offline.names(&next.cid).await, ["repositories"]);
        assert_eq!(reader.nodes(&next.cid).await, new);
        root = next;
    }
}

#[tokio::test]
async fn what_moved_between_shards_is_not_visited_again() {
    let f = Fixture::behind(None, 700);
    let tags = |repo: usize| (0..50).map(move |tag| set(&format!("app{repo}/tags/{tag}"), 71));
    let old = f.build(&(0..8).flat_map(tags).collect::<Vec<_>>()).await;
    let new = f
        .tree
        .edit(&old.cid, &(8..300).map(|repo| set(&format!("app{repo}"), 1)).collect::<Vec<_>>())
        .await
        .unwrap();
    let shards = f.nodes_beyond(&f.nodes(&old.cid).await, &new.cid).await.len();
    for (old, new) in [(&old, &new), (&new, &old)] {
        let bound = shards.max(1);
        assert!(
            f.tree.fetch_directories(Some(&old.cid), &new.cid, bound).await.unwrap(),
            "within {bound} nodes"
        );
    }
}

#[tokio::test]
async fn a_missing_node_is_an_error_and_a_spoiled_one_is_not() {
    let f = Fixture::new();
    let missing = *Block::encode(DAG_PB, Bytes::from_static(b"missing")).cid();
    let spoiled = f.put(Block::encode(DAG_PB, Bytes::from_static(b"spoiled"))).await;
    let with = async |cid| f.put(encode_directory(vec![link("x", cid), link("y", raw("y", 1).cid)])).await;
    let error = f.tree.fetch_directories(None, &with(missing).await, 9).await.unwrap_err();
    assert!(error.is_fetch());
    assert!(error.to_string().contains(&missing.to_string()), "{error}");
    assert!(f.tree.fetch_directories(None, &with(spoiled).await, 9).await.unwrap());
    assert!(f.tree.fetch_directories(None, &spoiled, 9).await.is_err());
}

#[tokio::test]
async fn a_dag_with_more_paths_than_nodes_is_visited_by_nodes() {
    let f = Fixture::new();
    let mut cid = f.tree.empty().await.unwrap().cid;
    for _ in 0..60 {
        cid = f.put(encode_directory(vec![link("a", cid), link("b", cid)])).await;
    }
    assert!(f.tree.fetch_directories(None, &cid, 61).await.unwrap());
    assert!(!f.tree.fetch_directories(None, &cid, 60).await.unwrap());
}

#[tokio::test]
async fn a_tree_of_large_nodes_is_not_fetched_whole() {
    let f = Fixture::new();
    let leaf = raw("leaf", 1).cid;
    let mut large = Vec::new();
    for n in 0..40 {
        let names = (0..2000).map(|k| format!("{n}-{k:0150}"));
        large.push(f.put(encode_directory(names.map(|name| link(&name, leaf)).collect())).await);
    }
    let of = |count: usize| {
        let links = large[..count].iter().enumerate().map(|(n, cid)| link(&format!("{n:02}"), *cid));
        encode_directory(links.collect())
    };
    let (few, many) = (f.put(of(10)).await, f.put(of(40)).await);
    assert!(f.tree.fetch_directories(None, &few, 100).await.unwrap());
    assert!(!f.tree.fetch_directories(None, &many, 100).await.unwrap());
    assert!(f.tree.fetch_directories(None, &many, 10_000).await.unwrap());
}
