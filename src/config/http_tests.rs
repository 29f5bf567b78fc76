//! The section `http`.

use super::tests::{error, load};
use super::*;

#[test]
fn a_bad_value_of_the_server_is_refused() {
    for (yaml, line) in [
        ("http: {net: udp}", "config key http.net = \"udp\": tcp or unix is expected"),
        (
            "http: {net: unix}",
            "config key http.addr = \"\": with http.net: unix the path of a socket is expected, such as /run/shoal/registry.sock",
        ),
        ("http: {prefix: a b}", "config key http.prefix = \"a b\": a path is expected, such as /registry/"),
        (
            "http: {prefix: /a/../b/}",
            "config key http.prefix = \"/a/../b/\": a path is expected, such as /registry/",
        ),
        (
            "http: {host: registry.example.org}",
            "config key http.host = \"registry.example.org\": a URL is expected, such as https://registry.example.org:5000",
        ),
        (
            "http: {headers: {\"a b\": [x]}}",
            "config key http.headers.a b = \"a b\": this is no name of a header",
        ),
        (
            "http: {headers: {X-A: [\"a\\nb\"]}}",
            "config key http.headers.X-A = \"a\\nb\": the value of a header has visible characters only",
        ),
        (
            "http: {headers: {Content-Length: [\"1\"]}}",
            "config key http.headers.Content-Length = \"Content-Length\": this header is for the server to set: take it away",
        ),
        (
            "http: {draintimeout: 2h}",
            "config key http.draintimeout = \"2h\": a duration of at most 1h is expected, such as 8s",
        ),
        (
            "http: {draintimeout: -1s}",
            "config key http.draintimeout = \"-1s\": a duration of at most 1h is expected, such as 8s",
        ),
        (
            "http: {debug: {prometheus: {path: /status}}}",
            "config key http.debug.prometheus.path = \"/status\": a path of its own is expected, such as /metrics",
        ),
        (
            "log: {fields: {a b: 1}}",
            "config key log.fields = \"a b\": the name of a field has letters, digits, `.`, `_` and `-` only",
        ),
        (
            "log: {fields: {a: [1]}}",
            "config key log.fields.a = \"[1]\": a word, a number, true or false is expected",
        ),
    ] {
        assert_eq!(error(yaml), line, "{yaml}");
    }
}

#[test]
fn tls_that_is_set_up_by_half_is_refused() {
    for (yaml, line) in [
        (
            "http: {tls: {certificate: /c.pem}}",
            "config key http.tls.certificate = \"/c.pem\": http.tls.key is missing: the file of its private key",
        ),
        (
            "http: {tls: {key: /k.pem}}",
            "config key http.tls.key = \"/k.pem\": http.tls.certificate is missing: the file of its certificate chain",
        ),
        (
            "http: {tls: {certificate: /c.pem, key: /k.pem, selfsigned: true}}",
            "config key http.tls.certificate = \"/c.pem\": it cannot stand beside http.tls.selfsigned: true; take one of the two away",
        ),
        (
            "http: {tls: {clientcas: [/ca.pem]}}",
            "config key http.tls.clientcas[0] = \"/ca.pem\": there is no TLS without http.tls.certificate and http.tls.key",
        ),
        (
            "http: {tls: {selfsigned: true, minimumtls: tls1.0}}",
            "config key http.tls.minimumtls = \"tls1.0\": tls1.2 or tls1.3 is expected",
        ),
        (
            "http: {tls: {selfsigned: true, clientauth: request-client-cert}}",
            "config key http.tls.clientauth = \"request-client-cert\": require-and-verify-client-cert or verify-client-cert-if-given is expected",
        ),
    ] {
        assert_eq!(error(yaml), line, "{yaml}");
    }
}

#[test]
fn urls_lead_to_the_host_that_is_named_first_and_to_the_one_that_was_asked_on_request() {
    for (yaml, urls) in [
        ("{}", Urls::Relative),
        ("{relativeurls: true}", Urls::Relative),
        ("{relativeurls: false}", Urls::OfRequest),
        ("{host: 'http://h', relativeurls: true}", Urls::Below("http://h".to_owned())),
        ("{host: 'http://h/outside/', prefix: /inside/}", Urls::Below("http://h/outside".to_owned())),
    ] {
        assert_eq!(load(&format!("http: {yaml}"), &[]).unwrap().0.http.urls, urls, "{yaml}");
    }
}

#[test]
fn a_self_signed_certificate_is_for_every_name_that_the_config_has() {
    let cases = [
        ("addr: ':5000'", "localhost 127.0.0.1 ::1"),
        (
            "addr: 'box:5000', host: 'https://registry.example.org'",
            "localhost 127.0.0.1 ::1 registry.example.org box",
        ),
        ("addr: '[0:0::1]:5000', host: 'https://[fe80::0:1]:7'", "localhost 127.0.0.1 ::1 fe80::1"),
    ];
    for (yaml, expected) in cases {
        let (config, _) = load(&format!("http: {{{yaml}, tls: {{selfsigned: true}}}}"), &[]).unwrap();
        let TlsPair::SelfSigned { names } = config.http.tls.unwrap().pair else { panic!("{yaml}") };
        assert_eq!(names.join(" "), expected, "{yaml}");
    }
}
