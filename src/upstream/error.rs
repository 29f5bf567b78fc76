//! Why a registry gave no good answer.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::Said;
use crate::oci::{Digest, Host};

/// Each names the registry. None of them means "not there".
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("{host} wants other credentials than it was given ({by}{said})")]
    Unauthorized { host: Host, by: Refuser, said: Said },
    #[error("{host} does not allow it: our credentials have no right to it{said}")]
    Forbidden { host: Host, said: Said },
    #[error("{host} has had too many requests from us; ask again in {} s{said}", .retry_after.as_secs())]
    RateLimited { host: Host, retry_after: Duration, said: Said },
    /// `retry_after`: for how long it says that it will do no better.
    #[error("{host} answered {status}")]
    Status { host: Host, status: u16, retry_after: Option<Duration> },
    #[error("{host} cannot be reached ({reason})")]
    Unreachable { host: Host, reason: String },
    #[error("{host} gave no answer within {} s", .waited.as_secs())]
    Timeout { host: Host, waited: Duration },
    #[error("{host} sent nothing for {} s", .waited.as_secs())]
    Stalled { host: Host, waited: Duration },
    #[error("{host} broke off after {received} bytes ({reason})")]
    Truncated { host: Host, received: u64, reason: String },
    #[error("{host} sent {actual} for {expected}")]
    Mismatch { host: Host, expected: Digest, actual: Digest },
    #[error("{host} sent {what} of more than {bytes_max} bytes")]
    TooLarge { host: Host, what: &'static str, bytes_max: usize },
    /// A registry that is known by `"*"` alone leads to what only we can reach.
    #[error("{host} is not asked, since {reason}; if it is to be, name it in mirror.registries")]
    NotPublic { host: Host, reason: String },
    #[error("{host} sent what is none of ours to follow: {reason}")]
    Redirect { host: Host, reason: String },
    #[error("{host} sent {what} that cannot be read: {reason}")]
    Malformed { host: Host, what: &'static str, reason: String },
    /// It failed time and again, or asked for it: it is left in peace for a while.
    #[error("{host} is not asked for another {} s: {last}", .wait.as_secs())]
    Resting { host: Host, wait: Duration, last: String },
    #[error("the credentials for {host} cannot be had: {reason}")]
    Credentials { host: Host, reason: String },
    /// `registry` is a key of `mirror.registries`: a host, or `*`.
    #[error("config key mirror.registries.{registry}.{key}: {reason}")]
    Config { registry: String, key: &'static str, reason: String },
    #[error("config key mirror.registries.{registry}.{key}: cannot read {}: {reason}", .path.display())]
    File { registry: String, key: &'static str, path: PathBuf, reason: String },
}

/// Who refused credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuser {
    Registry,
    /// With this status.
    TokenServer(u16),
}

impl fmt::Display for Refuser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry => f.write_str("it answered 401"),
            Self::TokenServer(status) => write!(f, "its token server answered {status}"),
        }
    }
}

impl UpstreamError {
    /// Whether it took all the time that it was given.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Stalled { .. })
    }

    /// Whether the registry was not even asked, since it failed so often.
    pub fn is_rest(&self) -> bool {
        matches!(self, Self::Resting { .. })
    }

    /// Whether our credentials are the cause, or the lack of them: others may have better ones.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Unauthorized { .. } | Self::Forbidden { .. } | Self::Credentials { .. })
    }

    /// The rest that the registry asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the same request may go better in a moment, or at another endpoint.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 500..),
            Self::RateLimited { .. }
            | Self::Unreachable { .. }
            | Self::Timeout { .. }
            | Self::Stalled { .. }
            | Self::Truncated { .. }
            | Self::Resting { .. } => true,
            Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::Mismatch { .. }
            | Self::TooLarge { .. }
            | Self::NotPublic { .. }
            | Self::Redirect { .. }
            | Self::Malformed { .. }
            | Self::Credentials { .. }
            | Self::Config { .. }
            | Self::File { .. } => false,
        }
    }
}
