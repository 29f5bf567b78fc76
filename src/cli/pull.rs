//! `shoal pull`: has the daemon fetch an image whole, as a client would, and shows where each blob comes from.

use std::str::FromStr;

use clap::Args;
use futures::{StreamExt, TryStreamExt};

use super::transfer::progress::{Output, short};
use super::transfer::pull::{self, copy_blob, is_elsewhere};
use super::transfer::{self, TRANSFERS_MAX};
use super::{CommandError, Which};
use crate::oci::platform::PlatformError;
use crate::oci::{ImageName, Platform, Reference};

#[derive(Args, Debug)]
pub(super) struct PullArguments {
    /// The image, with its registry if that is another than the default one
    #[arg(value_name = "IMAGE", value_parser = ImageName::with_registry)]
    name: ImageName,
    #[command(flatten)]
    platforms: PlatformArguments,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    which: Which,
}

#[derive(Args, Debug)]
pub(super) struct PlatformArguments {
    /// Of an image for several platforms: the one that is meant, as in linux/arm64, or all [default: this machine's]
    #[arg(long, value_name = "PLATFORM|all")]
    platform: Option<Platforms>,
}

#[derive(Clone, Debug)]
enum Platforms {
    All,
    One(Platform),
}

impl FromStr for Platforms {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        if text == "all" { Ok(Self::All) } else { text.parse().map(Self::One) }
    }
}

impl PlatformArguments {
    /// `None`: all of them.
    pub(super) fn platform(&self) -> Option<Platform> {
        match &self.platform {
            None => Some(Platform::of_host()),
            Some(Platforms::One(platform)) => Some(platform.clone()),
            Some(Platforms::All) => None,
        }
    }
}

pub(super) fn run(arguments: PullArguments) -> Result<(), CommandError> {
    let PullArguments { name, platforms, output, which } = arguments;
    let platform = platforms.platform();
    transfer::run(&which, &output, async |session| {
        let latest = || "latest".parse().map(Reference::Tag);
        let (repo, reference) = (&name.repo, &name.reference.clone().map_or_else(latest, Ok)?);
        let graph = pull::graph(session, repo, reference, platform.as_ref()).await?;
        let blobs = futures::stream::iter(&graph.blobs).map(|blob| async move {
            if is_elsewhere(session, repo, blob).await? {
                return Ok(());
            }
            // What goes by has been kept by the daemon.
            copy_blob(session, repo, blob, &mut tokio::io::sink(), async |_, _| Ok(())).await.map(drop)
        });
        blobs.buffer_unordered(TRANSFERS_MAX).try_collect::<()>().await?;
        for manifest in &graph.manifests {
            session.progress.manifest(repo, &manifest.digest, &manifest.digest.to_string());
        }
        if let Some(top) = graph.top() {
            session.progress.line(|| format!("{} is {}", name.shown(), short(&top.digest)));
        }
        Ok(())
    })
}
