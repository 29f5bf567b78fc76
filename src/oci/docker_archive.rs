//! The docker-archive: what `docker save` writes and `docker load` reads (Docker image specification 1.2, "Combined
//! Image JSON + Filesystem Changeset Format"). It has no registry manifest, so one is made, the same each time.

use oci_spec::image::{Descriptor, ImageManifest, ImageManifestBuilder, MediaType, SCHEMA_VERSION};
use serde::{Deserialize, Serialize};

use super::digest::{Digest, DigestError};

/// The file that names the images.
pub const INDEX: &str = "manifest.json";
/// The longest `manifest.json` that is read, in bytes.
pub const INDEX_BYTES_MAX: usize = 4 << 20;
/// The longest image config that is read, in bytes.
pub const CONFIG_BYTES_MAX: usize = 4 << 20;

/// The configs of container images, by OCI and by Docker.
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Why an archive is not read.
#[derive(Debug, thiserror::Error)]
pub enum DockerArchiveError {
    #[error("it is not the JSON of a docker-archive")]
    Json(#[from] serde_json::Error),
    #[error("it names {0}")]
    Digest(#[from] DigestError),
    #[error("the config names {diff_ids} layers, manifest.json {layers}")]
    LayerCount { diff_ids: usize, layers: usize },
    #[error("it is no container image: its config is of type {0}")]
    NoImage(String),
    #[error("the manifest cannot be made: {0}")]
    Manifest(#[from] oci_spec::OciSpecError),
}

/// An image of the archive; names are members of the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Image {
    pub config: String,
    /// `REPO:TAG`, with or without a registry in front.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "null_as_empty")]
    pub layers: Vec<String>,
}

fn null_as_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// How the bytes of a layer are packed, told by their first ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// Bytes that are enough to tell.
    pub const MAGIC_BYTES: usize = 4;

    pub fn of(beginning: &[u8]) -> Self {
        match beginning {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    fn media_type(self) -> MediaType {
        match self {
            Self::None => MediaType::ImageLayer,
            Self::Gzip => MediaType::ImageLayerGzip,
            Self::Zstd => MediaType::ImageLayerZstd,
        }
    }
}

/// A layer, its bytes as they are in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    pub digest: Digest,
    pub size_bytes: u64,
    pub compression: Compression,
}

/// Reads `manifest.json`.
pub fn parse(bytes: &[u8]) -> Result<Vec<Image>, DockerArchiveError> {
    Ok(serde_json::from_slice(bytes)?)
}

/// Writes `manifest.json`.
pub fn to_bytes(images: &[Image]) -> Result<Vec<u8>, DockerArchiveError> {
    Ok(serde_json::to_vec(images)?)
}

/// The digests that a config gives for its layers when they are unpacked, bottom first.
pub fn diff_ids(config: &[u8]) -> Result<Vec<Digest>, DockerArchiveError> {
    #[derive(Deserialize)]
    struct Config {
        rootfs: RootFs,
    }
    #[derive(Deserialize)]
    struct RootFs {
        #[serde(default, deserialize_with = "null_as_empty")]
        diff_ids: Vec<String>,
    }
    let config: Config = serde_json::from_slice(config)?;
    config.rootfs.diff_ids.iter().map(|id| Ok(id.parse()?)).collect()
}

/// The name that a config is given when an archive is written.
pub fn config_name(digest: &Digest) -> String {
    format!("{}.json", digest.hex())
}

/// The name that a layer is given, packed or not: who reads it looks at its first bytes.
pub fn layer_name(digest: &Digest) -> String {
    format!("{}.tar", digest.hex())
}

/// What `manifest.json` says of an image whose registry manifest this is.
pub fn describe(manifest: &[u8], repo_tags: Vec<String>) -> Result<Image, DockerArchiveError> {
    let manifest: ImageManifest = serde_json::from_slice(manifest)?;
    let config = manifest.config();
    if !CONFIG_TYPES.contains(&config.media_type().to_string().as_str()) {
        return Err(DockerArchiveError::NoImage(config.media_type().to_string()));
    }
    let layers = manifest.layers().iter().map(|layer| Ok(layer_name(&layer.digest().as_ref().parse()?)));
    Ok(Image {
        config: config_name(&config.digest().as_ref().parse()?),
        repo_tags,
        layers: layers.collect::<Result<_, DockerArchiveError>>()?,
    })
}

/// The digest that the name of a config carries: `<hex>.json`, or `blobs/sha256/<hex>`.
pub fn digest_in_name(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    format!("sha256:{}", last.strip_suffix(".json").unwrap_or(last)).parse().ok()
}

/// The OCI manifest of an image. The same config and layers give the same bytes, whatever the archive is called and
/// whenever it was made.
pub fn manifest(config: &[u8], layers: &[Layer]) -> Result<Vec<u8>, DockerArchiveError> {
    let describe = |media_type, digest: &Digest, size_bytes| -> Result<Descriptor, DockerArchiveError> {
        Ok(Descriptor::new(media_type, size_bytes, digest.to_string().parse::<oci_spec::image::Digest>()?))
    };
    let layers = layers
        .iter()
        .map(|layer| describe(layer.compression.media_type(), &layer.digest, layer.size_bytes))
        .collect::<Result<Vec<_>, _>>()?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(describe(MediaType::ImageConfig, &Digest::sha256(config), config.len() as u64)?)
        .layers(layers)
        .build()?;
    Ok(serde_json::to_vec(&manifest)?)
}

/// Gives `bytes` to every decoder of this module: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(images) = parse(bytes)
        && let Ok(written) = to_bytes(&images)
    {
        assert!(parse(&written).is_ok(), "what was read can be written");
    }
    let _ = (diff_ids(bytes), describe(bytes, Vec::new()), Compression::of(bytes));
    if let Ok(name) = str::from_utf8(bytes)
        && let Some(digest) = digest_in_name(name)
    {
        assert!(name.contains(&digest.hex()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::manifest::{OCI_MANIFEST, ParsedManifest};
    use super::*;

    #[test]
    fn names_and_their_absence_are_read() {
        let images = parse(
            br#"[{"Config":"c.json","RepoTags":["app:1","app:2"],"Layers":["a/layer.tar"]},
                 {"Config":"d.json","RepoTags":null,"Layers":null,"Parent":"x"}]"#,
        )
        .unwrap();
        assert_eq!(images[0].repo_tags, ["app:1", "app:2"]);
        assert_eq!(images[1], Image { config: "d.json".to_owned(), repo_tags: vec![], layers: vec![] });
        assert_eq!(parse(&to_bytes(&images).unwrap()).unwrap(), images);
    }

    #[test]
    fn the_manifest_is_the_same_each_time() {
        let layer = |text: &str, compression| Layer {
            digest: Digest::sha256(text.as_bytes()),
            size_bytes: 9,
            compression,
        };
        let layers =
            [layer("a", Compression::None), layer("b", Compression::Gzip), layer("c", Compression::Zstd)];
        let bytes = manifest(b"{}", &layers).unwrap();
        // Clients keep images by this digest: another one for the same archive would load it twice.
        assert_eq!(
            Digest::sha256(&bytes).to_string(),
            "sha256:a2234d5dc16372295914a6aac7c0b0244fb221f8fca4dc22bc8239ec79551465"
        );
        let parsed = ParsedManifest::parse(None, &bytes).unwrap();
        assert_eq!((parsed.media_type.as_str(), parsed.blobs.len()), (OCI_MANIFEST, 4));
        let text = String::from_utf8(bytes).unwrap();
        for media_type in ["v1.tar\"", "v1.tar+gzip\"", "v1.tar+zstd\""] {
            assert!(text.contains(&format!("application/vnd.oci.image.layer.{media_type}")), "{text}");
        }
    }

    #[test]
    fn what_is_described_has_its_layers_in_order_and_each_time() {
        let layer = |text: &str| Layer {
            digest: Digest::sha256(text.as_bytes()),
            size_bytes: 1,
            compression: Compression::None,
        };
        let bytes = manifest(b"{}", &[layer("a"), layer("b"), layer("a")]).unwrap();
        let image = describe(&bytes, vec!["app:1".to_owned()]).unwrap();
        assert_eq!(digest_in_name(&image.config), Some(Digest::sha256(b"{}")));
        assert_eq!(image.layers, ["a", "b", "a"].map(|text| layer_name(&Digest::sha256(text.as_bytes()))));
        let artifact = String::from_utf8(bytes).unwrap().replace("image.config.v1", "empty.v1");
        assert!(matches!(describe(artifact.as_bytes(), vec![]), Err(DockerArchiveError::NoImage(_))));
    }

    #[test]
    fn diff_ids_and_digests_in_names_are_read() {
        let digest = Digest::sha256(b"x");
        let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{digest}"]}}}}"#);
        assert_eq!(diff_ids(config.as_bytes()).unwrap(), [digest]);
        assert_eq!(digest_in_name(&format!("{}.json", digest.hex())), Some(digest));
        assert_eq!(digest_in_name(&format!("blobs/sha256/{}", digest.hex())), Some(digest));
        assert_eq!(digest_in_name("config.json"), None);
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(diff_ids(&bytes).is_err());
            let _ = (parse(&bytes), Compression::of(&bytes));
        }

        #[test]
        fn any_name_is_looked_at(name in "\\PC{0,80}") {
            if let Some(digest) = digest_in_name(&name) {
                prop_assert!(name.contains(&digest.hex()));
            }
        }
    }
}
