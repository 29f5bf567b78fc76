//! `shoal setup`: the files of containerd, podman and Docker, below a folder that stands for `/`. No engine is needed.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "../common/mod.rs"]
mod common;
mod machine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::daemon;
use machine::Machine;
use proptest::prelude::*;

const MIRROR: &str = "http://127.0.0.1:5000";

const CONTAINERD: &str = "/etc/containerd/config.toml";
const HUB: &str = "/etc/containerd/certs.d/docker.io/hosts.toml";
const CONFIG_PATH: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n";

#[test]
fn containerd_gets_a_file_for_each_registry_whose_last_resort_is_the_registry() {
    let machine = Machine::new().file(CONTAINERD, CONFIG_PATH);
    let ended = machine.setup("containerd --registry docker.io --registry localhost:5001");
    assert_eq!(ended.err, "");
    assert!(!ended.out.contains("next: "), "{}", ended.out);
    for (path, server) in [
        (HUB, "https://registry-1.docker.io"),
        ("/etc/containerd/certs.d/localhost:5001/hosts.toml", "http://localhost:5001"),
    ] {
        let text = machine.read(path);
        let lines: Vec<_> = text.lines().skip(1).collect();
        let expected = [
            &format!("server = \"{server}\""),
            "",
            &format!("[host.\"{MIRROR}\"]"),
            "capabilities = [\"pull\", \"resolve\"]",
        ];
        assert_eq!(lines, expected, "{path}");
    }
}

#[test]
fn the_folder_is_the_one_that_containerd_looks_in() {
    let config = CONFIG_PATH.replace("/etc/containerd/certs.d", "/opt/a:/opt/b");
    let machine = Machine::new().file(CONTAINERD, &config);
    machine.setup("containerd");
    assert!(machine.path("/opt/a/docker.io/hosts.toml").exists());
    machine.undo("containerd");

    let ended = machine.setup("containerd --config-path /opt/c");
    assert!(machine.path("/opt/c/docker.io/hosts.toml").exists());
    assert!(ended.err.contains("looks in /opt/a and /opt/b, not in /opt/c"), "{}", ended.err);
}

#[test]
fn what_containerd_lacks_is_said_in_its_own_words() {
    for (config, line) in [
        ("version = 2\n", "[plugins.\"io.containerd.grpc.v1.cri\".registry]"),
        ("version = 3\n", "[plugins.\"io.containerd.cri.v1.images\".registry]"),
    ] {
        let machine = Machine::new().file(CONTAINERD, config);
        let ended = machine.setup("containerd");
        assert!(
            ended.out.contains(&format!("{line}\n  config_path = \"/etc/containerd/certs.d\"")),
            "{}",
            ended.out
        );
        assert_eq!(machine.read(CONTAINERD), config);
    }
}

#[test]
fn a_dial_timeout_is_written_for_containerd_that_knows_it() {
    for (version, there) in [("2.1.9", true), ("1.7.24~ds1", false)] {
        let machine = Machine::new()
            .engine("containerd", &format!("containerd github.com/containerd/containerd/v2 {version} x"));
        let ended = machine.run("setup containerd --yes --mirror http://10.0.0.1:5000");
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(machine.read(HUB).contains("dial_timeout = \"1s\""), there, "{version}");
    }
}

#[test]
fn files_of_the_admin_keep_their_settings_comments_and_mode() {
    let theirs = "server = \"https://registry-1.docker.io\" # keep\n\n# the cache upstairs\n[host.\"https://cache.lan\"]\n  \
                  capabilities = [\"pull\"]\n  ca = \"/ca.pem\"\n";
    let machine = Machine::new().file(CONTAINERD, CONFIG_PATH).file(HUB, theirs);
    fs::set_permissions(machine.path(HUB), fs::Permissions::from_mode(0o640)).unwrap();
    let before = machine.tree();
    let ended = machine.setup("containerd");
    let ours = format!("[host.\"{MIRROR}\"]\ncapabilities = [\"pull\", \"resolve\"]\n\n");
    assert_eq!(machine.read(HUB), theirs.replace("# the cache", &format!("{ours}# the cache")));
    assert_eq!(machine.path(HUB).metadata().unwrap().permissions().mode() & 0o777, 0o640);
    for line in ["+[host.\"http://127.0.0.1:5000\"]", " # the cache upstairs"] {
        assert!(ended.out.lines().any(|shown| shown == line), "{line} is not in\n{}", ended.out);
    }
    machine.undo("containerd");
    assert_eq!(machine.tree(), before);
}

