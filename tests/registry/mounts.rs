//! end-11: blobs of another repository.

use reqwest::{Response, StatusCode};
use shoal::oci::{Algorithm, Digest};

use super::common::{Daemon, Image, daemon, random_bytes};
use super::{header, refused};

async fn mount(daemon: &Daemon, repo: &str, query: &str) -> Response {
    daemon.client.post(daemon.url(&format!("{repo}/blobs/uploads/?{query}"))).send().await.unwrap()
}

#[tokio::test]
async fn a_blob_is_mounted_from_where_it_is() {
    let daemon = daemon().start();
    let content = random_bytes(1, 2_000_000);
    let digest = daemon.push_blob("library/multi", &content).await;
    let encoded = digest.to_string().replace(':', "%3A");
    let queries = [
        format!("mount={digest}&from=library/multi"),
        format!("from=library%2Fmulti&mount={encoded}"),
        format!("from=library%2Fmulti&mount={digest}&origin=registry.example"),
        format!("mount={digest}"),
        format!("mount={digest}&from="),
    ];
    for (n, query) in queries.iter().enumerate() {
        let repo = format!("team{n}/app");
        let mounted = mount(&daemon, &repo, query).await;
        assert_eq!(mounted.status(), StatusCode::CREATED, "{query}");
        assert_eq!(header(&mounted, "docker-content-digest"), Some(digest.to_string().as_str()));
        let location = daemon.location(&mounted);
        assert!(location.ends_with(&format!("/v2/{repo}/blobs/{digest}")), "{location}");
        assert!(daemon.client.get(location).send().await.unwrap().bytes().await.unwrap() == content);
    }
}

#[tokio::test]
async fn what_cannot_be_mounted_is_uploaded_instead() {
    let daemon = daemon().start();
    let content = random_bytes(1, 1000);
    let digest = daemon.push_blob("library/multi", &content).await;
    let absent = Digest::sha256(b"absent");
    for query in [
        format!("mount={digest}&from=library/nothing"),
        format!("mount={absent}&from=library/multi"),
        format!("mount={absent}"),
        format!("mount={}&from=library/multi", Digest::of(Algorithm::Sha512, &content)),
    ] {
        let answer = mount(&daemon, "team/app", &query).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "{query}");
        let location = daemon.location(&answer);
        assert!(location.contains("/v2/team/app/blobs/uploads/"), "{location}");
        assert_eq!(daemon.client.get(location).send().await.unwrap().status(), StatusCode::NO_CONTENT);
    }
    assert_eq!(daemon.get(&format!("team/app/blobs/{digest}")).await.status(), StatusCode::NOT_FOUND);
    refused(mount(&daemon, "team/app", "mount=sha256:zz&from=library/multi").await, 400, "DIGEST_INVALID")
        .await;
}

#[tokio::test]
async fn what_a_readonly_root_has_can_be_mounted_and_stays_without_its_author() {
    let publisher = daemon().start();
    let image = Image::small(9);
    publisher.push("library/theirs", "1", &image).await;
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).start();
    reader.serves("library/theirs", "1", &image).await;
    for (repo, query) in [("team/named", "&from=library/theirs"), ("team/found", "")] {
        for blob in &image.blobs {
            let query = format!("mount={}{query}", Digest::sha256(blob));
            assert_eq!(mount(&reader, repo, &query).await.status(), StatusCode::CREATED, "{query}");
        }
        assert_eq!(reader.put_manifest(repo, "1", &image.manifest).await.status(), StatusCode::CREATED);
    }
    publisher.kill();
    for repo in ["team/named", "team/found"] {
        assert_eq!(reader.pull(repo, "1").await.unwrap(), image);
        let manifest = reader.get(&format!("{repo}/manifests/1")).await;
        assert_eq!(header(&manifest, "x-shoal-source"), Some("own"));
    }
}
