//! Registries that fail, in each way that one can: what is told of it, and what is done about it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;

use super::fake::{Ending, Fake, Reply};
use super::*;

const CLOSED: &str = "http://127.0.0.1:1";

async fn blob(fake: &Fake) -> Result<Bytes, UpstreamError> {
    all(of(fake).blob(&repo(), &Digest::sha256(BLOB), 0, None).await?.unwrap()).await
}

async fn manifest(fake: &Fake, reference: &Reference) -> Result<Fetched, UpstreamError> {
    of(fake).manifest(&repo(), reference).await.map(Option::unwrap)
}

#[tokio::test]
async fn every_status_is_told_apart_and_named_with_the_registry() {
    for (status, is_expected, is_transient) in [
        (
            401,
            (|error| matches!(error, UpstreamError::Unauthorized { .. })) as fn(&UpstreamError) -> bool,
            false,
        ),
        (403, |error| matches!(error, UpstreamError::Forbidden { .. }), false),
        (400, |error| matches!(error, UpstreamError::Status { status: 400, .. }), false),
        (408, |error| matches!(error, UpstreamError::Status { status: 408, .. }), true),
        (429, |error| matches!(error, UpstreamError::RateLimited { .. }), true),
        (500, |error| matches!(error, UpstreamError::Status { status: 500, .. }), true),
        (503, |error| matches!(error, UpstreamError::Status { status: 503, .. }), true),
        (302, |error| matches!(error, UpstreamError::Status { status: 302, .. }), false),
    ] {
        let fake = Fake::start(move |_| Reply::status(status)).await;
        let error = manifest(&fake, &latest()).await.unwrap_err();
        assert!(is_expected(&error), "{status}: {error}");
        assert_eq!(error.is_transient(), is_transient, "{status}");
        assert!(error.to_string().contains(HOST), "{error}");
    }
}

#[tokio::test]
async fn what_passes_at_once_is_asked_for_twice() {
    for fault in [|| Reply::status(503), || Reply::raw("").ending(Ending::Reset), || Reply::raw("")] {
        let asked = AtomicUsize::new(0);
        let fake = Fake::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => fault(),
            _ => manifest_reply(),
        })
        .await;
        manifest(&fake, &latest()).await.unwrap();
        assert_eq!(fake.seen().len(), 2);
    }
}

#[tokio::test]
async fn who_asks_for_patience_is_not_asked_twice() {
    for status in [429, 503] {
        let fake = Fake::start(move |_| Reply::new(status, &[("Retry-After", "30")], b"")).await;
        let upstream = of(&fake);
        let error = upstream.manifest(&repo(), &latest()).await.unwrap_err();
        assert_eq!(error.retry_after(), Some(Duration::from_secs(30)), "{error}");
        let error = upstream.manifest(&repo(), &latest()).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Resting { .. }), "{error}");
        assert_eq!((fake.seen().len(), upstream.is_asked()), (1, false));
    }
}

#[tokio::test]
async fn a_dead_registry_is_left_in_peace_and_then_tried_again() {
    let asked = AtomicUsize::new(0);
    let fake = Fake::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0..4 => Reply::status(500),
        _ => manifest_reply(),
    })
    .await;
    let upstream = of(&fake);
    for _ in 0..2 {
        upstream.manifest(&repo(), &latest()).await.unwrap_err();
    }
    let error = upstream.manifest(&repo(), &latest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Resting { .. }), "{error}");
    assert!(error.to_string().contains("answered 500"), "it tells why: {error}");
    assert_eq!(fake.seen().len(), 4);

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    // One of these finds out, and the others wait for that.
    let (repo, latest) = (repo(), latest());
    let answers = join_all((0..5).map(|_| upstream.manifest(&repo, &latest))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert!(upstream.is_asked());
}

