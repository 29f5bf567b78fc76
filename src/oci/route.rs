//! Every request of the registry API: method, path and query in, [`Route`] out (distribution specification, "Endpoints").
//!
//! Paths are read from the right: a repository may be called `team/blobs`, a reference has no slash.

use super::digest::{Algorithm, Digest};
use super::name::{NameError, Reference, RepoName, Tag};

/// Tags that one manifest may be given by the query; the specification asks for ten at least.
pub const TAGS_PER_PUT_MAX: usize = 100;

/// What a request asks for. `head`: headers only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Version,
    GetManifest {
        repo: RepoName,
        reference: Reference,
        head: bool,
    },
    /// `digest`: which one the query of a manifest that is put by tag asks for; `tags`: those that the query of one that
    /// is put by digest asks for, at most [`TAGS_PER_PUT_MAX`].
    PutManifest {
        repo: RepoName,
        reference: Reference,
        digest: Option<Digest>,
        tags: Vec<Tag>,
    },
    /// By tag: the tag alone goes; by digest: the manifest, and every tag that points to it.
    DeleteManifest {
        repo: RepoName,
        reference: Reference,
    },
    GetBlob {
        repo: RepoName,
        digest: Digest,
        head: bool,
    },
    DeleteBlob {
        repo: RepoName,
        digest: Digest,
    },
    StartUpload {
        repo: RepoName,
        start: StartUpload,
    },
    UploadStatus {
        repo: RepoName,
        id: String,
    },
    AppendUpload {
        repo: RepoName,
        id: String,
    },
    FinishUpload {
        repo: RepoName,
        id: String,
        digest: Digest,
    },
    CancelUpload {
        repo: RepoName,
        id: String,
    },
    ListTags {
        repo: RepoName,
        page: PageRequest,
    },
    /// Who refers to `subject`, of one type of artifact if that is given.
    ListReferrers {
        repo: RepoName,
        subject: Digest,
        artifact_type: Option<String>,
        page: PageRequest,
    },
    Catalog {
        page: PageRequest,
    },
}

/// What part of a list is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// Only what sorts behind this.
    pub last: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
}

/// What opening an upload asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartUpload {
    /// `algorithm`: of the digest that the client is going to close it with.
    Empty {
        algorithm: Algorithm,
    },
    /// The blob is the body of this request.
    Whole(Digest),
    Mount {
        digest: Digest,
        from: Option<RepoName>,
    },
}

/// Why a request is no route.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RouteError {
    #[error("no such endpoint")]
    NotFound,
    #[error("the method is not supported here: {0} are")]
    Method(&'static str),
    #[error(transparent)]
    Name(NameError),
    #[error(transparent)]
    Reference(NameError),
    #[error("the query needs a digest")]
    DigestMissing,
    #[error("a manifest takes up to {TAGS_PER_PUT_MAX} tags in one request, not {0}")]
    TooManyTags(usize),
    #[error("n must be a number from 0 to 2147483647, not {0:?}")]
    Number(String),
}

impl Route {
    /// Reads a request. `query` is what follows the question mark, still encoded.
    pub fn parse(method: &str, path: &str, query: Option<&str>) -> Result<Self, RouteError> {
        if path == "/v2" || path == "/v2/" {
            return if matches!(method, "GET" | "HEAD") {
                Ok(Self::Version)
            } else {
                Err(RouteError::Method("GET, HEAD"))
            };
        }
        let path = path.strip_prefix("/v2/").ok_or(RouteError::NotFound)?;
        if path == "_catalog" {
            return Ok(Self::Catalog { page: list(method, &Parameters::parse(query))? });
        }
        if let Some(name) =
            path.strip_suffix("/blobs/uploads").or_else(|| path.strip_suffix("/blobs/uploads/"))
        {
            return Self::start_upload(method, repo(name)?, query);
        }
        if let Some(name) = path.strip_suffix("/tags/list") {
            return Self::list_tags(method, repo(name)?, query);
        }
        let (rest, last) = path.rsplit_once('/').ok_or(RouteError::NotFound)?;
        if let Some(name) = rest.strip_suffix("/blobs/uploads") {
            return Self::upload(method, repo(name)?, last, query);
        }
        if let Some(name) = rest.strip_suffix("/manifests") {
            return Self::manifest(method, repo(name)?, last, query);
        }
        if let Some(name) = rest.strip_suffix("/blobs") {
            return Self::blob(method, repo(name)?, last);
        }
        if let Some(name) = rest.strip_suffix("/referrers") {
            return Self::referrers(method, repo(name)?, last, query);
        }
        Err(RouteError::NotFound)
    }

