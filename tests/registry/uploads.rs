//! end-4, end-5, end-6 and end-13: blobs in every form that clients push them.

use futures::stream;
use reqwest::{Body, Client, Response, StatusCode};
use shoal::oci::{Algorithm, Digest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::common::{Daemon, Image, PATIENCE, daemon, random_bytes};
use super::{closing, header, open_upload, raw, refused, status};

/// A body of unknown length, which goes out in chunked transfer encoding.
fn chunked(content: &[u8], chunk_bytes: usize) -> Body {
    let chunks: Vec<_> =
        content.chunks(chunk_bytes).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
    Body::wrap_stream(stream::iter(chunks))
}

/// Holds the answer that closes an upload to the specification, and the blob to its content, at once.
async fn stored(daemon: &Daemon, closed: Response, repo: &str, content: &[u8], digest: Digest) {
    assert_eq!(closed.status(), StatusCode::CREATED, "{}", closed.text().await.unwrap());
    assert_eq!(header(&closed, "docker-content-digest"), Some(digest.to_string().as_str()));
    let location = daemon.location(&closed);
    assert!(location.ends_with(&format!("/v2/{repo}/blobs/{digest}")), "{location}");
    let head = daemon.client.head(&location).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(header(&head, "content-length"), Some(content.len().to_string().as_str()));
    let got = daemon.client.get(location).send().await.unwrap().bytes().await.unwrap();
    assert!(got == content, "{repo} has other bytes under {digest}");
}

async fn patch(client: &Client, location: &str, range: Option<&str>, body: impl Into<Body>) -> Response {
    let request = client.patch(location).body(body);
    let request = match range {
        Some(range) => request.header("content-range", range),
        None => request,
    };
    request.send().await.unwrap()
}

#[tokio::test]
async fn a_blob_is_pushed_by_post_and_put() {
    let daemon = daemon().start();
    for (content, body) in [
        (random_bytes(1, 5000), None),
        (Vec::new(), None),
        (random_bytes(2, 2_500_000), None),
        (random_bytes(3, 2_500_000), Some(chunked(&random_bytes(3, 2_500_000), 10_007))),
    ] {
        let digest = Digest::sha256(&content);
        let location = open_upload(&daemon, "library/app").await;
        let body = body.unwrap_or_else(|| content.clone().into());
        let closed = daemon.client.put(closing(&location, digest)).body(body).send().await.unwrap();
        stored(&daemon, closed, "library/app", &content, digest).await;
    }
    assert_eq!(status(&daemon)["transfers"]["uploads"], 0);
}

#[tokio::test]
async fn a_blob_is_pushed_by_post_patch_and_put() {
    let daemon = daemon().start();
    let content = random_bytes(1, 3_000_000);
    let digest = Digest::sha256(&content);
    // As skopeo, as docker, and as a client that describes its only chunk.
    let forms: [(Option<&str>, Body); 3] = [
        (None, content.clone().into()),
        (None, chunked(&content, 32 * 1024)),
        (Some("0-2999999"), content.clone().into()),
    ];
    for (n, (range, body)) in forms.into_iter().enumerate() {
        let repo = format!("library/app{n}");
        let location = open_upload(&daemon, &repo).await;
        let appended = patch(&daemon.client, &location, range, body).await;
        assert_eq!(appended.status(), StatusCode::ACCEPTED);
        assert_eq!(header(&appended, "range"), Some("0-2999999"));
        let location = daemon.location(&appended);
        let closed = daemon.client.put(closing(&location, digest)).send().await.unwrap();
        stored(&daemon, closed, &repo, &content, digest).await;
    }
}

#[tokio::test]
async fn a_blob_is_pushed_in_chunks_and_the_last_may_come_with_the_put() {
    let daemon = daemon().start();
    let content = random_bytes(1, 3000);
    let digest = Digest::sha256(&content);
    let mut location = open_upload(&daemon, "library/app").await;
    for (range, part) in
        [("0-999", 0..1000), ("bytes 1000-1499/3000", 1000..1500), ("bytes 1500-1999/*", 1500..2000)]
    {
        let appended = patch(&daemon.client, &location, Some(range), content[part.clone()].to_vec()).await;
        assert_eq!(appended.status(), StatusCode::ACCEPTED, "{range}");
        let received = format!("0-{}", part.end - 1);
        assert_eq!(header(&appended, "range"), Some(received.as_str()));
        location = daemon.location(&appended);

        let asked = daemon.client.get(&location).send().await.unwrap();
        assert_eq!(asked.status(), StatusCode::NO_CONTENT);
        assert_eq!(header(&asked, "range"), Some(received.as_str()));
        location = daemon.location(&asked);
    }
    let closed = daemon
        .client
        .put(closing(&location, digest))
        .header("content-range", "2000-2999")
        .body(content[2000..].to_vec())
        .send()
        .await
        .unwrap();
    stored(&daemon, closed, "library/app", &content, digest).await;
}

#[tokio::test]
async fn a_chunk_out_of_order_is_refused_and_the_upload_goes_on() {
    let daemon = daemon().start();
    let content = random_bytes(1, 3000);
    let digest = Digest::sha256(&content);
    let location = open_upload(&daemon, "library/app").await;
    let first = patch(&daemon.client, &location, Some("0-999"), content[..1000].to_vec()).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);

    for range in ["2000-2999", "0-999", "999-1998", "18446744073709550615-18446744073709551614"] {
        let answer = patch(&daemon.client, &location, Some(range), content[..1000].to_vec()).await;
        assert_eq!(header(&answer, "range"), Some("0-999"), "{range}");
        assert!(daemon.location(&answer).starts_with(&location), "{range}");
        refused(answer, 416, "BLOB_UPLOAD_INVALID").await;
    }
    for range in [
        "",
        "bytes",
        "a-b",
        "-5",
        "1500-1000",
        "1000-1001",
        "99999999999999999999999-99999999999999999999999",
    ] {
        let answer = patch(&daemon.client, &location, Some(range), content[..1000].to_vec()).await;
        let status = answer.status().as_u16();
        assert!(status == 400 || status == 416, "{range:?}: {status}");
    }
    let asked = daemon.client.get(&location).send().await.unwrap();
    assert_eq!(header(&asked, "range"), Some("0-999"));

    let rest = patch(&daemon.client, &location, Some("1000-2999"), content[1000..].to_vec()).await;
    assert_eq!(rest.status(), StatusCode::ACCEPTED);
    let closed = daemon.client.put(closing(&location, digest)).send().await.unwrap();
    stored(&daemon, closed, "library/app", &content, digest).await;
}

