//! Clients that send no `ns`, such as podman, choose where they pull from by the manifest and then ask nobody else: they
//! are given one only if its blobs can be had.

use futures::{StreamExt, stream};
use reqwest::StatusCode;
use serde_json::{Value, json};
use shoal::oci::Digest;

use crate::common::upstream::{Fault, Rule, Seen, Upstream};
use crate::common::{Daemon, IMAGE_MANIFEST, Image};
use crate::{PREFIXED, REPO, ask, header, mirror_of};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A layer that is held back until its digest matched, and one that is not.
const LAYERS: [usize; 2] = [300_000, 2_500_000];

async fn scene(seed: u64, more: &str) -> (Upstream, Daemon, Image) {
    let image = Image::new(seed, &LAYERS);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let mirror = mirror_of(&upstream, more).start();
    (upstream, mirror, image)
}

/// What podman is told: the status, and the message of the first error.
async fn told(mirror: &Daemon, below: &str) -> (StatusCode, String) {
    let answer = mirror.get(&format!("{PREFIXED}/{below}")).await;
    let status = answer.status();
    let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default();
    (status, body["errors"][0]["message"].as_str().unwrap_or_default().to_owned())
}

/// The manifest is refused, and the message has this word.
async fn is_refused(mirror: &Daemon, reference: &str, word: &str, what: &str) {
    let (status, message) = told(mirror, &format!("manifests/{reference}")).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{what}");
    assert!(message.contains(word), "{what}: {message:?} does not tell why");
}

/// An index with one image for this machine, as if it were an image without blobs.
fn index_of(image: &Image) -> Image {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let entry = json!({
        "mediaType": IMAGE_MANIFEST,
        "digest": Digest::sha256(&image.manifest).to_string(),
        "size": image.manifest.len(),
        "platform": {"os": "linux", "architecture": architecture},
    });
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
    Image { blobs: Vec::new(), manifest: serde_json::to_vec(&index).unwrap() }
}

/// Each fault strikes once, the last one from then on.
fn fails_with(upstream: &Upstream, below: &str, faults: &[Fault]) {
    for (n, fault) in faults.iter().enumerate() {
        let times = if n + 1 < faults.len() { 1 } else { usize::MAX };
        upstream.fails(Rule::on(below, fault.clone()).times(times));
    }
}

fn digest_of(blob: &[u8]) -> String {
    Digest::sha256(blob).to_string()
}

#[tokio::test]
async fn a_manifest_is_refused_where_its_config_does_not_come_as_it_should() {
    let faults = [
        (vec![Fault::Status(404, "")], "though a manifest names it"),
        (vec![Fault::Status(403, "")], "no right"),
        (vec![Fault::Status(429, "retry-after: 60")], "too many requests"),
        (vec![Fault::Status(503, "")], "503"),
        (vec![Fault::Reset], "cannot be reached"),
        (vec![Fault::HoldHeader], "no answer within 5 s"),
        (vec![Fault::HoldAfter(10)], "no answer within 5 s"),
        (vec![Fault::EndAfter(10), Fault::EndAfter(0)], "was given up at 10 of"),
        (vec![Fault::ResetAfter(10), Fault::ResetAfter(0)], "does not come"),
        (vec![Fault::WrongByteAt(3)], "sent sha256:"),
        (vec![Fault::LengthOff(5)], "bytes, but"),
        (vec![Fault::LengthOff(-5)], "bytes, but"),
        (vec![Fault::Gzip], "Content-Encoding gzip"),
    ];
    let tried = (500..).zip(faults).map(|(seed, (faults, word))| async move {
        let (upstream, mirror, image) = scene(seed, "").await;
        let what = format!("{faults:?}");
        fails_with(&upstream, &digest_of(&image.blobs[0]), &faults);
        is_refused(&mirror, "1", word, &what).await;
        is_refused(&mirror, &digest_of(&image.manifest), "of the image does not come", &what).await;
        let status = ask(&mirror, "manifests/1").await.status();
        assert_eq!(status, StatusCode::OK, "{what}: containerd has upstream itself");
        upstream.heals();
        upstream.release();
        let mirror = mirror.kill_and_restart();
        assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image, "{what}");
    });
    stream::iter(tried).buffer_unordered(4).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_manifest_is_refused_where_a_layer_does_not_begin() {
    let faults = [
        (Fault::Status(404, ""), "though a manifest names it"),
        (Fault::HoldAfter(0), "no answer within 5 s"),
        (Fault::Gzip, "Content-Encoding gzip"),
    ];
    let tried = (520..).zip(faults).map(|(seed, (fault, word))| async move {
        let (upstream, mirror, image) = scene(seed, "").await;
        let layer = digest_of(&image.blobs[2]);
        upstream.fails(Rule::on(&layer, fault.clone()));
        is_refused(&mirror, "1", word, &format!("{fault:?}")).await;
        is_refused(&mirror, "1", &layer, &format!("{fault:?}")).await;
    });
    stream::iter(tried).buffer_unordered(4).collect::<Vec<()>>().await;
}

