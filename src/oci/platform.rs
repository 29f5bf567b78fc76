//! Platforms, and the choice of one from an index (OCI image specification, image-index.md).

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Arch, ImageIndex, Os};

use super::digest::Digest;

/// `os/architecture[/variant]`, in the words of Go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: Os,
    architecture: Arch,
    variant: Option<String>,
}

/// Why a platform is not read or not found.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("platform {0:?} is not valid: write os/architecture[/variant], as in linux/arm64")]
    Syntax(String),
    #[error("the index is not valid: {0}")]
    Index(#[from] serde_json::Error),
    #[error("the index has nothing for {wanted}: it has {}", .found.join(", "))]
    Absent { wanted: Platform, found: Vec<String> },
}

impl Platform {
    /// What containers run on here: Linux on the architecture of this program.
    pub fn of_host() -> Self {
        Self { os: Os::Linux, architecture: Arch::default(), variant: None }
    }

    /// The image of an index that is meant for this platform; the first, if there are several. A variant that either side
    /// leaves out fits any.
    pub fn choose(&self, index: &[u8]) -> Result<Digest, PlatformError> {
        let index: ImageIndex = serde_json::from_slice(index)?;
        let offered =
            || index.manifests().iter().filter_map(|entry| Some((entry, entry.platform().as_ref()?)));
        let fits = |offered: &oci_spec::image::Platform| {
            let variants = self.variant.as_ref().zip(offered.variant().as_ref());
            *offered.os() == self.os
                && *offered.architecture() == self.architecture
                && variants.is_none_or(|(wanted, offered)| wanted == offered)
        };
        let chosen = offered().find(|(_, platform)| fits(platform));
        chosen.and_then(|(entry, _)| entry.digest().as_ref().parse().ok()).ok_or_else(|| {
            PlatformError::Absent {
                wanted: self.clone(),
                found: offered().map(|(_, platform)| describe(platform)).collect(),
            }
        })
    }
}

fn describe(offered: &oci_spec::image::Platform) -> String {
    let (os, architecture) = (offered.os().clone(), offered.architecture().clone());
    Platform { os, architecture, variant: offered.variant().clone() }.to_string()
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        if parts.iter().any(|part| part.is_empty()) {
            return Err(PlatformError::Syntax(text.to_owned()));
        }
        match parts[..] {
            [os, architecture] => {
                Ok(Self { os: os.into(), architecture: architecture.into(), variant: None })
            }
            [os, architecture, variant] => Ok(Self {
                os: os.into(),
                architecture: architecture.into(),
                variant: Some(variant.to_owned()),
            }),
            _ => Err(PlatformError::Syntax(text.to_owned())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn index() -> Vec<u8> {
        let entry = |name: &str, platform: serde_json::Value| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
                "digest": Digest::sha256(name.as_bytes()).to_string(), "platform": platform})
        };
        let entries = [
            entry("amd64", json!({"os": "linux", "architecture": "amd64"})),
            entry("v6", json!({"os": "linux", "architecture": "arm", "variant": "v6"})),
            entry("v7", json!({"os": "linux", "architecture": "arm", "variant": "v7"})),
        ];
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": entries})).unwrap()
    }

    #[test]
    fn an_image_is_chosen_by_platform() {
        let chosen = |platform: &str| platform.parse::<Platform>().unwrap().choose(&index());
        for (platform, name) in [
            ("linux/amd64", "amd64"),
            ("linux/amd64/v2", "amd64"),
            ("linux/arm/v7", "v7"),
            ("linux/arm", "v6"),
        ] {
            assert_eq!(chosen(platform).unwrap(), Digest::sha256(name.as_bytes()), "{platform}");
        }
        let absent = chosen("linux/arm64").unwrap_err().to_string();
        assert_eq!(
            absent,
            "the index has nothing for linux/arm64: it has linux/amd64, linux/arm/v6, linux/arm/v7"
        );
    }

    #[test]
    fn platforms_are_read_and_written() {
        for text in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Platform::of_host().choose(&bytes).is_err());
        }
    }
}
