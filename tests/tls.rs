//! TLS of the registry: whom it lets in, by which protocol, and what happens when its files change.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::authority::{Authority, trusting};
use common::{Daemon, PATIENCE, Setup, daemon, random_bytes};
use reqwest::{Client, StatusCode, Version, tls};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A daemon that serves with these files, and further entries of `http.tls`.
fn with_pair((certificate, key): &(PathBuf, PathBuf), more: &str) -> Setup {
    let files = format!("certificate: {}, key: {}", certificate.display(), key.display());
    daemon().http(&format!("tls: {{{files}{more}}}"))
}

async fn status(client: &Client, daemon: &Daemon) -> Result<StatusCode, reqwest::Error> {
    Ok(client.get(daemon.url("")).send().await?.status())
}

#[tokio::test]
async fn images_go_in_and_out_over_http1_and_http2() {
    let authority = Authority::new();
    let mut daemon = with_pair(&authority.pair_files(), "").start();
    assert!(daemon.registry.starts_with("https://127.0.0.1:"), "{}", daemon.registry);
    for (client, version) in
        [(authority.client().http1_only(), Version::HTTP_11), (authority.client(), Version::HTTP_2)]
    {
        daemon.client = client.build().unwrap();
        let blob = random_bytes(1, 12_000_000);
        let digest = daemon.push_blob("library/app", &blob).await;
        let answer = daemon.get(&format!("library/app/blobs/{digest}")).await;
        assert_eq!((answer.status(), answer.version()), (StatusCode::OK, version));
        assert!(answer.bytes().await.unwrap() == blob);
    }
}

#[tokio::test]
async fn a_stop_lets_a_download_over_http2_finish() {
    let authority = Authority::new();
    let mut daemon = with_pair(&authority.pair_files(), "").http("draintimeout: 60s").start();
    daemon.client = authority.client().build().unwrap();
    let blob = random_bytes(2, 48 << 20);
    let digest = daemon.push_blob("app", &blob).await;
    let mut answer = daemon.get(&format!("app/blobs/{digest}")).await;
    assert_eq!(answer.version(), Version::HTTP_2);
    let mut received = answer.chunk().await.unwrap().unwrap().to_vec();

    daemon.terminate();
    daemon.logs("stopping").await;
    while let Some(chunk) = answer.chunk().await.unwrap() {
        received.extend_from_slice(&chunk);
    }
    assert!(received == blob);
    assert!(daemon.ended().await, "{}", daemon.log());
}

#[tokio::test]
async fn http2_can_be_turned_off() {
    let authority = Authority::new();
    let daemon = with_pair(&authority.pair_files(), "").http("http2: {disabled: true}").start();
    let client = authority.client().build().unwrap();
    assert_eq!(client.get(daemon.url("")).send().await.unwrap().version(), Version::HTTP_11);
}

#[tokio::test]
async fn a_client_without_a_certificate_of_the_right_authority_is_refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let pair = authority.pair_files();
    let cas = format!(", clientcas: [{}]", authority.path("ca.pem").display());
    let strict = with_pair(&pair, &cas).start();
    let lenient = with_pair(&pair, &format!("{cas}, clientauth: verify-client-cert-if-given")).start();
    let nobody = authority.client().build().unwrap();
    let known = authority.client().identity(authority.identity()).build().unwrap();
    let unknown = authority.client().identity(stranger.identity()).build().unwrap();

    assert_eq!(status(&known, &strict).await.unwrap(), StatusCode::OK);
    status(&nobody, &strict).await.unwrap_err();
    status(&unknown, &strict).await.unwrap_err();
    assert_eq!(status(&known, &lenient).await.unwrap(), StatusCode::OK);
    assert_eq!(status(&nobody, &lenient).await.unwrap(), StatusCode::OK);
    status(&unknown, &lenient).await.unwrap_err();
}

#[tokio::test]
async fn an_old_version_of_tls_is_refused_where_it_is_not_wanted() {
    let authority = Authority::new();
    let pair = authority.pair_files();
    let (old, new) = (with_pair(&pair, "").start(), with_pair(&pair, ", minimumtls: tls1.3").start());
    let client = authority.client().tls_version_max(tls::Version::TLS_1_2).build().unwrap();

    assert_eq!(status(&client, &old).await.unwrap(), StatusCode::OK);
    status(&client, &new).await.unwrap_err();
    assert_eq!(status(&authority.client().build().unwrap(), &new).await.unwrap(), StatusCode::OK);
}

/// Puts the pair of another authority into the place of the files, as one step for each.
fn replace(pair: &(PathBuf, PathBuf), by: &(PathBuf, PathBuf)) {
    let put = |from: &Path, to: &Path| {
        let draft = to.with_extension("draft");
        fs::copy(from, &draft).unwrap();
        fs::rename(draft, to).unwrap();
    };
    put(&by.0, &pair.0);
    put(&by.1, &pair.1);
}