#[tokio::test]
async fn while_a_registry_that_rests_is_tried_without_success_nobody_else_asks_it() {
    let fake = Fake::start(|_| Reply::status(500)).await;
    let upstream = of(&fake);
    for _ in 0..2 {
        upstream.manifest(&repo(), &latest()).await.unwrap_err();
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    let (repo, latest) = (repo(), latest());
    let answers = join_all((0..5).map(|_| upstream.manifest(&repo, &latest))).await;
    let (resting, tried) = answers
        .iter()
        .map(|answer| answer.as_ref().unwrap_err())
        .partition::<Vec<_>, _>(|error| matches!(error, UpstreamError::Resting { .. }));
    assert_eq!((resting.len(), tried.len(), fake.seen().len()), (5, 0, 5), "{answers:?}");
}

#[tokio::test]
async fn the_next_endpoint_is_asked_where_one_fails_but_not_where_it_says_no() {
    let good = Fake::start(|_| manifest_reply()).await;
    for fault in [
        || Reply::status(500),
        || Reply::status(429),
        || Reply::raw("").ending(Ending::Reset),
        || Reply::raw("junk\r\n\r\n"),
    ] {
        let bad = Fake::start(move |_| fault()).await;
        let upstream = upstream(config(&[CLOSED, &bad.url, &good.url]));
        upstream.manifest(&repo(), &latest()).await.unwrap().unwrap();
        assert_eq!(bad.seen().len(), 1);
    }
    let asked = good.seen().len();
    let without = Fake::start(|_| Reply::status(404)).await;
    let upstream = upstream(config(&[&without.url, &good.url]));
    assert_eq!(upstream.manifest(&repo(), &latest()).await.unwrap(), None);
    assert_eq!(good.seen().len(), asked);
}

#[tokio::test]
async fn nobody_at_the_address_is_told_with_the_reason() {
    let error = upstream(config(&[CLOSED])).manifest(&repo(), &latest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_registry_that_never_answers_is_not_waited_for_long() {
    for begun in ["", "HTTP/1.1 200 OK\r\nContent-Le"] {
        let fake = Fake::start(move |_| Reply::raw(begun).ending(Ending::Hang)).await;
        let (upstream, repo, latest) = (of(&fake), repo(), latest());
        let answer = upstream.manifest(&repo, &latest);
        let wait_on = async {
            fake.until_asked(1).await;
            tokio::time::pause();
        };
        let (answer, ()) = futures::join!(answer, wait_on);
        tokio::time::resume();
        let error = answer.unwrap_err();
        assert!(matches!(error, UpstreamError::Timeout { .. }) && error.is_transient(), "{error}");
        assert_eq!(fake.seen().len(), 1, "and it is not asked twice");
    }
}

#[tokio::test]
async fn the_next_endpoint_is_asked_in_time_where_one_hangs() {
    let hangs = Fake::start(|_| Reply::raw("").ending(Ending::Hang)).await;
    let good = Fake::start(|_| manifest_reply()).await;
    let (upstream, repo, latest) = (upstream(config(&[&hangs.url, &good.url])), repo(), latest());
    let answer = upstream.manifest(&repo, &latest);
    let pass_time = async {
        hangs.until_asked(1).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(4)).await;
        tokio::time::resume();
    };
    let (answer, ()) = futures::join!(answer, pass_time);
    assert_eq!(answer.unwrap().unwrap().bytes, MANIFEST);
    assert_eq!((hangs.seen().len(), good.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_body_that_stalls_is_an_error() {
    let half = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234";
    let fake = Fake::start(move |_| Reply::raw(half).ending(Ending::Hang)).await;
    let mut body = of(&fake).blob(&repo(), &Digest::sha256(BLOB), 0, None).await.unwrap().unwrap();
    assert_eq!(body.bytes.try_next().await.unwrap().unwrap(), "01234");
    tokio::time::pause();
    let error = body.bytes.try_next().await.unwrap_err();
    assert!(matches!(error, UpstreamError::Stalled { .. }) && error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_body_that_ends_short_is_never_whole() {
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n";
    let part = "HTTP/1.1 206 OK\r\nContent-Range: bytes 0-4/10\r\nContent-Length: 5\r\n\r\n01234";
    for (bytes, ending) in [
        (length, Ending::Close),
        (length, Ending::Reset),
        (chunked, Ending::Close),
        (chunked, Ending::Reset),
        (part, Ending::Close),
    ] {
        let once = std::sync::Mutex::new(Some(Reply::raw(bytes).ending(ending)));
        let fake = Fake::start(move |_| once.lock().unwrap().take().unwrap()).await;
        let error = blob(&fake).await.unwrap_err();
        let is_broken = matches!(error, UpstreamError::Truncated { .. } | UpstreamError::Unreachable { .. });
        assert!(is_broken && error.is_transient(), "{bytes}: {error}");
    }
}

#[tokio::test]
async fn bodies_come_chunked_and_by_old_versions_of_http() {
    for answer in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=y\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n0123456789",
        "HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
        // Whatever comes behind is not of this answer.
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\n0123456789abc",
    ] {
        let fake = Fake::start(move |_| Reply::raw(answer)).await;
        assert_eq!(blob(&fake).await.unwrap(), BLOB, "{answer}");
    }
}

#[tokio::test]
async fn a_blob_that_was_compressed_on_the_way_is_refused_with_the_reason() {
    let fake = Fake::start(|_| Reply::new(200, &[("Content-Encoding", "gzip")], BLOB)).await;
    let error = blob(&fake).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Malformed { .. }), "{error}");
    assert!(error.to_string().contains("Content-Encoding gzip"), "{error}");
    let plain = Fake::start(|_| Reply::new(200, &[("Content-Encoding", "identity")], BLOB)).await;
    assert_eq!(blob(&plain).await.unwrap(), BLOB);
}

#[tokio::test]
async fn a_manifest_that_was_compressed_on_the_way_is_read() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, MANIFEST).unwrap();
    let gzip = encoder.finish().unwrap();
    let fake = Fake::start(move |_| Reply::new(200, &[("Content-Encoding", "gzip")], &gzip)).await;
    let by_digest = Reference::Digest(Digest::sha256(MANIFEST));
    assert_eq!(manifest(&fake, &by_digest).await.unwrap().bytes, MANIFEST);
    let other = Fake::start(|_| Reply::new(200, &[("Content-Encoding", "br")], MANIFEST)).await;
    let error = manifest(&other, &latest()).await.unwrap_err();
    assert!(error.to_string().contains("Content-Encoding br"), "{error}");
}

#[tokio::test]
async fn a_manifest_without_headers_is_known_by_its_bytes() {
    let typed = br#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
    for (headers, body, media_type) in [
        (&[][..], MANIFEST, Some(OCI_MANIFEST)),
        (&[("Content-Type", "text/plain; charset=utf-8")][..], &typed[..], Some(DOCKER_MANIFEST)),
        (
            &[("Content-Type", "application/vnd.example+json")][..],
            b"{}",
            Some("application/vnd.example+json"),
        ),
        (&[][..], b"{}", None),
    ] {
        let fake = Fake::start(move |_| Reply::new(200, headers, body)).await;
        let fetched = manifest(&fake, &latest()).await.unwrap();
        assert_eq!(fetched.media_type.as_deref(), media_type);
        assert_eq!(fetched.digest, Digest::sha256(body));
    }
}

#[tokio::test]
async fn a_manifest_by_digest_is_held_to_it() {
    let other = Digest::sha256(BLOB);
    let lie = other.to_string();
    let fake = Fake::start(move |_| Reply::new(200, &[("Docker-Content-Digest", &lie)], MANIFEST)).await;
    let error = manifest(&fake, &Reference::Digest(other)).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Mismatch { .. }) && !error.is_transient(), "{error}");
    // The header may lie as it likes when the bytes are right.
    let right = Reference::Digest(Digest::sha256(MANIFEST));
    assert_eq!(manifest(&fake, &right).await.unwrap().bytes, MANIFEST);
}

