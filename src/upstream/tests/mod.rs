//! The client against a registry that says what it is told to.

mod auth;
mod fake;
mod faults;
mod hostile;
mod public;

use std::collections::BTreeMap;

use bytes::Bytes;
use fake::{Fake, Reply, Seen};
use futures::TryStreamExt;

use super::*;
use crate::config::RegistryConfig;
use crate::oci::manifest::{DOCKER_MANIFEST, OCI_MANIFEST};
use crate::oci::{Digest, Reference, RepoName};

const HOST: &str = "registry.example";
const MANIFEST: &[u8] = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
const BLOB: &[u8] = b"0123456789";

fn repo() -> RepoName {
    "library/alpine".parse().unwrap()
}

fn latest() -> Reference {
    "latest".parse().unwrap()
}

fn config(endpoints: &[&str]) -> RegistryConfig {
    let endpoints = endpoints.iter().map(|url| url.parse().unwrap()).collect();
    RegistryConfig { endpoints, ..RegistryConfig::default() }
}

fn upstreams(config: RegistryConfig) -> Upstreams {
    let registries = BTreeMap::from([(HOST.parse().unwrap(), config)]);
    Upstreams::new(PullThrough { registries, ..PullThrough::default() }, "me").unwrap()
}

fn upstream(config: RegistryConfig) -> Upstream {
    upstreams(config).get(&HOST.parse().unwrap()).unwrap()
}

/// A registry at one address, without credentials.
fn of(fake: &Fake) -> Upstream {
    upstream(config(&[&fake.url]))
}

async fn all(body: BlobBody) -> Result<Bytes, UpstreamError> {
    let chunks: Vec<Bytes> = body.bytes.try_collect().await?;
    Ok(chunks.concat().into())
}

fn manifest_reply() -> Reply {
    let digest = Digest::sha256(MANIFEST).to_string();
    Reply::new(200, &[("Content-Type", OCI_MANIFEST), ("Docker-Content-Digest", &digest)], MANIFEST)
}

#[tokio::test]
async fn a_manifest_comes_with_its_digest_and_type() {
    let fake = Fake::start(|_| manifest_reply()).await;
    let fetched = of(&fake).manifest(&repo(), &latest()).await.unwrap().unwrap();
    assert_eq!(fetched.bytes, MANIFEST);
    assert_eq!(fetched.digest, Digest::sha256(MANIFEST));
    assert_eq!(fetched.media_type.as_deref(), Some(OCI_MANIFEST));

    let [asked] = &fake.seen()[..] else { panic!("{:?}", fake.asked()) };
    assert_eq!(
        (asked.method.as_str(), asked.target.as_str()),
        ("GET", "/v2/library/alpine/manifests/latest")
    );
    let accept = asked.header("accept").unwrap();
    assert!(accept.contains(OCI_MANIFEST) && accept.contains(DOCKER_MANIFEST), "{accept}");
    assert!(!accept.contains("manifest.v1+prettyjws"), "{accept}");
    assert_eq!(asked.header("accept-encoding"), Some("identity"));
    assert_eq!(asked.header("via"), Some("1.1 shoal-me"));
    assert_eq!(asked.header("authorization"), None);
}

#[tokio::test]
async fn a_head_tells_digest_type_and_size() {
    let fake = Fake::start(|_| manifest_reply()).await;
    let head = of(&fake).head_manifest(&repo(), &latest()).await.unwrap().unwrap();
    let expected = Head {
        digest: Some(Digest::sha256(MANIFEST)),
        media_type: Some(OCI_MANIFEST.to_owned()),
        size_bytes: Some(MANIFEST.len() as u64),
    };
    assert_eq!(head, expected);
    assert_eq!(fake.asked(), ["HEAD /v2/library/alpine/manifests/latest"]);
}

/// Handlers keep it on the stack of a thread, within others, and copy it when they pass it on.
#[tokio::test]
async fn what_waits_for_an_answer_is_small() {
    const FUTURE_BYTES_MAX: usize = 8 << 10;
    let (upstream, repo, latest) = (upstream(config(&["http://127.0.0.1:1"])), repo(), latest());
    let size_bytes = size_of_val(&upstream.manifest(&repo, &latest));
    assert!(size_bytes <= FUTURE_BYTES_MAX, "{size_bytes}");
    let size_bytes = size_of_val(&upstream.blob(&repo, &Digest::sha256(BLOB), 0, None));
    assert!(size_bytes <= FUTURE_BYTES_MAX, "{size_bytes}");
}

