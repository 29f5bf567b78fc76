//! Who may do what: passwords of an htpasswd file, bearer tokens, anonymous pull. It knows requests only by what they
//! show and what they need; what is answered is the business of `http`.
//!
//! Nothing of a password or token leaves this module, not into an error, not into a log.

mod challenge;
mod credentials;
mod htpasswd;
mod passwords;
mod sessions;
mod token;

use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::{AuthConfig, AuthMethod, TokenConfig};
use crate::oci::{Access, Action, RepoName};
use credentials::Credentials;
use passwords::{Busy, Passwords};
use sessions::Sessions;
use token::{Grant, InvalidToken, Tokens};

/// Where our own tokens are to be had: see [`Auth::issue`].
pub const TOKEN_PATH: &str = "/auth/token";

/// Of an htpasswd file, a bundle, a key set.
const FILE_BYTES_MAX: u64 = 4 << 20;

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

/// A token of our own.
pub struct Issued {
    pub token: String,
    pub expires_in: Duration,
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
}

/// The policy of a registry. Cheap to clone.
#[derive(Clone)]
pub struct Auth(Arc<Inner>);

struct Inner {
    method: Method,
    anonymous_pull: bool,
    /// Of our own listener.
    scheme: &'static str,
    /// Of the paths that clients ask for.
    prefix: String,
}

enum Method {
    Open,
    Htpasswd {
        realm: String,
        passwords: Passwords,
        /// Where there is anonymous pull.
        sessions: Option<Sessions>,
    },
    Token {
        config: TokenConfig,
        tokens: Tokens,
    },
}

impl Auth {
    /// Reads the files that the config names. `scheme` is that of the listener, `http` or `https`; `prefix` stands before
    /// all paths that clients ask for.
    pub async fn open(config: AuthConfig, scheme: &'static str, prefix: String) -> Result<Self, AuthError> {
        let opened = tokio::task::spawn_blocking(move || Self::read(&config, scheme, prefix)).await;
        opened.unwrap_or(Err(AuthError::Stopped))
    }

    /// Everybody may do everything: for a door that only the daemon's own user can open.
    pub fn allow_all() -> Self {
        let (method, prefix) = (Method::Open, String::new());
        Self(Arc::new(Inner { method, anonymous_pull: false, scheme: "http", prefix }))
    }

    fn read(config: &AuthConfig, scheme: &'static str, prefix: String) -> Result<Self, AuthError> {
        let method = match &config.method {
            AuthMethod::Open => Method::Open,
            AuthMethod::Htpasswd { realm, path } => {
                let sessions = config.anonymous_pull.then(Sessions::new);
                Method::Htpasswd { realm: realm.clone(), passwords: Passwords::open(path)?, sessions }
            }
            AuthMethod::Token(config) => {
                Method::Token { config: config.clone(), tokens: Tokens::open(config)? }
            }
        };
        Ok(Self(Arc::new(Inner { method, anonymous_pull: config.anonymous_pull, scheme, prefix })))
    }

    /// Lets a request through, or says why not. Wrong credentials are refused also where none are needed, so that a typing
    /// error is noticed. So is the question whether this is a registry, if nothing is shown: from a 401 there, and only
    /// from that, Docker, podman and skopeo learn how to log in. May be dropped at any time.
    pub async fn authorize(&self, asked: Asked<'_>) -> Result<Rights, Refusal> {
        let rights = self.identify(asked).await?;
        let anonymous = rights.scope == Scope::Anonymous;
        if anonymous && *asked.access == Access::Registry && asked.authorization.is_none() {
            return Err(Refusal::Missing);
        }
        if rights.may(asked.access) {
            return Ok(rights);
        }
        Err(if anonymous { Refusal::Missing } else { Refusal::Scope(asked.access.clone()) })
    }

    /// As a token server for who shows these credentials, or none. `Ok(None)`: this is none, since its clients can do
    /// without.
    pub async fn issue(
        &self,
        authorization: Option<&[u8]>,
        address: Option<IpAddr>,
    ) -> Result<Option<Issued>, Refusal> {
        let Method::Htpasswd { sessions: Some(sessions), .. } = &self.0.method else { return Ok(None) };
        let asked = Asked { access: &Access::Registry, authorization, address };
        let token = match self.identify(asked).await?.scope {
            Scope::All => sessions.issue(),
            _ => sessions::ANONYMOUS.to_owned(),
        };
        Ok(Some(Issued { token, expires_in: sessions::TTL }))
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
            (Method::Htpasswd { sessions: Some(sessions), .. }, Credentials::Bearer(token)) => {
                match token.as_str() {
                    sessions::ANONYMOUS => Ok(rights(Scope::Anonymous)),
                    token if sessions.knows(token) => Ok(rights(Scope::All)),
                    _ => Err(Refusal::Token("it is unknown, or has expired")),
                }
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

    /// The value of `WWW-Authenticate` for a request that needs `access` and was refused. `host` and `forwarded_proto` are
    /// the headers `Host` and `X-Forwarded-Proto`, for token servers on this host. `None`: credentials change nothing.
    pub fn challenge(
        &self,
        access: &Access,
        refusal: &Refusal,
        host: Option<&str>,
        forwarded_proto: Option<&str>,
    ) -> Option<String> {
        let error = match refusal {
            Refusal::Token(_) | Refusal::Malformed => Some("invalid_token"),
            Refusal::Scope(_) => Some("insufficient_scope"),
            _ => None,
        };
        let here = |scheme, path| challenge::realm_here(scheme, host, forwarded_proto, path);
        match &self.0.method {
            Method::Open => None,
            Method::Htpasswd { realm, sessions, .. } => {
                let path = format!("{}{TOKEN_PATH}", self.0.prefix);
                let token_server = sessions.as_ref().and_then(|_| here(self.0.scheme, &path));
                Some(match token_server {
                    Some(url) => challenge::bearer(&url, realm, &access.to_string(), error),
                    None => challenge::basic(realm),
                })
            }
            Method::Token { config, .. } => {
                let redirected = config.auto_redirect_path.as_deref().and_then(|path| here("https", path));
                let realm = redirected.as_deref().unwrap_or(&config.realm);
                Some(challenge::bearer(realm, &config.service, &access.to_string(), error))
            }
        }
    }

    /// The challenge of our own token server.
    pub fn token_challenge(&self) -> Option<String> {
        match &self.0.method {
            Method::Htpasswd { realm, .. } => Some(challenge::basic(realm)),
            Method::Open | Method::Token { .. } => None,
        }
    }
}

/// Reads the file that a config key names.
fn read_file(key: &'static str, path: &Path) -> Result<Vec<u8>, AuthError> {
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    match read {
        Ok(size) if size as u64 > FILE_BYTES_MAX => {
            let reason = format!("it is larger than {FILE_BYTES_MAX} bytes");
            Err(AuthError::Content { key, path: path.to_owned(), reason })
        }
        Ok(_) => Ok(bytes),
        Err(source) => Err(AuthError::Read { key, path: path.to_owned(), source }),
    }
}

/// Gives `bytes` to every decoder of this module. For fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    credentials::fuzz(bytes);
    if let Ok(text) = str::from_utf8(bytes) {
        let _ = htpasswd::Table::parse(text);
        token::fuzz(text);
    }
}
