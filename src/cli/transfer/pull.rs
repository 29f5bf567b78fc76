//! From the registry of the daemon into files, each of which appears whole or not at all.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::TryStreamExt;
use tempfile::NamedTempFile;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::graph::Graph;
use super::registry::BlobBody;
use super::{Session, blocking};
use crate::oci::manifest::Descriptor;
use crate::oci::{Algorithm, Digest, Hasher, Platform, Reference, RepoName};

/// Walks an image of the registry, or the part of it that is meant for one platform.
pub(in crate::cli) async fn graph(
    session: &Session,
    repo: &RepoName,
    reference: &Reference,
    platform: Option<&Platform>,
) -> anyhow::Result<Graph> {
    let top = session.registry.manifest(repo, reference).await?;
    let top = top.with_context(|| format!("manifest {reference} of {repo} is unknown to the daemon"))?;
    Graph::walk(top, platform, async |digest| {
        let child = session.registry.manifest(repo, &Reference::Digest(digest)).await?;
        Ok(child.map(|child| child.bytes))
    })
    .await
}

/// Writes a blob to `out`, with what `begin` makes of its length before it, and returns the length. The bytes are out
/// when their digest is compared: the caller drops them if this fails.
pub(in crate::cli) async fn copy_blob<W: AsyncWrite + Unpin>(
    session: &Session,
    repo: &RepoName,
    blob: &Descriptor,
    out: &mut W,
    begin: impl AsyncFnOnce(&mut W, u64) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let (digest, said) = (blob.digest, blob.size_bytes);
    let BlobBody { size_bytes: length, source, mut bytes } = session.registry.blob(repo, &digest).await?;
    if let Some(said) = said.filter(|said| *said != length) {
        bail!("blob {digest} of {repo} has {length} bytes, its manifest says {said}");
    }
    begin(out, length).await?;
    let transfer = session.progress.blob(&digest, length, source);
    let mut hasher = Hasher::new(digest.algorithm());
    while let Some(chunk) = bytes.try_next().await? {
        hasher.update(&chunk);
        out.write_all(&chunk).await.with_context(|| format!("blob {digest} is not written"))?;
        transfer.advance(chunk.len() as u64);
    }
    let actual = hasher.finish();
    if actual != digest {
        bail!("blob {digest} of {repo} is damaged: what came has digest {actual}");
    }
    transfer.finish();
    Ok(length)
}

/// Whether a blob is one that need not be in a registry, and is not in this one.
pub(in crate::cli) async fn is_elsewhere(
    session: &Session,
    repo: &RepoName,
    blob: &Descriptor,
) -> anyhow::Result<bool> {
    Ok(blob.non_distributable && !session.registry.has_blob(repo, &blob.digest).await?)
}

/// Has a blob as the file `path`. A file that is there and has the digest stays; another one is replaced.
pub(in crate::cli) async fn blob_file(
    session: &Session,
    repo: &RepoName,
    blob: &Descriptor,
    path: PathBuf,
) -> anyhow::Result<()> {
    if has_digest(&path, blob.digest).await? {
        session.progress.present(&blob.digest);
        return Ok(());
    }
    let (beside, mut file) = Beside::create(path).await?;
    copy_blob(session, repo, blob, &mut file, async |_, _| Ok(())).await?;
    beside.commit(file).await
}

/// Has these bytes as the file `path`; `false` if they were there.
pub(in crate::cli) async fn small_file(path: PathBuf, bytes: Bytes) -> anyhow::Result<bool> {
    let (known, wanted) = (path.clone(), bytes.clone());
    let there = blocking(move || {
        let same_length = known.metadata().is_ok_and(|metadata| metadata.len() == wanted.len() as u64);
        Ok(same_length && std::fs::read(&known).is_ok_and(|content| content == wanted))
    });
    if there.await? {
        return Ok(false);
    }
    let (beside, mut file) = Beside::create(path).await?;
    file.write_all(&bytes).await.with_context(|| beside.failure())?;
    beside.commit(file).await?;
    Ok(true)
}

async fn has_digest(path: &Path, digest: Digest) -> anyhow::Result<bool> {
    let path = path.to_owned();
    blocking(move || {
        if !path.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Ok(false);
        }
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(digest_of(file, digest.algorithm()).with_context(|| format!("cannot read {}", path.display()))?
            == digest)
    })
    .await
}

/// The digest of all that a reader gives; blocks.
pub(in crate::cli) fn digest_of(mut reader: impl io::Read, algorithm: Algorithm) -> io::Result<Digest> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// A file that is being written under another name, in the folder where it belongs. It goes away if it is dropped.
pub(in crate::cli) struct Beside {
    file: NamedTempFile,
    path: PathBuf,
}

impl Beside {
    /// Begins the file `path`, and the folders above it.
    pub(in crate::cli) async fn create(path: PathBuf) -> anyhow::Result<(Self, tokio::fs::File)> {
        blocking(move || {
            let failed = || format!("cannot write {}", path.display());
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            std::fs::create_dir_all(folder).with_context(failed)?;
            let file = tempfile::Builder::new()
                .prefix(".shoal-")
                .permissions(Permissions::from_mode(0o666))
                .tempfile_in(folder)
                .with_context(failed)?;
            let out = tokio::fs::File::from_std(file.reopen().with_context(failed)?);
            Ok((Self { file, path }, out))
        })
        .await
    }

    /// Gives it its name once it is on the disk; `file` is what it was written through.
    pub(in crate::cli) async fn commit(self, mut file: tokio::fs::File) -> anyhow::Result<()> {
        file.flush().await.with_context(|| self.failure())?;
        file.sync_all().await.with_context(|| self.failure())?;
        blocking(move || {
            let failure = self.failure();
            self.file.persist(&self.path).map_err(|error| error.error).context(failure).map(drop)
        })
        .await
    }

    fn failure(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tempfile::TempDir;

    use super::super::progress::{Output, Progress};
    use super::super::registry::tests::stub;
    use super::*;

    /// A registry whose only blob is this, whatever digest is asked for.
    fn session(content: &'static str) -> (TempDir, Session) {
        let (folder, registry) = stub(Router::new().fallback(get(async move || content)));
        (folder, Session { registry, progress: Progress::new(&Output::quiet()) })
    }

    fn blob(content: &str, size_bytes: u64) -> Descriptor {
        let digest = Digest::sha256(content.as_bytes());
        Descriptor { digest, size_bytes: Some(size_bytes), non_distributable: false }
    }

    #[tokio::test]
    async fn a_blob_appears_only_if_it_is_what_was_asked_for() {
        let ((_socket, session), folder) = (session("right"), TempDir::new().unwrap());
        let (repo, path) = ("a".parse().unwrap(), folder.path().join("deep/file"));
        for (wanted, why) in [(blob("wrong", 5), "is damaged"), (blob("right", 6), "its manifest says 6")] {
            let error = blob_file(&session, &repo, &wanted, path.clone()).await.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            // Nothing is left beside it either.
            assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 0);
        }
        blob_file(&session, &repo, &blob("right", 5), path.clone()).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"right");
        assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_file_that_is_right_already_stays() {
        let ((_socket, session), folder) = (session("never asked"), TempDir::new().unwrap());
        let (repo, path) = ("a".parse().unwrap(), folder.path().join("file"));
        std::fs::write(&path, b"right").unwrap();
        blob_file(&session, &repo, &blob("right", 5), path.clone()).await.unwrap();
        assert!(!small_file(path.clone(), Bytes::from_static(b"right")).await.unwrap());
        assert!(small_file(path.clone(), Bytes::from_static(b"other")).await.unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"other");
    }
}
