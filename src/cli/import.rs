//! `shoal import`: the folder of a stock docker-registry into the daemon.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use wildmatch::WildMatch;

use super::transfer::archive::Archive;
use super::transfer::progress::Output;
use super::transfer::push::{Content, push};
use super::transfer::{self, Session, blocking, concerns_all};
use super::{CommandError, Which};
use crate::oci::name::REPO_NAME_BYTES_MAX;
use crate::oci::{Algorithm, Digest, RepoName, Tag, storage};

/// Repositories, and tags and manifests of one of them.
const NAMES_MAX: usize = 1_000_000;

#[derive(Args, Debug)]
pub(super) struct ImportArguments {
    /// The root directory of the registry, or the docker/registry/v2 in it. It should not be written to meanwhile
    folder: PathBuf,
    /// Take over only these repositories; * stands for any characters. May be given several times
    #[arg(long, value_name = "PATTERN")]
    repository: Vec<String>,
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    which: Which,
}

pub(super) fn run(arguments: ImportArguments) -> Result<(), CommandError> {
    let ImportArguments { folder, repository, output, which } = arguments;
    let patterns: Vec<WildMatch> = repository.iter().map(|pattern| WildMatch::new(pattern)).collect();
    transfer::run(&which, &output, async |session| {
        let (folder_name, storage) =
            (folder.display().to_string(), blocking(move || Storage::open(&folder)).await?);
        let (walked, session_progress) = (storage.clone(), session.progress.clone());
        let mut repositories =
            blocking(move || walked.repositories(&|what, why| session_progress.failed(what, why))).await?;
        if !patterns.is_empty() {
            repositories.retain(|repo| patterns.iter().any(|pattern| pattern.matches(repo.as_str())));
        }
        if repositories.is_empty() {
            bail!(
                "{folder_name} has no repository{}",
                if patterns.is_empty() { "" } else { " of that name" }
            );
        }
        for repo in &repositories {
            import(session, &storage, repo).await?;
        }
        Ok(())
    })
}

/// Takes over one repository: what has a tag, then the manifests that have none. Blobs that no manifest names are
/// garbage, and stay behind. An error here concerns all repositories.
async fn import(session: &Session, storage: &Storage, repo: &RepoName) -> anyhow::Result<()> {
    let content = Content::of_storage(storage.v2.clone());
    let (walked, name, progress) = (storage.clone(), repo.clone(), session.progress.clone());
    let images = blocking(move || walked.images(&name, &|what, why| progress.failed(what, why))).await?;
    let mut done = HashSet::new();
    let (tagged, untagged): (Vec<_>, Vec<_>) = images.into_iter().partition(|(_, tags)| !tags.is_empty());
    for (digest, tags) in tagged.into_iter().chain(untagged) {
        if tags.is_empty() && done.contains(&digest) {
            continue;
        }
        let moved = async {
            let graph = content.graph(digest, None).await?;
            push(session, &content, &graph, repo, &tags).await?;
            anyhow::Ok(graph)
        };
        let name = match tags.first() {
            Some(tag) => format!("{repo}:{tag}"),
            None => format!("{repo}@{digest}"),
        };
        match moved.await {
            Ok(graph) => {
                done.extend(graph.manifests.iter().map(|manifest| manifest.digest));
                session.progress.line(|| format!("{name} is {digest}"));
            }
            Err(error) if concerns_all(&error) => return Err(error),
            Err(error) => session.progress.failed(&name, &format!("{error:#}")),
        }
    }
    Ok(())
}

/// The folder that is called `v2`. Calls block; `complain` is told what is broken and why.
#[derive(Clone)]
struct Storage {
    v2: PathBuf,
}

