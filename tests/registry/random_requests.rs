//! Whatever is asked, the answer is no fault of the daemon's, and it comes.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shoal::oci::Digest;
use tokio::runtime::Runtime;

use super::common::{Image, daemon};
use super::{open_upload, raw};

const REQUESTS: u32 = 300;

/// The words that paths are made of, good and bad, and those of this daemon besides.
fn words(known: Vec<String>) -> impl Strategy<Value = String> {
    let fixed = [
        "v2",
        "library",
        "app",
        "manifests",
        "blobs",
        "uploads",
        "tags",
        "list",
        "_catalog",
        "referrers",
        "1",
        "",
        "..",
        ".",
        "%2F",
        "%00",
        "%",
        "sha256:",
        "sha256:zz",
        "sha512:00",
        "md5:00",
        "a%2e%2e",
        "UPPER",
        "_manifests",
    ];
    let all: Vec<String> = fixed.into_iter().map(str::to_owned).chain(known).collect();
    prop_oneof![8 => prop::sample::select(all), 1 => "[!-\"$->@-~]{0,20}", 1 => "[a-z0-9]{200,300}"]
}

fn paths(known: Vec<String>) -> impl Strategy<Value = String> {
    let endpoint = prop::sample::select(vec!["manifests/", "blobs/", "blobs/uploads/", "tags/list", "tags/"]);
    prop_oneof![
        3 => (endpoint, words(known.clone())).prop_map(|(endpoint, last)| format!("/v2/library/app/{endpoint}{last}")),
        1 => vec(words(known), 0..7).prop_map(|words| format!("/v2/{}", words.join("/"))),
        1 => "/[!-\"$->@-~]{0,30}",
    ]
}

fn queries(known: Vec<String>) -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "n",
        "last",
        "digest",
        "mount",
        "from",
        "tag",
        "ns",
        "digest-algorithm",
        "x",
    ]);
    let value = prop_oneof![
        prop::sample::select(known),
        prop::sample::select(
            vec!["-1", "0", "99999999999", "library/app", "%ff", "%0d%0a", "&&", "=", "sha256:zz"]
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        ),
    ];
    vec((key, value).prop_map(|(key, value)| format!("{key}={value}")), 0..4)
        .prop_map(|pairs| pairs.join("&"))
}

fn headers() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "range",
        "content-range",
        "if-none-match",
        "content-type",
        "accept",
        "accept-encoding",
        "if-range",
        "authorization",
    ]);
    let value = prop_oneof![
        prop::sample::select(vec![
            "bytes=0-",
            "bytes=-1",
            "bytes=5-1",
            "bytes=0-1,3-4",
            "0-0",
            "bytes 0-1/2",
            "*",
            "\"\"",
            "application/vnd.oci.image.manifest.v1+json",
            "gzip"
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,30}",
        "(bytes[= ])?[0-9]{0,25}-[0-9]{0,25}",
    ];
    vec((name, value).prop_map(|(name, value)| format!("{name}: {value}\r\n")), 0..4)
        .prop_map(|lines| lines.concat())
}

#[test]
fn random_requests_are_answered_without_a_fault() {
    let runtime = Runtime::new().unwrap();
    let daemon = daemon().start();
    let image = Image::new(1, &[1000]);
    runtime.block_on(daemon.push("library/app", "1", &image));
    let location = runtime.block_on(open_upload(&daemon, "library/app"));
    let known = vec![
        location.rsplit_once('/').unwrap().1.to_owned(),
        Digest::sha256(&image.manifest).to_string(),
        Digest::sha256(&image.blobs[1]).to_string(),
        Digest::sha256(b"").to_string(),
    ];
    let methods = prop::sample::select(vec![
        "GET", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "X",
    ]);
    let bodies =
        prop_oneof![2 => Just(Vec::new()), 1 => vec(any::<u8>(), 0..100), 1 => Just(image.manifest.clone())];
    let requests = (methods, paths(known.clone()), option::of(queries(known)), headers(), bodies);

    let mut runner =
        TestRunner::new(Config { cases: REQUESTS, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&requests, |(method, path, query, headers, body)| {
        let target = query.map_or(path.clone(), |query| format!("{path}?{query}"));
        let length = format!("{headers}content-length: {}\r\n", body.len());
        let request = [raw::head(method, &target, &length).into_bytes(), body].concat();
        let answer = runtime.block_on(raw::send(&daemon, request));
        let Some(answer) = answer else { return Err(TestCaseError::fail("closed without an answer")) };
        prop_assert!(answer.status < 500, "{}", answer.status);
        Ok(())
    });
    assert!(outcome.is_ok(), "{}\n{}", outcome.unwrap_err(), daemon.log());
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    // One of them may have deleted it.
    runtime.block_on(daemon.push("library/app", "1", &image));
    assert_eq!(runtime.block_on(daemon.pull("library/app", "1")).unwrap(), image);
}
