use std::io::Write;

use libp2p::Multiaddr;
use tempfile::NamedTempFile;

use super::*;

pub(super) fn load(yaml: &str, environment: &[(&str, &str)]) -> Result<(Config, Vec<Warning>), ConfigError> {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(yaml.as_bytes()).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::load(Some(file.path()), environment)
}

pub(super) fn error(yaml: &str) -> String {
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
fn a_trusted_peer_is_named_by_its_id_or_by_where_it_is() {
    let peer = "12D3KooWSahP5pFRCEfaziPEba7urXtpZyzUCdLJNdXfsg3vRfyb";
    let named = format!("/ip4/10.0.0.1/tcp/1/p2p/{peer}");
    let dnsaddr = format!("/dnsaddr/a.example/p2p/{peer}");
    for right in
        [&named, &dnsaddr, "/dns/a/tcp/1", "/dns4/a/udp/1/quic-v1", "/dns6/a/tcp/1", "/ip6/::1/tcp/1"]
    {
        let (config, _) = load(&format!("p2p: {{peers: [{right:?}]}}"), &[]).unwrap();
        assert_eq!(config.p2p.peers, [right.parse().unwrap()]);
    }
    for wrong in ["/dnsaddr/a.example", "/dns4/a", "/tcp/1", "/ip4/1.1.1.1/udp/1", "/ip4/1.1.1.1/tcp/1/ws"] {
        let line = error(&format!("p2p: {{peers: [{wrong:?}]}}"));
        assert!(
            line.starts_with(&format!("config key p2p.peers[0] = {wrong:?}: a multiaddr with /p2p/")),
            "{line}"
        );
    }
}

#[test]
fn a_private_network_has_neither_quic_nor_the_public_bootstrap_peers() {
    let (config, _) = load("p2p: {swarmkey: /etc/swarm.key}", &[]).unwrap();
    assert_eq!(config.p2p.swarm_key, Some("/etc/swarm.key".into()));
    assert_eq!(config.p2p.listen, ["/ip4/0.0.0.0/tcp/4001".parse().unwrap()]);
    assert_eq!(config.p2p.bootstrap, []);
    let line = error("p2p: {swarmkey: k, listen: [/ip4/0.0.0.0/tcp/1, /ip4/0.0.0.0/udp/1/quic-v1]}");
    assert_eq!(
        line,
        "config key p2p.listen[1] = \"/ip4/0.0.0.0/udp/1/quic-v1\": a private network (p2p.swarmkey) has no QUIC: \
         a TCP address is expected, such as /ip4/0.0.0.0/tcp/4001"
    );
}

#[test]
fn pubsub_is_on_unless_it_is_turned_off() {
    assert!(load("", &[]).unwrap().0.p2p.pubsub);
    assert!(!load("", &[("REGISTRY_P2P_PUBSUB", "false")]).unwrap().0.p2p.pubsub);
}

#[test]
fn every_key_of_the_schema_is_in_the_file_of_defaults() {
    for key in [
        "version",
        "log.level",
        "log.formatter",
        "log.fields",
        "log.accesslog.disabled",
        "http.addr",
        "http.net",
        "http.prefix",
        "http.host",
        "http.relativeurls",
        "http.headers",
        "http.draintimeout",
        "http.http2.disabled",
        "http.debug.addr",
        "http.debug.prometheus.enabled",
        "http.debug.prometheus.path",
        "http.tls.certificate",
        "http.tls.key",
        "http.tls.clientcas",
        "http.tls.clientauth",
        "http.tls.minimumtls",
        "http.tls.selfsigned",
        "auth.htpasswd.realm",
        "auth.htpasswd.path",
        "auth.token.realm",
        "auth.token.service",
        "auth.token.issuer",
        "auth.token.rootcertbundle",
        "auth.token.jwks",
        "auth.token.signingalgorithms",
        "auth.token.autoredirect",
        "auth.token.autoredirectpath",
        "auth.anonymous",
        "storage.ipfs.rootdirectory",
        "storage.ipfs.quota",
        "storage.ipfs.ipfsapiaddress",
        "storage.ipfs.ipfsapiauth",
        "storage.ipfs.ipfsapica",
        "storage.ipfs.writeipnskey",
        "storage.ipfs.readonlyipnskeys",
        "storage.ipfs.follow",
        "storage.ipfs.followquota",
        "storage.ipfs.recordvalidity",
        "storage.delete.enabled",
        "validation.disabled",
        "validation.manifests.images.blobs",
        "validation.manifests.indexes.platforms",
        "middleware.repository",
        "proxy.remoteurl",
        "p2p.listen",
        "p2p.announce",
        "p2p.addressfilters",
        "p2p.bootstrap",
        "p2p.peers",
        "p2p.delegatedrouters",
        "p2p.gateways",
        "p2p.swarmkey",
        "p2p.mdns",
        "p2p.pubsub",
        "p2p.nat",
        "p2p.upnp",
        "p2p.relay",
        "p2p.relays",
        "mirror.defaultregistry",
        "mirror.registries",
    ] {
        assert!(paths(schema()).iter().any(|path| path == key), "{key}");
    }
}

#[test]
fn routers_and_gateways_are_urls_without_secrets() {
    let (config, _) = load("", &[]).unwrap();
    assert!(config.p2p.delegated_routers.is_empty() && config.p2p.gateways.is_empty());
    let yaml =
        "p2p: {delegatedrouters: https://r.example, gateways: [http://127.0.0.1:8080/, https://g.example/a]}";
    let (config, _) = load(yaml, &[]).unwrap();
    assert_eq!(config.p2p.delegated_routers, ["https://r.example".parse().unwrap()]);
    assert_eq!(config.p2p.gateways.len(), 2);
    let (config, _) = load("", &[("REGISTRY_P2P_GATEWAYS", "[https://g.example]")]).unwrap();
    assert_eq!(config.p2p.gateways, ["https://g.example".parse().unwrap()]);
    for wrong in ["g.example", "ftp://g.example", "/dns4/g.example/tcp/443/https", "https://g.example/?key=x"]
    {
        let line = error(&format!("p2p: {{gateways: [{wrong:?}]}}"));
        assert!(
            line.starts_with(&format!("config key p2p.gateways[0] = {wrong:?}: an http or https URL")),
            "{line}"
        );
    }
    let line = error("p2p: {delegatedrouters: [\"https://u:secret@r.example\"]}");
    assert!(line.contains("r.example") && !line.contains("secret"), "{line}");
    assert!(
        error(&format!("p2p: {{gateways: [{}]}}", "http://g.example, ".repeat(17))).contains("at most 16")
    );
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
            "storage: {ipfs: {ipfsapiaddress: \"127.0.0.1:5001\"}}",
            "config key storage.ipfs.ipfsapiaddress = \"127.0.0.1:5001\": a multiaddr or URL is expected, such as /ip4/127.0.0.1/tcp/5001, /unix/run/ipfs.sock or https://kubo.example.org",
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
    assert!(config.names.readonly.iter().map(|name| &name.text).eq(["a", "b"]));
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

#[test]
fn the_options_of_distribution_are_understood() {
    let yaml = "
log: {fields: {environment: staging, rack: 7}, accesslog: {disabled: true}}
http:
  addr: /run/registry.sock
  net: unix
  prefix: /a/b/
  host: https://registry.example.org:5443
  headers: {X-Content-Type-Options: [nosniff], Via: 'a, b'}
  draintimeout: 1m30s
  http2: {disabled: true}
  debug: {addr: ':5002', prometheus: {enabled: false, path: /metrics}}
  tls: {certificate: /c.pem, key: /k.pem, clientcas: [/a.pem, /b.pem], minimumtls: tls1.3}
";
    let (config, warnings) = load(yaml, &[]).unwrap();
    assert_eq!(warnings, []);
    let HttpConfig { net, addr, debug_addr, metrics_path, prefix, urls, headers, drain_timeout, http2, tls } =
        config.http;
    assert_eq!(
        (net, addr.as_str(), debug_addr.as_deref()),
        (Net::Unix, "/run/registry.sock", Some("0.0.0.0:5002"))
    );
    assert_eq!((prefix.as_str(), metrics_path, http2), ("/a/b", None, false));
    assert_eq!(urls, Urls::Below("https://registry.example.org:5443/a/b".to_owned()));
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["via"], "a, b");
    assert_eq!(drain_timeout, Duration::from_secs(90));
    let tls = tls.unwrap();
    assert_eq!(tls.pair, TlsPair::Files { certificate: "/c.pem".into(), key: "/k.pem".into() });
    assert_eq!((tls.client_cas.len(), tls.client_optional, tls.minimum), (2, false, TlsVersion::Tls13));
    assert!(!config.log.access);
    assert_eq!(config.log.fields["rack"], 7);
}
