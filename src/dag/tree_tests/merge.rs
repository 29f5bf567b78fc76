//! What one tree has that another lacks.

use proptest::collection::btree_map;
use proptest::prelude::*;

use super::{Fixture, many, set};
use crate::dag::Additions;
use crate::dag::tree::Edit;

fn paths(additions: &Additions) -> Vec<&str> {
    let mut paths: Vec<&str> = additions.edits.iter().map(|edit| edit.path.as_str()).collect();
    paths.sort_unstable();
    paths
}

#[tokio::test]
async fn whole_directories_and_single_entries_are_added_and_clashes_are_told() {
    let f = Fixture::new();
    let ours = f.build(&[set("both/same", 1), set("both/other", 2), set("ours/x", 3), set("file", 4)]).await;
    let theirs = f
        .build(&[
            set("both/same", 1),
            set("both/other", 9),
            set("both/new", 5),
            set("theirs/a/b", 6),
            set("file/x", 7),
        ])
        .await;
    let additions = f.tree.additions(&ours.cid, &theirs.cid).await.unwrap();
    assert_eq!(paths(&additions), ["both/new", "theirs"]);
    let mut clashes = additions.clashes;
    clashes.sort_unstable();
    assert_eq!(clashes, ["both/other", "file"]);
    assert_eq!(f.tree.additions(&ours.cid, &ours.cid).await.unwrap(), Additions::default());
}

#[tokio::test]
async fn sharded_directories_are_merged_to_what_one_edit_would_have_made() {
    let f = Fixture::new();
    let (first, second) = (f.build(&many(0..6000)).await, f.build(&many(3000..9000)).await);
    let additions = f.tree.additions(&first.cid, &second.cid).await.unwrap();
    assert_eq!((additions.edits.len(), additions.clashes.len()), (3000, 0));
    let merged = f.tree.edit(&first.cid, &additions.edits).await.unwrap();
    assert_eq!(merged, f.build(&many(0..9000)).await);
}

/// Files of a few paths, some of which are below others' directories.
fn trees() -> impl Strategy<Value = Vec<Edit>> {
    btree_map("[ab](/[cd]){0,2}x", 0..3_usize, 0..8)
        .prop_map(|files| files.into_iter().map(|(path, size)| set(&path, size)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn a_merged_tree_has_every_path_of_both(ours in trees(), theirs in trees()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let f = Fixture::new();
            let (a, b) = (f.build(&ours).await.cid, f.build(&theirs).await.cid);
            let additions = f.tree.additions(&a, &b).await.unwrap();
            let merged = f.tree.edit(&a, &additions.edits).await.unwrap().cid;
            for edit in &ours {
                prop_assert_eq!(f.tree.lookup(&merged, &edit.path).await.unwrap(), edit.to);
            }
            for edit in &theirs {
                let found = f.tree.lookup(&merged, &edit.path).await.unwrap();
                prop_assert!(found == edit.to || additions.clashes.iter().any(|clash| edit.path.starts_with(clash)));
            }
            prop_assert!(f.tree.additions(&merged, &b).await.unwrap().edits.is_empty());
            prop_assert!(f.tree.additions(&merged, &a).await.unwrap().edits.is_empty());
            Ok(())
        })?;
    }
}
