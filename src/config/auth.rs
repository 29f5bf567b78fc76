//! The section `auth`: distribution's `htpasswd` and `token`, of which one may be set, and `anonymous`, which is ours.

use std::path::PathBuf;

use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde_json::Value;

use super::check::value_error;
use super::raw::{list, section};
use super::{ConfigError, Warning};

/// Who may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    pub method: AuthMethod,
    /// Whether what only reads needs no credentials.
    pub anonymous_pull: bool,
}

/// How callers are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    /// Not at all: everybody may do everything.
    Open,
    Htpasswd {
        realm: String,
        path: PathBuf,
    },
    Token(TokenConfig),
}

/// Whose tokens are believed. One of the two files is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    /// The URL where clients get tokens.
    pub realm: String,
    /// What must be among a token's audiences.
    pub service: String,
    pub issuer: String,
    /// PEM.
    pub root_cert_bundle: Option<PathBuf>,
    /// JSON Web Key Set.
    pub jwks: Option<PathBuf>,
    /// Public-key algorithms only.
    pub signing_algorithms: Vec<Algorithm>,
    /// The token server's path on the host that the client asked; `None`: `realm` says where it is.
    pub auto_redirect_path: Option<String>,
}

/// Algorithms by which a key that everybody may know is enough to verify.
const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

const AUTO_REDIRECT_PATH: &str = "/auth/token";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct RawAuth {
    #[serde(deserialize_with = "section")]
    htpasswd: RawHtpasswd,
    #[serde(deserialize_with = "section")]
    token: RawToken,
    silly: Option<Value>,
    anonymous: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawHtpasswd {
    realm: Option<String>,
    path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawToken {
    realm: Option<String>,
    service: Option<String>,
    issuer: Option<String>,
    rootcertbundle: Option<String>,
    jwks: Option<String>,
    #[serde(deserialize_with = "list")]
    signingalgorithms: Option<Vec<String>>,
    autoredirect: Option<bool>,
    autoredirectpath: Option<String>,
}

pub(super) fn check(raw: RawAuth, warnings: &mut Vec<Warning>) -> Result<AuthConfig, ConfigError> {
    if let Some(silly) = raw.silly {
        let reason = "it lets everybody in who sends any header: use auth.htpasswd or auth.token";
        return Err(value_error("auth.silly", &silly.to_string(), reason));
    }
    let anonymous_pull = match raw.anonymous.as_deref().unwrap_or("none") {
        "none" => false,
        "pull" => true,
        other => return Err(value_error("auth.anonymous", other, "none or pull is expected")),
    };
    let method = match (htpasswd(raw.htpasswd)?, token(raw.token)?) {
        (Some(_), Some(_)) => {
            return Err(value_error("auth", "htpasswd and token", "only one of the two may be set"));
        }
        (Some(method), None) | (None, Some(method)) => method,
        (None, None) => AuthMethod::Open,
    };
    if anonymous_pull && method == AuthMethod::Open {
        warnings.push(Warning(
            "config key auth.anonymous has no meaning without auth.htpasswd or auth.token: everybody may do everything"
                .to_owned(),
        ));
    }
    Ok(AuthConfig { method, anonymous_pull })
}

fn htpasswd(raw: RawHtpasswd) -> Result<Option<AuthMethod>, ConfigError> {
    let (realm, path) = (filled(raw.realm), filled(raw.path));
    if realm.is_none() && path.is_none() {
        return Ok(None);
    }
    Ok(Some(AuthMethod::Htpasswd {
        realm: required("auth.htpasswd.realm", realm)?,
        path: required("auth.htpasswd.path", path)?.into(),
    }))
}

fn token(raw: RawToken) -> Result<Option<AuthMethod>, ConfigError> {
    let (realm, service, issuer) = (filled(raw.realm), filled(raw.service), filled(raw.issuer));
    let (bundle, jwks) = (filled(raw.rootcertbundle), filled(raw.jwks));
    if [&realm, &service, &issuer, &bundle, &jwks].iter().all(|value| value.is_none()) {
        return Ok(None);
    }
    let realm = required("auth.token.realm", realm)?;
    let auto_redirect_path = raw
        .autoredirect
        .unwrap_or_default()
        .then(|| filled(raw.autoredirectpath).unwrap_or_else(|| AUTO_REDIRECT_PATH.to_owned()));
    if !(realm.starts_with("https://") || realm.starts_with("http://")) {
        return Err(value_error("auth.token.realm", &realm, "the URL of the token server is expected"));
    }
    if let Some(path) = auto_redirect_path.as_ref().filter(|path| !path.starts_with('/')) {
        return Err(value_error(
            "auth.token.autoredirectpath",
            path,
            "a path that starts with / is expected",
        ));
    }
    if bundle.is_none() && jwks.is_none() {
        let reason = "a file with the keys of the token server is expected, here or as auth.token.jwks";
        return Err(value_error("auth.token.rootcertbundle", "", reason));
    }
    Ok(Some(AuthMethod::Token(TokenConfig {
        realm,
        service: required("auth.token.service", service)?,
        issuer: required("auth.token.issuer", issuer)?,
        root_cert_bundle: bundle.map(PathBuf::from),
        jwks: jwks.map(PathBuf::from),
        signing_algorithms: algorithms(&raw.signingalgorithms.unwrap_or_default())?,
        auto_redirect_path,
    })))
}

/// The algorithms of these names; without any, all.
fn algorithms(names: &[String]) -> Result<Vec<Algorithm>, ConfigError> {
    if names.is_empty() {
        return Ok(ALGORITHMS.iter().map(|(_, algorithm)| *algorithm).collect());
    }
    let find = |(n, name): (usize, &String)| {
        let known = ALGORITHMS.iter().find(|(known, _)| known == name);
        known.map(|(_, algorithm)| *algorithm).ok_or_else(|| {
            let known: Vec<_> = ALGORITHMS.iter().map(|(known, _)| *known).collect();
            let reason = format!("one of {} is expected: no shared secrets", known.join(", "));
            value_error(&format!("auth.token.signingalgorithms[{n}]"), name, &reason)
        })
    };
    names.iter().enumerate().map(find).collect()
}

fn filled(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

fn required(key: &str, value: Option<String>) -> Result<String, ConfigError> {
    value.ok_or_else(|| value_error(key, "", "it must be set with the others of its section"))
}
