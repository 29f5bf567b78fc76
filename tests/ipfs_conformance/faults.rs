//! What a Kubo may do to us, by its double.

use shoal::ipfs::{Ipfs, IpfsError, Signing, Want};
use shoal::ipld::dag_pb::Link;
use shoal::ipld::ipns::IpnsRecord;
use shoal::ipld::unixfs::encode_directory;
use shoal::ipld::{Block, Cid};
use shoal::kubo::{self, KuboClient};
use shoal::store::Store;
use shoal::tasks::Tasks;
use std::time::Duration;
use tempfile::TempDir;

use crate::double::{Double, Fault};
use crate::{leaf, store};

struct Scene {
    double: Double,
    kubo: KuboClient,
    store: Store,
    _folder: TempDir,
    tasks: Tasks,
}

async fn scene() -> Scene {
    scene_with(Double::start().await).await
}

async fn scene_with(double: Double) -> Scene {
    let (folder, tasks) = (TempDir::new().unwrap(), Tasks::new());
    let store = store(&folder);
    let (kubo, _) = KuboClient::start(&tasks, &store, double.config()).await.unwrap();
    Scene { double, kubo, store, _folder: folder, tasks }
}

impl Scene {
    /// Puts a directory with these files into our store.
    fn tree(&self, files: &[(&str, &'static str)]) -> Cid {
        let put = |block: &Block| {
            self.store.blocks().put(block.cid().hash(), &[block.bytes().clone()]).unwrap();
        };
        let links = files.iter().map(|(name, text)| {
            let block = leaf(text);
            put(&block);
            Link { name: (*name).to_owned(), cid: *block.cid(), tsize: block.bytes().len() as u64 }
        });
        let root = encode_directory(links.collect());
        put(&root);
        *root.cid()
    }

    fn pins(&self) -> Vec<String> {
        self.double.inside().pins.keys().cloned().collect()
    }

    async fn end(self) {
        self.tasks.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_block_is_refused() {
    let scene = scene().await;
    let block = leaf("right");
    scene.double.inside().blocks.insert(*block.cid(), block.bytes().clone());
    scene.double.fails("block/get", Fault::WrongBlock);
    let want = Want { cid: *block.cid(), root: *block.cid() };
    let refused = scene.kubo.fetch(want).await.unwrap_err().to_string();
    assert!(refused.contains("do not match its hash"), "{refused}");
    assert_eq!(scene.kubo.fetch(want).await.unwrap(), block);
    let absent = *leaf("nowhere").cid();
    let absent = scene.kubo.fetch(Want { cid: absent, root: absent }).await;
    assert!(matches!(absent, Err(IpfsError::NoProvider(_))), "{absent:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_new_is_sent_and_the_old_pin_goes_when_it_is_let_go() {
    let scene = scene().await;
    let one = scene.tree(&[("a", "first"), ("b", "second")]);
    scene.kubo.keep("shoal name", &one).await.unwrap();
    assert_eq!(scene.double.inside().imported, 3);
    let two = scene.tree(&[("a", "first"), ("b", "second"), ("c", "third")]);
    scene.kubo.keep("shoal name", &two).await.unwrap();
    assert_eq!(scene.double.inside().imported, 3 + 2, "the directory and its new file");
    assert_eq!(scene.pins().len(), 2, "the name points to the old one still");
    scene.double.inside().pins.insert(leaf("other").cid().to_string(), "shoal names of others".to_owned());
    scene.kubo.let_go("shoal name", &[two]).await.unwrap();
    assert_eq!(scene.double.inside().gap(&two), None);
    assert!(!scene.pins().contains(&one.to_string()));
    assert_eq!(scene.pins().len(), 2, "what has another label stays");
    scene.kubo.keep("shoal name", &two).await.unwrap();
    assert_eq!(scene.double.inside().imported, 5, "what is pinned is not sent again");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_breaks_off_is_whole_after_another_try() {
    let scene = scene().await;
    let root = scene.tree(&[("a", "first"), ("b", "second")]);
    scene.double.fails("dag/import", Fault::BreaksOff);
    let away = scene.kubo.keep("shoal name", &root).await.unwrap_err();
    assert!(away.is_nobody_there(), "{away}");
    assert_eq!(scene.pins(), Vec::<String>::new());
    scene.double.fails("dag/import", Fault::Error);
    let refused = scene.kubo.keep("shoal name", &root).await.unwrap_err().to_string();
    assert!(refused.contains("refused dag/import: the disk is full"), "{refused}");
    assert_eq!(scene.pins(), Vec::<String>::new());
    scene.kubo.keep("shoal name", &root).await.unwrap();
    assert_eq!(scene.pins(), [root.to_string()]);
    assert_eq!(scene.double.inside().gap(&root), None);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbage_collection_before_the_pin_loses_nothing() {
    let scene = scene().await;
    let one = scene.tree(&[("a", "first")]);
    scene.double.fails("pin/add", Fault::CollectsGarbage);
    assert!(scene.kubo.keep("shoal name", &one).await.is_err(), "a pin without its blocks");
    scene.kubo.keep("shoal name", &one).await.unwrap();
    let two = scene.tree(&[("a", "first"), ("b", "second")]);
    scene.double.fails("pin/update", Fault::CollectsGarbage);
    scene.kubo.keep("shoal name", &two).await.unwrap();
    assert_eq!(scene.double.inside().gap(&two), None);
    assert!(scene.pins().contains(&two.to_string()));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_kubo_signs_there_and_no_other() {
    let scene = scene().await;
    let name = scene.double.has_key("team");
    scene.double.inside().peers = 0;
    let nothing = scene.kubo.resolve(&name).await;
    assert!(matches!(nothing, Err(IpfsError::NoRecord(_))), "it knows its own keys best: {nothing:?}");
    let (root, hour) = (*leaf("root").cid(), Duration::from_secs(3600));
    let signing =
        Signing { name, root, sequence: 7, seen: None, validity: hour, ttl: Duration::from_secs(60) };
    let record = scene.kubo.sign(&signing).await.unwrap();
    assert_eq!((record.root(), record.sequence()), (Some(root), 7));
    scene.kubo.publish(&record).await.unwrap();
    assert!(scene.kubo.sign(&signing).await.is_err(), "the same sequence again");
    let stranger = "k51qzi5uqu5dhw0vim1qjkzo4ddl00af1k7ellfca8qdnhoqfri0c5q69rr01e".parse().unwrap();
    let none = scene.kubo.sign(&Signing { name: stranger, ..signing }).await;
    assert!(matches!(none, Err(IpfsError::NoKey(_))), "{none:?}");
    let nobody = scene.kubo.resolve(&stranger).await;
    assert!(matches!(nobody, Err(IpfsError::NoPeers(_))), "nobody was asked: {nobody:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_our_pins_are_let_go_where_pins_have_no_names() {
    let scene = scene_with(Double::old().await).await;
    let users = *leaf("of the user").cid();
    scene.double.inside().pins.insert(users.to_string(), String::new());
    let one = scene.tree(&[("a", "first")]);
    scene.kubo.keep("shoal name", &one).await.unwrap();
    let two = scene.tree(&[("a", "first"), ("b", "second")]);
    scene.kubo.keep("shoal name", &two).await.unwrap();
    assert_eq!(scene.double.inside().imported, 2 + 2, "only what is new, here too");
    scene.kubo.let_go("shoal name", &[two]).await.unwrap();
    let mut left = [users.to_string(), two.to_string()];
    left.sort();
    assert_eq!(scene.pins(), left);

    scene.double.inside().blocks.insert(users, leaf("of the user").bytes().clone());
    scene.kubo.keep("shoal layout", &users).await.unwrap();
    scene.kubo.let_go("shoal layout", &[]).await.unwrap();
    assert_eq!(scene.pins(), left, "what the user had pinned before us");
    scene.kubo.keep("shoal follows it", &two).await.unwrap();
    scene.kubo.let_go("shoal name", &[]).await.unwrap();
    assert_eq!(scene.pins(), left, "what is needed under another label");
    scene.kubo.let_go("shoal follows it", &[]).await.unwrap();
    assert_eq!(scene.pins(), [users.to_string()]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pinned_without_a_name_is_let_go_by_a_newer_kubo_and_what_the_user_took_over_is_not() {
    let scene = scene_with(Double::old().await).await;
    let (one, two) = (scene.tree(&[("a", "first")]), scene.tree(&[("b", "second")]));
    scene.kubo.keep("shoal name", &one).await.unwrap();
    scene.double.inside().is_old = false;
    scene.kubo.keep("shoal name", &two).await.unwrap();
    scene.kubo.let_go("shoal name", &[two]).await.unwrap();
    assert_eq!(scene.pins(), [two.to_string()]);
    for name in ["backup", ""] {
        scene.double.inside().pins.insert(two.to_string(), name.to_owned());
        scene.kubo.let_go("shoal name", &[]).await.unwrap();
        assert_eq!(scene.pins(), [two.to_string()], "the user has pinned it anew as {name:?}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_no_longer_is_let_go_kind_by_kind() {
    for double in [Double::start().await, Double::old().await] {
        let scene = scene_with(double).await;
        let roots = ["one", "two", "three"].map(|text| scene.tree(&[("a", text)]));
        for (label, root) in ["shoal follows a", "shoal follows b", "shoal name"].iter().zip(&roots) {
            scene.kubo.keep(label, root).await.unwrap();
        }
        let strange = leaf("by another daemon").cid().to_string();
        scene.double.inside().pins.insert(strange.clone(), "shoal follows c".to_owned());
        let labels = ["shoal follows b".to_owned()].into();
        scene.kubo.let_go_rest("shoal follows ", &labels).await.unwrap();
        let mut left = [roots[1].to_string(), roots[2].to_string(), strange];
        left.sort();
        assert_eq!(scene.pins(), left);
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_kubo_chose_is_held_against_all_that_are_out() {
    let scene = scene_with(Double::old().await).await;
    let name = scene.double.has_key("team");
    let (hour, ttl) = (Duration::from_secs(3600), Duration::from_secs(60));
    let root_of = |text| *leaf(text).cid();
    let signing = |root, seen: Option<u64>| {
        let sequence = seen.map_or(1, |seen| seen + 1);
        Signing { name, root, sequence, seen, validity: hour, ttl }
    };
    let first = scene.kubo.sign(&signing(root_of("one"), None)).await.unwrap();
    assert_eq!(first.sequence(), 0);
    let second = scene.kubo.sign(&signing(root_of("two"), Some(0))).await.unwrap();
    assert_eq!((second.root(), second.sequence()), (Some(root_of("two")), 1));
    let again = scene.kubo.sign(&signing(root_of("two"), Some(1))).await.unwrap();
    assert_eq!(again.sequence(), 1, "the same root");
    assert!(again.is_better_than(&second), "for longer");
    scene.kubo.publish(&again).await.unwrap();

    // Somebody else with this key.
    let theirs = {
        let mut inside = scene.double.inside();
        let until = jiff::Timestamp::now() + hour;
        let record = IpnsRecord::sign(&inside.keys[0].1, &root_of("theirs"), 9, until, ttl).unwrap();
        inside.records.insert(name.to_string(), record.bytes().clone());
        record
    };
    let count = || scene.double.inside().counted[&name.to_string()].0;
    let unseen = scene.kubo.sign(&signing(root_of("three"), Some(1))).await.unwrap_err().to_string();
    assert!(unseen.contains("does not go over sequence 9"), "{unseen}");
    assert_eq!(count(), 1, "nothing was signed");
    let below = scene.kubo.sign(&signing(root_of("three"), Some(9))).await.unwrap_err().to_string();
    assert!(below.contains("does not go over sequence 9") && below.contains("--sequence"), "{below}");
    assert_eq!(scene.kubo.resolve(&name).await.unwrap().bytes(), theirs.bytes());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_with_what_to_do() {
    let double = Double::start().await;
    assert_eq!(kubo::version(&double.config()).await.unwrap(), "0.43.0");
    let mut config = double.config();
    config.authorization = None;
    let shut = kubo::version(&config).await.unwrap_err().to_string();
    assert!(shut.contains("set storage.ipfs.ipfsapiauth"), "{shut}");
    let config = double.config();
    double.ends().await;
    let wrong = kubo::version(&config).await.unwrap_err().to_string();
    assert!(wrong.contains("does not answer") && wrong.contains("ipfs daemon"), "{wrong}");
    assert!(!wrong.contains("t0ken"));
}
