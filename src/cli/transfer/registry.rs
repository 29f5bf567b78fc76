//! A client of the registry API of the running daemon, over its Unix socket. Knows requests and answers; what an image is
//! made of, it is told.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LINK, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::archive::Member;
use super::refusal::{Refusal, refused};
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Digest, Reference, RepoName, Tag};
use crate::tasks::Tasks;

/// How long an answer, or the next bytes of one, may take. Blobs may have to come from peers first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);
/// Bytes of a blob in one request; each has the whole time-out.
const CHUNK_BYTES_MAX: u64 = 64 << 20;
/// The longest error and the longest page of names, in bytes.
pub(super) const JSON_BYTES_MAX: usize = 16 << 20;
/// Names that a list may have in all.
const NAMES_MAX: usize = 1_000_000;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const SOURCE: HeaderName = HeaderName::from_static("x-shoal-source");

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum RegistryError {
    #[error("no daemon answers at {}: start one with `shoal serve`", .socket.display())]
    NoDaemon {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{what}: the daemon was silent for {} s", ANSWER_TIMEOUT.as_secs())]
    Silent { what: String },
    #[error("{what}: the exchange with the daemon broke off")]
    Broken {
        what: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{what}: {message}")]
    Refused { what: String, status: StatusCode, message: String },
    #[error("{what}: the answer of the daemon is not understood: {why}")]
    NotUnderstood { what: String, why: String },
}

impl RegistryError {
    /// Whether the next image would meet the same: nobody is there, or the daemon takes no pushes.
    pub(in crate::cli) fn concerns_all(&self) -> bool {
        match self {
            Self::NoDaemon { .. } => true,
            Self::Refused { status, .. } => *status == StatusCode::METHOD_NOT_ALLOWED,
            Self::Silent { .. } | Self::Broken { .. } | Self::NotUnderstood { .. } => false,
        }
    }
}

/// A manifest as it was answered; its digest was checked.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Manifest {
    pub(in crate::cli) digest: Digest,
    pub(in crate::cli) media_type: String,
    pub(in crate::cli) bytes: Bytes,
}

/// A blob on its way from the daemon.
pub(in crate::cli) struct BlobBody {
    pub(in crate::cli) size_bytes: u64,
    /// Where the daemon has it from, as it says itself.
    pub(in crate::cli) source: Option<String>,
    /// Not held to the digest.
    pub(in crate::cli) bytes: BoxStream<'static, Result<Bytes, RegistryError>>,
}

/// How a blob gets into a repository.
pub(in crate::cli) enum Upload {
    /// It is there.
    Mounted,
    /// Where its bytes go.
    Open(String),
}

/// The registry of the running daemon. Each request has a connection of its own, which ends with it: dropping a future
/// withdraws the request.
pub(in crate::cli) struct Registry {
    socket: PathBuf,
    tasks: Tasks,
}

impl Registry {
    pub(in crate::cli) fn new(socket: PathBuf, tasks: Tasks) -> Self {
        Self { socket, tasks }
    }

    pub(in crate::cli) async fn has_blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        self.has(&format!("/v2/{repo}/blobs/{digest}"), &format!("blob {digest} of {repo}")).await
    }

    pub(in crate::cli) async fn has_manifest(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        self.has(&format!("/v2/{repo}/manifests/{digest}"), &format!("manifest {digest} of {repo}")).await
    }

    async fn has(&self, target: &str, what: &str) -> Result<bool, RegistryError> {
        let answer = self.ask(&Method::HEAD, target, what).await?;
        match answer.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(refused(answer, what.to_owned()).await),
        }
    }

    /// Makes a blob that the daemon has in another repository one of `repo` too, or else opens an upload for it.
    pub(in crate::cli) async fn open_upload(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<Upload, RegistryError> {
        let what = format!("blob {digest} of {repo}");
        let target = format!("/v2/{repo}/blobs/uploads/?mount={digest}");
        let answer = self.ask(&Method::POST, &target, &what).await?;
        match answer.status() {
            StatusCode::CREATED => Ok(Upload::Mounted),
            StatusCode::ACCEPTED => Ok(Upload::Open(target_of(&answer, &LOCATION, &what)?)),
            _ => Err(refused(answer, what).await),
        }
    }

    /// Sends a blob to where an upload was opened; the daemon holds it to its digest. `sent` is told of bytes as they
    /// leave.
    pub(in crate::cli) async fn push_blob(
        &self,
        mut location: String,
        digest: &Digest,
        member: &Member,
        sent: impl Fn(u64) + Clone + Send + 'static,
    ) -> Result<(), RegistryError> {
        let what = format!("blob {digest} from {}", member.label);
        let mut at = 0;
        while at < member.size_bytes {
            let end = (at + CHUNK_BYTES_MAX).min(member.size_bytes);
            let sent = sent.clone();
            let bytes = member.read(at..end).inspect_ok(move |bytes| sent(bytes.len() as u64));
            let request = Request::patch(&location)
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, end - at)
                .header(CONTENT_RANGE, format!("{at}-{}", end - 1));
            let request = request.body(StreamBody::new(bytes.map_ok(Frame::data)).boxed_unsync());
            let answer = expect(self.send(request, &what).await?, StatusCode::ACCEPTED, &what).await?;
            location = target_of(&answer, &LOCATION, &what)?;
            at = end;
        }
        let joint = if location.contains('?') { '&' } else { '?' };
        let answer = self.ask(&Method::PUT, &format!("{location}{joint}digest={digest}"), &what).await?;
        expect(answer, StatusCode::CREATED, &what).await.map(drop)
    }

    /// Stores a manifest under its digest, and under `tag` if there is one.
    pub(in crate::cli) async fn put_manifest(
        &self,
        repo: &RepoName,
        manifest: &Manifest,
        tag: Option<&Tag>,
    ) -> Result<(), RegistryError> {
        let reference = tag.map_or_else(|| manifest.digest.to_string(), Tag::to_string);
        let what = format!("manifest {} as {reference} of {repo}", manifest.digest);
        let request = Request::put(format!("/v2/{repo}/manifests/{reference}"))
            .header(CONTENT_TYPE, &manifest.media_type)
            .body(whole(manifest.bytes.clone()));
        expect(self.send(request, &what).await?, StatusCode::CREATED, &what).await.map(drop)
    }

    pub(in crate::cli) async fn manifest(
        &self,
        repo: &RepoName,
        reference: &Reference,
    ) -> Result<Option<Manifest>, RegistryError> {
        let what = format!("manifest {reference} of {repo}");
        // Whoever asks here asks for the blobs too, at once, and wants to know where each of them comes from.
        let target = format!("/v2/{repo}/manifests/{reference}?prefetch=false");
        let answer = self.ask(&Method::GET, &target, &what).await?;
        match answer.status() {
            StatusCode::OK => (),
            status => {
                let refusal = Refusal::read(answer, &what).await;
                // With a detail it is a registry that did not deliver.
                return match status == StatusCode::NOT_FOUND && refusal.detail.is_none() {
                    true => Ok(None),
                    false => Err(refusal.into_error(what)),
                };
            }
        }
        let media_type = header(&answer, &CONTENT_TYPE).unwrap_or_default().to_owned();
        let named: Option<Digest> = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => header(&answer, &CONTENT_DIGEST).and_then(|digest| digest.parse().ok()),
        };
        let named = named.ok_or_else(|| not_understood(&what, "it has no digest"))?;
        let bytes = read_whole(answer, MANIFEST_BYTES_MAX, &what).await?;
        let digest = Digest::of(named.algorithm(), &bytes);
        if digest != named {
            return Err(not_understood(&what, &format!("its content has digest {digest}, not {named}")));
        }
        Ok(Some(Manifest { digest, media_type, bytes }))
    }

    pub(in crate::cli) async fn blob(
        &self,
        repo: &RepoName,
        digest: &Digest,
    ) -> Result<BlobBody, RegistryError> {
        let what = format!("blob {digest} of {repo}");
        let answer = self.ask(&Method::GET, &format!("/v2/{repo}/blobs/{digest}"), &what).await?;
        let answer = expect(answer, StatusCode::OK, &what).await?;
        let length = header(&answer, &CONTENT_LENGTH).and_then(|length| length.parse().ok());
        let size_bytes = length.ok_or_else(|| not_understood(&what, "it has no length"))?;
        let source = header(&answer, &SOURCE).map(str::to_owned);
        let bytes = futures::stream::try_unfold(answer.into_body().into_data_stream(), move |mut body| {
            let what = what.clone();
            async move {
                let next = timeout(ANSWER_TIMEOUT, body.next()).await;
                match next.map_err(|_| RegistryError::Silent { what: what.clone() })? {
                    Some(Ok(bytes)) => Ok(Some((bytes, body))),
                    Some(Err(source)) => Err(RegistryError::Broken { what, source }),
                    None => Ok(None),
                }
            }
        });
        Ok(BlobBody { size_bytes, source, bytes: bytes.boxed() })
    }

    /// All tags of a repository; `None` if there is no such repository.
    pub(in crate::cli) async fn tags(&self, repo: &RepoName) -> Result<Option<Vec<Tag>>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let what = format!("tags of {repo}");
        let names = |page: Page| page.tags.unwrap_or_default();
        self.list(format!("/v2/{repo}/tags/list"), &what, names).await
    }

    /// The manifests that refer to one; none from a daemon that does not list them.
    pub(in crate::cli) async fn referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
    ) -> Result<Vec<Digest>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            manifests: Vec<Referrer>,
        }
        #[derive(Deserialize)]
        struct Referrer {
            digest: String,
        }
        let what = format!("referrers of {subject} in {repo}");
        let digests = |page: Page| page.manifests.into_iter().map(|referrer| referrer.digest).collect();
        Ok(self.list(format!("/v2/{repo}/referrers/{subject}"), &what, digests).await?.unwrap_or_default())
    }

    /// All repositories; `None` if the daemon does not list them.
    pub(in crate::cli) async fn repositories(&self) -> Result<Option<Vec<RepoName>>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            repositories: Option<Vec<String>>,
        }
        let names = |page: Page| page.repositories.unwrap_or_default();
        self.list("/v2/_catalog".to_owned(), "repositories", names).await
    }

    /// Follows `Link` from page to page. `None`: the first page is not found.
    async fn list<P, T>(
        &self,
        first: String,
        what: &str,
        names: impl Fn(P) -> Vec<String>,
    ) -> Result<Option<Vec<T>>, RegistryError>
    where
        P: for<'de> Deserialize<'de>,
        T: std::str::FromStr<Err: std::fmt::Display>,
    {
        let mut all = Vec::new();
        let mut next = Some(first);
        while let Some(target) = next {
            let answer = self.ask(&Method::GET, &target, what).await?;
            if answer.status() == StatusCode::NOT_FOUND && all.is_empty() {
                return Ok(None);
            }
            let answer = expect(answer, StatusCode::OK, what).await?;
            next = match answer.headers().contains_key(LINK) {
                true => Some(target_of(&answer, &LINK, what)?),
                false => None,
            };
            let page = read_whole(answer, JSON_BYTES_MAX, what).await?;
            let page =
                serde_json::from_slice(&page).map_err(|error| not_understood(what, &error.to_string()))?;
            let page = names(page);
            if all.len() + page.len() > NAMES_MAX || (page.is_empty() && next.is_some()) {
                return Err(not_understood(what, "it does not end"));
            }
            for name in page {
                all.push(name.parse().map_err(|error: T::Err| not_understood(what, &error.to_string()))?);
            }
        }
        Ok(Some(all))
    }

    /// A request without a body.
    async fn ask(
        &self,
        method: &Method,
        target: &str,
        what: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        self.send(Request::builder().method(method).uri(target).body(whole(Bytes::new())), what).await
    }

    async fn send(
        &self,
        request: Result<Request<Body>, hyper::http::Error>,
        what: &str,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut request = request.map_err(|error| not_understood(what, &error.to_string()))?;
        request.headers_mut().insert("host", hyper::header::HeaderValue::from_static("shoal"));
        let broken = |source| RegistryError::Broken { what: what.to_owned(), source };
        let stream = UnixStream::connect(&self.socket).await;
        let stream =
            stream.map_err(|source| RegistryError::NoDaemon { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the answer's body: its error is also that of the exchange.
        self.tasks.spawn_short("connection", |_| async move {
            let _ = connection.await;
        });
        let answer = timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        answer.map_err(|_| RegistryError::Silent { what: what.to_owned() })?.map_err(broken)
    }
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn header<'a>(answer: &'a Response<Incoming>, name: &HeaderName) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// The path and query that `Location` or `Link` leads to.
fn target_of(answer: &Response<Incoming>, name: &HeaderName, what: &str) -> Result<String, RegistryError> {
    let value = header(answer, name).unwrap_or_default();
    let value = value.split(';').next().unwrap_or_default().trim().trim_matches(['<', '>']);
    let target = value.parse::<hyper::Uri>().ok().and_then(|uri| uri.path_and_query().cloned());
    let target = target.ok_or_else(|| not_understood(what, &format!("{name} is {value:?}")))?;
    Ok(target.to_string())
}

async fn expect(
    answer: Response<Incoming>,
    status: StatusCode,
    what: &str,
) -> Result<Response<Incoming>, RegistryError> {
    if answer.status() == status { Ok(answer) } else { Err(refused(answer, what.to_owned()).await) }
}

pub(super) async fn read_whole(
    answer: Response<Incoming>,
    bytes_max: usize,
    what: &str,
) -> Result<Bytes, RegistryError> {
    let body = Limited::new(answer.into_body(), bytes_max).collect();
    let body = timeout(ANSWER_TIMEOUT, body).await;
    let body = body.map_err(|_| RegistryError::Silent { what: what.to_owned() })?;
    Ok(body.map_err(|error| not_understood(what, &error.to_string()))?.to_bytes())
}

fn not_understood(what: &str, why: &str) -> RegistryError {
    RegistryError::NotUnderstood { what: what.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
pub(super) mod tests {
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::response::IntoResponse;
    use axum::routing::get;
    use tempfile::TempDir;

    use super::*;

    /// A registry that answers what it is told to.
    pub(in crate::cli::transfer) fn stub(router: Router) -> (TempDir, Registry) {
        let folder = TempDir::new().unwrap();
        let (socket, tasks) = (folder.path().join("sock"), Tasks::new());
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tasks.spawn_short("stub", |_| async move { axum::serve(listener, router).await.unwrap() });
        (folder, Registry::new(socket, tasks))
    }

    fn page(names: &[&str], next: Option<&'static str>) -> impl IntoResponse + use<> {
        let mut headers = HeaderMap::new();
        headers.extend(next.map(|next| (LINK, next.parse().unwrap())));
        (headers, serde_json::json!({"repositories": names}).to_string())
    }

    fn name(name: &str) -> RepoName {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn pages_are_followed_to_the_last_one() {
        let pages = async |request: axum::extract::Request| match request.uri().query() {
            None => page(&["a", "b"], Some("</v2/_catalog?last=b&n=2>; rel=\"next\"")),
            Some("last=b&n=2") => page(&["c"], Some("<http://shoal/v2/_catalog?last=c&n=2>; rel=\"next\"")),
            Some(_) => page(&["d"], None),
        };
        let (_folder, registry) = stub(Router::new().route("/v2/_catalog", get(pages)));
        let all = registry.repositories().await.unwrap().unwrap();
        assert_eq!(all, ["a", "b", "c", "d"].map(name));
        assert_eq!(registry.tags(&name("a")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn pages_that_do_not_end_are_refused() {
        let pages = async || page(&[], Some("</v2/_catalog>; rel=\"next\""));
        let (_folder, registry) = stub(Router::new().route("/v2/_catalog", get(pages)));
        let error = registry.repositories().await.unwrap_err();
        assert!(matches!(error, RegistryError::NotUnderstood { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_manifest_that_is_not_what_was_asked_for_is_refused() {
        let digest = Digest::sha256(b"wanted");
        let path = format!("/v2/a/manifests/{digest}");
        let (_folder, registry) = stub(Router::new().route(&path, get(async || "other")));
        let error = registry.manifest(&name("a"), &Reference::Digest(digest)).await.unwrap_err().to_string();
        assert!(error.contains(&format!("not {digest}")), "{error}");
    }

    #[tokio::test]
    async fn a_refusal_carries_what_the_daemon_says() {
        let answer = async || {
            let body = r#"{"errors":[{"code":"UNSUPPORTED","message":"this daemon is read-only"}]}"#;
            (StatusCode::METHOD_NOT_ALLOWED, body)
        };
        let (_folder, registry) = stub(Router::new().fallback(answer));
        let error = registry.open_upload(&name("a"), &Digest::sha256(b"")).await.err().unwrap();
        assert!(error.concerns_all() && error.to_string().ends_with("this daemon is read-only"), "{error}");
    }
}
