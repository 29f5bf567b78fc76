//! Manifests and indexes: the bytes stay as they came, a copy is read for what they name (OCI image specification,
//! manifest.md and image-index.md; Docker's schema 2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// The largest manifest that is taken or served (distribution specification, "Pushing Manifests").
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1";

/// What a manifest says of something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub digest: Digest,
    /// `None` where it is missing or no whole number of bytes.
    pub size_bytes: Option<u64>,
    /// Not to be pushed: it lies elsewhere, and need not be here.
    pub non_distributable: bool,
}

/// What a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedManifest {
    pub media_type: String,
    /// Config and layers of an image; empty for an index.
    pub blobs: Vec<Descriptor>,
    /// Manifests of an index; empty for an image.
    pub manifests: Vec<Descriptor>,
    /// What it refers to. Need not be here.
    pub subject: Option<Digest>,
    /// Its `artifactType`, else the media type of an image's config (image specification, manifest.md).
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

/// A manifest as the referrers of its subject list it (distribution specification, "Listing Referrers").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    pub media_type: String,
    #[serde(with = "super::digest::text")]
    pub digest: Digest,
    /// Bytes of the manifest.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The index that lists referrers, as the API answers it and as it lies under a fallback tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReferrersIndex {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    #[serde(default)]
    pub manifests: Vec<Referrer>,
}

