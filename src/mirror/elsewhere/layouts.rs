//! Image layouts below a CID: what they name, and their manifests.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

use cid::Cid;

use super::Place;
use crate::dag::file;
use crate::ipld::path::join;
use crate::mirror::{Inner, Manifest, MirrorError, Page};
use crate::oci::layout_names::{self, Found, LayoutNames};
use crate::oci::manifest::{MANIFEST_BYTES_MAX, ParsedManifest, Referrer};
use crate::oci::{Digest, Reference, image_layout};

/// Nested indexes that are read for the names of one layout, how deep they lie, and their bytes in all.
const NESTED_MAX: usize = 64;
const NESTED_DEPTH_MAX: usize = 4;
const NESTED_BYTES_MAX: usize = 16 << 20;

/// Manifests that are read to find those that refer to another one, and their bytes in all.
const REFERRERS_READ_MAX: usize = 1000;
const REFERRERS_BYTES_MAX: usize = 16 << 20;

impl Inner {
    pub(super) async fn manifest_in_layout(
        &self,
        place: &Place,
        reference: &Reference,
    ) -> Result<Option<Manifest>, MirrorError> {
        let Place::Layout { root, directory, repository, .. } = place else { return Ok(None) };
        let names = self.layout_names(place).await?;
        let tag = match reference {
            Reference::Tag(tag) => tag,
            Reference::Digest(digest) => return self.layout_blob_as_manifest(root, directory, digest).await,
        };
        let digest = match names.find(repository, tag) {
            Found::None => return Ok(None),
            Found::One(digest) => digest,
            Found::Several => {
                return Err(MirrorError::SeveralImages { tag: tag.clone(), at: place.shown() });
            }
        };
        let missing = || MirrorError::Tree {
            path: join(&place.shown(), &image_layout::blob(&digest)),
            what: "is missing, or is no manifest, though index.json names it",
        };
        self.layout_blob_as_manifest(root, directory, &digest).await?.ok_or_else(missing).map(Some)
    }

