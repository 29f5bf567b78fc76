//! end-1, end-2 and end-3: what a puller sees of manifests and blobs, by GET and HEAD.

use reqwest::{Method, StatusCode};
use shoal::oci::{Algorithm, Digest};

use super::common::{IMAGE_MANIFEST, Image, daemon, random_bytes};
use super::{header, refused};

#[tokio::test]
async fn the_version_is_an_empty_object() {
    let daemon = daemon().start();
    for path in ["", "?x=y"] {
        let answer = daemon.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(header(&answer, "docker-distribution-api-version"), Some("registry/2.0"));
        assert_eq!(answer.text().await.unwrap(), "{}");
    }
    let without_slash = daemon.client.get(format!("{}/v2", daemon.registry)).send().await.unwrap();
    assert_eq!(without_slash.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_manifest_is_served_byte_for_byte_with_what_clients_need_to_know() {
    let daemon = daemon().start();
    let mut image = Image::new(1, &[100]);
    let odd = format!(
        " \n\t{} \r\n\n",
        String::from_utf8(image.manifest.clone()).unwrap().replace("\":", "\" :\t")
    );
    image.manifest = odd.into_bytes();
    let digest = Digest::sha256(&image.manifest).to_string();
    daemon.push("library/app", "1", &image).await;

    for reference in ["1", &digest] {
        for method in [Method::GET, Method::HEAD] {
            let url = daemon.url(&format!("library/app/manifests/{reference}?ns=registry.example"));
            let answer = daemon
                .client
                .request(method.clone(), url)
                .header("accept", "text/html")
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(header(&answer, "content-type"), Some(IMAGE_MANIFEST));
            assert_eq!(header(&answer, "docker-content-digest"), Some(digest.as_str()));
            assert_eq!(header(&answer, "content-length"), Some(image.manifest.len().to_string().as_str()));
            assert_eq!(header(&answer, "etag"), Some(format!("\"{digest}\"").as_str()));
            let body = answer.bytes().await.unwrap();
            assert_eq!(body, if method == Method::GET { image.manifest.clone() } else { Vec::new() });
        }
    }
}

#[tokio::test]
async fn what_the_client_has_already_is_not_sent_again() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    daemon.push("library/app", "1", &image).await;
    let (manifest, layer) = (Digest::sha256(&image.manifest), Digest::sha256(&image.blobs[1]));
    let paths = [
        ("library/app/manifests/1".to_owned(), manifest),
        (format!("library/app/manifests/{manifest}"), manifest),
        (format!("library/app/blobs/{layer}"), layer),
    ];
    for (path, digest) in paths {
        let ask = async |tag: String| {
            daemon.client.get(daemon.url(&path)).header("if-none-match", tag).send().await
        };
        for tag in [
            format!("\"{digest}\""),
            format!("W/\"{digest}\""),
            format!("\"a\", \"{digest}\""),
            "*".to_owned(),
        ] {
            let answer = ask(tag.clone()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::NOT_MODIFIED, "{tag}");
            assert_eq!(header(&answer, "etag"), Some(format!("\"{digest}\"").as_str()));
            assert_eq!(answer.bytes().await.unwrap(), Vec::new());
        }
        for tag in
            ["\"a\"".to_owned(), String::new(), "\"".to_owned(), format!("\"{}\"", Digest::sha256(b"other"))]
        {
            assert_eq!(ask(tag.clone()).await.unwrap().status(), StatusCode::OK, "{tag}");
        }
    }
}

#[tokio::test]
async fn bytes_are_sent_as_they_were_pushed_whatever_encoding_is_accepted() {
    let daemon = daemon().start();
    let image = Image::new(1, &[200_000]);
    daemon.push("library/app", "1", &image).await;
    let layer = Digest::sha256(&image.blobs[1]);
    let wanted = [("manifests/1".to_owned(), &image.manifest), (format!("blobs/{layer}"), &image.blobs[1])];
    for encoding in ["gzip", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5", "identity;q=0", "*"] {
        for (path, bytes) in &wanted {
            let url = daemon.url(&format!("library/app/{path}"));
            let answer = daemon.client.get(url).header("accept-encoding", encoding).send().await.unwrap();
            assert_eq!(header(&answer, "content-encoding"), None);
            assert_eq!(header(&answer, "transfer-encoding"), None);
            assert_eq!(header(&answer, "content-length"), Some(bytes.len().to_string().as_str()));
            assert_eq!(answer.bytes().await.unwrap(), **bytes);
        }
    }
}

#[tokio::test]
async fn a_blob_tells_its_size_and_digest() {
    let daemon = daemon().start();
    for blob in [
        Vec::new(),
        random_bytes(1, 1),
        random_bytes(2, 1 << 20),
        random_bytes(3, (1 << 20) + 1),
        random_bytes(4, 3_000_000),
    ] {
        let digest = daemon.push_blob("library/app", &blob).await;
        for method in [Method::GET, Method::HEAD] {
            let url = daemon.url(&format!("library/app/blobs/{digest}"));
            let answer = daemon.client.request(method.clone(), url).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(header(&answer, "content-type"), Some("application/octet-stream"));
            assert_eq!(header(&answer, "content-length"), Some(blob.len().to_string().as_str()));
            assert_eq!(header(&answer, "docker-content-digest"), Some(digest.to_string().as_str()));
            assert_eq!(header(&answer, "etag"), Some(format!("\"{digest}\"").as_str()));
            assert_eq!(header(&answer, "accept-ranges"), Some("bytes"));
            let body = answer.bytes().await.unwrap();
            assert_eq!(body, if method == Method::GET { blob.clone() } else { Vec::new() });
        }
    }
}

#[tokio::test]
async fn a_manifest_may_be_asked_for_as_a_blob() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    daemon.push("library/app", "1", &image).await;
    let answer = daemon.get(&format!("library/app/blobs/{}", Digest::sha256(&image.manifest))).await;
    assert_eq!(answer.bytes().await.unwrap(), image.manifest);
}