    fn start_upload(method: &str, repo: RepoName, query: Option<&str>) -> Result<Self, RouteError> {
        if method != "POST" {
            return Err(RouteError::Method("POST"));
        }
        let parameters = Parameters::parse(query);
        let start = if let Some(digest) = parameters.get("mount") {
            // What cannot be mounted from is as good as no source: the client then uploads.
            let from = parameters.get("from").and_then(|from| from.parse().ok());
            StartUpload::Mount { digest: parse_digest(digest)?, from }
        } else if let Some(digest) = parameters.get("digest") {
            StartUpload::Whole(parse_digest(digest)?)
        } else {
            let algorithm = parameters.get("digest-algorithm").map(str::parse).transpose();
            let algorithm = algorithm.map_err(|error| RouteError::Reference(NameError::Digest(error)))?;
            StartUpload::Empty { algorithm: algorithm.unwrap_or(Algorithm::Sha256) }
        };
        Ok(Self::StartUpload { repo, start })
    }

    fn upload(method: &str, repo: RepoName, id: &str, query: Option<&str>) -> Result<Self, RouteError> {
        let id = id.to_owned();
        match method {
            "GET" | "HEAD" => Ok(Self::UploadStatus { repo, id }),
            "PATCH" => Ok(Self::AppendUpload { repo, id }),
            "PUT" => {
                let parameters = Parameters::parse(query);
                let digest = parse_digest(parameters.get("digest").ok_or(RouteError::DigestMissing)?)?;
                Ok(Self::FinishUpload { repo, id, digest })
            }
            "DELETE" => Ok(Self::CancelUpload { repo, id }),
            _ => Err(RouteError::Method("GET, HEAD, PATCH, PUT, DELETE")),
        }
    }

    fn manifest(method: &str, repo: RepoName, last: &str, query: Option<&str>) -> Result<Self, RouteError> {
        let reference = |last: &str| last.parse::<Reference>().map_err(RouteError::Reference);
        match method {
            "GET" | "HEAD" => {
                Ok(Self::GetManifest { repo, reference: reference(last)?, head: method == "HEAD" })
            }
            "PUT" => {
                let parameters = Parameters::parse(query);
                let count = parameters.all("tag").count();
                if count > TAGS_PER_PUT_MAX {
                    return Err(RouteError::TooManyTags(count));
                }
                let tags = parameters.all("tag").map(|tag| tag.parse().map_err(RouteError::Reference));
                Ok(Self::PutManifest {
                    repo,
                    reference: reference(last)?,
                    digest: parameters.get("digest").map(parse_digest).transpose()?,
                    tags: tags.collect::<Result<_, _>>()?,
                })
            }
            "DELETE" => Ok(Self::DeleteManifest { repo, reference: reference(last)? }),
            _ => Err(RouteError::Method("GET, HEAD, PUT, DELETE")),
        }
    }

    fn blob(method: &str, repo: RepoName, last: &str) -> Result<Self, RouteError> {
        match method {
            "GET" | "HEAD" => Ok(Self::GetBlob { repo, digest: parse_digest(last)?, head: method == "HEAD" }),
            "DELETE" => Ok(Self::DeleteBlob { repo, digest: parse_digest(last)? }),
            _ => Err(RouteError::Method("GET, HEAD, DELETE")),
        }
    }

    fn referrers(method: &str, repo: RepoName, last: &str, query: Option<&str>) -> Result<Self, RouteError> {
        let parameters = Parameters::parse(query);
        Ok(Self::ListReferrers {
            repo,
            page: list(method, &parameters)?,
            subject: parse_digest(last)?,
            artifact_type: parameters.get("artifactType").map(str::to_owned),
        })
    }

    fn list_tags(method: &str, repo: RepoName, query: Option<&str>) -> Result<Self, RouteError> {
        Ok(Self::ListTags { repo, page: list(method, &Parameters::parse(query))? })
    }
}