impl Storage {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let below = [storage::BASE, "registry/v2", "v2", ""].map(|below| folder.join(below));
        let found = below.into_iter().find(|v2| v2.join("repositories").is_dir());
        let v2 = found.with_context(|| {
            format!(
                "{} is not the folder of a registry: it has no {}/repositories",
                folder.display(),
                storage::BASE
            )
        })?;
        Ok(Self { v2 })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.v2.join(storage::below_base(path))
    }

    /// Every folder that has manifests, in the order of the names. Links are not followed.
    fn repositories(&self, complain: &dyn Fn(&str, &str)) -> anyhow::Result<Vec<RepoName>> {
        let top = self.v2.join("repositories");
        let (mut found, mut open) = (Vec::new(), vec![String::new()]);
        while let Some(name) = open.pop() {
            for below in folders(&top.join(&name))? {
                if below == storage::MANIFESTS {
                    match name.parse() {
                        Ok(repo) => found.push(repo),
                        Err(error) => complain(&name, &format!("{error}")),
                    }
                } else if !below.starts_with('_') {
                    let name = if name.is_empty() { below } else { format!("{name}/{below}") };
                    if name.len() <= REPO_NAME_BYTES_MAX {
                        open.push(name);
                    }
                }
            }
            if found.len() + open.len() > NAMES_MAX {
                bail!("{} has more than {NAMES_MAX} repositories", top.display());
            }
        }
        found.sort();
        Ok(found)
    }

    /// The manifests of a repository, each with its tags.
    fn images(
        &self,
        repo: &RepoName,
        complain: &dyn Fn(&str, &str),
    ) -> anyhow::Result<BTreeMap<Digest, Vec<Tag>>> {
        let mut images: BTreeMap<Digest, Vec<Tag>> = BTreeMap::new();
        let revisions = self.at(&storage::revisions(repo));
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512].map(Algorithm::as_str) {
            for hex in folders(&revisions.join(algorithm))? {
                let Ok(digest) = format!("{algorithm}:{hex}").parse::<Digest>() else { continue };
                // A manifest that was deleted leaves its folder behind.
                match self.link(&storage::revision_link(repo, &digest)) {
                    Ok(Some(_)) => drop(images.entry(digest).or_default()),
                    Ok(None) => (),
                    Err(error) => complain(&format!("{repo}@{digest}"), &format!("{error:#}")),
                }
            }
        }
        for name in folders(&self.at(&storage::tags(repo)))? {
            let told = format!("{repo}:{name}");
            let target = name.parse::<Tag>().map_err(anyhow::Error::from);
            match target.and_then(|tag| Ok((self.link(&storage::tag_link(repo, &tag))?, tag))) {
                Ok((Some(digest), tag)) => images.entry(digest).or_default().push(tag),
                Ok((None, _)) => complain(&told, "the tag has no current/link"),
                Err(error) => complain(&told, &format!("{error:#}")),
            }
            if images.len() > NAMES_MAX {
                bail!("{repo} has more than {NAMES_MAX} manifests");
            }
        }
        Ok(images)
    }

    fn link(&self, path: &str) -> anyhow::Result<Option<Digest>> {
        let archive = Archive::Folder(self.v2.clone());
        // A link file is a few hundred bytes at most.
        let bytes_max = usize::try_from(storage::LINK_BYTES_MAX).unwrap_or(usize::MAX);
        let Some(content) = archive.read_small(storage::below_base(path), bytes_max)? else {
            return Ok(None);
        };
        let digest = storage::parse_link(&content);
        Ok(Some(digest.with_context(|| format!("{} is not a link to a digest", self.at(path).display()))?))
    }
}

/// The names of the folders in a folder, in order; none if it is not there. Names that are not text are no names of
/// distribution's.
fn folders(folder: &Path) -> anyhow::Result<Vec<String>> {
    let failed = || format!("cannot read {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(failed),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(failed)?;
        if entry.file_type().with_context(failed)?.is_dir() {
            names.extend(entry.file_name().into_string().ok());
        }
        if names.len() > NAMES_MAX {
            bail!("{} has more than {NAMES_MAX} entries", folder.display());
        }
    }
    names.sort_unstable();
    Ok(names)
}
