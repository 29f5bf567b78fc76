//! `shoal layout`: keeps folders that are image layouts in the daemon's store, where others find them by their CID.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper::{Method, Request};
use indicatif::{HumanBytes, HumanDuration};

use super::client::{ask, encoded, exchange};
use super::status::print_json;
use super::transfer::archive::Archive;
use super::transfer::progress::{Output, Progress};
use super::transfer::{self, blocking};
use super::{CommandError, Which, print};
use crate::api::{self, Changed, LayoutFile};
use crate::oci::{Digest, RepoName, image_layout};

/// Files of one layout; the daemon takes no more.
const FILES_MAX: usize = 100_000;
/// Tags that a person is shown.
const TAGS_SHOWN_MAX: usize = 20;

#[derive(Debug, Subcommand)]
pub(super) enum LayoutCommand {
    /// Add a folder that is an OCI layout, keep it, and print what to pull it as
    ///
    /// Whoever runs a daemon, or Kubo, can have it by the CID. Files whose name begins with a dot are left out.
    #[command(
        after_help = "Example: skopeo copy docker://alpine:3.20 oci:LAYOUT:3.20 && shoal layout add LAYOUT"
    )]
    Add(AddArguments),
    /// List the layouts that are kept
    #[command(after_help = "Example: shoal layout ls --json | jq -r '.[].cid'")]
    Ls {
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep a layout no longer
    #[command(
        after_help = "Example: shoal layout rm bafybei… && shoal gc\nWhat only it needed goes when the daemon frees space, or by `shoal gc`."
    )]
    Rm {
        /// Its CID, also with ipfs/ before it
        cid: String,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Args, Debug)]
