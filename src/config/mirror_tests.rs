//! The sections `mirror` and `proxy`, as they are written.

use std::time::Duration;

use super::tests::{error, load};
use super::{HttpProxy, PullThrough, RegistryConfig, Secret};
use crate::oci::Host;

fn host(name: &str) -> Host {
    name.parse().unwrap()
}

fn pull_through(yaml: &str) -> PullThrough {
    let (config, warnings) = load(yaml, &[]).unwrap();
    assert_eq!(warnings, [], "{yaml}");
    config.pull_through
}

fn registry(yaml: &str) -> RegistryConfig {
    let mirrored = pull_through(&format!("mirror: {{registries: {{registry.example: {yaml}}}}}"));
    mirrored.registries[&host("registry.example")].clone()
}

fn endpoints(registry: &RegistryConfig) -> Vec<&str> {
    registry.endpoints.iter().map(|url| url.as_str()).collect()
}

#[test]
fn nothing_is_mirrored_unless_the_config_says_so() {
    assert!(pull_through("").is_off());
    assert!(pull_through("mirror: {registries: }").is_off());
    assert!(!pull_through("mirror: {registries: {'*': {}}}").is_off());
}

#[test]
fn a_registry_that_is_only_named_is_asked_where_its_name_says() {
    let mirrored = pull_through("mirror: {registries: {docker.io: , ghcr.io: {}, 'localhost:5000': {}}}");
    let urls = |name: &str| endpoints(&mirrored.registries[&host(name)]).join(" ");
    assert_eq!(urls("docker.io"), "https://registry-1.docker.io/");
    assert_eq!(urls("ghcr.io"), "https://ghcr.io/");
    assert_eq!(urls("localhost:5000"), "https://localhost:5000/");
    assert_eq!(mirrored.any, None);
    let expected = RegistryConfig {
        endpoints: vec!["https://registry.example".parse().unwrap()],
        ..RegistryConfig::default()
    };
    assert_eq!(registry("{}"), expected);
}

#[test]
fn plain_http_is_tried_where_an_insecure_registry_is_only_named() {
    let named = registry("{insecure: true}");
    assert_eq!(endpoints(&named), ["https://registry.example/", "http://registry.example/"]);
    let given = registry("{insecure: true, upstream: 'https://a.example'}");
    assert_eq!(endpoints(&given), ["https://a.example/"]);
}

#[test]
fn every_key_of_a_registry_reaches_the_daemon() {
    let registry = registry(
        "{upstream: ['https://a.example/v2/hub', 'http://b.example:5000'], username: u, password: p,
          identitytoken: t, dockerconfig: /d.json, credentialhelper: pass, ca: /ca.pem, certificate: /c.pem,
          key: /k.pem, insecure: true, httpproxy: 'http://me:x%40y@proxy.example:3128', tagttl: 5m,
          stalefor: 24h, negativettl: 1s, share: no, prefetch: false}",
    );
    assert_eq!(endpoints(&registry), ["https://a.example/v2/hub", "http://b.example:5000/"]);
    let secret = |text: &str| Secret::new(text.to_owned());
    assert_eq!(registry.credentials.password, Some(("u".to_owned(), secret("p"))));
    assert_eq!(registry.credentials.identity_token, Some(secret("t")));
    assert_eq!(registry.credentials.docker_config, Some("/d.json".into()));
    assert_eq!(registry.credentials.helper.as_deref(), Some("pass"));
    assert_eq!(registry.ca, Some("/ca.pem".into()));
    assert_eq!(registry.client_certificate, Some(("/c.pem".into(), "/k.pem".into())));
    let proxy = HttpProxy {
        url: "http://proxy.example:3128".parse().unwrap(),
        login: Some(("me".to_owned(), secret("x%40y"))),
    };
    assert_eq!(registry.http_proxy, Some(proxy));
    let ttl = registry.tag_ttl(&"a".parse().unwrap(), &"latest".parse().unwrap());
    assert_eq!((ttl, registry.stale_for), (Duration::from_secs(300), Duration::from_secs(86_400)));
    assert_eq!(registry.negative_ttl, Duration::from_secs(1));
    assert_eq!((registry.insecure, registry.share, registry.prefetch), (true, false, false));
}

#[test]
fn no_is_no_in_every_way_that_yaml_has_for_it() {
    for (yaml, share) in [("no", false), ("'no'", false), ("false", false), ("mesh", true), ("true", true)] {
        assert_eq!(registry(&format!("{{share: {yaml}}}")).share, share, "{yaml}");
    }
}

#[test]
fn times_to_live_are_for_all_tags_or_by_pattern() {
    let ttl = |yaml: &str, tag: &str| {
        registry(yaml).tag_ttl(&"library/alpine".parse().unwrap(), &tag.parse().unwrap()).as_secs()
    };
    assert_eq!(ttl("{}", "latest"), 60);
    let patterns = "{tagttl: {'v*': 24h, '*:latest': 0s}}";
    assert_eq!((ttl(patterns, "v1"), ttl(patterns, "latest"), ttl(patterns, "edge")), (86_400, 0, 60));
}

