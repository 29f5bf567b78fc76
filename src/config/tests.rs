use std::io::Write;

use tempfile::NamedTempFile;

use super::*;

fn load(yaml: &str, environment: &[(&str, &str)]) -> Result<(Config, Vec<Warning>), ConfigError> {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(yaml.as_bytes()).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some(file.path()), environment)
}

fn error(yaml: &str) -> String {
    let line = load(yaml, &[]).unwrap_err().to_string();
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}

#[test]
fn the_file_of_defaults_says_what_the_defaults_are() {
    let (none, warnings) = Config::load(None, std::iter::empty()).unwrap();
    assert_eq!(warnings, []);
    let (file, warnings) = load(DEFAULT_YAML, &[]).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(file, none);
    assert_eq!(none.http.addr, "127.0.0.1:5000");
    assert_eq!(none.names.write_key.as_deref(), Some("self"));
    assert_eq!(none.p2p.bootstrap.len(), 4);
}

#[test]
fn every_key_of_the_schema_is_in_the_file_of_defaults() {
    for key in [
        "version",
        "log.level",
        "log.formatter",
        "http.addr",
        "http.debug.addr",
        "http.tls.certificate",
        "http.tls.key",
        "auth",
        "storage.ipfs.rootdirectory",
        "storage.ipfs.quota",
        "storage.ipfs.ipfsapiaddress",
        "storage.ipfs.writeipnskey",
        "storage.ipfs.readonlyipnskeys",
        "storage.ipfs.recordvalidity",
        "storage.delete.enabled",
        "validation.disabled",
        "validation.manifests.images.blobs",
        "validation.manifests.indexes.platforms",
        "middleware.repository",
        "proxy.remoteurl",
        "p2p.listen",
        "p2p.announce",
        "p2p.bootstrap",
        "p2p.peers",
        "p2p.swarmkey",
        "p2p.mdns",
        "mirror.defaultregistry",
        "mirror.registries",
    ] {
        assert!(paths(schema()).iter().any(|path| path == key), "{key}");
    }
}

#[test]
fn a_bad_value_is_named_with_its_key_and_what_would_be_right() {
    let peer = "12D3KooWSahP5pFRCEfaziPEba7urXtpZyzUCdLJNdXfsg3vRfyb";
    let cases = [
        ("version: 2", "config key version = \"2\": 0.1 is expected"),
        (
            "log: {level: loud}",
            "config key log.level = \"loud\": one of error, warn, info, debug, trace is expected",
        ),
        (
            "http: {addr: localhost}",
            "config key http.addr = \"localhost\": HOST:PORT is expected, such as 127.0.0.1:5000",
        ),
        (
            "p2p: {bootstrap: [/ip4/127.0.0.1/tcp/4001]}",
            "config key p2p.bootstrap[0] = \"/ip4/127.0.0.1/tcp/4001\": the peer id is missing: a multiaddr with /p2p/<peer id> at its end is expected",
        ),
        (
            "storage: {ipfs: {writeipnskeys: x}}",
            "config key storage.ipfs.writeipnskeys is unknown: did you mean storage.ipfs.writeipnskey?",
        ),
        ("p2p: {lisen: []}", "config key p2p.lisen is unknown: did you mean p2p.listen?"),
        ("p2p: {zzz: 1}", "config key p2p.zzz is unknown"),
        (
            "storage: {ipfs: {ipfsapiaddress: /ip4/127.0.0.1/tcp/5001}}",
            "config key storage.ipfs.ipfsapiaddress = \"/ip4/127.0.0.1/tcp/5001\": not supported by this version: leave it empty for the embedded node",
        ),
        (
            "validation: {manifests: {images: {blobs: some}}}",
            "config key validation.manifests.images.blobs = \"some\": all or none is expected",
        ),
        (
            "storage: {ipfs: {recordvalidity: 5s}}",
            "config key storage.ipfs.recordvalidity = \"5s\": a duration of an hour or more is expected, such as 8760h",
        ),
    ];
    for (yaml, line) in cases {
        assert_eq!(error(yaml), line, "{yaml}");
    }
    assert!(
        error(&format!("p2p: {{peers: [/ip5/1.1.1.1/p2p/{peer}]}}"))
            .starts_with("config key p2p.peers[0] = ")
    );
    assert!(error("p2p: {listen: 5}").starts_with("config key p2p.listen: "));
    assert!(error("http: {addr: [1]}").starts_with("config key http.addr: "));
    assert!(error("a: [").contains("is not valid YAML"));
    assert!(error("auth: {htpasswd: {realm: x, path: y}}").starts_with("config key auth = "));
    let missing =
        Config::load(Some(Path::new("/does/not/exist.yaml")), std::iter::empty()).unwrap_err().to_string();
    assert!(missing.starts_with("cannot read config file /does/not/exist.yaml: "), "{missing}");
}

