//! The name that a daemon publishes under: a second writer with the same key, and a key that is given up for a new one.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use common::{Daemon, Image, PATIENCE, daemon};
use shoal::api::{Adopted, Status};
use shoal::keystore::{KeyKind, Keystore};
use tempfile::TempDir;

/// Runs a command against the daemon of the same config.
fn shoal(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(arguments).arg("--config").arg(daemon.config()).output().unwrap()
}

/// What it prints, if it ends well.
fn out(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = shoal(daemon, arguments);
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), daemon.log());
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn reaches(daemon: &Daemon, what: &str, reached: impl Fn(&Status) -> bool) -> Status {
    let begun = Instant::now();
    loop {
        let status = daemon.status();
        if reached(&status) {
            return status;
        }
        assert!(begun.elapsed() < PATIENCE, "never {what}: {status:?}\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn has_state(daemon: &Daemon, state: &str) -> Status {
    reaches(daemon, state, |status| status.own.as_ref().is_some_and(|own| own.state == state)).await
}

/// A key as `shoal key export` writes it.
fn team_key() -> Vec<u8> {
    let folder = TempDir::new().unwrap();
    let keystore = Keystore::open(folder.path()).unwrap();
    keystore.generate("team", KeyKind::Ed25519).unwrap();
    keystore.export("team").unwrap().to_vec()
}

fn tags(answer: &serde_json::Value) -> Vec<&str> {
    answer["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_writer_that_another_one_is_ahead_of_stops_and_adopt_merges_the_two() {
    let image = |seed: u64| Image::new(5000 + seed, &[1000, 1_500_000]);
    let network = daemon().read_only().start();
    let first = daemon().knows(&network).writes_with("team", &team_key()).start();
    first.push("library/app", "first", &image(1)).await;
    first.push("library/app", "both", &image(2)).await;
    has_state(&first, "published").await;
    let key = shoal(&first, &["key", "export", "team"]).stdout;
    let second = daemon().knows(&first).writes_with("team", &key).start();
    assert_eq!(second.ipns, first.ipns);
    second.push("library/app", "second", &image(3)).await;
    second.push("library/app", "both", &image(4)).await;

    let own = has_state(&first, "blocked").await.own.unwrap();
    assert!(own.error.as_ref().unwrap().contains("shoal name adopt"), "{own:?}");
    assert!(own.other_writer.unwrap().value.starts_with("/ipfs/"));
    first.push("library/app", "late", &image(5)).await;
    assert!(!shoal(&first, &["name", "publish"]).status.success());
    let complaints = |daemon: &Daemon| daemon.log().matches("another writer published").count();
    assert_eq!(complaints(&first), 1);

    let theirs = format!("/ipfs/{}", has_state(&second, "published").await.own.unwrap().root);
    reaches(&first, "told of the last record", |status| {
        let other = status.own.as_ref().and_then(|own| own.other_writer.as_ref());
        other.is_some_and(|other| other.value == theirs)
    })
    .await;
    let first = first.kill_and_restart_with("REGISTRY_P2P_BOOTSTRAP", &format!("[{}]", second.address));
    has_state(&first, "blocked").await;
    assert_eq!(complaints(&first), 2, "once a start");
    reaches(&first, "connected", |status| status.node.peers > 0).await;
    let adopted: Adopted = serde_json::from_str(&out(&first, &["name", "adopt", "--json"])).unwrap();
    let [conflict] = adopted.conflicts.as_slice() else { panic!("{adopted:?}") };
    assert_eq!((conflict.tag.as_str(), adopted.missing_files), ("both", 0));
    has_state(&first, "published").await;

    // The second is behind now, and goes: all that it had is to be had of the first.
    has_state(&second, "blocked").await;
    let by_digest = conflict.theirs.clone();
    second.kill();
    let reader = daemon().knows(&first).reads(&first.ipns).read_only().start();
    for (tag, seed) in [("first", 1), ("second", 3), ("both", 2), ("late", 5)] {
        reader.serves("library/app", tag, &image(seed)).await;
    }
    assert_eq!(reader.pull("library/app", &by_digest).await.unwrap(), image(4));
    let listed = reader.get("library/app/tags/list").await.json().await.unwrap();
    assert_eq!(tags(&listed), ["both", "first", "late", "second"]);
}

#[tokio::test]
async fn a_writer_may_overwrite_and_the_other_stops_in_its_turn_and_loses_nothing() {
    let image = |seed: u64| Image::new(5100 + seed, &[1000]);
    let (key, network) = (team_key(), daemon().read_only().start());
    let first = daemon().knows(&network).writes_with("team", &key).start();
    first.push("library/app", "first", &image(1)).await;
    has_state(&first, "published").await;
    let second = daemon().knows(&first).writes_with("team", &key).start();
    second.push("library/app", "second", &image(2)).await;
    has_state(&first, "blocked").await;
    first.push("library/app", "third", &image(3)).await;
    assert!(out(&first, &["name", "overwrite"]).contains("sequence"));
    has_state(&second, "blocked").await;
    let reader = daemon().knows(&second).knows(&first).reads(&second.ipns).read_only().start();
    reader.serves("library/app", "third", &image(3)).await;
    assert!(reader.pull("library/app", "second").await.is_err());
    assert_eq!(second.pull("library/app", "second").await.unwrap(), image(2));
    out(&second, &["name", "adopt"]);
    for (tag, seed) in [("first", 1), ("second", 2), ("third", 3)] {
        reader.serves("library/app", tag, &image(seed)).await;
    }
}

#[tokio::test]
async fn readers_follow_a_name_to_the_one_it_was_given_up_for() {
    let image = |seed: u64| Image::new(5200 + seed, &[1000, 1_500_000]);
    let network = daemon().read_only().start();
    let publisher = daemon().knows(&network).writes_with("team", &team_key()).start();
    publisher.push("library/app", "1", &image(1)).await;
    let old = publisher.ipns.clone();
    let reader = daemon().knows(&publisher).reads(&old).read_only().start();
    reader.serves("library/app", "1", &image(1)).await;

    assert!(!shoal(&publisher, &["key", "rotate", "other"]).status.success(), "another key");
    let new = out(&publisher, &["key", "rotate", "team"]);
    assert_ne!(new, old);
    let keys = out(&publisher, &["key", "list"]);
    assert!(keys.contains(&format!("team\t{new}")) && keys.contains(&format!("team-old\t{old}")), "{keys}");
    let own = has_state(&publisher, "published").await.own.unwrap();
    assert_eq!((&own.name, &own.former_names), (&new, &vec![old.clone()]));

    publisher.push("library/app", "2", &image(2)).await;
    reader.serves("library/app", "2", &image(2)).await;
    let moved = reaches(&reader, "moved", |status| status.readonly[0].moved_to.is_some()).await;
    assert_eq!(moved.readonly[0].moved_to.as_ref(), Some(&new));
    assert!(out(&reader, &["status"]).contains(&format!("has moved to {new}")));
    reader.logs("this name was given up for another one").await;

    let publisher = publisher.kill_and_restart();
    assert_eq!(publisher.ipns, new);
    publisher.kill();
    // One that knows the old name only, and nobody but the reader.
    let late = daemon().knows(&reader).reads(&old).read_only().start();
    late.serves("library/app", "2", &image(2)).await;
    let by_new_name = daemon().knows(&reader).reads(&new).read_only().start();
    by_new_name.serves("library/app", "1", &image(1)).await;
}

#[tokio::test]
async fn a_reader_alone_keeps_a_record_alive_after_its_own_restart() {
    let image = Image::new(5300, &[1000]);
    let author = daemon().start();
    author.push("library/app", "1", &image).await;
    let name = author.ipns.clone();
    let reader = daemon().knows(&author).reads(&name).read_only().start();
    reader.serves("library/app", "1", &image).await;
    author.kill();
    let reader = reader.kill_and_restart();
    let late = daemon().knows(&reader).reads(&name).read_only().start();
    late.serves("library/app", "1", &image).await;
}