#[test]
fn a_link_stays_a_link() {
    let machine = Machine::new().file(CONTAINERD, CONFIG_PATH).file("/real/hosts.toml", "# theirs\n");
    fs::create_dir_all(machine.path(HUB).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(machine.path("/real/hosts.toml"), machine.path(HUB)).unwrap();
    machine.setup("containerd");
    assert!(machine.path(HUB).is_symlink());
    assert!(machine.read("/real/hosts.toml").starts_with("# theirs\n\n[host."));
    machine.undo("containerd");
    assert!(machine.path(HUB).is_symlink());
    assert_eq!(machine.read("/real/hosts.toml"), "# theirs\n");
}

#[test]
fn a_dry_run_shows_and_writes_nothing() {
    for engine in ["containerd", "podman", "docker"] {
        let machine = Machine::new();
        let ended = machine.run(&format!("setup {engine} --mirror {MIRROR} --dry-run"));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(
            ended.out.contains("--- /dev/null\n+++ ") && ended.out.contains("127.0.0.1:5000"),
            "{}",
            ended.out
        );
        assert_eq!(machine.tree(), Machine::new().tree(), "{engine}");
    }
}

#[test]
fn nothing_is_written_unasked() {
    let machine = Machine::new();
    let ended = machine.run(&format!("setup containerd --mirror {MIRROR}"));
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("--yes"), "{}", ended.err);
    assert_eq!(machine.tree(), Machine::new().tree());
}

#[test]
fn a_second_time_changes_nothing_and_says_so() {
    for engine in ["containerd", "podman", "docker"] {
        let machine = Machine::new()
            .file("/etc/containers/registries.conf", "[[registry]]\nlocation = \"docker.io\"\n");
        machine.setup(engine);
        let tree = machine.tree();
        let ended = machine.setup(engine);
        assert!(ended.out.starts_with(&format!("nothing to change for {engine}\n")), "{}", ended.out);
        assert_eq!(ended.err, "");
        assert_eq!(machine.tree(), tree);
    }
}

#[test]
fn what_was_there_before_the_first_change_comes_back() {
    let machine = Machine::new().file("/etc/docker/daemon.json", "{\"debug\": true}");
    let before = machine.tree();
    machine.setup("docker");
    let ended = machine.run("setup docker --yes --mirror http://10.0.0.1:5000");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(machine.read("/etc/docker/daemon.json").contains("10.0.0.1:5000"));
    machine.undo("docker");
    assert_eq!(machine.tree(), before);
    assert!(machine.undo("docker").out.starts_with("nothing to change"));
}

#[test]
fn a_file_that_was_deleted_meanwhile_comes_back_once() {
    let machine = Machine::new().file("/etc/docker/daemon.json", "{\"debug\": true}\n");
    let before = machine.tree();
    machine.setup("docker");
    fs::remove_file(machine.path("/etc/docker/daemon.json")).unwrap();
    machine.setup("docker");
    machine.undo("docker");
    machine.undo("docker");
    assert_eq!(machine.tree(), before);
}

#[test]
fn undo_leaves_what_others_put_beside_our_files() {
    let machine = Machine::new().file(CONTAINERD, CONFIG_PATH);
    machine.setup("containerd");
    let theirs = "/etc/containerd/certs.d/quay.io/hosts.toml";
    let machine = machine.file(theirs, "# theirs\n");
    machine.undo("containerd");
    assert_eq!(machine.read(theirs), "# theirs\n");
    assert!(!machine.path(HUB).parent().unwrap().exists());
}

#[test]
fn what_cannot_be_read_is_left_as_it_is() {
    for (engine, path, text) in [
        ("containerd", HUB, "server = \n"),
        ("containerd", CONTAINERD, "version = \"\n"),
        ("containerd", HUB, "host = 1\n"),
        ("podman", "/etc/containers/registries.conf.d/90-shoal.conf", "[[registry]\n"),
        ("docker", "/etc/docker/daemon.json", "{\"registry-mirrors\": [}"),
        ("docker", "/etc/docker/daemon.json", "{\"registry-mirrors\": \"http://a\"}"),
    ] {
        let machine = Machine::new().file(path, text);
        let before = machine.tree();
        let ended = machine.run(&format!("setup {engine} --mirror {MIRROR} --yes"));
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert_eq!(ended.err.lines().count(), 1, "{}", ended.err);
        let name = machine.path(path).display().to_string();
        assert!(ended.err.contains(&name) && ended.err.contains("nothing was changed"), "{}", ended.err);
        assert_eq!(machine.tree(), before);
    }
}