#[tokio::test]
async fn a_blob_is_pushed_by_one_post() {
    let daemon = daemon().start();
    for content in [Vec::new(), random_bytes(1, 1), random_bytes(2, 1_500_000)] {
        let digest = Digest::sha256(&content);
        let url = daemon.url(&format!("library/app/blobs/uploads/?digest={digest}"));
        let closed = daemon.client.post(url).body(content.clone()).send().await.unwrap();
        stored(&daemon, closed, "library/app", &content, digest).await;
    }
    assert_eq!(status(&daemon)["transfers"]["uploads"], 0);
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_continue_is_told() {
    let daemon = daemon().start();
    let content = random_bytes(1, 5000);
    let digest = Digest::sha256(&content);
    let target = format!("/v2/library/app/blobs/uploads/?digest={digest}");
    let head = raw::head("POST", &target, "content-length: 5000\r\nexpect: 100-continue\r\n");
    let mut stream = raw::connect(&daemon).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&content).await.unwrap();
    assert_eq!(raw::read_answer(&mut stream).await.unwrap().status, 201);
}

#[tokio::test]
async fn a_cancelled_upload_is_gone() {
    let daemon = daemon().start();
    let content = random_bytes(1, 1000);
    let location = open_upload(&daemon, "library/app").await;
    patch(&daemon.client, &location, None, content.clone()).await;
    let cancelled = daemon.client.delete(&location).send().await.unwrap();
    assert_eq!(cancelled.status(), StatusCode::NO_CONTENT);
    assert_eq!(status(&daemon)["transfers"]["uploads"], 0);

    refused(daemon.client.get(&location).send().await.unwrap(), 404, "BLOB_UPLOAD_UNKNOWN").await;
    refused(daemon.client.delete(&location).send().await.unwrap(), 404, "BLOB_UPLOAD_UNKNOWN").await;
    let closed = daemon.client.put(closing(&location, Digest::sha256(&content))).send().await.unwrap();
    refused(closed, 404, "BLOB_UPLOAD_UNKNOWN").await;
}

#[tokio::test]
async fn the_query_that_a_client_adds_to_the_location_does_no_harm() {
    let daemon = daemon().start();
    let content = random_bytes(1, 1000);
    let digest = Digest::sha256(&content);
    let location = open_upload(&daemon, "library/app").await;
    let joint = if location.contains('?') { '&' } else { '?' };
    let location = format!("{location}{joint}_state=AbC%3D&ns=docker.io");
    assert_eq!(patch(&daemon.client, &location, None, content.clone()).await.status(), StatusCode::ACCEPTED);
    let encoded = digest.to_string().replace(':', "%3A");
    let closed = daemon.client.put(closing(&location, encoded)).send().await.unwrap();
    stored(&daemon, closed, "library/app", &content, digest).await;
}

