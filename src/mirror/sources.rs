//! What a request is answered from: the trees that are at hand first, then the registry that is meant. A tree that has to
//! be fetched from the network gets a head start, no more: whoever finds it first wins. Both are boxed, since together
//! they are larger than a request's future should be.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;

use super::pull_through::{Place, PullThrough, Scope};
use super::{Asked, Blob, Content, Inner, MirrorError, Origin, Served};
use crate::oci::{Digest, Reference};

/// The head start of the trees.
const HEAD_START: Duration = Duration::from_millis(100);

impl Inner {
    /// The mirror of other registries and the place there that is meant, if there is one.
    pub(super) fn place(&self, asked: &Asked<'_>) -> Result<Option<(&PullThrough, Place)>, MirrorError> {
        let Some(pull_through) = self.pull_through.as_ref().filter(|_| !asked.is_ours) else {
            return Ok(None);
        };
        Ok(pull_through.place(asked)?.map(|place| (pull_through, place)))
    }

    pub(super) async fn served_manifest(
        &self,
        asked: &Asked<'_>,
        reference: &Reference,
        prefetch: bool,
    ) -> Result<Option<Served>, MirrorError> {
        if let Some(address) = self.address(asked)? {
            return self.manifest_elsewhere(&address, reference).await;
        }
        let rooted = Box::pin(async {
            let found = self.manifest(asked.repo, reference).await?;
            Ok(found.map(|(manifest, origin)| Served { manifest, origin, age: None }))
        });
        let Some((pull_through, place)) = self.place(asked)? else { return rooted.await };
        let upstream = Box::pin(async {
            let Some(served) = pull_through.manifest(&place, reference, Scope::Mesh).await? else {
                return Ok(None);
            };
            if asked.registry.is_none() && !pull_through.can_finish(&place, &served).await? {
                return Err(MirrorError::Unfinishable { repository: place.repository.clone() });
            }
            if prefetch {
                pull_through.prefetch(&place, &served.manifest);
            }
            Ok(Some(served))
        });
        race(rooted, upstream).await
    }

    pub(super) async fn served_blob(
        &self,
        asked: &Asked<'_>,
        digest: &Digest,
        resumes: bool,
    ) -> Result<Option<(Blob, Origin)>, MirrorError> {
        if let Some(address) = self.address(asked)? {
            return self.blob_elsewhere(&address, digest).await;
        }
        let rooted = Box::pin(async {
            let found = self.blob(asked.repo, digest).await?;
            Ok(found.map(|(blob, origin)| (Blob::from(blob), origin)))
        });
        let Some((pull_through, place)) = self.place(asked)? else { return rooted.await };
        let upstream = Box::pin(async {
            let Some((found, origin)) = pull_through.blob(&place, digest, resumes).await? else {
                return Ok(None);
            };
            let size_bytes = found.size_bytes;
            let blob = Blob { digest: *digest, size_bytes, content: Content::PulledThrough(found) };
            Ok(Some((blob, origin)))
        });
        race(rooted, upstream).await
    }

    pub(super) async fn served_blob_size(
        &self,
        asked: &Asked<'_>,
        digest: &Digest,
    ) -> Result<Option<(Blob, Origin)>, MirrorError> {
        if let Some(address) = self.address(asked)? {
            return self.blob_elsewhere(&address, digest).await;
        }
        let rooted = Box::pin(async {
            let found = self.blob(asked.repo, digest).await?;
            Ok(found.map(|(blob, origin)| (Blob::from(blob), origin)))
        });
        let Some((pull_through, place)) = self.place(asked)? else { return rooted.await };
        let upstream = Box::pin(async {
            let found = pull_through.blob_size(&place, digest).await?;
            let alone = |size_bytes| Blob { digest: *digest, size_bytes, content: Content::SizeAlone };
            Ok(found.map(|(size_bytes, origin)| (alone(size_bytes), origin)))
        });
        race(rooted, upstream).await
    }
}

/// The first that finds it. If neither does, the second tells why: what was meant is there.
async fn race<T>(
    first: impl Future<Output = Result<Option<T>, MirrorError>>,
    second: impl Future<Output = Result<Option<T>, MirrorError>>,
) -> Result<Option<T>, MirrorError> {
    let (mut first, second) = (pin!(first), pin!(second));
    match timeout(HEAD_START, first.as_mut()).await {
        Ok(Ok(Some(found))) => return Ok(Some(found)),
        Ok(Ok(None) | Err(_)) => return second.await,
        Err(_) => (),
    }
    let mut second = second;
    tokio::select! {
        biased;
        found = first.as_mut() => match found {
            Ok(Some(found)) => Ok(Some(found)),
            Ok(None) | Err(_) => second.await,
        },
        found = second.as_mut() => match found {
            Ok(Some(found)) => Ok(Some(found)),
            // What the trees say is slow to come; a miss must not be.
            other => other,
        },
    }
}
