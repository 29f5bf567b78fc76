//! What must be refused: with the status and code of the specification, and without a trace in the tree.

use reqwest::{Body, Method, StatusCode};
use serde_json::{Value, json};
use shoal::oci::{Algorithm, Digest};
use tokio::io::AsyncWriteExt;

use super::common::{IMAGE_MANIFEST, Image, daemon, random_bytes};
use super::{closing, open_upload, raw, refused, root, status};

#[tokio::test]
async fn a_blob_with_another_digest_is_refused() {
    let daemon = daemon().start();
    let content = random_bytes(1, 1_500_000);
    let digest = Digest::sha256(&content);
    let empty = root(&daemon);
    let location = open_upload(&daemon, "library/app").await;
    let closed =
        daemon.client.put(closing(&location, digest)).body(content[1..].to_vec()).send().await.unwrap();
    let message = refused(closed, 400, "DIGEST_INVALID").await;
    assert!(message.contains(&Digest::sha256(&content[1..]).to_string()), "{message}");
    let url = daemon.url(&format!("library/app/blobs/uploads/?digest={digest}"));
    refused(daemon.client.post(url).body("other").send().await.unwrap(), 400, "DIGEST_INVALID").await;

    refused(daemon.get(&format!("library/app/blobs/{digest}")).await, 404, "BLOB_UNKNOWN").await;
    refused(daemon.client.get(location).send().await.unwrap(), 404, "BLOB_UPLOAD_UNKNOWN").await;
    assert_eq!(root(&daemon), empty);
    assert_eq!(status(&daemon)["transfers"]["uploads"], 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_makes_no_blob() {
    let daemon = daemon().start();
    let content = random_bytes(1, 1000);
    let digest = Digest::sha256(&content[..500]);
    let empty = root(&daemon);
    let location = open_upload(&daemon, "library/app").await;
    let put = closing(location.strip_prefix(&daemon.registry).unwrap(), digest);
    let post = format!("/v2/library/app/blobs/uploads/?digest={digest}");
    let tag = "/v2/library/app/manifests/1".to_owned();
    for (method, target, coding) in [
        ("PUT", &put, "content-length: 1000\r\n"),
        ("POST", &post, "content-length: 1000\r\n"),
        ("POST", &post, "transfer-encoding: chunked\r\n"),
        ("PUT", &tag, "content-length: 1000\r\n"),
    ] {
        let mut request = raw::head(method, target, coding).into_bytes();
        if coding.contains("chunked") {
            request.extend_from_slice(b"1f4\r\n");
        }
        request.extend_from_slice(&content[..500]);
        let answer = raw::break_off(&daemon, request).await;
        assert!(answer.is_none_or(|answer| answer.status == 400), "{method} {target} {coding}");
    }
    refused(daemon.get(&format!("library/app/blobs/{digest}")).await, 404, "BLOB_UNKNOWN").await;
    assert_eq!(root(&daemon), empty);

    // What came of the first stays, and the client may go on from there.
    let asked = daemon.client.get(&location).send().await.unwrap();
    assert_eq!(super::header(&asked, "range"), Some("0-499"));
    let digest = Digest::sha256(&content);
    let closed =
        daemon.client.put(closing(&location, digest)).body(content[500..].to_vec()).send().await.unwrap();
    assert_eq!(closed.status(), StatusCode::CREATED);
    assert_eq!(status(&daemon)["transfers"]["uploads"], 0);
}

#[tokio::test]
async fn an_upload_is_known_by_its_id_and_in_its_repository_only() {
    let daemon = daemon().start();
    let location = open_upload(&daemon, "library/app").await;
    let elsewhere = location.replace("library/app", "library/other");
    let unknown = daemon.url("library/app/blobs/uploads/00000000-0000-4000-8000-000000000000");
    let junk = daemon.url("library/app/blobs/uploads/junk");
    let digest = Digest::sha256(b"content");
    for url in [elsewhere, unknown, junk] {
        for method in [Method::GET, Method::PATCH, Method::DELETE, Method::PUT] {
            let url = if method == Method::PUT { closing(&url, digest) } else { url.clone() };
            let answer = daemon.client.request(method.clone(), url).body("content").send().await.unwrap();
            refused(answer, 404, "BLOB_UPLOAD_UNKNOWN").await;
        }
    }
    let put = async |query: &str| daemon.client.put(format!("{location}{query}")).send().await.unwrap();
    refused(put("").await, 400, "DIGEST_INVALID").await;
    refused(put("?digest=").await, 400, "DIGEST_INVALID").await;
    refused(put("?digest=md5:d41d8cd98f00b204e9800998ecf8427e").await, 400, "DIGEST_INVALID").await;
    let closed = daemon.client.put(closing(&location, digest)).body("content").send().await.unwrap();
    assert_eq!(closed.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_manifest_over_four_mebibytes_is_refused() {
    let daemon = daemon().start();
    let manifest = vec![b' '; (4 << 20) + 1];
    let empty = root(&daemon);
    let chunks: Vec<_> =
        manifest.chunks(65_536).map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec())).collect();
    let bodies =
        [Body::from(manifest), Body::wrap_stream(futures::stream::iter(chunks)), vec![b' '; 12 << 20].into()];
    for body in bodies {
        let url = daemon.url("library/app/manifests/1");
        let answer =
            daemon.client.put(url).header("content-type", IMAGE_MANIFEST).body(body).send().await.unwrap();
        refused(answer, 413, "MANIFEST_INVALID").await;
    }
    assert_eq!(root(&daemon), empty);
}

#[tokio::test]
async fn a_manifest_that_names_what_is_not_here_is_refused_with_a_list_of_it() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100, 200]);
    daemon.push_blob("library/app", &image.blobs[0]).await;
    // In another repository is not here.
    daemon.push_blob("library/other", &image.blobs[1]).await;
    let before = root(&daemon);
    let answer = daemon.put_manifest("library/app", "1", &image.manifest).await;
    let message = refused(answer, 404, "MANIFEST_BLOB_UNKNOWN").await;
    for (n, blob) in image.blobs.iter().enumerate() {
        assert_eq!(message.contains(&Digest::sha256(blob).to_string()), n > 0, "{message}");
    }
    assert_eq!(root(&daemon), before);
}