#[tokio::test]
async fn where_head_is_not_allowed_get_is_asked() {
    let refuse = |seen: &Seen, reply: Reply| if seen.method == "HEAD" { Reply::status(405) } else { reply };
    let fake = Fake::start(move |seen| refuse(seen, manifest_reply())).await;
    let head = of(&fake).head_manifest(&repo(), &latest()).await.unwrap().unwrap();
    assert_eq!(head.digest, Some(Digest::sha256(MANIFEST)));

    let fake = Fake::start(move |seen| refuse(seen, Reply::new(200, &[], BLOB))).await;
    let size = of(&fake).head_blob(&repo(), &Digest::sha256(BLOB)).await.unwrap();
    assert_eq!(size, Some(BLOB.len() as u64));
}

#[tokio::test]
async fn the_size_of_a_blob_is_found_also_where_only_a_part_tells_it() {
    let part: &[u8] = b"HTTP/1.1 206 Part\r\nConnection: close\r\nContent-Range: bytes 0-0/10\r\nContent-Length: 1\r\n\r\n0";
    let fake = Fake::start(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::raw(*b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"),
        _ => Reply::raw(part),
    })
    .await;
    assert_eq!(of(&fake).head_blob(&repo(), &Digest::sha256(BLOB)).await.unwrap(), Some(10));
}

#[tokio::test]
async fn what_upstream_does_not_have_is_no_failure() {
    let fake = Fake::start(|_| Reply::status(404)).await;
    let (upstream, digest) = (of(&fake), Digest::sha256(BLOB));
    assert_eq!(upstream.head_manifest(&repo(), &latest()).await.unwrap(), None);
    assert_eq!(upstream.manifest(&repo(), &latest()).await.unwrap(), None);
    assert_eq!(upstream.head_blob(&repo(), &digest).await.unwrap(), None);
    assert!(upstream.blob(&repo(), &digest, 0, None).await.unwrap().is_none());
    assert_eq!(upstream.tags(&repo()).await.unwrap(), None);
    assert_eq!(upstream.referrers(&repo(), &digest).await.unwrap(), []);
}

#[tokio::test]
async fn a_blob_comes_whole_or_by_range() {
    let fake = Fake::start(|seen| match seen.header("range") {
        None => Reply::new(200, &[], BLOB),
        Some("bytes=4-") => Reply::new(206, &[("Content-Range", "bytes 4-9/10")], &BLOB[4..]),
        Some("bytes=4-6") => Reply::new(206, &[("Content-Range", "bytes 4-6/10")], &BLOB[4..7]),
        Some(_) => Reply::status(416),
    })
    .await;
    let (upstream, digest) = (of(&fake), Digest::sha256(BLOB));
    for (from, to, bytes) in [(0, None, BLOB), (4, None, &BLOB[4..]), (4, Some(7), &BLOB[4..7])] {
        let body = upstream.blob(&repo(), &digest, from, to).await.unwrap().unwrap();
        assert_eq!((body.at, body.size_bytes), (from, Some(10)));
        assert_eq!(all(body).await.unwrap(), bytes);
    }
    let beyond = upstream.blob(&repo(), &digest, 11, None).await.err();
    assert!(matches!(beyond, Some(UpstreamError::Status { status: 416, .. })), "{beyond:?}");
}

#[tokio::test]
async fn a_blob_begins_at_its_start_where_ranges_are_ignored() {
    let fake = Fake::start(|_| Reply::new(200, &[], BLOB)).await;
    let body = of(&fake).blob(&repo(), &Digest::sha256(BLOB), 4, Some(6)).await.unwrap().unwrap();
    assert_eq!((body.at, body.size_bytes), (0, Some(10)));
    assert_eq!(all(body).await.unwrap(), BLOB);
}

