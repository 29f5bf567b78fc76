//! What an edit gives, and what it costs.

use std::collections::{BTreeMap, HashMap};

use cid::Cid;
use proptest::prelude::*;

use super::{Fixture, many, raw, remove, set};
use crate::dag::tree::{Edit, Entry};
use crate::ipld::directory::DIRECTORY_BYTES_MAX;
use crate::ipld::hamt::{Fanout, HamtNode, NameHash, Place};

/// Made by Kubo 0.43 with profile unixfs-v1-2025: the root's CID and cumulative size, where that was asked.
const KUBO: [(&str, &str, u64); 8] = [
    ("empty", "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354", 4),
    ("one", "bafybeihfzrdp2x57weckyp3qlu2jdyqlesgl3ymha6dzvip5rfwmyrijya", 0),
    ("three", "bafybeih3wpimxec6imynozfs66ehgrbyb3czvfn4ert4gbshum44472c2e", 0),
    ("names", "bafybeifekqhw4hhaibmrhyccsqchupjoeuayac7z7rajet43fzns5i23bm", 0),
    ("many", "bafybeibi7kgpkom3vvv2pnbzt3svf2dbbohyreujgzsrwgmabxyzh6muwy", 0),
    ("at_threshold", "bafybeiad5q4hb5ljdd63ndo6l2f6tsjj4ji4rfkofxd2bniyr7ttay5vjq", 286_414),
    ("above_threshold", "bafybeia7mleis77hlaqeh5uvz4rtkqjo7adshlv6dkt77e4ag5ki4pzy5m", 331_305),
    ("nested", "bafybeibc6pcwjdh2hlydi4th5tdyhqfharzlft4qzhyrj7wnfx77b3svgy", 2387),
];

/// The inputs of [`KUBO`]: files of SHAKE-128 bytes, seeded with `dir/` and the path.
fn kubo_edits(case: &str) -> Vec<Edit> {
    match case {
        "empty" => Vec::new(),
        "one" => vec![set("a", 3)],
        "three" => vec![set("a", 3), set("b", 300 * 1024), set("c.txt", 0)],
        "names" => ["z", "A", "ä", "with space", "%41", "a.b"].map(|name| set(name, 1)).to_vec(),
        "many" => many(0..10_000),
        // 262,144 bytes, and one more.
        "at_threshold" => [many(0..4853), vec![set(&"x".repeat(34), 5)]].concat(),
        "above_threshold" => [many(0..4853), vec![set(&"x".repeat(35), 5)]].concat(),
        "nested" => {
            let tag = |tag| {
                set(
                    &format!(
                        "docker/registry/v2/repositories/library/app/_manifests/tags/{tag}/current/link"
                    ),
                    71,
                )
            };
            vec![tag("1"), tag("2"), tag("latest"), set("docker/registry/v2/blobs/sha256/ab/abcd/data", 1000)]
        }
        other => panic!("no case {other}"),
    }
}

fn kubo_cid(case: &str) -> Cid {
    KUBO.iter().find(|(name, ..)| *name == case).unwrap().1.parse().unwrap()
}

#[tokio::test]
async fn roots_are_those_of_kubo() {
    let f = Fixture::new();
    for (case, cid, tsize) in KUBO {
        let edits = kubo_edits(case);
        let backwards: Vec<_> = edits.iter().rev().cloned().collect();
        let root = f.build(&edits).await;
        assert_eq!(root.cid.to_string(), cid, "{case}");
        assert_eq!(f.build(&backwards).await, root, "{case}");
        assert!(tsize == 0 || root.tsize == tsize, "{case}: {}", root.tsize);
    }
}

