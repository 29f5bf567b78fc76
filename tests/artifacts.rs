//! Referrers, deletes, the catalog, and what a manifest must have: over the own tree and a reader's.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use common::{Daemon, IMAGE_MANIFEST, Image, daemon};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use shoal::oci::Digest;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const REPO: &str = "library/app";

/// An artifact of this type that refers to `subject`; its config is pushed.
async fn attach(daemon: &Daemon, subject: &[u8], kind: &str, note: &str) -> (Digest, Response) {
    let config = daemon.push_blob(REPO, b"{}").await;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": kind,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_string(), "size": 2},
        "layers": [],
        "subject": {"mediaType": IMAGE_MANIFEST, "digest": Digest::sha256(subject).to_string(), "size": subject.len()},
        "annotations": {"note": note},
    });
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let digest = Digest::sha256(&manifest);
    let answer = daemon.put_manifest(REPO, &digest.to_string(), &manifest).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    (digest, answer)
}

async fn json_of(daemon: &Daemon, path: &str) -> Value {
    let answer = daemon.get(path).await;
    assert_eq!(answer.status(), StatusCode::OK, "{path}");
    answer.json().await.unwrap()
}

fn digests(index: &Value) -> Vec<String> {
    let manifests = index["manifests"].as_array().unwrap();
    manifests.iter().map(|manifest| manifest["digest"].as_str().unwrap().to_owned()).collect()
}

async fn delete(daemon: &Daemon, path: &str) -> StatusCode {
    daemon.client.request(Method::DELETE, daemon.url(path)).send().await.unwrap().status()
}

/// Follows `Link` to the end and gives all names, and how many answers it took.
async fn all_pages(daemon: &Daemon, path: &str, field: &str) -> (Vec<String>, usize) {
    let (mut names, mut answers, mut next) = (Vec::new(), 0, Some(daemon.url(path)));
    while let Some(url) = next {
        let answer = daemon.client.get(url).send().await.unwrap();
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        next = link.map(|link| {
            let target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
            format!("{}{target}", daemon.registry)
        });
        let page: Value = answer.json().await.unwrap();
        names.extend(page[field].as_array().unwrap().iter().map(|name| match name.as_str() {
            Some(name) => name.to_owned(),
            None => name["digest"].as_str().unwrap().to_owned(),
        }));
        answers += 1;
    }
    (names, answers)
}

#[tokio::test]
async fn an_attached_signature_travels_with_its_image() {
    let publisher = daemon().start();
    let image = Image::small(1);
    let subject = Digest::sha256(&image.manifest);
    let (signature, answer) =
        attach(&publisher, &image.manifest, "application/vnd.example.signature", "a").await;
    assert_eq!(answer.headers()["oci-subject"], subject.to_string());
    let (sbom, _) = attach(&publisher, &image.manifest, "application/vnd.example.sbom", "b").await;
    // Last, so that a root with the image has them too.
    publisher.push(REPO, "1", &image).await;

    let reader = daemon().knows(&publisher).reads(&publisher.ipns).read_only().start();
    reader.serves(REPO, "1", &image).await;
    for who in [&publisher, &reader] {
        let all = json_of(who, &format!("{REPO}/referrers/{subject}")).await;
        let mut wanted = vec![signature.to_string(), sbom.to_string()];
        wanted.sort_unstable();
        assert_eq!((all["mediaType"].as_str(), digests(&all)), (Some(INDEX), wanted));

        let path = format!("{REPO}/referrers/{subject}?artifactType=application%2Fvnd.example.sbom");
        let answer = who.get(&path).await;
        assert_eq!(answer.headers()["oci-filters-applied"], "artifactType");
        assert_eq!(answer.headers()["content-type"], INDEX);
        let filtered: Value = answer.json().await.unwrap();
        let [only] = filtered["manifests"].as_array().unwrap().as_slice() else { panic!("{filtered}") };
        assert_eq!(only["digest"], sbom.to_string());
        assert_eq!(only["artifactType"], "application/vnd.example.sbom");
        assert_eq!(only["annotations"], json!({"note": "b"}));
        let body = who.get(&format!("{REPO}/manifests/{sbom}")).await.bytes().await.unwrap();
        assert_eq!((Digest::sha256(&body), only["size"].as_u64()), (sbom, Some(body.len() as u64)));

        let nobody = json_of(who, &format!("never/seen/referrers/{}", Digest::sha256(b"x"))).await;
        assert_eq!(digests(&nobody), Vec::<String>::new());
    }
}

