//! What is asked of a registry besides manifests and blobs: its lists, whole, page by page as `Link` leads on.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;
use url::Url;

use super::UpstreamError;
use super::body::whole;
use super::endpoint::Ask;
use super::registry::{Upstream, media_type};
use crate::oci::manifest::{OCI_INDEX, Referrer, parse_referrers};
use crate::oci::{Digest, Reference, RepoName, Tag};

/// The largest list of tags or referrers that is read, all pages together.
const LIST_BYTES_MAX: usize = 4 << 20;
const PAGES_MAX: usize = 200;
/// Tags that are asked for at a time.
const PAGE_TAGS: usize = 1000;
/// The longest query of a next page that is followed.
const QUERY_BYTES_MAX: usize = 4096;
const JSON: &str = "application/json";

#[derive(Deserialize)]
struct TagList {
    tags: Option<Vec<String>>,
}

/// A list on its way in.
struct Pages<'a> {
    upstream: &'a Upstream,
    /// For the next page; `None`: there is none.
    ask: Option<Ask<'a>>,
    what: &'static str,
    read: usize,
    read_bytes: usize,
}

struct Page {
    media_type: Option<String>,
    bytes: Bytes,
}

impl Upstream {
    /// All tags of a repository, sorted bytewise. `None`: there is no such repository. A list of more than 4 MiB is an
    /// error. May be dropped midway, like all here.
    pub async fn tags(&self, repo: &RepoName) -> Result<Option<Vec<String>>, UpstreamError> {
        let limited = vec![("n".to_owned(), PAGE_TAGS.to_string())];
        match self.tags_by(repo, limited).await {
            // Some have a smaller limit, and no patience with who does not know it.
            Err(UpstreamError::Status { status: 400, .. }) => self.tags_by(repo, Vec::new()).await,
            other => other,
        }
    }

    async fn tags_by(
        &self,
        repo: &RepoName,
        query: Vec<(String, String)>,
    ) -> Result<Option<Vec<String>>, UpstreamError> {
        let ask = Ask { query, ..self.ask(Method::GET, repo, "tags/list".to_owned(), JSON) };
        let (mut pages, mut tags, mut is_there) =
            (Pages::new(self, ask, "a list of tags"), BTreeSet::new(), false);
        while let Some(page) = pages.next().await? {
            is_there = true;
            let list: TagList = serde_json::from_slice(&page.bytes)
                .map_err(|error| self.malformed("a list of tags", error.to_string()))?;
            tags.extend(list.tags.unwrap_or_default().into_iter().filter(|tag| tag.parse::<Tag>().is_ok()));
        }
        Ok(is_there.then(|| tags.into_iter().collect()))
    }

    /// What refers to a manifest, whatever its type, sorted by digest; from the fallback tag where upstream does not know
    /// the API (distribution specification, "Listing Referrers"). Empty: nothing does. A list of more than 4 MiB is an
    /// error.
    pub async fn referrers(&self, repo: &RepoName, subject: &Digest) -> Result<Vec<Referrer>, UpstreamError> {
        let listed = match self.listed_referrers(repo, subject).await {
            Ok(Some(listed)) => listed,
            Ok(None) | Err(UpstreamError::Status { status: 400..500, .. }) => {
                self.referrers_by_tag(repo, subject).await?
            }
            Err(error) => return Err(error),
        };
        let by_digest: BTreeMap<Digest, Referrer> =
            listed.into_iter().map(|referrer| (referrer.digest, referrer)).collect();
        Ok(by_digest.into_values().collect())
    }

    /// `None`: upstream does not know the API.
    async fn listed_referrers(
        &self,
        repo: &RepoName,
        subject: &Digest,
    ) -> Result<Option<Vec<Referrer>>, UpstreamError> {
        let ask = self.ask(Method::GET, repo, format!("referrers/{subject}"), OCI_INDEX);
        let (mut pages, mut listed) = (Pages::new(self, ask, "a list of referrers"), None);
        while let Some(page) = pages.next().await? {
            // A web page that says so, such as some have for every path.
            if !matches!(page.media_type.as_deref(), None | Some(OCI_INDEX | JSON)) {
                return Ok(None);
            }
            let referrers = parse_referrers(&page.bytes).ok_or_else(|| self.no_index())?;
            listed.get_or_insert_with(Vec::new).extend(referrers);
        }
        Ok(listed)
    }