#[tokio::test]
async fn a_part_of_a_blob_is_sent_when_one_is_asked_for() {
    let daemon = daemon().start();
    let blob = random_bytes(1, 2_500_000);
    let size = blob.len();
    let digest = daemon.push_blob("library/app", &blob).await;
    let url = daemon.url(&format!("library/app/blobs/{digest}"));
    let ask = async |range: &str| daemon.client.get(&url).header("range", range).send().await.unwrap();

    let parts = [
        ("bytes=0-", 0..size),
        ("bytes=0-0", 0..1),
        ("bytes=10-19", 10..20),
        ("bytes=1048570-1048585", 1_048_570..1_048_586),
        ("bytes=2499999-", size - 1..size),
        ("bytes=2000000-9999999", 2_000_000..size),
        ("bytes=2000000-99999999999999999999999", 2_000_000..size),
        ("bytes=-5", size - 5..size),
        ("bytes=-9999999", 0..size),
        ("bytes=-99999999999999999999999", 0..size),
    ];
    for (range, part) in parts {
        let answer = ask(range).await;
        assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(header(&answer, "content-length"), Some(part.len().to_string().as_str()), "{range}");
        let content_range = format!("bytes {}-{}/{size}", part.start, part.end - 1);
        assert_eq!(header(&answer, "content-range"), Some(content_range.as_str()), "{range}");
        assert!(answer.bytes().await.unwrap() == blob[part], "{range}");
    }
    for range in [
        "bytes=2500000-",
        "bytes=5000000-10000000",
        "bytes=500-0",
        "bytes=-0",
        "bytes=99999999999999999999999-",
    ] {
        let answer = ask(range).await;
        assert_eq!(header(&answer, "content-range"), Some("bytes */2500000"), "{range}");
        refused(answer, 416, "SIZE_INVALID").await;
    }
    // Several ranges, other units and nonsense are ignored, as RFC 9110 allows.
    for range in
        ["bytes=0-1,5-6", "bytes=0-1, -1", "bytes=", "bytes=-", "bytes=a-b", "items=0-5", "0-5", "bytes=+1-5"]
    {
        let answer = ask(range).await;
        assert_eq!(answer.status(), StatusCode::OK, "{range}");
        assert!(answer.bytes().await.unwrap() == blob, "{range}");
    }
    // Ranges are defined for GET only (RFC 9110, section 14.2).
    let head = daemon.client.head(&url).header("range", "bytes=0-9").send().await.unwrap();
    assert_eq!(head.status(), StatusCode::OK);
    assert_eq!(header(&head, "content-length"), Some("2500000"));
}

#[tokio::test]
async fn parallel_ranges_make_up_the_blob() {
    let daemon = daemon().start();
    let blob = random_bytes(1, 10_000_000);
    let digest = daemon.push_blob("library/app", &blob).await;
    let url = daemon.url(&format!("library/app/blobs/{digest}"));
    let step = 700_001;
    let parts = (0..blob.len()).step_by(step).map(|first| {
        let request = daemon.client.get(&url).header("range", format!("bytes={first}-{}", first + step - 1));
        async move { request.send().await.unwrap().bytes().await.unwrap() }
    });
    assert!(futures::future::join_all(parts).await.concat() == blob);
}

#[tokio::test]
async fn what_is_not_here_is_said_with_the_codes_of_the_specification() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    daemon.push("library/app", "1", &image).await;
    let layer = Digest::sha256(&image.blobs[1]);
    let nothing = [Digest::sha256(b"nothing"), Digest::of(Algorithm::Sha512, b"nothing")];
    for digest in nothing {
        refused(daemon.get(&format!("library/app/manifests/{digest}")).await, 404, "MANIFEST_UNKNOWN").await;
        refused(daemon.get(&format!("library/app/blobs/{digest}")).await, 404, "BLOB_UNKNOWN").await;
    }
    let message = refused(daemon.get("library/app/manifests/2").await, 404, "MANIFEST_UNKNOWN").await;
    assert_eq!(message, "manifest library/app:2 is unknown here");
    refused(daemon.get("library/other/manifests/1").await, 404, "MANIFEST_UNKNOWN").await;
    refused(daemon.get(&format!("library/other/blobs/{layer}")).await, 404, "BLOB_UNKNOWN").await;
    refused(daemon.get("library/other/tags/list").await, 404, "NAME_UNKNOWN").await;
    refused(daemon.get(&format!("library/app/manifests/{layer}")).await, 404, "MANIFEST_UNKNOWN").await;

    let head = daemon.client.head(daemon.url("library/app/manifests/2")).send().await.unwrap();
    assert_eq!(head.status(), StatusCode::NOT_FOUND);
    assert_eq!(head.bytes().await.unwrap(), Vec::new());
}