#[tokio::test]
async fn what_is_no_manifest_is_refused() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    for blob in &image.blobs {
        daemon.push_blob("library/app", blob).await;
    }
    let before = root(&daemon);
    let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let with = |key: &str, value: Value| {
        let mut manifest = manifest.clone();
        manifest[key] = value;
        manifest.to_string()
    };
    let index = "application/vnd.oci.image.index.v1+json";
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let mut untyped = manifest.clone();
    untyped.as_object_mut().unwrap().remove("mediaType");
    let cases = [
        (IMAGE_MANIFEST, String::new()),
        (IMAGE_MANIFEST, "junk".to_owned()),
        (IMAGE_MANIFEST, "[]".to_owned()),
        (IMAGE_MANIFEST, "null".to_owned()),
        (IMAGE_MANIFEST, "{}".to_owned()),
        (IMAGE_MANIFEST, format!("{}x", manifest)),
        (IMAGE_MANIFEST, manifest.to_string()[1..].to_owned()),
        (IMAGE_MANIFEST, "[".repeat(10_000)),
        (IMAGE_MANIFEST, format!("{{\"layers\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000))),
        (IMAGE_MANIFEST, with("layers", json!("x"))),
        (IMAGE_MANIFEST, with("config", json!({"digest": "sha256:zz", "size": 1}))),
        (
            IMAGE_MANIFEST,
            with("config", json!({"digest": "md5:d41d8cd98f00b204e9800998ecf8427e", "size": 1})),
        ),
        (IMAGE_MANIFEST, with("subject", json!({"digest": "junk"}))),
        (IMAGE_MANIFEST, with("mediaType", json!(index))),
        (docker, manifest.to_string()),
        // What nothing in the bytes says would be forgotten: others read them too.
        (docker, untyped.to_string()),
        (index, untyped.to_string()),
        (index, json!({"schemaVersion": 2}).to_string()),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            json!({"schemaVersion": 1, "fsLayers": []}).to_string(),
        ),
    ];
    for (content_type, body) in cases {
        let url = daemon.url("library/app/manifests/1");
        let shown: String = body.chars().take(200).collect();
        let answer =
            daemon.client.put(url).header("content-type", content_type).body(body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{content_type}: {shown}");
        refused(answer, 400, "MANIFEST_INVALID").await;
    }
    let other = Digest::sha256(b"other").to_string();
    refused(daemon.put_manifest("library/app", &other, &image.manifest).await, 400, "DIGEST_INVALID").await;
    let target = format!("1?digest={other}");
    refused(daemon.put_manifest("library/app", &target, &image.manifest).await, 400, "DIGEST_INVALID").await;
    let target = format!("{}?tag=.bad", Digest::sha256(&image.manifest));
    refused(daemon.put_manifest("library/app", &target, &image.manifest).await, 400, "MANIFEST_INVALID")
        .await;
    assert_eq!(root(&daemon), before);
}

#[tokio::test]
async fn nesting_that_nobody_reads_does_no_harm() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    daemon.push("library/app", "1", &image).await;
    let manifest = String::from_utf8(image.manifest.clone()).unwrap();
    let nest = format!("{{\"x\":{}{},{}", "[".repeat(10_000), "]".repeat(10_000), &manifest[1..]);
    let answer = daemon.put_manifest("library/app", "2", nest.as_bytes()).await;
    assert!([StatusCode::CREATED, StatusCode::BAD_REQUEST].contains(&answer.status()), "{}", answer.status());
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), image);
}

