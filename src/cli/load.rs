//! `shoal load`: an OCI layout or a docker-archive into a repository.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use flate2::read::MultiGzDecoder;

use super::transfer::archive::{Archive, Member};
use super::transfer::graph::{self, Graph, GraphError};
use super::transfer::progress::Output;
use super::transfer::pull::digest_of;
use super::transfer::push::{Content, push};
use super::transfer::selection::{Offer, Request, select};
use super::transfer::{self, Session, blocking};
use super::{CommandError, Which};
use crate::oci::docker_archive::{self, Compression, DockerArchiveError, Layer};
use crate::oci::image_layout::{self, LayoutIndex};
use crate::oci::{Algorithm, Digest, ImageName, Platform};

#[derive(Args, Debug)]
pub(super) struct LoadArguments {
    /// An OCI layout (folder or tar) or a docker-archive (tar), tars also packed with gzip; - for standard input
    path: PathBuf,
    /// Where to. Without it the names in the archive say so, less the registry that they begin with
    #[arg(value_name = "REPO[:TAG]")]
    name: Option<ImageName>,
    /// The image to load, if there are several: its name or tag in the archive, or its digest
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    image: Option<String>,
    /// Load every image that has a tag, under its own tag
    #[arg(long)]
    all: bool,
    /// Load only what is meant for one platform, as in linux/arm64
    #[arg(long)]
    platform: Option<Platform>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(arguments: LoadArguments) -> Result<(), CommandError> {
    let LoadArguments { path, name, image, all, platform, output, which } = arguments;
    transfer::run(&which, &output, async |session| {
        let source = blocking(move || Source::open(Archive::open(&path)?)).await?;
        let request = Request { name, image, all };
        for chosen in select(&source.offers(), &request)? {
            let (content, graph) = source.image(chosen.offer, platform.as_ref()).await?;
            let repo = &chosen.repo;
            push(session, &content, &graph, repo, &chosen.tags).await?;
            report(
                session,
                &graph,
                &chosen.tags.iter().map(|tag| format!("{repo}:{tag}")).collect::<Vec<_>>(),
            );
        }
        Ok(())
    })
}

fn report(session: &Session, graph: &Graph, names: &[String]) {
    if let Some(top) = graph.top() {
        session.progress.line(|| format!("{} is {}", names.join(", "), top.digest));
    }
}

/// What a path holds.
enum Source {
    Layout { archive: Archive, images: Vec<(Digest, Vec<String>)> },
    DockerArchive { archive: Archive, images: Vec<docker_archive::Image> },
}

impl Source {
    /// Blocks.
    fn open(archive: Archive) -> anyhow::Result<Self> {
        let label = archive.label();
        if let Some(index) = archive.read_small(image_layout::INDEX, image_layout::INDEX_BYTES_MAX)? {
            let what = || format!("{} in {label}", image_layout::INDEX);
            let index = LayoutIndex::parse(&index).with_context(what)?;
            // One image may be listed once for each of its names.
            let mut images: Vec<(Digest, Vec<String>)> = Vec::new();
            for listed in index.images().with_context(what)? {
                let names = listed.full_name.into_iter().chain(listed.ref_name);
                match images.iter_mut().find(|(digest, _)| *digest == listed.digest) {
                    Some((_, known)) => known.extend(names),
                    None => images.push((listed.digest, names.collect())),
                }
            }
            return Ok(Self::Layout { archive, images });
        }
        let index = match &archive {
            Archive::Folder(_) => None,
            Archive::Tar(_) => archive.read_small(docker_archive::INDEX, docker_archive::INDEX_BYTES_MAX)?,
        };
        let Some(index) = index else {
            bail!(
                "{label} is neither an OCI layout (it has no index.json) nor a docker-archive (manifest.json in a tar)"
            );
        };
        let images = docker_archive::parse(&index);
        let images = images.with_context(|| format!("{} in {label}", docker_archive::INDEX))?;
        Ok(Self::DockerArchive { archive, images })
    }

    fn offers(&self) -> Vec<Offer> {
        match self {
            Self::Layout { images, .. } => images
                .iter()
                .map(|(digest, names)| Offer { names: names.clone(), digest: Some(*digest) })
                .collect(),
            Self::DockerArchive { images, .. } => {
                images.iter().map(|image| Offer { names: image.repo_tags.clone(), digest: None }).collect()
            }
        }
    }

