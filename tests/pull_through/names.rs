//! Which registry a request means.

use reqwest::StatusCode;
use shoal::oci::Digest;

use crate::common::upstream::Upstream;
use crate::common::{IMAGE_MANIFEST, Image, daemon};
use crate::{PREFIXED, REGISTRY, REPO, ask, error, header, mirror_of};

#[tokio::test]
async fn a_registry_is_named_by_ns_by_path_or_by_default() {
    let image = Image::small(1);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let section = format!(
        "{{defaultregistry: {REGISTRY}, registries: {{{REGISTRY}: {{upstream: \"{}\"}}}}}}",
        upstream.url()
    );
    let mirror = daemon().mirror(&section).start();

    let answer = ask(&mirror, "manifests/1").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(header(&answer, "oci-namespace"), REGISTRY);
    assert_eq!(header(&answer, "x-shoal-source"), format!("upstream={REGISTRY}"));
    assert_eq!(header(&answer, "content-type"), IMAGE_MANIFEST);
    assert_eq!(header(&answer, "docker-content-digest"), Digest::sha256(&image.manifest).to_string());
    assert_eq!(answer.bytes().await.unwrap(), image.manifest);

    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image);
    assert_eq!(mirror.pull(REPO, "1").await.unwrap(), image);
    assert_eq!(upstream.count("GET", "/manifests/"), 1, "{:?}", upstream.seen());
    for blob in &image.blobs {
        assert_eq!(upstream.count("GET", &Digest::sha256(blob).to_string()), 1);
    }
}

#[tokio::test]
async fn distributions_proxy_is_the_default_registry() {
    let image = Image::small(2);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let mirror = daemon().env("REGISTRY_PROXY_REMOTEURL", &upstream.url()).start();
    assert_eq!(mirror.pull(REPO, "1").await.unwrap(), image);
    let ns = upstream.address;
    let answer = mirror.get(&format!("{REPO}/manifests/1?ns={ns}")).await;
    assert_eq!(answer.bytes().await.unwrap(), image.manifest);
}

#[tokio::test]
async fn images_of_docker_hub_have_many_names() {
    let image = Image::small(3);
    let upstream = Upstream::with("library/alpine", "1", &image).await;
    let section = format!(
        "{{defaultregistry: docker.io, registries: {{docker.io: {{upstream: \"{}\"}}}}}}",
        upstream.url()
    );
    let mirror = daemon().mirror(&section).start();
    for name in ["docker.io/library/alpine", "docker.io/alpine", "library/alpine", "alpine"] {
        assert_eq!(mirror.pull(name, "1").await.unwrap(), image, "{name}");
    }
    for ns in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
        let answer = mirror.get(&format!("library/alpine/manifests/1?ns={ns}")).await;
        assert_eq!(answer.status(), StatusCode::OK, "{ns}");
    }
    assert_eq!(upstream.count("GET", "/manifests/"), 1, "{:?}", upstream.seen());
}

#[tokio::test]
async fn a_registry_that_is_not_mirrored_is_404_and_is_not_dialled() {
    let (upstream, other) = (Upstream::start().await, Upstream::with(REPO, "1", &Image::small(4)).await);
    let mirror = mirror_of(&upstream, "").start();
    for ns in [other.address.to_string(), "other.example".to_owned(), "http:%2F%2Fother".to_owned()] {
        let answer = mirror.get(&format!("{REPO}/manifests/1?ns={ns}")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{ns}");
        assert!(!error(answer).await.0.is_empty(), "{ns}: no error of the specification");
    }
    let answer = mirror.get(&format!("other.example/{REPO}/manifests/1")).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(other.seen().is_empty() && upstream.seen().is_empty());
}

#[tokio::test]
async fn the_mirror_is_no_upstream_of_its_own() {
    let upstream = Upstream::with(REPO, "1", &Image::small(5)).await;
    let section = format!(
        "{{defaultregistry: {REGISTRY}, registries: {{{REGISTRY}: {{upstream: \"{}\"}}}}}}",
        upstream.url()
    );
    let mirror = daemon().mirror(&section).start();
    let own = Image::small(6);
    mirror.push("library/own", "1", &own).await;
    let ns = mirror.socket();
    let answer = mirror.get(&format!("{REPO}/manifests/1?ns={ns}")).await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(upstream.seen().is_empty(), "its own name means what it has itself");
    let answer = mirror.get(&format!("library/own/manifests/1?ns={ns}")).await;
    assert_eq!(answer.bytes().await.unwrap(), own.manifest);
}

#[tokio::test]
async fn a_loop_of_mirrors_is_cut() {
    let upstream = Upstream::with(REPO, "1", &Image::small(7)).await;
    let mirror = mirror_of(&upstream, "negativettl: 0s").start();
    let asked = |via: String| {
        let url = mirror.url(&format!("{REPO}/manifests/2?ns={REGISTRY}"));
        mirror.client.get(url).header("via", via).send()
    };
    assert_eq!(asked("1.1 somebody".to_owned()).await.unwrap().status(), StatusCode::NOT_FOUND);
    let seen = upstream.seen();
    let via = seen[0].header("via").unwrap();
    assert!(via.starts_with("1.1 somebody, "), "{via}");

    upstream.forget();
    assert_eq!(asked(via.to_owned()).await.unwrap().status(), StatusCode::NOT_FOUND);
    assert!(upstream.seen().is_empty(), "it was its own request that came back");
}
