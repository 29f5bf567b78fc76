//! `shoal save`: an image of the registry into an OCI layout or a docker-archive.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::{StreamExt, TryStreamExt};
use tokio::io::AsyncWrite;

use super::transfer::archive::Archive;
use super::transfer::graph::Graph;
use super::transfer::progress::Output;
use super::transfer::pull::{self, Beside, blob_file, copy_blob, is_elsewhere, small_file};
use super::transfer::{self, Session, TRANSFERS_MAX, blocking, tar_writer};
use super::{CommandError, Which};
use crate::oci::image_layout::{self, LayoutIndex};
use crate::oci::{Digest, ImageName, Platform, Reference, RepoName, docker_archive};

#[derive(Args, Debug)]
pub(super) struct SaveArguments {
    /// The image
    #[arg(value_name = "REPO[:TAG|@DIGEST]")]
    name: ImageName,
    /// A folder; a tar archive, if it ends in .tar; - for standard output
    path: PathBuf,
    #[arg(long, value_enum, default_value_t = Format::Oci)]
    format: Format,
    /// Save only what is meant for one platform, as in linux/arm64. A docker-archive has one in any case: without this it
    /// is that of this machine
    #[arg(long)]
    platform: Option<Platform>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    which: Which,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// An OCI image layout: a folder or a tar archive
    Oci,
    /// What `docker load` reads: a tar archive
    DockerArchive,
}

/// What the names of packed archives end in.
const PACKED: [&str; 5] = ["gz", "tgz", "zst", "bz2", "xz"];

/// An image on its way out.
struct Image<'a> {
    session: &'a Session,
    repo: &'a RepoName,
    reference: &'a Reference,
    graph: Graph,
}

pub(super) fn run(arguments: SaveArguments) -> Result<(), CommandError> {
    let SaveArguments { name, path, format, platform, output, which } = arguments;
    if PACKED.iter().any(|packed| path.extension().is_some_and(|extension| extension == *packed)) {
        return Err(
            anyhow::anyhow!("archives are not packed here: save a .tar, or to - and pack that").into()
        );
    }
    let to_stdout = path.as_os_str() == "-";
    let is_tar = to_stdout || path.extension().is_some_and(|extension| extension == "tar");
    if format == Format::DockerArchive && !is_tar {
        return Err(anyhow::anyhow!("a docker-archive is a tar: let {} end in .tar", path.display()).into());
    }
    if to_stdout && output.is_json() {
        return Err(anyhow::anyhow!("standard output cannot take both the archive and --json").into());
    }
    let platform = platform.or_else(|| (format == Format::DockerArchive).then(Platform::of_host));
    transfer::run(&which, &output, async |session| {
        let latest = || "latest".parse().map(Reference::Tag);
        let reference = &name.reference.map_or_else(latest, Ok)?;
        let graph = pull::graph(session, &name.repo, reference, platform.as_ref()).await?;
        let image = Image { session, repo: &name.repo, reference, graph };
        if to_stdout {
            let stdout = std::io::stdout().as_fd().try_clone_to_owned().context("cannot write to stdout")?;
            return image.write_tar(&mut tokio::fs::File::from(std::fs::File::from(stdout)), format).await;
        }
        if is_tar {
            let (beside, mut file) = Beside::create(path).await?;
            image.write_tar(&mut file, format).await?;
            return beside.commit(file).await;
        }
        image.write_folder(&path).await
    })
}