#[tokio::test]
async fn blobs_may_have_sha512_digests() {
    let daemon = daemon().start();
    for content in [Vec::new(), random_bytes(1, 1000), random_bytes(2, 2_500_000)] {
        let digest = Digest::of(Algorithm::Sha512, &content);
        let url = daemon.url("library/app/blobs/uploads/?digest-algorithm=sha512");
        let opened = daemon.client.post(url).send().await.unwrap();
        let location = daemon.location(&opened);
        patch(&daemon.client, &location, None, content.clone()).await;
        let closed = daemon.client.put(closing(&location, digest)).send().await.unwrap();
        stored(&daemon, closed, "library/app", &content, digest).await;

        let url = daemon.url(&format!("library/other/blobs/uploads/?digest={digest}"));
        let closed = daemon.client.post(url).body(content.clone()).send().await.unwrap();
        stored(&daemon, closed, "library/other", &content, digest).await;
    }
    let location = open_upload(&daemon, "library/app").await;
    let wrong = Digest::of(Algorithm::Sha512, b"something else");
    let closed = daemon.client.put(closing(&location, wrong)).body("content").send().await.unwrap();
    refused(closed, 400, "DIGEST_INVALID").await;
}

#[tokio::test]
async fn a_large_layer_comes_in_odd_chunks() {
    let daemon = daemon().start();
    let content = random_bytes(1, 10 << 20);
    let digest = Digest::sha256(&content);
    let mut location = open_upload(&daemon, "library/app").await;
    let (mut at, mut n) = (0, 0);
    for chunk_bytes in [1, 1_048_575, 1_048_577, 7, 2_097_151, 65_537].into_iter().cycle() {
        let end = (at + chunk_bytes).min(content.len());
        let body = content[at..end].to_vec();
        let (body, range) = match n % 3 {
            0 => (chunked(&body, 9_973), None),
            1 => (body.into(), Some(format!("{at}-{}", end - 1))),
            _ => (body.into(), None),
        };
        let appended = patch(&daemon.client, &location, range.as_deref(), body).await;
        assert_eq!(header(&appended, "range"), Some(format!("0-{}", end - 1).as_str()));
        location = daemon.location(&appended);
        (at, n) = (end, n + 1);
        if at == content.len() {
            break;
        }
    }
    let closed = daemon.client.put(closing(&location, digest)).send().await.unwrap();
    stored(&daemon, closed, "library/app", &content, digest).await;
}

#[tokio::test]
async fn one_blob_may_be_pushed_by_many_at_once() {
    let daemon = daemon().start();
    let content = random_bytes(1, 2_500_000);
    let digest = Digest::sha256(&content);
    let pushes = (0..12).map(|n| {
        let (daemon, content, repo) = (&daemon, &content, format!("library/app{}", n % 3));
        async move { daemon.push_blob(&repo, content).await }
    });
    assert_eq!(futures::future::join_all(pushes).await, vec![digest; 12]);
    for n in 0..3 {
        let got = daemon.get(&format!("library/app{n}/blobs/{digest}")).await.bytes().await.unwrap();
        assert!(got == content);
    }
    assert_eq!(status(&daemon)["transfers"]["uploads"], 0);
}

#[tokio::test]
async fn a_daemon_that_comes_back_alone_takes_pushes_at_once() {
    let first = daemon().start();
    first.push("library/app", "1", &Image::new(1, &[100])).await;
    // A signed record is what is put to the network again after a start.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while status(&first)["own"]["sequence"].is_null() {
        assert!(tokio::time::Instant::now() < deadline, "nothing was signed: {}", first.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let again = first.kill_and_restart();
    let image = Image::new(2, &[100]);
    let pushed = tokio::time::timeout(PATIENCE, again.push("library/app", "2", &image)).await;
    assert!(pushed.is_ok(), "{}", again.log());
}

#[tokio::test]
async fn two_requests_do_not_write_to_one_upload_at_once() {
    let daemon = daemon().start();
    let location = open_upload(&daemon, "library/app").await;
    let target = location.strip_prefix(&daemon.registry).unwrap();
    let mut writer = raw::connect(&daemon).await;
    writer
        .write_all((raw::head("PATCH", target, "content-length: 10\r\n") + "01234").as_bytes())
        .await
        .unwrap();
    // The first is being read as soon as a second is turned away.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let second = patch(&daemon.client, &location, Some("7-8"), "xy").await;
        if second.status() == StatusCode::CONFLICT {
            refused(second, 409, "BLOB_UPLOAD_INVALID").await;
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "never busy: {}", second.status());
    }
    writer.write_all(b"56789").await.unwrap();
    assert_eq!(raw::read_answer(&mut writer).await.unwrap().status, 202);
    let closed = daemon.client.put(closing(&location, Digest::sha256(b"0123456789"))).send().await.unwrap();
    assert_eq!(closed.status(), StatusCode::CREATED);
}
