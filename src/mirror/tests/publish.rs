//! New roots into records: when they leave, and what keeps them back.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use libp2p::identity::Keypair;
use tokio::time::Instant;

use super::{Desk, Knows, grow, pass, push, until, until_within};
use crate::ipld::ipns::IpnsRecord;
use crate::mirror::PublishState;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn pushes_within_the_quiet_time_become_one_record() {
    let desk = Desk::new(Knows::Nothing);
    let (commits, publisher) = desk.publisher(true).await;
    for n in 0..5 {
        push(&commits, &format!("a/{n}")).await;
        pass(Duration::from_millis(100)).await;
    }
    let record = desk.network.takes(1).await;
    assert_eq!((record.sequence(), record.root()), (1, Some(commits.root())));
    pass(HOUR).await;
    assert_eq!(desk.network.puts().len(), 1);
    assert_eq!(publisher.status().state, PublishState::Published);
}

#[tokio::test(start_paused = true)]
async fn under_steady_pushes_a_record_leaves_every_three_seconds() {
    let desk = Desk::new(Knows::Nothing);
    let (commits, _publisher) = desk.publisher(true).await;
    let mut pushed_at = Vec::new();
    for n in 0..50 {
        pushed_at.push(desk.network.made.elapsed());
        push(&commits, &format!("a/{n}")).await;
        pass(Duration::from_millis(200)).await;
    }
    let puts = desk.network.puts();
    assert!(puts.len() >= 3, "{} records in 10 s", puts.len());
    let mut last = Duration::ZERO;
    for put in puts {
        let first = pushed_at.iter().find(|at| **at >= last).unwrap();
        assert!(put.after - *first <= Duration::from_secs(3), "{:?} after {first:?}", put.after);
        last = put.after;
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_is_told_of_while_one_before_it_is_put_and_is_then_published_once() {
    let desk = Desk::new(Knows::Nothing);
    let (commits, publisher) = desk.publisher(true).await;
    push(&commits, "a").await;
    until("it is out", || publisher.status().state == PublishState::Published).await;

    let turn = desk.network.turn.lock().await;
    push(&commits, "b").await;
    pass(HOUR).await;
    push(&commits, "c").await;
    let status = publisher.status();
    assert_eq!((status.root, status.state), (commits.root(), PublishState::Pending));

    // The command and the word of the new root wait for the publisher both.
    let release = async {
        pass(HOUR).await;
        drop(turn);
    };
    let (published, ()) = tokio::join!(publisher.publish_now(), release);
    let published = published.unwrap();
    assert_eq!((published.root, published.state), (commits.root(), PublishState::Published));
    pass(HOUR).await;
    assert_eq!(desk.network.taken().len(), 3);
    assert_eq!(publisher.status().state, PublishState::Published);
}

#[tokio::test(start_paused = true)]
async fn a_sequence_is_on_disk_before_its_record_leaves() {
    let desk = Desk::new(Knows::Nothing);
    let (commits, _publisher) = desk.publisher(true).await;
    for n in 1..=3 {
        push(&commits, &format!("a/{n}")).await;
        desk.network.takes(n).await;
    }
    for (n, put) in desk.network.puts().into_iter().enumerate() {
        let row = put.on_disk.unwrap();
        assert_eq!(row.sequence, n as u64 + 1);
        assert_eq!((row.root, row.bytes), (put.record.root().unwrap(), put.record.bytes().to_vec()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_nobody_takes_is_put_again_with_growing_pauses() {
    let desk = Desk::new(Knows::Nothing);
    desk.network.takes_records(false);
    let (commits, publisher) = desk.publisher(true).await;
    push(&commits, "a").await;
    until("nine tries were made", || desk.network.puts().len() >= 9).await;
    assert_eq!(publisher.status().state, PublishState::Pending);
    assert!(publisher.status().error.is_some());
    let tries: Vec<Duration> = desk.network.puts().into_iter().map(|put| put.after).collect();
    let pauses: Vec<u64> = tries.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);

    desk.network.takes_records(true);
    let record = desk.network.takes(1).await;
    assert_eq!(record.sequence(), 1, "a try is no new record");
    until("the status says so", || publisher.status().state == PublishState::Published).await;
    assert_eq!(publisher.status().error, None);
}

#[tokio::test(start_paused = true)]
async fn a_record_is_put_again_every_four_hours() {
    let desk = Desk::new(Knows::Nothing);
    let (commits, _publisher) = desk.publisher(true).await;
    push(&commits, "a").await;
    let first = desk.network.takes(1).await;
    for again in 1..=3 {
        let begun = Instant::now();
        until_within(6 * HOUR, "it is put again", || desk.network.taken().len() > again).await;
        assert!((3 * HOUR..=5 * HOUR).contains(&begun.elapsed()), "{:?}", begun.elapsed());
        let puts = desk.network.taken();
        assert_eq!(puts.len(), 1 + again);
        assert_eq!(puts[again].bytes(), first.bytes());
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_past_half_its_life_is_signed_anew() {
    for hours in [23, 1, -1] {
        let desk = Desk::new(Knows::Nothing);
        let root = grow(&desk.tree, &["a"]).await;
        desk.remember(&root, &desk.record(6, &root, hours));
        let (_commits, publisher) = desk.publisher(false).await;
        until("the newer one is out", || publisher.status().sequence == Some(7)).await;
        until("the newer one is out", || !desk.network.taken().is_empty()).await;
        pass(HOUR).await;
        let puts = desk.network.taken();
        assert_eq!(puts.len(), 1, "{hours} h were left");
        assert_eq!((puts[0].sequence(), puts[0].root()), (7, Some(root)));
        let day = Timestamp::now() + SignedDuration::from_hours(24);
        assert!(puts[0].valid_until() > day);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_key_publishes_no_empty_tree() {
    let desk = Desk::new(Knows::Nothing);
    let (_commits, publisher) = desk.publisher(true).await;
    pass(5 * HOUR).await;
    assert!(desk.network.puts().is_empty());
    assert_eq!(publisher.status().sequence, None);
}

#[tokio::test(start_paused = true)]
async fn an_older_key_without_a_tree_takes_over_what_the_network_has() {
    let desk = Desk::new(Knows::Nothing);
    let root = grow(&desk.far, &["theirs"]).await;
    desk.network.knows(Knows::Record(desk.record(7, &root, 40)));
    let (commits, _publisher) = desk.publisher(false).await;
    assert_eq!(commits.root(), root);
    assert_eq!(desk.state().root(desk.name()).unwrap(), Some(root));

    push(&commits, "ours").await;
    until("the push is out", || desk.network.taken().iter().any(|put| put.sequence() == 8)).await;
    assert_eq!(desk.network.taken().pop().unwrap().root(), Some(commits.root()));
    assert!(desk.tree.lookup(&commits.root(), "theirs").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_older_key_that_can_ask_nobody_takes_pushes_and_publishes_nothing() {
    let desk = Desk::new(Knows::Nobody);
    let begun = Instant::now();
    let (commits, publisher) = desk.publisher(false).await;
    assert!(begun.elapsed() <= Duration::from_secs(30));
    publisher.asked().await;
    assert!(begun.elapsed() <= Duration::from_secs(60));
    push(&commits, "ours").await;
    pass(HOUR).await;
    assert!(desk.network.puts().is_empty());
    assert_eq!(publisher.status().sequence, None);

    desk.network.knows(Knows::Nothing);
    let record = desk.network.takes(1).await;
    assert_eq!((record.sequence(), record.root()), (1, Some(commits.root())));
}

#[tokio::test(start_paused = true)]
async fn what_was_pushed_before_the_network_could_be_asked_never_replaces_what_it_has() {
    let desk = Desk::new(Knows::Nobody);
    let (commits, publisher) = desk.publisher(false).await;
    push(&commits, "ours").await;
    let ours = commits.root();
    let theirs = grow(&desk.far, &["theirs"]).await;
    desk.network.knows(Knows::Record(desk.record(3, &theirs, 40)));
    until("it is noticed", || publisher.status().state == PublishState::Blocked).await;
    pass(HOUR).await;
    assert_eq!(commits.root(), ours);
    assert!(desk.network.puts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_record_of_another_writer_stops_publishing_but_not_pushes() {
    let desk = Desk::new(Knows::Nothing);
    let (commits, publisher) = desk.publisher(true).await;
    push(&commits, "ours").await;
    desk.network.takes(1).await;

    let theirs = desk.record(9, &grow(&desk.far, &["theirs"]).await, 40);
    desk.updates.send(theirs).unwrap();
    until("it is noticed", || publisher.status().state == PublishState::Blocked).await;
    push(&commits, "more").await;
    pass(HOUR).await;
    assert_eq!(publisher.publish_now().await.unwrap().state, PublishState::Blocked);
    assert_eq!(desk.network.puts().len(), 1);
    let status = publisher.status();
    assert!(status.error.unwrap().contains("shoal name adopt"));
    assert_eq!(status.root, commits.root());

    let status = publisher.overwrite().await.unwrap();
    assert_eq!((status.state, status.sequence, status.error), (PublishState::Published, Some(10), None));
    assert_eq!(desk.network.taken().pop().unwrap().root(), Some(commits.root()));
    push(&commits, "again").await;
    assert_eq!(desk.network.takes(3).await.sequence(), 11);
}

#[tokio::test(start_paused = true)]
async fn a_second_writer_is_found_by_asking_and_stays_in_the_way_over_a_restart() {
    let mut desk = Desk::new(Knows::Nothing);
    let (commits, publisher) = desk.publisher(true).await;
    push(&commits, "ours").await;
    desk.network.takes(1).await;
    let theirs = desk.record(9, &grow(&desk.far, &["theirs"]).await, 40);
    desk.network.knows(Knows::Record(theirs.clone()));
    until("it is noticed", || publisher.status().state == PublishState::Blocked).await;
    assert_eq!(publisher.status().rival.unwrap().bytes(), theirs.bytes());
    desk.stop().await;

    // Nobody is there to tell of it any more.
    desk.network.knows(Knows::Nothing);
    let (commits, publisher) = desk.publisher(false).await;
    assert_eq!(publisher.status().state, PublishState::Blocked);
    publisher.asked().await;
    push(&commits, "more").await;
    pass(HOUR).await;
    assert_eq!(desk.network.puts().len(), 1);
    assert_eq!(publisher.overwrite().await.unwrap().sequence, Some(10));
    desk.stop().await;
    let (_commits, publisher) = desk.publisher(false).await;
    until("it is settled", || publisher.status().state == PublishState::Published).await;
}

#[tokio::test(start_paused = true)]
async fn another_value_with_the_same_sequence_is_another_writer() {
    let desk = Desk::new(Knows::Nothing);
    let (commits, publisher) = desk.publisher(true).await;
    push(&commits, "ours").await;
    let ours = desk.network.takes(1).await;
    desk.updates.send(desk.record(1, &commits.root(), 40)).unwrap();
    pass(HOUR).await;
    assert_eq!(publisher.status().state, PublishState::Published, "the same tree is no conflict");
    desk.updates.send(desk.record(1, &grow(&desk.far, &["theirs"]).await, 40)).unwrap();
    until("it is noticed", || publisher.status().state == PublishState::Blocked).await;
    assert_eq!(desk.network.taken().pop().unwrap().bytes(), ours.bytes());
}

#[tokio::test(start_paused = true)]
async fn a_newer_tree_that_lacks_something_of_ours_is_not_taken_over_at_a_start() {
    let desk = Desk::new(Knows::Nothing);
    let (ours, theirs) = (grow(&desk.tree, &["a", "b"]).await, grow(&desk.far, &["b", "c"]).await);
    desk.remember(&ours, &desk.record(3, &ours, 40));
    desk.network.knows(Knows::Record(desk.record(5, &theirs, 40)));
    let (commits, publisher) = desk.publisher(false).await;
    until("it is noticed", || publisher.status().state == PublishState::Blocked).await;
    assert_eq!(commits.root(), ours);
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_not_in_force_stops_nothing() {
    let desk = Desk::new(Knows::Nothing);
    let (commits, publisher) = desk.publisher(true).await;
    push(&commits, "ours").await;
    let ours = desk.network.takes(1).await;

    let theirs = grow(&desk.far, &["theirs"]).await;
    let until = Timestamp::now() + SignedDuration::from_hours(40);
    let stranger = Keypair::generate_ed25519();
    let foreign = IpnsRecord::sign(&stranger, &theirs, 9, until, Duration::from_secs(60)).unwrap();
    for harmless in [foreign, desk.record(9, &theirs, -1), desk.record(0, &theirs, 40), ours] {
        desk.updates.send(harmless).unwrap();
    }
    push(&commits, "more").await;
    assert_eq!(desk.network.takes(2).await.sequence(), 2);
    pass(HOUR).await;
    assert_eq!(publisher.status().state, PublishState::Published);
}

#[tokio::test(start_paused = true)]
async fn a_restored_backup_takes_over_what_was_published_since() {
    let desk = Desk::new(Knows::Nothing);
    let (old, new) = (grow(&desk.tree, &["old"]).await, grow(&desk.far, &["old", "new"]).await);
    desk.remember(&old, &desk.record(3, &old, 40));
    desk.network.knows(Knows::Record(desk.record(5, &new, 40)));
    let (commits, publisher) = desk.publisher(false).await;
    until("the newer tree is taken over", || commits.root() == new).await;
    until("its record too", || publisher.status().sequence == Some(5)).await;
    assert_eq!(desk.state().root(desk.name()).unwrap(), Some(new));

    push(&commits, "newest").await;
    until("the push is out", || desk.network.taken().iter().any(|put| put.sequence() == 6)).await;
    assert_eq!(desk.network.taken().pop().unwrap().root(), Some(commits.root()));
}

#[tokio::test(start_paused = true)]
async fn a_restored_backup_with_pushes_of_its_own_is_not_overwritten() {
    let desk = Desk::new(Knows::Nothing);
    let (old, new) = (grow(&desk.tree, &["old"]).await, grow(&desk.far, &["old", "new"]).await);
    let pushed = grow(&desk.tree, &["old", "pushed"]).await;
    desk.remember(&pushed, &desk.record(3, &old, 40));
    desk.network.knows(Knows::Record(desk.record(5, &new, 40)));
    let (commits, publisher) = desk.publisher(false).await;
    until("it is noticed", || publisher.status().state == PublishState::Blocked).await;
    pass(HOUR).await;
    assert_eq!(commits.root(), pushed);
    assert!(desk.network.taken().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_signed_before_a_crash_is_put_by_the_next_start() {
    let desk = Desk::new(Knows::Nobody);
    let root = grow(&desk.tree, &["a"]).await;
    let signed = desk.record(4, &root, 47);
    desk.remember(&root, &signed);
    let (_commits, publisher) = desk.publisher(false).await;
    desk.network.knows(Knows::Nothing);
    assert_eq!(desk.network.takes(1).await.bytes(), signed.bytes());
    pass(HOUR).await;
    assert_eq!(desk.network.taken().len(), 1);
    assert_eq!(publisher.status().state, PublishState::Published);
}

#[tokio::test(start_paused = true)]
async fn a_root_that_was_not_signed_yet_is_signed_at_the_end_and_put_at_the_start() {
    let mut desk = Desk::new(Knows::Nothing);
    let (commits, _publisher) = desk.publisher(true).await;
    push(&commits, "a").await;
    desk.stop().await;
    assert!(desk.network.puts().is_empty());
    let row = desk.state().own_record(&desk.name()).unwrap().unwrap();
    assert_eq!((row.sequence, row.root), (1, commits.root()));

    let (_commits, _publisher) = desk.publisher(false).await;
    assert_eq!(desk.network.takes(1).await.bytes(), &row.bytes);
}

#[tokio::test(start_paused = true)]
async fn behind_the_last_sequence_nothing_is_signed_and_pushes_are_kept() {
    let desk = Desk::new(Knows::Nothing);
    let root = grow(&desk.tree, &["old"]).await;
    let last = desk.record(u64::MAX, &root, 24);
    desk.remember(&root, &last);
    desk.network.knows(Knows::Record(last));
    let (commits, publisher) = desk.publisher(false).await;
    push(&commits, "new").await;
    let is_told = || publisher.status().error.is_some_and(|error| error.contains("a new key is needed"));
    until("it is told of", is_told).await;
    assert_eq!(publisher.status().sequence, Some(u64::MAX));
    assert_eq!(publisher.status().root, commits.root());
}
