//! Records that are put to a follower: forged, stale, foreign, oversized; and valid ones that point astray.

use std::time::Duration;

use futures::{StreamExt, stream};
use libp2p::identity::Keypair;
use shoal::dag::Entry;
use shoal::ipld::dag_pb::{Link, Node};
use shoal::ipld::hamt::{Fanout, HamtNode, NameHash, Place, Slot};
use shoal::ipld::unixfs::encode_directory;
use shoal::ipld::{Cid, Multihash};

use crate::author::{Author, has_seen, has_taken};
use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::forge::{Forged, name_of};
use crate::peer::Peer;

/// An author, a daemon that serves his image from record 5, and what it is.
async fn followed(seed: u64) -> (Author, Daemon, Image, Cid) {
    let (author, image) = (Author::start().await, Image::small(seed));
    let root = author.tree_of(&image).await;
    let reader = author.reader();
    author.publish_root(&root, 5).await;
    reader.serves("library/app", "1", &image).await;
    (author, reader, image, root)
}

fn assert_serves(reader: &Daemon, root: &Cid, sequence: u64, what: &str) {
    let followed = &reader.status().readonly[0];
    assert_eq!(followed.root.as_deref(), Some(root.to_string().as_str()), "after {what}");
    assert_eq!(followed.sequence, Some(sequence), "after {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_not_good_change_nothing() {
    let (author, reader, image, root) = followed(200).await;
    let peer = Peer::start().await;
    let (ours, stranger) = (&author.key, Keypair::generate_ed25519());
    let key = name_of(ours).routing_key();
    let good = Forged::new(&format!("/ipfs/{root}"), 5);
    let newer = Forged { sequence: 9, ..good.clone() };
    let mut broken = newer.sign(ours);
    *broken.last_mut().unwrap() ^= 1;
    let spoiled = [
        ("a record of another key", newer.sign(&stranger)),
        ("a record that has expired", Forged { hours: -1, ..newer.clone() }.sign(ours)),
        ("an older record", Forged { sequence: 4, ..good.clone() }.sign(ours)),
        ("the same sequence with an earlier end", Forged { hours: 1, ..good.clone() }.sign(ours)),
        ("a record over 10 KiB", Forged { padding: 10 * 1024, ..newer.clone() }.sign(ours)),
        ("a record over 16 KiB", Forged { padding: 16 * 1024, ..newer.clone() }.sign(ours)),
        ("a broken signature", broken),
        ("junk", vec![0xff; 5000]),
        ("nothing", Vec::new()),
    ];
    peer.meets(&reader).await;
    for (what, value) in &spoiled {
        peer.put(&reader, &key, value).await;
        assert_serves(&reader, &root, 5, what);
    }
    // Keys that are no names, and names of others.
    for strange in [b"/pk/x".to_vec(), vec![0; 200], name_of(&stranger).routing_key()] {
        peer.put(&reader, &strange, &newer.sign(ours)).await;
        assert_serves(&reader, &root, 5, "a strange key");
        assert_eq!(peer.get(&strange).await, Vec::<Vec<u8>>::new());
    }
    let values = peer.get(&key).await;
    assert!(!values.is_empty());
    for value in values {
        let record = shoal::ipld::ipns::IpnsRecord::decode(&name_of(ours), &value).unwrap();
        assert_eq!((record.sequence(), record.root()), (5, Some(root)), "only the good one is given out");
    }
    assert_eq!(reader.pull("library/app", "1").await.unwrap(), image);
    // One that is good comes through by the same way.
    peer.put(&reader, &key, &Forged { sequence: 6, ..good }.sign(ours)).await;
    has_seen(&reader, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_valid_record_that_points_astray_leaves_the_old_root() {
    let (author, reader, image, root) = followed(201).await;
    let absent = Cid::try_from("bafkreid64eywgjs445ao6ucabvyfucyj4gcxe7nhkgj5ehiv6tdwjze2ra").unwrap();
    let missing_directory =
        Link { name: "docker".to_owned(), cid: *Node::default().encode().cid(), tsize: 1 };
    let hollow = author.put(encode_directory(vec![missing_directory])).await.cid;
    let leaf = author.leaf(b"no directory").await.cid;
    let values = [
        ("a name", format!("/ipns/{}", author.name())),
        ("a path", format!("/ipfs/{root}/docker")),
        ("junk", "x".repeat(1024)),
        ("nothing", String::new()),
        ("a root that nobody has", format!("/ipfs/{absent}")),
        ("a root whose directories nobody has", format!("/ipfs/{hollow}")),
    ];
    let mut sequence = 5;
    for (what, value) in values {
        sequence += 1;
        author.publish(&Forged::new(&value, sequence)).await;
        has_seen(&reader, sequence).await;
        assert_serves(&reader, &root, sequence, what);
        assert!(reader.status().readonly[0].error.is_some(), "{what} is told of");
        assert_eq!(reader.pull("library/app", "1").await.unwrap(), image, "after {what}");
    }
    // A good one is followed after all that.
    let next = author.edit(&root, "docker/note", Entry { cid: leaf, tsize: 12 }).await;
    author.publish_root(&next, 99).await;
    has_seen(&reader, 99).await;
    reader.serves("library/app", "1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_answers_no_put_delays_no_reader() {
    let mute = Peer::mute_in_the_dht().await;
    let publisher = daemon().dials(&mute.address).start();
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).read_only().start();
    let image = Image::new(203, &[1000]);
    publisher.push("library/app", "0", &image).await;
    reader.serves("library/app", "0", &image).await;
    // None of these waits for an answer to the one before.
    let moving_on = async {
        for tag in 1..=8 {
            publisher.push("library/app", &tag.to_string(), &image).await;
            reader.serves("library/app", &tag.to_string(), &image).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, moving_on).await.expect("eight tags are followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_a_directory_without_end_takes_nothing_away() {
    let (author, reader, image, root) = followed(202).await;
    let bomb = endless_directory(&author, "docker").await;
    author.publish_root(&bomb.cid, 6).await;
    has_seen(&reader, 6).await;
    assert_eq!(reader.pull("library/app", "1").await.unwrap(), image);
    assert_ne!(root, bomb.cid);
    assert!(reader.memory_bytes() < 320 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_providers_of_nothing_keep_nothing_else_out() {
    const FLOOD: u64 = 2000;
    let (author, reader, image, _) = followed(204).await;
    let (peer, witness) = (Peer::start().await, Peer::start().await);
    peer.meets(&reader).await;
    witness.meets(&reader).await;
    let key = |n: u64| Multihash::wrap(0x12, &[n.to_be_bytes(); 4].concat()).unwrap().to_bytes();
    // More at once would be given up for taking too long, before they are said.
    stream::iter(0..FLOOD).for_each_concurrent(32, |n| peer.provide(key(n))).await;
    let arriving = async {
        while witness.providers(key(FLOOD - 1)).await == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, arriving).await.expect("the last one is known");
    assert!(reader.memory_bytes() < 320 << 20, "{} MiB", reader.memory_bytes() >> 20);
    // What it follows goes on.
    let root = author.tree_of(&image).await;
    let next = author.edit(&root, "docker/note", author.leaf(b"more").await).await;
    author.publish_root(&next, 6).await;
    has_taken(&reader, &next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dozen_who_claim_to_provide_a_root_and_give_nothing_delay_only() {
    const LIARS: usize = 12;
    let hub = daemon().start();
    let publisher = daemon().knows(&hub).start();
    let image = Image::small(205);
    publisher.push("library/app", "1", &image).await;
    let root: Cid = publisher.status().own.unwrap().root.parse().unwrap();
    let mut liars = Vec::new();
    for _ in 0..LIARS {
        let peer = Peer::start().await;
        peer.meets(&hub).await;
        peer.provide(root.hash().to_bytes()).await;
        liars.push(peer);
    }
    let witness = Peer::start().await;
    witness.meets(&hub).await;
    let arriving = async {
        while witness.providers(root.hash().to_bytes()).await <= LIARS / 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, arriving).await.expect("they are believed");
    // It knows nobody but the hub, which has nothing of the image.
    let reader = daemon().knows(&hub).reads(&publisher.ipns).read_only().start();
    reader.serves("library/app", "1", &image).await;
    assert!(reader.memory_bytes() < 320 << 20);
}

/// A sharded directory that leads on for ever where `name` would be: deeper than its hash has bits.
pub async fn endless_directory(author: &Author, name: &str) -> Entry {
    let fanout = Fanout::new(8).unwrap();
    let hash = NameHash::of(name);
    let (mut positions, mut place) = (Vec::new(), Some(Place::root(fanout)));
    while let Some(at) = place {
        positions.push(hash.position(at));
        place = at.below(hash.position(at));
    }
    let beyond = vec![0; 300];
    let mut entry = author.leaf(b"the end").await;
    for position in positions.into_iter().chain(beyond).rev() {
        let mut node = HamtNode::new(fanout);
        node.set(position, Some(Slot::Sub(entry)));
        entry = author.put(node.encode()).await;
    }
    entry
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_author_does_not_renew_is_served_on_with_a_warning_and_told_to_nobody() {
    let (author, image) = (Author::start().await, Image::small(260));
    let root = author.tree_of(&image).await;
    let reader = author.reader();
    author.publish_root(&root, 1).await;
    reader.serves("library/app", "1", &image).await;
    // From somebody who is connected it comes at once.
    author.publish_for(&root, 2, Duration::from_secs(15)).await;
    has_seen(&reader, 2).await;
    let warned = async {
        loop {
            let answer = reader.get("library/app/manifests/1").await;
            assert_eq!(answer.status(), reqwest::StatusCode::OK);
            if let Some(warning) = answer.headers().get("warning") {
                return (warning.to_str().unwrap().to_owned(), answer.headers().contains_key("age"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (warning, has_age) = tokio::time::timeout(2 * PATIENCE, warned).await.expect("a warning");
    assert!(warning.starts_with("110 ") && warning.contains("expired") && has_age, "{warning}");
    assert_eq!(reader.pull("library/app", "1").await.unwrap(), image);
    let status = reader.status();
    assert!(status.readonly[0].expired_for_s.is_some(), "{status:?}");
    assert_eq!(reader.log().matches("the record of this name has expired").count(), 1);

    let late = daemon().knows(&reader).reads(&author.name()).read_only().start();
    let answer = late.get("library/app/manifests/1").await;
    assert_eq!(answer.status(), reqwest::StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(late.status().readonly[0].sequence, None);

    author.publish_for(&root, 3, Duration::from_secs(3600)).await;
    has_seen(&reader, 3).await;
    let answer = reader.get("library/app/manifests/1").await;
    assert!(!answer.headers().contains_key("warning"), "its author is back");
}
