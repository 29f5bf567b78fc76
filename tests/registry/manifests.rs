//! end-7: manifests as clients push them, by tag and by digest.

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use shoal::oci::{Algorithm, Digest};

use super::common::{Daemon, IMAGE_MANIFEST, Image, daemon};
use super::header;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

async fn put(daemon: &Daemon, target: &str, content_type: Option<&str>, manifest: &[u8]) -> Response {
    let request =
        daemon.client.put(daemon.url(&format!("library/app/manifests/{target}"))).body(manifest.to_vec());
    let request = match content_type {
        Some(content_type) => request.header("content-type", content_type),
        None => request,
    };
    request.send().await.unwrap()
}

async fn digest_of(daemon: &Daemon, reference: &str) -> String {
    let answer =
        daemon.client.head(daemon.url(&format!("library/app/manifests/{reference}"))).send().await.unwrap();
    header(&answer, "docker-content-digest").unwrap().to_owned()
}

#[tokio::test]
async fn each_type_of_manifest_is_served_as_it_was_pushed() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    daemon.push("library/app", "base", &image).await;
    let untyped = |mut manifest: Value, media_type: Option<&str>| {
        manifest.as_object_mut().unwrap().remove("mediaType");
        if let Some(media_type) = media_type {
            manifest["mediaType"] = media_type.into();
        }
        manifest
    };
    let manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let index = json!({"schemaVersion": 2, "manifests": [
        {"mediaType": IMAGE_MANIFEST, "digest": Digest::sha256(&image.manifest).to_string(), "size": image.manifest.len()},
    ]});
    let empty_index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
    let mut artifact = untyped(manifest.clone(), Some(IMAGE_MANIFEST));
    artifact["artifactType"] = "application/vnd.example.thing".into();
    artifact["annotations"] = json!({"org.example/ä": "\u{0}"});

    let cases = [
        (untyped(manifest.clone(), Some(IMAGE_MANIFEST)), Some(IMAGE_MANIFEST), IMAGE_MANIFEST),
        (untyped(manifest.clone(), None), Some(IMAGE_MANIFEST), IMAGE_MANIFEST),
        (untyped(manifest.clone(), None), None, IMAGE_MANIFEST),
        (untyped(manifest.clone(), None), Some("application/json"), IMAGE_MANIFEST),
        (untyped(manifest.clone(), Some(DOCKER_MANIFEST)), Some(DOCKER_MANIFEST), DOCKER_MANIFEST),
        (untyped(manifest.clone(), Some(DOCKER_MANIFEST)), None, DOCKER_MANIFEST),
        (
            untyped(manifest, Some(IMAGE_MANIFEST)),
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
            IMAGE_MANIFEST,
        ),
        (untyped(index.clone(), Some(OCI_INDEX)), Some(OCI_INDEX), OCI_INDEX),
        (untyped(index.clone(), None), Some(OCI_INDEX), OCI_INDEX),
        (untyped(index.clone(), None), None, OCI_INDEX),
        (untyped(index, Some(DOCKER_LIST)), Some(DOCKER_LIST), DOCKER_LIST),
        (empty_index, Some(OCI_INDEX), OCI_INDEX),
        (artifact, Some(IMAGE_MANIFEST), IMAGE_MANIFEST),
    ];
    for (n, (manifest, content_type, wanted)) in cases.into_iter().enumerate() {
        let bytes = serde_json::to_vec_pretty(&manifest).unwrap();
        let pushed = put(&daemon, &format!("t{n}"), content_type, &bytes).await;
        assert_eq!(pushed.status(), StatusCode::CREATED, "{manifest}: {}", pushed.text().await.unwrap());
        let digest = Digest::sha256(&bytes).to_string();
        assert_eq!(header(&pushed, "docker-content-digest"), Some(digest.as_str()));
        assert!(daemon.location(&pushed).ends_with(&format!("/v2/library/app/manifests/{digest}")));
        for reference in [format!("t{n}"), digest] {
            let answer = daemon.get(&format!("library/app/manifests/{reference}")).await;
            assert_eq!(header(&answer, "content-type"), Some(wanted), "{manifest}");
            assert_eq!(answer.bytes().await.unwrap(), bytes);
        }
    }
}

