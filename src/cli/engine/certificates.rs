//! The folders in which engines look for the authority of a registry, here the mirror (containers/image,
//! docs/containers-certs.d.5.md; Docker, "Verify repository client with certificates"; containerd, docs/hosts.md).

use std::path::{Path, PathBuf};

use super::MirrorUrl;

pub(in crate::cli) const PODMAN: &str = "/etc/containers/certs.d";
/// Of an authority, in PEM.
pub(in crate::cli) const FILE: &str = "ca.crt";

/// Where the authority of a mirror belongs below such a folder.
pub(in crate::cli) fn place(folder: &Path, mirror: &MirrorUrl) -> PathBuf {
    folder.join(mirror.authority()).join(FILE)
}