#[test]
fn certificates_that_would_no_longer_count_are_named() {
    let machine = Machine::new().file("/etc/containerd/certs.d/docker.io/corporate.crt", "x");
    let ended = machine.setup("containerd");
    assert!(ended.err.contains("warning: corporate.crt in "), "{}", ended.err);
}

#[test]
fn podman_gets_a_drop_in_that_takes_over_what_others_say() {
    let machine = Machine::new()
        .file(
            "/etc/containers/registries.conf",
            "[[registry]]\nprefix = \"docker.io\"\nlocation = \"hub.lan\"\n",
        )
        .file("/etc/containers/registries.conf.d/99-z.conf", "[[registry]]\nlocation = \"ghcr.io\"\n");
    let ended = machine.setup("podman --registry docker.io --registry ghcr.io --registry quay.io");
    let text = machine.read("/etc/containers/registries.conf.d/90-shoal.conf");
    for lines in [
        "prefix = \"docker.io\"\nlocation = \"hub.lan\"\n\n[[registry.mirror]]\nlocation = \"127.0.0.1:5000/docker.io\"\ninsecure = true\n",
        "prefix = \"quay.io\"\nlocation = \"quay.io\"\n\n[[registry.mirror]]\nlocation = \"127.0.0.1:5000/quay.io\"\ninsecure = true\n",
    ] {
        assert!(text.contains(lines), "{text}");
    }
    let warnings: Vec<_> = ended.err.lines().collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("registries.conf says of docker.io is taken over"), "{}", warnings[0]);
    assert!(warnings[1].contains("99-z.conf goes before ours for ghcr.io"), "{}", warnings[1]);
}

#[test]
fn docker_has_mirrors_of_docker_io_alone_with_its_own_store() {
    let words = "docker --registry docker.io --registry ghcr.io";
    let old = Machine::new().engine("dockerd", "Docker version 28.5.1, build x");
    let ended = old.setup(words);
    assert!(ended.err.contains("nothing is done for ghcr.io"), "{}", ended.err);
    assert!(ended.out.contains("mirror.defaultregistry: docker.io"), "{}", ended.out);
    assert!(ended.out.contains("systemctl reload docker"), "{}", ended.out);
    assert!(!old.path("/etc/docker/certs.d").exists());

    let new = Machine::new().engine("dockerd", "Docker version 29.0.1, build x");
    let ended = new.setup(words);
    assert_eq!(ended.err, "");
    assert!(!ended.out.contains("defaultregistry"), "{}", ended.out);
    assert!(new.read("/etc/docker/certs.d/ghcr.io/hosts.toml").contains("server = \"https://ghcr.io\""));
    let hub = "/etc/docker/certs.d/docker.io/hosts.toml";
    assert!(!new.path(hub).exists());
    let new = new.file(hub, "[host.\"https://cache\"]\n");
    new.setup(words);
    assert!(new.read(hub).starts_with(&format!("[host.\"{MIRROR}\"]\n")));
}

#[test]
fn registries_and_where_they_are_come_from_the_config() {
    let config = "version: 0.1\nmirror:\n  defaultregistry: docker.io\n  registries:\n    docker.io: {}\n    \
                  ghcr.io: {upstream: [\"https://ghcr.lan:8443/\", \"https://ghcr.io\"]}\n";
    let machine = Machine::new()
        .file(CONTAINERD, CONFIG_PATH)
        .file("/etc/shoal.yaml", config)
        .engine("dockerd", "Docker version 28.5.1, build x");
    let config = machine.path("/etc/shoal.yaml");
    machine.setup(&format!("containerd --config {}", config.display()));
    assert!(machine.read(HUB).contains("server = \"https://registry-1.docker.io\""));
    let ghcr = machine.read("/etc/containerd/certs.d/ghcr.io/hosts.toml");
    assert!(ghcr.contains("server = \"https://ghcr.lan:8443\"\n"), "{ghcr}");

    let ended = machine.setup(&format!("docker --config {}", config.display()));
    assert!(ended.err.contains("nothing is done for ghcr.io"), "{}", ended.err);
    assert!(!ended.out.contains("defaultregistry"), "{}", ended.out);

    let one = machine.setup(&format!("podman --registry quay.io --config {}", config.display()));
    assert!(one.out.contains("quay.io") && !one.out.contains("ghcr.io"), "{}", one.out);
}

