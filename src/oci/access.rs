//! What a request needs to be allowed: an action on a resource, in the words of the token specification ("Token scope
//! documentation" of distribution). Routing and policy share it.

use std::fmt;

use super::name::RepoName;
use super::route::{Route, StartUpload};

/// What is done to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pull,
    Push,
    Delete,
}

impl Action {
    /// The actions that a token must list. Who pushes also reads: every client looks first what is there.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Self::Pull => &["pull"],
            Self::Push => &["pull", "push"],
            Self::Delete => &["delete"],
        }
    }
}

/// What a request needs. Displayed it is the scope of a challenge: `repository:library/app:pull,push`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing but good credentials, if there must be any: the question whether this is a registry.
    Registry,
    Repository {
        name: RepoName,
        action: Action,
    },
    /// The names of all repositories.
    Catalog,
}

impl Access {
    /// Whether nothing is changed.
    pub fn is_read(&self) -> bool {
        match self {
            Self::Registry | Self::Catalog => true,
            Self::Repository { action, .. } => *action == Action::Pull,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry => Ok(()),
            Self::Catalog => f.write_str("registry:catalog:*"),
            Self::Repository { name, action } => write!(f, "repository:{name}:{}", action.words().join(",")),
        }
    }
}

impl Route {
    /// What must be allowed before this may be answered. What belongs to an upload is a push, its status and its end too.
    pub fn access(&self) -> Access {
        let (name, action) = match self {
            Self::Version => return Access::Registry,
            Self::Catalog { .. } => return Access::Catalog,
            Self::GetManifest { repo, .. }
            | Self::GetBlob { repo, .. }
            | Self::ListTags { repo, .. }
            | Self::ListReferrers { repo, .. } => (repo, Action::Pull),
            Self::DeleteManifest { repo, .. } | Self::DeleteBlob { repo, .. } => (repo, Action::Delete),
            Self::PutManifest { repo, .. }
            | Self::StartUpload { repo, .. }
            | Self::UploadStatus { repo, .. }
            | Self::AppendUpload { repo, .. }
            | Self::FinishUpload { repo, .. }
            | Self::CancelUpload { repo, .. } => (repo, Action::Push),
        };
        Access::Repository { name: name.clone(), action }
    }

    /// Takes a mount back to an ordinary upload unless its source may be read: what cannot be pulled cannot be mounted
    /// either. `may_pull` is asked for the source, or `None` where any repository would do.
    #[must_use]
    pub fn mount_if(self, may_pull: impl FnOnce(Option<&RepoName>) -> bool) -> Self {
        match self {
            Self::StartUpload { repo, start: StartUpload::Mount { from, digest } }
                if !may_pull(from.as_ref()) =>
            {
                Self::StartUpload { repo, start: StartUpload::Empty { algorithm: digest.algorithm() } }
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn scope(method: &str, path: &str) -> String {
        Route::parse(
            method,
            path,
            Some("digest=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        )
        .unwrap()
        .access()
        .to_string()
    }

    #[test]
    fn each_request_needs_what_the_token_specification_says() {
        assert_eq!(scope("GET", "/v2/"), "");
        assert_eq!(scope("HEAD", "/v2/library/app/manifests/v1"), "repository:library/app:pull");
        assert_eq!(scope("GET", "/v2/library/app/tags/list"), "repository:library/app:pull");
        assert_eq!(scope("GET", &format!("/v2/app/blobs/{}", Digest::sha256(b""))), "repository:app:pull");
        for (method, path) in [
            ("PUT", "/v2/app/manifests/v1"),
            ("POST", "/v2/app/blobs/uploads/"),
            ("GET", "/v2/app/blobs/uploads/5f7e"),
            ("PATCH", "/v2/app/blobs/uploads/5f7e"),
            ("PUT", "/v2/app/blobs/uploads/5f7e"),
            ("DELETE", "/v2/app/blobs/uploads/5f7e"),
        ] {
            assert_eq!(scope(method, path), "repository:app:pull,push", "{method} {path}");
        }
    }

    #[test]
    fn a_mount_whose_source_may_not_be_pulled_is_an_upload() {
        let digest = Digest::sha256(b"x");
        for from in [None, Some("secret".parse().unwrap())] {
            let mount = Route::StartUpload {
                repo: "app".parse().unwrap(),
                start: StartUpload::Mount { digest, from: from.clone() },
            };
            let upload = Route::StartUpload {
                repo: "app".parse().unwrap(),
                start: StartUpload::Empty { algorithm: digest.algorithm() },
            };
            let asked = |repo: Option<&RepoName>| assert_eq!(repo, from.as_ref());
            assert_eq!(
                mount.clone().mount_if(|repo| {
                    asked(repo);
                    true
                }),
                mount
            );
            assert_eq!(
                mount.mount_if(|repo| {
                    asked(repo);
                    false
                }),
                upload
            );
        }
    }
}
