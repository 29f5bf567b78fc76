//! What a request is answered from: the trees that are at hand first, then the registry that is meant. A tree that has to
//! be fetched from the network gets a head start, no more: whoever finds it first wins. Both are boxed, since together
//! they are larger than a request's future should be.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::future::{Either, select};
use tokio::time::timeout;

use super::pull_through::{Place, PullThrough, Scope};
use super::{
    Age, Asked, Blob, Content, Inner, Listed, MirrorError, Origin, Page, Purpose, Referrers, Served, chain,
};
use crate::oci::{Digest, Reference};

/// The head start of the trees.
const HEAD_START: Duration = Duration::from_millis(100);
/// How long the trees may take to add to what the registry has listed.
const ADDED_WITHIN: Duration = Duration::from_secs(1);

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
        purpose: Purpose,
    ) -> Result<Option<Served>, MirrorError> {
        if let Some(address) = self.address(asked)? {
            return self.manifest_elsewhere(&address, reference).await;
        }
        let rooted = Box::pin(async {
            let found = self.manifest(asked.repo, reference).await?;
            Ok(found.map(|(manifest, origin)| Served { age: self.age_of(&origin), manifest, origin }))
        });
        let Some((pull_through, place)) = self.place(asked)? else { return rooted.await };
        let upstream = Box::pin(async {
            let Some(served) = pull_through.manifest(&place, reference, Scope::Mesh).await? else {
                return Ok(None);
            };
            if asked.registry.is_none() {
                pull_through.is_finishable(&place, &served, purpose).await?;
            }
            if purpose == Purpose::Image {
                pull_through.prefetch(&place, &served.manifest);
            }
            Ok(Some(served))
        });
        race(rooted, upstream).await
    }

    /// How old the tree of a followed name is, once its record has expired.
    fn age_of(&self, origin: &Origin) -> Option<Age> {
        let Origin::Readonly(name) = origin else { return None };
        self.follows.iter().find(|follow| follow.name == *name)?.age()
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

impl Inner {
    /// A page of the union of what the trees and the registry have. A side that fails is left out if the other knows the
    /// repository.
    pub(super) async fn listed_tags(
        &self,
        asked: &Asked<'_>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Option<Listed<Page>>, MirrorError> {
        let rooted = Box::pin(self.tags(asked.repo, last, limit));
        let Some((pull_through, place)) = self.place(asked)? else {
            return Ok(rooted.await?.map(|page| Listed { page, age: None }));
        };
        let (rooted, mirrored) = both(rooted, Box::pin(pull_through.tags(&place))).await;
        let rooted = added(rooted, &place).flatten();
        Ok(match (mirrored, rooted) {
            (Ok(Some(list)), rooted) => {
                let page = Page::of(list.items, last, limit);
                let page = rooted.map_or(page.clone(), |rooted| rooted.merge(page, limit));
                Some(Listed { page, age: Some(list.age) })
            }
            (Ok(None), rooted) => rooted.map(|page| Listed { page, age: None }),
            (Err(error), Some(page)) => {
                tracing::warn!(repo.name = %place.repository, error = %chain(&error), "tags of the registry are missing");
                Some(Listed { page, age: None })
            }
            (Err(error), None) => return Err(error),
        })
    }

    /// The same for what refers to a manifest. A registry that fails is an error: its signatures must not seem to be none.
    pub(super) async fn listed_referrers(
        &self,
        asked: &Asked<'_>,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<&str>,
        limit: usize,
    ) -> Result<Listed<Referrers>, MirrorError> {
        let rooted = Box::pin(self.referrers(asked.repo, subject, artifact_type, last, limit));
        let Some((pull_through, place)) = self.place(asked)? else {
            return Ok(Listed { page: rooted.await?, age: None });
        };
        let (rooted, mirrored) = both(rooted, Box::pin(pull_through.referrers(&place, subject))).await;
        let list = mirrored?;
        let page = Referrers::of(list.items, artifact_type, last, limit);
        let page = added(rooted, &place).map_or(page.clone(), |rooted| rooted.merge(page, limit));
        Ok(Listed { page, age: Some(list.age) })
    }
}

/// Both outcomes; that of the first is waited for a moment only once the second is there.
async fn both<T, U>(
    first: impl Future<Output = Result<T, MirrorError>> + Unpin,
    second: impl Future<Output = U> + Unpin,
) -> (Option<Result<T, MirrorError>>, U) {
    match select(first, second).await {
        Either::Left((first, second)) => (Some(first), second.await),
        Either::Right((second, first)) => (timeout(ADDED_WITHIN, first).await.ok(), second),
    }
}

/// What the trees have to add, if they can say.
fn added<T>(rooted: Option<Result<T, MirrorError>>, place: &Place) -> Option<T> {
    let reason = match rooted {
        Some(Ok(rooted)) => return Some(rooted),
        Some(Err(error)) => chain(&error),
        None => format!("no answer within {} s", ADDED_WITHIN.as_secs()),
    };
    tracing::warn!(repo.name = %place.repository, error = reason, "what the trees list is left out");
    None
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
