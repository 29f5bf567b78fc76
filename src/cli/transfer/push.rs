//! From files into the registry of the daemon.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::archive::{Archive, Member};
use super::graph::Graph;
use super::registry::Upload;
use super::{Session, TRANSFERS_MAX, blocking};
use crate::oci::manifest::{Descriptor, MANIFEST_BYTES_MAX};
use crate::oci::{Digest, Platform, RepoName, Tag, image_layout, storage};

/// Blobs and manifests in files, by digest. Nothing is believed of them before it was compared.
#[derive(Clone)]
pub(in crate::cli) struct Content {
    archive: Archive,
    names: Names,
}

/// How a digest becomes the name of a member.
#[derive(Clone)]
enum Names {
    ImageLayout,
    /// Distribution's layout, below its `v2`.
    Storage,
    DockerArchive(Arc<HashMap<Digest, String>>),
}

impl Content {
    /// Of an OCI image layout.
    pub(in crate::cli) fn of_layout(archive: Archive) -> Self {
        Self { archive, names: Names::ImageLayout }
    }

    /// Of a docker-registry; `v2` is the folder of that name.
    pub(in crate::cli) fn of_storage(v2: PathBuf) -> Self {
        Self { archive: Archive::Folder(v2), names: Names::Storage }
    }

    /// Of a docker-archive, whose names say nothing of digests.
    pub(in crate::cli) fn of_docker_archive(archive: Archive, names: HashMap<Digest, String>) -> Self {
        Self { archive, names: Names::DockerArchive(Arc::new(names)) }
    }

    fn name(&self, digest: &Digest) -> Option<String> {
        match &self.names {
            Names::ImageLayout => Some(image_layout::blob(digest)),
            Names::Storage => Some(storage::below_base(&storage::blob_data(digest)).to_owned()),
            Names::DockerArchive(names) => names.get(digest).cloned(),
        }
    }

    async fn member(&self, digest: &Digest) -> anyhow::Result<Option<Member>> {
        let Some(name) = self.name(digest) else { return Ok(None) };
        let archive = self.archive.clone();
        blocking(move || Ok(archive.find(&name)?)).await
    }

    /// The bytes of a manifest, which have the digest.
    pub(in crate::cli) async fn manifest(&self, digest: Digest) -> anyhow::Result<Option<Bytes>> {
        let Some(name) = self.name(&digest) else { return Ok(None) };
        let archive = self.archive.clone();
        blocking(move || {
            let Some(bytes) = archive.read_small(&name, MANIFEST_BYTES_MAX)? else { return Ok(None) };
            let actual = Digest::of(digest.algorithm(), &bytes);
            if actual != digest {
                bail!("{name} in {} is not what it is named: its digest is {actual}", archive.label());
            }
            Ok(Some(Bytes::from(bytes)))
        })
        .await
    }

    /// Walks the image that is named by `top`, or the part of it that is meant for one platform.
    pub(in crate::cli) async fn graph(
        &self,
        top: Digest,
        platform: Option<&Platform>,
    ) -> anyhow::Result<Graph> {
        let bytes = self.manifest(top).await?;
        let bytes =
            bytes.with_context(|| format!("manifest {top} is missing in {}", self.archive.label()))?;
        let top = super::graph::manifest(top, bytes)?;
        Graph::walk(top, platform, async |digest| self.manifest(digest).await).await
    }
}

/// Puts an image into a repository: blobs first, then manifests by digest, then the tags. What is there is not sent
/// again, so that a push which broke off goes on where it was. Nothing names an image that is not whole.
pub(in crate::cli) async fn push(
    session: &Session,
    content: &Content,
    graph: &Graph,
    repo: &RepoName,
    tags: &[Tag],
) -> anyhow::Result<()> {
    let blobs = futures::stream::iter(&graph.blobs).map(|blob| push_blob(session, content, repo, blob));
    blobs.buffer_unordered(TRANSFERS_MAX).try_collect::<()>().await?;
    let (registry, progress) = (&session.registry, &session.progress);
    for manifest in &graph.manifests {
        let tagged = !tags.is_empty() && graph.top().is_some_and(|top| top.digest == manifest.digest);
        if tagged || registry.has_manifest(repo, &manifest.digest).await? {
            continue;
        }
        registry.put_manifest(repo, manifest, None).await?;
        progress.manifest(repo, &manifest.digest, &manifest.digest.to_string());
    }
    let Some(top) = graph.top() else { return Ok(()) };
    for tag in tags {
        // Also if the tag is there: it may be that of a readonly root.
        registry.put_manifest(repo, top, Some(tag)).await?;
        progress.manifest(repo, &top.digest, tag.as_str());
    }
    Ok(())
}

async fn push_blob(
    session: &Session,
    content: &Content,
    repo: &RepoName,
    blob: &Descriptor,
) -> anyhow::Result<()> {
    let (registry, progress, digest) = (&session.registry, &session.progress, &blob.digest);
    if registry.has_blob(repo, digest).await? {
        progress.present(digest);
        return Ok(());
    }
    let member = match content.member(digest).await? {
        Some(member) => member,
        None if blob.non_distributable => return Ok(()),
        None => bail!("blob {digest} is missing in {}: the image is not whole", content.archive.label()),
    };
    if let Some(said) = blob.size_bytes.filter(|said| *said != member.size_bytes) {
        bail!("{} has {} bytes, its manifest says {said}", member.label, member.size_bytes);
    }
    let location = match registry.open_upload(repo, digest).await? {
        Upload::Mounted => {
            progress.mounted(digest);
            return Ok(());
        }
        Upload::Open(location) => location,
    };
    let transfer = progress.blob(digest, member.size_bytes, None);
    let telling = transfer.clone();
    registry.push_blob(location, digest, &member, move |bytes| telling.advance(bytes)).await?;
    transfer.finish();
    Ok(())
}