#[tokio::test]
async fn names_and_digests_outside_of_the_grammar_are_refused() {
    let daemon = daemon().start();
    let empty = root(&daemon);
    let (long_name, long_tag) = ("a".repeat(256), "t".repeat(129));
    let digest = Digest::sha256(b"x");
    let mut cases = Vec::new();
    for name in [
        "App", "a/../b", "..", "a//b", "a%2Fb", "a%2fb", "%2e%2e", "a___b", "-a", "a-", "ä", &long_name,
        "a/", "/a",
    ] {
        cases.push((format!("{name}/manifests/1"), "NAME_INVALID"));
        cases.push((format!("{name}/blobs/{digest}"), "NAME_INVALID"));
        cases.push((format!("{name}/tags/list"), "NAME_INVALID"));
    }
    for tag in [".1", "-1", "a%2Fb", "a%20b", "ä", &long_tag] {
        cases.push((format!("app/manifests/{tag}"), "MANIFEST_INVALID"));
    }
    let upper = digest.to_string().replace(&digest.hex(), &digest.hex().to_uppercase());
    let short = digest.to_string()[..70].to_owned();
    let sha512_as_256 = format!("sha256:{}", Digest::of(Algorithm::Sha512, b"x").hex());
    for digest in
        ["md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:", "sha256:zz", ":", &upper, &short, &sha512_as_256]
    {
        cases.push((format!("app/manifests/{digest}"), "DIGEST_INVALID"));
        cases.push((format!("app/blobs/{digest}"), "DIGEST_INVALID"));
    }
    cases.push(("app/blobs/1".to_owned(), "DIGEST_INVALID"));
    for (path, code) in cases {
        let answer = raw::send(&daemon, raw::head("GET", &format!("/v2/{path}"), "")).await.unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (400, code), "GET {path}");
        let answer = raw::send(&daemon, raw::head("HEAD", &format!("/v2/{path}"), "")).await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (400, 0), "HEAD {path}");
    }
    for (method, path) in
        [("POST", "App/blobs/uploads/"), ("PUT", "App/manifests/1"), ("PATCH", "App/blobs/uploads/x")]
    {
        let answer = raw::send(&daemon, raw::head(method, &format!("/v2/{path}"), "content-length: 0\r\n"))
            .await
            .unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (400, "NAME_INVALID"), "{method} {path}");
    }
    assert_eq!(root(&daemon), empty);
}

