//! Bearer tokens of distribution's "Token Authentication Implementation": JSON Web Tokens of one issuer, for one service,
//! that list what they grant.
//!
//! Whatever is wrong with a token, its holder is told in a few fixed words: nothing of the token comes back or into a log.

mod keys;
#[cfg(test)]
mod tests;

use std::path::Path;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::Value;

use super::{AuthError, read_file};
use crate::config::TokenConfig;
use crate::oci::Access;
use keys::TrustedKeys;

const TOKEN_BYTES_MAX: usize = 64 * 1024;
/// How far the clocks of the token server and ours may be apart, as in distribution.
const LEEWAY_S: u64 = 60;

/// Verifies the tokens of one issuer.
pub(super) struct Tokens {
    service: String,
    issuer: String,
    algorithms: Vec<Algorithm>,
    keys: TrustedKeys,
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidToken(pub(super) &'static str);

/// An entry of the claim `access`: actions on a resource.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Grant {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    actions: Vec<String>,
}

#[derive(Deserialize)]
struct Claims {
    // The library checks the others; of these two its checks are wider than ours.
    iss: Option<String>,
    iat: Option<f64>,
    #[serde(default)]
    access: Value,
}

impl Tokens {
    /// Reads the files with the keys. Blocks.
    pub(super) fn open(config: &TokenConfig) -> Result<Self, AuthError> {
        let mut keys = TrustedKeys::default();
        if let Some(path) = &config.root_cert_bundle {
            read("auth.token.rootcertbundle", path, |pem| keys.add_bundle(pem))?;
        }
        if let Some(path) = &config.jwks {
            read("auth.token.jwks", path, |json| keys.add_jwks(json))?;
        }
        if keys.is_empty() {
            return Err(AuthError::NoKeys);
        }
        Ok(Self {
            service: config.service.clone(),
            issuer: config.issuer.clone(),
            algorithms: config.signing_algorithms.clone(),
            keys,
        })
    }

    /// What a token grants. `now` is in seconds since 1970.
    pub(super) fn verify(&self, token: &str, now: u64) -> Result<Vec<Grant>, InvalidToken> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(InvalidToken("it is too long"));
        }
        let header = decode_header(token).map_err(|_| InvalidToken("it is malformed"))?;
        if header.crit.is_some() {
            return Err(InvalidToken("it demands extensions that are not known here"));
        }
        let key = self.keys.find(&header, now).map_err(InvalidToken)?;
        // What the token says of its algorithm counts only if both the config and the key say so too.
        if !self.algorithms.contains(&header.alg) || !key.algorithms.contains(&header.alg) {
            return Err(InvalidToken("its algorithm is not allowed"));
        }
        let mut validation = Validation::new(header.alg);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&[&self.service]);
        let claims = decode::<Claims>(token, &key.key, &validation).map_err(|error| reason(error.kind()))?;
        let claims = claims.claims;
        if claims.iss.as_deref() != Some(&self.issuer) {
            return Err(InvalidToken("its issuer is another"));
        }
        if claims.iat.is_some_and(|issued_at| issued_at > (now + LEEWAY_S) as f64) {
            return Err(InvalidToken("it is of the future"));
        }
        let entries = claims.access.as_array().into_iter().flatten();
        // What is not understood grants nothing.
        Ok(entries.filter_map(|entry| Grant::deserialize(entry).ok()).collect())
    }
}

fn reason(kind: &ErrorKind) -> InvalidToken {
    InvalidToken(match kind {
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "it is of the future",
        ErrorKind::InvalidIssuer => "its issuer is another",
        ErrorKind::InvalidAudience => "it is for another service",
        ErrorKind::MissingRequiredClaim(_) => "it lacks one of exp, iss and aud",
        _ => "it is malformed",
    })
}

/// Whether the grants together have every action that is needed.
pub(super) fn cover(grants: &[Grant], access: &Access) -> bool {
    let granted = |kind: &str, name: &str, word: &str| {
        grants.iter().any(|grant| {
            grant.kind == kind
                && grant.name == name
                && grant.actions.iter().any(|action| action == word || action == "*")
        })
    };
    match access {
        Access::Registry => true,
        Access::Catalog => granted("registry", "catalog", "*"),
        Access::Repository { name, action } => {
            action.words().iter().all(|word| granted("repository", name.as_str(), word))
        }
    }
}

fn read<T>(
    key: &'static str,
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, String>,
) -> Result<T, AuthError> {
    let bytes = read_file(key, path)?;
    parse(&bytes).map_err(|reason| AuthError::Content { key, path: path.to_owned(), reason })
}

/// Looks at whatever text as a token: for fuzzing.
pub(super) fn fuzz(text: &str) {
    if let Ok(header) = decode_header(text) {
        assert!(TrustedKeys::default().find(&header, 0).is_err(), "nobody is trusted");
    }
    let _ = serde_json::from_str::<Grant>(text);
}
