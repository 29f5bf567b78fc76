//! Challenges and how they are met: what is shown to whom, how often, and what never leaves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use tempfile::NamedTempFile;

use super::fake::{Fake, Reply, Seen};
use super::*;
use crate::config::{Credentials, Secret};

/// `user:secret`, as Basic writes it.
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

fn password() -> Credentials {
    let password = Some(("user".to_owned(), Secret::new("secret".to_owned())));
    Credentials { password, ..Credentials::default() }
}

fn with(credentials: Credentials, fake: &Fake) -> Upstream {
    upstream(RegistryConfig { credentials, ..config(&[&fake.url]) })
}

/// Who shows `authorization` gets a manifest; others are challenged.
fn guarded(seen: &Seen, authorization: &str, challenge: &str) -> Reply {
    match seen.header("authorization") {
        Some(shown) if shown == authorization => manifest_reply(),
        _ => Reply::new(401, &[("WWW-Authenticate", challenge)], b""),
    }
}

/// A registry whose token server is `realm`, and takes what it gives.
async fn registry_of(realm: &str) -> Fake {
    let challenge = format!(r#"Bearer realm="{realm}/token",service="reg""#);
    Fake::start(move |seen| guarded(seen, "Bearer t0", &challenge)).await
}

fn token(text: &str) -> Reply {
    Reply::new(200, &[], format!(r#"{{"token":"{text}","expires_in":300}}"#).as_bytes())
}

async fn pull(upstream: &Upstream) -> Result<(), UpstreamError> {
    upstream.manifest(&repo(), &latest()).await.map(|found| assert!(found.is_some()))
}

#[tokio::test]
async fn a_password_is_shown_when_it_is_asked_for_and_from_then_on_at_once() {
    let fake = Fake::start(|seen| guarded(seen, BASIC, r#"Basic realm="x""#)).await;
    let upstream = with(password(), &fake);
    pull(&upstream).await.unwrap();
    pull(&upstream).await.unwrap();
    let seen = fake.seen();
    let shown: Vec<_> = seen.iter().map(|seen| seen.header("authorization")).collect();
    assert_eq!(shown, [None, Some(BASIC), Some(BASIC)]);
}

#[tokio::test]
async fn a_password_that_is_refused_is_not_tried_again() {
    let fake = Fake::start(|seen| guarded(seen, "Basic other", r#"Basic realm="x""#)).await;
    let upstream = with(password(), &fake);
    for requests in [2, 3] {
        let error = pull(&upstream).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains(HOST) && !error.to_string().contains("secret"), "{error}");
        assert_eq!(fake.seen().len(), requests);
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_per_repository_for_all_who_wait() {
    let issuer = Fake::start(|_| token("t0")).await;
    let fake = registry_of(&issuer.url).await;
    let upstream = with(Credentials::default(), &fake);
    for pulled in join_all((0..8).map(|_| pull(&upstream))).await {
        pulled.unwrap();
    }
    assert_eq!(issuer.asked(), ["GET /token?scope=repository%3Alibrary%2Falpine%3Apull&service=reg"]);
    assert_eq!(issuer.seen()[0].header("authorization"), None);
    upstream.manifest(&"other".parse().unwrap(), &latest()).await.unwrap();
    upstream.manifest(&"other".parse().unwrap(), &latest()).await.unwrap();
    assert_eq!(issuer.asked()[1..], ["GET /token?scope=repository%3Aother%3Apull&service=reg"]);
}

#[tokio::test]
async fn a_password_goes_to_the_token_server_and_the_token_to_the_registry() {
    let issuer = Fake::start(|_| token("t0")).await;
    let fake = registry_of(&issuer.url).await;
    pull(&with(password(), &fake)).await.unwrap();
    assert_eq!(issuer.seen()[0].header("authorization"), Some(BASIC));
    assert!(fake.seen().iter().all(|seen| seen.header("authorization") != Some(BASIC)));
}

#[tokio::test]
async fn a_refresh_token_is_exchanged_by_post() {
    let issuer = Fake::start(|_| Reply::new(200, &[], br#"{"token":"","access_token":"t0"}"#)).await;
    let fake = registry_of(&issuer.url).await;
    let identity_token = Some(Secret::new("re/fresh".to_owned()));
    pull(&with(Credentials { identity_token, ..Credentials::default() }, &fake)).await.unwrap();
    assert_eq!(issuer.asked(), ["POST /token"]);
    let body = &issuer.seen()[0].body;
    let fields: Vec<_> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    for (key, value) in [
        ("grant_type", "refresh_token"),
        ("refresh_token", "re/fresh"),
        ("service", "reg"),
        ("client_id", "shoal"),
        ("scope", "repository:library/alpine:pull"),
    ] {
        assert!(fields.contains(&(key.to_owned(), value.to_owned())), "{key} in {body}");
    }
}

#[tokio::test]
async fn a_token_server_that_knows_only_oauth_gets_a_post() {
    let issuer = Fake::start(|seen| match seen.method.as_str() {
        "GET" => Reply::status(405),
        _ => token("t0"),
    })
    .await;
    let fake = registry_of(&issuer.url).await;
    pull(&with(password(), &fake)).await.unwrap();
    assert!(issuer.seen()[1].body.contains("grant_type=password&username=user&password=secret"));
}

#[tokio::test]
async fn a_token_that_is_refused_is_renewed_once_and_then_401_is_final() {
    let issued = AtomicUsize::new(0);
    let issuer = Fake::start(move |_| token(&format!("t{}", issued.fetch_add(1, Ordering::SeqCst)))).await;
    let challenge = format!(r#"Bearer realm="{}/token",service="reg""#, issuer.url);
    let asked = AtomicUsize::new(0);
    // The first token is good for one request, the second for the next, and then none is.
    let fake = Fake::start(move |seen| match asked.fetch_add(1, Ordering::SeqCst) {
        1 => guarded(seen, "Bearer t0", &challenge),
        3 => guarded(seen, "Bearer t1", &challenge),
        _ => guarded(seen, "Bearer none", &challenge),
    })
    .await;
    let upstream = with(Credentials::default(), &fake);
    pull(&upstream).await.unwrap();
    pull(&upstream).await.unwrap();
    assert_eq!((issuer.seen().len(), fake.seen().len()), (2, 4));
    let error = pull(&upstream).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unauthorized { .. }), "{error}");
    assert_eq!((issuer.seen().len(), fake.seen().len()), (3, 6));
}

#[tokio::test]
async fn a_token_is_renewed_before_it_runs_out() {
    let issuer = Fake::start(|_| token("t0")).await;
    let fake = registry_of(&issuer.url).await;
    let upstream = with(Credentials::default(), &fake);
    pull(&upstream).await.unwrap();
    tokio::time::pause();
    // Some time passes by itself too.
    tokio::time::advance(Duration::from_secs(200)).await;
    tokio::time::resume();
    pull(&upstream).await.unwrap();
    assert_eq!(issuer.seen().len(), 1);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(41)).await;
    tokio::time::resume();
    pull(&upstream).await.unwrap();
    assert_eq!(issuer.seen().len(), 2, "of its 300 s, 241 are over");
}

#[tokio::test]
async fn what_a_token_server_answers_tells_what_is_wrong() {
    for (reply, is_expected) in [
        (401, (|error| matches!(error, UpstreamError::Unauthorized { .. })) as fn(&UpstreamError) -> bool),
        (400, |error| matches!(error, UpstreamError::Unauthorized { .. })),
        (429, |error| matches!(error, UpstreamError::RateLimited { .. })),
        (503, |error| matches!(error, UpstreamError::Status { status: 503, .. })),
        (204, |error| matches!(error, UpstreamError::Malformed { .. })),
    ] {
        let issuer = Fake::start(move |_| Reply::status(reply)).await;
        let fake = registry_of(&issuer.url).await;
        let error = pull(&with(password(), &fake)).await.unwrap_err();
        assert!(is_expected(&error), "{reply}: {error}");
    }
}

#[tokio::test]
async fn the_scope_of_a_challenge_counts_if_it_is_for_pulling() {
    for (named, scope) in [
        ("repository:proxy/library/alpine:pull", "repository%3Aproxy%2Flibrary%2Falpine%3Apull"),
        ("repository:library/alpine:pull,push", "repository%3Alibrary%2Falpine%3Apull"),
    ] {
        let issuer = Fake::start(|_| token("t0")).await;
        let challenge = format!(r#"Bearer realm="{}/token",scope="{named}""#, issuer.url);
        let fake = Fake::start(move |seen| guarded(seen, "Bearer t0", &challenge)).await;
        pull(&with(Credentials::default(), &fake)).await.unwrap();
        assert_eq!(issuer.asked(), [format!("GET /token?scope={scope}")]);
    }
}

#[tokio::test]
async fn a_login_in_a_config_of_docker_is_read_again_when_it_changed() {
    let file = NamedTempFile::new().unwrap();
    let write = |auth: &str| {
        let text = format!(r#"{{"auths": {{"{HOST}": {{"auth": "{auth}"}}}}}}"#);
        std::fs::write(file.path(), text).unwrap();
    };
    let fake = Fake::start(|seen| guarded(seen, BASIC, r#"Basic realm="x""#)).await;
    let docker_config = Some(file.path().to_owned());
    let upstream = with(Credentials { docker_config, ..Credentials::default() }, &fake);
    write("dXNlcjpvbGQ=");
    assert!(matches!(pull(&upstream).await, Err(UpstreamError::Unauthorized { .. })));
    write("dXNlcjpzZWNyZXQ=");
    pull(&upstream).await.unwrap();
    std::fs::write(file.path(), "{\"auths\": {\"x\": \"hunter2\"}}").unwrap();
    let error = pull(&upstream).await.unwrap_err().to_string();
    assert!(error.contains("is no config.json of Docker") && !error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn credentials_stay_behind_where_a_redirect_leads_to_another_host() {
    let storage = Fake::start(|_| Reply::new(200, &[], BLOB)).await;
    let elsewhere = format!("{}/signed?x=1", storage.url);
    let fake = Fake::start(move |seen| match (seen.header("authorization"), seen.target.as_str()) {
        (None, _) => Reply::new(401, &[("WWW-Authenticate", "Basic realm=\"x\"")], b""),
        (_, "/near") => Reply::new(302, &[("Location", &elsewhere)], b""),
        _ => Reply::new(307, &[("Location", "/near")], b""),
    })
    .await;
    let body = with(password(), &fake).blob(&repo(), &Digest::sha256(BLOB), 2, None).await.unwrap().unwrap();
    assert_eq!(all(body).await.unwrap(), BLOB);
    assert_eq!(fake.seen().last().unwrap().header("authorization"), Some(BASIC), "it is the same host");
    let [there] = &storage.seen()[..] else { panic!() };
    assert_eq!(there.target, "/signed?x=1");
    assert_eq!((there.header("authorization"), there.header("range")), (None, Some("bytes=2-")));
}

#[tokio::test]
async fn no_redirect_leads_from_https_to_http_unless_that_is_insecure_anyway() {
    let storage = Fake::start(|_| Reply::new(200, &[], BLOB)).await;
    let elsewhere = storage.url.clone();
    let (fake, pem) = Fake::start_tls(move |_| Reply::new(307, &[("Location", &elsewhere)], b"")).await;
    let ca = NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), pem).unwrap();
    let digest = Digest::sha256(BLOB);

    let checked = RegistryConfig { ca: Some(ca.path().to_owned()), ..config(&[&fake.url]) };
    let refused = upstream(checked).blob(&repo(), &digest, 0, None).await.err().unwrap();
    assert!(matches!(refused, UpstreamError::Redirect { .. }), "{refused}");
    assert_eq!(storage.seen().len(), 0);

    let insecure = RegistryConfig { insecure: true, ..config(&[&fake.url]) };
    let body = upstream(insecure).blob(&repo(), &digest, 0, None).await.unwrap().unwrap();
    assert_eq!(all(body).await.unwrap(), BLOB);

    let unknown = upstream(config(&[&fake.url])).blob(&repo(), &digest, 0, None).await.err().unwrap();
    assert!(matches!(unknown, UpstreamError::Unreachable { .. }), "{unknown}");
}

#[tokio::test]
async fn a_password_goes_to_no_token_server_over_http_unless_that_is_insecure_anyway() {
    let issuer = Fake::start(|_| token("t0")).await;
    let challenge = format!(r#"Bearer realm="{}/token",service="reg""#, issuer.url);
    let (fake, pem) = Fake::start_tls(move |seen| guarded(seen, "Bearer t0", &challenge)).await;
    let ca = NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), pem).unwrap();
    let checked = RegistryConfig { ca: Some(ca.path().to_owned()), ..config(&[&fake.url]) };

    let error = pull(&upstream(RegistryConfig { credentials: password(), ..checked.clone() })).await;
    assert!(matches!(error, Err(UpstreamError::Credentials { .. })), "{error:?}");
    assert_eq!(issuer.seen().len(), 0);
    pull(&upstream(checked)).await.unwrap();
    assert_eq!(issuer.seen()[0].header("authorization"), None);

    let insecure = RegistryConfig { insecure: true, credentials: password(), ..config(&[&fake.url]) };
    pull(&upstream(insecure)).await.unwrap();
    assert_eq!(issuer.seen()[1].header("authorization"), Some(BASIC));
}

#[tokio::test]
async fn a_proxy_is_told_the_whole_url_and_its_own_login() {
    let proxy = Fake::start(|_| manifest_reply()).await;
    let http_proxy = crate::config::HttpProxy {
        url: proxy.url.parse().unwrap(),
        login: Some(("user".to_owned(), Secret::new("secret".to_owned()))),
    };
    let config = RegistryConfig { http_proxy: Some(http_proxy), ..config(&["http://registry.example"]) };
    pull(&upstream(config)).await.unwrap();
    assert_eq!(proxy.asked(), ["GET http://registry.example/v2/library/alpine/manifests/latest"]);
    assert_eq!(proxy.seen()[0].header("proxy-authorization"), Some(BASIC));
}