    async fn referrers_by_tag(
        &self,
        repo: &RepoName,
        subject: &Digest,
    ) -> Result<Vec<Referrer>, UpstreamError> {
        let Some(tag) = Tag::of_referrers(subject) else { return Ok(Vec::new()) };
        let found = self.manifest(repo, &Reference::Tag(tag)).await?;
        found.map_or(Ok(Vec::new()), |index| parse_referrers(&index.bytes).ok_or_else(|| self.no_index()))
    }

    fn no_index(&self) -> UpstreamError {
        self.malformed("a list of referrers", "it is no image index".to_owned())
    }
}

impl<'a> Pages<'a> {
    fn new(upstream: &'a Upstream, ask: Ask<'a>, what: &'static str) -> Self {
        Self { upstream, ask: Some(ask), what, read: 0, read_bytes: 0 }
    }

    /// `None`: that was all, or there is no such list.
    async fn next(&mut self) -> Result<Option<Page>, UpstreamError> {
        let Some(ask) = self.ask.take() else { return Ok(None) };
        let (host, what) = (self.upstream.host(), self.what);
        let Some(response) = self.upstream.get(&ask).await? else {
            return match self.read {
                0 => Ok(None),
                _ => Err(self.upstream.malformed(what, "its next page is not there".to_owned())),
            };
        };
        let (next, media_type) = (next_query(response.headers()), media_type(response.headers()));
        let bytes = whole(host, response, what, LIST_BYTES_MAX).await?;
        (self.read, self.read_bytes) = (self.read + 1, self.read_bytes + bytes.len());
        if self.read_bytes > LIST_BYTES_MAX {
            return Err(UpstreamError::TooLarge { host: host.clone(), what, bytes_max: LIST_BYTES_MAX });
        }
        if next.is_some() && self.read >= PAGES_MAX {
            let reason = format!("it has more than {PAGES_MAX} pages");
            return Err(self.upstream.malformed(what, reason));
        }
        self.ask = next.map(|query| Ask { query, ..ask });
        Ok(Some(Page { media_type, bytes }))
    }
}

/// The query of the page that `Link` leads on to (RFC 8288). Only the query: the same list of the same registry is asked.
fn next_query(headers: &HeaderMap) -> Option<Vec<(String, String)>> {
    let links = headers.get_all(LINK).iter().filter_map(|link| link.to_str().ok());
    let target = links.flat_map(|links| links.split('<').skip(1)).find_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        let mut parameters = parameters.split([';', ',']).map(|word| word.trim().to_ascii_lowercase());
        parameters.any(|word| matches!(word.as_str(), "rel=next" | "rel=\"next\"")).then_some(target)
    })?;
    let base = Url::parse("http://registry.invalid").ok()?;
    let url =
        base.join(target).ok().filter(|url| url.query().unwrap_or_default().len() <= QUERY_BYTES_MAX)?;
    Some(url.query_pairs().into_owned().collect()).filter(|query: &Vec<_>| !query.is_empty())
}

/// Reads whatever bytes as a link: for fuzzing.
pub(super) fn fuzz(bytes: &[u8]) {
    if let Ok(link) = reqwest::header::HeaderValue::from_bytes(bytes) {
        let _ = next_query(&HeaderMap::from_iter([(LINK, link)]));
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn next(link: &str) -> Option<Vec<(String, String)>> {
        next_query(&HeaderMap::from_iter([(LINK, HeaderValue::from_str(link).unwrap())]))
    }

    #[test]
    fn only_the_query_of_the_next_page_is_taken() {
        let query = Some(vec![("last".to_owned(), "a,b".to_owned()), ("n".to_owned(), "5".to_owned())]);
        for link in [
            "</v2/a/tags/list?last=a%2Cb&n=5>; rel=\"next\"",
            "<https://elsewhere.example/any/path?last=a,b&n=5>; title=x; rel=next",
            "</first?n=1>; rel=\"first\", <?last=a,b&n=5>;rel=\"next\"",
        ] {
            assert_eq!(next(link), query, "{link}");
        }
        let long = format!("</?last={}>; rel=\"next\"", "x".repeat(QUERY_BYTES_MAX));
        for link in ["</v2/a?n=1>; rel=\"prev\"", "</v2/a>; rel=\"next\"", "junk", "<<>>; rel=next", &long] {
            assert_eq!(next(link), None, "{link}");
        }
    }
}
