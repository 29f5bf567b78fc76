//! The server as an operator sets it up: prefix, URLs, headers, sockets, logs; what it bears, and how it stops.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use common::{Daemon, Image, PATIENCE, daemon, random_bytes};
use futures::{SinkExt, StreamExt};
use reqwest::{Body, Client, Response, StatusCode};
use shoal::oci::Digest;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn location(response: &Response) -> &str {
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    response.headers()["location"].to_str().unwrap()
}

#[tokio::test]
async fn a_registry_below_a_prefix_is_pushed_to_and_pulled_from() {
    let mut daemon = daemon().http("prefix: /images/all/").start();
    assert_eq!(daemon.get("").await.status(), StatusCode::NOT_FOUND);
    let opened = daemon.client.post(format!("{}/images/all/v2/app/blobs/uploads/", daemon.registry));
    let opened = opened.send().await.unwrap();
    assert!(location(&opened).starts_with("/images/all/v2/app/blobs/uploads/"), "{}", location(&opened));

    let host = daemon.registry.clone();
    let image = Image::small(1);
    for blob in &image.blobs {
        let opened = daemon.client.post(format!("{host}/images/all/v2/app/blobs/uploads/")).send().await;
        let at = format!("{host}{}?digest={}", location(&opened.unwrap()), Digest::sha256(blob));
        let closed = daemon.client.put(at).body(blob.clone()).send().await.unwrap();
        assert_eq!(closed.status(), StatusCode::CREATED);
    }
    daemon.registry = format!("{host}/images/all");
    for tag in ["1", "2"] {
        assert_eq!(daemon.put_manifest("app", tag, &image.manifest).await.status(), StatusCode::CREATED);
    }
    assert_eq!(daemon.pull("app", "1").await.unwrap(), image);
    let list = daemon.get("app/tags/list?n=1").await;
    assert!(list.headers()["link"].to_str().unwrap().starts_with("</images/all/v2/app/tags/list?last=1"));
}

#[tokio::test]
async fn urls_lead_to_the_configured_host_or_to_the_one_that_was_asked() {
    let configured = daemon().http("host: 'https://registry.example.org'").http("prefix: /a/").start();
    let opened = configured.client.post(format!("{}/a/v2/app/blobs/uploads/", configured.registry));
    let opened = opened.send().await.unwrap();
    assert!(location(&opened).starts_with("https://registry.example.org/a/v2/app/blobs/uploads/"));

    let asked = daemon().http("relativeurls: false").start();
    let open = async |headers: &[(&str, &str)]| {
        let request = asked.client.post(asked.url("app/blobs/uploads/"));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        location(&request.send().await.unwrap()).to_owned()
    };
    let direct = open(&[]).await;
    assert!(direct.starts_with(&asked.url("app/blobs/uploads/")), "{direct}");
    let proxied = open(&[("x-forwarded-proto", "https"), ("x-forwarded-host", "a.example:444, b")]).await;
    assert!(proxied.starts_with("https://a.example:444/v2/app/blobs/uploads/"), "{proxied}");
    let hostile = open(&[("x-forwarded-proto", "javascript"), ("x-forwarded-host", "a b")]).await;
    assert!(hostile.starts_with("/v2/"), "{hostile}");

    let by_default = daemon().start();
    let opened = by_default.client.post(by_default.url("app/blobs/uploads/")).send().await.unwrap();
    assert!(location(&opened).starts_with("/v2/app/blobs/uploads/"));
}

#[tokio::test]
async fn the_headers_of_the_operator_are_on_every_answer() {
    let daemon = daemon().http("headers: {X-Content-Type-Options: [nosniff], X-Two: [a, b]}").start();
    for path in ["", "app/manifests/1", "app/nothing/1"] {
        let answer = daemon.get(path).await;
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff", "{path}");
        let two: Vec<_> = answer.headers().get_all("x-two").iter().collect();
        assert_eq!(two, ["a", "b"], "{path}");
    }
}

