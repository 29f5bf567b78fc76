//! The OCI image layout (image specification, image-layout.md): `oci-layout`, `index.json`, `blobs/<algorithm>/<hex>`.

use std::collections::HashMap;

use oci_spec::image::{ANNOTATION_REF_NAME, Descriptor, ImageIndex, MediaType, SCHEMA_VERSION};

use super::digest::{Digest, DigestError};

/// The file that says what the folder is.
pub const MARKER: &str = "oci-layout";
pub const MARKER_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// The file that names the images.
pub const INDEX: &str = "index.json";
/// The longest `index.json` that is read, in bytes.
pub const INDEX_BYTES_MAX: usize = 4 << 20;

/// Where containerd and Docker put the whole name of an image, host included.
pub(super) const ANNOTATION_CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Why an `index.json` is not read.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("it is not the JSON of an image index")]
    Json(#[from] serde_json::Error),
    #[error("it names {0}")]
    Digest(#[from] DigestError),
}

/// Where the bytes of a blob or manifest are, relative to the folder.
pub fn blob(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

/// An image of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub digest: Digest,
    /// `org.opencontainers.image.ref.name`: most often a tag, with some tools a whole name.
    pub ref_name: Option<String>,
    /// The whole name that containerd and Docker write beside it.
    pub full_name: Option<String>,
}

/// The content of `index.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutIndex(ImageIndex);

impl LayoutIndex {
    /// Of a layout that is begun.
    pub fn new() -> Self {
        let mut index = ImageIndex::default();
        index.set_schema_version(SCHEMA_VERSION);
        index.set_media_type(Some(MediaType::ImageIndex));
        Self(index)
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, LayoutError> {
        Ok(Self(serde_json::from_slice(bytes)?))
    }

    /// The images, in the order of the file.
    pub fn images(&self) -> Result<Vec<Listed>, LayoutError> {
        let listed = self.0.manifests().iter().map(|entry| {
            let annotation = |name: &str| entry.annotations().as_ref()?.get(name).cloned();
            Ok(Listed {
                digest: entry.digest().as_ref().parse()?,
                ref_name: annotation(ANNOTATION_REF_NAME),
                full_name: annotation(ANNOTATION_CONTAINERD_NAME),
            })
        });
        listed.collect()
    }

    /// Names an image; an earlier one of the same tag loses its place. Without a tag the image is listed by its digest
    /// alone, once.
    pub fn put(
        &mut self,
        digest: &Digest,
        media_type: &str,
        size_bytes: u64,
        tag: Option<&str>,
    ) -> Result<(), LayoutError> {
        let text = digest.to_string();
        let json = serde_json::json!({"mediaType": media_type, "digest": text, "size": size_bytes});
        let mut entry: Descriptor = serde_json::from_value(json)?;
        let name = |entry: &Descriptor| entry.annotations().as_ref()?.get(ANNOTATION_REF_NAME).cloned();
        let replaced = |old: &Descriptor| match (name(old), tag) {
            (Some(old), Some(new)) => old == new,
            (None, None) => old.digest().as_ref() == text,
            _ => false,
        };
        let mut entries: Vec<Descriptor> =
            self.0.manifests().iter().filter(|old| !replaced(old)).cloned().collect();
        entry.set_annotations(
            tag.map(|tag| HashMap::from([(ANNOTATION_REF_NAME.to_owned(), tag.to_owned())])),
        );
        entries.push(entry);
        self.0.set_manifests(entries);
        Ok(())
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, LayoutError> {
        Ok(serde_json::to_vec(&self.0)?)
    }
}

impl Default for LayoutIndex {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads whatever bytes as `index.json`: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(index) = LayoutIndex::parse(bytes)
        && let Ok(images) = index.images()
    {
        let again = index.to_bytes().and_then(|written| LayoutIndex::parse(&written)?.images());
        assert!(again.is_ok_and(|again| again == images), "what was read can be written");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::manifest::OCI_MANIFEST;
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn names(index: &LayoutIndex) -> Vec<(Digest, Option<String>)> {
        index.images().unwrap().into_iter().map(|image| (image.digest, image.ref_name)).collect()
    }

    #[test]
    fn an_image_takes_the_place_of_its_tag() {
        let mut index = LayoutIndex::new();
        for (name, tag) in [("a", Some("1")), ("b", Some("2")), ("c", Some("1")), ("d", None), ("d", None)] {
            index.put(&digest(name), OCI_MANIFEST, 7, tag).unwrap();
        }
        let index = LayoutIndex::parse(&index.to_bytes().unwrap()).unwrap();
        let tag = |tag: &str| Some(tag.to_owned());
        assert_eq!(names(&index), [(digest("b"), tag("2")), (digest("c"), tag("1")), (digest("d"), None)]);
    }

    #[test]
    fn both_kinds_of_names_are_read() {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":1,"annotations":
                {{"org.opencontainers.image.ref.name":"1","io.containerd.image.name":"docker.io/library/app:1"}}}}]}}"#,
            digest("a")
        );
        let images = LayoutIndex::parse(text.as_bytes()).unwrap().images().unwrap();
        assert_eq!(images[0].ref_name.as_deref(), Some("1"));
        assert_eq!(images[0].full_name.as_deref(), Some("docker.io/library/app:1"));
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(LayoutIndex::parse(&bytes).is_err());
        }

        #[test]
        fn what_is_put_is_listed(contents in proptest::collection::vec("[a-z]{1,3}", 0..8)) {
            let mut index = LayoutIndex::new();
            for content in &contents {
                index.put(&digest(content), OCI_MANIFEST, 1, Some(content)).unwrap();
            }
            let index = LayoutIndex::parse(&index.to_bytes().unwrap()).unwrap();
            for content in &contents {
                prop_assert!(names(&index).contains(&(digest(content), Some(content.clone()))));
            }
        }
    }
}
