//! Names that are followed: which root is served, and what of it outlives a restart.

#[path = "../../../tests/common/name_server.rs"]
#[allow(unreachable_pub, reason = "the tests of whole daemons share it")]
mod name_server;

use std::time::Duration;

use cid::Cid;
use jiff::SignedDuration;
use libp2p::identity::Keypair;
use name_server::{NameServer, link};

use super::{Desk, Knows, grow, pass, until, until_within};
use crate::config::NamingConfig;
use crate::ipld::TreeName;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::mirror::MirrorError;
use crate::mirror::roots::{Follow, LINK_TTL};

const HOUR: Duration = Duration::from_secs(3600);

async fn serves(follow: &Follow, root: Cid) {
    until("the root is served", || follow.status().root == Some(root)).await;
    assert_eq!(follow.roots().await.unwrap()[0], root);
}

#[tokio::test(start_paused = true)]
async fn a_newer_root_is_served_once_its_directories_are_here() {
    let desk = Desk::new(Knows::Nothing);
    let (old, new) = (grow(&desk.far, &["a/old"]).await, grow(&desk.far, &["a/old", "a/new"]).await);
    let directory = desk.far.lookup(&new, "a").await.unwrap().unwrap().cid;
    desk.network.knows(Knows::Record(desk.record(1, &old, 24)));
    let follow = desk.follow().await;
    serves(&follow, old).await;

    desk.network.hides(&[directory]);
    desk.network.knows(Knows::Record(desk.record(2, &new, 24)));
    until("the newer record is known", || follow.status().sequence == Some(2)).await;
    pass(HOUR).await;
    let status = follow.status();
    assert_eq!(status.root, Some(old));
    assert!(status.error.unwrap().contains(&directory.to_string()));
    let row = desk.state().followed(&desk.name().into()).unwrap().unwrap();
    assert_eq!(row.root, Some(old), "what is served is what is on disk");

    desk.network.hides(&[]);
    serves(&follow, new).await;
    assert_eq!(follow.status().error, None);
    assert_eq!(follow.roots().await.unwrap(), [new, old]);
}