    /// The image that was offered in this place.
    async fn image(&self, offer: usize, platform: Option<&Platform>) -> anyhow::Result<(Content, Graph)> {
        match self {
            Self::Layout { archive, images } => {
                let content = Content::of_layout(archive.clone());
                let graph = content.graph(images[offer].0, platform).await;
                Ok((content, graph.map_err(|error| hint(error, platform))?))
            }
            Self::DockerArchive { archive, images } => {
                let (archive, image) = (archive.clone(), images[offer].clone());
                let (content, manifest) = blocking(move || describe(archive, &image)).await?;
                let manifest = graph::manifest(Digest::sha256(&manifest), manifest)?;
                let graph = Graph::walk(manifest, None, async |_| Ok(None)).await?;
                Ok((content, graph))
            }
        }
    }
}

/// Docker writes indexes whole, and of what they name only the platform that it has.
fn hint(error: anyhow::Error, platform: Option<&Platform>) -> anyhow::Error {
    match error.downcast_ref() {
        Some(GraphError::Missing { .. }) if platform.is_none() => {
            error.context("not every platform is in the archive: choose one with --platform")
        }
        _ => error,
    }
}

/// Reads an image of a docker-archive through, since nothing in it has a digest that could be believed, and makes its
/// manifest. The layers have to be those that the config names. Blocks.
fn describe(archive: Archive, image: &docker_archive::Image) -> anyhow::Result<(Content, Bytes)> {
    let label = archive.label();
    let missing = |name: &str| format!("{name} is missing in {label}, though manifest.json names it");
    let config = archive.read_small(&image.config, docker_archive::CONFIG_BYTES_MAX)?;
    let config = config.with_context(|| missing(&image.config))?;
    let config_digest = Digest::sha256(&config);
    if let Some(named) = docker_archive::digest_in_name(&image.config).filter(|named| *named != config_digest)
    {
        bail!("{} in {label} is damaged: it should have digest {named}", image.config);
    }
    let diff_ids = docker_archive::diff_ids(&config);
    let diff_ids = diff_ids.with_context(|| format!("{} in {label}", image.config))?;
    if diff_ids.len() != image.layers.len() {
        let error = DockerArchiveError::LayerCount { diff_ids: diff_ids.len(), layers: image.layers.len() };
        return Err(error).with_context(|| format!("{} in {label}", docker_archive::INDEX));
    }
    // By name: what is named often is read once.
    let mut read: HashMap<&str, ReadLayer> = HashMap::new();
    let mut names = HashMap::from([(config_digest, image.config.clone())]);
    let mut layers = Vec::with_capacity(diff_ids.len());
    for (name, diff_id) in image.layers.iter().zip(&diff_ids) {
        let read = match read.entry(name) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                *new.insert(read_layer(&archive.find(name)?.with_context(|| missing(name))?)?)
            }
        };
        if let Some(unpacked) = read.unpacked.filter(|unpacked| unpacked != diff_id) {
            bail!(
                "{name} in {label} is damaged: unpacked it has digest {unpacked}, the config says {diff_id}"
            );
        }
        names.insert(read.layer.digest, name.clone());
        layers.push(read.layer);
    }
    let manifest = docker_archive::manifest(&config, &layers)?;
    Ok((Content::of_docker_archive(archive, names), manifest.into()))
}

#[derive(Clone, Copy)]
struct ReadLayer {
    layer: Layer,
    /// Its digest when it is unpacked. `None` for zstd: its own checksum, and the client that unpacks it, have to do.
    unpacked: Option<Digest>,
}

fn read_layer(member: &Member) -> anyhow::Result<ReadLayer> {
    let failed = || format!("cannot read {}", member.label);
    let mut magic = Vec::new();
    member.reader().take(Compression::MAGIC_BYTES as u64).read_to_end(&mut magic).with_context(failed)?;
    let compression = Compression::of(&magic);
    let digest = digest_of(member.reader(), Algorithm::Sha256).with_context(failed)?;
    let unpacked = match compression {
        Compression::None => Some(digest),
        Compression::Gzip => {
            Some(digest_of(MultiGzDecoder::new(member.reader()), Algorithm::Sha256).with_context(failed)?)
        }
        Compression::Zstd => None,
    };
    Ok(ReadLayer { layer: Layer { digest, size_bytes: member.size_bytes, compression }, unpacked })
}
