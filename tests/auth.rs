//! Who may do what, as clients see it: passwords, tokens, anonymous pull.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::process::Command;
use std::time::Instant;

use common::{Daemon, Image, PATIENCE, daemon};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use multibase::Base;
use rcgen::{CertificateParams, KeyPair};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use shoal::oci::Digest;
use tempfile::TempDir;

const PASSWORD: &str = "pass:wörd-of-alice";

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", Base::Base64Pad.encode(format!("{user}:{password}")))
}

/// A client that sends this header with each request.
fn client(authorization: &str) -> Client {
    let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(authorization).unwrap())]);
    Client::builder().default_headers(headers).build().unwrap()
}

/// The daemon as seen by who sends this header; an empty one is sent by nobody.
fn log_in(daemon: &mut Daemon, authorization: &str) {
    daemon.client = if authorization.is_empty() { Client::new() } else { client(authorization) };
}

fn challenge(answer: &Response) -> Option<&str> {
    answer.headers().get(WWW_AUTHENTICATE).map(|value| value.to_str().unwrap())
}

async fn code(answer: Response) -> String {
    let body: Value = answer.json().await.unwrap();
    body["errors"][0]["code"].as_str().unwrap().to_owned()
}

fn line(user: &str, password: &str) -> String {
    format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap())
}

/// A folder with an htpasswd file that has alice in it, and the section of the config.
fn htpasswd() -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("htpasswd");
    std::fs::write(&path, line("alice", PASSWORD)).unwrap();
    let section = format!("htpasswd: {{realm: \"The Shoal\", path: {}}}", path.display());
    (folder, section)
}

#[tokio::test]
async fn with_htpasswd_everything_needs_the_password() {
    let (_folder, section) = htpasswd();
    let mut daemon = daemon().auth(&format!("{{{section}}}")).start();
    for path in ["", "library/app/manifests/1", "library/app/tags/list"] {
        let answer = daemon.get(path).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{path}");
        assert_eq!(challenge(&answer), Some("Basic realm=\"The Shoal\""));
        assert_eq!(code(answer).await, "UNAUTHORIZED");
    }
    for wrong in
        [basic("alice", "wrong"), basic("bob", PASSWORD), "Bearer a.b.c".to_owned(), "nonsense".to_owned()]
    {
        log_in(&mut daemon, &wrong);
        let answer = daemon.get("").await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{wrong}");
        assert!(challenge(&answer).is_some());
    }
    log_in(&mut daemon, &basic("alice", PASSWORD));
    assert_eq!(daemon.get("").await.status(), StatusCode::OK);
    let image = Image::small(1);
    daemon.push("library/app", "1", &image).await;
    assert_eq!(daemon.pull("library/app", "1").await, Ok(image));
    assert_eq!(daemon.get("library/app/tags/list").await.status(), StatusCode::OK);
}

/// Asks the token server that a challenge names, as a client does.
async fn token_from(challenge: &str, authorization: &str) -> Result<String, StatusCode> {
    let realm = challenge.strip_prefix("Bearer realm=\"").unwrap().split('"').next().unwrap();
    let client = if authorization.is_empty() { Client::new() } else { client(authorization) };
    let answer = client.get(format!("{realm}?service=x")).send().await.unwrap();
    if answer.status() != StatusCode::OK {
        return Err(answer.status());
    }
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["token"], body["access_token"]);
    Ok(format!("Bearer {}", body["token"].as_str().unwrap()))
}

