//! Records that are said on the topic of a name, or fetched by who comes to it: good ones alone change something, and
//! pass on; floods of others hold up nobody. A record whose root is served is looked up again after three quarters of a
//! minute at the soonest: later than these tests wait.

use futures::AsyncWriteExt;
use libp2p::StreamProtocol;
use libp2p::identity::Keypair;
use prost::Message;
use shoal::ipld::Cid;
use shoal::ipld::ipns::IpnsName;

use crate::author::{Author, has_seen, has_taken};
use crate::common::{Daemon, Image};
use crate::forge::{Forged, name_of};
use crate::gossiper::{FetchAnswer, Gossiper, NOT_FOUND, topic};
use crate::peer::{Peer, peer_of};

const GOSSIPSUB: StreamProtocol = StreamProtocol::new("/meshsub/1.1.0");
const MEMORY_BYTES_MAX: u64 = 320 << 20;

/// An author, a daemon that serves his tree from record 5, the tree's root, and one that is to follow it.
struct Scene {
    author: Author,
    reader: Daemon,
    name: IpnsName,
    root: Cid,
    next: Cid,
}

impl Scene {
    async fn set(seed: u64) -> Self {
        let (author, image) = (Author::start().await, Image::new(seed, &[1000]));
        let root = author.tree_of(&image).await;
        let next = author.edit(&root, "docker/note", author.leaf(b"more").await).await;
        let reader = author.reader();
        author.publish_root(&root, 5).await;
        reader.serves("library/app", "1", &image).await;
        has_taken(&reader, &root).await;
        Self { name: name_of(&author.key), author, reader, root, next }
    }

    fn good(&self, sequence: u64) -> Vec<u8> {
        Forged::new(&format!("/ipfs/{}", self.next), sequence).sign(&self.author.key)
    }

    /// What nobody is to believe.
    fn spoiled(&self, n: u64) -> Vec<u8> {
        let (ours, stranger) = (&self.author.key, Keypair::generate_ed25519());
        let good = Forged::new(&format!("/ipfs/{}", self.next), 1000 + n);
        match n % 7 {
            0 => good.sign(&stranger),
            1 => Forged { hours: -1, ..good }.sign(ours),
            2 => Forged { sequence: n % 5, ..good }.sign(ours),
            3 => Forged { padding: 10 * 1024, ..good }.sign(ours),
            4 => Forged { padding: 200 * 1024, ..good }.sign(ours),
            5 => n.to_be_bytes().repeat(100),
            _ => Vec::new(),
        }
    }