#[tokio::test]
async fn referrers_come_in_pages_and_go_with_their_manifest() {
    let daemon = daemon().start();
    // A subject that is not here, and may come later.
    let subject = b"{\"schemaVersion\":2}";
    let mut wanted = Vec::new();
    for number in 0..5 {
        wanted.push(
            attach(&daemon, subject, "application/vnd.example.note", &number.to_string()).await.0.to_string(),
        );
    }
    wanted.sort_unstable();
    let path =
        format!("{REPO}/referrers/{}?n=2&artifactType=application/vnd.example.note", Digest::sha256(subject));
    assert_eq!(all_pages(&daemon, &path, "manifests").await, (wanted.clone(), 3));

    let gone = wanted.remove(2);
    assert_eq!(delete(&daemon, &format!("{REPO}/manifests/{gone}")).await, StatusCode::ACCEPTED);
    assert_eq!(all_pages(&daemon, &path, "manifests").await.0, wanted);
}

#[tokio::test]
async fn what_an_old_client_wrote_into_the_fallback_tag_is_listed() {
    let daemon = daemon().start();
    let image = Image::small(2);
    daemon.push(REPO, "1", &image).await;
    let subject = Digest::sha256(&image.manifest);
    let (listed, _) = attach(&daemon, &image.manifest, "application/vnd.example.note", "new").await;
    let noted = Digest::sha256(b"an attachment");
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": IMAGE_MANIFEST, "digest": noted.to_string(), "size": 13, "artifactType": "application/vnd.example.old"},
        {"mediaType": IMAGE_MANIFEST, "digest": listed.to_string(), "size": 1},
    ]});
    let tag = subject.to_string().replace(':', "-");
    let put = daemon
        .client
        .put(daemon.url(&format!("{REPO}/manifests/{tag}")))
        .header("content-type", INDEX)
        .body(index.to_string())
        .send();
    assert_eq!(put.await.unwrap().status(), StatusCode::CREATED);

    let all = json_of(&daemon, &format!("{REPO}/referrers/{subject}")).await;
    let mut wanted = vec![listed.to_string(), noted.to_string()];
    wanted.sort_unstable();
    assert_eq!(digests(&all), wanted);
    assert_eq!(json_of(&daemon, &format!("{REPO}/manifests/{tag}")).await, index);
}

