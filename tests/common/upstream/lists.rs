//! The lists of an upstream: tags in pages, and who refers to a manifest, by the API or by the fallback tag.

use serde_json::{Value, json};
use shoal::oci::Digest;

use super::super::IMAGE_MANIFEST;
use super::wire::Answer;
use super::{Content, Seen, Upstream, lock};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// How lists are given.
#[derive(Default)]
pub(super) struct Lists {
    /// Tags in one answer at most; 0: all.
    page_tags: usize,
    /// There is no API of referrers.
    no_referrers: bool,
}

impl Upstream {
    /// Gives so many tags in one answer.
    pub fn pages_tags(&self, page_tags: usize) {
        lock(&self.shared.lists).page_tags = page_tags;
    }

    /// Does not know the API of referrers from now on: they are under the fallback tag alone.
    pub fn knows_no_referrers(&self) {
        lock(&self.shared.lists).no_referrers = true;
    }

    /// Has a manifest of this type that refers to `subject`; its config, which is no more than `{}`, too.
    pub fn attach(&self, repo: &str, subject: &Digest, kind: &str, note: &str) -> Digest {
        let config = self.push_blob(b"{}");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "artifactType": kind,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_string(), "size": 2},
            "layers": [],
            "subject": {"mediaType": IMAGE_MANIFEST, "digest": subject.to_string(), "size": 1},
            "annotations": {"note": note},
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let digest = self.push_blob(&manifest);
        let mut content = lock(&self.shared.content);
        content.manifests.insert((repo.to_owned(), digest.to_string()), digest);
        let descriptor = json!({"mediaType": IMAGE_MANIFEST, "digest": digest.to_string(),
            "size": manifest.len(), "artifactType": kind, "annotations": {"note": note}});
        content.referrers.entry((repo.to_owned(), *subject)).or_default().push(descriptor);
        let index = content.index(repo, subject).to_string().into_bytes();
        let tag = subject.to_string().replace(':', "-");
        let index_digest = Digest::sha256(&index);
        content.blobs.insert(index_digest, index.into());
        content.manifests.insert((repo.to_owned(), tag), index_digest);
        digest
    }
}

impl Content {
    fn index(&self, repo: &str, subject: &Digest) -> Value {
        let manifests = self.referrers.get(&(repo.to_owned(), *subject)).cloned().unwrap_or_default();
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
    }

    /// `None`: no list is asked for, or none is known.
    pub(super) fn list(&self, seen: &Seen, lists: &Lists) -> Option<Answer> {
        let path = seen.path.strip_prefix("/v2/")?;
        if let Some(repo) = path.strip_suffix("/tags/list") {
            return self.tags(repo, &seen.query, lists.page_tags);
        }
        let (repo, subject) = path.split_once("/referrers/").filter(|_| !lists.no_referrers)?;
        let index = self.index(repo, &subject.parse().ok()?).to_string();
        Some(Answer { status: 200, headers: vec![("content-type", INDEX.to_owned())], body: index.into() })
    }

    fn tags(&self, repo: &str, query: &str, page_tags: usize) -> Option<Answer> {
        let of_repo = self.manifests.keys().filter(|(of, _)| of == repo).map(|(_, reference)| reference);
        let mut tags: Vec<&String> = of_repo.filter(|reference| !reference.contains(':')).collect();
        if tags.is_empty() {
            return None;
        }
        tags.sort_unstable();
        if let Some(last) = query.split('&').find_map(|word| word.strip_prefix("last=")) {
            tags.retain(|tag| tag.as_str() > last);
        }
        let mut headers = vec![("content-type", "application/json".to_owned())];
        if page_tags > 0 && tags.len() > page_tags {
            tags.truncate(page_tags);
            let next =
                format!("</v2/{repo}/tags/list?last={}&n={page_tags}>; rel=\"next\"", tags[page_tags - 1]);
            headers.push(("link", next));
        }
        let body = json!({"name": repo, "tags": tags}).to_string().into();
        Some(Answer { status: 200, headers, body })
    }
}
