//! A real Kubo, which is asked over libp2p as a daemon of ours is, and shares a private network with one.
//! `tests/clients/install.sh` puts it where this looks; where it is not, the tests say that they were skipped.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::io::{BufRead, BufReader, Lines};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{PATIENCE, daemon};
use futures::TryStreamExt;
use hyper::{Request, StatusCode};
use libp2p::identity::Keypair;
use shoal::ipfs::{Ipfs, IpfsError, Peer};
use shoal::ipld::{Block, Cid, car};
use shoal::node::{self, NodeConfig};
use shoal::store::{Store, StoreOptions};
use shoal::tasks::Tasks;
use tempfile::TempDir;

/// A daemon that listens on loopback and speaks to nobody by itself.
struct Kubo {
    program: PathBuf,
    repo: TempDir,
    child: Option<Child>,
    /// Kept, since Kubo ends when it cannot write.
    output: Option<Lines<BufReader<ChildStdout>>>,
}

impl Kubo {
    /// `None`: it is not installed.
    fn prepare() -> Option<Self> {
        let tools = std::env::var_os("SHOAL_TEST_TOOLS").map(PathBuf::from).or_else(|| {
            let home = std::env::home_dir()?;
            let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
            Some(cache.join("shoal-tests"))
        })?;
        let program = tools.join("ipfs");
        if !program.exists() {
            eprintln!("SKIPPED: there is no Kubo at {}; tests/clients/install.sh gets it", program.display());
            return None;
        }
        let kubo = Self { program, repo: TempDir::new().unwrap(), child: None, output: None };
        kubo.run(&["init", "--empty-repo", "--profile", "test"]);
        kubo.run(&["config", "--json", "AutoConf.Enabled", "false"]);
        kubo.run(&["config", "--json", "DNS.Resolvers", "{}"]);
        kubo.run(&["config", "--json", "Routing.DelegatedRouters", "[]"]);
        kubo.run(&["config", "--json", "Ipns.DelegatedPublishers", "[]"]);
        kubo.run(&["config", "--json", "Experimental.GatewayOverLibp2p", "true"]);
        Some(kubo)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("IPFS_PATH", self.repo.path()).env("IPFS_TELEMETRY", "off").stderr(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().unwrap();
        assert!(output.status.success(), "ipfs {arguments:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Adds content before the daemon runs.
    fn add(&self, content: &[u8]) -> Cid {
        let file = self.repo.path().join("content");
        std::fs::write(&file, content).unwrap();
        self.run(&["add", "-Q", "--cid-version=1", file.to_str().unwrap()]).parse().unwrap()
    }

    /// Starts the daemon; gives an address with its peer id.
    fn start(&mut self) -> String {
        let mut child = self.command().arg("daemon").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.child = Some(child);
        assert!(lines.any(|line| line.unwrap() == "Daemon is ready"), "Kubo did not start");
        self.output = Some(lines);
        let addresses = self.run(&["id", "-f", "<addrs>"]);
        let is_tcp = |address: &&str| address.contains("/ip4/127.0.0.1/tcp/");
        addresses.split_whitespace().find(is_tcp).unwrap().to_owned()
    }
}

impl Drop for Kubo {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubos_gateway_over_libp2p_is_asked_as_our_own_is() {
    let Some(mut kubo) = Kubo::prepare() else { return };
    let cid = kubo.add(&vec![7; 3 << 20]);
    let address = kubo.start();

    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
    let tasks = Tasks::new();
    let config = NodeConfig { bootstrap: vec![address.parse().unwrap()], ..NodeConfig::alone("shoal/test") };
    let (client, _) = node::start(&tasks, &store, Keypair::generate_ed25519(), config).await.unwrap();
    let peer = Peer::new(address.rsplit_once('/').unwrap().1);
    let get = async |path: String| {
        let begun = Instant::now();
        loop {
            match client.request(&peer, Request::get(&path).body(Bytes::new()).unwrap()).await {
                Ok(answer) => {
                    let status = answer.status();
                    return (status, answer.into_body().try_collect::<Vec<Bytes>>().await.unwrap().concat());
                }
                Err(IpfsError::NotConnected(_)) if begun.elapsed() < PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let (status, bytes) = get(format!("/ipfs/{cid}?format=raw")).await;
    assert_eq!(status, StatusCode::OK);
    Block::verify(cid, bytes.into()).unwrap();
    let (status, archive) = get(format!("/ipfs/{cid}?format=car&dag-scope=all&car-dups=n")).await;
    assert_eq!(status, StatusCode::OK);
    assert!(archive.starts_with(&car::header(&cid)));
    let (status, _) = get("/.well-known/libp2p/protocols".to_owned()).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn kubo_and_a_daemon_meet_in_a_private_network() {
    let Some(mut kubo) = Kubo::prepare() else { return };
    let key = kubo.repo.path().join("swarm.key");
    std::fs::write(&key, format!("/key/swarm/psk/1.0.0/\n/base16/\n{}\n", "ab".repeat(32))).unwrap();
    let address = kubo.start();
    let ours = daemon().env("REGISTRY_P2P_SWARMKEY", key.to_str().unwrap()).dials(&address).start();
    let begun = Instant::now();
    // Who dials is through with it before the other one.
    while ours.status().node.peers == 0
        || !kubo.run(&["swarm", "peers"]).contains(&ours.status().node.peer_id)
    {
        assert!(begun.elapsed() < PATIENCE, "{}", ours.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ours.status().node.mesh_peers, 0, "Kubo shares nothing that was pulled through");
}
