//! Whole daemons for tests: the real binary, a folder of its own, loopback, free ports, and nobody else to talk to than
//! who the test names. A daemon is killed, and its folder removed, when it goes out of scope.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod authority;
pub mod files;
pub mod name_server;
pub mod upstream;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, Response, StatusCode};
use shoal::keystore::Keystore;
use shoal::oci::Digest;
use tempfile::TempDir;
use tokio::net::TcpSocket;

/// How long a test waits for what must come: so long that nothing but a hang takes it, on a slow machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The same for the end of a daemon, which promises it within 10 s.
const END_PATIENCE: Duration = Duration::from_secs(30);

/// How a daemon is to be started.
#[derive(Clone, Default)]
pub struct Setup {
    bootstrap: Vec<String>,
    readonly: Vec<String>,
    read_only_daemon: bool,
    environment: Vec<(String, String)>,
    http: Vec<String>,
    log: Vec<String>,
    auth: String,
    mirror: String,
    peers: Vec<String>,
    key: Option<(String, Vec<u8>)>,
}

/// A running daemon.
pub struct Daemon {
    child: Child,
    folder: TempDir,
    environment: Vec<(String, String)>,
    pub client: Client,
    /// `http://127.0.0.1:PORT`, `https://…` with TLS
    pub registry: String,
    /// Its TCP address, with the peer id.
    pub address: String,
    /// Its name, empty if it is read-only.
    pub ipns: String,
    /// From the start to the ready line.
    pub ready_after: Duration,
}

/// A daemon with a key of its own that knows nobody.
pub fn daemon() -> Setup {
    Setup::default()
}

impl Setup {
    /// Dials `other` at its start.
    pub fn knows(mut self, other: &Daemon) -> Self {
        self.bootstrap.push(other.address.clone());
        self
    }

    /// Dials whoever is at `address`, which ends with a peer id.
    pub fn dials(mut self, address: &str) -> Self {
        self.bootstrap.push(address.to_owned());
        self
    }

    /// Has `name` among its readonly roots.
    pub fn reads(mut self, name: &str) -> Self {
        self.readonly.push(name.to_owned());
        self
    }

    /// Publishes under a key of this name, as it was exported elsewhere.
    pub fn writes_with(mut self, name: &str, key: &[u8]) -> Self {
        self.key = Some((name.to_owned(), key.to_vec()));
        self
    }

    /// Takes no pushes.
    pub fn read_only(mut self) -> Self {
        self.read_only_daemon = true;
        self
    }

    /// Runs with an environment variable, such as `REGISTRY_STORAGE_DELETE_ENABLED`.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has an entry in the section `http`, such as `prefix: /a/`; a later one for the same key goes before.
    pub fn http(mut self, entry: &str) -> Self {
        self.http.push(entry.to_owned());
        self
    }

    /// The same for the section `log`.
    pub fn log(mut self, entry: &str) -> Self {
        self.log.push(entry.to_owned());
        self
    }

    /// The section `auth` of its config, as YAML.
    pub fn auth(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.auth);
        self
    }

    /// The section `mirror` of its config, as YAML.
    pub fn mirror(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.mirror);
        self
    }

    /// Trusts whoever is at these addresses with what it pulls through.
    pub fn peers<'a>(mut self, addresses: impl IntoIterator<Item = &'a str>) -> Self {
        self.peers.extend(addresses.into_iter().map(str::to_owned));
        self
    }

    pub fn start(self) -> Daemon {
        let folder = TempDir::new().unwrap();
        let write_key = match &self.key {
            _ if self.read_only_daemon => "",
            Some((name, key)) => {
                Keystore::open(&folder.path().join("data")).unwrap().import(name, key).unwrap();
                name
            }
            None => "self",
        };
        let config = format!(
            "version: 0.1\nlog: {{{}}}\nauth: {}\nhttp: {{{}}}\n\
             storage: {{ipfs: {{rootdirectory: {}, writeipnskey: \"{}\", readonlyipnskeys: [{}]}}}}\n\
             p2p: {{listen: [/ip4/127.0.0.1/tcp/0], bootstrap: [{}], peers: [{}], mdns: false, upnp: false}}\n\
             mirror: {}\n",
            section(&["level: debug"], &self.log),
            self.auth,
            section(&["addr: 127.0.0.1:0", "debug: {addr: \"\"}"], &self.http),
            folder.path().join("data").display(),
            write_key,
            self.readonly.join(", "),
            self.bootstrap.join(", "),
            self.peers.join(", "),
            if self.mirror.is_empty() { "{}" } else { &self.mirror },
        );
        std::fs::write(folder.path().join("config.yaml"), config).unwrap();
        Daemon::launch(folder, self.environment)
    }

    /// Starts upon this config file and the environment alone, in a folder of its own.
    pub fn start_with(self, config: &str) -> Daemon {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("config.yaml"), config).unwrap();
        let data = folder.path().join("data").display().to_string();
        let place = ("REGISTRY_STORAGE_IPFS_ROOTDIRECTORY".to_owned(), data);
        Daemon::launch(folder, self.environment.into_iter().chain([place]).collect())
    }
}

