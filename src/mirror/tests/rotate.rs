//! A name that is given up for that of a new key: what is on disk, what is put, and for how long.

use std::time::Duration;

use libp2p::identity::Keypair;

use super::{Desk, Knows, grow, pass, push, until, until_within};
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::mirror::PublishState;

const HOUR: Duration = Duration::from_secs(3600);

fn name(key: &Keypair) -> IpnsName {
    IpnsName::from_peer_id(key.public().to_peer_id())
}

/// The last record that was taken for a name.
fn last(desk: &Desk, name: &IpnsName) -> Option<IpnsRecord> {
    desk.network.taken().into_iter().rev().find(|record| record.name() == name)
}

#[tokio::test(start_paused = true)]
async fn the_tree_is_published_under_the_new_name_and_the_old_one_leads_there() {
    let mut desk = Desk::new(Knows::Nothing);
    let (commits, publisher) = desk.publisher(true).await;
    push(&commits, "a").await;
    desk.network.takes(1).await;
    let (old, second, third) = (desk.name(), Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let status = publisher.rotate(second.clone()).await.unwrap();
    assert_eq!((status.name, status.former), (name(&second), vec![old]));
    until("both are out", || last(&desk, &name(&second)).is_some() && last(&desk, &old).is_some()).await;
    let pointer = last(&desk, &old).unwrap();
    assert_eq!((pointer.sequence(), pointer.leads_to()), (2, Some(name(&second))));
    assert_eq!(last(&desk, &name(&second)).unwrap().root(), Some(commits.root()));

    push(&commits, "b").await;
    until("pushes go under the new name", || {
        last(&desk, &name(&second)).is_some_and(|record| record.root() == Some(commits.root()))
    })
    .await;
    publisher.rotate(third.clone()).await.unwrap();
    until("the first leads to the last", || {
        last(&desk, &old).is_some_and(|record| record.leads_to() == Some(name(&third)))
    })
    .await;
    desk.stop().await;

    let before = desk.network.taken().len();
    let root = commits.root();
    let (commits, publisher) = desk.publisher_with(third, vec![desk.key.clone(), second], false).await;
    assert_eq!((commits.root(), publisher.status().former.len()), (root, 2));
    until("all three are put by the next start", || desk.network.taken().len() >= before + 3).await;
    let before = desk.network.taken().len();
    until_within(6 * HOUR, "and again", || desk.network.taken().len() >= before + 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_writer_publishes_under_is_not_given_up() {
    let desk = Desk::new(Knows::Nothing);
    let (commits, publisher) = desk.publisher(true).await;
    push(&commits, "ours").await;
    desk.network.takes(1).await;
    desk.updates.send(desk.record(9, &grow(&desk.far, &["theirs"]).await, 40)).unwrap();
    until("it is noticed", || publisher.status().state == PublishState::Blocked).await;
    assert!(publisher.rotate(Keypair::generate_ed25519()).await.is_err());
    assert_eq!(publisher.status().name, desk.name());
    assert_eq!(desk.state().former_names().unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn the_old_key_alone_publishes_nothing_over_the_last_record() {
    let mut desk = Desk::new(Knows::Nothing);
    let (commits, publisher) = desk.publisher(true).await;
    push(&commits, "a").await;
    desk.network.takes(1).await;
    publisher.rotate(Keypair::generate_ed25519()).await.unwrap();
    until("the last record is out", || last(&desk, &desk.name()).is_some_and(|last| last.sequence() == 2))
        .await;
    desk.stop().await;

    desk.network.knows_also(last(&desk, &desk.name()).unwrap());
    let (commits, publisher) = desk.publisher(false).await;
    push(&commits, "b").await;
    until("it is in the way", || publisher.status().state == PublishState::Blocked).await;
    pass(HOUR).await;
    assert_eq!(last(&desk, &desk.name()).unwrap().sequence(), 2);
    assert!(publisher.status().error.unwrap().contains("given up"));
}