#[tokio::test]
async fn a_unix_socket_serves_its_group_and_replaces_one_that_is_stale() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("registry.sock");
    let daemon = daemon().read_only().http("net: unix").http(&format!("addr: {}", path.display())).start();
    assert_eq!(daemon.registry, format!("unix:{}", path.display()));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let ask = async || {
        let client = Client::builder().unix_socket(path.clone()).build().unwrap();
        client.get("http://registry/v2/").send().await.unwrap().status()
    };
    assert_eq!(ask().await, StatusCode::OK);

    // A killed daemon leaves its socket.
    let mut daemon = daemon.kill_and_restart();
    assert_eq!(ask().await, StatusCode::OK);
    daemon.logs("http.client=\"unix\"").await;
    daemon.terminate();
    assert!(daemon.ended().await, "{}", daemon.log());
    assert!(!path.exists());
}

#[tokio::test]
async fn each_request_is_a_line_in_the_log_without_secrets() {
    let daemon = daemon().log("level: info").start();
    let blob = random_bytes(5, 3000);
    let digest = daemon.push_blob("app", &blob).await;
    let answer = daemon.client.get(daemon.url(&format!("app/blobs/{digest}?token=open-sesame")));
    let answer = answer.header("authorization", "Bearer open-sesame").header("user-agent", "a client/1.0");
    answer.send().await.unwrap().bytes().await.unwrap();

    let line = daemon.logs("a client/1.0").await;
    for part in [
        " INFO ",
        "http.client=\"127.0.0.1:",
        "http.method=GET",
        &format!("http.path=\"/v2/app/blobs/{digest}\""),
        "http.version=HTTP/1.1",
        "http.status=200",
        "sent_bytes=3000",
        "duration_ms=",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert!(!daemon.log().contains("open-sesame"), "{}", daemon.log());
    daemon.logs("http.status=201").await;
}

#[tokio::test]
async fn lines_are_json_with_the_fields_of_the_operator_and_none_for_requests_that_are_not_wanted() {
    let daemon = daemon()
        .log("level: info")
        .log("formatter: json")
        .log("fields: {environment: staging, rack: 7}")
        .log("accesslog: {disabled: true}")
        .http("debug: {addr: '127.0.0.1:0'}")
        .start();
    assert_eq!(daemon.get("").await.status(), StatusCode::OK);
    let log = daemon.log();
    assert!(!log.is_empty());
    // What stands behind the last line break is being written.
    for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!((&line["environment"], &line["rack"]), (&"staging".into(), &7.into()), "{line}");
        assert_ne!(line["fields"]["message"], "request");
    }
}

