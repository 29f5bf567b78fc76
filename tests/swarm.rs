//! Whole daemons on loopback: pulling by name, after the publisher is gone, and after it moved on.

mod common;

use std::time::{Duration, Instant};

use common::{Image, PATIENCE, daemon};
use reqwest::StatusCode;

#[tokio::test]
async fn an_image_is_pulled_by_the_name_of_its_publisher() {
    let publisher = daemon().start();
    let image = Image::small(1);
    publisher.push("library/app", "1", &image).await;
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).read_only().start();

    reader.serves("library/app", "1", &image).await;
    assert_eq!(reader.ipns, "");
    let refused = reader.client.post(reader.url("library/app/blobs/uploads/")).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_reader_passes_on_what_a_dead_publisher_left() {
    let publisher = daemon().start();
    let image = Image::small(2);
    publisher.push("library/app", "1", &image).await;
    let name = publisher.ipns.clone();
    let reader = daemon().knows(&publisher).reads(&name).read_only().start();
    reader.serves("library/app", "1", &image).await;

    publisher.kill();
    assert_eq!(reader.pull("library/app", "1").await.unwrap(), image);
    let late = daemon().knows(&reader).reads(&name).read_only().start();
    late.serves("library/app", "1", &image).await;
    let complaint = late
        .log()
        .lines()
        .find(|line| line.contains(" WARN ") || line.contains(" ERROR "))
        .map(str::to_owned);
    assert_eq!(complaint, None);
}

#[tokio::test]
async fn a_reader_follows_new_and_overwritten_tags() {
    let publisher = daemon().start();
    let (old, new) = (Image::small(3), Image::small(4));
    publisher.push("library/app", "1", &old).await;
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).read_only().start();
    reader.serves("library/app", "1", &old).await;

    publisher.push("library/app", "2", &new).await;
    publisher.push("library/app", "1", &new).await;
    reader.serves("library/app", "2", &new).await;
    reader.serves("library/app", "1", &new).await;
}

#[tokio::test]
async fn what_no_source_has_is_not_found_and_an_unknown_name_is_not() {
    let publisher = daemon().start();
    publisher.push("library/app", "1", &Image::new(5, &[10])).await;
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).read_only().start();
    reader.serves("library/app", "1", &Image::new(5, &[10])).await;
    assert_eq!(reader.get("library/app/manifests/2").await.status(), StatusCode::NOT_FOUND);

    let nobody = "k51qzi5uqu5dhw0vim1qjkzo4ddl00af1k7ellfca8qdnhoqfri0c5q69rr01e";
    let lost = daemon().knows(&publisher).reads(nobody).read_only().start();
    assert_eq!(lost.get("library/app/manifests/1").await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn acknowledged_pushes_survive_a_kill() {
    let mut daemon = daemon().start();
    for round in 0..5 {
        let image = Image::small(10 + round);
        daemon.push("library/app", &round.to_string(), &image).await;
        let name = daemon.ipns.clone();
        daemon = daemon.kill_and_restart();
        assert_eq!(daemon.ipns, name);
        assert!(daemon.ready_after < PATIENCE, "ready after {:?}", daemon.ready_after);
        for earlier in 0..=round {
            assert_eq!(
                daemon.pull("library/app", &earlier.to_string()).await.unwrap(),
                Image::small(10 + earlier)
            );
        }
    }
}

#[tokio::test]
async fn two_roots_are_one_view_in_the_order_of_the_config() {
    let (first, second) = (daemon().start(), daemon().start());
    let (ours, theirs) = (Image::new(20, &[100]), Image::new(21, &[100]));
    first.push("library/app", "both", &ours).await;
    second.push("library/app", "both", &theirs).await;
    second.push("library/app", "only", &theirs).await;
    let reader =
        daemon().knows(&first).knows(&second).reads(&first.ipns).reads(&second.ipns).read_only().start();

    reader.serves("library/app", "both", &ours).await;
    reader.serves("library/app", "only", &theirs).await;
    let tags: serde_json::Value = reader.get("library/app/tags/list").await.json().await.unwrap();
    assert_eq!(tags["tags"], serde_json::json!(["both", "only"]));
}

#[tokio::test]
async fn a_push_is_pulled_by_tag_at_a_connected_reader_at_once() {
    // A name whose root is served is looked up again after this long, at the soonest.
    const POLL_PAUSE_MIN: Duration = Duration::from_secs(45);
    let publisher = daemon().start();
    publisher.push("library/app", "0", &Image::new(30, &[100])).await;
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).read_only().start();
    reader.serves("library/app", "0", &Image::new(30, &[100])).await;

    let begun = Instant::now();
    for tag in 1..=5 {
        let image = Image::new(30 + tag, &[100]);
        publisher.push("library/app", &tag.to_string(), &image).await;
        reader.serves("library/app", &tag.to_string(), &image).await;
    }
    assert!(begun.elapsed() < POLL_PAUSE_MIN, "{:?}", begun.elapsed());
    for daemon in [&reader, &publisher] {
        // A record is put to whom we are connected as well, perhaps before they are seen on the topic.
        while daemon.status().node.pubsub_peers != Some(1) {
            assert!(begun.elapsed() < 2 * POLL_PAUSE_MIN, "{:?}\n{}", daemon.status(), daemon.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn pubsub_can_be_turned_off() {
    let publisher = daemon().start();
    publisher.push("library/app", "1", &Image::new(40, &[100])).await;
    let reader = daemon()
        .knows(&publisher)
        .reads(&publisher.ipns)
        .read_only()
        .env("REGISTRY_P2P_PUBSUB", "false")
        .start();
    reader.serves("library/app", "1", &Image::new(40, &[100])).await;
    assert_eq!(reader.status().node.pubsub_peers, None);
    assert_eq!(publisher.status().node.pubsub_peers, Some(0));
}
