//! The commands for images of other registries, against a daemon that mirrors another one.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use common::files::{IMAGE_INDEX, Ran, index_of, shoal};
use common::{Daemon, Image, PATIENCE, daemon};
use futures::StreamExt;
use reqwest::StatusCode;
use serde_json::Value;
use shoal::api::CachedImage;
use shoal::oci::Digest;
use shoal::tasks::Tasks;

const REGISTRY: &str = "registry.test:5000";
const APP: &str = "registry.test:5000/team/app:1";

/// A registry, and a daemon that mirrors it by another name.
struct Pair {
    upstream: Daemon,
    mirror: Daemon,
}

impl Pair {
    fn start() -> Self {
        Self::with("prefetch: false")
    }

    /// `settings`: of the registry in the mirror's config.
    fn with(settings: &str) -> Self {
        let upstream = daemon().start();
        let (url, debug) = (&upstream.registry, "debug: {addr: 127.0.0.1:0}");
        let section = format!("{{registries: {{\"{REGISTRY}\": {{upstream: \"{url}\", {settings}}}}}}}");
        let mirror = daemon().mirror(&section).http(debug).start();
        Self { upstream, mirror }
    }

    fn run(&self, words: &str) -> Ran {
        shoal(&self.mirror, words.split(' '))
    }

    /// Runs a command that must succeed; what it prints.
    fn ran(&self, words: &str) -> String {
        let ran = self.run(words);
        assert!(ran.ok, "{words}: {}", ran.stderr);
        String::from_utf8(ran.stdout).unwrap()
    }

    fn cached(&self) -> Vec<CachedImage> {
        serde_json::from_str(&self.ran("cache --json")).unwrap()
    }