#[tokio::test]
async fn metrics_are_where_the_operator_wants_them() {
    for (prometheus, path, other) in [
        ("{path: /internal/metrics}", Some("/internal/metrics"), "/metrics"),
        ("{enabled: false}", None, "/metrics"),
    ] {
        let debug = format!("debug: {{addr: '127.0.0.1:0', prometheus: {prometheus}}}");
        let daemon = daemon().http(&debug).start();
        let line = daemon.logs("serving metrics").await;
        let address = line.split("address=").nth(1).unwrap();
        let get =
            async |path: &str| daemon.client.get(format!("http://{address}{path}")).send().await.unwrap();
        assert_eq!(get(other).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(get("/healthz").await.status(), StatusCode::OK);
        if let Some(path) = path {
            assert!(get(path).await.text().await.unwrap().contains("shoal_http_requests_total"));
        }
    }
}

#[tokio::test]
async fn who_trickles_a_header_is_let_go() {
    let daemon = daemon().start();
    let mut socket = TcpStream::connect(daemon.socket()).await.unwrap();
    socket.write_all(b"GET /v2/ HTTP/1.1\r\nX-Slow: ").await.unwrap();
    let closed = async {
        loop {
            let mut byte = [0];
            tokio::select! {
                read = socket.read(&mut byte) => return matches!(read, Ok(0) | Err(_)),
                () = tokio::time::sleep(Duration::from_millis(250)) => (),
            }
            if socket.write_all(b"x").await.is_err() {
                return true;
            }
        }
    };
    assert!(tokio::time::timeout(PATIENCE, closed).await.expect("the server lets it go"));
    assert_eq!(daemon.get("").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn thousands_of_idle_connections_leave_room_for_one_that_works() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // Each end has a limit of its own; the daemon wants some files for itself.
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let idle_max = if maximum.is_none_or(|files| files >= 13_000) { 10_000 } else { 400 };
    let daemon = daemon().log("level: info").start();
    let mut idle = Vec::with_capacity(idle_max);
    while idle.len() < idle_max {
        idle.push(TcpStream::connect(daemon.socket()).await.unwrap());
    }
    let image = Image::small(9);
    daemon.push("app", "1", &image).await;
    assert_eq!(daemon.pull("app", "1").await.unwrap(), image);
    // None of them was closed to make room.
    for socket in &idle {
        let mut byte = [0];
        assert_eq!(socket.try_read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

/// A blob that no buffers between server and client hold.
const LARGE_BYTES: usize = 48 << 20;
/// The same for a chunk of an upload.
const CHUNK_BYTES: usize = 16 << 20;

/// Waits until the daemon takes no new connection.
async fn refuses(daemon: &Daemon) {
    let begun = std::time::Instant::now();
    while TcpStream::connect(daemon.socket()).await.is_ok() {
        assert!(begun.elapsed() < PATIENCE, "new connections are taken");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_stop_lets_downloads_and_uploads_finish_and_takes_no_new_connection() {
    let mut daemon = daemon().http("draintimeout: 5m").start();
    let large = random_bytes(1, LARGE_BYTES);
    let digest = daemon.push_blob("app", &large).await;
    let mut download = daemon.get(&format!("app/blobs/{digest}")).await.bytes_stream();
    let mut received = download.next().await.unwrap().unwrap().to_vec();

    let uploaded_bytes = random_bytes(2, 5 * CHUNK_BYTES);
    let mut chunks = uploaded_bytes.chunks(CHUNK_BYTES).map(|chunk| Ok(chunk.to_vec()));
    let (mut sender, body) = futures::channel::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let opened = daemon.client.post(daemon.url("app/blobs/uploads/")).send().await.unwrap();
    let at = format!("{}?digest={}", daemon.location(&opened), Digest::sha256(&uploaded_bytes));
    let upload = daemon.client.put(at).body(Body::wrap_stream(body)).send();
    let uploading = async {
        // Two are waiting to be sent: the first has been, and so the daemon has the request.
        for chunk in chunks.by_ref().take(4) {
            sender.send(chunk).await.unwrap();
        }
        daemon.terminate();
        refuses(&daemon).await;
        sender.send(chunks.next().unwrap()).await.unwrap();
        drop(sender);
    };
    let (uploaded, ()) = tokio::join!(upload, uploading);
    let uploaded = uploaded.unwrap();
    assert_eq!(uploaded.status(), StatusCode::CREATED, "{}", uploaded.text().await.unwrap());
    while let Some(bytes) = download.next().await {
        received.extend_from_slice(&bytes.unwrap());
    }
    assert!(received == large);
    assert!(daemon.ended().await, "{}", daemon.log());
}

#[tokio::test]
async fn a_stop_cuts_what_does_not_end_in_time() {
    let mut daemon = daemon().http("draintimeout: 500ms").start();
    let digest = daemon.push_blob("app", &random_bytes(1, LARGE_BYTES)).await;
    let mut download = daemon.get(&format!("app/blobs/{digest}")).await.bytes_stream();
    download.next().await.unwrap().unwrap();

    daemon.terminate();
    assert!(daemon.ended().await, "{}", daemon.log());
    daemon.logs("did not end within http.draintimeout").await;
    let rest: Vec<_> = download.collect().await;
    assert!(rest.iter().any(Result::is_err), "the client must not take it for the whole");
}
