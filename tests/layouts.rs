//! Image layouts and registries anywhere on IPFS: added here, pulled there by CID, by IPNS name, by DNSLink and by ENS.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode as AxumStatus;
use axum::routing::post;
use axum::{Json, Router};
use common::files::*;
use common::name_server::{NameServer, link};
use common::{Daemon, IMAGE_MANIFEST, Image, PATIENCE, daemon};
use multibase::Base;
use reqwest::StatusCode;
use serde_json::{Value, json};
use shoal::ipld::Cid;
use shoal::oci::{Algorithm, Digest};
use shoal::tasks::Tasks;
use tempfile::TempDir;

/// No answer to what cannot be had takes longer: twice what the daemon looks for it, so that a slow machine does not count.
const BUDGET: Duration = Duration::from_secs(50);

/// Adds a folder and returns its CID.
fn add(daemon: &Daemon, folder: &Path) -> Cid {
    let ran = shoal(daemon, ["layout", "add", &folder.to_string_lossy()]);
    assert!(ran.ok, "{}", ran.stderr);
    let printed = String::from_utf8(ran.stdout).unwrap();
    printed.trim().strip_prefix("ipfs/").unwrap().parse().unwrap()
}

/// A layout with one image that has tag `1`.
fn layout_of(image: &Image) -> TempDir {
    let folder = TempDir::new().unwrap();
    write_layout(folder.path(), &[image], &[("1", &image.manifest)]);
    folder
}

/// A reader without a key, connected to `other`.
fn reader_of(other: &Daemon) -> Daemon {
    daemon().knows(other).read_only().start()
}

/// The status and the message of an error, which comes within the budget.
async fn refusal(daemon: &Daemon, path: &str) -> (StatusCode, String) {
    let begun = Instant::now();
    let answer = daemon.get(path).await;
    assert!(begun.elapsed() < BUDGET, "{:?}", begun.elapsed());
    (answer.status(), answer.text().await.unwrap())
}

#[tokio::test]
async fn a_layout_added_here_is_pulled_there_by_its_cid() {
    let (a, image) = (daemon().read_only().start(), Image::small(1));
    let folder = layout_of(&image);
    let cid = add(&a, folder.path());
    let b = reader_of(&a);
    let repo = format!("ipfs/{cid}");
    b.serves(&repo, "1", &image).await;
    assert_eq!(b.pull(&repo, "latest").await.unwrap(), image, "it is the only one");
    let base36 = multibase::encode(Base::Base36Lower, cid.to_bytes());
    assert_eq!(b.pull(&format!("ipfs/{base36}"), "1").await.unwrap(), image);
    let by_digest = Digest::sha256(&image.manifest).to_string();
    assert_eq!(b.pull(&repo, &by_digest).await.unwrap(), image);

    let answer = b.get(&format!("{repo}/manifests/1")).await;
    assert_eq!(answer.headers()["content-type"], IMAGE_MANIFEST);
    assert_eq!(answer.headers()["x-shoal-source"], format!("ipfs={cid}"));
    let tags: Value = b.get(&format!("{repo}/tags/list")).await.json().await.unwrap();
    assert_eq!(tags, json!({"name": repo, "tags": ["1"]}));
    let referrers = b.get(&format!("{repo}/referrers/{by_digest}")).await;
    assert_eq!(referrers.json::<Value>().await.unwrap()["manifests"], json!([]));
    let absent = Digest::sha256(b"absent");
    for path in ["manifests/2".to_owned(), format!("manifests/{absent}"), format!("blobs/{absent}")] {
        assert_eq!(b.get(&format!("{repo}/{path}")).await.status(), StatusCode::NOT_FOUND, "{path}");
    }
    // What b holds it gives on, when a is gone.
    drop(a);
    let c = reader_of(&b);
    c.serves(&repo, "1", &image).await;
}

#[tokio::test]
async fn shoal_pull_shows_where_the_bytes_come_from() {
    let (a, image) = (daemon().start(), Image::small(2));
    let folder = layout_of(&image);
    let repo = format!("ipfs/{}", add(&a, folder.path()));
    let b = reader_of(&a);
    let ran = shoal(&b, ["pull", "--json", &format!("{repo}:1")]);
    let blobs = ran.events().iter().filter(|event| event["event"] == "blob").count();
    assert_eq!((ran.blobs().0, blobs > 3), (4, true), "{:?}", ran.events());
    let done = ran.events().pop().unwrap();
    let from: Vec<&String> = done["bytes_by_source"].as_object().unwrap().keys().collect();
    assert_eq!(from, [&repo.replace('/', "=")]);

    a.push("library/app", "1", &image).await;
    let repo = format!("ipns/{}/library/app", a.ipns);
    b.serves(&repo, "1", &image).await;
    let named = shoal(&b, ["pull", &format!("{repo}:1")]);
    assert!(named.ok && named.stderr.contains(" from ipfs=baf"), "{}", named.stderr);
    shoal(&b, ["pull", &format!("{repo}:2")]).failed_with("is unknown to the daemon");
}

