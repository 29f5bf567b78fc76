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
        "storage.ipfs.writeipnskey",
        "storage.ipfs.readonlyipnskeys",
        "storage.ipfs.recordvalidity",
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
    let yaml = "storage: {filesystem: {rootdirectory: /x}, delete: {enabled: true}}\nhealth: {storagedriver: {enabled: true}}";
    let (_, warnings) = load(yaml, &[]).unwrap();
    let mut keys: Vec<&str> = warnings.iter().map(|warning| warning.0.split(' ').nth(2).unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["health", "storage.delete", "storage.filesystem"]);
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
fn auth_is_one_of_htpasswd_and_token() {
    let auth = |yaml: &str| load(&format!("auth: {yaml}"), &[]).unwrap().0.auth;
    let open = AuthConfig { method: AuthMethod::Open, anonymous_pull: false };
    assert_eq!(auth("{}"), open);
    assert_eq!(auth(""), open);
    assert_eq!(auth("{none: {}}"), open);
    let htpasswd = AuthMethod::Htpasswd { realm: "x y".to_owned(), path: "/z".into() };
    assert_eq!(
        auth("{htpasswd: {realm: x y, path: /z}, anonymous: pull}"),
        AuthConfig { method: htpasswd, anonymous_pull: true }
    );
    let token = "realm: https://a/token, service: s, issuer: i";
    let AuthMethod::Token(config) = auth(&format!("{{token: {{{token}, jwks: /j}}}}")).method else {
        panic!()
    };
    assert_eq!(
        (config.realm.as_str(), config.service.as_str(), config.issuer.as_str()),
        ("https://a/token", "s", "i")
    );
    assert_eq!((config.root_cert_bundle, config.jwks), (None, Some("/j".into())));
    assert_eq!((config.signing_algorithms.len(), config.auto_redirect_path), (9, None));
    let yaml =
        format!("{{token: {{{token}, rootcertbundle: /b, signingalgorithms: [EdDSA], autoredirect: true}}}}");
    let AuthMethod::Token(config) = auth(&yaml).method else { panic!() };
    assert_eq!(config.signing_algorithms, [jsonwebtoken::Algorithm::EdDSA]);
    assert_eq!(config.auto_redirect_path.as_deref(), Some("/auth/token"));

    let (_, warnings) = load("auth: {anonymous: pull}", &[]).unwrap();
    assert!(warnings[0].0.starts_with("config key auth.anonymous has no meaning"), "{warnings:?}");
}

#[test]
fn auth_that_would_not_protect_is_refused() {
    let token = "realm: https://a/token, service: s, issuer: i, jwks: /j";
    let cases = [
        (
            "{silly: {realm: lax}}".to_owned(),
            "config key auth.silly = \"{\\\"realm\\\":\\\"lax\\\"}\": it lets everybody in who sends any header: use auth.htpasswd or auth.token",
        ),
        (
            format!("{{htpasswd: {{realm: x, path: /z}}, token: {{{token}}}}}"),
            "config key auth = \"htpasswd and token\": only one of the two may be set",
        ),
        (
            "{htpasswd: {realm: x}}".to_owned(),
            "config key auth.htpasswd.path = \"\": it must be set with the others of its section",
        ),
        (
            "{htpasswd: {path: /z}}".to_owned(),
            "config key auth.htpasswd.realm = \"\": it must be set with the others of its section",
        ),
        (
            "{htpasswd: {pfad: /z}}".to_owned(),
            "config key auth.htpasswd.pfad is unknown: did you mean auth.htpasswd.path?",
        ),
        (
            "{htpaswd: {path: /z}}".to_owned(),
            "config key auth.htpaswd is unknown: did you mean auth.htpasswd?",
        ),
        ("{anonymous: push}".to_owned(), "config key auth.anonymous = \"push\": none or pull is expected"),
        (
            "{token: {realm: https://a, service: s, issuer: i}}".to_owned(),
            "config key auth.token.rootcertbundle = \"\": a file with the keys of the token server is expected, here or as auth.token.jwks",
        ),
        (
            "{token: {realm: a, service: s, issuer: i, jwks: /j}}".to_owned(),
            "config key auth.token.realm = \"a\": the URL of the token server is expected",
        ),
        (
            format!("{{token: {{{token}, signingalgorithms: [RS256, HS256]}}}}"),
            "config key auth.token.signingalgorithms[1] = \"HS256\": one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA is expected: no shared secrets",
        ),
    ];
    for (yaml, line) in cases {
        assert_eq!(error(&format!("auth: {yaml}")), line, "{yaml}");
    }
}

#[test]
fn auth_may_come_from_the_environment_as_distribution_has_it() {
    let environment = [
        ("REGISTRY_AUTH", "htpasswd"),
        ("REGISTRY_AUTH_HTPASSWD_REALM", "Registry Realm"),
        ("REGISTRY_AUTH_HTPASSWD_PATH", "/auth/htpasswd"),
    ];
    let (config, warnings) = load("", &environment).unwrap();
    assert_eq!(warnings, []);
    let method = AuthMethod::Htpasswd { realm: "Registry Realm".to_owned(), path: "/auth/htpasswd".into() };
    assert_eq!(config.auth.method, method);

    let silly = load("", &[("REGISTRY_AUTH_SILLY_REALM", "x")]).unwrap_err().to_string();
    assert!(silly.starts_with("environment variable REGISTRY_AUTH_SILLY_REALM"), "{silly}");
    assert!(load("", &[("REGISTRY_AUTH", "htpasswd")]).is_err());
    assert_eq!(load("", &[("REGISTRY_AUTH_FILE", "/podman's")]).unwrap().1, []);
}
