//! Lists: tags, repositories, referrers. A list that is longer than an answer may be goes on at its `Link`.

use axum::http::HeaderName;
use axum::http::header::{CONTENT_TYPE, HeaderValue, LINK};
use axum::response::Response;
use serde::Serialize;

use super::error::{Failure, Thing};
use super::pull::{Asking, say_age};
use super::{json, set};
use crate::mirror::{Listed, Mirror, Page};
use crate::oci::manifest::{OCI_INDEX, ReferrersIndex};
use crate::oci::route::PageRequest;
use crate::oci::{Digest, RepoName};

/// Names in one answer. A client that asks for more, or for all, is led on by `Link`.
const NAMES_MAX: usize = 10_000;
/// Referrers in one answer.
const REFERRERS_MAX: usize = 1000;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

#[derive(Serialize)]
struct Tags<'a> {
    name: &'a str,
    tags: &'a [String],
}

#[derive(Serialize)]
struct Catalog<'a> {
    repositories: &'a [String],
}

pub(super) async fn tags(
    mirror: &Mirror,
    repo: &RepoName,
    page: &PageRequest,
    request: &Asking,
) -> Result<Response, Failure> {
    let limit = limit(page, NAMES_MAX);
    let found = mirror.tags(&request.asked(repo), page.last.as_deref(), limit).await?;
    let found = found.ok_or_else(|| Failure::Unknown(Thing::Repository, format!("repository {repo}")))?;
    let Listed { page: found, age } = found;
    let body = Tags { name: repo.as_str(), tags: &found.names };
    let mut response = names(&body, &found, &format!("/v2/{repo}/tags/list"), limit, &namespace(request));
    request.echo(response.headers_mut());
    say_age(response.headers_mut(), age);
    Ok(response)
}

pub(super) async fn catalog(mirror: &Mirror, page: &PageRequest) -> Result<Response, Failure> {
    let limit = limit(page, NAMES_MAX);
    let found = mirror.catalog(page.last.as_deref(), limit).await?;
    Ok(names(&Catalog { repositories: &found.names }, &found, "/v2/_catalog", limit, ""))
}

pub(super) async fn referrers(
    mirror: &Mirror,
    repo: &RepoName,
    subject: &Digest,
    artifact_type: Option<&str>,
    page: &PageRequest,
    request: &Asking,
) -> Result<Response, Failure> {
    let limit = limit(page, REFERRERS_MAX);
    let (asked, last) = (request.asked(repo), page.last.as_deref());
    let Listed { page: found, age } = mirror.referrers(&asked, subject, artifact_type, last, limit).await?;
    let next = found.referrers.last().filter(|_| found.more).map(|last| {
        let filter = artifact_type.map(|kind| format!("&artifactType={}", encoded(kind))).unwrap_or_default();
        let namespace = namespace(request);
        format!("/v2/{repo}/referrers/{subject}?last={}&n={limit}{filter}{namespace}", last.digest)
    });
    let mut response = json(serialized(&ReferrersIndex::new(found.referrers)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
    if artifact_type.is_some() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    request.echo(headers);
    say_age(headers, age);
    link(&mut response, next);
    Ok(response)
}

/// What the link to the next page must say of the registry that was asked for.
fn namespace(request: &Asking) -> String {
    request.registry().map(|registry| format!("&ns={}", encoded(registry.as_str()))).unwrap_or_default()
}

fn limit(page: &PageRequest, max: usize) -> usize {
    page.limit.unwrap_or(max).min(max)
}

fn names(body: &impl Serialize, page: &Page, path: &str, limit: usize, namespace: &str) -> Response {
    let next = page.names.last().filter(|_| page.more);
    let next = next.map(|last| format!("{path}?last={}&n={limit}{namespace}", encoded(last)));
    let mut response = json(serialized(body));
    link(&mut response, next);
    response
}

fn link(response: &mut Response, next: Option<String>) {
    if let Some(next) = next {
        set(response.headers_mut(), LINK, format!("<{next}>; rel=\"next\""));
    }
}

fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// A struct of strings always serialises.
fn serialized(body: &impl Serialize) -> String {
    serde_json::to_string(body).unwrap_or_default()
}