fn list(method: &str, parameters: &Parameters) -> Result<PageRequest, RouteError> {
    if !matches!(method, "GET" | "HEAD") {
        return Err(RouteError::Method("GET, HEAD"));
    }
    let limit = parameters.get("n").map(|n| match n.parse::<i32>() {
        Ok(n) if n >= 0 => Ok(usize::try_from(n).unwrap_or_default()),
        _ => Err(RouteError::Number(n.to_owned())),
    });
    Ok(PageRequest { last: parameters.get("last").map(str::to_owned), limit: limit.transpose()? })
}

fn repo(name: &str) -> Result<RepoName, RouteError> {
    name.parse().map_err(RouteError::Name)
}

fn parse_digest(text: &str) -> Result<Digest, RouteError> {
    text.parse().map_err(|error| RouteError::Reference(NameError::Digest(error)))
}

/// The parameters of a query, decoded.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn get<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).next()
    }
}

/// Reads whatever bytes as `METHOD PATH?QUERY`: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Some((method, target)) = str::from_utf8(bytes).ok().and_then(|text| text.split_once(' ')) else {
        return;
    };
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    if let Ok(route) = Route::parse(method, path, query) {
        let _ = (route.access(), route.mount_if(|_| false));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(name: &str) -> RepoName {
        name.parse().unwrap()
    }

    #[test]
    fn names_are_split_from_the_right() {
        let tag = Reference::Tag("v1".parse().unwrap());
        for repo in
            ["app", "team/blobs", "team/manifests/app", "a/b/c/d/e/f/g/h/i", "blobs/uploads", "tags/list"]
        {
            let route = Route::parse("GET", &format!("/v2/{repo}/manifests/v1"), None);
            assert_eq!(
                route,
                Ok(Route::GetManifest { repo: name(repo), reference: tag.clone(), head: false }),
                "{repo}"
            );
        }
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table with a row for each endpoint")]
    fn each_endpoint_is_known() {
        let digest = Digest::sha256(b"x");
        let (repo, id) = (name("app"), "5f7e".to_owned());
        let start = |start| Ok(Route::StartUpload { repo: repo.clone(), start });
        let page = |last: Option<&str>, limit| PageRequest { last: last.map(str::to_owned), limit };
        let list = |last, limit| Ok(Route::ListTags { repo: repo.clone(), page: page(last, limit) });
        let empty = |algorithm| start(StartUpload::Empty { algorithm });
        let referrers = |artifact_type: Option<&str>, page| {
            let artifact_type = artifact_type.map(str::to_owned);
            Ok(Route::ListReferrers { repo: repo.clone(), subject: digest, artifact_type, page })
        };
        let cases = [
            ("GET", "/v2/".to_owned(), Ok(Route::Version)),
            (
                "HEAD",
                format!("/v2/app/blobs/{digest}"),
                Ok(Route::GetBlob { repo: repo.clone(), digest, head: true }),
            ),
            ("POST", "/v2/app/blobs/uploads/".to_owned(), empty(Algorithm::Sha256)),
            ("POST", "/v2/app/blobs/uploads".to_owned(), empty(Algorithm::Sha256)),
            ("POST", "/v2/app/blobs/uploads/?digest-algorithm=sha512".to_owned(), empty(Algorithm::Sha512)),
            ("POST", format!("/v2/app/blobs/uploads/?digest={digest}"), start(StartUpload::Whole(digest))),
            (
                "POST",
                format!("/v2/app/blobs/uploads/?from=library%2Fmulti&mount=sha256%3A{}", digest.hex()),
                start(StartUpload::Mount { digest, from: Some(name("library/multi")) }),
            ),
            (
                "POST",
                format!("/v2/app/blobs/uploads/?mount={digest}"),
                start(StartUpload::Mount { digest, from: None }),
            ),
            (
                "GET",
                "/v2/app/blobs/uploads/5f7e".to_owned(),
                Ok(Route::UploadStatus { repo: repo.clone(), id: id.clone() }),
            ),
            (
                "PATCH",
                "/v2/app/blobs/uploads/5f7e".to_owned(),
                Ok(Route::AppendUpload { repo: repo.clone(), id: id.clone() }),
            ),
            (
                "PUT",
                format!("/v2/app/blobs/uploads/5f7e?_state=x&digest={digest}"),
                Ok(Route::FinishUpload { repo: repo.clone(), id: id.clone(), digest }),
            ),
            (
                "DELETE",
                "/v2/app/blobs/uploads/5f7e".to_owned(),
                Ok(Route::CancelUpload { repo: repo.clone(), id }),
            ),
            ("GET", "/v2/app/tags/list?n=5&last=b".to_owned(), list(Some("b"), Some(5))),
            ("GET", "/v2/app/tags/list".to_owned(), list(None, None)),
            (
                "GET",
                "/v2/_catalog?n=7&last=a/b".to_owned(),
                Ok(Route::Catalog { page: page(Some("a/b"), Some(7)) }),
            ),
            ("GET", format!("/v2/app/referrers/{digest}"), referrers(None, page(None, None))),
            (
                "GET",
                format!("/v2/app/referrers/{digest}?artifactType=a%2Fb%2Bc&n=2"),
                referrers(Some("a/b+c"), page(None, Some(2))),
            ),
            (
                "DELETE",
                "/v2/app/manifests/v1".to_owned(),
                Ok(Route::DeleteManifest {
                    repo: repo.clone(),
                    reference: Reference::Tag("v1".parse().unwrap()),
                }),
            ),
            (
                "DELETE",
                format!("/v2/app/blobs/{digest}"),
                Ok(Route::DeleteBlob { repo: repo.clone(), digest }),
            ),
        ];
        for (method, target, wanted) in cases {
            let (path, query) =
                target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
            assert_eq!(Route::parse(method, path, query), wanted, "{method} {target}");
        }
    }

    #[test]
    fn a_manifest_put_by_digest_may_be_tagged() {
        let digest = Digest::sha256(b"x");
        let route = Route::parse("PUT", &format!("/v2/app/manifests/{digest}"), Some("tag=a&tag=b"));
        let tags = vec!["a".parse().unwrap(), "b".parse().unwrap()];
        assert_eq!(
            route,
            Ok(Route::PutManifest {
                repo: name("app"),
                reference: Reference::Digest(digest),
                digest: None,
                tags
            })
        );
        let many = "tag=a&".repeat(TAGS_PER_PUT_MAX + 1);
        let route = Route::parse("PUT", &format!("/v2/app/manifests/{digest}"), Some(&many));
        assert_eq!(route, Err(RouteError::TooManyTags(TAGS_PER_PUT_MAX + 1)));
    }

    #[test]
    fn a_manifest_put_by_tag_may_name_its_digest() {
        let digest = Digest::sha256(b"x");
        let put = |query: &str| Route::parse("PUT", "/v2/app/manifests/v1", Some(query));
        let reference = Reference::Tag("v1".parse().unwrap());
        assert_eq!(
            put(&format!("digest={digest}")),
            Ok(Route::PutManifest { repo: name("app"), reference, digest: Some(digest), tags: Vec::new() })
        );
        assert!(matches!(put("digest=md5:00"), Err(RouteError::Reference(NameError::Digest(_)))));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(Route::parse("GET", "/", None), Err(RouteError::NotFound));
        assert_eq!(Route::parse("GET", "/v2/app", None), Err(RouteError::NotFound));
        assert_eq!(Route::parse("POST", "/v2/", None), Err(RouteError::Method("GET, HEAD")));
        assert!(matches!(Route::parse("GET", "/v2/App/manifests/v1", None), Err(RouteError::Name(_))));
        assert!(matches!(Route::parse("GET", "/v2/../manifests/v1", None), Err(RouteError::Name(_))));
        assert!(matches!(Route::parse("GET", "/v2/app/manifests/.v1", None), Err(RouteError::Reference(_))));
        assert!(matches!(
            Route::parse("GET", "/v2/app/blobs/sha256:zz", None),
            Err(RouteError::Reference(_))
        ));
        assert_eq!(Route::parse("PUT", "/v2/app/blobs/uploads/x", None), Err(RouteError::DigestMissing));
        assert!(matches!(Route::parse("GET", "/v2/app/tags/list", Some("n=-1")), Err(RouteError::Number(_))));
        assert!(matches!(Route::parse("PATCH", "/v2/app/manifests/v1", None), Err(RouteError::Method(_))));
    }

    proptest! {
        #[test]
        fn any_request_is_answered(method in "[A-Z]{1,7}", path in "/v2/\\PC{0,60}", query in proptest::option::of("\\PC{0,30}")) {
            if let Ok(Route::GetBlob { digest, .. }) = Route::parse(&method, &path, query.as_deref()) {
                prop_assert!(path.ends_with(&digest.to_string()));
            }
        }
    }
}
