//! Whole daemons that have a Kubo for their network, and the predecessor's config files.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use shoal::api::Status;
use shoal::ipld::ipns::{IpnsName, IpnsRecord};
use shoal::oci::Digest;
use tempfile::TempDir;

use crate::common::name_server::{NameServer, link};
use crate::common::{Daemon, Image, PATIENCE, Setup, daemon};
use crate::double::{Double, Fault};
use crate::kubo::{Kubo, Release};
use crate::leaf;

pub const ADDRESS: &str = "REGISTRY_STORAGE_IPFS_IPFSAPIADDRESS";
pub const AUTH: &str = "REGISTRY_STORAGE_IPFS_IPFSAPIAUTH";

pub fn attached(address: &str) -> Setup {
    daemon().env(ADDRESS, address).env(AUTH, "bearer:t0ken")
}

fn multiaddr(double: &Double) -> String {
    format!("/ip4/127.0.0.1/tcp/{}", double.address.port())
}

pub async fn until(daemon: &Daemon, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
    let begun = Instant::now();
    loop {
        let status = daemon.status();
        if holds(&status) {
            return status;
        }
        // A real Kubo takes its time.
        assert!(begun.elapsed() < 3 * PATIENCE, "{what}: {status:?}\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub fn is_published(status: &Status) -> bool {
    status.own.as_ref().is_some_and(|own| own.state == "published")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_is_pinned_before_kubo_signs_for_it() {
    let double = Double::start().await;
    let name = double.has_key("self");
    let daemon = attached(&multiaddr(&double)).env("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "self").start();
    assert_eq!(daemon.ipns, name.to_string(), "`self` is the key of Kubo");
    // The first try finds Kubo out of order, the second breaks off.
    double.fails("dag/import", Fault::Error);
    double.fails("dag/import", Fault::BreaksOff);
    let image = Image::small(1);
    daemon.push("library/app", "1", &image).await;
    let status = until(&daemon, "published", is_published).await;
    assert_eq!(status.node.kubo.unwrap().version.as_deref(), Some("0.43.0"));
    let root = status.own.unwrap().root;
    {
        let inside = double.inside();
        assert_eq!(inside.gap(&root.parse().unwrap()), None, "all of the root is there");
        let record = IpnsRecord::decode(&name, &inside.records[&name.to_string()]).unwrap();
        assert_eq!(record.root().unwrap().to_string(), root);
        let at = |call: &str| inside.calls.iter().rposition(|given| given.starts_with(call));
        assert!(at("pin/add").unwrap() < at("name/publish").unwrap(), "{:?}", inside.calls);
    }
    daemon.push("library/app", "2", &Image::small(2)).await;
    let moved = |status: &Status| is_published(status) && status.own.as_ref().unwrap().root != root;
    let moved = until(&daemon, "published again", moved).await.own.unwrap().root;
    until(&daemon, "the old pin goes", |_| double.inside().pins.keys().eq([&moved])).await;
    assert!(daemon.log().contains("the embedded node is not started"), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_among_the_names_is_resolved_by_us_and_its_name_by_kubo() {
    let double = Double::start().await;
    double.has_key("self");
    let writer = attached(&multiaddr(&double)).start();
    let image = Image::small(8);
    writer.push("library/app", "1", &image).await;
    until(&writer, "published", is_published).await;
    let names = NameServer::start([link("_dnslink.registry.example", format!("/ipns/{}", writer.ipns))]);
    let reader = attached(&multiaddr(&double)).read_only().reads("registry.example");
    let reader = reader.env("REGISTRY_STORAGE_IPFS_NAMESERVER", &names.address).start();
    reader.serves("library/app", "1", &image).await;
    let asked = |call: &String| call.contains("registry.example");
    assert!(!double.inside().calls.iter().any(asked), "{:?}", double.inside().calls);
}

/// A Kubo that finds what the other one has.
fn shares(one: &Double, other: &Double) {
    let (one, mut other) = (one.inside(), other.inside());
    other.blocks.extend(one.blocks.clone());
    other.records.extend(one.records.clone());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_followed_whole_is_pinned_and_the_rest_is_not() {
    let (double, other) = (Double::start().await, Double::start().await);
    double.has_key("self");
    let writer = attached(&multiaddr(&double)).start();
    writer.push("library/app", "1", &Image::small(31)).await;
    let first = until(&writer, "published", is_published).await.own.unwrap().root;
    shares(&double, &other);
    let reader = attached(&multiaddr(&other)).read_only().reads(&writer.ipns);
    let reader = reader.env("REGISTRY_STORAGE_IPFS_FOLLOW", "all").start();
    let label = format!("shoal follows {}", writer.ipns);
    let is_pinned = |root: &str| other.inside().pins.iter().eq([(&root.to_owned(), &label)]);
    until(&reader, "it is pinned", |_| is_pinned(&first)).await;

    writer.push("library/app", "2", &Image::small(32)).await;
    let moved = |status: &Status| is_published(status) && status.own.as_ref().unwrap().root != first;
    let second = until(&writer, "published again", moved).await.own.unwrap().root;
    shares(&double, &other);
    let reader = reader.kill_and_restart();
    until(&reader, "the pin moves on", |_| is_pinned(&second)).await;
    assert_eq!(other.inside().imported, 0, "nothing is sent that came from there");

    let reader = reader.kill_and_restart_with("REGISTRY_STORAGE_IPFS_FOLLOW", "tags");
    until(&reader, "the pin goes", |_| other.inside().pins.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pin_of_a_name_that_is_followed_no_longer_goes_at_the_next_start() {
    for other in [Double::start().await, Double::old().await] {
        let double = Double::start().await;
        double.has_key("self");
        let writer = attached(&multiaddr(&double)).start();
        writer.push("library/app", "1", &Image::small(33)).await;
        let root = until(&writer, "published", is_published).await.own.unwrap().root;
        shares(&double, &other);
        let users = leaf("of the user").cid().to_string();
        other.inside().pins.insert(users.clone(), String::new());
        let reader = attached(&multiaddr(&other)).read_only().reads(&writer.ipns);
        let reader = reader.env("REGISTRY_STORAGE_IPFS_FOLLOW", "all").start();
        until(&reader, "it is pinned", |_| other.inside().pins.contains_key(&root)).await;

        let reader = reader.kill_and_restart_with("REGISTRY_STORAGE_IPFS_READONLYIPNSKEYS", "[]");
        until(&reader, "the pin goes", |_| other.inside().pins.keys().eq([&users])).await;
        assert_eq!(reader.status().readonly.len(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubo_that_names_no_pins_and_counts_by_itself_is_published_through() {
    let double = Double::old().await;
    let name = double.has_key("self");
    let daemon = attached(&multiaddr(&double)).env("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "self").start();
    double.fails("dag/import", Fault::Error);
    daemon.push("library/app", "1", &Image::small(41)).await;
    let status = until(&daemon, "published", is_published).await;
    assert_eq!(status.node.kubo.unwrap().version.as_deref(), Some("0.22.0"));
    let first = status.own.unwrap().root;
    let daemon = daemon.kill_and_restart();
    daemon.push("library/app", "2", &Image::small(42)).await;
    let moved = |status: &Status| is_published(status) && status.own.as_ref().unwrap().root != first;
    let own = until(&daemon, "published again", moved).await.own.unwrap();
    until(&daemon, "the old pin goes", |_| double.inside().pins.keys().eq([&own.root])).await;
    let record = double.inside().records[&name.to_string()].clone();
    let record = IpnsRecord::decode(&name, &record).unwrap();
    assert_eq!(record.root().unwrap().to_string(), own.root);
    assert_eq!(Some(record.sequence()), own.sequence, "what is said is what is out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubo_that_counts_by_itself_never_goes_below_another_writer_unnoticed() {
    let double = Double::old().await;
    let name = double.has_key("self");
    let daemon = attached(&multiaddr(&double)).start();
    daemon.push("library/app", "1", &Image::small(51)).await;
    until(&daemon, "published", is_published).await;
    let theirs = {
        let mut inside = double.inside();
        let hour = Duration::from_secs(3600);
        let until = jiff::Timestamp::now() + hour;
        let record = IpnsRecord::sign(&inside.keys[0].1, leaf("theirs").cid(), 9, until, hour).unwrap();
        inside.records.insert(name.to_string(), record.bytes().clone());
        record
    };
    daemon.push("library/app", "2", &Image::small(52)).await;
    let is_blocked = |status: &Status| status.own.as_ref().unwrap().state == "blocked";
    until(&daemon, "it sees the other writer", is_blocked).await;
    let mut overwrite = Command::new(env!("CARGO_BIN_EXE_shoal"));
    overwrite.args(["name", "overwrite", "--config"]).arg(daemon.config()).env(ADDRESS, multiaddr(&double));
    let said = overwrite.output().unwrap();
    let why =
        "does not go over sequence 9, which is out: use a Kubo whose `ipfs name publish` has --sequence";
    assert!(!said.status.success() && String::from_utf8(said.stderr).unwrap().contains(why));
    let is_said = |status: &Status| {
        status.own.as_ref().unwrap().error.as_ref().is_some_and(|error| error.contains(why))
    };
    let status = until(&daemon, "it says why nothing is published", is_said).await;
    assert!(!is_published(&status));
    assert_eq!(double.inside().records[&name.to_string()], theirs.bytes());

    double.inside().is_old = false;
    until(&daemon, "a newer Kubo takes the sequence", is_published).await;
    let record = double.inside().records[&name.to_string()].clone();
    assert!(IpnsRecord::decode(&name, &record).unwrap().sequence() > 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_and_takes_pushes_while_its_kubo_is_away() {
    let double = Double::start().await;
    double.has_key("self");
    let address = double.address;
    let daemon = attached(&multiaddr(&double)).env("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "self").start();
    double.ends().await;
    let daemon = daemon.kill_and_restart();
    let image = Image::small(3);
    daemon.push("library/app", "1", &image).await;
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), image);
    let status = until(&daemon, "Kubo is missed", |status| {
        status.node.kubo.as_ref().is_some_and(|kubo| kubo.error.is_some())
    })
    .await;
    assert!(status.node.kubo.unwrap().error.unwrap().contains(&address.to_string()));
}

/// An image goes by Kubo to an embedded daemon, and another one the other way.
async fn carries_images(release: Release) {
    let Some((kubo, _other)) = Kubo::pair_with(release, &[]) else { return };
    let ours = attached(&kubo.api()).env("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "self").start();
    // With an empty layer, which Kubo never gives away.
    let image = Image::small(4);
    ours.push("library/app", "1", &image).await;
    let first = until(&ours, "published", is_published).await.own.unwrap().root;
    let pins = || kubo.run(&["pin", "ls", "--type=recursive", "-q"]);
    assert!(pins().contains(&first), "the root is pinned");
    let reader = daemon().read_only().dials(&ours.address).reads(&ours.ipns).start();
    reader.serves("library/app", "1", &image).await;
    // And the other way round: what Kubo does not have is found by it.
    let publisher = daemon().dials(&ours.address).start();
    publisher.push("library/other", "1", &Image::new(5, &[0, 1000])).await;
    let follower = attached(&kubo.api()).read_only().reads(&publisher.ipns).start();
    follower.serves("library/other", "1", &Image::new(5, &[0, 1000])).await;

    let ours = ours.kill_and_restart();
    ours.push("library/app", "2", &Image::small(14)).await;
    let moved = |status: &Status| is_published(status) && status.own.as_ref().unwrap().root != first;
    let own = until(&ours, "published again", moved).await.own.unwrap();
    until(&ours, "only the new root is pinned", |_| pins().contains(&own.root) && !pins().contains(&first))
        .await;
    assert_eq!(kubo.run(&["name", "resolve", "--nocache", &ours.ipns]), format!("/ipfs/{}", own.root));
    reader.serves("library/app", "2", &Image::small(14)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_kubo_carries_an_image_to_an_embedded_daemon() {
    carries_images(Release::Newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_kubo_carries_an_image_to_an_embedded_daemon() {
    carries_images(Release::Oldest).await;
}

/// What is followed whole is read from Kubo by a daemon that has nothing, after everybody else has gone and Kubo has
/// collected its garbage.
async fn outlives_garbage_collection(release: Release) {
    let Some((kubo, other)) = Kubo::pair_with(release, &[]) else { return };
    let there = other.run(&["id", "-f", "<addrs>"]);
    let publisher = daemon().dials(there.split_whitespace().next().unwrap()).start();
    let image = Image::new(43, &[0, 1000, 1_500_000]);
    publisher.push("library/app", "1", &image).await;
    let root = until(&publisher, "published", is_published).await.own.unwrap().root;
    kubo.run(&["swarm", "connect", &publisher.address]);
    let follower = attached(&kubo.api()).read_only().reads(&publisher.ipns);
    let follower = follower.env("REGISTRY_STORAGE_IPFS_FOLLOW", "all").start();
    let is_pinned = || kubo.run(&["pin", "ls", "--type=recursive", "-q"]).contains(&root);
    until(&follower, "it is pinned", |_| is_pinned()).await;
    let name = publisher.ipns.clone();
    publisher.kill();
    follower.kill();

    let unpinned = leaf("nobody needs it");
    kubo.put(&unpinned);
    assert!(kubo.has(&unpinned.cid().to_string()));
    kubo.run(&["repo", "gc"]);
    assert!(!kubo.has(&unpinned.cid().to_string()) && kubo.has(&root));
    let late = attached(&kubo.api()).read_only().reads(&name).start();
    late.serves("library/app", "1", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_followed_whole_outlives_a_garbage_collection_of_a_real_kubo() {
    outlives_garbage_collection(Release::Newest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_followed_whole_outlives_a_garbage_collection_of_the_oldest_kubo() {
    outlives_garbage_collection(Release::Oldest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_kubo_is_not_rotated_and_nothing_is_left_behind() {
    let double = Double::start().await;
    let name = double.has_key("team");
    let daemon = attached(&multiaddr(&double)).env("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "team").start();
    daemon.push("library/app", "1", &Image::small(44)).await;
    let before = until(&daemon, "published", is_published).await.own.unwrap();
    let shoal = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command.args(arguments).arg("--config").arg(daemon.config());
        command.env(ADDRESS, multiaddr(&double)).env("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "team");
        command.output().unwrap()
    };
    let files = || {
        let files = std::fs::read_dir(daemon.data().join("keystore")).unwrap();
        files.map(|file| file.unwrap().file_name()).collect::<BTreeSet<_>>()
    };
    let keys = (files(), shoal(&["key", "list"]).stdout);
    let calls = double.inside().calls.len();
    for arguments in [&["key", "rotate"][..], &["key", "rotate", "team"]] {
        let refused = shoal(arguments);
        assert_eq!(refused.status.code(), Some(1));
        assert!(refused.stdout.is_empty(), "no name is printed");
        let said = String::from_utf8(refused.stderr).unwrap();
        let why = format!("the key of {name} is not in the keystore of this daemon: rotate it where it is");
        assert!(said.lines().last().is_some_and(|line| line.contains(&why)), "{said}");
    }
    assert_eq!((files(), shoal(&["key", "list"]).stdout), keys);
    {
        let inside = double.inside();
        assert_eq!(inside.keys.len(), 1);
        let changes = ["key/", "name/publish", "routing/put"];
        let is_change = |call: &&String| {
            changes.iter().any(|begin| call.starts_with(begin)) && !call.starts_with("key/list")
        };
        assert_eq!(inside.calls[calls..].iter().find(is_change), None);
    }
    let own = daemon.status().own.unwrap();
    assert_eq!((own.name, own.root, own.sequence), (before.name, before.root.clone(), before.sequence));
    daemon.push("library/app", "2", &Image::small(45)).await;
    let moved = |status: &Status| is_published(status) && status.own.as_ref().unwrap().root != before.root;
    until(&daemon, "it goes on under its name", moved).await;
}

/// Writes an image as the predecessor's storage has it, with an upload in progress beside it.
fn write_tree(folder: &Path, image: &Image) {
    let put = |path: String, content: &[u8]| {
        let path = folder.join("docker/registry/v2").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    };
    let manifest = Digest::sha256(&image.manifest);
    for content in image.blobs.iter().chain([&image.manifest]) {
        let digest = Digest::sha256(content).to_string();
        let hex = digest.trim_start_matches("sha256:");
        put(format!("blobs/sha256/{}/{hex}/data", &hex[..2]), content);
        let kind = if Digest::sha256(content) == manifest { "_manifests/revisions" } else { "_layers" };
        put(format!("repositories/library/old/{kind}/sha256/{hex}/link"), digest.as_bytes());
    }
    let (tag, link) = ("repositories/library/old/_manifests/tags/1", manifest.to_string());
    put(format!("{tag}/current/link"), link.as_bytes());
    put(format!("{tag}/index/sha256/{}/link", link.trim_start_matches("sha256:")), link.as_bytes());
    put("repositories/library/old/_uploads/5f0c/startedat".to_owned(), b"2023-01-01T00:00:00Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_of_the_predecessor_is_served_and_goes_on_under_its_name() {
    let Some((kubo, _other)) = Kubo::pair() else { return };
    let (folder, old) = (TempDir::new().unwrap(), Image::small(6));
    write_tree(folder.path(), &old);
    let shape = ["add", "-Qr", "--pin=false", "--trickle", "--cid-version=0", "--raw-leaves=false"];
    let root = kubo.run(&[&shape[..], &["--chunker=size-262144", folder.path().to_str().unwrap()]].concat());
    kubo.run(&["name", "publish", "--allow-offline", &format!("/ipfs/{root}")]);

    let ours = attached(&kubo.api()).env("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "self").start();
    assert_eq!(ours.pull("library/old", "1").await.unwrap(), old);
    let new = Image::small(7);
    ours.push("library/new", "1", &new).await;
    let root = until(&ours, "published", is_published).await.own.unwrap().root;
    assert!(kubo.run(&["pin", "ls", "--type=recursive", "-q"]).contains(&root));
    let tags = |name: &str| {
        format!("/ipfs/{root}/docker/registry/v2/repositories/library/{name}/_manifests/tags/1/current/link")
    };
    for (name, image) in [("old", &old), ("new", &new)] {
        assert_eq!(kubo.run(&["cat", &tags(name)]), Digest::sha256(&image.manifest).to_string());
    }
}

/// Starts a daemon upon a config file of the predecessor; only places on this machine are changed, by the environment.
fn start_unchanged(file: &str, address: &str, double: &Double) -> Daemon {
    let fixture = format!("{}/tests/fixtures/predecessor/{file}", env!("CARGO_MANIFEST_DIR"));
    let places = daemon()
        .env("REGISTRY_HTTP_ADDR", "127.0.0.1:0")
        .env("REGISTRY_HTTP_DEBUG_ADDR", "127.0.0.1:0")
        .env(address, &multiaddr(double))
        .env(AUTH, "bearer:t0ken");
    places.start_with(&std::fs::read_to_string(fixture).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_predecessors_config_files_start_us_unchanged() {
    let double = Double::start().await;
    let own = double.has_key("self");
    let team = double.has_key("team");
    let other: IpnsName = "k51qzi5uqu5dlj2qkibv67ep4sdsa73s9asv2g3um5j441i80ks15e1afi7waz".parse().unwrap();
    let names = [team.to_string(), other.to_string()];
    let followed = |daemon: &Daemon| -> Vec<String> {
        daemon.status().readonly.into_iter().map(|followed| followed.name).collect()
    };

    let writer = start_unchanged("config.yaml", ADDRESS, &double);
    assert_eq!(writer.ipns, own.to_string());
    assert_eq!(followed(&writer), names, "a comma string");
    let reader = start_unchanged("reader.yaml", ADDRESS, &double);
    assert_eq!(reader.ipns, "", "without writeipnskey it only reads");
    assert_eq!(followed(&reader), names, "a list");
    let of_middleware = "REGISTRY_MIDDLEWARE_REPOSITORY_0_OPTIONS_IPFSAPIADDRESS";
    let layouts = start_unchanged("layouts.yaml", of_middleware, &double);
    assert_eq!((layouts.ipns.as_str(), followed(&layouts)), ("", Vec::new()));
}

#[test]
fn the_predecessors_unit_file_calls_us_as_we_are_called() {
    let unit = include_str!("../fixtures/predecessor/oci-registry-p2p.service");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let arguments: Vec<&str> = line.split(' ').skip(1).collect();
    assert_eq!(arguments, ["serve", "/etc/oci-registry-p2p/config.yaml"]);
    // Without the file it says so: the command itself is understood.
    let output =
        Command::new(env!("CARGO_BIN_EXE_shoal")).args(["serve", "/does/not/exist.yaml"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot read config file /does/not/exist.yaml"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn config_check_asks_kubo_for_its_version() {
    let double = Double::start().await;
    let check = |auth: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command.args(["config", "check"]).env(ADDRESS, multiaddr(&double));
        let output = command.env(AUTH, auth).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (is_ok, said, _) = check("bearer:t0ken");
    assert!(is_ok && said.contains("ok: Kubo 0.43.0 answers at http://127.0.0.1:"), "{said}");
    let (is_ok, _, said) = check("bearer:hunter2");
    assert!(!is_ok && said.contains("does not let us in") && !said.contains("hunter2"), "{said}");
}