#[tokio::test]
async fn roots_are_those_of_kubo_however_they_came_about() {
    let f = Fixture::new();
    let mut root = f.tree.empty().await.unwrap().cid;
    let edits = many(0..10_000);
    for (i, some) in edits.chunks(700).enumerate() {
        let others = many(i * 1000 + 20_000..i * 1000 + 20_300);
        root = f.tree.edit(&root, &[some, &others].concat()).await.unwrap().cid;
        let gone: Vec<_> = others.iter().map(|edit| remove(&edit.path)).collect();
        root = f.tree.edit(&root, &gone).await.unwrap().cid;
    }
    assert_eq!(root, kubo_cid("many"));
    // Down to the largest directory of one block, and once more across the border, entry by entry.
    let gone: Vec<_> = edits[4853..].iter().map(|edit| remove(&edit.path)).collect();
    let long = "x".repeat(35);
    root = f.tree.edit(&root, &[gone, vec![set(&long, 5)]].concat()).await.unwrap().cid;
    assert_eq!(root, kubo_cid("above_threshold"));
    for _ in 0..2 {
        root = f.tree.edit(&root, &[set(&"x".repeat(34), 5)]).await.unwrap().cid;
        root = f.tree.edit(&root, &[remove(&long)]).await.unwrap().cid;
        assert_eq!(root, kubo_cid("at_threshold"));
        root = f.tree.edit(&root, &[set(&long, 5)]).await.unwrap().cid;
        root = f.tree.edit(&root, &[remove(&"x".repeat(34))]).await.unwrap().cid;
        assert_eq!(root, kubo_cid("above_threshold"));
    }
}

/// Kubo with `Import.UnixFSHAMTDirectoryMaxFanout` set, and `file-00000` to `file-04999` of 5 bytes.
#[tokio::test]
async fn other_fanouts_are_kept() {
    let f = Fixture::new();
    for (fanout, cid, tsize) in [
        (8, "bafybeifdnofg3oqdnnd3uqruugwdwn3ggvirorxsvue3hu46tourntxs4u", 434_482),
        (16, "bafybeigetpaipfkdml5utoku36fahsrkq2h7kyyxgozopgirvzlf3fwpci", 408_207),
        (1024, "bafybeie7nqgzeh5v3loahupsxbefmkohw3kex55cpvrwccvxaohnykfvna", 473_968),
    ] {
        let root = f.put(HamtNode::new(Fanout::new(fanout).unwrap()).encode()).await;
        let root = f.tree.edit(&root, &many(0..5000)).await.unwrap();
        assert_eq!((root.cid.to_string().as_str(), root.tsize), (cid, tsize), "fan-out {fanout}");
        let more = f.tree.edit(&root.cid, &many(5000..5100)).await.unwrap();
        let gone: Vec<_> = many(5000..5100).iter().map(|edit| remove(&edit.path)).collect();
        assert_eq!(f.tree.edit(&more.cid, &gone).await.unwrap(), root, "fan-out {fanout}");
        assert_eq!(f.tree.lookup(&root.cid, "file-01234").await.unwrap(), Some(raw("file-01234", 5)));
        assert_eq!(f.names(&root.cid).await.len(), 5000);
    }
}

/// Names of which many meet two and three levels deep.
fn crowded_names() -> Vec<String> {
    let mut groups: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    let below_two = |name: &str| {
        let hash = NameHash::of(name);
        let root = Place::root(Fanout::F256);
        let first = hash.position(root);
        first << 8 | hash.position(root.below(first).unwrap())
    };
    (0..20_000)
        .map(|i| format!("n{i}"))
        .for_each(|name| groups.entry(below_two(&name)).or_default().push(name));
    groups.into_values().filter(|group| group.len() > 2).flatten().take(60).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// With a threshold of 700 bytes, some dozen entries, so that directories become shards and blocks again.
    #[test]
    fn the_root_depends_on_the_entries_alone(
        batches in proptest::collection::vec(
            proptest::collection::vec((0_usize..60, proptest::option::weighted(0.55, 0_usize..400)), 1..9),
            1..60,
        ),
    ) {
        let names = crowded_names();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let f = Fixture::behind(None, 700);
            let mut root = f.tree.empty().await.unwrap();
            let mut entries = BTreeMap::new();
            for batch in batches {
                let mut edits = Vec::new();
                for (name, size) in batch {
                    let path = names[name].clone();
                    let edit = size.map_or_else(|| remove(&path), |size| set(&path, size));
                    entries.insert(path, edit.clone());
                    edits.push(edit);
                }
                entries.retain(|_, edit| edit.to.is_some());
                root = f.tree.edit(&root.cid, &edits).await.unwrap();
                let all: Vec<_> = entries.values().cloned().collect();
                assert_eq!(f.build(&all).await, root);
            }
            assert!(f.names(&root.cid).await.iter().eq(entries.keys()));
            for (path, edit) in &entries {
                assert_eq!(f.tree.lookup(&root.cid, path).await.unwrap(), edit.to);
            }
        });
    }
}