#[tokio::test]
async fn other_methods_are_told_what_is_allowed() {
    let daemon = daemon().start();
    let digest = Digest::sha256(b"x");
    let location = open_upload(&daemon, "app").await;
    let cases = [
        ("POST", daemon.url(""), "GET, HEAD"),
        ("DELETE", daemon.url(""), "GET, HEAD"),
        ("POST", daemon.url("app/manifests/1"), "GET, HEAD, PUT"),
        ("PATCH", daemon.url("app/manifests/1"), "GET, HEAD, PUT"),
        ("PUT", daemon.url(&format!("app/blobs/{digest}")), "GET, HEAD"),
        ("GET", daemon.url("app/blobs/uploads/"), "POST"),
        ("POST", location, "GET, HEAD, PATCH, PUT, DELETE"),
        ("PUT", daemon.url("app/tags/list"), "GET, HEAD"),
        ("PROPFIND", daemon.url("app/tags/list"), "GET, HEAD"),
    ];
    for (method, url, allowed) in cases {
        let answer = daemon.client.request(method.parse().unwrap(), &url).send().await.unwrap();
        let told = super::header(&answer, "allow").unwrap_or_default();
        for method in allowed.split(", ") {
            assert!(told.contains(method), "{method} is not in {told:?} of {url}");
        }
        refused(answer, 405, "UNSUPPORTED").await;
    }
    for path in ["", "/", "/v1/_ping", "/v2/app", "/v2/app/", "/v2/app/layers/x", "/healthz"] {
        let answer = daemon.client.get(format!("{}{path}", daemon.registry)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_turned_away_at_once() {
    let daemon = daemon().start();
    // A TLS 1.2 ClientHello as far as its first cipher suites. The writing side stays open.
    let hello = b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03abcdefghijklmnopqrstuvwxyz012345\x00\x00\x04\x13\x01\x13\x02";
    let mut stream = raw::connect(&daemon).await;
    stream.write_all(hello).await.unwrap();
    assert!(raw::read_answer(&mut stream).await.is_none_or(|answer| answer.status == 400));

    let large = format!("x-large: {}\r\n", "x".repeat(1 << 20));
    let answer = raw::send(&daemon, raw::head("GET", "/v2/", &large)).await;
    assert!(answer.is_none_or(|answer| answer.status == 431));
    let many = "x-a: 1\r\n".repeat(1000);
    let answer = raw::send(&daemon, raw::head("GET", "/v2/", &many)).await;
    assert!(answer.is_none_or(|answer| answer.status == 431));
    let target = format!("/v2/{}/tags/list", "a".repeat(100_000));
    let answer = raw::send(&daemon, raw::head("GET", &target, "")).await.unwrap();
    assert!([400, 414, 431].contains(&answer.status), "{}", answer.status);
    assert_eq!(daemon.get("").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_content_type_cannot_smuggle_headers_in() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    for blob in &image.blobs {
        daemon.push_blob("library/app", blob).await;
    }
    let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let injected = [
        "application/vnd.x\r\nx-injected: 1",
        "application/vnd.x\nx-injected: 1",
        "application/vnd.\u{0}",
        "application/vnd.ä",
    ];
    for (n, media_type) in injected.iter().enumerate() {
        let mut manifest = manifest.clone();
        manifest["mediaType"] = json!(media_type);
        let url = daemon.url(&format!("library/app/manifests/{n}"));
        let answer = daemon.client.put(url).body(manifest.to_string()).send().await.unwrap();
        refused(answer, 400, "MANIFEST_INVALID").await;

        let header = format!("content-type: {media_type}\r\ncontent-length: 2\r\n");
        let answer = raw::send(&daemon, raw::head("PUT", "/v2/library/app/manifests/x", &header) + "{}")
            .await
            .unwrap();
        assert_eq!(answer.status, 400, "{media_type:?}");
        assert_eq!(answer.header("x-injected"), None);
    }
    let target = "/v2/app/tags/list?n=1&last=a%0d%0ax-injected:%201";
    let answer = raw::send(&daemon, raw::head("GET", target, "")).await.unwrap();
    assert_eq!((answer.status, answer.header("x-injected")), (404, None));
}
