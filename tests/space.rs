//! Space comes back, and nothing that somebody needs goes with it. Uploads go on after a restart.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{Daemon, Image, PATIENCE, daemon, random_bytes};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use shoal::oci::{Algorithm, Digest};

const REPO: &str = "library/app";
const MIB: usize = 1 << 20;

/// Runs `shoal COMMAND --json` against the daemon.
fn ask(daemon: &Daemon, command: &str) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_shoal"))
        .args([command, "--json", "--config"])
        .arg(daemon.config())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn live_bytes(daemon: &Daemon) -> u64 {
    ask(daemon, "status")["store"]["live_bytes"].as_u64().unwrap()
}

/// Collects until no more than so many bytes are live: what is being read or committed is let be.
async fn collects_to(daemon: &Daemon, live_bytes_max: u64) {
    let begun = Instant::now();
    loop {
        ask(daemon, "gc");
        let live = live_bytes(daemon);
        if live <= live_bytes_max {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{live} bytes are live, not {live_bytes_max}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn delete_image(daemon: &Daemon, repo: &str, image: &Image) {
    let path = format!("{repo}/manifests/{}", Digest::sha256(&image.manifest));
    let answer = daemon.client.request(Method::DELETE, daemon.url(&path)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
}

/// Opens an upload and sends a part of it.
async fn begin_upload(daemon: &Daemon, query: &str, part: &[u8]) -> String {
    let opened =
        daemon.client.post(daemon.url(&format!("{REPO}/blobs/uploads/{query}"))).send().await.unwrap();
    send_part(daemon, &daemon.location(&opened), part).await
}

async fn send_part(daemon: &Daemon, location: &str, part: &[u8]) -> String {
    let sent = daemon.client.patch(location).body(part.to_vec()).send().await.unwrap();
    assert_eq!(sent.status(), StatusCode::ACCEPTED, "{}", sent.text().await.unwrap());
    daemon.location(&sent)
}

async fn finish_upload(daemon: &Daemon, location: &str, digest: &Digest) {
    let closed = daemon.client.put(format!("{location}?digest={digest}")).send().await.unwrap();
    assert_eq!(closed.status(), StatusCode::CREATED, "{}", closed.text().await.unwrap());
}

#[tokio::test]
async fn a_deleted_image_gives_its_space_back_and_takes_nothing_else() {
    let mut daemon = daemon().start();
    let (gone, kept) = (Image::new(1, &[8 * MIB]), Image::new(2, &[2 * MIB]));
    daemon.push(REPO, "gone", &gone).await;
    daemon.push("other/app", "kept", &kept).await;
    daemon.push("third/app", "gone", &gone).await;

    // Another repository still has it.
    delete_image(&daemon, REPO, &gone).await;
    ask(&daemon, "gc");
    assert_eq!(daemon.pull("third/app", "gone").await.unwrap(), gone);
    assert_eq!(daemon.get(&format!("{REPO}/blobs/{}", Digest::sha256(&gone.blobs[1]))).await.status(), 404);

    delete_image(&daemon, "third/app", &gone).await;
    let before = live_bytes(&daemon);
    collects_to(&daemon, before - 8 * MIB as u64).await;
    for _ in 0..2 {
        assert_eq!(daemon.pull("other/app", "kept").await.unwrap(), kept);
        // What went can come again.
        daemon.push(REPO, "again", &gone).await;
        assert_eq!(daemon.pull(REPO, "again").await.unwrap(), gone);
        daemon = daemon.kill_and_restart();
    }
}

#[tokio::test]
async fn what_clients_are_about_to_name_stays() {
    let daemon = daemon().start();
    let image = Image::new(3, &[2 * MIB, 10]);
    for blob in &image.blobs {
        daemon.push_blob(REPO, blob).await;
    }
    let half = begin_upload(&daemon, "", &image.blobs[1][..MIB + 5]).await;
    // Deleted, but another client has just seen it and is about to push an image with it.
    let other = Image::new(4, &[MIB]);
    daemon.push(REPO, "other", &other).await;
    let seen = format!("{REPO}/blobs/{}", Digest::sha256(&other.blobs[1]));
    assert_eq!(daemon.client.head(daemon.url(&seen)).send().await.unwrap().status(), StatusCode::OK);
    delete_image(&daemon, REPO, &other).await;

    ask(&daemon, "gc");
    assert_eq!(daemon.get(&seen).await.bytes().await.unwrap(), other.blobs[1]);
    assert_eq!(daemon.put_manifest(REPO, "1", &image.manifest).await.status(), StatusCode::CREATED);
    let half = send_part(&daemon, &half, &image.blobs[1][MIB + 5..]).await;
    ask(&daemon, "gc");
    finish_upload(&daemon, &half, &Digest::sha256(&image.blobs[1])).await;
    assert_eq!(daemon.pull(REPO, "1").await.unwrap(), image);
}

#[tokio::test]
async fn a_cancelled_upload_leaves_nothing() {
    let daemon = daemon().start();
    daemon.push(REPO, "1", &Image::small(5)).await;
    let location = begin_upload(&daemon, "", &random_bytes(6, 5 * MIB + 1)).await;
    assert!(live_bytes(&daemon) > 7 * MIB as u64);
    let cancelled = daemon.client.delete(&location).send().await.unwrap();
    assert_eq!(cancelled.status(), StatusCode::NO_CONTENT);
    collects_to(&daemon, 3 * MIB as u64).await;
    assert_eq!(daemon.pull(REPO, "1").await.unwrap(), Image::small(5));
}

#[tokio::test]
async fn pushes_and_pulls_go_on_while_space_is_freed() {
    let daemon = daemon().start();
    let stays = Image::new(7, &[3 * MIB, 100]);
    daemon.push(REPO, "stays", &stays).await;
    let push_and_delete = async {
        for round in 0..12 {
            let image = Image::new(100 + round, &[2 * MIB, 1000]);
            daemon.push(REPO, "moves", &image).await;
            assert_eq!(daemon.pull(REPO, "moves").await.unwrap(), image);
            delete_image(&daemon, REPO, &image).await;
        }
    };
    let pull = async {
        for _ in 0..40 {
            assert_eq!(daemon.pull(REPO, "stays").await.unwrap(), stays);
        }
    };
    let collect = async {
        for _ in 0..12 {
            let config = daemon.config();
            let run = move || {
                let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
                command.arg("gc").arg("--config").arg(config).output().unwrap().status
            };
            assert!(tokio::task::spawn_blocking(run).await.unwrap().success());
        }
    };
    tokio::join!(push_and_delete, pull, collect);
    collects_to(&daemon, 4 * MIB as u64).await;
    assert_eq!(daemon.pull(REPO, "stays").await.unwrap(), stays);
    let daemon = daemon.kill_and_restart();
    assert_eq!(daemon.pull(REPO, "stays").await.unwrap(), stays);
}

#[tokio::test]
async fn a_reader_keeps_what_its_root_has_and_frees_what_it_had() {
    let publisher = daemon().start();
    let (old, new) = (Image::new(8, &[4 * MIB]), Image::new(9, &[MIB]));
    publisher.push(REPO, "1", &old).await;
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).read_only().start();
    reader.serves(REPO, "1", &old).await;
    ask(&reader, "gc");
    let with_old = live_bytes(&reader);

    delete_image(&publisher, REPO, &old).await;
    ask(&publisher, "gc");
    publisher.push(REPO, "1", &new).await;
    reader.serves(REPO, "1", &new).await;
    // The root before the newest is still read where that fails, so one more has to come.
    publisher.push(REPO, "2", &new).await;
    reader.serves(REPO, "2", &new).await;
    collects_to(&reader, with_old - 2 * MIB as u64).await;
    publisher.kill();
    assert_eq!(reader.pull(REPO, "1").await.unwrap(), new);
    assert_eq!(reader.kill_and_restart().pull(REPO, "2").await.unwrap(), new);
}

#[tokio::test]
async fn an_upload_goes_on_after_the_daemon_was_killed() {
    for (seed, query, algorithm) in
        [(20, "", Algorithm::Sha256), (21, "?digest-algorithm=sha512", Algorithm::Sha512)]
    {
        let mut daemon = daemon().start();
        let content = random_bytes(seed, 5 * MIB + 77);
        let digest = Digest::of(algorithm, &content);
        let mut location = begin_upload(&daemon, query, &content[..MIB + 100]).await;
        for (from, to) in [(MIB + 100, 4 * MIB), (4 * MIB, 4 * MIB + 1)] {
            let path = location.strip_prefix(&daemon.registry).unwrap().to_owned();
            daemon = daemon.kill_and_restart();
            location = format!("{}{path}", daemon.registry);
            ask(&daemon, "gc");
            let status = daemon.client.get(&location).send().await.unwrap();
            assert_eq!(status.status(), StatusCode::NO_CONTENT);
            assert_eq!(status.headers()["range"], format!("0-{}", from - 1));
            location = send_part(&daemon, &location, &content[from..to]).await;
        }
        send_part(&daemon, &location, &content[4 * MIB + 1..]).await;
        finish_upload(&daemon, &location, &digest).await;
        let pulled = daemon.get(&format!("{REPO}/blobs/{digest}")).await.bytes().await.unwrap();
        assert!(pulled == content);
        let path = location.strip_prefix(&daemon.registry).unwrap().to_owned();
        let daemon = daemon.kill_and_restart();
        let status = daemon.client.get(format!("{}{path}", daemon.registry)).send().await.unwrap();
        assert_eq!(status.status(), StatusCode::NOT_FOUND);
    }
}