    async fn meets(&self) -> Gossiper {
        let mut peer = Gossiper::start(&self.name);
        peer.meets(&self.reader).await;
        peer
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_said_is_followed_at_once_and_passed_on() {
    let scene = Scene::set(300).await;
    let (peer, mut other) = (scene.meets().await, scene.meets().await);
    let record = scene.good(6);
    peer.say(record.clone()).await;
    has_taken(&scene.reader, &scene.next).await;
    assert_eq!(other.hears().await, record);
    assert_eq!(scene.reader.status().node.pubsub_peers, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_to_the_topic_is_asked_and_is_answered() {
    let scene = Scene::set(301).await;
    let (key, good) = (scene.name.routing_key(), FetchAnswer { status: 0, data: scene.good(7) });
    let mut peer = scene.meets().await;
    assert_eq!(peer.answers(&good).await, key);
    has_taken(&scene.reader, &scene.next).await;
    assert_eq!(peer.fetch(&scene.reader, &key).await.unwrap(), good);

    // The same as said by somebody who knows less, or lies: nothing changes.
    for answer in [
        FetchAnswer { status: NOT_FOUND, data: Vec::new() },
        FetchAnswer { status: 9, data: scene.good(99) },
        FetchAnswer { status: 0, data: scene.good(6) },
        FetchAnswer { status: 0, data: vec![0xff; 100_000] },
        FetchAnswer { status: 0, data: Forged::new("/ipfs/x", 99).sign(&Keypair::generate_ed25519()) },
    ] {
        let mut peer = scene.meets().await;
        peer.answers(&answer).await;
        assert_eq!(peer.fetch(&scene.reader, &key).await.unwrap(), good, "after status {}", answer.status);
    }
    assert_eq!(scene.reader.status().readonly[0].sequence, Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_bad_records_keeps_no_good_one_out() {
    const FLOOD: u64 = 3000;
    let scene = Scene::set(302).await;
    let (flooder, honest, mut witness) = (scene.meets().await, scene.meets().await, scene.meets().await);
    for n in 0..FLOOD {
        flooder.say(scene.spoiled(n)).await;
    }
    let record = scene.good(6);
    honest.say(record.clone()).await;
    has_taken(&scene.reader, &scene.next).await;
    assert_eq!(witness.hears().await, record, "nothing else is passed on");
    assert!(witness.heard.try_recv().is_err());
    assert_eq!(scene.reader.status().readonly[0].sequence, Some(6));
    assert!(scene.reader.memory_bytes() < MEMORY_BYTES_MAX, "{} MiB", scene.reader.memory_bytes() >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_record_over_and_over_is_passed_on_once() {
    const FLOOD: u64 = 3000;
    let scene = Scene::set(303).await;
    let (flooder, mut witness) = (scene.meets().await, scene.meets().await);
    let (record, next) = (scene.good(6), scene.good(7));
    for _ in 0..FLOOD {
        flooder.say(record.clone()).await;
    }
    assert_eq!(witness.hears().await, record);
    let honest = scene.meets().await;
    honest.say(next.clone()).await;
    assert_eq!(witness.hears().await, next);
    assert!(witness.heard.try_recv().is_err());
    assert!(scene.reader.memory_bytes() < MEMORY_BYTES_MAX, "{} MiB", scene.reader.memory_bytes() >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn values_and_sequences_without_sense_leave_the_old_root() {
    let scene = Scene::set(304).await;
    let peer = scene.meets().await;
    let values = ["", "/ipfs/", "/ipns/self", "\u{0}", &"x".repeat(9000)];
    let absurd = (6..).zip(values).chain([(u64::MAX, "/ipfs/bafkqaaa/../..")]);
    for (sequence, value) in absurd {
        peer.say(Forged::new(value, sequence).sign(&scene.author.key)).await;
        has_seen(&scene.reader, sequence).await;
        let followed = &scene.reader.status().readonly[0];
        assert_eq!(followed.root, Some(scene.root.to_string()), "after {value:?}");
        assert!(followed.error.is_some(), "{value:?} is told of");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_fetches_hold_up_nobody() {
    const FETCHES: usize = 100_000;
    const AT_ONCE: usize = 64;
    /// Those of somebody else that are answered meanwhile: were they in turn with those of the flood, it would be ten times
    /// as many.
    const HONEST_MIN: usize = FETCHES / AT_ONCE / 10;
    let scene = Scene::set(305).await;
    let (flooder, honest) = (scene.meets().await, scene.meets().await);
    let key = |n: usize| [b"/ipns/".as_slice(), &n.to_be_bytes()].concat();
    let (scene, flooder) = (&scene, &flooder);
    let flood = async {
        for first in (0..FETCHES).step_by(AT_ONCE) {
            let asking = (first..first + AT_ONCE).map(|n| async move {
                let answer = flooder.fetch(&scene.reader, &key(n)).await;
                assert!(answer.is_none_or(|answer| answer.status == NOT_FOUND && answer.data.is_empty()));
            });
            futures::future::join_all(asking).await;
        }
    };
    let mut answered = 0;
    let asking = async {
        loop {
            let answer = honest.fetch(&scene.reader, &scene.name.routing_key()).await.unwrap();
            assert_eq!(answer.status, 0);
            answered += 1;
        }
    };
    tokio::select! {
        () = flood => (),
        () = asking => unreachable!("it asks for ever"),
    }
    assert!(answered >= HONEST_MIN, "{answered} fetches were answered beside {FETCHES}");
    honest.say(scene.good(6)).await;
    has_taken(&scene.reader, &scene.next).await;
    assert!(scene.reader.memory_bytes() < MEMORY_BYTES_MAX, "{} MiB", scene.reader.memory_bytes() >> 20);
}

/// A message of gossipsub, and what carries it (libp2p specification `pubsub`).
#[derive(Clone, PartialEq, Message)]
struct Said {
    #[prost(bytes = "vec", tag = "1")]
    from: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    number: Vec<u8>,
    #[prost(string, tag = "4")]
    topic: String,
    #[prost(bytes = "vec", tag = "5")]
    signature: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Rpc {
    #[prost(message, repeated, tag = "2")]
    publish: Vec<Said>,
}

impl Said {
    /// What `author` says as the message of this number, by which others know it.
    fn by(author: &Keypair, number: u64, topic: String, data: Vec<u8>) -> Self {
        let from = author.public().to_peer_id().to_bytes();
        let unsigned =
            Self { from, data, number: number.to_be_bytes().to_vec(), topic, signature: Vec::new() };
        let signed = [b"libp2p-pubsub:".as_slice(), &unsigned.encode_to_vec()].concat();
        Self { signature: author.sign(&signed).unwrap(), ..unsigned }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_message_is_taken_by_no_forgery_and_stands_for_one_record() {
    let scene = Scene::set(306).await;
    let (honest, mut witness) = (scene.meets().await, scene.meets().await);
    let (peer, author) = (Peer::serving(vec![GOSSIPSUB]).await, Keypair::generate_ed25519());
    peer.meets(&scene.reader).await;
    let (_, mut stream) = peer.control.open(peer_of(&scene.reader), vec![GOSSIPSUB]).await.unwrap();
    let said = |data: Vec<u8>| Said::by(&author, 1, topic(&scene.name), data);
    // The number that the author will use next, in his name: what he says with it is heard all the same.
    let forged = Said { data: scene.good(9), ..said(scene.good(6)) };
    let first = said(scene.good(6));
    for message in [forged, first.clone()] {
        let rpc = Rpc { publish: vec![message] }.encode_length_delimited_to_vec();
        stream.write_all(&rpc).await.unwrap();
        stream.flush().await.unwrap();
    }
    has_taken(&scene.reader, &scene.next).await;
    assert_eq!(witness.hears().await, first.data);
    // Other records under the same id, in one message and in many, are none at all.
    let again: Vec<Said> = (7..60).map(|sequence| said(scene.good(sequence))).collect();
    for publish in again.chunks(10) {
        let rpc = Rpc { publish: publish.to_vec() }.encode_length_delimited_to_vec();
        stream.write_all(&rpc).await.unwrap();
        stream.flush().await.unwrap();
    }
    let record = scene.good(60);
    honest.say(record.clone()).await;
    assert_eq!(witness.hears().await, record, "nothing came in between");
    has_seen(&scene.reader, 60).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_records_with_one_sequence_all_keep_the_one_that_lives_longer() {
    let scene = Scene::set(307).await;
    let other = scene.author.reader();
    other.serves("library/app", "1", &Image::new(307, &[1000])).await;
    let of = |root: &Cid, hours: i64| {
        Forged { hours, ..Forged::new(&format!("/ipfs/{root}"), 6) }.sign(&scene.author.key)
    };
    let (longer, shorter) = (of(&scene.next, 48), of(&scene.root, 12));
    // To one of them in this order, to the other in that.
    for (reader, records) in [(&scene.reader, [&longer, &shorter]), (&other, [&shorter, &longer])] {
        let mut peer = Gossiper::start(&scene.name);
        peer.meets(reader).await;
        for record in records.into_iter().cycle().take(200) {
            peer.say(record.clone()).await;
        }
        has_taken(reader, &scene.next).await;
        assert_eq!(reader.status().readonly[0].sequence, Some(6));
    }
    // Whoever asks is told that one, and one that is honest goes before both.
    let peer = scene.meets().await;
    let told = peer.fetch(&scene.reader, &scene.name.routing_key()).await.unwrap();
    assert_eq!(told.data, longer);
    peer.say(Forged::new(&format!("/ipfs/{}", scene.root), 7).sign(&scene.author.key)).await;
    has_taken(&scene.reader, &scene.root).await;
    has_seen(&scene.reader, 7).await;
}
