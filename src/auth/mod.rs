//! Who may do what: passwords of an htpasswd file, bearer tokens, anonymous pull. It knows requests only by what they
//! show and what they need; what is answered is the business of `http`.
//!
//! Nothing of a password or token leaves this module, not into an error, not into a log.

mod challenge;
mod credentials;
mod htpasswd;
mod passwords;
mod token;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{AuthConfig, AuthMethod, TokenConfig};
use crate::oci::{Access, Action, RepoName};
use credentials::Credentials;
use passwords::{Busy, Passwords};
use token::{Grant, InvalidToken, Tokens};

/// Why credentials cannot be checked at all: mended in the config or the files it names.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("config key {key}: cannot read {}", .path.display())]
    Read {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("config key {key}: {}: {reason}", .path.display())]
    Content { key: &'static str, path: PathBuf, reason: String },
    #[error("the daemon stopped before it had read the files of auth")]
    Stopped,
    #[error("config key auth.token: neither rootcertbundle nor jwks has a key that may sign tokens")]
    NoKeys,
}

/// Why a request is refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("credentials are needed: log in")]
    Missing,
    #[error("user or password is wrong")]
    Wrong,
    #[error("the authorization header is neither Basic nor Bearer")]
    Malformed,
    #[error("the token is not valid: {0}")]
    Token(&'static str),
    #[error("the token does not grant {0}")]
    Scope(Access),
    #[error("too many log-ins are waiting: try again later")]
    Busy,
}

/// What a request shows of itself, and what it needs.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub access: &'a Access,
    /// The header `Authorization`.
    pub authorization: Option<&'a [u8]>,
    /// The client's, or that of the proxy before us.
    pub address: Option<IpAddr>,
}

/// What a caller may do, as far as was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    scope: Scope,
    /// Whether everybody may read.
    reads_all: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    All,
    Anonymous,
    Granted(Vec<Grant>),
}

impl Rights {
    pub fn may(&self, access: &Access) -> bool {
        let granted = match &self.scope {
            Scope::All => true,
            Scope::Anonymous => false,
            Scope::Granted(grants) => token::cover(grants, access),
        };
        granted || (self.reads_all && access.is_read())
    }

    /// Whether `repo` may be pulled; without one, whether any may.
    pub fn may_pull(&self, repo: Option<&RepoName>) -> bool {
        match repo {
            Some(name) => self.may(&Access::Repository { name: name.clone(), action: Action::Pull }),
            None => self.reads_all || self.scope == Scope::All,
        }
    }

    /// Whether credentials would allow more.
    pub fn is_anonymous(&self) -> bool {
        self.scope == Scope::Anonymous
    }
}

/// The policy of a registry. Cheap to clone.
#[derive(Clone)]
pub struct Auth(Arc<Inner>);

struct Inner {
    method: Method,
    anonymous_pull: bool,
}

enum Method {
    Open,
    Htpasswd { realm: String, passwords: Passwords },
    Token { config: TokenConfig, tokens: Tokens },
}

impl Auth {
    /// Reads the files that the config names.
    pub async fn open(config: AuthConfig) -> Result<Self, AuthError> {
        let opened = tokio::task::spawn_blocking(move || Self::read(&config)).await;
        opened.unwrap_or(Err(AuthError::Stopped))
    }

    fn read(config: &AuthConfig) -> Result<Self, AuthError> {
        let method = match &config.method {
            AuthMethod::Open => Method::Open,
            AuthMethod::Htpasswd { realm, path } => {
                Method::Htpasswd { realm: realm.clone(), passwords: Passwords::open(path)? }
            }
            AuthMethod::Token(config) => {
                Method::Token { config: config.clone(), tokens: Tokens::open(config)? }
            }
        };
        Ok(Self(Arc::new(Inner { method, anonymous_pull: config.anonymous_pull })))
    }

    /// Lets a request through, or says why not. Wrong credentials are refused also where none are needed, so that a typing
    /// error is noticed. May be dropped at any time.
    pub async fn authorize(&self, asked: Asked<'_>) -> Result<Rights, Refusal> {
        let rights = self.identify(asked).await?;
        if rights.may(asked.access) {
            return Ok(rights);
        }
        Err(match rights.scope {
            Scope::Anonymous => Refusal::Missing,
            _ => Refusal::Scope(asked.access.clone()),
        })
    }

    async fn identify(&self, asked: Asked<'_>) -> Result<Rights, Refusal> {
        let rights = |scope| Rights { scope, reads_all: self.0.anonymous_pull };
        if matches!(self.0.method, Method::Open) {
            return Ok(rights(Scope::All));
        }
        let shown = asked.authorization.map(Credentials::parse).transpose();
        let Some(credentials) = shown.map_err(|_| Refusal::Malformed)?.flatten() else {
            return if self.0.anonymous_pull { Ok(rights(Scope::Anonymous)) } else { Err(Refusal::Missing) };
        };
        match (&self.0.method, credentials) {
            (Method::Htpasswd { passwords, .. }, Credentials::Basic { user, password }) => {
                let verified = passwords.verify(&user, password, asked.address).await;
                if verified.map_err(|Busy| Refusal::Busy)? {
                    return Ok(rights(Scope::All));
                }
                tracing::info!(user, address = ?asked.address, "log-in refused");
                Err(Refusal::Wrong)
            }
            (Method::Token { tokens, .. }, Credentials::Bearer(token)) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let grants = tokens.verify(&token, now).map_err(|InvalidToken(reason)| {
                    tracing::info!(reason, address = ?asked.address, "token refused");
                    Refusal::Token(reason)
                })?;
                Ok(rights(Scope::Granted(grants)))
            }
            // Credentials of the other kind are none here.
            _ => Err(Refusal::Missing),
        }
    }

    /// The value of `WWW-Authenticate` for a request that needs `access` and was refused, or could be allowed more.
    /// `host` and `forwarded_proto` are the headers `Host` and `X-Forwarded-Proto`, for `autoredirect`. `None`: there is
    /// nothing that credentials would change.
    pub fn challenge(
        &self,
        access: &Access,
        refusal: Option<&Refusal>,
        host: Option<&str>,
        forwarded_proto: Option<&str>,
    ) -> Option<String> {
        match &self.0.method {
            Method::Open => None,
            Method::Htpasswd { realm, .. } => Some(challenge::basic(realm)),
            Method::Token { config, .. } => {
                let error = match refusal {
                    Some(Refusal::Token(_) | Refusal::Malformed) => Some("invalid_token"),
                    Some(Refusal::Scope(_)) => Some("insufficient_scope"),
                    _ => None,
                };
                let redirected = config
                    .auto_redirect_path
                    .as_deref()
                    .and_then(|path| challenge::redirected_realm(host, forwarded_proto, path));
                let realm = redirected.as_deref().unwrap_or(&config.realm);
                Some(challenge::bearer(realm, &config.service, &access.to_string(), error))
            }
        }
    }
}
