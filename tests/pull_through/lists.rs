//! Tags and referrers of a mirrored registry: what clients list, find signatures by, and get while upstream is down.

use std::time::{Duration, Instant};

use reqwest::{Response, StatusCode};
use serde_json::Value;
use shoal::oci::Digest;

use crate::common::upstream::{Access, Fault, Rule, Upstream};
use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::{PREFIXED, REGISTRY, REPO, ask, header, is_cached, mirror_of};

const SIGNATURE: &str = "application/vnd.example.signature";
const SBOM: &str = "application/vnd.example.sbom";

async fn upstream_with(tags: &[&str]) -> (Upstream, Image) {
    let (upstream, image) = (Upstream::start().await, Image::new(900, &[1000]));
    tags.iter().for_each(|tag| upstream.push(REPO, tag, &image));
    (upstream, image)
}

async fn names(answer: Response) -> Vec<String> {
    assert_eq!(answer.status(), StatusCode::OK);
    let list: Value = answer.json().await.unwrap();
    list["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned()).collect()
}

async fn digests(answer: Response) -> Vec<String> {
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(header(&answer, "content-type"), "application/vnd.oci.image.index.v1+json");
    let index: Value = answer.json().await.unwrap();
    let manifests = index["manifests"].as_array().unwrap();
    manifests.iter().map(|manifest| manifest["digest"].as_str().unwrap().to_owned()).collect()
}

fn sorted(digests: &[&Digest]) -> Vec<String> {
    let mut sorted: Vec<String> = digests.iter().map(ToString::to_string).collect();
    sorted.sort_unstable();
    sorted
}

fn is_stale(answer: &Response) -> bool {
    assert!(header(answer, "age").parse::<u64>().is_ok(), "no age");
    header(answer, "warning").starts_with("110 ")
}

#[tokio::test]
async fn tags_are_listed_whole_by_every_way_to_name_a_registry() {
    let (upstream, _) = upstream_with(&["a", "b", "c", "d", "e"]).await;
    upstream.pages_tags(2);
    let config = format!(
        "{{defaultregistry: {REGISTRY}, registries: {{{REGISTRY}: {{upstream: \"{}\"}}}}}}",
        upstream.url()
    );
    let mirror = daemon().mirror(&config).start();
    let all = ["a", "b", "c", "d", "e"];
    let by_ns = ask(&mirror, "tags/list").await;
    assert_eq!(header(&by_ns, "oci-namespace"), REGISTRY);
    assert!(!is_stale(&by_ns));
    assert_eq!(names(by_ns).await, all);
    for path in [format!("{PREFIXED}/tags/list"), format!("{REPO}/tags/list")] {
        assert_eq!(names(mirror.get(&path).await).await, all, "{path}");
    }
    assert_eq!(
        upstream.count("GET", "/tags/list"),
        3,
        "one request for each page, once: {:?}",
        upstream.seen()
    );

    let proxy = daemon().env("REGISTRY_PROXY_REMOTEURL", &upstream.url()).start();
    assert_eq!(names(proxy.get(&format!("{REPO}/tags/list")).await).await, all);
}

#[tokio::test]
async fn a_page_of_tags_leads_to_the_next_one_of_the_same_registry() {
    let (upstream, image) = upstream_with(&["b", "d", "e"]).await;
    let mirror = mirror_of(&upstream, "").start();
    // What is pushed here under the same name is listed with them.
    mirror.push(REPO, "a", &image).await;
    mirror.push(REPO, "d", &image).await;
    let (mut path, mut pages) = (format!("{REPO}/tags/list?n=2&ns={REGISTRY}"), Vec::new());
    loop {
        let answer = mirror.get(&path).await;
        let next = header(&answer, "link").to_owned();
        pages.push(names(answer).await);
        let Some(target) = next.strip_prefix("</v2/").and_then(|next| next.split_once('>')) else { break };
        target.0.clone_into(&mut path);
    }
    assert_eq!(pages, [vec!["a", "b"], vec!["d", "e"]]);
}

#[tokio::test]
async fn tags_are_served_as_they_last_were_while_upstream_is_down() {
    let (mut upstream, _) = upstream_with(&["a", "b"]).await;
    let mirror = mirror_of(&upstream, "tagttl: 0s").start();
    assert_eq!(names(ask(&mirror, "tags/list").await).await, ["a", "b"]);
    // Rows have whole seconds: what is confirmed in the same one is not newer.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let image = Image::new(901, &[1000]);
    upstream.push(REPO, "c", &image);
    assert_eq!(ask(&mirror, "manifests/c").await.status(), StatusCode::OK);
    is_cached(&mirror, &Digest::sha256(&image.blobs[1])).await;
    upstream.stop().await;
    let answer = ask(&mirror, "tags/list").await;
    assert!(is_stale(&answer));
    assert_eq!(names(answer).await, ["a", "b", "c"], "c was pulled since");
    let mirror = mirror.kill_and_restart();
    let answer = ask(&mirror, "tags/list").await;
    assert!(is_stale(&answer));
    assert_eq!(names(answer).await, ["a", "b", "c"]);
    upstream.restart();
    upstream.delete_tag(REPO, "a");
    let begun = Instant::now();
    loop {
        let answer = ask(&mirror, "tags/list").await;
        if !is_stale(&answer) {
            assert_eq!(names(answer).await, ["b", "c"]);
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "upstream is back, and not asked");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn tags_that_were_never_listed_are_those_in_the_cache_while_upstream_is_down() {
    let (mut upstream, _) = upstream_with(&["a", "b"]).await;
    let mirror = mirror_of(&upstream, "tagttl: 0s").start();
    assert_eq!(ask(&mirror, "manifests/b").await.status(), StatusCode::OK);
    upstream.stop().await;
    let answer = ask(&mirror, "tags/list").await;
    assert!(is_stale(&answer));
    assert_eq!(names(answer).await, ["b"]);
    let never = mirror.get(&format!("library/never/tags/list?ns={REGISTRY}")).await;
    assert_eq!(never.status(), StatusCode::BAD_GATEWAY, "a failure is no empty list");
}

#[tokio::test]
async fn a_repository_that_upstream_has_not_is_unknown() {
    let (upstream, _) = upstream_with(&["a"]).await;
    let mirror = mirror_of(&upstream, "").start();
    for _ in 0..2 {
        let answer = mirror.get(&format!("library/never/tags/list?ns={REGISTRY}")).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    }
    assert_eq!(upstream.count("GET", "/library/never/tags/list"), 1, "it is remembered for a moment");
    let elsewhere = mirror.get(&format!("{REPO}/tags/list?ns=another.example")).await;
    assert_eq!(elsewhere.status(), StatusCode::NOT_FOUND);
}

/// The digest of an image, a signature and an SBOM of it.
fn signed(upstream: &Upstream) -> (Digest, Digest, Digest) {
    let image = Image::new(910, &[1000]);
    upstream.push(REPO, "1", &image);
    let subject = Digest::sha256(&image.manifest);
    let signature = upstream.attach(REPO, &subject, SIGNATURE, "s");
    (subject, signature, upstream.attach(REPO, &subject, SBOM, "b"))
}

#[tokio::test]
async fn signatures_of_a_mirrored_image_are_found_with_and_without_an_api_upstream() {
    for knows_api in [true, false] {
        let upstream = Upstream::start().await;
        if !knows_api {
            upstream.knows_no_referrers();
        }
        let (subject, signature, sbom) = signed(&upstream);
        let mirror = mirror_of(&upstream, "tagttl: 1h").start();
        let all = sorted(&[&signature, &sbom]);
        assert_eq!(digests(ask(&mirror, &format!("referrers/{subject}")).await).await, all);
        assert_eq!(digests(mirror.get(&format!("{PREFIXED}/referrers/{subject}")).await).await, all);

        let filter = "artifactType=application%2Fvnd.example.signature";
        let path = format!("{REPO}/referrers/{subject}?ns={REGISTRY}&{filter}");
        let filtered = mirror.get(&path).await;
        assert_eq!(header(&filtered, "oci-filters-applied"), "artifactType");
        assert_eq!(header(&filtered, "oci-namespace"), REGISTRY);
        assert_eq!(digests(filtered).await, [signature.to_string()]);
        assert_eq!(upstream.count("GET", "/referrers/"), 1, "kept within the time to live of tags");

        // The signature itself, and the fallback tag for clients that go by it.
        let manifest = ask(&mirror, &format!("manifests/{signature}")).await.bytes().await.unwrap();
        assert_eq!(Digest::sha256(&manifest), signature);
        let tag = subject.to_string().replace(':', "-");
        assert_eq!(ask(&mirror, &format!("manifests/{tag}")).await.status(), StatusCode::OK);

        let unsigned = Digest::sha256(b"nobody signed it");
        assert_eq!(digests(ask(&mirror, &format!("referrers/{unsigned}")).await).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn referrers_come_in_pages_with_those_that_were_pushed_here() {
    let upstream = Upstream::start().await;
    let (subject, signature, sbom) = signed(&upstream);
    let mirror = mirror_of(&upstream, "").start();
    let ours = attach_here(&mirror, &subject).await;
    let (mut path, mut found) = (format!("{REPO}/referrers/{subject}?n=1&ns={REGISTRY}"), Vec::new());
    loop {
        let answer = mirror.get(&path).await;
        let next = header(&answer, "link").to_owned();
        let page = digests(answer).await;
        assert_eq!(page.len(), 1);
        found.extend(page);
        let Some((target, _)) = next.strip_prefix("</v2/").and_then(|next| next.split_once('>')) else {
            break;
        };
        target.clone_into(&mut path);
    }
    assert_eq!(found, sorted(&[&signature, &sbom, &ours]));
}

async fn attach_here(mirror: &Daemon, subject: &Digest) -> Digest {
    let config = mirror.push_blob(REPO, b"{}").await;
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": crate::common::IMAGE_MANIFEST, "artifactType": SIGNATURE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_string(), "size": 2},
        "layers": [], "subject": {"digest": subject.to_string(), "size": 1},
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = Digest::sha256(&manifest);
    assert_eq!(mirror.put_manifest(REPO, &digest.to_string(), &manifest).await.status(), StatusCode::CREATED);
    digest
}

#[tokio::test]
async fn referrers_are_served_as_they_last_were_and_never_as_none_while_upstream_does_not_answer() {
    let (upstream, failing) = (Upstream::start().await, Fault::Status(503, ""));
    let (subject, signature, sbom) = signed(&upstream);
    let mirror = mirror_of(&upstream, "tagttl: 0s, negativettl: 0s").start();
    let path = format!("referrers/{subject}");
    assert_eq!(digests(ask(&mirror, &path).await).await, sorted(&[&signature, &sbom]));
    upstream.fails(Rule::on("", failing));
    let answer = ask(&mirror, &path).await;
    assert!(is_stale(&answer));
    assert_eq!(digests(answer).await, sorted(&[&signature, &sbom]));
    let unknown = ask(&mirror, &format!("referrers/{}", Digest::sha256(b"never asked for"))).await;
    assert_eq!(unknown.status(), StatusCode::BAD_GATEWAY, "a failure is no lack of signatures");

    let mut mirror = mirror;
    mirror.terminate();
    assert!(mirror.ended().await);
    let mirror = mirror.kill_and_restart();
    let answer = ask(&mirror, &path).await;
    assert!(is_stale(&answer));
    assert_eq!(digests(answer).await, sorted(&[&signature, &sbom]));
    upstream.heals();
    upstream.admits(Access::Basic("user", "secret"));
    let answer = ask(&mirror, &path).await;
    assert!(is_stale(&answer), "who may not ask gets what was known");
}

#[tokio::test]
async fn all_who_list_at_once_cost_one_request() {
    let (upstream, _) = upstream_with(&["a"]).await;
    let mirror = mirror_of(&upstream, "").start();
    upstream.fails(Rule::on("/tags/list", Fault::HoldHeader));
    let (asking, release) = (futures::future::join_all((0..8).map(|_| ask(&mirror, "tags/list"))), async {
        upstream.is_asked("GET", "/tags/list", 1).await;
        upstream.release();
    });
    for answer in tokio::join!(asking, release).0 {
        assert_eq!(names(answer).await, ["a"]);
    }
    assert_eq!(upstream.count("GET", "/tags/list"), 1);
}