#[tokio::test]
async fn a_deleted_tag_is_gone_for_good_and_its_manifest_stays() {
    let mut daemon = daemon().start();
    let image = Image::small(3);
    daemon.push(REPO, "1", &image).await;
    daemon.push(REPO, "2", &image).await;
    assert_eq!(delete(&daemon, &format!("{REPO}/manifests/1")).await, StatusCode::ACCEPTED);
    assert_eq!(delete(&daemon, &format!("{REPO}/manifests/1")).await, StatusCode::NOT_FOUND);
    daemon = daemon.kill_and_restart();
    assert_eq!(daemon.get(&format!("{REPO}/manifests/1")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(json_of(&daemon, &format!("{REPO}/tags/list")).await["tags"], json!(["2"]));
    assert_eq!(daemon.pull(REPO, "2").await.unwrap(), image);
}

#[tokio::test]
async fn a_deleted_manifest_takes_its_tags_and_no_others() {
    let daemon = daemon().start();
    let (gone, kept) = (Image::small(4), Image::small(5));
    for tag in ["a", "c"] {
        daemon.push(REPO, tag, &gone).await;
    }
    daemon.push(REPO, "b", &kept).await;
    daemon.push("other/app", "a", &gone).await;
    let digest = Digest::sha256(&gone.manifest);
    assert_eq!(delete(&daemon, &format!("{REPO}/manifests/{digest}")).await, StatusCode::ACCEPTED);
    assert_eq!(delete(&daemon, &format!("{REPO}/manifests/{digest}")).await, StatusCode::NOT_FOUND);
    assert_eq!(daemon.get(&format!("{REPO}/manifests/{digest}")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(json_of(&daemon, &format!("{REPO}/tags/list")).await["tags"], json!(["b"]));
    assert_eq!(daemon.pull(REPO, "b").await.unwrap(), kept);
    assert_eq!(daemon.pull("other/app", "a").await.unwrap(), gone);
}

#[tokio::test]
async fn a_deleted_blob_is_gone_from_its_repository_only() {
    let daemon = daemon().start();
    let digest = daemon.push_blob(REPO, b"a layer").await;
    daemon.push_blob("other/app", b"a layer").await;
    let path = format!("{REPO}/blobs/{digest}");
    assert_eq!(delete(&daemon, &path).await, StatusCode::ACCEPTED);
    assert_eq!(delete(&daemon, &path).await, StatusCode::NOT_FOUND);
    assert_eq!(daemon.get(&path).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(daemon.get(&format!("other/app/blobs/{digest}")).await.bytes().await.unwrap(), "a layer");
}

#[tokio::test]
async fn only_the_author_deletes_what_a_readonly_root_has() {
    let publisher = daemon().start();
    let image = Image::small(6);
    publisher.push(REPO, "1", &image).await;
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).start();
    reader.serves(REPO, "1", &image).await;
    for path in [
        format!("{REPO}/manifests/1"),
        format!("{REPO}/manifests/{}", Digest::sha256(&image.manifest)),
        format!("{REPO}/blobs/{}", Digest::sha256(&image.blobs[1])),
    ] {
        let answer = reader.client.delete(reader.url(&path)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["errors"][0]["code"], "DENIED");
        assert!(error["errors"][0]["message"].as_str().unwrap().contains(&publisher.ipns), "{error}");
    }
    // What was pushed over it is ours, and theirs shows again when it is gone.
    reader.push(REPO, "1", &Image::small(7)).await;
    assert_eq!(reader.get(&format!("{REPO}/manifests/1")).await.headers()["x-shoal-source"], "own");
    assert_eq!(delete(&reader, &format!("{REPO}/manifests/1")).await, StatusCode::ACCEPTED);
    let theirs = reader.get(&format!("{REPO}/manifests/1")).await;
    assert_eq!(theirs.headers()["x-shoal-source"], publisher.ipns);
    assert_eq!(theirs.bytes().await.unwrap(), image.manifest);
}

#[tokio::test]
async fn deleting_can_be_turned_off() {
    let daemon = daemon().env("REGISTRY_STORAGE_DELETE_ENABLED", "false").start();
    daemon.push(REPO, "1", &Image::small(8)).await;
    assert_eq!(delete(&daemon, &format!("{REPO}/manifests/1")).await, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(daemon.get(&format!("{REPO}/manifests/1")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_catalog_is_the_sorted_union_of_all_roots_in_pages() {
    let publisher = daemon().start();
    let image = Image::new(9, &[10]);
    for repo in ["a/b", "a-b/c", "a", "z", "both"] {
        publisher.push(repo, "1", &image).await;
    }
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).start();
    reader.serves("both", "1", &image).await;
    for repo in ["m/n/o", "both", "a/b/c"] {
        reader.push(repo, "1", &image).await;
    }
    // Bytewise: `-` sorts before `/`.
    let wanted = ["a", "a-b/c", "a/b", "a/b/c", "both", "m/n/o", "z"];
    assert_eq!(all_pages(&reader, "_catalog", "repositories").await, (wanted.map(str::to_owned).to_vec(), 1));
    for n in 1..8 {
        let (names, answers) = all_pages(&reader, &format!("_catalog?n={n}"), "repositories").await;
        assert_eq!(names, wanted, "by {n}");
        assert_eq!(answers, wanted.len().div_ceil(n), "by {n}");
    }
}

#[tokio::test]
async fn an_image_needs_its_blobs_and_an_index_may_be_sparse() {
    let daemon = daemon().start();
    let image = Image::small(10);
    let refused = daemon.put_manifest(REPO, "1", &image.manifest).await;
    assert_eq!(refused.status(), StatusCode::NOT_FOUND);
    let error: Value = refused.json().await.unwrap();
    assert_eq!(error["errors"][0]["code"], "MANIFEST_BLOB_UNKNOWN");
    assert_eq!(daemon.get(&format!("{REPO}/manifests/1")).await.status(), StatusCode::NOT_FOUND);

    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
        {"mediaType": IMAGE_MANIFEST, "digest": Digest::sha256(&image.manifest).to_string(), "size": image.manifest.len()}]});
    let put = |daemon: &Daemon| {
        let to = daemon.client.put(daemon.url(&format!("{REPO}/manifests/sparse")));
        to.header("content-type", INDEX).body(index.to_string()).send()
    };
    assert_eq!(put(&daemon).await.unwrap().status(), StatusCode::CREATED);

    let strict = common::daemon().env("REGISTRY_VALIDATION_MANIFESTS_INDEXES_PLATFORMS", "all").start();
    assert_eq!(put(&strict).await.unwrap().status(), StatusCode::NOT_FOUND);
    let open = common::daemon().env("REGISTRY_VALIDATION_DISABLED", "true").start();
    assert_eq!(open.put_manifest(REPO, "1", &image.manifest).await.status(), StatusCode::CREATED);
}