#[tokio::test]
async fn with_anonymous_pull_only_a_push_needs_the_password() {
    let (_folder, section) = htpasswd();
    let mut daemon = daemon().auth(&format!("{{{section}, anonymous: pull}}")).start();
    let ping = daemon.get("").await;
    assert_eq!(ping.status(), StatusCode::UNAUTHORIZED);
    let ping = challenge(&ping).unwrap().to_owned();
    let realm = format!("Bearer realm=\"{}/auth/token\",service=\"The Shoal\"", daemon.registry);
    assert_eq!(ping, realm);
    let refused = daemon.client.post(daemon.url("library/app/blobs/uploads/")).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        challenge(&refused),
        Some(format!("{realm},scope=\"repository:library/app:pull,push\"").as_str())
    );

    let nobody = token_from(&ping, "").await.unwrap();
    let alice = token_from(&ping, &basic("alice", PASSWORD)).await.unwrap();
    assert_eq!(token_from(&ping, &basic("alice", "wrong")).await, Err(StatusCode::UNAUTHORIZED));
    let image = Image::small(2);
    for (tag, shown) in [("token", &alice), ("password", &basic("alice", PASSWORD))] {
        log_in(&mut daemon, shown);
        assert_eq!(daemon.get("").await.status(), StatusCode::OK);
        daemon.push("library/app", tag, &image).await;
    }
    for nobody in ["", &nobody, &basic("", "")] {
        log_in(&mut daemon, nobody);
        assert_eq!(daemon.pull("library/app", "token").await.as_ref(), Ok(&image));
        let answer = daemon.put_manifest("library/app", "2", &image.manifest).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }
    for wrong in [basic("alice", "wrong"), "Bearer 0123456789abcdef".to_owned()] {
        log_in(&mut daemon, &wrong);
        let answer = daemon.get("library/app/manifests/token").await;
        assert_eq!(
            answer.status(),
            StatusCode::UNAUTHORIZED,
            "what is wrong is said, also where nothing is needed"
        );
    }
}