#[tokio::test]
async fn the_mirror_is_where_the_running_daemon_is_or_will_be() {
    let daemon = daemon().start();
    let machine = Machine::new();
    let words = format!("setup podman --yes --config {}", daemon.config().display());
    let ended = machine.run(&words);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let drop_in = machine.read("/etc/containers/registries.conf.d/90-shoal.conf");
    assert!(drop_in.contains(&format!("location = \"{}/docker.io\"", daemon.socket())), "{drop_in}");

    let folder = daemon.kill();
    let ended = machine.run(&words);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("--mirror"), "{}", ended.err);
    let config = folder.path().join("config.yaml");
    let text = fs::read_to_string(&config).unwrap().replace("addr: 127.0.0.1:0", "addr: \":5009\"");
    fs::write(&config, text).unwrap();
    let ended = machine.run(&words);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        machine
            .read("/etc/containers/registries.conf.d/90-shoal.conf")
            .contains("\"127.0.0.1:5009/docker.io\"")
    );
}

#[test]
fn with_any_registry_mirrored_containerd_has_one_file_for_all() {
    let config = "version: 0.1\nmirror: {registries: {\"*\": {}}}\n";
    let machine = Machine::new().file(CONTAINERD, CONFIG_PATH).file("/etc/shoal.yaml", config);
    let before = machine.tree();
    let with = format!("--config {}", machine.path("/etc/shoal.yaml").display());
    let ended = machine.setup(&format!("containerd {with}"));
    let all = "/etc/containerd/certs.d/_default/hosts.toml";
    let lines: Vec<String> = machine.read(all).lines().skip(1).map(str::to_owned).collect();
    assert_eq!(lines, ["", &format!("[host.\"{MIRROR}\"]"), "capabilities = [\"pull\", \"resolve\"]"]);
    assert!(!machine.path(HUB).exists());
    assert!(ended.out.contains("this is for all registries"), "{}", ended.out);
    // One that is named has a file of its own, and undone alone it leaves the one for all.
    machine.setup(&format!("containerd {with} --registry ghcr.io"));
    machine.run("setup containerd --undo --yes --registry ghcr.io");
    assert!(machine.path(all).exists() && !machine.path("/etc/containerd/certs.d/ghcr.io").exists());
    machine.undo("containerd");
    assert_eq!(machine.tree(), before);

    for engine in ["podman", "docker"] {
        let ended = machine.setup(&format!("{engine} {with}"));
        let said = format!(
            "{engine} has to be told each registry: this is for docker.io; name others with --registry"
        );
        assert!(ended.err.contains(&said), "{}", ended.err);
        let named = machine.setup(&format!("{engine} {with} --registry docker.io"));
        assert!(!named.err.contains("has to be told"), "{}", named.err);
    }
}

#[test]
fn a_folder_that_goes_before_the_one_for_all_is_named() {
    let config = "version: 0.1\nmirror: {registries: {\"*\": {}}}\n";
    let theirs = "/etc/containerd/certs.d/quay.io/hosts.toml";
    let machine = Machine::new()
        .file(CONTAINERD, CONFIG_PATH)
        .file("/etc/shoal.yaml", config)
        .file(theirs, "# theirs\n");
    let ended = machine.setup(&format!("containerd --config {}", machine.path("/etc/shoal.yaml").display()));
    assert!(ended.err.contains("warning: quay.io in "), "{}", ended.err);
    assert_eq!(machine.read(theirs), "# theirs\n");
}

