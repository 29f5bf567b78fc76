//! The section `auth`.

use super::tests::{error, load};
use super::*;

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
