//! `shoal export`: repositories of the daemon into a folder that a stock docker-registry serves.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use futures::{StreamExt, TryStreamExt};

use super::transfer::graph::Graph;
use super::transfer::progress::Output;
use super::transfer::pull::{self, blob_file, small_file};
use super::transfer::{self, Session, TRANSFERS_MAX, concerns_all};
use super::{CommandError, Which};
use crate::oci::{Reference, RepoName, Tag, storage};

#[derive(Args, Debug)]
pub(super) struct ExportArguments {
    /// The root directory of the registry. What is there and has its digest is not written again
    folder: PathBuf,
    /// The repositories to write; without any, all
    #[arg(value_name = "REPO")]
    repositories: Vec<RepoName>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(arguments: ExportArguments) -> Result<(), CommandError> {
    let ExportArguments { folder, repositories, output, which } = arguments;
    transfer::run(&which, &output, async |session| {
        let repositories = if repositories.is_empty() {
            let all = session.registry.repositories().await?;
            all.context("the daemon does not list its repositories: name those to write")?
        } else {
            repositories
        };
        for repo in &repositories {
            let tags = session.registry.tags(repo).await?;
            for tag in tags.with_context(|| format!("repository {repo} is unknown to the daemon"))? {
                match export(session, &folder, repo, &tag).await {
                    Err(error) if concerns_all(&error) => return Err(error),
                    Err(error) => session.progress.failed(&format!("{repo}:{tag}"), &format!("{error:#}")),
                    Ok(()) => (),
                }
            }
        }
        Ok(())
    })
}

/// Writes one image with what refers to it, its tag last: no link leads to what is not there.
async fn export(session: &Session, folder: &Path, repo: &RepoName, tag: &Tag) -> anyhow::Result<()> {
    let image = pull::graph(session, repo, &Reference::Tag(tag.clone()), None).await?;
    let top = image.top().context("the image has no manifest")?.digest;
    // Signatures and the like have no tag; what signs them in turn is found in the same way.
    let (mut seen, mut open) = (HashSet::new(), vec![image]);
    while let Some(graph) = open.pop() {
        write(session, folder, repo, &graph).await?;
        for manifest in &graph.manifests {
            for referrer in session.registry.referrers(repo, &manifest.digest).await? {
                if seen.insert(referrer) {
                    open.push(pull::graph(session, repo, &Reference::Digest(referrer), None).await?);
                }
            }
        }
    }
    let link = storage::link_content(&top);
    small_file(folder.join(storage::tag_index_link(repo, tag, &top)), link.clone()).await?;
    if small_file(folder.join(storage::tag_link(repo, tag)), link).await? {
        session.progress.manifest(repo, &top, tag.as_str());
        session.progress.line(|| format!("{repo}:{tag} is {top}"));
    }
    Ok(())
}

/// Writes blobs and manifests, and then that the repository has them.
async fn write(session: &Session, folder: &Path, repo: &RepoName, graph: &Graph) -> anyhow::Result<()> {
    let blobs = futures::stream::iter(&graph.blobs).map(|blob| async move {
        if blob.non_distributable && !session.registry.has_blob(repo, &blob.digest).await? {
            return Ok(());
        }
        blob_file(session, repo, blob, folder.join(storage::blob_data(&blob.digest))).await?;
        let link = folder.join(storage::layer_link(repo, &blob.digest));
        small_file(link, storage::link_content(&blob.digest)).await.map(drop)
    });
    blobs.buffer_unordered(TRANSFERS_MAX).try_collect::<()>().await?;
    for manifest in &graph.manifests {
        let digest = &manifest.digest;
        small_file(folder.join(storage::blob_data(digest)), manifest.bytes.clone()).await?;
        let link = folder.join(storage::revision_link(repo, digest));
        if small_file(link, storage::link_content(digest)).await? {
            session.progress.manifest(repo, digest, &digest.to_string());
        }
    }
    Ok(())
}