    /// Waits until the cache is as `is` says: the last bytes go out before they are committed.
    async fn cache(&self, is: impl Fn(&[CachedImage]) -> bool) -> Vec<CachedImage> {
        let begun = Instant::now();
        loop {
            let cached = self.cached();
            if is(&cached) {
                return cached;
            }
            assert!(begun.elapsed() < PATIENCE, "the cache stays {cached:?}\n{}", self.mirror.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The address of the page of metrics.
    async fn metrics(&self) -> String {
        let line = self.mirror.logs("serving metrics").await;
        let address = line.split("address=").nth(1).unwrap().trim();
        let page = self.mirror.client.get(format!("http://{address}/metrics")).send().await.unwrap();
        page.text().await.unwrap()
    }
}

fn bytes_of(image: &Image) -> u64 {
    image.blobs.iter().map(|blob| blob.len() as u64).sum()
}

fn is_complete(cached: &[CachedImage]) -> bool {
    !cached.is_empty() && cached.iter().all(|image| image.missing_blobs == 0)
}

#[tokio::test]
async fn a_pull_names_where_each_blob_comes_from() {
    let (pair, image) = (Pair::start(), Image::small(1));
    pair.upstream.push("team/app", "1", &image).await;
    let moved = |from: &str| {
        let events = pair.run(&format!("pull --json {APP}")).events();
        // The config was fetched before the manifest was given out, and may be in the cache by now.
        let config = Digest::sha256(&image.blobs[0]).to_string();
        let is_as_told = |event: &&Value| {
            event["source"] == from || event["source"] == "cache" && event["digest"] == config
        };
        let blobs: Vec<&Value> = events.iter().filter(|event| event["event"] == "blob").collect();
        assert!(!blobs.is_empty() && blobs.iter().all(is_as_told), "{events:?}");
        let done = events.last().unwrap();
        let by_source = done["bytes_by_source"].as_object().unwrap();
        let of_layers = bytes_of(&image) - image.blobs[0].len() as u64;
        assert!(by_source[from].as_u64().unwrap() >= of_layers, "{done}");
        assert_eq!(
            by_source.values().map(|bytes| bytes.as_u64().unwrap()).sum::<u64>(),
            bytes_of(&image),
            "{done}"
        );
        assert!(done["seconds"].as_f64().unwrap() > 0.0, "{done}");
    };
    moved(&format!("upstream={REGISTRY}"));
    pair.cache(is_complete).await;
    moved("cache");

    let told = pair.run(&format!("pull {APP}"));
    assert!(told.ok, "{}", told.stderr);
    let lines: Vec<&str> = told.stderr.lines().collect();
    // A line for the config and each layer, the digest, and the sum.
    assert_eq!(lines.len(), image.blobs.len() + 2, "{}", told.stderr);
    for blob in &image.blobs {
        let short = &Digest::sha256(blob).hex()[..12];
        let line = lines.iter().find(|line| line.starts_with(short)).unwrap();
        assert!(line.ends_with("from cache"), "{line}");
    }
    let sum = lines.last().unwrap();
    assert!(sum.starts_with("4 blobs moved (") && sum.ends_with("from cache"), "{sum}");
}

#[tokio::test]
async fn a_pull_of_an_index_takes_one_platform_or_all() {
    let pair = Pair::start();
    let (arm, riscv) = (Image::new(2, &[5000]), Image::new(3, &[6000]));
    let index = index_of(&[("arm64", &arm), ("riscv64", &riscv)]);
    for image in [&arm, &riscv] {
        let tag = Digest::sha256(&image.manifest).hex()[..10].to_owned();
        pair.upstream.push("team/app", &tag, image).await;
    }
    let put = pair.upstream.client.put(pair.upstream.url("team/app/manifests/1"));
    let put = put.header("content-type", IMAGE_INDEX).body(index).send().await.unwrap();
    assert_eq!(put.status(), StatusCode::CREATED);

    let one = pair.run(&format!("pull --json --platform linux/riscv64 {APP}"));
    assert_eq!(one.blobs().0, 2);
    assert!(one.events().iter().all(|event| event["digest"] != Digest::sha256(&arm.blobs[1]).to_string()));
    assert_eq!(pair.run(&format!("pull --json --platform all {APP}")).blobs().0, 4);
    pair.run(&format!("pull --platform linux/s390x {APP}")).failed_with("it has linux/arm64, linux/riscv64");
}

#[tokio::test]
async fn what_the_daemon_has_itself_is_pulled_too() {
    let (pair, image) = (Pair::start(), Image::small(4));
    pair.mirror.push("library/own", "latest", &image).await;
    let done = pair.run("pull --json library/own").events().pop().unwrap();
    assert_eq!(done["bytes_by_source"], serde_json::json!({"own": bytes_of(&image)}));
}

#[tokio::test]
async fn an_image_that_cannot_be_had_is_refused_with_the_reason() {
    let Pair { upstream, mirror } = Pair::start();
    let pull = |image: &str| shoal(&mirror, ["pull", image]);
    pull("registry.test:5000/team/none:1")
        .failed_with("manifest 1 of registry.test_5000/team/none is unknown");
    pull("Not an image").failed_with("invalid value");
    let _folder = upstream.kill();
    pull(APP).failed_with(REGISTRY);
}

#[tokio::test]
async fn an_image_is_fetched_before_it_is_asked_for() {
    let (pair, image, other) = (Pair::start(), Image::small(5), Image::new(6, &[100]));
    pair.upstream.push("team/app", "1", &image).await;
    pair.upstream.push("team/other", "2", &other).await;
    let told = pair.ran(&format!("prefetch {APP} registry.test:5000/team/other:2"));
    assert_eq!(told.lines().count(), 2, "{told}");
    let Pair { upstream, mirror } = pair;
    let _folder = upstream.kill();
    assert_eq!(mirror.pull("registry.test_5000/team/app", "1").await, Ok(image));
    assert_eq!(mirror.pull("registry.test_5000/team/other", "2").await, Ok(other));
}

#[tokio::test]
async fn one_image_that_fails_does_not_keep_the_others() {
    let (pair, image) = (Pair::start(), Image::small(7));
    pair.upstream.push("team/app", "1", &image).await;
    let ran = pair.run(&format!("prefetch registry.test:5000/team/none:1 {APP}"));
    ran.failed_with("1 of 2 images are not in the cache");
    assert!(ran.stderr.contains("team/none:1 does not exist"), "{}", ran.stderr);
    assert!(is_complete(&pair.cached()));
    pair.run("prefetch elsewhere.test/app:1").failed_with("name it in mirror.registries");
}

#[tokio::test]
async fn the_cache_is_listed_with_what_is_missing() {
    let (pair, image) = (Pair::start(), Image::small(8));
    pair.upstream.push("team/app", "1", &image).await;
    assert_eq!(pair.cached().len(), 0);
    // Who names the registry has a way around the mirror, so that nothing is looked at.
    let answer = pair.mirror.get("team/app/manifests/1?ns=registry.test:5000").await;
    assert_eq!(answer.status(), StatusCode::OK);
    let incomplete = pair.cached();
    assert_eq!(incomplete[0].missing_blobs, 4);
    assert!(pair.ran("cache").contains("4 blobs are missing"));

    pair.ran(&format!("prefetch {APP}"));
    let whole = &pair.cached()[0];
    assert_eq!(
        (whole.repository.as_str(), whole.tags.as_slice()),
        ("registry.test_5000/team/app", &["1".to_owned()][..])
    );
    assert_eq!(whole.size_bytes, bytes_of(&image) + image.manifest.len() as u64);
    assert_eq!(whole.digest, Digest::sha256(&image.manifest).to_string());
    assert!(whole.used_at_s > 0);
    let table = pair.ran("cache");
    let short = &Digest::sha256(&image.manifest).hex()[..12];
    assert!(table.contains(&format!("registry.test:5000/team/app@{short}  1 ")), "{table}");
    assert!(table.ends_with("complete\n"), "{table}");
}

#[tokio::test]
async fn what_is_pinned_stays_and_what_is_not_goes_when_there_is_no_room() {
    let upstream = daemon().start();
    let section = format!("{{registries: {{\"{REGISTRY}\": {{upstream: \"{}\"}}}}}}", upstream.registry);
    let quota = "REGISTRY_STORAGE_IPFS_QUOTA";
    let pair = Pair { mirror: daemon().mirror(&section).env(quota, "64MiB").start(), upstream };
    for (seed, repo) in [(9, "team/app"), (10, "team/b"), (11, "team/c")] {
        pair.upstream.push(repo, "1", &Image::new(seed, &[30_000_000])).await;
    }
    pair.ran(&format!("pin {APP}"));
    pair.ran(&format!("prefetch {APP} registry.test:5000/team/b:1 registry.test:5000/team/c:1"));
    let left = pair.cache(|cached| cached.len() < 3).await;
    let app = left.iter().find(|image| image.repository.ends_with("team/app")).unwrap();
    assert!(app.pinned && app.missing_blobs == 0, "{left:?}");
    assert!(pair.ran("cache").contains("complete, pinned"));

    assert!(pair.ran(&format!("unpin {APP}")).contains("no longer pinned"));
    assert!(pair.cached().iter().all(|image| !image.pinned));
    pair.run(&format!("unpin {APP}")).failed_with("is not pinned");
}

#[tokio::test]
async fn what_is_evicted_has_to_come_again() {
    let (pair, image) = (Pair::start(), Image::small(12));
    pair.upstream.push("team/app", "1", &image).await;
    pair.ran(&format!("prefetch {APP}"));
    let before = pair.mirror.status().cache.unwrap().live_bytes;
    assert!(before > bytes_of(&image));
    pair.ran(&format!("evict {APP}"));
    assert_eq!(pair.cached().len(), 0);
    assert!(pair.mirror.status().cache.unwrap().live_bytes < before - bytes_of(&image) / 2);
    pair.run(&format!("evict {APP}")).failed_with("is not in the cache");
    let done = pair.run(&format!("pull --json {APP}")).events().pop().unwrap();
    // The config comes with the manifest, and may be in the cache before it is asked for.
    let layers = bytes_of(&image) - image.blobs[0].len() as u64;
    let again = done["bytes_by_source"][format!("upstream={REGISTRY}")].as_u64().unwrap();
    assert!((layers..=bytes_of(&image)).contains(&again), "{done}");
}

#[tokio::test]
async fn status_and_metrics_tell_of_upstreams_and_the_cache() {
    let (pair, image) = (Pair::start(), Image::small(13));
    pair.upstream.push("team/app", "1", &image).await;
    pair.ran(&format!("pull {APP}"));
    pair.cache(is_complete).await;
    pair.ran(&format!("pull {APP}"));
    pair.run("pull registry.test:5000/team/none:1").failed_with("is unknown");

    let begun = Instant::now();
    // The last one ends a moment after its blob is there.
    while !pair.mirror.status().fills.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{:?}", pair.mirror.status());
    }
    let status = pair.mirror.status();
    let upstream = &status.upstreams[0];
    assert_eq!((upstream.host.as_str(), upstream.state.as_str()), (REGISTRY, "asked"));
    assert!(upstream.error.is_none(), "{status:?}");
    let readable = pair.ran("status");
    for line in ["cache ", &format!("upstream   {REGISTRY}: asked")] {
        assert!(readable.lines().any(|told| told.starts_with(line)), "{line:?} is not in: {readable}");
    }

    let (page, bytes) = (pair.metrics().await, bytes_of(&image));
    for line in [
        format!("shoal_pulled_bytes_total{{registry=\"{REGISTRY}\",source=\"upstream\"}} {bytes}"),
        "shoal_misses_total 1".to_owned(),
        "shoal_fills 0".to_owned(),
        "shoal_mesh_peers 0".to_owned(),
    ] {
        assert!(page.lines().any(|told| told == line), "{line:?} is not in:\n{page}");
    }
    // The config is fetched before the manifest is given out, and may come from the cache the first time too.
    let config = image.blobs[0].len() as u64;
    let sent = |upstream: u64, cache: u64| {
        let line =
            |source: &str, bytes: u64| format!("shoal_blob_sent_bytes_total{{source=\"{source}\"}} {bytes}");
        [line("upstream", upstream), line("cache", cache)]
            .iter()
            .all(|line| page.lines().any(|told| told == line))
    };
    assert!(sent(bytes, bytes) || sent(bytes - config, bytes + config), "{page}");
    let cached = status.cache.unwrap().live_bytes;
    assert!(page.contains(&format!("shoal_cache_live_bytes {cached}\n")), "{page}");

    let Pair { upstream, mirror } = pair;
    let _folder = upstream.kill();
    shoal(&mirror, ["pull", "registry.test:5000/team/other:1"]).failed_with(REGISTRY);
    assert!(mirror.status().upstreams[0].error.is_some());
}

/// Half of any blob, and then nothing more.
fn half_of(blob: &[u8], request: &Request) -> Response {
    if !request.uri().path().contains("/blobs/") {
        return StatusCode::NOT_FOUND.into_response();
    }
    let (length, half) = (blob.len(), Bytes::copy_from_slice(&blob[..blob.len() / 2]));
    let bytes = futures::stream::iter([Ok::<_, std::io::Error>(half)]).chain(futures::stream::pending());
    ([("content-length", length.to_string())], Body::from_stream(bytes)).into_response()
}

#[tokio::test]
async fn status_shows_what_is_on_its_way() {
    let (tasks, blob) = (Tasks::new(), common::random_bytes(14, 1 << 20));
    let digest = Digest::sha256(&blob);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let registry = Router::new().fallback(async move |request: Request| half_of(&blob, &request));
    tasks.spawn_short("registry", |_| async move { axum::serve(listener, registry).await.unwrap() });
    let section = format!("{{registries: {{\"{REGISTRY}\": {{upstream: \"{url}\"}}}}}}");
    let mirror = daemon().mirror(&section).start();

    let answer = mirror.get(&format!("registry.test_5000/team/app/blobs/{digest}")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let begun = Instant::now();
    let fill = loop {
        if let Some(fill) = mirror.status().fills.pop().filter(|fill| fill.received_bytes == 1 << 19) {
            break fill;
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}\n{}", mirror.status(), mirror.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((fill.repository, fill.size_bytes), (format!("{REGISTRY}/team/app"), Some(1 << 20)));
    assert_eq!(fill.from, Some(format!("upstream={REGISTRY}")));
    let told = String::from_utf8(shoal(&mirror, ["status"]).stdout).unwrap();
    let short = &digest.hex()[..12];
    let line =
        format!("fill       {REGISTRY}/team/app {short}, 512.00 KiB of 1.00 MiB from upstream={REGISTRY}");
    assert!(told.lines().any(|told| told == line), "{told}");
}

#[tokio::test]
async fn what_is_pinned_is_evicted_by_force_alone() {
    let (pair, image) = (Pair::start(), Image::small(13));
    pair.upstream.push("team/app", "1", &image).await;
    pair.ran(&format!("prefetch {APP}"));
    pair.ran(&format!("pin {APP}"));
    pair.run(&format!("evict {APP}")).failed_with(&format!("run `shoal unpin {APP}` first"));
    // By another name it is the same image.
    let digest = Digest::sha256(&image.manifest);
    let by_digest = format!("{}@{digest}", APP.rsplit_once(':').unwrap().0);
    pair.run(&format!("evict {by_digest}")).failed_with(&format!("run `shoal unpin {APP}` first"));
    assert_eq!(pair.cached().len(), 1);
    pair.ran(&format!("evict --force {APP}"));
    assert_eq!(pair.cached().len(), 0);
    pair.ran(&format!("prefetch {APP}"));
    assert!(pair.cached()[0].pinned, "the pin has stayed");
    pair.ran(&format!("unpin {APP}"));
    pair.ran(&format!("evict {APP}"));
}
