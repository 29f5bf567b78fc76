//! What a reader brings here of a name before anybody asks for it, and what of that is left when the author is gone.

mod common;

use std::time::{Duration, Instant};

use common::name_server::{NameServer, link};
use common::{Daemon, Image, PATIENCE, daemon};
use reqwest::StatusCode;
use shoal::api::Replica;

const TAGS: u64 = 20;

/// An author with some tags, and the image that each is.
async fn author(seed: u64) -> (Daemon, impl Fn(u64) -> Image) {
    let image = move |tag: u64| Image::new(seed + tag, &[1000, 1_500_000]);
    let author = daemon().start();
    for tag in 0..TAGS {
        author.push("library/app", &tag.to_string(), &image(tag)).await;
    }
    (author, image)
}

fn reader(author: &Daemon, follow: &str) -> Daemon {
    daemon().knows(author).reads(&author.ipns).read_only().env("REGISTRY_STORAGE_IPFS_FOLLOW", follow).start()
}

/// Waits until the replica of a reader is as it should be.
async fn has(reader: &Daemon, what: &str, reached: impl Fn(&Replica) -> bool) -> Replica {
    let begun = Instant::now();
    loop {
        let replica = reader.status().readonly.swap_remove(0).replica;
        if reached(&replica) {
            return replica;
        }
        assert!(begun.elapsed() < 2 * PATIENCE, "never {what}: {replica:?}\n{}", reader.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn status_of(reader: &Daemon, tag: u64) -> StatusCode {
    reader.get(&format!("library/app/manifests/{tag}")).await.status()
}

/// Waits until the root that is served has all tags.
async fn lists_all(reader: &Daemon) {
    let begun = Instant::now();
    loop {
        let answer = reader.get("library/app/tags/list").await;
        let tags = answer.json::<serde_json::Value>().await.ok();
        if tags.is_some_and(|tags| tags["tags"].as_array().is_some_and(|tags| tags.len() as u64 == TAGS)) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "not all tags are listed\n{}", reader.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn every_tag_lists_and_resolves_when_the_author_is_gone() {
    let (author, image) = author(1000).await;
    let reader = reader(&author, "tags");
    lists_all(&reader).await;
    has(&reader, "whole", |replica| replica.whole).await;
    author.kill();
    let reader = reader.kill_and_restart();
    lists_all(&reader).await;
    for tag in 0..TAGS {
        assert_eq!(status_of(&reader, tag).await, StatusCode::OK, "tag {tag}");
        let digest = shoal::oci::Digest::sha256(&image(tag).manifest);
        let by_digest = reader.get(&format!("library/app/manifests/{digest}")).await;
        assert_eq!(by_digest.bytes().await.unwrap(), image(tag).manifest);
    }
    assert!(reader.pull("library/app", "3").await.is_err(), "no blob was brought");
}

#[tokio::test]
async fn every_blob_is_pulled_when_the_author_is_gone() {
    let (author, image) = author(2000).await;
    let reader = reader(&author, "all");
    let blobs = usize::try_from(4 * TAGS).unwrap();
    let replica = has(&reader, "whole", |replica| replica.whole && replica.blobs == blobs).await;
    assert_eq!(replica.blobs_held, blobs);
    // What is pushed while the author is there comes too.
    author.push("library/app", "new", &image(TAGS)).await;
    has(&reader, "whole again", |replica| replica.whole && replica.blobs == blobs + 4).await;
    author.kill();
    for tag in 0..TAGS {
        assert_eq!(reader.pull("library/app", &tag.to_string()).await.unwrap(), image(tag));
    }
    assert_eq!(reader.pull("library/app", "new").await.unwrap(), image(TAGS));
}

#[tokio::test]
async fn a_restart_goes_on_from_what_is_here() {
    let (author, image) = author(5000).await;
    let reader = reader(&author, "all");
    let blobs = usize::try_from(4 * TAGS).unwrap();
    has(&reader, "whole", |replica| replica.whole && replica.blobs == blobs).await;
    let walks = |reader: &Daemon| reader.log().matches("all of the root is here that is to be").count();
    let before = walks(&reader);
    let reader = reader.kill_and_restart();
    let replica = has(&reader, "whole at once", |replica| replica.whole).await;
    assert_eq!((replica.blobs, replica.blobs_held, replica.received_bytes), (blobs, blobs, 0));
    lists_all(&reader).await;
    assert_eq!(walks(&reader), before, "the tree was walked again");

    author.push("library/app", "new", &image(TAGS)).await;
    let replica = has(&reader, "whole again", |replica| replica.blobs == blobs + 4 && replica.whole).await;
    let new: u64 = image(TAGS).blobs.iter().map(|blob| blob.len() as u64).sum();
    let received_max = new + image(TAGS).manifest.len() as u64;
    assert!((1..=received_max).contains(&replica.received_bytes), "{replica:?}");
    author.kill();
    assert_eq!(reader.pull("library/app", "new").await.unwrap(), image(TAGS));
}

#[tokio::test]
async fn a_quota_keeps_further_blobs_out_and_takes_no_tag_away() {
    let (author, image) = author(3000).await;
    // More than a manifest and less than the images.
    let reader = daemon()
        .knows(&author)
        .reads(&author.ipns)
        .read_only()
        .env("REGISTRY_STORAGE_IPFS_FOLLOW", "all")
        .env("REGISTRY_STORAGE_IPFS_FOLLOWQUOTA", "64MiB")
        .start();
    let big = Image::new(3999, &[70_000_000]);
    author.push("library/app", "big", &big).await;
    let is_full = |error: &String| error.contains("storage.ipfs.followquota");
    let replica = has(&reader, "full", |replica| replica.error.as_ref().is_some_and(is_full)).await;
    assert!(!replica.whole && replica.blobs_held < replica.blobs);
    assert_eq!(reader.pull("library/app", "big").await.unwrap(), big, "on demand it comes all the same");
    assert_eq!(reader.pull("library/app", "1").await.unwrap(), image(1));
}

#[tokio::test]
async fn on_demand_nothing_is_brought() {
    let (author, image) = author(4000).await;
    let reader = reader(&author, "none");
    reader.serves("library/app", "1", &image(1)).await;
    let before = reader.status();
    assert_eq!((before.readonly[0].follow.as_str(), before.readonly[0].replica.whole), ("none", false));
    author.kill();
    assert_eq!(reader.pull("library/app", "1").await.unwrap(), image(1));
    assert_ne!(status_of(&reader, 7).await, StatusCode::OK);
}

#[tokio::test]
async fn a_domain_is_followed_to_where_its_owner_points_it() {
    let (a, b) = (daemon().start(), daemon().start());
    let (first, second, third) = (Image::small(5001), Image::small(5002), Image::small(5003));
    a.push("library/app", "1", &first).await;
    b.push("library/app", "1", &second).await;
    let name = |of: &str| link("_dnslink.registry.example", of.to_owned());
    // By another domain, as after a change of the owner's.
    let names = NameServer::start([
        name("/ipns/team.example"),
        link("_dnslink.team.example", format!("/ipns/{}", a.ipns)),
    ]);
    let reader = daemon().knows(&a).knows(&b).reads("registry.example").read_only();
    let reader = reader.env("REGISTRY_STORAGE_IPFS_NAMESERVER", &names.address).start();
    reader.serves("library/app", "1", &first).await;
    a.push("library/app", "1", &third).await;
    reader.serves("library/app", "1", &third).await;
    assert_eq!(reader.status().readonly[0].name, "registry.example");

    names.set(name(&format!("/ipns/{}", b.ipns)));
    let reader = reader.kill_and_restart();
    reader.serves("library/app", "1", &second).await;
    let root = b.status().own.unwrap().root;
    names.set(name(&format!("/ipfs/{root}/docker")));
    let reader = reader.kill_and_restart();
    reader.logs("the root of a published tree is expected").await;
    reader.serves("library/app", "1", &second).await;
    names.set(name(&format!("/ipfs/{root}")));
    let leads_here = "the domain leads here";
    let before = reader.log().matches(leads_here).count();
    let reader = reader.kill_and_restart();
    reader.logs_times(leads_here, before + 1).await;
    reader.serves("library/app", "1", &second).await;

    drop((a, b, names));
    let reader = reader.kill_and_restart();
    assert_eq!(reader.pull("library/app", "1").await.unwrap(), second, "without a name server too");
    let says = |reader: &Daemon| reader.status().readonly.swap_remove(0).error;
    let begun = Instant::now();
    while !says(&reader).is_some_and(|error| error.contains("no name server answered for registry.example")) {
        assert!(begun.elapsed() < PATIENCE, "{:?}\n{}", says(&reader), reader.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