/// An image whose layers are more than are begun, and its upstream.
async fn many_layers(seed: u64, count: usize) -> (Upstream, Daemon, Image) {
    let image = Image::new(seed, &vec![1000; count]);
    let upstream = Upstream::with(REPO, "1", &image).await;
    let mirror = mirror_of(&upstream, "").start();
    (upstream, mirror, image)
}

#[tokio::test]
async fn a_manifest_is_refused_where_upstream_lacks_one_of_many_layers() {
    let faults = [
        (vec![Fault::Status(404, "")], "though a manifest names it"),
        (vec![Fault::Status(403, "")], "no right"),
        (vec![Fault::Status(405, ""), Fault::Status(404, "")], "though a manifest names it"),
        (vec![Fault::HoldHeader], "no answer within 5 s"),
    ];
    let tried = (570..).zip(faults).map(|(seed, (faults, word))| async move {
        let (upstream, mirror, image) = many_layers(seed, 9).await;
        let (what, eighth) = (format!("{faults:?}"), digest_of(&image.blobs[8]));
        fails_with(&upstream, &eighth, &faults);
        let (status, message) = told(&mirror, "manifests/1").await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{what}");
        assert!(message.contains(word) && message.contains(&eighth), "{what}: {message}");
        for layer in &image.blobs[7..] {
            let whole = |seen: &Seen| seen.method == "GET" && seen.header("range").is_none();
            let begun =
                upstream.seen().iter().filter(|seen| seen.path.contains(&digest_of(layer))).any(whole);
            assert!(!begun, "{what}: {:?}", upstream.seen());
        }
        let status = ask(&mirror, "manifests/1").await.status();
        assert_eq!(status, StatusCode::OK, "{what}: containerd has upstream itself");
    });
    stream::iter(tried).buffer_unordered(4).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn of_many_layers_those_that_are_not_begun_are_asked_for_once() {
    let (upstream, mirror, image) = many_layers(580, 9).await;
    let (answer, again) = (told(&mirror, "manifests/1").await, told(&mirror, "manifests/1").await);
    assert_eq!((answer.0, again.0), (StatusCode::OK, StatusCode::OK), "{}", mirror.log());
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image);
    for (n, blob) in image.blobs.iter().enumerate() {
        let digest = digest_of(blob);
        let asked = (upstream.count("HEAD", &digest), upstream.count("GET", &digest));
        assert_eq!(asked, (usize::from(n > 6), 1), "{n}: {:?}", upstream.seen());
    }
}

#[tokio::test]
async fn of_many_layers_a_few_are_asked_for_at_a_time() {
    let (upstream, mirror, _) = many_layers(581, 40).await;
    upstream.fails(Rule::on("/blobs/", Fault::HoldHeader).method("HEAD"));
    is_refused(&mirror, "1", "no answer within 5 s", "all hang").await;
    assert_eq!(upstream.count("HEAD", "/blobs/"), 4, "{:?}", upstream.seen());
    assert_eq!(upstream.count("GET", "/blobs/"), 7, "{:?}", upstream.seen());
}

#[tokio::test]
async fn without_prefetch_all_layers_are_asked_for_and_none_is_begun() {
    let (upstream, mirror, image) = scene(582, "prefetch: false").await;
    assert_eq!(told(&mirror, "manifests/1").await.0, StatusCode::OK);
    for (n, blob) in image.blobs.iter().enumerate() {
        let digest = digest_of(blob);
        let asked = (upstream.count("HEAD", &digest), upstream.count("GET", &digest));
        assert_eq!(asked, if n == 0 { (0, 1) } else { (1, 0) }, "{n}: {:?}", upstream.seen());
    }

    let (upstream, mirror, image) = scene(542, "prefetch: false").await;
    let lacking = digest_of(&image.blobs[2]);
    upstream.fails(Rule::on(&lacking, Fault::Status(404, "")));
    is_refused(&mirror, "1", "though a manifest names it", "no second layer").await;
    is_refused(&mirror, "1", &lacking, "no second layer").await;
    for layer in &image.blobs[1..] {
        assert_eq!(upstream.count("GET", &digest_of(layer)), 0, "{:?}", upstream.seen());
    }
}