impl Image<'_> {
    /// Adds it to an OCI layout, or begins one. The index comes last: it never names what is not whole.
    async fn write_folder(&self, folder: &Path) -> anyhow::Result<()> {
        let known = folder.to_owned();
        let mut index = blocking(move || read_index(&known)).await?;
        let at = |name: &str| folder.join(name);
        small_file(at(image_layout::MARKER), Bytes::from_static(image_layout::MARKER_CONTENT.as_bytes()))
            .await?;
        let blobs = futures::stream::iter(&self.graph.blobs).map(|blob| async move {
            if is_elsewhere(self.session, self.repo, blob).await? {
                return Ok(());
            }
            let path = folder.join(image_layout::blob(&blob.digest));
            blob_file(self.session, self.repo, blob, path).await
        });
        blobs.buffer_unordered(TRANSFERS_MAX).try_collect::<()>().await?;
        for manifest in &self.graph.manifests {
            small_file(at(&image_layout::blob(&manifest.digest)), manifest.bytes.clone()).await?;
            self.session.progress.manifest(self.repo, &manifest.digest, &manifest.digest.to_string());
        }
        self.name_in(&mut index)?;
        small_file(at(image_layout::INDEX), index.to_bytes()?.into()).await.map(drop)
    }

    async fn write_tar(&self, out: &mut (impl AsyncWrite + Unpin), format: Format) -> anyhow::Result<()> {
        match format {
            Format::Oci => {
                tar_writer::append(out, image_layout::MARKER, image_layout::MARKER_CONTENT.as_bytes())
                    .await?;
                self.write_blobs(out, image_layout::blob).await?;
                for manifest in &self.graph.manifests {
                    tar_writer::append(out, &image_layout::blob(&manifest.digest), &manifest.bytes).await?;
                    self.session.progress.manifest(self.repo, &manifest.digest, &manifest.digest.to_string());
                }
                let mut index = LayoutIndex::new();
                self.name_in(&mut index)?;
                tar_writer::append(out, image_layout::INDEX, &index.to_bytes()?).await?;
            }
            Format::DockerArchive => {
                let top = self.graph.top().context("the image has no manifest")?;
                let names = match self.reference {
                    Reference::Tag(tag) => vec![format!("{}:{tag}", self.repo)],
                    Reference::Digest(_) => Vec::new(),
                };
                let image = docker_archive::describe(&top.bytes, names)?;
                let config = docker_archive::digest_in_name(&image.config);
                let name = |digest: &Digest| match config == Some(*digest) {
                    true => docker_archive::config_name(digest),
                    false => docker_archive::layer_name(digest),
                };
                self.write_blobs(out, name).await?;
                let index = docker_archive::to_bytes(std::slice::from_ref(&image))?;
                tar_writer::append(out, docker_archive::INDEX, &index).await?;
            }
        }
        tar_writer::finish(out).await
    }

    /// One after the other: an archive has one end.
    async fn write_blobs<W: AsyncWrite + Unpin>(
        &self,
        out: &mut W,
        name: impl Fn(&Digest) -> String,
    ) -> anyhow::Result<()> {
        for blob in &self.graph.blobs {
            if is_elsewhere(self.session, self.repo, blob).await? {
                continue;
            }
            let name = name(&blob.digest);
            let begin = async |out: &mut W, length| tar_writer::begin(out, &name, length).await;
            let length = copy_blob(self.session, self.repo, blob, out, begin).await?;
            tar_writer::end(out, length).await?;
        }
        Ok(())
    }

    fn name_in(&self, index: &mut LayoutIndex) -> anyhow::Result<()> {
        let top = self.graph.top().context("the image has no manifest")?;
        let tag = match self.reference {
            Reference::Tag(tag) => Some(tag.as_str()),
            Reference::Digest(_) => None,
        };
        Ok(index.put(&top.digest, &top.media_type, top.bytes.len() as u64, tag)?)
    }
}

/// The index of a layout that an image is added to; a new one for a folder that is empty or not there. Blocks.
fn read_index(folder: &Path) -> anyhow::Result<LayoutIndex> {
    let archive = Archive::Folder(folder.to_owned());
    let what = || format!("{} in {}", image_layout::INDEX, folder.display());
    if let Some(index) = archive.read_small(image_layout::INDEX, image_layout::INDEX_BYTES_MAX)? {
        return LayoutIndex::parse(&index).with_context(what);
    }
    let begun = archive.find(image_layout::MARKER)?.is_some();
    let occupied = match folder.read_dir() {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    if occupied && !begun {
        bail!(
            "{} has something else in it: name a new folder, or one that is an OCI layout",
            folder.display()
        );
    }
    Ok(LayoutIndex::new())
}