#[tokio::test]
async fn nobody_pushes_to_a_place_on_ipfs() {
    let (a, image) = (daemon().start(), Image::small(3));
    let folder = layout_of(&image);
    let repo = format!("ipfs/{}", add(&a, folder.path()));
    for repo in [&repo, &format!("ipns/{}/library/app", a.ipns), &"ipns/example.org/app".to_owned()] {
        let opened = a.client.post(a.url(&format!("{repo}/blobs/uploads/"))).send().await.unwrap();
        assert_eq!(opened.status(), StatusCode::METHOD_NOT_ALLOWED, "{repo}");
        assert!(opened.text().await.unwrap().contains("push to a repository of another name"));
        let put = a.put_manifest(repo, "1", &image.manifest).await;
        assert_eq!(put.status(), StatusCode::METHOD_NOT_ALLOWED);
        let deleted = a.client.delete(a.url(&format!("{repo}/manifests/1"))).send().await.unwrap();
        assert_eq!(deleted.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
    // A repository that only looks like one is pushed to as ever.
    a.push("ipfs/kubo", "1", &image).await;
    assert_eq!(a.pull("ipfs/kubo", "1").await.unwrap(), image);
    assert_eq!(a.pull(&repo, "1").await.unwrap(), image);
}

#[tokio::test]
async fn a_registry_is_pulled_by_its_name_and_by_its_root() {
    let (a, image) = (daemon().start(), Image::small(4));
    a.push("library/app", "1", &image).await;
    let b = reader_of(&a);
    b.serves(&format!("ipns/{}/library/app", a.ipns), "1", &image).await;
    let root = a.status().own.unwrap().root;
    assert_eq!(b.pull(&format!("ipfs/{root}/library/app"), "1").await.unwrap(), image);
    // The own name needs nobody.
    assert_eq!(a.pull(&format!("ipns/{}/library/app", a.ipns), "1").await.unwrap(), image);
    let tags: Value = b.get(&format!("ipfs/{root}/library/app/tags/list")).await.json().await.unwrap();
    assert_eq!(tags["tags"], json!(["1"]));
    assert_eq!(refusal(&b, &format!("ipfs/{root}/library/none/manifests/1")).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_layout_of_many_forms_is_read() {
    let (a, folder) = (daemon().start(), TempDir::new().unwrap());
    let (amd64, arm64) = (Image::new(5, &[10]), Image::new(6, &[20]));
    let multi = index_of(&[("amd64", &amd64), ("arm64", &arm64)]);
    write_layout(folder.path(), &[&amd64, &arm64], &[("docker.io/library/alpine:3.20", &multi)]);
    // One more image, all of it by sha512.
    let layer = common::random_bytes(7, 3_000_000);
    let digest = |content: &[u8]| Digest::of(Algorithm::Sha512, content);
    let manifest = json!({"schemaVersion": 2, "config": {"digest": digest(b"{}").to_string(), "size": 2},
        "layers": [{"digest": digest(&layer).to_string(), "size": layer.len()}]});
    let manifest = manifest.to_string().into_bytes();
    for content in [b"{}".as_slice(), &layer, &manifest] {
        write(&folder.path().join("blobs/sha512").join(digest(content).hex()), content);
    }
    let mut index: Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("index.json")).unwrap()).unwrap();
    let entry = json!({"digest": digest(&manifest).to_string(), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": "long"}});
    index["manifests"].as_array_mut().unwrap().push(entry);
    write(&folder.path().join("index.json"), index.to_string().as_bytes());

    let repo = format!("ipfs/{}", add(&a, folder.path()));
    let b = reader_of(&a);
    let answer = b.get(&format!("{repo}/library/alpine/manifests/3.20")).await;
    assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
    assert_eq!(answer.headers()["content-type"], IMAGE_INDEX);
    assert_eq!(answer.bytes().await.unwrap(), multi);
    let child = Digest::sha256(&arm64.manifest).to_string();
    assert_eq!(b.pull(&format!("{repo}/library/alpine"), &child).await.unwrap(), arm64);
    let answer = b.get(&format!("{repo}/manifests/long")).await;
    assert_eq!(answer.headers()["docker-content-digest"], digest(&manifest).to_string());
    let blob = b.get(&format!("{repo}/blobs/{}", digest(&layer))).await;
    assert_eq!(blob.bytes().await.unwrap(), layer);
    assert_eq!(refusal(&b, &format!("{repo}/manifests/latest")).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_layout_is_kept_until_it_is_removed() {
    let (a, image) = (daemon().start(), Image::small(8));
    let folder = layout_of(&image);
    let cid = add(&a, folder.path());
    let repo = format!("ipfs/{cid}");
    assert!(shoal(&a, ["gc"]).ok);
    let a = a.kill_and_restart();
    assert!(shoal(&a, ["gc"]).ok);
    assert_eq!(a.pull(&repo, "1").await.unwrap(), image);

    let listed: Vec<shoal::api::Layout> =
        serde_json::from_slice(&shoal(&a, ["layout", "ls", "--json"]).stdout).unwrap();
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!((listed.len(), listed[0].cid.as_str(), listed[0].name.as_str()), (1, &*cid.to_string(), name));
    let shown = String::from_utf8(shoal(&a, ["layout", "ls"]).stdout).unwrap();
    assert!(shown.starts_with(&format!("{repo}  ")), "{shown}");
    assert!(shoal(&a, ["layout", "rm", &repo]).ok);
    shoal(&a, ["layout", "rm", &repo]).failed_with("is kept: see `shoal layout ls`");
    let (before, begun) = (a.status().store.live_bytes, Instant::now());
    // What is being read is let be.
    while a.status().store.live_bytes + 2_000_000 >= before {
        assert!(begun.elapsed() < PATIENCE, "its space does not come back\n{}", a.log());
        assert!(shoal(&a, ["gc"]).ok);
    }
    assert!(refusal(&a, &format!("{repo}/manifests/1")).await.0.is_server_error(), "nobody else was asked");
}

#[tokio::test]
async fn a_folder_that_is_no_layout_is_not_added() {
    let (a, image) = (daemon().start(), Image::small(9));
    let add = |folder: &Path| shoal(&a, ["layout", "add", &folder.to_string_lossy()]);
    let folder = layout_of(&image);
    write(&blob_path(folder.path(), &image.blobs[2]), b"other bytes");
    add(folder.path()).failed_with("is not what it is named");
    let folder = layout_of(&image);
    std::fs::remove_file(blob_path(folder.path(), &image.manifest)).unwrap();
    add(folder.path()).failed_with("which index.json names");
    write(&folder.path().join("index.json"), b"{");
    add(folder.path()).failed_with("cannot be used");
    std::fs::remove_file(folder.path().join("oci-layout")).unwrap();
    add(folder.path()).failed_with("is not an OCI layout");
    add(&folder.path().join("index.json")).failed_with("is not a folder");
    assert_eq!(shoal(&a, ["layout", "ls", "--json"]).stdout, b"[]\n");
}

#[tokio::test]
async fn what_cannot_be_is_told_and_what_cannot_be_had_is_no_miss() {
    let alone = daemon().start();
    let (status, text) =
        refusal(&alone, "ipfs/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG/manifests/1").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("ipfs cid base32") && text.contains("NAME_INVALID"), "{text}");
    let cid = "bafybeielgvrvxuraaa6s36ww575ogm2jc6haclf7sghyf7d3rtiodisbrq";
    let (status, text) = refusal(&alone, &format!("ipfs/{cid}/alpine/manifests/3.10.1")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    let key = "k51qzi5uqu5dlj2qkibv67ep4sdsa73s9asv2g3um5j441i80ks15e1afi7waz";
    let (status, text) = refusal(&alone, &format!("ipns/{key}/hello/manifests/latest")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    // The same with a peer that has nothing.
    let b = reader_of(&alone);
    let (status, text) = refusal(&b, &format!("ipfs/{cid}/alpine/manifests/3.10.1")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert_eq!(refusal(&b, &format!("ipfs/{cid}/blobs/{}", Digest::sha256(b"x"))).await.0, status);
    assert_eq!(refusal(&b, &format!("ipfs/{cid}/tags/list")).await.0, status);
}

#[tokio::test]
async fn a_domain_leads_on_by_dnslink() {
    let (a, image) = (daemon().start(), Image::small(10));
    a.push("library/app", "1", &image).await;
    let folder = layout_of(&image);
    let cid = add(&a, folder.path());
    let root = a.status().own.unwrap().root;
    let names = NameServer::start([
        link("_dnslink.layout.example", format!("/ipfs/{cid}")),
        link("_dnslink.registry.example", format!("/ipfs/{root}/")),
        // One name leads to the next; the old place of the record counts too.
        link("named.example", format!("/ipns/{}", a.ipns)),
        link("_dnslink.other.example", "/ipns/layout.example".to_owned()),
        link("_dnslink.round.example", "/ipns/round.example".to_owned()),
        link("_dnslink.odd.example", "/swarm/x".to_owned()),
    ]);
    let b = daemon().knows(&a).read_only().env("REGISTRY_STORAGE_IPFS_NAMESERVER", &names.address).start();
    b.serves("ipns/layout.example", "1", &image).await;
    assert_eq!(b.pull("ipns/other.example", "1").await.unwrap(), image);
    assert_eq!(b.pull("ipns/registry.example/library/app", "1").await.unwrap(), image);
    b.serves("ipns/named.example/library/app", "1", &image).await;
    for (domain, wanted, said) in [
        ("absent.example", StatusCode::NOT_FOUND, "/ipns/absent.example has no link"),
        ("broken.example", StatusCode::SERVICE_UNAVAILABLE, "no name server answered for broken.example"),
        ("round.example", StatusCode::INTERNAL_SERVER_ERROR, "from name to name"),
        ("odd.example", StatusCode::SERVICE_UNAVAILABLE, "/swarm/x"),
    ] {
        let (status, text) = refusal(&b, &format!("ipns/{domain}/app/manifests/1")).await;
        assert_eq!(status, wanted, "{domain}: {text}");
        assert!(text.contains(said), "{text}");
    }
}

/// The node of `foo.eth` (EIP-137), its resolver, and the registry.
const FOO_ETH: &str = "de9b09fd7c5f901e23a3f19fecc54828e9c848539801e86591bd9801b019f84f";
const RESOLVER: &str = "00000000000000000000000000000000000000aa";
const REGISTRY: &str = "0x00000000000c2e074ec69a0dfb2997ba6c7d2e1e";

/// An Ethereum node that knows one name; `None`: it refuses.
async fn ethereum(State(content): State<Option<Cid>>, Json(asked): Json<Value>) -> (AxumStatus, Json<Value>) {
    let (call, id) = (&asked["params"][0], &asked["id"]);
    assert_eq!((&asked["method"], &asked["params"][1]), (&json!("eth_call"), &json!("latest")));
    let Some(content) = content else {
        return (
            AxumStatus::OK,
            Json(json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32000, "message": "too busy"}})),
        );
    };
    let word = |hex: &str| format!("{hex:0>64}");
    let data = call["data"].as_str().unwrap();
    let result = if data == format!("0x0178b8bf{FOO_ETH}") && call["to"] == REGISTRY {
        word(RESOLVER)
    } else if data == format!("0xbc1c58d1{FOO_ETH}") && call["to"] == format!("0x{RESOLVER}") {
        let hash = [[0xe3, 0x01].as_slice(), &content.to_bytes()].concat();
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{}{}{hex:0<128}", word("20"), word(&format!("{:x}", hash.len())))
    } else {
        word("0")
    };
    (AxumStatus::OK, Json(json!({"jsonrpc": "2.0", "id": id, "result": format!("0x{result}")})))
}

/// Runs the node for as long as the test does.
async fn ethereum_node(content: Option<Cid>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/", post(ethereum)).with_state(content);
    Tasks::new().spawn_short("ethereum", |_| async move { axum::serve(listener, router).await.unwrap() });
    url
}

fn with_node(url: &str) -> String {
    format!("[{{name: ipfs, options: {{ethnodeurl: \"{url}\"}}}}]")
}

#[tokio::test]
async fn a_name_of_ens_leads_to_its_contenthash() {
    let (a, image) = (daemon().start(), Image::small(11));
    let folder = layout_of(&image);
    let node = ethereum_node(Some(add(&a, folder.path()))).await;
    let reader = |url: &str| {
        daemon().knows(&a).read_only().env("REGISTRY_MIDDLEWARE_REPOSITORY", &with_node(url)).start()
    };
    let b = reader(&node);
    b.serves("foo.eth", "1", &image).await;
    let (status, text) = refusal(&b, "bar.eth/app/manifests/1").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{text}");
    assert!(text.contains("bar.eth has no link"), "{text}");
    // As containerd asks for foo.eth/app:1.
    let answer = b.get("missing/manifests/1?ns=foo.eth").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let push = b.client.post(b.url("foo.eth/blobs/uploads/")).send().await.unwrap();
    assert_eq!(push.status(), StatusCode::METHOD_NOT_ALLOWED);

    let refused = reader(&ethereum_node(None).await);
    let (status, text) = refusal(&refused, "foo.eth/manifests/1").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert!(text.contains("too busy"), "{text}");
    // Without a node it is a repository like any other.
    assert_eq!(refusal(&a, "foo.eth/manifests/1").await.0, StatusCode::NOT_FOUND);
    a.push("foo.eth/app", "1", &image).await;
}
