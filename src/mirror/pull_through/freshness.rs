//! How old a tag may be: when upstream is asked, and what is served while it does not answer.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, RepoName, Tag};
use crate::store::{Notes, StoreError, off_thread};

/// What upstream last said of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Confirmed {
    pub(super) digest: Digest,
    pub(super) at: SystemTime,
}

/// What is to be done about a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Serve it; nobody is asked.
    Fresh,
    /// Ask upstream; serve this if there is no answer.
    AskOrServe,
    /// Ask upstream; there is nothing else to serve.
    Ask,
}

/// Judges what was confirmed at that time. A clock that was set back makes it old, never young.
pub(super) fn judge(
    confirmed_at: Option<SystemTime>,
    now: SystemTime,
    ttl: Duration,
    stale_for: Duration,
) -> Verdict {
    let Some(confirmed_at) = confirmed_at else { return Verdict::Ask };
    match now.duration_since(confirmed_at) {
        Ok(age) if age < ttl => Verdict::Fresh,
        Ok(age) if age >= ttl.saturating_add(stale_for) => Verdict::Ask,
        Ok(_) | Err(_) => Verdict::AskOrServe,
    }
}

impl Confirmed {
    pub(super) fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.at).unwrap_or_default()
    }
}

#[derive(Serialize, Deserialize)]
struct Row {
    digest: String,
    at_s: u64,
}

/// What is known of all tags. Cheap to clone.
#[derive(Clone)]
pub(super) struct Tags(Notes);

impl Tags {
    pub(super) fn new(notes: Notes) -> Self {
        Self(notes)
    }

    pub(super) async fn get(&self, repo: &RepoName, tag: &Tag) -> Result<Option<Confirmed>, StoreError> {
        let (notes, key) = (self.0.clone(), key(repo, tag));
        let row = off_thread(move || notes.get(&key)).await?;
        // A row that cannot be read is as good as none: upstream is asked.
        Ok(row.and_then(|row| read(&row)))
    }

    /// When each tag of a repository was confirmed.
    pub(super) async fn of(&self, repo: &RepoName) -> Result<HashMap<String, SystemTime>, StoreError> {
        let (notes, prefix) = (self.0.clone(), format!("tag/{repo}:"));
        let rows = off_thread(move || notes.below(&prefix)).await?;
        Ok(rows.into_iter().filter_map(|(tag, row)| Some((tag, read(&row)?.at))).collect())
    }

    pub(super) async fn put(
        &self,
        repo: &RepoName,
        tag: &Tag,
        confirmed: Confirmed,
    ) -> Result<(), StoreError> {
        let at_s = confirmed.at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let row = Row { digest: confirmed.digest.to_string(), at_s };
        let (notes, key) = (self.0.clone(), key(repo, tag));
        // Two plain fields always serialise.
        let row = serde_json::to_vec(&row).unwrap_or_default();
        off_thread(move || notes.put(&key, &row)).await
    }
}

fn read(row: &[u8]) -> Option<Confirmed> {
    let row: Row = serde_json::from_slice(row).ok()?;
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(row.at_s))?;
    Some(Confirmed { digest: row.digest.parse().ok()?, at })
}

fn key(repo: &RepoName, tag: &Tag) -> String {
    format!("tag/{repo}:{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);
    const STALE: Duration = Duration::from_secs(3600);

    fn judged(age: Duration) -> Verdict {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        judge(Some(now - age), now, TTL, STALE)
    }

    #[test]
    fn a_tag_is_fresh_then_stale_then_nothing() {
        assert_eq!(judged(Duration::ZERO), Verdict::Fresh);
        assert_eq!(judged(TTL - Duration::from_secs(1)), Verdict::Fresh);
        assert_eq!(judged(TTL), Verdict::AskOrServe);
        assert_eq!(judged(TTL + STALE - Duration::from_secs(1)), Verdict::AskOrServe);
        assert_eq!(judged(TTL + STALE), Verdict::Ask);
        assert_eq!(judge(None, UNIX_EPOCH, TTL, STALE), Verdict::Ask);
    }

    #[test]
    fn a_tag_of_the_future_is_not_fresh() {
        assert_eq!(judge(Some(UNIX_EPOCH + TTL), UNIX_EPOCH, TTL, STALE), Verdict::AskOrServe);
    }

    #[test]
    fn without_a_time_to_live_every_request_asks() {
        let now = UNIX_EPOCH + TTL;
        assert_eq!(judge(Some(now), now, Duration::ZERO, STALE), Verdict::AskOrServe);
    }
}