impl ReferrersIndex {
    pub fn new(manifests: Vec<Referrer>) -> Self {
        Self { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests }
    }
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it is not the JSON of a manifest")]
    Json(#[from] serde_json::Error),
    #[error("its mediaType is {field:?}, but it was sent as {sent:?}")]
    MediaType { field: String, sent: String },
    #[error("its mediaType {0:?} is no media type")]
    NoMediaType(String),
    #[error("it was sent as {sent:?}, but without a mediaType it is read as {read}: add the field")]
    Untyped { sent: String, read: &'static str },
    #[error("docker schema 1 is not supported: push it again with a current client")]
    Schema1,
    #[error("it has neither layers nor manifests")]
    Neither,
    #[error("it names {0}")]
    Digest(#[from] super::digest::DigestError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    /// Of the withdrawn artifact manifest.
    blobs: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: Option<serde_json::Number>,
    #[serde(default)]
    urls: Vec<String>,
}

impl RawDescriptor {
    fn check(self) -> Result<Descriptor, ManifestError> {
        let foreign = self.media_type.contains(".foreign.") || self.media_type.contains("nondistributable");
        Ok(Descriptor {
            digest: self.digest.parse()?,
            size_bytes: self.size.as_ref().and_then(serde_json::Number::as_u64),
            non_distributable: foreign || !self.urls.is_empty(),
        })
    }
}

impl ParsedManifest {
    /// Reads a manifest. `content_type` as it was sent, if it was: what is taken with it reads the same without, since
    /// the bytes are all that is kept. Without a `mediaType` field the structure decides.
    pub fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        let sent = content_type.map(|sent| sent.split(';').next().unwrap_or_default().trim());
        let sent = sent.filter(|sent| sent.starts_with("application/vnd."));
        let field = raw.media_type.as_deref().filter(|field| !field.is_empty());
        if let Some(field) = field.filter(|field| !is_media_type(field)) {
            return Err(ManifestError::NoMediaType(field.to_owned()));
        }
        if let (Some(field), Some(sent)) = (field, sent)
            && field != sent
        {
            return Err(ManifestError::MediaType { field: field.to_owned(), sent: sent.to_owned() });
        }
        if raw.schema_version == Some(1)
            || field.or(sent).is_some_and(|media_type| media_type.starts_with(DOCKER_SCHEMA_1))
        {
            return Err(ManifestError::Schema1);
        }
        let is_index = match field {
            Some(OCI_INDEX | DOCKER_LIST) => true,
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => false,
            _ => raw.manifests.is_some() && raw.layers.is_none(),
        };
        if !is_index && raw.layers.is_none() && raw.blobs.is_none() && raw.config.is_none() {
            return Err(ManifestError::Neither);
        }
        let read = if is_index { OCI_INDEX } else { OCI_MANIFEST };
        if let (None, Some(sent)) = (field, sent.filter(|sent| *sent != read)) {
            return Err(ManifestError::Untyped { sent: sent.to_owned(), read });
        }
        let media_type = field.unwrap_or(read).to_owned();
        let check =
            |descriptors: Vec<RawDescriptor>| descriptors.into_iter().map(RawDescriptor::check).collect();
        let subject = raw.subject.map(|subject| subject.digest.parse()).transpose()?;
        let config_type = raw.config.as_ref().map(|config| config.media_type.clone());
        let artifact_type = raw.artifact_type.filter(|artifact_type| !artifact_type.is_empty());
        let mut parsed = Self {
            media_type,
            blobs: Vec::new(),
            manifests: Vec::new(),
            subject,
            artifact_type: artifact_type.or(config_type.filter(|config_type| !config_type.is_empty())),
            annotations: raw.annotations.unwrap_or_default(),
        };
        if is_index {
            let manifests: Result<_, ManifestError> = check(raw.manifests.unwrap_or_default());
            return Ok(Self { manifests: manifests?, ..parsed });
        }
        let named = raw
            .config
            .into_iter()
            .chain(raw.layers.into_iter().flatten())
            .chain(raw.blobs.into_iter().flatten());
        let blobs: Result<_, ManifestError> = check(named.collect());
        parsed.blobs = blobs?;
        Ok(parsed)
    }

    /// How the referrers of its subject list it.
    pub fn referrer(&self, digest: Digest, size_bytes: usize) -> Referrer {
        Referrer {
            media_type: self.media_type.clone(),
            digest,
            size: size_bytes as u64,
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
        }
    }
}

/// Reads what lies under a fallback tag; entries that are no descriptors make it unreadable as a whole.
pub fn parse_referrers(bytes: &[u8]) -> Option<Vec<Referrer>> {
    let index: ReferrersIndex = serde_json::from_slice(bytes).ok()?;
    matches!(index.media_type.as_str(), "" | OCI_INDEX).then_some(index.manifests)
}

/// `type/subtype` (RFC 6838, section 4.2): what may stand in a header.
fn is_media_type(text: &str) -> bool {
    let is_name = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
        (1..=127).contains(&name.len()) && name.bytes().all(allowed)
    };
    text.split_once('/').is_some_and(|(kind, subtype)| is_name(kind) && is_name(subtype))
}

/// Reads whatever bytes as a manifest, an index and a list of referrers: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    for sent in [None, Some(OCI_MANIFEST), Some(OCI_INDEX), Some("text/plain")] {
        if let Ok(parsed) = ParsedManifest::parse(sent, bytes) {
            assert!(is_media_type(&parsed.media_type));
            let again = ParsedManifest::parse(None, bytes);
            assert_eq!(again.ok(), Some(parsed), "it reads the same without its content type");
        }
    }
    let _ = (parse_referrers(bytes), super::platform::Platform::of_host().choose(bytes));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn parse(
        content_type: Option<&str>,
        manifest: &serde_json::Value,
    ) -> Result<ParsedManifest, ManifestError> {
        ParsedManifest::parse(content_type, manifest.to_string().as_bytes())
    }

    fn image() -> serde_json::Value {
        json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest("c").to_string(), "size": 1},
            "layers": [
                {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest("l").to_string(), "size": 1},
                {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "digest": digest("f").to_string(), "size": 1},
            ],
        })
    }

    #[test]
    fn an_image_names_its_config_and_layers() {
        let parsed = parse(None, &image()).unwrap();
        assert_eq!(parsed.media_type, OCI_MANIFEST);
        let digests: Vec<_> = parsed.blobs.iter().map(|blob| (blob.digest, blob.non_distributable)).collect();
        assert_eq!(digests, [(digest("c"), false), (digest("l"), false), (digest("f"), true)]);
        let mut docker = image();
        docker["mediaType"] = json!(DOCKER_MANIFEST);
        assert_eq!(parse(Some(DOCKER_MANIFEST), &docker).unwrap().media_type, DOCKER_MANIFEST);
    }

    #[test]
    fn an_index_names_its_manifests() {
        let index = json!({"schemaVersion": 2, "manifests": [{"digest": digest("m").to_string(), "size": 1}],
            "subject": {"digest": digest("s").to_string()}});
        let parsed = parse(None, &index).unwrap();
        assert_eq!(
            (parsed.media_type.as_str(), parsed.manifests.len(), parsed.blobs.len()),
            (OCI_INDEX, 1, 0)
        );
        assert_eq!(parsed.subject, Some(digest("s")));
    }

    #[test]
    fn a_referrer_says_of_what_type_it_is() {
        let mut artifact = image();
        assert_eq!(
            parse(None, &artifact).unwrap().artifact_type.as_deref(),
            Some("application/vnd.oci.image.config.v1+json")
        );
        artifact["artifactType"] = json!("application/vnd.example.sbom");
        artifact["annotations"] = json!({"b": "2", "a": "1"});
        artifact["subject"] = json!({"digest": digest("s").to_string(), "size": 1});
        let parsed = parse(None, &artifact).unwrap();
        let referrer = parsed.referrer(digest("r"), 7);
        let index = serde_json::to_string(&ReferrersIndex::new(vec![referrer.clone()])).unwrap();
        assert_eq!(
            index,
            format!(
                r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":7,"artifactType":"application/vnd.example.sbom","annotations":{{"a":"1","b":"2"}}}}]}}"#,
                digest("r")
            )
        );
        assert_eq!(parse_referrers(index.as_bytes()), Some(vec![referrer]));
        assert_eq!(parse_referrers(br#"{"schemaVersion":2,"manifests":[{"digest":"sha256:zz"}]}"#), None);
        assert_eq!(parse_referrers(image().to_string().as_bytes()), Some(Vec::new()));
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let mut mistyped = image();
        mistyped["mediaType"] = json!(OCI_INDEX);
        assert!(matches!(parse(Some(OCI_MANIFEST), &mistyped), Err(ManifestError::MediaType { .. })));
        assert!(matches!(
            parse(None, &json!({"schemaVersion": 1, "fsLayers": []})),
            Err(ManifestError::Schema1)
        ));
        assert!(matches!(parse(None, &json!({"schemaVersion": 2})), Err(ManifestError::Neither)));
        assert!(matches!(parse(Some(DOCKER_MANIFEST), &image()), Err(ManifestError::Untyped { .. })));
        assert!(matches!(parse(Some(OCI_INDEX), &image()), Err(ManifestError::Untyped { .. })));
        for media_type in
            ["application/vnd.x\r\ny: 1", "application/", "x", "application/ä", "a/b/c", "a b/c"]
        {
            mistyped["mediaType"] = json!(media_type);
            assert!(matches!(parse(None, &mistyped), Err(ManifestError::NoMediaType(_))), "{media_type:?}");
        }
        assert!(matches!(
            parse(None, &json!({"config": {"digest": "sha256:zz"}, "layers": []})),
            Err(ManifestError::Digest(_))
        ));
        assert!(matches!(ParsedManifest::parse(None, b"junk"), Err(ManifestError::Json(_))));
    }

    /// Any of these, or nothing.
    fn any_type() -> impl Strategy<Value = Option<&'static str>> {
        let types =
            [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST, "application/vnd.x+json", "text/plain"];
        proptest::option::of(prop::sample::select(types.to_vec()))
    }

    proptest! {
        #[test]
        fn what_was_taken_reads_the_same_without_its_content_type(
            sent in any_type(),
            field in any_type(),
            parts in proptest::sample::subsequence(vec!["config", "layers", "blobs", "manifests", "subject"], 0..=5),
        ) {
            let descriptor = json!({"digest": digest("d").to_string(), "size": 1});
            let mut manifest = json!({"schemaVersion": 2});
            for part in parts {
                let single = ["config", "subject"].contains(&part);
                manifest[part] = if single { descriptor.clone() } else { json!([descriptor]) };
            }
            if let Some(field) = field {
                manifest["mediaType"] = json!(field);
            }
            if let Ok(taken) = parse(sent, &manifest) {
                prop_assert_eq!(parse(None, &manifest).unwrap(), taken);
            }
        }

        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(ParsedManifest::parse(None, &bytes).is_err());
        }
    }
}
