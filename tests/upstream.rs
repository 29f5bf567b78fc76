//! What surrounds the client of other registries: the environment that a daemon finds itself in, and the ways in which
//! registries speak TLS.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use common::authority::Authority;
use common::{Daemon, Image, Setup, daemon};
use reqwest::StatusCode;

/// A registry over TLS, with further entries of `http.tls`.
fn registry_of(authority: &Authority, more: &str) -> Setup {
    let (certificate, key) = authority.pair_files();
    daemon().http(&format!("tls: {{certificate: {}, key: {}{more}}}", certificate.display(), key.display()))
}

/// A mirror of it, with further keys.
fn mirror_of(registry: &Daemon, authority: &Authority, more: &str) -> Daemon {
    let (url, ca) = (&registry.registry, authority.path("ca.pem"));
    let keys = format!("upstream: \"{url}\", ca: {}{more}", ca.display());
    daemon()
        .mirror(&format!(
            "{{defaultregistry: registry.example, registries: {{registry.example: {{{keys}}}}}}}"
        ))
        .start()
}

#[tokio::test]
async fn a_registry_is_asked_over_http2_where_it_speaks_it() {
    let authority = Authority::new();
    let image = Image::new(1, &[0, 1000, 24_000_000]);
    for (http2, version) in [("disabled: false", "HTTP/2.0"), ("disabled: true", "HTTP/1.1")] {
        let mut registry = registry_of(&authority, "").http(&format!("http2: {{{http2}}}")).start();
        registry.client = authority.client().build().unwrap();
        registry.push("app", "1", &image).await;
        let mirror = mirror_of(&registry, &authority, "");
        assert_eq!(mirror.pull("app", "1").await.unwrap(), image);
        // A line is written behind its answer.
        let asked = registry.logs_times("shoal/", image.blobs.len() + 1).await;
        assert!(asked.iter().all(|line| line.contains(version)), "{asked:?}");
    }
}

#[tokio::test]
async fn a_registry_that_wants_a_client_certificate_is_shown_the_one_of_its_config() {
    let authority = Authority::new();
    let (certificate, key) = authority.client_files();
    authority.pair_files();
    let clients = format!(", clientcas: [{}]", authority.path("ca.pem").display());
    let mut registry = registry_of(&authority, &clients).start();
    registry.client = authority.client().identity(authority.identity()).build().unwrap();
    let image = Image::small(2);
    registry.push("app", "1", &image).await;

    let shown = format!(", certificate: {}, key: {}", certificate.display(), key.display());
    let mirror = mirror_of(&registry, &authority, &shown);
    assert_eq!(mirror.pull("app", "1").await.unwrap(), image);

    let mirror = mirror_of(&registry, &authority, "");
    let answer = mirror.get("app/manifests/1").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let told = answer.text().await.unwrap();
    // The alert comes when the client's side of the handshake is over: hyper tells of it, or of a closed connection.
    let tells_why = ["CertificateRequired", "connection closed", "connection was not ready"];
    assert!(tells_why.iter().any(|why| told.contains(why)), "it does not tell why: {told}");
}

#[tokio::test]
async fn a_mirror_needs_neither_certificate_authorities_for_http_nor_the_proxies_of_the_environment() {
    let (registry, image) = (daemon().start(), Image::small(1));
    registry.push("app", "1", &image).await;
    let mirror = daemon()
        .env("SSL_CERT_FILE", "/nowhere")
        .env("SSL_CERT_DIR", "/nowhere")
        .env("HTTP_PROXY", "http://127.0.0.1:1")
        .env("http_proxy", "http://127.0.0.1:1")
        .env("ALL_PROXY", "http://127.0.0.1:1")
        .env("REGISTRY_PROXY_REMOTEURL", &registry.url(""))
        .start();
    mirror.serves("app", "1", &image).await;
    assert!(mirror.log().contains("certificate authorities"), "it is told why https would not work");
}
