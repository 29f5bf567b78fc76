//! `shoal doctor`: each thing that keeps pulls away from the mirror is found, and what mends it is said.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::files::program_that_says;
use common::{Daemon, Image, daemon};
use serde_json::Value;
use tempfile::TempDir;

const PROBE: &str = "docker.io/library/app:1";

/// A daemon that mirrors Docker Hub, in whose place another has the probe, and the files of a machine.
struct Ward {
    daemon: Daemon,
    hub: Daemon,
    root: TempDir,
    environment: Vec<(String, PathBuf)>,
}

/// What the doctor said.
#[derive(Debug)]
struct Findings {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ward {
    async fn open() -> Self {
        let hub = daemon().start();
        hub.push("library/app", "1", &Image::small(7)).await;
        let mirror = format!(
            "{{defaultregistry: docker.io, registries: {{docker.io: {{upstream: \"{}\"}}}}}}",
            hub.registry
        );
        Self::with(hub, daemon().mirror(&mirror).start())
    }

    /// A daemon that mirrors nothing, and has the probe itself.
    async fn without_mirror() -> Self {
        let (hub, daemon) = (daemon().start(), daemon().start());
        daemon.push("library/app", "1", &Image::small(7)).await;
        Self::with(hub, daemon)
    }

    fn with(hub: Daemon, daemon: Daemon) -> Self {
        let root = TempDir::new().unwrap();
        let nowhere = root.path().join("nowhere");
        Self { daemon, hub, root, environment: vec![("PATH".to_owned(), nowhere)] }
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// Has an engine that says `version`.
    fn engine(mut self, program: &str, version: &str) -> Self {
        let bin = self.root.path().join("bin");
        program_that_says(&bin.join(program), &format!("{program} {version}"));
        self.environment = vec![("PATH".to_owned(), bin)];
        self
    }

    fn shoal(&self, words: &str) -> Findings {
        let output = Command::new(env!("CARGO_BIN_EXE_shoal"))
            .args(words.split(' '))
            .arg("--root")
            .arg(self.root.path())
            .args(["--mirror", &self.daemon.registry, "--config"])
            .arg(self.daemon.config())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Findings { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn setup(&self, engine: &str) {
        let ended = self.shoal(&format!("setup {engine} --yes"));
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }

    fn doctor(&self, engine: &str) -> Findings {
        self.shoal(&format!("doctor {engine} --probe {PROBE}"))
    }

    /// What is wrong, by the doctor: the only such thing.
    fn finds(&self, engine: &str, what: &str, mend: &str) {
        let found = self.doctor(engine);
        assert_eq!(found.code, Some(1), "{found:?}");
        assert_eq!(found.err, "shoal: 1 thing is wrong\n", "{found:?}");
        let wrong = found.out.lines().find(|line| line.starts_with("WRONG")).unwrap();
        assert!(wrong.contains(what), "{what:?} is not in: {}", found.out);
        assert!(found.out.contains(&format!("\n        {mend}")), "{mend:?} is not in: {}", found.out);
    }
}

const CONFIG: &str = "etc/containerd/config.toml";
const HUB: &str = "etc/containerd/certs.d/docker.io/hosts.toml";

fn config_path(path: &str) -> String {
    format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{path}\"\n")
}

#[tokio::test]
async fn what_setup_wrote_for_containerd_is_well() {
    let ward = Ward::open().await.file(CONFIG, &config_path("/etc/containerd/certs.d"));
    ward.setup("containerd");
    let found = ward.doctor("containerd");
    assert_eq!((found.code, found.err.as_str()), (Some(0), ""), "{found:?}");
    for words in [
        &format!("{} first, then {}", ward.daemon.registry, ward.hub.registry),
        &format!("{PROBE} comes through the mirror, asked by ns: sha256:"),
        "from upstream=docker.io",
        "ctr images pull --hosts-dir",
    ] {
        assert!(found.out.contains(words), "{words:?} is not in: {}", found.out);
    }
}

#[tokio::test]
async fn containerd_that_looks_nowhere_is_found() {
    let ward = Ward::open().await.file(CONFIG, "version = 3\n");
    ward.setup("containerd");
    ward.finds("containerd", "config_path is not set", "[plugins.\"io.containerd.cri.v1.images\".registry]");
}

#[tokio::test]
async fn a_list_of_folders_is_a_trap_for_containerd_from_2_1_on() {
    let list = config_path("/etc/containerd/certs.d:/etc/docker/certs.d");
    let ward = Ward::open().await.file(CONFIG, &list).engine("containerd", "v2.1.9");
    ward.setup("containerd");
    ward.finds(
        "containerd",
        "takes for the name of one folder",
        "set config_path = \"/etc/containerd/certs.d\"",
    );
    let ward = ward.engine("containerd", "1.7.24");
    assert_eq!(ward.doctor("containerd").code, Some(0));
}

#[tokio::test]
async fn an_imported_file_that_takes_config_path_away_is_found() {
    let config =
        format!("imports = [\"/etc/containerd/conf.d/*.toml\"]\n{}", config_path("/etc/containerd/certs.d"));
    let ward = Ward::open().await.file(CONFIG, &config).engine("containerd", "1.6.20~ds1");
    ward.setup("containerd");
    assert_eq!(ward.doctor("containerd").code, Some(0));
    let cri = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"x\"\n";
    let ward = ward.file("etc/containerd/conf.d/sandbox.toml", cri);
    let file = ward.root.path().join("etc/containerd/conf.d/sandbox.toml");
    let file = file.canonicalize().unwrap();
    ward.finds("containerd", "config_path is not set", &format!("add to {}", file.display()));
}

#[tokio::test]
async fn mirrors_of_old_beside_config_path_are_found() {
    let config = config_path("/etc/containerd/certs.d")
        + "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"http://x\"]\n";
    let ward = Ward::open().await.file(CONFIG, &config);
    ward.setup("containerd");
    ward.finds("containerd", "CRI refuses config_path", "move them");
}

#[tokio::test]
async fn every_fault_of_a_hosts_file_is_found() {
    let config = config_path("/etc/containerd/certs.d");
    let mut ward = Ward::open().await.file(CONFIG, &config).engine("containerd", "1.7.24");
    let mirror = ward.daemon.registry.clone();
    let setup = format!("shoal setup containerd --mirror {mirror} --registry docker.io");
    let ours = format!("[host.\"{mirror}\"]\n");
    for (text, what) in [
        ("[host]\n".to_owned(), "does not name the mirror"),
        (format!("[host.\"http://first\"]\n{ours}"), "asks http://first before the mirror"),
        (format!("server = \"{mirror}\"\n{ours}"), "has the mirror as `server`"),
        (format!("{ours}capabilities = [\"resolve\"]\n"), "does not ask the mirror for tags and content"),
    ] {
        ward = ward.file(HUB, &text);
        ward.finds("containerd", what, &setup);
        ward.setup("containerd");
        assert_eq!(ward.doctor("containerd").code, Some(0), "setup does not mend {text}");
    }
    for (text, what) in [
        ("server = ".to_owned(), "is ignored: line 1"),
        (format!("{ours}capabilities = [\"pull\", \"referrers\"]\n"), "capability \"referrers\""),
    ] {
        ward = ward.file(HUB, &text);
        ward.finds("containerd", what, "correct it, or move it away");
    }
    fs::remove_file(ward.root.path().join(HUB)).unwrap();
    ward.finds("containerd", "there is no hosts.toml for docker.io", &setup);
}

#[tokio::test]
async fn what_podman_would_not_take_is_found() {
    let conf = "etc/containers/registries.conf.d/90-shoal.conf";
    let ward = Ward::open().await;
    let location = format!("{}/docker.io", ward.daemon.socket());
    let ward = ward.engine("podman", "4.3.1");
    let entry = "[[registry]]\nprefix = \"docker.io\"\n";
    for (file, text, what) in [
        (conf, String::new(), "no file has a mirror"),
        (conf, entry.to_owned(), "does not name"),
        (conf, format!("{entry}[[registry.mirror]]\nlocation = \"{location}\"\n"), "lacks `insecure = true`"),
        (
            conf,
            format!(
                "{entry}[[registry.mirror]]\nlocation = \"x\"\n[[registry.mirror]]\nlocation = \"{location}\"\n"
            ),
            "asks x before the mirror",
        ),
    ] {
        fs::create_dir_all(ward.root.path().join(file).parent().unwrap()).unwrap();
        fs::write(ward.root.path().join(file), &text).unwrap();
        let found = ward.doctor("podman");
        assert!(found.out.contains(what), "{what:?} is not in: {}", found.out);
        assert!(found.out.contains("shoal setup podman"), "{}", found.out);
        ward.setup("podman");
        let found = ward.doctor("podman");
        assert_eq!(found.code, Some(0), "{found:?}");
        assert!(found.out.contains(&format!("{location} first, then docker.io")), "{}", found.out);
        assert!(found.out.contains("asked by path"), "{}", found.out);
    }
}

#[tokio::test]
async fn docker_is_asked_as_its_version_does() {
    let ward = Ward::open().await.engine("dockerd", "29.0.1");
    ward.finds("docker", "does not name", "shoal setup docker");
    ward.setup("docker");
    let found = ward.doctor("docker");
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(found.out.contains("asked by ns"), "{}", found.out);
    let ward = ward.engine("dockerd", "20.10.24+dfsg1,");
    let found = ward.doctor("docker");
    assert_eq!(found.code, Some(0), "{found:?}");
    assert!(found.out.contains("asked by the default registry"), "{}", found.out);
}

#[tokio::test]
async fn a_mirror_without_a_default_registry_is_found_by_docker_with_its_own_store() {
    let hub = daemon().start();
    hub.push("library/app", "1", &Image::small(7)).await;
    let mirror = format!("{{registries: {{docker.io: {{upstream: \"{}\"}}}}}}", hub.registry);
    let ward = Ward::with(hub, daemon().mirror(&mirror).start()).engine("dockerd", "20.10.24+dfsg1,");
    ward.setup("docker");
    ward.finds("docker", "answers 404", "have mirror.defaultregistry: docker.io");
}

#[tokio::test]
async fn a_mirror_that_has_not_got_it_is_found() {
    let ward = Ward::open().await.file(CONFIG, &config_path("/etc/containerd/certs.d"));
    ward.setup("containerd");
    let probe = "doctor containerd --probe docker.io/library/none:1";
    let found = ward.shoal(probe);
    assert_eq!(found.code, Some(1), "{found:?}");
    let wrong = "docker.io/library/none:1 cannot be pulled: GET /v2/library/none/manifests/1?ns=docker.io answers 404";
    assert!(found.out.contains(wrong), "{}", found.out);
    assert!(found.out.contains("see in Shoal's log what docker.io says"), "{}", found.out);

    let ward = Ward::without_mirror().await.file(CONFIG, &config_path("/etc/containerd/certs.d"));
    ward.setup("containerd");
    assert_eq!(ward.doctor("containerd").code, Some(0), "what is its own is served all the same");
    let found = ward.shoal(probe);
    assert!(found.out.contains("docker.io is not in mirror.registries"), "{}", found.out);
    assert!(found.out.contains("have docker.io in mirror.registries"), "{}", found.out);
}

#[tokio::test]
async fn a_mirror_that_is_away_is_found() {
    let ward = Ward::open().await.file(CONFIG, &config_path("/etc/containerd/certs.d"));
    ward.setup("containerd");
    let url = ward.daemon.registry.clone();
    let Ward { daemon, root, environment, .. } = ward;
    let _folder = daemon.kill();
    let output = Command::new(env!("CARGO_BIN_EXE_shoal"))
        .args(["doctor", "containerd", "--json", "--mirror", &url, "--root"])
        .arg(root.path())
        .envs(environment)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let wrong: Vec<_> =
        report["steps"].as_array().unwrap().iter().filter(|step| step["state"] == "wrong").collect();
    assert_eq!(wrong.len(), 1, "{wrong:?}");
    assert!(
        wrong[0]["what"].as_str().unwrap().starts_with(&format!("nobody answers at {url}/v2/")),
        "{wrong:?}"
    );
    assert_eq!(wrong[0]["mend"], "shoal serve");
}

#[tokio::test]
async fn a_mirror_that_wants_a_password_is_found() {
    let folder = TempDir::new().unwrap();
    let htpasswd = folder.path().join("htpasswd");
    fs::write(&htpasswd, "a:$2y$05$abcdefghijklmnopqrstuuW0sQuQ6cVb8T4S5mQhR5nJ7CwG6oS1u\n").unwrap();
    let daemon = daemon().auth(&format!("{{htpasswd: {{realm: x, path: {}}}}}", htpasswd.display())).start();
    let root = TempDir::new().unwrap();
    let environment = vec![("PATH".to_owned(), Path::new("/nowhere").to_owned())];
    let hub = common::daemon().start();
    let ward = Ward { daemon, hub, root, environment }.file(CONFIG, &config_path("/etc/containerd/certs.d"));
    ward.setup("containerd");
    ward.finds("containerd", "wants a password", "set auth.anonymous: pull");
}

#[tokio::test]
async fn a_machine_without_engines_is_told_so() {
    let ward = Ward::open().await;
    let found = ward.shoal("doctor --probe docker.io/library/app:1");
    assert_eq!(found.code, Some(1), "{found:?}");
    assert!(found.out.contains("neither containerd nor podman nor Docker"), "{}", found.out);
}