    /// `None`: it is not there, or is no manifest.
    async fn layout_blob_as_manifest(
        &self,
        root: &Cid,
        directory: &str,
        digest: &Digest,
    ) -> Result<Option<Manifest>, MirrorError> {
        let path = join(directory, &image_layout::blob(digest));
        let Some(entry) = self.tree.lookup(root, &path).await? else { return Ok(None) };
        if let Some(manifest) = self.manifests.get(digest) {
            return Ok(Some(manifest));
        }
        // The manifests of a layout are told from its other blobs by nothing but what is in them.
        if file::file_size(self.tree.blocks(), &entry.cid, root).await? > MANIFEST_BYTES_MAX as u64 {
            return Ok(None);
        }
        match self.read_manifest(root, &entry.cid, digest).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(MirrorError::NoManifest { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The tags of a layout; `None`: it has no such repository.
    pub(super) async fn tags_in_layout(
        &self,
        place: &Place,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Option<Page>, MirrorError> {
        let Place::Layout { repository, .. } = place else { return Ok(None) };
        let names = self.layout_names(place).await?;
        if !names.has_repository(repository) {
            return Ok(None);
        }
        let tags = names.tags(repository);
        let behind = tags.into_iter().filter(|tag| last.is_none_or(|last| *tag > last));
        let mut page: Vec<String> = behind.take(limit.saturating_add(1)).map(str::to_owned).collect();
        let more = page.len() > limit;
        page.truncate(limit);
        Ok(Some(Page { names: page, more }))
    }

    /// The manifests that `index.json` names and whose subject is `subject`, sorted by digest. An error if it names more than
    /// are read: who verifies signatures must not take a part for the whole.
    pub(super) async fn referrers_in_layout(
        &self,
        place: &Place,
        subject: &Digest,
    ) -> Result<Vec<Referrer>, MirrorError> {
        let Place::Layout { root, directory, repository, .. } = place else { return Ok(Vec::new()) };
        let too_many = || MirrorError::Tree {
            path: place.shown(),
            what: "names more manifests than are searched for referrers",
        };
        let names = self.layout_names(place).await?;
        if !names.has_repository(repository) {
            return Ok(Vec::new());
        }
        let digests: BTreeSet<Digest> = names.top_images().iter().map(|image| image.digest).collect();
        if digests.len() > REFERRERS_READ_MAX {
            return Err(too_many());
        }
        let (mut referrers, mut left_bytes) = (Vec::new(), REFERRERS_BYTES_MAX);
        for digest in digests {
            // What is not there, or is no manifest, refers to nothing.
            let Some(manifest) = self.layout_blob_as_manifest(root, directory, &digest).await? else {
                continue;
            };
            left_bytes = left_bytes.checked_sub(manifest.bytes.len()).ok_or_else(too_many)?;
            match ParsedManifest::parse(Some(&manifest.media_type), &manifest.bytes) {
                Ok(parsed) if parsed.subject == Some(*subject) => {
                    referrers.push(parsed.referrer(digest, manifest.bytes.len()));
                }
                Ok(_) | Err(_) => (),
            }
        }
        Ok(referrers)
    }

    /// What a layout names: in its `index.json`, and in nested indexes that have no name themselves.
    async fn layout_names(&self, place: &Place) -> Result<Arc<LayoutNames>, MirrorError> {
        let (Place::Layout { root, directory, index, .. }, Some(elsewhere)) = (place, &self.elsewhere) else {
            return Ok(Arc::default());
        };
        let key = (*index, *root, directory.clone());
        if let Some(names) = elsewhere.layouts.get(&key) {
            return Ok(names);
        }
        let wrong = |source| MirrorError::Layout { at: place.shown(), source };
        let bytes = self.small_file(index, root, image_layout::INDEX_BYTES_MAX as u64).await?;
        let mut names = LayoutNames::new(layout_names::parse(&bytes).map_err(wrong)?);
        self.read_nested(place, root, directory, &mut names).await?;
        let names = Arc::new(names);
        elsewhere.layouts.insert(key, names.clone());
        Ok(names)
    }

    async fn read_nested(
        &self,
        place: &Place,
        root: &Cid,
        directory: &str,
        names: &mut LayoutNames,
    ) -> Result<(), MirrorError> {
        let too_large = || MirrorError::Tree {
            path: place.shown(),
            what: "names more images, or deeper ones, than are read",
        };
        let unnamed = |names: &LayoutNames, from: usize| -> Vec<Digest> {
            let nested = names.images()[from..].iter().filter(|image| image.is_index && !image.has_name());
            nested.map(|image| image.digest).collect()
        };
        let mut waiting: VecDeque<_> = unnamed(names, 0).into_iter().map(|digest| (digest, 1)).collect();
        let (mut seen, mut bytes_read) = (HashSet::new(), 0);
        while let Some((digest, depth)) = waiting.pop_front() {
            if !seen.insert(digest) {
                continue;
            }
            if seen.len() > NESTED_MAX || depth > NESTED_DEPTH_MAX || bytes_read > NESTED_BYTES_MAX {
                return Err(too_large());
            }
            // What is not there, or is an image, names nothing.
            let Some(manifest) = self.layout_blob_as_manifest(root, directory, &digest).await? else {
                continue;
            };
            let parsed = ParsedManifest::parse(Some(&manifest.media_type), &manifest.bytes);
            if parsed.is_ok_and(|parsed| parsed.manifests.is_empty()) {
                continue;
            }
            bytes_read += manifest.bytes.len();
            let wrong = |source| MirrorError::Layout { at: digest.to_string(), source };
            let from = names.images().len();
            if !names.extend(layout_names::parse(&manifest.bytes).map_err(wrong)?) {
                return Err(too_large());
            }
            waiting.extend(unnamed(names, from).into_iter().map(|digest| (digest, depth + 1)));
        }
        Ok(())
    }
}

impl Place {
    /// For errors.
    fn shown(&self) -> String {
        match self {
            Self::Layout { root, directory, .. } => join(&format!("/ipfs/{root}"), directory),
            Self::Registry { root, repo } => format!("{repo} in /ipfs/{root}"),
        }
    }
}