#[tokio::test]
async fn engines_trust_the_certificate_that_the_daemon_made_for_itself() {
    let daemon = daemon().http("tls: {selfsigned: true}").start();
    let pem = fs::read_to_string(daemon.data().join("tls/certificate.pem")).unwrap();
    let machine =
        Machine::new().file(CONTAINERD, CONFIG_PATH).engine("dockerd", "Docker version 29.0.1, build x");
    let before = machine.tree();
    let host = daemon.socket();
    for (engine, ca) in [
        ("containerd", format!("/etc/containerd/certs.d/{host}/ca.crt")),
        ("podman", format!("/etc/containers/certs.d/{host}/ca.crt")),
        ("docker", format!("/etc/docker/certs.d/{host}/ca.crt")),
    ] {
        let words = format!("setup {engine} --yes --registry ghcr.io --config {}", daemon.config().display());
        let ended = machine.run(&words);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert_eq!(machine.read(&ca), pem, "{engine}");
        let hosts = ca.replace(&format!("{host}/ca.crt"), "ghcr.io/hosts.toml");
        if engine == "podman" {
            let drop_in = machine.read("/etc/containers/registries.conf.d/90-shoal.conf");
            assert!(!drop_in.contains("insecure"), "{drop_in}");
        } else {
            let hosts = machine.read(&hosts);
            assert!(hosts.contains(&format!("[host.\"https://{host}\"]")), "{hosts}");
            assert!(hosts.contains(&format!("ca = \"{ca}\"")), "{hosts}");
        }
        assert!(machine.run(&words).out.starts_with("nothing to change"));
        machine.undo(engine);
        assert_eq!(machine.tree(), before, "{engine}");
    }
}

#[test]
fn a_certificate_that_is_not_there_yet_is_asked_for() {
    let machine = Machine::new();
    let root = machine.path("/data");
    let config = format!(
        "version: 0.1\nhttp: {{tls: {{selfsigned: true}}}}\nstorage: {{ipfs: {{rootdirectory: {}}}}}\n",
        root.display()
    );
    let machine = machine.file("/etc/shoal.yaml", &config);
    let with = format!("--config {} --yes", machine.path("/etc/shoal.yaml").display());
    let ended = machine.run(&format!("setup podman {with}"));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("start it, or name the file with --ca"), "{}", ended.err);
    let machine = machine.file("/ca.pem", "-----BEGIN CERTIFICATE-----\n");
    let ended = machine.run(&format!("setup podman {with} --ca {}", machine.path("/ca.pem").display()));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(machine.read("/etc/containers/certs.d/127.0.0.1:5000/ca.crt").starts_with("-----BEGIN"));
}

#[test]
fn a_mirror_with_a_path_is_refused() {
    let ended = Machine::new().run("setup containerd --yes --mirror http://a:1/v2/");
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.contains("HOST:PORT"), "{}", ended.err);
}

/// Files of an admin, by the path that an engine knows.
fn admins_files() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let hosts = prop_oneof![
        Just("# nothing\n"),
        Just("server = \"http://127.0.0.1:5000\""),
        Just("[host.\"https://a\"]\n  skip_verify = true\n[host.\"https://a\".header]\n  x = [\"y\"]\n\n\n"),
        Just("server = \"https://b\"\r\n[host.\"http://127.0.0.1:5000\"]\r\n"),
    ];
    let conf = prop_oneof![
        Just("unqualified-search-registries = [\"docker.io\"]\n"),
        Just("[[registry]]\nlocation = \"docker.io\"\nblocked = true\n"),
    ];
    let json = prop_oneof![Just(""), Just("{}"), Just("{ \"bip\":\"x\",\n\t\"registry-mirrors\" : [ ] }")];
    let file = prop_oneof![
        hosts.prop_map(|text| (HUB, text)),
        conf.clone().prop_map(|text| ("/etc/containers/registries.conf", text)),
        conf.prop_map(|text| ("/etc/containers/registries.conf.d/90-shoal.conf", text)),
        json.prop_map(|text| ("/etc/docker/daemon.json", text)),
    ];
    proptest::collection::vec(file, 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn setup_and_undo_give_the_same_bytes(files in admins_files(), times in 1_usize..3) {
        let machine = files.iter().fold(Machine::new(), |machine, (path, text)| machine.file(path, text));
        let before = machine.tree();
        for engine in ["containerd", "podman", "docker"] {
            for _ in 0..times {
                machine.setup(&format!("{engine} --registry docker.io --registry ghcr.io"));
            }
        }
        for engine in ["docker", "containerd", "podman"] {
            machine.undo(engine);
        }
        prop_assert_eq!(machine.tree(), before);
    }
}

/// The path of a file is what a diff begins with.
#[test]
fn the_diff_names_the_file() {
    let machine = Machine::new().file(HUB, "server = \"https://a\"\n");
    let ended = machine.setup("containerd");
    let path: &Path = &machine.path(HUB);
    assert!(ended.out.starts_with(&format!("--- {0}\n+++ {0}\n@@ ", path.display())), "{}", ended.out);
}
