//! Lists of other registries: the tags of a repository, and what refers to a manifest. Upstream is asked for the whole of a
//! list, once for all who want a page of it; what it said is kept as tags are, within their time to live, and beyond it
//! while upstream does not answer.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::super::{Age, MirrorError, chain};
use super::freshness::{self, Verdict};
use super::manifests::Failure;
use super::{HEADER_TIMEOUT, Place, PullThrough, STALE_AFTER, late};
use crate::oci::Digest;
use crate::oci::manifest::Referrer;
use crate::store::off_thread;

/// Lists that are kept, each in the place that its name leads to: one takes the place of another. Longer ones than this
/// are asked for each time.
const TAG_LISTS_MAX: u64 = 256;
const TAG_LIST_BYTES_MAX: usize = 1 << 20;
const REFERRER_LISTS_MAX: u64 = 2048;
const REFERRER_LIST_BYTES_MAX: usize = 128 << 10;
/// Tags in the cache that are looked at when upstream does not say which there are.
const CACHED_TAGS_MAX: usize = 10_000;

/// A list as upstream gave it, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::mirror) struct List<T> {
    /// Sorted, without doubles.
    pub(in crate::mirror) items: Vec<T>,
    pub(in crate::mirror) age: Age,
}

/// A list as it is kept.
#[derive(Serialize, Deserialize)]
struct Row<T> {
    name: String,
    at_s: u64,
    items: Vec<T>,
}

/// `None`: there is no such thing. The list is that of a [`Row`].
pub(super) type ListOutcome = Result<Option<Bytes>, Failure>;

#[derive(Clone, Copy)]
enum ListOf {
    Tags,
    Referrers(Digest),
}

impl ListOf {
    fn name(self, place: &Place) -> String {
        match self {
            Self::Tags => place.joined.to_string(),
            Self::Referrers(subject) => format!("{}@{subject}", place.joined),
        }
    }

    /// Where it is kept.
    fn key(self, name: &str) -> String {
        let (kind, places) = match self {
            Self::Tags => ("list/tags", TAG_LISTS_MAX),
            Self::Referrers(_) => ("list/referrers", REFERRER_LISTS_MAX),
        };
        let mut hash = [0; 8];
        hash.copy_from_slice(&Digest::sha256(name.as_bytes()).as_bytes()[..8]);
        format!("{kind}/{}", u64::from_le_bytes(hash) % places)
    }

    fn bytes_max(self) -> usize {
        match self {
            Self::Tags => TAG_LIST_BYTES_MAX,
            Self::Referrers(_) => REFERRER_LIST_BYTES_MAX,
        }
    }
}

impl<T> Row<T> {
    fn at(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.at_s)).unwrap_or(UNIX_EPOCH)
    }

    fn list(self, stale: bool) -> List<T> {
        let since_confirmed = SystemTime::now().duration_since(self.at()).unwrap_or_default();
        List { items: self.items, age: Age { since_confirmed, stale } }
    }
}

impl PullThrough {
    /// The tags of a repository. `None`: upstream says that there is none. While it does not answer, those that it named
    /// last, and those in the cache that it confirmed since.
    pub(in crate::mirror) async fn tags(&self, place: &Place) -> Result<Option<List<String>>, MirrorError> {
        let listed = self.list::<String>(place, ListOf::Tags).await;
        let (mut known, since, failure) = match listed {
            Ok(Some(list)) if list.age.stale => {
                let since = SystemTime::now().checked_sub(list.age.since_confirmed);
                (list.items, since, None)
            }
            Err(error) => (Vec::new(), None, Some(error)),
            other => return other,
        };
        let (cached, oldest) = self.cached_tags(place, since).await?;
        if let Some(error) = failure {
            if cached.is_empty() {
                return Err(error);
            }
            tracing::warn!(repo.name = %place.repository, error = chain(&error), "upstream did not list its tags: those in the cache are");
        }
        known.extend(cached);
        known.sort_unstable();
        known.dedup();
        let at = since.or(oldest).unwrap_or(UNIX_EPOCH);
        let since_confirmed = SystemTime::now().duration_since(at).unwrap_or_default();
        Ok(Some(List { items: known, age: Age { since_confirmed, stale: true } }))
    }

    /// What refers to a manifest, whatever its type, sorted by digest. Who verifies signatures must not take a part for the
    /// whole: what upstream never listed is an error while it does not answer.
    pub(in crate::mirror) async fn referrers(
        &self,
        place: &Place,
        subject: &Digest,
    ) -> Result<List<Referrer>, MirrorError> {
        let listed = self.list(place, ListOf::Referrers(*subject)).await?;
        Ok(listed.unwrap_or_else(|| List { items: Vec::new(), age: Age::default() }))
    }

