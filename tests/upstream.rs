//! What surrounds the client of other registries: the environment that a daemon finds itself in.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use common::{Image, daemon};

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