#[tokio::test]
async fn a_manifest_is_put_by_its_digest() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    for blob in &image.blobs {
        daemon.push_blob("library/app", blob).await;
    }
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, &image.manifest).to_string();
        let pushed = put(&daemon, &digest, Some(IMAGE_MANIFEST), &image.manifest).await;
        assert_eq!(pushed.status(), StatusCode::CREATED, "{}", pushed.text().await.unwrap());
        assert_eq!(header(&pushed, "docker-content-digest"), Some(digest.as_str()));
        let answer = daemon.get(&format!("library/app/manifests/{digest}")).await;
        assert_eq!(header(&answer, "docker-content-digest"), Some(digest.as_str()));
        assert_eq!(answer.bytes().await.unwrap(), image.manifest);
    }
    let tags: Value = daemon.get("library/app/tags/list").await.json().await.unwrap();
    assert_eq!(tags["tags"], json!([]));
}

#[tokio::test]
async fn a_manifest_put_by_digest_is_tagged_in_the_same_request() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    for blob in &image.blobs {
        daemon.push_blob("library/app", blob).await;
    }
    for (algorithm, tags) in [(Algorithm::Sha256, ["a", "b"]), (Algorithm::Sha512, ["c", "b"])] {
        let digest = Digest::of(algorithm, &image.manifest).to_string();
        let target = format!("{digest}?tag={}&tag={}", tags[0], tags[1]);
        let pushed = put(&daemon, &target, Some(IMAGE_MANIFEST), &image.manifest).await;
        assert_eq!(pushed.status(), StatusCode::CREATED, "{}", pushed.text().await.unwrap());
        let told: Vec<_> =
            pushed.headers().get_all("oci-tag").iter().map(|tag| tag.to_str().unwrap()).collect();
        assert_eq!(told, tags);
        for tag in tags {
            assert_eq!(digest_of(&daemon, tag).await, digest);
        }
    }
}

#[tokio::test]
async fn a_manifest_put_by_tag_may_choose_its_digest() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    for blob in &image.blobs {
        daemon.push_blob("library/app", blob).await;
    }
    for (tag, algorithm) in [("a", Algorithm::Sha256), ("b", Algorithm::Sha512)] {
        let digest = Digest::of(algorithm, &image.manifest).to_string();
        let pushed =
            put(&daemon, &format!("{tag}?digest={digest}"), Some(IMAGE_MANIFEST), &image.manifest).await;
        assert_eq!(header(&pushed, "docker-content-digest"), Some(digest.as_str()));
        assert_eq!(digest_of(&daemon, tag).await, digest);
    }
}

#[tokio::test]
async fn a_tag_moves_and_the_old_manifest_stays() {
    let daemon = daemon().start();
    let (old, new) = (Image::new(1, &[100]), Image::new(2, &[100]));
    daemon.push("library/app", "1", &old).await;
    daemon.push("library/app", "1", &new).await;
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), new);
    let old_digest = Digest::sha256(&old.manifest).to_string();
    assert_eq!(daemon.pull("library/app", &old_digest).await.unwrap(), old);

    daemon.push("library/app", "1", &old).await;
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), old);
    let tags: Value = daemon.get("library/app/tags/list").await.json().await.unwrap();
    assert_eq!(tags["tags"], json!(["1"]));
}

#[tokio::test]
async fn a_manifest_may_fill_four_mebibytes() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    daemon.push("library/app", "1", &image).await;
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let room = (4 << 20) - image.manifest.len() - r#""annotations":{"a":""},"#.len();
    manifest["annotations"] = json!({"a": "x".repeat(room)});
    let bytes = serde_json::to_vec(&manifest).unwrap();
    assert_eq!(bytes.len(), 4 << 20);
    let pushed = put(&daemon, "full", Some(IMAGE_MANIFEST), &bytes).await;
    assert_eq!(pushed.status(), StatusCode::CREATED);
    assert!(daemon.get("library/app/manifests/full").await.bytes().await.unwrap() == bytes);
}

#[tokio::test]
async fn layers_that_lie_elsewhere_need_not_be_here() {
    let daemon = daemon().start();
    let image = Image::new(1, &[100]);
    daemon.push("library/app", "1", &image).await;
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let elsewhere = json!({
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": Digest::sha256(b"elsewhere").to_string(),
        "size": 9,
        "urls": ["https://registry.example/layer"],
    });
    manifest["layers"].as_array_mut().unwrap().push(elsewhere);
    let pushed = put(&daemon, "2", Some(IMAGE_MANIFEST), &serde_json::to_vec(&manifest).unwrap()).await;
    assert_eq!(pushed.status(), StatusCode::CREATED);
}