#[tokio::test(start_paused = true)]
async fn an_older_or_expired_record_changes_nothing() {
    let desk = Desk::new(Knows::Nothing);
    let (good, bad) = (grow(&desk.far, &["good"]).await, grow(&desk.far, &["bad"]).await);
    desk.network.knows(Knows::Record(desk.record(5, &good, 24)));
    let follow = desk.follow().await;
    serves(&follow, good).await;
    for spoiled in [desk.record(4, &bad, 24), desk.record(9, &bad, -1), desk.record(5, &bad, 1)] {
        desk.updates.send(spoiled.clone()).unwrap();
        desk.network.knows(Knows::Record(spoiled));
        pass(Duration::from_secs(60)).await;
        assert_eq!((follow.status().root, follow.status().sequence), (Some(good), Some(5)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_a_peer_puts_is_followed_at_once() {
    let desk = Desk::new(Knows::Nobody);
    let root = grow(&desk.far, &["a"]).await;
    let follow = desk.follow().await;
    until("somebody was asked in vain", || follow.status().error.is_some()).await;
    let before = tokio::time::Instant::now();
    desk.updates.send(desk.record(1, &root, 24)).unwrap();
    serves(&follow, root).await;
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn the_last_root_is_served_after_a_restart_without_any_network() {
    let mut desk = Desk::new(Knows::Nothing);
    let root = grow(&desk.far, &["a/b"]).await;
    let record = desk.record(3, &root, 24);
    desk.network.knows(Knows::Record(record.clone()));
    let follow = desk.follow().await;
    serves(&follow, root).await;
    desk.stop().await;

    desk.network.knows(Knows::Nobody);
    desk.network.is_reachable(false);
    let follow = desk.follow().await;
    assert_eq!(follow.roots().await.unwrap(), [root]);
    assert_eq!(follow.status().sequence, Some(3));
    assert!(desk.tree.lookup(&root, "a/b").await.unwrap().is_some());
    // And others are given the record from the start.
    let put = desk.network.takes(1).await;
    assert_eq!(put.bytes(), record.bytes());
}

#[tokio::test(start_paused = true)]
async fn a_root_that_could_not_be_had_before_a_restart_is_had_after_it() {
    let mut desk = Desk::new(Knows::Nothing);
    let (old, new) = (grow(&desk.far, &["old"]).await, grow(&desk.far, &["new"]).await);
    desk.network.knows(Knows::Record(desk.record(1, &old, 24)));
    let follow = desk.follow().await;
    serves(&follow, old).await;
    desk.network.hides(&[new]);
    desk.network.knows(Knows::Record(desk.record(2, &new, 24)));
    until("the newer record is known", || follow.status().sequence == Some(2)).await;
    desk.stop().await;

    desk.network.hides(&[]);
    desk.network.knows(Knows::Nobody);
    let follow = desk.follow().await;
    assert_eq!(follow.roots().await.unwrap(), [old]);
    serves(&follow, new).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_is_kept_alive_every_four_hours_while_it_is_valid() {
    let desk = Desk::new(Knows::Nothing);
    let root = grow(&desk.far, &["a"]).await;
    let record = desk.record(1, &root, 24);
    desk.network.knows(Knows::Record(record.clone()));
    let follow = desk.follow().await;
    serves(&follow, root).await;
    pass(Duration::from_secs(60)).await;
    let at_first = desk.network.taken().len();
    assert_eq!(at_first, 1, "soon after it is known");
    for again in 1..=3 {
        let begun = tokio::time::Instant::now();
        until_within(6 * HOUR, "it is put again", || desk.network.taken().len() >= at_first + again).await;
        assert!((2 * HOUR..=5 * HOUR).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
    assert!(desk.network.taken().iter().all(|put| put.bytes() == record.bytes()));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_expired_is_told_of_and_not_given_to_others_and_its_tree_is_served_on() {
    let mut desk = Desk::new(Knows::Nothing);
    let root = grow(&desk.far, &["a"]).await;
    let record = desk.record(1, &root, 9);
    desk.network.knows(Knows::Record(record));
    let follow = desk.follow().await;
    serves(&follow, root).await;
    assert_eq!((follow.status().expired_for, follow.age()), (None, None));

    until_within(10 * HOUR, "it has expired", || follow.status().expired_for.is_some()).await;
    serves(&follow, root).await;
    let age = follow.age().unwrap();
    assert!(age.stale && age.since_confirmed < HOUR, "{age:?}");
    let puts = desk.network.puts().len();
    pass(12 * HOUR).await;
    assert_eq!(desk.network.puts().len(), puts, "nobody is given it any more");
    assert!(follow.age().unwrap().since_confirmed >= 11 * HOUR);
    desk.stop().await;

    let follow = desk.follow().await;
    assert_eq!(follow.roots().await.unwrap(), [root]);
    assert!(follow.age().unwrap().stale);
    pass(12 * HOUR).await;
    assert_eq!(desk.network.puts().len(), puts);
    let until = super::now() + SignedDuration::from_hours(48);
    let ttl = Duration::from_secs(60);
    desk.network.knows(Knows::Record(IpnsRecord::sign(&desk.key, &root, 2, until, ttl).unwrap()));
    super::until("its author is back", || follow.age().is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_given_up_is_followed_to_the_next() {
    let mut desk = Desk::new(Knows::Nothing);
    let (old, new) = (grow(&desk.far, &["a"]).await, grow(&desk.far, &["a", "b"]).await);
    desk.network.knows(Knows::Record(desk.record(1, &old, 24)));
    let follow = desk.follow().await;
    serves(&follow, old).await;

    let next = Keypair::generate_ed25519();
    let next_name = IpnsName::from_peer_id(next.public().to_peer_id());
    let until = super::now() + SignedDuration::from_hours(24);
    let ttl = Duration::from_secs(60);
    let pointer = IpnsRecord::sign_pointer(&desk.key, &next_name, 2, until, ttl).unwrap();
    let (first, second) = (
        IpnsRecord::sign(&next, &old, 1, until, ttl).unwrap(),
        IpnsRecord::sign(&next, &new, 2, until, ttl).unwrap(),
    );
    desk.network.knows_also(first);
    desk.updates.send(pointer.clone()).unwrap();
    super::until("the move is known", || follow.status().moved_to == Some(next_name)).await;
    assert_eq!(follow.status().root, Some(old), "meanwhile what was served is");
    desk.updates.send(second.clone()).unwrap();
    serves(&follow, new).await;
    desk.stop().await;

    desk.network.knows(Knows::Nobody);
    desk.network.is_reachable(false);
    let follow = desk.follow().await;
    assert_eq!((follow.roots().await.unwrap(), follow.status().moved_to), (vec![new], Some(next_name)));
    super::until("both are given to others", || {
        let puts = desk.network.puts();
        [&pointer, &second].iter().all(|wanted| puts.iter().any(|put| put.record.bytes() == wanted.bytes()))
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn names_that_lead_in_a_circle_serve_nothing_and_cost_nothing() {
    let desk = Desk::new(Knows::Nothing);
    let next = Keypair::generate_ed25519();
    let next_name = IpnsName::from_peer_id(next.public().to_peer_id());
    let until = super::now() + SignedDuration::from_hours(24);
    let ttl = Duration::from_secs(60);
    desk.network
        .knows(Knows::Record(IpnsRecord::sign_pointer(&desk.key, &next_name, 1, until, ttl).unwrap()));
    desk.network.knows_also(IpnsRecord::sign_pointer(&next, &desk.name(), 1, until, ttl).unwrap());
    let follow = desk.follow().await;
    let says_so = || follow.status().error.is_some_and(|error| error.contains("circle"));
    super::until("it is told of", says_so).await;
    pass(HOUR).await;
    assert_eq!(follow.status().root, None);
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_knows_is_not_an_empty_tree() {
    let desk = Desk::new(Knows::Nothing);
    let follow = desk.follow().await;
    assert!(matches!(follow.roots().await, Err(MirrorError::Unresolved(name)) if name == desk.name().into()));
}

/// Moves the clock on at once. It does not stand still before and after: it would run ahead of what comes from a socket.
async fn leap(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_domain_that_leads_elsewhere_is_followed_there_without_a_restart() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let desk = Desk::new(Knows::Nothing);
    let [first, second, third] = [grow(&desk.far, &["1"]), grow(&desk.far, &["2"]), grow(&desk.far, &["3"])];
    let (first, second, third) = tokio::join!(first, second, third);
    let next = Keypair::generate_ed25519();
    let (until, ttl) = (super::now() + SignedDuration::from_hours(24), Duration::from_secs(60));
    desk.network.knows(Knows::Record(desk.record(1, &first, 24)));
    desk.network.knows_also(IpnsRecord::sign(&next, &second, 1, until, ttl).unwrap());
    let leads_to = |path: String| link("_dnslink.team.example", path);
    let names = NameServer::start([leads_to(format!("/ipns/{}", desk.name()))]);
    let naming = NamingConfig { name_server: Some(names.address.parse().unwrap()), eth_node: None };
    let follow = desk.follow_by(&naming, TreeName::Domain("team.example".parse().unwrap())).await;
    let serves = async |root| {
        until_within(PATIENCE, "the root is served", || follow.status().root == Some(root)).await;
    };
    serves(first).await;

    let next = IpnsName::from_peer_id(next.public().to_peer_id());
    for (path, root) in [(format!("/ipns/{next}"), second), (format!("/ipfs/{third}"), third)] {
        names.set(leads_to(path));
        // A poll may come a quarter late.
        leap(LINK_TTL * 5 / 4).await;
        serves(root).await;
    }
}
