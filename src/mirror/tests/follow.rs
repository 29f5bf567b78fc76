//! Names that are followed: which root is served, and what of it outlives a restart.

use std::time::Duration;

use cid::Cid;

use super::{Desk, Knows, grow, pass, until};
use crate::mirror::MirrorError;
use crate::mirror::roots::Follow;

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
    let row = desk.state().followed(&desk.name()).unwrap().unwrap();
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
    for again in 1..=3 {
        pass(4 * HOUR).await;
        assert_eq!(desk.network.taken().len(), at_first + again);
    }
    assert!(desk.network.taken().iter().all(|put| put.bytes() == record.bytes()));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_nobody_knows_is_not_an_empty_tree() {
    let desk = Desk::new(Knows::Nothing);
    let follow = desk.follow().await;
    assert!(matches!(follow.roots().await, Err(MirrorError::Unresolved(name)) if name == desk.name()));
}