#[tokio::test]
async fn edits_apply_in_their_order() {
    let f = Fixture::new();
    let dir = f.build(&[set("x", 1), set("y", 1)]).await;
    let there = |path: &str, to| Edit { path: path.to_owned(), to: Some(to) };
    let root =
        f.build(&[set("a/b/c", 1), set("a/b/c", 2), set("f", 1), set("gone/deep", 1), remove("gone")]).await;
    let find = async |root: &Entry, path| f.tree.lookup(&root.cid, path).await.unwrap();
    assert_eq!(find(&root, "a/b/c").await, Some(raw("a/b/c", 2)));
    assert_eq!(find(&root, "gone").await, None);

    let again = f
        .tree
        .edit(&root.cid, &[remove("f"), set("f/g", 1), there("a", dir), set("a/z", 1), remove("a/x")])
        .await
        .unwrap();
    assert_eq!(find(&again, "f/g").await, Some(raw("f/g", 1)));
    assert_eq!(find(&again, "a/b").await, None);
    assert_eq!(f.tree.list(&again.cid, "a", None, 9).await.unwrap().unwrap().names, ["y", "z"]);

    let emptied = f
        .tree
        .edit(&root.cid, &[remove("a/b/c"), remove("no/such"), remove("f/x"), set("n/m", 1), remove("n/m")])
        .await
        .unwrap();
    let empty = f.tree.empty().await.unwrap();
    assert_eq!(find(&emptied, "a/b").await, Some(empty));
    assert_eq!(find(&emptied, "n").await, Some(empty));
    assert_eq!(find(&emptied, "no").await, None);
    assert_eq!(find(&emptied, "").await, Some(emptied));
    assert_eq!(f.tree.edit(&root.cid, &[]).await.unwrap(), root);
}

#[tokio::test]
async fn an_edit_costs_the_path_and_not_the_tree() {
    let tags = "docker/registry/v2/repositories/library/app/_manifests/tags";
    let mut costs = HashMap::new();
    for count in [100, 100_000] {
        let f = Fixture::new();
        let links: Vec<_> = (0..count).map(|i| set(&format!("v{i}"), 71)).collect();
        let directory = f.build(&links).await;
        let root = f.build(&[Edit { path: tags.to_owned(), to: Some(directory) }]).await;

        let old = f.nodes(&root.cid).await;
        let cold = Fixture::behind(Some(&f.store), DIRECTORY_BYTES_MAX);
        let edits = [("set", set(&format!("{tags}/new"), 71)), ("remove", remove(&format!("{tags}/v77")))];
        for (kind, edit) in edits {
            let edited = cold.tree.edit(&root.cid, &[edit]).await.unwrap();
            let read = cold.fetched();
            let written = cold.nodes_beyond(&old, &edited.cid).await.len();
            costs.insert((count, kind), (read, written));
        }
    }
    let levels = tags.split('/').count() + 1;
    assert_eq!(costs[&(100, "set")], (levels, levels));
    let (read, written) = costs[&(100_000, "set")];
    assert!(read <= levels + 3 && written <= levels + 3, "{read} read, {written} written");
    let (_, written) = costs[&(100_000, "remove")];
    assert!(written <= levels + 3, "{written} written");
}

#[tokio::test]
async fn a_removal_reads_only_enough_to_know_that_the_rest_is_large() {
    let f = Fixture::new();
    let root = f.build(&many(0..60_000)).await;
    let cold = Fixture::behind(Some(&f.store), DIRECTORY_BYTES_MAX);
    cold.tree.edit(&root.cid, &[remove("file-00077")]).await.unwrap();
    let read = cold.fetched();
    assert!(read < 100, "{read} nodes read");
}