pub(super) struct AddArguments {
    folder: PathBuf,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(command: LayoutCommand) -> Result<(), CommandError> {
    match command {
        LayoutCommand::Add(arguments) => add(arguments),
        LayoutCommand::Ls { which, json } => list(&which, json),
        LayoutCommand::Rm { cid, which } => remove(&which, &cid),
    }
}

fn add(arguments: AddArguments) -> Result<(), CommandError> {
    let AddArguments { folder, output, which } = arguments;
    let socket = super::load(which.config.clone())?.store.root_directory.join(api::SOCKET);
    transfer::run(&which, &output, async |session| {
        let walked = folder.clone();
        let files = blocking(move || files_of(&walked)).await?;
        let name = folder.canonicalize().ok();
        let name = name.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        let target = format!("/v0/layouts?name={}", encoded(&name.unwrap_or_default()));
        let body = StreamBody::new(body(folder.clone(), files, session.progress.clone()).map_ok(Frame::data));
        let request = Request::builder().method(Method::POST).uri(target).body(body)?;
        let layout: api::Layout = exchange(&socket, request).await?;
        let reference = format!("ipfs/{}", layout.cid);
        match output.is_json() {
            true => print(
                &serde_json::json!({"event": "layout", "cid": layout.cid, "reference": reference})
                    .to_string(),
            ),
            false => print(&reference),
        }
        let repo: RepoName = reference.parse()?;
        let tags = session.registry.tags(&repo).await?.unwrap_or_default();
        for tag in tags.iter().take(TAGS_SHOWN_MAX) {
            session.progress.line(|| format!("{reference}:{tag}"));
        }
        Ok(())
    })
}

/// The files of a layout by their paths, sorted. Links to files count as what they lead to.
fn files_of(folder: &Path) -> anyhow::Result<Vec<String>> {
    let failed = |path: &Path| format!("cannot read {}", path.display());
    if !folder.metadata().with_context(|| failed(folder))?.is_dir() {
        bail!("{} is not a folder: unpack it first", folder.display());
    }
    if !folder.join(image_layout::MARKER).is_file() {
        bail!("{} is not an OCI layout: it has no file {}", folder.display(), image_layout::MARKER);
    }
    let (mut files, mut open) = (Vec::new(), vec![String::new()]);
    while let Some(directory) = open.pop() {
        let path = folder.join(&directory);
        for entry in path.read_dir().with_context(|| failed(&path))? {
            let entry = entry.with_context(|| failed(&path))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { bail!("{} is no text", entry.path().display()) };
            if name.starts_with('.') {
                continue;
            }
            let name = if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") };
            let kind = entry.path().metadata().with_context(|| failed(&entry.path()))?;
            let is_link = entry.file_type().with_context(|| failed(&entry.path()))?.is_symlink();
            if kind.is_file() {
                files.push(name);
            } else if kind.is_dir() && !is_link {
                open.push(name);
            } else {
                bail!("{} is neither a file nor a folder", entry.path().display());
            }
            if files.len() + open.len() > FILES_MAX {
                bail!("{} has more than {FILES_MAX} files", folder.display());
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// A line of JSON for each file, and its bytes; one file is open at a time.
fn body(
    folder: PathBuf,
    files: Vec<String>,
    progress: Progress,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
    let archive = Archive::Folder(folder);
    let one = move |path: String| {
        let (archive, progress) = (archive.clone(), progress.clone());
        async move { file(archive, path, progress).await.map_err(io::Error::other) }
    };
    stream::iter(files).then(one).try_flatten().boxed()
}

async fn file(
    archive: Archive,
    path: String,
    progress: Progress,
) -> anyhow::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let (label, name) = (archive.label(), path.clone());
    let member = blocking(move || Ok(archive.find(&name)?)).await?;
    let member = member.with_context(|| format!("{path} has gone from {label}"))?;
    let size_bytes = member.size_bytes;
    let transfer = digest_of(&path).map(|digest| progress.blob(&digest, size_bytes, None));
    let mut line = serde_json::to_vec(&LayoutFile { path, size_bytes })?;
    line.push(b'\n');
    let moved = transfer.clone();
    let bytes = member.read(0..size_bytes).inspect_ok(move |bytes| {
        if let Some(transfer) = &moved {
            transfer.advance(bytes.len() as u64);
        }
    });
    let end = stream::once(async move {
        if let Some(transfer) = &transfer {
            transfer.finish();
        }
        Ok(Bytes::new())
    });
    let whole = stream::iter([Ok(Bytes::from(line))]).chain(bytes).chain(end);
    Ok(whole.try_filter(|bytes| std::future::ready(!bytes.is_empty())))
}

fn digest_of(path: &str) -> Option<Digest> {
    path.strip_prefix("blobs/")?.replacen('/', ":", 1).parse().ok()
}

fn list(which: &Which, json: bool) -> Result<(), CommandError> {
    let layouts: Vec<api::Layout> = ask(which, &Method::GET, "/v0/layouts")?;
    match json {
        true => print_json(&layouts),
        false => layouts.iter().for_each(|layout| print(&row(layout, SystemTime::now()))),
    }
    Ok(())
}

fn row(layout: &api::Layout, now: SystemTime) -> String {
    let added = now.duration_since(UNIX_EPOCH + Duration::from_secs(layout.added_at_s)).unwrap_or_default();
    let (size, added) = (HumanBytes(layout.size_bytes), HumanDuration(added));
    format!("ipfs/{}  {size}  added {added} ago  {}", layout.cid, layout.name)
}

fn remove(which: &Which, cid: &str) -> Result<(), CommandError> {
    let cid = cid.trim_start_matches('/');
    let cid = cid.strip_prefix("ipfs/").unwrap_or(cid);
    let removed: Changed = ask(which, &Method::DELETE, &format!("/v0/layouts?cid={}", encoded(cid)))?;
    match removed.changed {
        true => print(&format!("ipfs/{cid} is kept no longer")),
        false => return Err(anyhow::anyhow!("no layout {cid} is kept: see `shoal layout ls`").into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_layout_are_found_and_hidden_ones_left_out() {
        let folder = tempfile::TempDir::new().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        };
        assert!(files_of(folder.path()).unwrap_err().to_string().contains("it has no file oci-layout"));
        ["oci-layout", "index.json", "blobs/sha256/b", "blobs/sha256/a", ".git/config", "blobs/.x"]
            .into_iter()
            .for_each(write);
        std::os::unix::fs::symlink("a", folder.path().join("blobs/sha256/c")).unwrap();
        let files = ["blobs/sha256/a", "blobs/sha256/b", "blobs/sha256/c", "index.json", "oci-layout"];
        assert_eq!(files_of(folder.path()).unwrap(), files);
        // It would never end.
        std::os::unix::fs::symlink("..", folder.path().join("blobs/up")).unwrap();
        assert!(files_of(folder.path()).unwrap_err().to_string().contains("neither a file nor a folder"));
    }
}