#[tokio::test]
async fn a_manifest_that_was_spoiled_on_the_way_is_fetched_again_by_its_digest() {
    let stated = Digest::sha256(MANIFEST).to_string();
    let headers = move |body: &[u8]| Reply::new(200, &[("Docker-Content-Digest", &stated)], body);
    let fake = Fake::start(move |seen| match seen.target.contains("sha256") {
        true => headers(MANIFEST),
        false => headers(&MANIFEST.to_ascii_uppercase()),
    })
    .await;
    let fetched = manifest(&fake, &latest()).await.unwrap();
    assert_eq!((fetched.bytes.as_ref(), fetched.digest), (MANIFEST, Digest::sha256(MANIFEST)));
}

#[tokio::test]
async fn a_manifest_is_believed_rather_than_a_digest_that_nothing_has() {
    let lie = Digest::sha256(BLOB).to_string();
    let serve = |body: &'static [u8], lie: String| {
        Fake::start(move |seen| match seen.target.contains("sha256") {
            true => Reply::status(404),
            false => Reply::new(200, &[("Docker-Content-Digest", &lie)], body),
        })
    };
    let fake = serve(MANIFEST, lie.clone()).await;
    assert_eq!(manifest(&fake, &latest()).await.unwrap().digest, Digest::sha256(MANIFEST));
    // Half of one is no manifest, by whatever name.
    let fake = serve(&MANIFEST[..40], lie).await;
    let error = manifest(&fake, &latest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_registry() {
    let body = br#"{"errors":[{"code":"DENIED","message":"upgrade\nyour plan"}]}"#;
    for status in [401, 403, 429] {
        let fake = Fake::start(move |_| Reply::new(status, &[("Retry-After", "30")], body)).await;
        let error = manifest(&fake, &latest()).await.unwrap_err();
        assert!(error.to_string().contains("\"upgrade your plan\""), "{status}: {error}");
    }
    // Nobody waits for one that does not end, and none that is too long is taken whole.
    let junk = b"HTTP/1.1 403 No\r\n\r\n{\"errors\":[{\"message\":\"".to_vec();
    let fake = Fake::start(move |_| Reply::raw(junk.clone()).ending(Ending::Repeat(vec![b'x'; 4096]))).await;
    let error = manifest(&fake, &latest()).await.unwrap_err();
    assert!(matches!(error, UpstreamError::Forbidden { .. }) && error.to_string().len() < 500, "{error}");
}

#[tokio::test]
async fn a_head_that_is_refused_is_explained_by_a_get_but_not_where_there_were_too_many() {
    let body = br#"{"errors":[{"message":"not yours"}]}"#;
    for (status, asked) in [(401, 2), (403, 2), (429, 1)] {
        let fake = Fake::start(move |_| Reply::new(status, &[], body)).await;
        let error = of(&fake).head_manifest(&repo(), &latest()).await.unwrap_err();
        assert_eq!(error.to_string().contains("not yours"), asked == 2, "{error}");
        assert_eq!(fake.seen().len(), asked, "{status}");
    }
}

#[tokio::test]
async fn a_limit_on_manifests_leaves_blobs_alone_and_the_reverse() {
    for limited in ["/manifests/", "/blobs/"] {
        let fake = Fake::start(move |seen| match seen.target.contains(limited) {
            true => Reply::new(429, &[("Retry-After", "30")], b""),
            false if seen.target.contains("/blobs/") => Reply::new(200, &[], BLOB),
            false => manifest_reply(),
        })
        .await;
        let upstream = of(&fake);
        let (repo, latest, digest) = (repo(), latest(), Digest::sha256(BLOB));
        for _ in 0..3 {
            let manifest = upstream.manifest(&repo, &latest).await;
            let blob = upstream.blob(&repo, &digest, 0, None).await;
            assert_eq!((manifest.is_err(), blob.is_err()), (limited == "/manifests/", limited == "/blobs/"));
        }
        let asked = fake.asked().iter().filter(|asked| asked.contains(limited)).count();
        assert_eq!((asked, fake.seen().len()), (1, 4), "{:?}", fake.asked());
    }
}

#[tokio::test]
async fn who_let_one_wait_for_nothing_is_not_waited_for_as_long_by_the_next() {
    let fake = Fake::start(|_| Reply::raw("").ending(Ending::Hang)).await;
    let (upstream, repo, latest) = (of(&fake), repo(), latest());
    for (waited_s, asked) in [(10, 1), (1, 2)] {
        let answer = upstream.head_manifest(&repo, &latest);
        let wait_on = async {
            fake.until_asked(asked).await;
            tokio::time::pause();
        };
        let (answer, ()) = futures::join!(answer, wait_on);
        tokio::time::resume();
        let error = answer.unwrap_err().to_string();
        assert!(error.contains(&format!("no answer within {waited_s} s")), "{error}");
    }
}
