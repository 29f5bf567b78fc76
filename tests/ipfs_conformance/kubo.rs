//! Real Kubos on loopback that speak to each other and nobody else: the newest, and the oldest that works. `.ci/run` has
//! them installed; where there is none the tests say that they were skipped.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};

use shoal::config::{KuboApi, KuboConfig, Secret};
use shoal::ipld::Block;
use tempfile::TempDir;

const AUTH: &str = "bearer:t0ken";

/// A release of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Release {
    Newest,
    /// 0.22, which has no credentials for its API.
    Oldest,
}

pub struct Kubo {
    release: Release,
    program: PathBuf,
    repo: TempDir,
    child: Option<Child>,
    /// Kept, since Kubo ends when it cannot write.
    output: Option<Lines<BufReader<ChildStdout>>>,
}

impl Kubo {
    /// Two that are connected. `None`: it is not installed.
    pub fn pair() -> Option<(Self, Self)> {
        Self::pair_with(Release::Newest, &[])
    }

    /// The same of a release, with settings of the first, in JSON.
    pub fn pair_with(release: Release, settings: &[(&str, &str)]) -> Option<(Self, Self)> {
        let (mut one, mut other) = (Self::prepare(release)?, Self::prepare(release)?);
        for (key, value) in settings {
            one.run(&["config", "--json", key, value]);
        }
        one.start();
        other.start();
        let addresses = other.run(&["id", "-f", "<addrs>"]);
        let address = addresses.split_whitespace().find(|text| text.contains("/ip4/127.0.0.1/tcp/")).unwrap();
        one.run(&["swarm", "connect", address]);
        Some((one, other))
    }

    fn prepare(release: Release) -> Option<Self> {
        let installed = || {
            let home = std::env::home_dir()?;
            let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
            Some(cache.join("shoal-tests"))
        };
        let tools = std::env::var_os("SHOAL_TEST_TOOLS").map(PathBuf::from).or_else(installed)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(tools).chain(std::env::split_paths(&path));
        let name = match release {
            Release::Newest => "ipfs",
            Release::Oldest => "ipfs-0.22",
        };
        let Some(program) = folders.map(|folder| folder.join(name)).find(|program| program.exists()) else {
            eprintln!("SKIPPED: there is no {name}; tests/clients/install.sh gets it");
            return None;
        };
        let kubo = Self { release, program, repo: TempDir::new().unwrap(), child: None, output: None };
        kubo.run(&["init", "--empty-repo", "--profile", "test"]);
        for (key, value) in [
            ("AutoConf.Enabled", "false"),
            ("Bootstrap", "[]"),
            ("DNS.Resolvers", "{}"),
            ("Routing.Type", "\"dhtserver\""),
            ("Routing.DelegatedRouters", "[]"),
            ("Ipns.DelegatedPublishers", "[]"),
            (
                "API.Authorizations",
                "{\"test\": {\"AuthSecret\": \"bearer:t0ken\", \"AllowedPaths\": [\"/api/v0\"]}}",
            ),
        ] {
            kubo.run(&["config", "--json", key, value]);
        }
        Some(kubo)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("IPFS_PATH", self.repo.path()).env("IPFS_TELEMETRY", "off").stderr(Stdio::null());
        if self.release == Release::Newest {
            command.args(["--api-auth", AUTH]);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.command().args(arguments).output().unwrap();
        assert!(output.status.success(), "ipfs {arguments:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Whether a block is there, without asking anybody.
    pub fn has(&self, cid: &str) -> bool {
        self.command().args(["block", "stat", "--offline", cid]).output().unwrap().status.success()
    }

    pub fn put(&self, block: &Block) {
        let arguments = ["block", "put", "--cid-codec", "raw"];
        let piped = || Stdio::piped();
        let mut child = self.command().args(arguments).stdin(piped()).stdout(piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(block.bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), block.cid().to_string());
    }

    pub fn start(&mut self) {
        let mut child = self.command().arg("daemon").stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        self.child = Some(child);
        assert!(lines.any(|line| line.unwrap() == "Daemon is ready"), "Kubo did not start");
        self.output = Some(lines);
    }

    /// Its API as a multiaddr.
    pub fn api(&self) -> String {
        std::fs::read_to_string(self.repo.path().join("api")).unwrap().trim().to_owned()
    }

    pub fn config(&self) -> KuboConfig {
        let port = self.api().rsplit_once('/').unwrap().1.to_owned();
        let url = format!("http://127.0.0.1:{port}/api/v0/").parse().unwrap();
        let authorization = Some(Secret::new("Bearer t0ken".to_owned()));
        KuboConfig { api: KuboApi::Url(url), authorization, ca: None }
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