#[tokio::test]
async fn there_is_a_token_server_only_where_it_is_needed() {
    let (_folder, section) = htpasswd();
    for section in [format!("{{{section}}}"), "{}".to_owned()] {
        let daemon = daemon().auth(&section).start();
        let answer = daemon.client.get(format!("{}/auth/token", daemon.registry)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_changed_htpasswd_file_counts() {
    let (folder, section) = htpasswd();
    let mut daemon = daemon().auth(&format!("{{{section}}}")).start();
    log_in(&mut daemon, &basic("bob", "new"));
    assert_eq!(daemon.get("").await.status(), StatusCode::UNAUTHORIZED);
    std::fs::write(folder.path().join("htpasswd"), line("bob", "new")).unwrap();
    let begun = Instant::now();
    while daemon.get("").await.status() != StatusCode::OK {
        assert!(begun.elapsed() < PATIENCE, "{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    log_in(&mut daemon, &basic("alice", PASSWORD));
    assert_eq!(daemon.get("").await.status(), StatusCode::UNAUTHORIZED, "alice is gone");
}

/// A token server: its key, and the folder with the certificate that the registry knows.
struct Issuer {
    key: EncodingKey,
    folder: TempDir,
}

impl Issuer {
    fn new() -> Self {
        let pair = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&pair).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("bundle.pem"), certificate.pem()).unwrap();
        std::fs::write(folder.path().join("certificate"), Base::Base64Pad.encode(certificate.der())).unwrap();
        Self { key: EncodingKey::from_ec_der(&pair.serialize_der()), folder }
    }

    fn section(&self) -> String {
        format!(
            "token: {{realm: \"https://auth.example/token\", service: shoal, issuer: us, rootcertbundle: {}}}",
            self.folder.path().join("bundle.pem").display()
        )
    }

    fn bearer(&self, access: &Value) -> String {
        self.bearer_until(access, get_current_timestamp() + 300)
    }

    fn bearer_until(&self, access: &Value, expires_at: u64) -> String {
        let certificate = std::fs::read_to_string(self.folder.path().join("certificate")).unwrap();
        let header = Header { x5c: Some(vec![certificate]), ..Header::new(Algorithm::ES256) };
        let claims =
            json!({"iss": "us", "aud": "shoal", "sub": "alice", "exp": expires_at, "access": access});
        format!("Bearer {}", encode(&header, &claims, &self.key).unwrap())
    }
}

fn grants(entries: &[(&str, &[&str])]) -> Value {
    entries
        .iter()
        .map(|(name, actions)| json!({"type": "repository", "name": name, "actions": actions}))
        .collect()
}

#[tokio::test]
async fn a_token_allows_what_it_lists() {
    let issuer = Issuer::new();
    let mut daemon = daemon().auth(&format!("{{{}}}", issuer.section())).start();
    let realm = "Bearer realm=\"https://auth.example/token\",service=\"shoal\"";
    assert_eq!(challenge(&daemon.get("").await), Some(realm));
    let upload = daemon.client.post(daemon.url("library/app/blobs/uploads/")).send().await.unwrap();
    assert_eq!(upload.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        challenge(&upload),
        Some(format!("{realm},scope=\"repository:library/app:pull,push\"").as_str())
    );

    let image = Image::small(3);
    log_in(&mut daemon, &issuer.bearer(&grants(&[("library/app", &["pull", "push"])])));
    assert_eq!(daemon.get("").await.status(), StatusCode::OK);
    daemon.push("library/app", "1", &image).await;

    log_in(&mut daemon, &issuer.bearer(&grants(&[("library/app", &["pull"])])));
    assert_eq!(daemon.pull("library/app", "1").await, Ok(image.clone()));
    assert_eq!(daemon.get("library/app/tags/list").await.status(), StatusCode::OK);
    let refused = daemon.put_manifest("library/app", "2", &image.manifest).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let scope = "scope=\"repository:library/app:pull,push\",error=\"insufficient_scope\"";
    assert_eq!(challenge(&refused), Some(format!("{realm},{scope}").as_str()));
    assert_eq!(code(refused).await, "DENIED");
    assert_eq!(daemon.get("library/other/tags/list").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_token_that_does_not_hold_is_worth_nothing() {
    let issuer = Issuer::new();
    let mut daemon = daemon().auth(&format!("{{{}, anonymous: pull}}", issuer.section())).start();
    let everything = grants(&[("library/app", &["*"])]);
    let good = issuer.bearer(&everything);
    let unsigned = format!("{}.", &good[..good.rfind('.').unwrap()]);
    let bad = [
        issuer.bearer_until(&everything, get_current_timestamp() - 120),
        Issuer::new().bearer(&everything),
        unsigned,
        "Bearer x".to_owned(),
    ];
    for token in bad {
        log_in(&mut daemon, &token);
        // Refused for a pull too, that anybody may do: so a client gets a new one.
        let answer = daemon.get("library/app/manifests/1").await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        assert!(
            challenge(&answer).unwrap().ends_with(",error=\"invalid_token\""),
            "{:?}",
            challenge(&answer)
        );
    }
    log_in(&mut daemon, &good);
    assert_eq!(daemon.get("library/app/manifests/1").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_blob_is_mounted_only_from_where_it_may_be_pulled() {
    let issuer = Issuer::new();
    let mut daemon = daemon().auth(&format!("{{{}}}", issuer.section())).start();
    log_in(&mut daemon, &issuer.bearer(&grants(&[("secret", &["pull", "push"])])));
    let digest = daemon.push_blob("secret", b"the secret").await;
    let mount = async |daemon: &Daemon, from: &str| {
        let path = format!("app/blobs/uploads/?mount={digest}{from}");
        daemon.client.post(daemon.url(&path)).send().await.unwrap().status()
    };
    let own = ("app", &["pull", "push"][..]);
    log_in(&mut daemon, &issuer.bearer(&grants(&[own])));
    assert_eq!(mount(&daemon, "&from=secret").await, StatusCode::ACCEPTED, "an ordinary upload");
    assert_eq!(mount(&daemon, "").await, StatusCode::ACCEPTED, "who has it is not told");
    assert_eq!(daemon.get(&format!("app/blobs/{digest}")).await.status(), StatusCode::NOT_FOUND);
    log_in(&mut daemon, &issuer.bearer(&grants(&[own, ("secret", &["pull"])])));
    assert_eq!(mount(&daemon, "&from=secret").await, StatusCode::CREATED);
    assert_eq!(daemon.get(&format!("app/blobs/{digest}")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_mirrors_request_is_never_challenged() {
    let (_folder, section) = htpasswd();
    let mut daemon = daemon().auth(&format!("{{{section}}}")).start();
    for authorization in ["", &basic("docker", "hub-password")] {
        log_in(&mut daemon, authorization);
        let answer = daemon.get("library/app/manifests/1?ns=docker.io").await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(challenge(&answer), None);
        assert_eq!(code(answer).await, "DENIED");
    }
    log_in(&mut daemon, &basic("alice", PASSWORD));
    let answer = daemon.get("library/app/manifests/1?ns=docker.io").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn no_password_and_no_token_is_in_the_log() {
    let (_folder, section) = htpasswd();
    let issuer = Issuer::new();
    let mut secrets = vec![PASSWORD.to_owned(), "mistyped".to_owned()];
    let mut logs = String::new();
    for section in [section, issuer.section()] {
        let mut daemon =
            daemon().auth(&format!("{{{section}, anonymous: pull}}")).log("level: trace").start();
        let headers = [
            basic("alice", PASSWORD),
            basic("alice", "mistyped"),
            issuer.bearer(&grants(&[("app", &["pull"])])),
            issuer.bearer_until(&grants(&[]), 1),
        ];
        for header in headers {
            log_in(&mut daemon, &header);
            daemon.get("").await;
            daemon.put_manifest("app", "1", b"{}").await;
            let value = header.split_once(' ').unwrap().1;
            secrets.extend(value.split('.').map(str::to_owned));
        }
        logs.push_str(&daemon.log());
    }
    assert!(logs.contains("log-in refused") && logs.contains("token refused"), "{logs}");
    for secret in secrets {
        assert!(!logs.contains(&secret), "{secret} is in the log:\n{logs}");
    }
}

#[test]
fn auth_that_cannot_work_is_said_at_the_start() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("old"), "alice:$apr1$x$y\n").unwrap();
    std::fs::write(at("empty.pem"), "").unwrap();
    let token = "realm: https://a, service: b, issuer: c";
    let cases = [
        (
            format!("htpasswd: {{realm: x, path: {}}}", at("missing").display()),
            "auth.htpasswd.path: cannot read",
        ),
        (
            format!("htpasswd: {{realm: x, path: {}}}", at("old").display()),
            "line 1: a bcrypt hash is expected",
        ),
        (
            format!("token: {{{token}, rootcertbundle: {}}}", at("empty.pem").display()),
            "key that may sign tokens",
        ),
        (format!("token: {{{token}, jwks: {}}}", at("empty.pem").display()), "auth.token.jwks"),
        ("silly: {realm: x, service: z}".to_owned(), "auth.silly"),
    ];
    for (section, expected) in cases {
        let config = format!(
            "http: {{addr: \"127.0.0.1:0\", debug: {{addr: \"\"}}}}\nauth: {{{section}}}\n\
             storage: {{ipfs: {{rootdirectory: {}}}}}\np2p: {{listen: [], bootstrap: [], mdns: false}}\n",
            at("data").display()
        );
        std::fs::write(at("config.yaml"), config).unwrap();
        let ended =
            Command::new(env!("CARGO_BIN_EXE_shoal")).arg("serve").arg(at("config.yaml")).output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), Some(2), "{section}: {said}");
        assert!(said.contains(expected), "{section}: {said}");
    }
}

#[tokio::test]
async fn without_auth_everybody_may_do_everything() {
    let mut daemon = daemon().start();
    log_in(&mut daemon, &basic("anybody", "anything"));
    assert_eq!(challenge(&daemon.get("").await), None);
    let digest = daemon.push_blob("app", b"x").await;
    assert_eq!(digest, Digest::sha256(b"x"));
}
