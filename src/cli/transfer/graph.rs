//! What an image is made of: its manifests and blobs, walked from the top. Where the manifests come from, the caller says.

use std::collections::HashSet;

use bytes::Bytes;

use super::registry::Manifest;
use crate::oci::manifest::{Descriptor, ManifestError, ParsedManifest};
use crate::oci::{Digest, Platform};

/// Manifests of one image, and what they take in memory.
const MANIFESTS_MAX: usize = 10_000;
const MANIFESTS_BYTES_MAX: usize = 64 << 20;
/// How deep indexes may lie in each other.
const NESTING_MAX: usize = 8;

/// Why an image cannot be walked.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum GraphError {
    #[error("manifest {digest} is not valid: {source}")]
    Invalid { digest: Digest, source: ManifestError },
    #[error("manifest {digest} is missing, though {parent} names it: the image is not whole")]
    Missing { digest: Digest, parent: Digest },
    #[error("image {0} has too many manifests, or indexes that lie too deep in each other")]
    TooLarge(Digest),
}

/// An image, whole: of one platform or of several.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Graph {
    /// What is named by others comes before them; the top is the last.
    pub(in crate::cli) manifests: Vec<Manifest>,
    /// Each once.
    pub(in crate::cli) blobs: Vec<Descriptor>,
}

/// A manifest whose children are still to be walked.
struct Open {
    manifest: Manifest,
    children: std::vec::IntoIter<Digest>,
}

impl Graph {
    /// Walks from `top` down, or from the image that it has for `platform`. `get` gives the bytes of a manifest that have
    /// its digest.
    pub(in crate::cli) async fn walk(
        mut top: Manifest,
        platform: Option<&Platform>,
        get: impl AsyncFn(Digest) -> anyhow::Result<Option<Bytes>>,
    ) -> anyhow::Result<Self> {
        if let Some(platform) = platform {
            for _ in 0..NESTING_MAX {
                if parse(&top.digest, &top.bytes)?.manifests.is_empty() {
                    break;
                }
                let (parent, digest) = (top.digest, platform.choose(&top.bytes)?);
                top = manifest(digest, get(digest).await?.ok_or(GraphError::Missing { digest, parent })?)?;
            }
        }
        let top_digest = top.digest;
        let mut graph = Self { manifests: Vec::new(), blobs: Vec::new() };
        let (mut seen, mut bytes_held) = (HashSet::from([top_digest]), top.bytes.len());
        let mut seen_blobs = HashSet::new();
        let mut open = vec![graph.enter(top, &mut seen_blobs)?];
        while let Some(innermost) = open.last_mut() {
            let parent = innermost.manifest.digest;
            match innermost.children.next() {
                Some(digest) if seen.insert(digest) => {
                    let bytes = get(digest).await?.ok_or(GraphError::Missing { digest, parent })?;
                    bytes_held += bytes.len();
                    if seen.len() > MANIFESTS_MAX
                        || bytes_held > MANIFESTS_BYTES_MAX
                        || open.len() >= NESTING_MAX
                    {
                        return Err(GraphError::TooLarge(top_digest).into());
                    }
                    open.push(graph.enter(manifest(digest, bytes)?, &mut seen_blobs)?);
                }
                Some(_) => (),
                None => graph.manifests.extend(open.pop().map(|done| done.manifest)),
            }
        }
        Ok(graph)
    }

    fn enter(&mut self, manifest: Manifest, seen_blobs: &mut HashSet<Digest>) -> Result<Open, GraphError> {
        let parsed = parse(&manifest.digest, &manifest.bytes)?;
        self.blobs.extend(parsed.blobs.into_iter().filter(|blob| seen_blobs.insert(blob.digest)));
        let children: Vec<Digest> = parsed.manifests.into_iter().map(|child| child.digest).collect();
        Ok(Open { manifest, children: children.into_iter() })
    }

    pub(in crate::cli) fn top(&self) -> Option<&Manifest> {
        self.manifests.last()
    }
}

/// A manifest of bytes that were held to their digest; the media type is what they say.
pub(in crate::cli) fn manifest(digest: Digest, bytes: Bytes) -> Result<Manifest, GraphError> {
    let media_type = parse(&digest, &bytes)?.media_type;
    Ok(Manifest { digest, media_type, bytes })
}

fn parse(digest: &Digest, bytes: &[u8]) -> Result<ParsedManifest, GraphError> {
    ParsedManifest::parse(None, bytes).map_err(|source| GraphError::Invalid { digest: *digest, source })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::*;

    /// Manifests by digest.
    #[derive(Default)]
    struct Shelf(HashMap<Digest, Bytes>);

    impl Shelf {
        fn put(&mut self, value: &serde_json::Value) -> Digest {
            let bytes = Bytes::from(value.to_string());
            let digest = Digest::sha256(&bytes);
            self.0.insert(digest, bytes);
            digest
        }

        fn image(&mut self, layer: &str) -> Digest {
            let layer = json!({"digest": Digest::sha256(layer.as_bytes()).to_string(), "size": layer.len()});
            self.put(&json!({"schemaVersion": 2, "layers": [layer, layer]}))
        }

        fn index(&mut self, children: &[Digest]) -> Digest {
            let entries: Vec<_> =
                children.iter().map(|digest| json!({"digest": digest.to_string(), "size": 1})).collect();
            self.put(&json!({"schemaVersion": 2, "manifests": entries}))
        }

        async fn walk(&self, top: Digest) -> anyhow::Result<Graph> {
            let top = manifest(top, self.0[&top].clone())?;
            Graph::walk(top, None, async |digest| Ok(self.0.get(&digest).cloned())).await
        }
    }

    #[tokio::test]
    async fn what_is_named_comes_before_what_names_it() {
        let mut shelf = Shelf::default();
        let (a, b) = (shelf.image("a"), shelf.image("b"));
        let inner = shelf.index(&[b, a]);
        let top = shelf.index(&[a, inner, a]);
        let graph = shelf.walk(top).await.unwrap();
        let order: Vec<Digest> = graph.manifests.iter().map(|manifest| manifest.digest).collect();
        assert_eq!(order, [a, b, inner, top]);
        assert_eq!(graph.blobs.len(), 2);
    }

    #[tokio::test]
    async fn an_image_that_is_not_whole_is_refused() {
        let mut shelf = Shelf::default();
        let top = shelf.index(&[Digest::sha256(b"elsewhere")]);
        let error = shelf.walk(top).await.unwrap_err().to_string();
        assert!(error.contains(&Digest::sha256(b"elsewhere").to_string()), "{error}");
    }

    #[tokio::test]
    async fn indexes_that_lie_too_deep_are_refused() {
        let mut shelf = Shelf::default();
        let mut top = shelf.image("a");
        for _ in 0..NESTING_MAX {
            top = shelf.index(&[top]);
        }
        assert!(shelf.walk(top).await.is_err());
    }
}