#[tokio::test]
async fn replaced_files_are_used_by_new_connections_while_old_ones_go_on() {
    let (before, after) = (Authority::new(), Authority::new());
    let pair = before.pair_files();
    let daemon = with_pair(&pair, "").start();
    let old = before.client().build().unwrap();
    assert_eq!(status(&old, &daemon).await.unwrap(), StatusCode::OK);

    replace(&pair, &after.pair_files());
    daemon.logs("new connections go by them").await;
    assert_eq!(status(&after.client().build().unwrap(), &daemon).await.unwrap(), StatusCode::OK);
    // It would not trust the new certificate: this goes over the connection it has.
    assert_eq!(status(&old, &daemon).await.unwrap(), StatusCode::OK);
    status(&before.client().build().unwrap(), &daemon).await.unwrap_err();
}

#[tokio::test]
async fn replaced_files_that_are_not_usable_change_nothing() {
    let authority = Authority::new();
    let pair = authority.pair_files();
    let daemon = with_pair(&pair, "").start();

    fs::write(&pair.0, "spoilt").unwrap();
    let line = daemon.logs("the old ones stay").await;
    assert!(line.contains("ERROR") && line.contains(pair.0.to_str().unwrap()), "{line}");
    assert_eq!(status(&authority.client().build().unwrap(), &daemon).await.unwrap(), StatusCode::OK);

    let stranger = Authority::new();
    fs::copy(stranger.pair_files().0, &pair.0).unwrap();
    daemon.logs("do not go together").await;
    assert_eq!(status(&authority.client().build().unwrap(), &daemon).await.unwrap(), StatusCode::OK);
}

#[tokio::test]
async fn a_self_signed_pair_outlives_a_restart() {
    let daemon = daemon().read_only().http("tls: {selfsigned: true}").start();
    let certificate = fs::read(daemon.data().join("tls/certificate.pem")).unwrap();
    let client = || trusting(&certificate).build().unwrap();
    assert_eq!(status(&client(), &daemon).await.unwrap(), StatusCode::OK);
    let line = daemon.logs("the certificate is self-signed").await;
    assert!(line.contains("sha256=") && line.contains("names=\"localhost,127.0.0.1,::1\""), "{line}");

    let daemon = daemon.kill_and_restart();
    assert_eq!(status(&client(), &daemon).await.unwrap(), StatusCode::OK);
}

/// What the server says to `bytes` until it closes.
async fn reply(daemon: &Daemon, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(daemon.socket()).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut reply = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut reply)).await;
    // A reset is an answer too.
    let _ = read.expect("the server closes");
    reply
}

#[tokio::test]
async fn http_on_the_port_of_https_and_the_other_way_round_is_answered_at_once() {
    let https = daemon().http("tls: {selfsigned: true}").start();
    let reply_text = String::from_utf8(reply(&https, b"GET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n").await).unwrap();
    assert!(reply_text.contains("400 Bad Request") && reply_text.contains("https"), "{reply_text}");

    let http = daemon().start();
    let client_hello = [&[0x16, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &[7; 194]].concat();
    let reply_text = String::from_utf8(reply(&http, &client_hello).await).unwrap();
    // Had it waited for the rest of a header, there would be no answer but an end.
    assert!(reply_text.starts_with("HTTP/1.1 400 "), "{reply_text:?}");
}

#[tokio::test]
async fn a_daemon_does_not_start_with_files_that_are_not_usable() {
    let authority = Authority::new();
    let (certificate, key) = authority.pair_files();
    let missing = authority.path("missing.pem");
    for (certificate, key, complaint) in [
        (&missing, &key, "cannot read "),
        (&key, &key, "has no certificate"),
        (&certificate, &certificate, "has no private key"),
    ] {
        let folder = TempDir::new().unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_shoal"))
            .arg("serve")
            .env("REGISTRY_HTTP_ADDR", "127.0.0.1:0")
            .env("REGISTRY_HTTP_DEBUG_ADDR", "\"\"")
            .env("REGISTRY_HTTP_TLS_CERTIFICATE", certificate)
            .env("REGISTRY_HTTP_TLS_KEY", key)
            .env("REGISTRY_STORAGE_IPFS_ROOTDIRECTORY", folder.path())
            .env("REGISTRY_P2P_LISTEN", "[]")
            .env("REGISTRY_P2P_BOOTSTRAP", "[]")
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains("config key http.tls: ") && errors.contains(complaint), "{errors}");
        assert_eq!(errors.matches("config key").count(), 1, "{errors}");
    }
}