#[tokio::test]
async fn a_layer_that_broke_off_is_told_with_the_reason_and_its_image_refused_for_a_while() {
    // So small that no byte of it is given before its digest matched, however long that takes.
    let (image, other) = (Image::new(530, &[200_000, 2_500_000]), Image::new(531, &[1000]));
    let upstream = Upstream::with(REPO, "1", &image).await;
    let mirror = mirror_of(&upstream, "").start();
    upstream.push(REPO, "2", &other);
    let layer = digest_of(&image.blobs[1]);
    fails_with(&upstream, &layer, &[Fault::HoldThenEndAfter(100_000), Fault::EndAfter(0)]);
    let blob = format!("blobs/{layer}");
    let break_off = async {
        upstream.is_asked("GET", &layer, 1).await;
        assert_eq!(told(&mirror, "manifests/1").await.0, StatusCode::OK, "it begins well");
        upstream.release();
    };
    let ((status, message), ()) = tokio::join!(told(&mirror, &blob), break_off);
    assert_eq!(status, StatusCode::NOT_FOUND);
    for word in
        ["given up at 100000 of 200000 bytes after 5 tries", "registry.example broke off after 0 bytes"]
    {
        assert!(message.contains(word), "{message}");
    }
    let asked = upstream.count("GET", &layer);
    is_refused(&mirror, "1", "given up at 100000 of 200000 bytes", "it broke off").await;
    assert_eq!(upstream.count("GET", &layer), asked, "it is asked for again at once");
    assert_eq!(mirror.pull(PREFIXED, "2").await.unwrap(), other, "another image is not to suffer");
    // Who comes back by another way, and succeeds, clears it.
    upstream.heals();
    let answer = ask(&mirror, &blob).await;
    assert!(answer.bytes().await.unwrap() == image.blobs[1]);
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image);
}

#[tokio::test]
async fn what_is_looked_at_is_what_the_client_reads() {
    let (upstream, mirror, image) = scene(540, "").await;
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image);
    for blob in &image.blobs {
        assert_eq!(upstream.count("GET", &digest_of(blob)), 1, "{:?}", upstream.seen());
    }
    assert_eq!(upstream.count("HEAD", "/blobs/"), 0);
    upstream.forget();
    assert_eq!(mirror.pull(PREFIXED, "1").await.unwrap(), image);
    assert!(upstream.seen().is_empty(), "all of it is here: {:?}", upstream.seen());
}

#[tokio::test]
async fn who_asks_for_the_header_alone_begins_nothing() {
    let (upstream, mirror, image) = scene(541, "").await;
    let url = mirror.url(&format!("{PREFIXED}/manifests/1"));
    let answer = mirror.client.head(url).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(header(&answer, "docker-content-digest"), digest_of(&image.manifest));
    assert_eq!(upstream.count("GET", "/blobs/"), 0);
}

#[tokio::test]
async fn an_index_is_refused_where_the_image_for_this_machine_cannot_be_had() {
    let (upstream, mirror, image) = scene(550, "").await;
    upstream.push(REPO, "many", &index_of(&image));
    upstream.fails(Rule::on(&digest_of(&image.blobs[0]), Fault::Status(404, "")));
    is_refused(&mirror, "many", "though a manifest names it", "no config").await;

    let (upstream, mirror, image) = scene(552, "").await;
    upstream.push(REPO, "many", &index_of(&image));
    upstream.fails(Rule::on(&digest_of(&image.manifest), Fault::Status(404, "")));
    is_refused(&mirror, "many", "though a manifest names it", "no image").await;
}

#[tokio::test]
async fn an_index_costs_no_request_that_its_reader_does_not_make() {
    let (upstream, mirror, image) = scene(551, "").await;
    upstream.push(REPO, "many", &index_of(&image));
    let (status, _) = told(&mirror, "manifests/many").await;
    assert_eq!(status, StatusCode::OK, "{}", mirror.log());
    assert_eq!(upstream.count("GET", "/blobs/"), 1, "the config, and no layer: {:?}", upstream.seen());
    assert_eq!(mirror.pull(PREFIXED, &digest_of(&image.manifest)).await.unwrap(), image);
    for wanted in image.blobs.iter().chain([&image.manifest]) {
        assert_eq!(upstream.count("GET", &digest_of(wanted)), 1, "{:?}", upstream.seen());
    }
}

#[tokio::test]
async fn a_limit_on_manifests_does_not_stop_the_blobs_of_an_image_that_is_known() {
    let (upstream, mirror, image) = scene(560, "prefetch: false").await;
    assert_eq!(ask(&mirror, "manifests/1").await.status(), StatusCode::OK);
    let limit = Fault::Status(429, "retry-after: 60");
    upstream.fails(Rule::on("/manifests/", limit));
    assert_eq!(ask(&mirror, "manifests/2").await.status(), StatusCode::NOT_FOUND);
    for blob in &image.blobs {
        let answer = ask(&mirror, &format!("blobs/{}", Digest::sha256(blob))).await;
        assert!(answer.bytes().await.unwrap() == *blob);
    }
}
