//! Clients that leave in the middle, or stay and do nothing, cost the others nothing and leave nothing behind.

use std::time::{Duration, Instant};

use reqwest::StatusCode;
use shoal::oci::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::common::{Daemon, Image, PATIENCE, daemon, random_bytes};
use super::{raw, status};

/// Clients that are there at the same time.
const AT_ONCE: usize = 50;
/// What of each upload has been sent when its client leaves.
const SENT_BYTES: usize = 900_000;
/// What the daemon may hold for uploads that may still go on, and its allocator for the next ones, in KiB.
const GROWTH_KIB_MAX: u64 = 350 * 1024;

#[derive(Debug)]
struct Usage {
    files: usize,
    tasks: u64,
    memory_kib: u64,
}

impl Usage {
    fn of(daemon: &Daemon) -> Self {
        let process = format!("/proc/{}", daemon.pid());
        let memory = std::fs::read_to_string(format!("{process}/status")).unwrap();
        let resident = memory.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            files: std::fs::read_dir(format!("{process}/fd")).unwrap().count(),
            tasks: status(daemon)["tasks"].as_u64().unwrap(),
            memory_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }
}

/// Waits until files and tasks are about as many as before; a few come and go by themselves.
async fn settles(daemon: &Daemon, before: &Usage) -> Usage {
    let begun = Instant::now();
    loop {
        let after = Usage::of(daemon);
        if after.files <= before.files + 10 && after.tasks <= before.tasks + 10 {
            return after;
        }
        assert!(begun.elapsed() < PATIENCE, "{after:?} does not go back to {before:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Begins `times` requests, reads or writes a part of each as `part` has it, and drops the connection.
async fn leave<F: Future<Output = ()>>(times: usize, part: impl Fn(usize) -> F) {
    for first in (0..times).step_by(AT_ONCE) {
        futures::future::join_all((first..times.min(first + AT_ONCE)).map(&part)).await;
    }
}

#[tokio::test]
async fn a_thousand_uploads_are_left_in_the_middle() {
    let daemon = daemon().start();
    let image = Image::small(1);
    daemon.push("library/app", "1", &image).await;
    let before = Usage::of(&daemon);
    let content = random_bytes(2, SENT_BYTES);
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let digest = Digest::sha256(b"never the whole");

    leave(1000, |n| {
        let (daemon, content, client) = (&daemon, &content, &client);
        async move {
            let uploads = "/v2/library/app/blobs/uploads/";
            let (method, target) = if n % 2 == 0 {
                ("POST", format!("{uploads}?digest={digest}"))
            } else {
                let opened = client.post(format!("{}{uploads}", daemon.registry)).send().await.unwrap();
                assert_eq!(opened.status(), StatusCode::ACCEPTED);
                ("PATCH", daemon.location(&opened).replace(&daemon.registry, ""))
            };
            let mut stream = raw::connect(daemon).await;
            let length = format!("content-length: {}\r\n", SENT_BYTES * 2);
            stream.write_all(raw::head(method, &target, &length).as_bytes()).await.unwrap();
            stream.write_all(content).await.unwrap();
        }
    })
    .await;

    let after = settles(&daemon, &before).await;
    assert!(after.memory_kib < before.memory_kib + GROWTH_KIB_MAX, "{before:?} became {after:?}");
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), image);
    daemon.push("library/app", "2", &Image::small(3)).await;
}

#[tokio::test]
async fn more_uploads_are_opened_and_left_than_may_be_open_at_once() {
    let daemon = daemon().start();
    leave(1500, |_| async {
        let opened = daemon.client.post(daemon.url("library/app/blobs/uploads/")).send().await.unwrap();
        assert_eq!(opened.status(), StatusCode::ACCEPTED);
    })
    .await;
    assert!(status(&daemon)["transfers"]["uploads"].as_u64().unwrap() <= 1024);
    let image = Image::small(1);
    daemon.push("library/app", "1", &image).await;
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), image);
}

#[tokio::test]
async fn a_thousand_downloads_are_left_in_the_middle() {
    let daemon = daemon().start();
    let blob = random_bytes(1, 8_000_000);
    let digest = daemon.push_blob("library/app", &blob).await;
    let before = Usage::of(&daemon);
    let target = format!("/v2/library/app/blobs/{digest}");

    leave(1000, |n| {
        let (daemon, target) = (&daemon, &target);
        async move {
            let range = if n % 3 == 0 { format!("range: bytes={}-\r\n", n * 1000) } else { String::new() };
            let mut stream = raw::connect(daemon).await;
            stream.write_all(raw::head("GET", target, &range).as_bytes()).await.unwrap();
            let mut part = vec![0; 1 + n * 50];
            stream.read_exact(&mut part).await.unwrap();
        }
    })
    .await;

    let after = settles(&daemon, &before).await;
    assert!(after.memory_kib < before.memory_kib + GROWTH_KIB_MAX, "{before:?} became {after:?}");
    let begun = Instant::now();
    while status(&daemon)["transfers"]["downloads"] != 0 {
        assert!(begun.elapsed() < PATIENCE, "downloads go on without a client: {}", status(&daemon));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(daemon.get(&format!("library/app/blobs/{digest}")).await.bytes().await.unwrap() == blob);
}

#[tokio::test]
async fn clients_that_read_and_send_nothing_hold_back_nobody() {
    let daemon = daemon().start();
    let blob = random_bytes(1, 20_000_000);
    let digest = daemon.push_blob("library/app", &blob).await;
    let before = Usage::of(&daemon);
    let mut idle = Vec::new();
    for n in 0..100 {
        let mut stream = raw::connect(&daemon).await;
        let request = match n % 3 {
            0 => raw::head("GET", &format!("/v2/library/app/blobs/{digest}"), ""),
            1 => raw::head(
                "POST",
                &format!("/v2/library/app/blobs/uploads/?digest={digest}"),
                "content-length: 9\r\n",
            ),
            _ => "GET /v2/ HTTP/1.1\r\nhost".to_owned(),
        };
        stream.write_all(request.as_bytes()).await.unwrap();
        idle.push(stream);
    }
    let image = Image::small(2);
    daemon.push("library/other", "1", &image).await;
    assert_eq!(daemon.pull("library/other", "1").await.unwrap(), image);
    assert!(daemon.get(&format!("library/app/blobs/{digest}")).await.bytes().await.unwrap() == blob);
    let during = Usage::of(&daemon);
    assert!(during.memory_kib < before.memory_kib + GROWTH_KIB_MAX, "{before:?} became {during:?}");
    drop(idle);
    settles(&daemon, &before).await;
}