/// Entries of a section of YAML: `ours` in the place of the defaults with the same key.
fn section(defaults: &[&str], ours: &[String]) -> String {
    let key = |entry: &str| entry.split(':').next().unwrap().to_owned();
    let kept = defaults.iter().filter(|entry| ours.iter().all(|other| key(other) != key(entry)));
    kept.map(|entry| (*entry).to_owned()).chain(ours.iter().cloned()).collect::<Vec<_>>().join(", ")
}

impl Daemon {
    fn launch(folder: TempDir, environment: Vec<(String, String)>) -> Self {
        let begun = Instant::now();
        let (mut child, ready) = spawn(folder.path(), &environment);
        let Some(ready) = ready else {
            let log = std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            panic!("the daemon did not start: {:?}\n{log}", child.wait());
        };
        let field = |name: &str| {
            let found = ready.split(' ').find_map(|field| field.strip_prefix(&format!("{name}=")));
            found.unwrap_or_else(|| panic!("no {name} in {ready}")).to_owned()
        };
        Self {
            child,
            client: Client::builder().timeout(2 * PATIENCE).build().unwrap(),
            registry: field("registry"),
            address: field("p2p").split(',').next().unwrap().to_owned(),
            ipns: field("ipns"),
            ready_after: begun.elapsed(),
            folder,
            environment,
        }
    }

    /// Kills it with SIGKILL, and starts it again upon the same folder.
    pub fn kill_and_restart(self) -> Self {
        let environment = self.environment.clone();
        Self::launch(self.kill(), environment)
    }

    /// The same, with one more environment variable.
    pub fn kill_and_restart_with(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self.kill_and_restart()
    }

