//! The command line and the config as users meet them: exit codes, the one line that says what is wrong, signals, logs.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, Image, PATIENCE, daemon};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

/// Nobody publishes under this name.
const NOBODY: &str = "k51qzi5uqu5dhw0vim1qjkzo4ddl00af1k7ellfca8qdnhoqfri0c5q69rr01e";

/// What a command that has ended left.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    /// Standard error, which must be one line.
    fn line(&self) -> &str {
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        self.err.trim_end()
    }
}

fn shoal<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Ended {
    end(shoal(arguments).spawn().unwrap())
}

/// Waits for the end; what has not ended in time is killed, and the test fails.
fn end(mut child: Child) -> Ended {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it runs on: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// Asks the daemon that runs with the same config.
fn ask(daemon: &Daemon, arguments: &[&str]) -> Ended {
    let config = daemon.config();
    run(arguments
        .iter()
        .map(|word| (*word).to_owned())
        .chain(["--config".to_owned(), config.display().to_string()]))
}

/// A folder with a config that is good but for what a test changes.
struct Room {
    folder: TempDir,
    config: Value,
}

impl Room {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let config = json!({
            "version": 0.1,
            "log": {"level": "warn"},
            "http": {"addr": "127.0.0.1:0", "debug": {"addr": ""}},
            "storage": {"ipfs": {"rootdirectory": folder.path().join("data")}},
            "p2p": {"listen": ["/ip4/127.0.0.1/tcp/0"], "bootstrap": [], "mdns": false},
        });
        Self { folder, config }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Writes the config (JSON is YAML) and gives its path.
    fn file(&self) -> PathBuf {
        let path = self.folder.path().join("config.yaml");
        fs::write(&path, self.config.to_string()).unwrap();
        path
    }

    fn serve(&self) -> Ended {
        run([Path::new("serve"), &self.file()])
    }
}

/// Starts the daemon, is refused, and holds the one line to what it must name.
fn refused(room: &Room, names: &[&str]) {
    let ended = room.serve();
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_eq!(ended.out, "");
    for name in names {
        assert!(ended.line().contains(name), "{name:?} is not in: {}", ended.line());
    }
    let mut parts: Vec<_> = ended.line().split(": ").collect();
    parts.sort_unstable();
    assert!(parts.windows(2).all(|pair| pair[0] != pair[1]), "it says so twice: {}", ended.line());
}

#[test]
fn a_config_that_is_wrong_is_refused_with_one_line() {
    let cases: [(&str, Value, &[&str]); 14] = [
        ("/version", json!("9.9"), &["version", "9.9", "0.1 is expected"]),
        ("/p2p/lisen", json!([]), &["p2p.lisen is unknown", "did you mean p2p.listen?"]),
        ("/storage/ipfs/rootdir", json!("x"), &["storage.ipfs.rootdir is unknown"]),
        ("/p2p/mdns", json!("perhaps"), &["p2p.mdns", "perhaps", "boolean"]),
        ("/http/addr", json!(["x"]), &["http.addr", "string"]),
        ("/http/addr", json!("localhost"), &["http.addr", "localhost", "HOST:PORT"]),
        ("/http/debug/addr", json!("127.0.0.1:99999"), &["http.debug.addr", "99999", "HOST:PORT"]),
        ("/log/level", json!("loud"), &["log.level", "loud", "warn"]),
        ("/log/formatter", json!("xml"), &["log.formatter", "xml", "json"]),
        (
            "/p2p/listen",
            json!(["/ip5/127.0.0.1/tcp/0"]),
            &["p2p.listen[0]", "/ip5/127.0.0.1/tcp/0", "multiaddr"],
        ),
        (
            "/p2p/bootstrap",
            json!(["/ip4/127.0.0.1/tcp/1"]),
            &["p2p.bootstrap[0]", "/ip4/127.0.0.1/tcp/1", "/p2p/<peer id>"],
        ),
        ("/storage/ipfs/recordvalidity", json!("5s"), &["storage.ipfs.recordvalidity", "5s", "8760h"]),
        (
            "/storage/ipfs/writeipnskey",
            json!("team"),
            &["storage.ipfs.writeipnskey", "team", "shoal key gen team"],
        ),
        (
            "/storage/ipfs/readonlyipnskeys",
            json!([NOBODY, "no name"]),
            &["readonlyipnskeys[1]", "no name", "IPNS name"],
        ),
    ];
    for (pointer, value, names) in cases {
        let mut room = Room::new();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        room.config.pointer_mut(parent).unwrap()[key] = value;
        refused(&room, names);
    }
}

#[test]
fn a_config_that_cannot_be_read_is_refused_with_its_path() {
    let room = Room::new();
    let missing = room.folder.path().join("missing.yaml");
    let ended = run([Path::new("serve"), &missing]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.line().contains(&missing.display().to_string()), "{}", ended.line());

    let broken = room.folder.path().join("broken.yaml");
    for text in ["a: [", "http: {addr: a, addr: b}", "\u{0}", "- a", "5"] {
        fs::write(&broken, text).unwrap();
        let ended = run([Path::new("serve"), &broken]);
        assert_eq!(ended.code, Some(2), "{text:?}: {ended:?}");
        assert!(ended.line().len() < 500, "{}", ended.line());
    }
    fs::write(&broken, b"log: {level: \xff}").unwrap();
    assert_eq!(run([Path::new("serve"), &broken]).code, Some(2));
    let folder = run([Path::new("serve"), room.folder.path()]);
    assert_eq!(folder.code, Some(2));
    assert!(folder.line().contains(&room.folder.path().display().to_string()));
}

#[test]
fn a_port_that_is_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut room = Room::new();
    room.config["http"]["addr"] = json!(address);
    refused(&room, &["http.addr", &address, "in use"]);

    let mut room = Room::new();
    room.config["http"]["debug"]["addr"] = json!(address);
    refused(&room, &["http.debug.addr", &address, "in use"]);

    let mut room = Room::new();
    let multiaddr = format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().unwrap().port());
    room.config["p2p"]["listen"] = json!([multiaddr]);
    refused(&room, &["p2p", &multiaddr, "in use"]);

    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let multiaddr = format!("/ip4/127.0.0.1/udp/{}/quic-v1", taken.local_addr().unwrap().port());
    room.config["p2p"]["listen"] = json!([multiaddr]);
    refused(&room, &["p2p", &multiaddr, "in use"]);
}