    async fn list<T>(&self, place: &Place, of: ListOf) -> Result<Option<List<T>>, MirrorError>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let (kept, config) = (self.kept::<T>(place, of).await?, place.upstream.config());
        let at = kept.as_ref().map(Row::at);
        let verdict = freshness::judge(at, SystemTime::now(), config.list_ttl(), config.stale_for);
        let kept = match (kept, verdict) {
            (Some(kept), Verdict::Fresh) => return Ok(Some(kept.list(false))),
            (Some(kept), Verdict::AskOrServe) => kept,
            _ => {
                let listed = timeout(HEADER_TIMEOUT, self.ask_list(place, of)).await;
                let listed = listed.map_err(|_| late(place))?.map_err(MirrorError::Fill)?;
                return read(listed).map(|row| row.map(|row| row.list(false)));
            }
        };
        let reason = match timeout(STALE_AFTER, self.ask_list(place, of)).await {
            Ok(Ok(listed)) => return read(listed).map(|row| row.map(|row| row.list(false))),
            Ok(Err(error)) => chain(&*error),
            Err(_) => format!("no answer within {} ms", STALE_AFTER.as_millis()),
        };
        tracing::warn!(
            list = of.name(place),
            error = reason,
            "upstream did not confirm the list: served as it last was"
        );
        Ok(Some(kept.list(true)))
    }

    async fn ask_list(&self, place: &Place, of: ListOf) -> ListOutcome {
        let key =
            format!("{}/{}", of.name(place), if matches!(of, ListOf::Tags) { "tags" } else { "referrers" });
        let (this, of_place) = (self.clone(), place.clone());
        let work = Box::pin(async move { this.fetch_list(&of_place, of).await });
        self.once(&self.0.listings, key, place, work).await
    }

    async fn fetch_list(&self, place: &Place, of: ListOf) -> Result<Option<Bytes>, MirrorError> {
        let (upstream, repo) = (&place.upstream, &place.repository.name);
        let name = of.name(place);
        if let Some(row) = self.fresh(place, of).await? {
            return Ok(Some(row));
        }
        let at_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let row = match of {
            ListOf::Tags => match upstream.tags(repo).await? {
                Some(items) => serde_json::to_vec(&Row { name: name.clone(), at_s, items }),
                None => return Ok(None),
            },
            ListOf::Referrers(subject) => {
                let items = upstream.referrers(repo, &subject).await?;
                serde_json::to_vec(&Row { name: name.clone(), at_s, items })
            }
        };
        // A struct of strings and numbers always serialises.
        let row = Bytes::from(row.unwrap_or_default());
        let (notes, key, kept) = (self.0.notes.clone(), of.key(&name), row.clone());
        match row.len() <= of.bytes_max() {
            true => off_thread(move || notes.put(&key, &kept)).await?,
            // What it was before must not come back.
            false => off_thread(move || notes.remove(&key)).await?,
        }
        Ok(Some(row))
    }

    /// What is kept of a list, however old. A row that cannot be read is as good as none.
    async fn kept<T: DeserializeOwned>(
        &self,
        place: &Place,
        of: ListOf,
    ) -> Result<Option<Row<T>>, MirrorError> {
        let name = of.name(place);
        let row = self.row(of, &name).await?.and_then(|row| serde_json::from_slice::<Row<T>>(&row).ok());
        Ok(row.filter(|row| row.name == name))
    }

    /// What upstream said so lately that it need not be asked: another one may have done so since whoever asks has looked.
    async fn fresh(&self, place: &Place, of: ListOf) -> Result<Option<Bytes>, MirrorError> {
        let (name, config) = (of.name(place), place.upstream.config());
        let Some(row) = self.row(of, &name).await? else { return Ok(None) };
        let known = serde_json::from_slice::<Row<IgnoredAny>>(&row).ok().filter(|known| known.name == name);
        let at = known.as_ref().map(Row::at);
        let verdict = freshness::judge(at, SystemTime::now(), config.list_ttl(), config.stale_for);
        Ok((verdict == Verdict::Fresh).then_some(row))
    }

    async fn row(&self, of: ListOf, name: &str) -> Result<Option<Bytes>, MirrorError> {
        let (notes, key) = (self.0.notes.clone(), of.key(name));
        Ok(off_thread(move || notes.get(&key)).await?.map(Bytes::from))
    }

    /// The tags in the cache that upstream confirmed after `since` and that are served while it does not answer, and when
    /// it confirmed the one that is the longest ago.
    async fn cached_tags(
        &self,
        place: &Place,
        since: Option<SystemTime>,
    ) -> Result<(Vec<String>, Option<SystemTime>), MirrorError> {
        let (now, config) = (SystemTime::now(), place.upstream.config());
        let page = self.0.cache.tags(&place.joined, None, CACHED_TAGS_MAX).await?;
        let (mut names, mut oldest) = (Vec::new(), None::<SystemTime>);
        let confirmed = self.0.tags.of(&place.joined).await?;
        for name in page.map(|page| page.names).unwrap_or_default() {
            let Some((tag, at)) = confirmed.get(&name).zip(name.parse().ok()).map(|(at, tag)| (tag, *at))
            else {
                continue;
            };
            let ttl = config.tag_ttl(&place.repository.name, &tag);
            let served = freshness::judge(Some(at), now, ttl, config.stale_for) != Verdict::Ask;
            if served && since.is_none_or(|since| at > since) {
                oldest = Some(oldest.map_or(at, |oldest| oldest.min(at)));
                names.push(name);
            }
        }
        Ok((names, oldest))
    }
}

/// What was just written by us.
fn read<T: DeserializeOwned>(row: Option<Bytes>) -> Result<Option<Row<T>>, MirrorError> {
    let Some(row) = row else { return Ok(None) };
    let unread = |error: serde_json::Error| MirrorError::ManifestInvalid(error.to_string());
    serde_json::from_slice(&row).map(Some).map_err(unread)
}