#[test]
fn keys_of_distribution_are_warnings() {
    let yaml = "storage: {filesystem: {rootdirectory: /x}, maintenance: {readonly: {enabled: true}}}\nhealth: {storagedriver: {enabled: true}}";
    let (_, warnings) = load(yaml, &[]).unwrap();
    let mut keys: Vec<&str> = warnings.iter().map(|warning| warning.0.split(' ').nth(2).unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["health", "storage.filesystem", "storage.maintenance"]);
}

#[test]
fn the_environment_is_laid_over_the_file() {
    let yaml = "http: {addr: 127.0.0.1:1}\np2p: {listen: [/ip4/1.2.3.4/tcp/1]}";
    let environment = [
        ("REGISTRY_HTTP_ADDR", "127.0.0.1:2"),
        ("REGISTRY_STORAGE_IPFS_WRITEIPNSKEY", "\"\""),
        ("REGISTRY_STORAGE_IPFS_READONLYIPNSKEYS", "a, b"),
        ("REGISTRY_P2P_LISTEN_0", "/ip4/127.0.0.1/tcp/7"),
        ("REGISTRY_P2P_LISTEN_1", "/ip4/127.0.0.1/tcp/8"),
        ("REGISTRY_HTTP_ADR", "x"),
        ("HOME", "/"),
    ];
    let (config, warnings) = load(yaml, &environment).unwrap();
    assert_eq!(config.http.addr, "127.0.0.1:2");
    assert_eq!(config.names.write_key, None);
    assert_eq!(config.names.readonly, ["a", "b"]);
    let listen: Vec<String> = config.p2p.listen.iter().map(Multiaddr::to_string).collect();
    assert_eq!(listen, ["/ip4/127.0.0.1/tcp/7", "/ip4/127.0.0.1/tcp/8"]);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].0.contains("did you mean REGISTRY_HTTP_ADDR?"), "{}", warnings[0].0);

    let sparse = load("", &[("REGISTRY_P2P_PEERS_5", "x")]).unwrap_err().to_string();
    assert_eq!(
        sparse,
        "environment variable REGISTRY_P2P_PEERS_5 = \"\\\"x\\\"\": the list has 0 entries: the next is 0"
    );
}

#[test]
fn readonly_names_are_a_list_or_one_string_with_commas() {
    for yaml in ["[a, b]", "\"a,b\"", "\" a , b ,\""] {
        let (config, _) = load(&format!("storage: {{ipfs: {{readonlyipnskeys: {yaml}}}}}"), &[]).unwrap();
        assert_eq!(config.names.readonly, ["a", "b"], "{yaml}");
    }
}

#[test]
fn what_a_manifest_names_is_checked_as_configured() {
    let validation = |yaml: &str| load(yaml, &[]).unwrap().0.validation;
    let is = |image_blobs, index_manifests| Validation { image_blobs, index_manifests };
    assert_eq!(validation(""), is(true, false));
    assert_eq!(validation("validation: {manifests: {indexes: {platforms: all}}}"), is(true, true));
    assert_eq!(validation("validation: {manifests: {images: {blobs: none}}}"), is(false, false));
    assert_eq!(
        validation("validation: {disabled: true, manifests: {images: {blobs: all}}}"),
        is(false, false)
    );
}
