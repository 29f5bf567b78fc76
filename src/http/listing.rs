//! Lists of tags.

use axum::http::header::LINK;
use axum::response::Response;
use serde::Serialize;

use super::error::{Failure, Thing};
use super::{json, set};
use crate::mirror::{Mirror, Page};
use crate::oci::RepoName;

/// Names in one answer. A client that asks for more, or for all, is led on by `Link`.
const NAMES_MAX: usize = 10_000;

#[derive(Serialize)]
struct Tags<'a> {
    name: &'a str,
    tags: Vec<String>,
}

pub(super) async fn tags(
    mirror: &Mirror,
    repo: &RepoName,
    last: Option<&str>,
    limit: Option<usize>,
) -> Result<Response, Failure> {
    let limit = limit.unwrap_or(NAMES_MAX).min(NAMES_MAX);
    let found = mirror.tags(repo, last, limit).await?;
    let Page { names, more } =
        found.ok_or_else(|| Failure::Unknown(Thing::Repository, format!("repository {repo}")))?;
    let next = names.last().filter(|_| more).map(|last| {
        let last: String = form_urlencoded::byte_serialize(last.as_bytes()).collect();
        format!("</v2/{repo}/tags/list?last={last}&n={limit}>; rel=\"next\"")
    });
    // A struct of strings always serialises.
    let body = serde_json::to_string(&Tags { name: repo.as_str(), tags: names }).unwrap_or_default();
    let mut response = json(body);
    if let Some(next) = next {
        set(response.headers_mut(), LINK, next);
    }
    Ok(response)
}