#[test]
fn distributions_proxy_is_one_registry_that_every_request_means() {
    let hub = pull_through("proxy: {remoteurl: 'https://registry-1.docker.io', username: u, password: p}");
    assert_eq!(hub.default_registry, Some(host("docker.io")));
    let registry = &hub.registries[&host("docker.io")];
    assert_eq!(endpoints(registry), ["https://registry-1.docker.io/"]);
    assert_eq!(registry.credentials.password, Some(("u".to_owned(), Secret::new("p".to_owned()))));

    let own = pull_through("proxy: {remoteurl: 'http://registry.example:5000/below', ttl: 24h}");
    assert_eq!(own.default_registry, Some(host("registry.example:5000")));
    let registry = &own.registries[&host("registry.example:5000")];
    assert_eq!(endpoints(registry), ["http://registry.example:5000/below"]);
    assert_eq!(registry.stale_for, Duration::from_secs(86_400));

    let for_ever = pull_through("proxy: {remoteurl: 'https://ghcr.io', ttl: 0}");
    assert_eq!(for_ever.registries[&host("ghcr.io")].stale_for, Duration::MAX);
}

#[test]
fn a_section_of_its_own_goes_before_distributions_proxy() {
    let yaml = "
mirror: {registries: {docker.io: {upstream: 'https://near.example'}}}
proxy: {remoteurl: 'https://docker.io', username: u}
";
    let (config, warnings) = load(yaml, &[]).unwrap();
    let expected =
        "config key proxy.remoteurl: mirror.registries.docker.io goes before it; its credentials are ignored";
    assert_eq!(warnings.iter().map(|warning| warning.0.as_str()).collect::<Vec<_>>(), [expected]);
    assert_eq!(endpoints(&config.pull_through.registries[&host("docker.io")]), ["https://near.example/"]);
}

#[test]
fn a_secret_from_the_environment_is_text_whatever_it_looks_like() {
    for password in ["0123", "true", "{a: ", "@home", "a: b", "#1", "null"] {
        let environment = [
            ("REGISTRY_PROXY_REMOTEURL", "https://ghcr.io"),
            ("REGISTRY_PROXY_USERNAME", "u"),
            ("REGISTRY_PROXY_PASSWORD", password),
        ];
        let (config, _) = load("", &environment).unwrap();
        let login = config.pull_through.registries[&host("ghcr.io")].credentials.password.clone();
        assert_eq!(login, Some(("u".to_owned(), Secret::new(password.to_owned()))), "{password}");
    }
}

#[test]
fn a_bad_value_of_a_mirror_is_named_with_what_would_be_right() {
    let cases = [
        (
            "{upsteam: 'https://a.example'}",
            "config key mirror.registries.registry.example.upsteam is unknown: did you mean upstream?",
        ),
        ("{zzz: 1}", "config key mirror.registries.registry.example.zzz is unknown"),
        (
            "{upstream: registry.example}",
            "config key mirror.registries.registry.example.upstream = \"registry.example\": a URL is expected, such as https://registry.example, without a user or a query",
        ),
        (
            "{tagttl: soon}",
            "config key mirror.registries.registry.example.tagttl = \"soon\": a duration is expected, such as 60s or 24h",
        ),
        (
            "{tagttl: {'v*': -1s}}",
            "config key mirror.registries.registry.example.tagttl.v* = \"-1s\": a duration is expected, such as 60s or 24h",
        ),
        (
            "{share: all}",
            "config key mirror.registries.registry.example.share = \"all\": mesh or no is expected",
        ),
        (
            "{certificate: /c.pem}",
            "config key mirror.registries.registry.example.key = \"\": the key of the certificate is missing",
        ),
        (
            "{credentialhelper: /bin/sh}",
            "config key mirror.registries.registry.example.credentialhelper = \"/bin/sh\": a name is expected, such as pass for docker-credential-pass",
        ),
        (
            "{httpproxy: 'socks5://u:hunter2@proxy.example'}",
            "config key mirror.registries.registry.example.httpproxy = \"proxy.example\": the URL of a proxy is expected, such as http://proxy.example:3128",
        ),
        (
            "{username: u, password: 90210}",
            "config key mirror.registries.registry.example.password: text is expected: put it in quotes",
        ),
    ];
    for (yaml, line) in cases {
        let refused = error(&format!("mirror: {{registries: {{registry.example: {yaml}}}}}"));
        assert_eq!(refused, line, "{yaml}");
    }
    let nobody = error("mirror: {registries: {somewhere: {}}}");
    let expected =
        "config key mirror.registries.somewhere = \"somewhere\": the name of a registry is expected";
    assert!(nobody.starts_with(expected), "{nobody}");
}

#[test]
fn credentials_are_not_for_every_registry_that_a_client_names() {
    for key in ["username", "identitytoken"] {
        let refused = error(&format!("mirror: {{registries: {{'*': {{{key}: hunter2}}}}}}"));
        assert!(refused.starts_with("config key mirror.registries.* = "), "{refused}");
        assert!(!refused.contains("hunter2"), "{refused}");
    }
    assert!(load("mirror: {registries: {'*': {dockerconfig: /d.json}}}", &[]).is_ok());
}