#[tokio::test]
async fn tags_come_whole_and_sorted_from_as_many_pages_as_there_are() {
    let fake = Fake::start(|seen| match seen.target.split_once('?').unwrap().1 {
        "n=1000" => Reply::new(
            200,
            &[("Link", "<http://elsewhere.example/v2/x?last=d&token=%26>; rel=\"next\"")],
            br#"{"name":"library/alpine","tags":["d","b","not/a tag"]}"#,
        ),
        "last=d&token=%26" => Reply::new(200, &[], br#"{"name":"library/alpine","tags":["c","b"]}"#),
        other => panic!("{other}"),
    })
    .await;
    assert_eq!(of(&fake).tags(&repo()).await.unwrap().unwrap(), ["b", "c", "d"]);
    assert_eq!(fake.asked().len(), 2, "{:?}", fake.asked());
}

#[tokio::test]
async fn a_registry_that_gives_fewer_tags_at_a_time_is_asked_for_as_many_as_it_likes() {
    let fake = Fake::start(|seen| match seen.target.contains("n=1000") {
        true => Reply::status(400),
        false => Reply::new(200, &[], br#"{"tags":["a"]}"#),
    })
    .await;
    assert_eq!(of(&fake).tags(&repo()).await.unwrap().unwrap(), ["a"]);
}

#[tokio::test]
async fn referrers_are_read_from_the_fallback_tag_where_upstream_knows_no_list() {
    let digest = Digest::sha256(BLOB);
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":10}}]}}"#
    );
    let list = index.clone();
    let fake = Fake::start(move |_| Reply::new(200, &[], list.as_bytes())).await;
    assert_eq!(of(&fake).referrers(&repo(), &digest).await.unwrap()[0].digest, digest);
    assert_eq!(fake.asked(), [format!("GET /v2/library/alpine/referrers/{digest}")]);

    let web_page = Reply::new(200, &[("Content-Type", "text/html")], b"<html>").bytes().to_vec();
    for unknown in [Reply::status(404).bytes().to_vec(), Reply::status(405).bytes().to_vec(), web_page] {
        let index = index.clone();
        let old = Fake::start(move |seen| match seen.target.contains("referrers") {
            true => Reply::raw(unknown.clone()),
            false => Reply::new(200, &[], index.as_bytes()),
        })
        .await;
        assert_eq!(of(&old).referrers(&repo(), &digest).await.unwrap()[0].digest, digest);
        assert!(old.asked()[1].ends_with(&format!("/manifests/sha256-{}", &digest.to_string()[7..])));
    }
}

#[tokio::test]
async fn the_rate_limit_of_docker_hub_is_kept_for_status() {
    let limits = [("RateLimit-Limit", "100;w=21600"), ("RateLimit-Remaining", "76;w=21600")];
    let fake = Fake::start(move |_| Reply::new(200, &limits, MANIFEST)).await;
    let upstreams = upstreams(config(&[&fake.url]));
    let upstream = upstreams.get(&HOST.parse().unwrap()).unwrap();
    upstream.manifest(&repo(), &latest()).await.unwrap();
    let [status] = &upstreams.status()[..] else { panic!() };
    assert_eq!((status.rate_limit, status.is_asked, &status.error), (Some((76, 100)), true, &None));
}

#[tokio::test]
async fn a_chain_of_mirrors_that_leads_back_here_is_seen() {
    let upstreams = upstreams(config(&["http://127.0.0.1:1"]));
    assert!(!upstreams.is_loop(None));
    let other = upstreams.via(Some("1.1 proxy, 1.1 shoal-other"));
    assert_eq!(other, "1.1 proxy, 1.1 shoal-other, 1.1 shoal-me");
    assert!(!upstreams.is_loop(Some("1.1 proxy, 1.1 shoal-other")));
    assert!(upstreams.is_loop(Some(&other)));
    assert!(upstreams.is_loop(Some(&"1.1 x, ".repeat(200))), "nobody has so long a way");
}

#[tokio::test]
async fn any_public_registry_is_known_by_its_name_and_no_other() {
    let any = Some(RegistryConfig::default());
    let upstreams = Upstreams::new(PullThrough { any, ..PullThrough::default() }, "me").unwrap();
    let known = |name: &str| upstreams.get(&name.parse().unwrap());
    assert_eq!(known("quay.io").unwrap().config().endpoints, ["https://quay.io".parse().unwrap()]);
    assert!(known("127.0.0.1").is_none() && known("localhost:5000").is_none());
    // However many names somebody makes up, the next one is still known.
    for n in 0..2 * ON_DEMAND_MAX {
        assert!(known(&format!("r{n}.example.org")).is_some());
    }
    upstreams.0.on_demand.run_pending_tasks();
    assert!(upstreams.status().len() as u64 <= ON_DEMAND_MAX);
}

#[tokio::test]
async fn files_that_cannot_be_read_are_named_with_their_key() {
    for (name, any) in [(HOST, false), ("*", true)] {
        let bad = RegistryConfig { ca: Some("/nowhere/ca.pem".into()), ..config(&["https://a.example"]) };
        let pull_through = match any {
            true => PullThrough { any: Some(bad), ..PullThrough::default() },
            false => {
                let registries = BTreeMap::from([(HOST.parse().unwrap(), bad)]);
                PullThrough { registries, ..PullThrough::default() }
            }
        };
        let error = Upstreams::new(pull_through, "me").err().unwrap().to_string();
        let expected = format!("config key mirror.registries.{name}.ca: cannot read /nowhere/ca.pem");
        assert!(error.starts_with(&expected), "{error}");
    }
}