    /// Kills it with SIGKILL; the folder stays as long as what is returned.
    pub fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.folder, TempDir::new().unwrap())
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits until the process has ended; whether it did so in order.
    pub async fn ended(&mut self) -> bool {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            assert!(begun.elapsed() < END_PATIENCE, "the daemon does not end\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the log has `text`, and returns the line.
    pub async fn logs(&self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            if let Some(line) = self.log().lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(begun.elapsed() < PATIENCE, "{text:?} is not logged\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the log, which goes on after a restart, has so many lines with `text`, and returns them.
    pub async fn logs_times(&self, text: &str, times: usize) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let log = self.log();
            let lines: Vec<&str> = log.lines().filter(|line| line.contains(text)).collect();
            if lines.len() >= times {
                return lines.into_iter().map(str::to_owned).collect();
            }
            assert!(begun.elapsed() < PATIENCE, "{text:?} is not logged {times} times\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `HOST:PORT` of the registry.
    pub fn socket(&self) -> &str {
        self.registry.split_once("://").unwrap().1
    }

    /// The root directory.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The memory that it has in use.
    pub fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// What `shoal status --json` says.
    pub fn status(&self) -> shoal::api::Status {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = command.args(["status", "--json", "--config"]).arg(self.config()).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}/v2/{path}", self.registry)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    /// Pushes a blob by POST and PUT.
    pub async fn push_blob(&self, repo: &str, content: &[u8]) -> Digest {
        let digest = Digest::sha256(content);
        let opened = self.client.post(self.url(&format!("{repo}/blobs/uploads/"))).send().await.unwrap();
        assert_eq!(opened.status(), StatusCode::ACCEPTED);
        let location = self.location(&opened);
        let joint = if location.contains('?') { '&' } else { '?' };
        let closed = self
            .client
            .put(format!("{location}{joint}digest={digest}"))
            .body(content.to_vec())
            .send()
            .await
            .unwrap();
        assert_eq!(closed.status(), StatusCode::CREATED, "{}", closed.text().await.unwrap());
        digest
    }

    /// Where an upload goes on, made absolute.
    pub fn location(&self, response: &Response) -> String {
        let location = response.headers()["location"].to_str().unwrap();
        if location.starts_with('/') { format!("{}{location}", self.registry) } else { location.to_owned() }
    }

    pub async fn put_manifest(&self, repo: &str, reference: &str, manifest: &[u8]) -> Response {
        self.client
            .put(self.url(&format!("{repo}/manifests/{reference}")))
            .header("content-type", IMAGE_MANIFEST)
            .body(manifest.to_vec())
            .send()
            .await
            .unwrap()
    }

    pub async fn push(&self, repo: &str, tag: &str, image: &Image) {
        for blob in &image.blobs {
            self.push_blob(repo, blob).await;
        }
        let answer = self.put_manifest(repo, tag, &image.manifest).await;
        assert_eq!(answer.status(), StatusCode::CREATED, "{}", answer.text().await.unwrap());
    }

    /// Pulls as a client does: the manifest by tag, its blobs by digest, everything compared.
    pub async fn pull(&self, repo: &str, tag: &str) -> Result<Image, String> {
        let answer = self.get(&format!("{repo}/manifests/{tag}")).await;
        if answer.status() != StatusCode::OK {
            return Err(format!("{}: {}", answer.status(), answer.text().await.unwrap()));
        }
        let digest: Digest = answer.headers()["docker-content-digest"].to_str().unwrap().parse().unwrap();
        let manifest = answer.bytes().await.map_err(|error| error.to_string())?.to_vec();
        assert_eq!(Digest::sha256(&manifest), digest);
        let parsed: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let mut blobs = Vec::new();
        for descriptor in std::iter::once(&parsed["config"]).chain(parsed["layers"].as_array().unwrap()) {
            let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
            let answer = self.get(&format!("{repo}/blobs/{digest}")).await;
            if answer.status() != StatusCode::OK {
                return Err(format!("blob {digest}: {}", answer.status()));
            }
            let blob = answer.bytes().await.map_err(|error| error.to_string())?.to_vec();
            assert_eq!(Digest::sha256(&blob), digest);
            blobs.push(blob);
        }
        Ok(Image { blobs, manifest })
    }

    /// Waits until `repo:tag` is `image` here.
    pub async fn serves(&self, repo: &str, tag: &str, image: &Image) {
        let begun = Instant::now();
        loop {
            let found = self.pull(repo, tag).await;
            if found.as_ref() == Ok(image) {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "{repo}:{tag} is not served: {:?}\n{}",
                found.err(),
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A socket at an address, which others of ours may have too: who only holds it keeps the port from everybody else, and takes
/// no connections.
pub fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

/// Starts the binary and waits for its ready line; `None` if it ended before.
fn spawn(folder: &Path, environment: &[(String, String)]) -> (Child, Option<String>) {
    use std::io::{BufRead, BufReader};
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_shoal"))
        .arg("serve")
        .arg(folder.join("config.yaml"))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).find(|line| line.starts_with("ready "));
    (child, ready)
}

pub const IMAGE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image: its config and layers, and the manifest that names them.
#[derive(Clone, PartialEq, Eq)]
pub struct Image {
    pub blobs: Vec<Vec<u8>>,
    pub manifest: Vec<u8>,
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Image({})", Digest::sha256(&self.manifest))
    }
}

impl Image {
    /// A config and layers of these sizes, of random bytes that `seed` decides.
    pub fn new(seed: u64, layer_sizes: &[usize]) -> Self {
        let config = format!("{{\"architecture\":\"amd64\",\"os\":\"linux\",\"seed\":{seed}}}").into_bytes();
        let layers =
            layer_sizes.iter().enumerate().map(|(n, size)| random_bytes(seed * 100 + n as u64, *size));
        let blobs: Vec<Vec<u8>> = std::iter::once(config).chain(layers).collect();
        let describe = |media_type: &str, blob: &[u8]| serde_json::json!({"mediaType": media_type, "digest": Digest::sha256(blob).to_string(), "size": blob.len()});
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": describe("application/vnd.oci.image.config.v1+json", &blobs[0]),
            "layers": blobs[1..].iter().map(|blob| describe(layer, blob)).collect::<Vec<_>>(),
        });
        Self { blobs, manifest: serde_json::to_vec(&manifest).unwrap() }
    }

    /// An empty layer, a small one, and one of several blocks.
    pub fn small(seed: u64) -> Self {
        Self::new(seed, &[0, 1000, 2_500_000])
    }
}

pub fn random_bytes(seed: u64, size: usize) -> Vec<u8> {
    use sha3::digest::{ExtendableOutput, Update, XofReader};
    let mut hasher = sha3::Shake128::default();
    hasher.update(&seed.to_le_bytes());
    let mut bytes = vec![0; size];
    hasher.finalize_xof().read(&mut bytes);
    bytes
}
