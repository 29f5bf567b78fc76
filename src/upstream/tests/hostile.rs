//! Registries that mean harm: everything they send has a bound.

use super::fake::{Ending, Fake, Reply};
use super::*;
use crate::oci::manifest::MANIFEST_BYTES_MAX;

async fn refusal(fake: &Fake) -> UpstreamError {
    of(fake).manifest(&repo(), &latest()).await.unwrap_err()
}

#[tokio::test]
async fn a_manifest_that_never_ends_is_cut_off() {
    let endless =
        || Ending::Repeat(b"10000\r\n".iter().copied().chain([b' '; 65_536]).chain(*b"\r\n").collect());
    let fake = Fake::start(move |_| {
        Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ending(endless())
    })
    .await;
    let error = refusal(&fake).await;
    assert!(matches!(error, UpstreamError::TooLarge { bytes_max: MANIFEST_BYTES_MAX, .. }), "{error}");

    let boasting = Fake::start(|_| {
        Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n").ending(Ending::Hang)
    })
    .await;
    assert!(matches!(refusal(&boasting).await, UpstreamError::TooLarge { .. }), "what it says is enough");
}

#[tokio::test]
async fn a_small_body_that_unpacks_to_a_huge_one_is_cut_off() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, &vec![b' '; 3 * MANIFEST_BYTES_MAX]).unwrap();
    let bomb = encoder.finish().unwrap();
    let fake = Fake::start(move |_| Reply::new(200, &[("Content-Encoding", "gzip")], &bomb)).await;
    assert!(matches!(refusal(&fake).await, UpstreamError::TooLarge { .. }));
}

#[tokio::test]
async fn a_header_that_never_ends_is_cut_off() {
    let line = || Ending::Repeat(format!("X-Junk: {}\r\n", "x".repeat(8_000)).into_bytes());
    let fake = Fake::start(move |_| Reply::raw("HTTP/1.1 200 OK\r\n").ending(line())).await;
    assert!(matches!(refusal(&fake).await, UpstreamError::Unreachable { .. }));
}

#[tokio::test]
async fn a_loop_of_redirects_ends_with_an_error_that_says_so() {
    let fake = Fake::start(|_| Reply::new(307, &[("Location", "/again")], b"")).await;
    let error = refusal(&fake).await;
    assert!(matches!(error, UpstreamError::Redirect { .. }) && !error.is_transient(), "{error}");
    assert!(error.to_string().contains("more than 10 redirects"), "{error}");
    assert_eq!(fake.seen().len(), 11);
}

#[tokio::test]
async fn a_redirect_to_what_is_no_web_address_is_not_followed() {
    for location in ["file:///etc/passwd", "http://", "ftp://a.example/", "\u{e4}:", "gopher:x"] {
        let fake = Fake::start(move |_| Reply::new(302, &[("Location", location)], b"")).await;
        let error = refusal(&fake).await;
        assert!(matches!(error, UpstreamError::Redirect { .. }), "{location}: {error}");
    }
}

#[tokio::test]
async fn a_token_of_megabytes_is_not_read() {
    let issuer = Fake::start(|_| {
        let token = Ending::Repeat(vec![b'x'; 65_536]);
        Reply::raw("HTTP/1.0 200 OK\r\n\r\n{\"token\":\"").ending(token)
    })
    .await;
    let challenge = format!(r#"Bearer realm="{}/""#, issuer.url);
    let fake = Fake::start(move |_| Reply::new(401, &[("WWW-Authenticate", &challenge)], b"")).await;
    assert!(matches!(refusal(&fake).await, UpstreamError::TooLarge { what: "a token", .. }));
}

#[tokio::test]
async fn a_token_that_would_break_a_header_is_refused_and_not_shown() {
    for body in [r#"{"token":"a\r\nHost: hunter2"}"#, r#"{"token":["hunter2"]}"#, "hunter2"] {
        let issuer = Fake::start(move |_| Reply::new(200, &[], body.as_bytes())).await;
        let challenge = format!(r#"Bearer realm="{}/""#, issuer.url);
        let fake = Fake::start(move |_| Reply::new(401, &[("WWW-Authenticate", &challenge)], b"")).await;
        let error = refusal(&fake).await;
        assert!(matches!(error, UpstreamError::Malformed { .. }), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn a_part_from_elsewhere_in_the_blob_is_refused() {
    for range in ["bytes 6-9/10", "bytes 4-", "lines 4-9/10", ""] {
        let fake = Fake::start(move |_| Reply::new(206, &[("Content-Range", range)], &BLOB[4..])).await;
        let error = of(&fake).blob(&repo(), &Digest::sha256(BLOB), 4, None).await.err().unwrap();
        assert!(matches!(error, UpstreamError::Malformed { .. }), "{range}: {error}");
    }
}

#[tokio::test]
async fn lists_of_any_length_are_cut_off() {
    let fake = Fake::start(|_| {
        Reply::raw("HTTP/1.0 200 OK\r\n\r\n{\"tags\":[\"a\"").ending(Ending::Repeat(b",\"a\"".repeat(16_384)))
    })
    .await;
    let upstream = of(&fake);
    assert!(matches!(upstream.tags(&repo()).await, Err(UpstreamError::TooLarge { .. })));
    let referrers = upstream.referrers(&repo(), &Digest::sha256(BLOB)).await;
    assert!(matches!(referrers, Err(UpstreamError::TooLarge { .. })));
}

#[tokio::test]
async fn a_list_that_leads_on_and_on_is_given_up() {
    let fake = Fake::start(|_| {
        Reply::new(
            200,
            &[("Link", "</v2/library/alpine/tags/list?last=a>; rel=\"next\"")],
            br#"{"tags":["a"]}"#,
        )
    })
    .await;
    let error = of(&fake).tags(&repo()).await.unwrap_err().to_string();
    assert!(error.contains("more than 200 pages"), "{error}");
    assert_eq!(fake.asked().len(), 200);
}