#[test]
fn two_daemons_do_not_share_a_port_for_peers() {
    let other = daemon().start();
    let port = other.address.split('/').nth(4).unwrap();
    let mut room = Room::new();
    let multiaddr = format!("/ip4/127.0.0.1/tcp/{port}");
    room.config["p2p"]["listen"] = json!([multiaddr]);
    refused(&room, &["p2p", &multiaddr, "in use"]);
}

#[test]
fn a_root_directory_that_cannot_be_used_is_named() {
    let mut room = Room::new();
    let file = room.folder.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("data");
    room.config["storage"]["ipfs"]["rootdirectory"] = json!(below);
    refused(&room, &["storage.ipfs.rootdirectory", &below.display().to_string()]);
    room.config["storage"]["ipfs"]["rootdirectory"] = json!(file);
    refused(&room, &["storage.ipfs.rootdirectory", &file.display().to_string()]);

    let other = daemon().start();
    let data = other.config().with_file_name("data");
    room.config["storage"]["ipfs"]["rootdirectory"] = json!(data);
    refused(&room, &["storage.ipfs.rootdirectory", &data.display().to_string(), &other.pid().to_string()]);
}

#[test]
fn a_key_file_that_is_none_is_named() {
    let room = Room::new();
    let keystore = room.data().join("keystore");
    fs::create_dir_all(&keystore).unwrap();
    fs::write(keystore.join("self"), "junk").unwrap();
    // What is open to others is a warning of its own.
    fs::set_permissions(&keystore, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(keystore.join("self"), fs::Permissions::from_mode(0o600)).unwrap();
    refused(&room, &[&keystore.join("self").display().to_string(), "no key file", "shoal key import"]);

    let room = Room::new();
    fs::create_dir_all(room.data().join("keystore/self")).unwrap();
    fs::set_permissions(room.data().join("keystore"), fs::Permissions::from_mode(0o700)).unwrap();
    refused(&room, &[&room.data().join("keystore/self").display().to_string()]);
}

#[test]
fn a_config_is_checked_without_a_daemon() {
    let mut room = Room::new();
    let good = run([Path::new("config"), Path::new("check"), &room.file()]);
    assert_eq!((good.code, good.err.as_str()), (Some(0), ""));
    assert!(good.out.contains(&room.data().display().to_string()), "{}", good.out);
    assert!(!room.data().exists());

    room.config["p2p"]["lisen"] = json!([]);
    let bad = run([Path::new("config"), Path::new("check"), &room.file()]);
    assert_eq!((bad.code, bad.out.as_str()), (Some(2), ""));
    assert!(bad.line().contains("did you mean p2p.listen?"), "{}", bad.line());
}

#[test]
fn the_help_of_every_command_shows_an_example() {
    let mut waiting = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(words) = waiting.pop() {
        let help = run(words.iter().map(String::as_str).chain(["--help"]));
        assert_eq!(help.code, Some(0), "{words:?}");
        let example = ["Example: ", "Examples: ", "Start with: "].iter().any(|word| help.out.contains(word));
        assert!(example, "shoal {} --help shows no example:\n{}", words.join(" "), help.out);
        seen += 1;
        let commands = help.out.split("\nCommands:\n").nth(1).unwrap_or_default().lines();
        for line in commands.take_while(|line| line.starts_with("  ")) {
            let command = line.split_whitespace().next().unwrap_or_default();
            if command != "help" {
                waiting.push(words.iter().cloned().chain([command.to_owned()]).collect());
            }
        }
    }
    assert!(seen > 10, "only {seen} commands were found");

    let plain = run::<&str>([]);
    assert!(plain.err.contains("Usage: shoal"), "{plain:?}");
    let unknown = run(["swim"]);
    assert_eq!(unknown.code, Some(2));
    assert!(run(["--version"]).out.starts_with("shoal "));
}

#[test]
fn without_a_daemon_a_command_says_how_to_start_one() {
    let room = Room::new();
    let config = room.file().display().to_string();
    for command in
        [&["status"][..], &["status", "--json"], &["id"], &["name", "publish"], &["name", "resolve", NOBODY]]
    {
        let ended = run(command.iter().copied().chain(["--config", &config]));
        assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{command:?}");
        let socket = room.data().join("api.sock").display().to_string();
        assert!(ended.line().contains(&socket) && ended.line().contains("shoal serve"), "{}", ended.line());
    }
}

#[tokio::test]
async fn the_daemon_says_who_it_is_and_how_it_is() {
    let daemon = daemon().start();
    daemon.push("library/app", "1", &Image::new(1, &[100])).await;
    let peer_id = daemon.address.rsplit_once('/').unwrap().1;
    let id = ask(&daemon, &["id"]);
    assert_eq!((id.code, id.err.as_str()), (Some(0), ""));
    for part in [peer_id, &daemon.ipns, &daemon.address] {
        assert!(id.out.contains(part), "{part} is not in {}", id.out);
    }
    let id: Value = serde_json::from_str(&ask(&daemon, &["id", "--json"]).out).unwrap();
    assert_eq!((&id["peer_id"], &id["ipns"]), (&json!(peer_id), &json!(daemon.ipns)));

    let status: Value = serde_json::from_str(&ask(&daemon, &["status", "--json"]).out).unwrap();
    assert_eq!(status["own"]["name"], json!(daemon.ipns));
    assert!(status["tasks"].as_u64().unwrap() > 0 && status["store"]["blocks"].as_u64().unwrap() > 0);
    let readable = ask(&daemon, &["status"]).out;
    for part in [peer_id, &daemon.ipns, status["own"]["root"].as_str().unwrap(), "uploads"] {
        assert!(readable.contains(part), "{part} is not in {readable}");
    }
}

#[tokio::test]
async fn names_are_resolved_and_published() {
    let reader_of_all = daemon().start();
    let daemon = daemon().knows(&reader_of_all).start();
    daemon.push("library/app", "1", &Image::new(1, &[100])).await;
    let published = ask(&daemon, &["name", "publish"]);
    assert_eq!(published.code, Some(0), "{published:?}");
    let status: Value = serde_json::from_str(&ask(&daemon, &["status", "--json"]).out).unwrap();
    let root = status["own"]["root"].as_str().unwrap();
    assert!(published.out.contains(root) && published.out.contains(&daemon.ipns), "{}", published.out);
    assert_eq!(status["own"]["state"], "published");

    let resolved = ask(&reader_of_all, &["name", "resolve", &daemon.ipns]);
    assert_eq!((resolved.code, resolved.out.trim_end()), (Some(0), format!("/ipfs/{root}").as_str()));

    let nobody = ask(&daemon, &["name", "resolve", NOBODY]);
    assert_eq!((nobody.code, nobody.out.as_str()), (Some(1), ""));
    assert!(nobody.line().contains(NOBODY), "{}", nobody.line());
    let no_name = ask(&daemon, &["name", "resolve", "library/app"]);
    assert_eq!((no_name.code, no_name.out.as_str()), (Some(1), ""));
    assert!(no_name.line().contains("library/app"), "{}", no_name.line());
}

#[test]
fn what_a_read_only_daemon_has_not_it_does_not_publish() {
    let daemon = daemon().read_only().start();
    let refused = ask(&daemon, &["name", "publish"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.line().contains("writeipnskey"), "{}", refused.line());
    assert!(ask(&daemon, &["id"]).out.contains("read-only"));
}

#[test]
fn keys_are_made_listed_and_carried_over_beside_a_running_daemon() {
    let (one, other) = (daemon().start(), daemon().start());
    let listed = ask(&one, &["key", "list"]);
    assert_eq!((listed.code, listed.out), (Some(0), format!("self\t{}\n", one.ipns)));

    for kind in ["ed25519", "secp256k1", "ecdsa"] {
        let made = ask(&one, &["key", "gen", kind, "--type", kind]);
        assert_eq!((made.code, made.err.as_str()), (Some(0), ""));
        let exported = shoal(["key", "export", kind, "--config"]).arg(one.config()).output().unwrap();
        assert!(exported.status.success());
        let file = one.config().with_file_name(format!("{kind}.key"));
        fs::write(&file, exported.stdout).unwrap();
        let imported = ask(&other, &["key", "import", "team", &file.display().to_string()]);
        assert_eq!((imported.code, &imported.out), (Some(0), &made.out), "{kind}: {imported:?}");
        fs::remove_file(other.config().with_file_name("data").join("keystore/team")).unwrap();
    }
    assert_eq!(ask(&one, &["key", "list"]).out.lines().count(), 4);

    for (arguments, says) in [
        (&["key", "gen", "self"][..], "there is a key \"self\" already"),
        (&["key", "gen", "../up"], "no name for a key"),
        (&["key", "export", "nobody"], "there is no key \"nobody\""),
        (&["key", "import", "x", "/does/not/exist"], "/does/not/exist"),
        (&["key", "import", "x", "Cargo.toml"], "cannot import key \"x\""),
    ] {
        let refused = ask(&one, arguments);
        assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(refused.line().contains(says), "{}", refused.line());
    }
}

/// Starts a daemon that the test will end itself, and waits for its ready line.
fn start(command: &mut Command) -> (Child, String) {
    use std::io::{BufRead, BufReader};
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut out = BufReader::with_capacity(1, child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    child.stdout = Some(out.into_inner());
    (child, line)
}

fn field<'a>(ready: &'a str, name: &str) -> &'a str {
    let fields = ready.trim_end().split(' ');
    fields.filter_map(|field| field.split_once('=')).find(|(key, _)| *key == name).unwrap().1
}

fn signal(child: &Child) {
    kill_process(Pid::from_child(child), Signal::TERM).unwrap();
}

#[tokio::test]
async fn a_daemon_that_is_told_to_end_does_so_in_order() {
    let mut room = Room::new();
    room.config["log"] = json!({"level": "debug", "formatter": "json"});
    let (child, ready) = start(shoal([Path::new("serve"), &room.file()]).env("RUST_LOG", "error"));
    let registry = field(&ready, "registry");
    // One client keeps its connection, another is in the middle of an upload.
    let client = reqwest::Client::new();
    assert_eq!(client.get(format!("{registry}/v2/")).send().await.unwrap().status(), 200);
    let mut stream = tokio::net::TcpStream::connect(registry.strip_prefix("http://").unwrap()).await.unwrap();
    let head = b"POST /v2/app/blobs/uploads/?digest=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n1";
    stream.write_all(head).await.unwrap();

    let socket = room.data().join("api.sock");
    assert!(socket.exists());
    signal(&child);
    let ended = end(child);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.out, "", "there is more than the ready line on standard output");
    assert!(!socket.exists());
    assert!(ended.err.lines().count() > 1, "{}", ended.err);
    for line in ended.err.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(entry["level"].is_string() && entry["timestamp"].is_string(), "{line}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let room = Room::new();
    let (child, ready) = start(&mut shoal([Path::new("serve"), &room.file()]));
    use std::io::Write;
    let mut stream =
        std::net::TcpStream::connect(field(&ready, "registry").strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nhost: x\r\n").unwrap();
    signal(&child);
    signal(&child);
    assert_eq!(end(child).code, Some(0));
}

#[test]
fn the_environment_is_laid_over_the_file_and_can_stand_alone() {
    let mut room = Room::new();
    room.config["http"]["addr"] = json!("192.0.2.1:1");
    room.config["p2p"]["listen"] = json!(["/ip4/192.0.2.1/tcp/1"]);
    let data = room.folder.path().join("elsewhere");
    let environment = [
        ("REGISTRY_HTTP_ADDR", "127.0.0.1:0"),
        ("REGISTRY_HTTP_DEBUG_ADDR", "\"\""),
        ("REGISTRY_STORAGE_IPFS_ROOTDIRECTORY", data.to_str().unwrap()),
        ("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "\"\""),
        ("REGISTRY_P2P_LISTEN", "[/ip4/127.0.0.1/tcp/0]"),
        ("REGISTRY_P2P_BOOTSTRAP", "[]"),
        ("REGISTRY_LOG_LEVEL", "warn"),
    ];
    for mut command in [shoal([Path::new("serve"), &room.file()]), shoal(["serve"])] {
        let (child, ready) = start(command.envs(environment));
        assert!(field(&ready, "registry").starts_with("http://127.0.0.1:"), "{ready}");
        assert!(field(&ready, "p2p").starts_with("/ip4/127.0.0.1/tcp/"), "{ready}");
        assert_eq!(field(&ready, "ipns"), "");
        assert!(data.join("api.sock").exists());
        signal(&child);
        assert_eq!(end(child).code, Some(0));
        assert!(!room.data().exists());
    }
    let ended = end(shoal(["serve"]).envs(environment).env("REGISTRY_HTTP_ADDR", "nowhere").spawn().unwrap());
    assert_eq!(ended.code, Some(2));
    assert!(ended.line().contains("http.addr") && ended.line().contains("nowhere"), "{}", ended.line());
}
