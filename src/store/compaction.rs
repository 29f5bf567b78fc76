//! Rewrites segments of which less than half counts: space comes back also where the file system punches no holes.

use std::sync::Arc;

use super::StoreError;
use super::blockstore::{Blockstore, Inner};
use super::packs::{Location, Segment};
use super::record::Kind;

/// Whether a segment is worth rewriting, and nobody has begun to.
pub(super) fn is_due(segment: &Segment) -> bool {
    segment.is_sealed()
        && !segment.is_claimed()
        && segment.live_bytes().saturating_mul(2) < i64::try_from(segment.end()).unwrap_or(i64::MAX)
}

/// Rewrites a segment unless somebody else does. Whoever removed a block has done so already: a failure is logged, and
/// what was not moved stays where it is.
pub(super) fn run(store: &Blockstore, inner: &Inner, segment: &Arc<Segment>) {
    if !segment.claim() {
        return;
    }
    match rewrite(store, inner, segment) {
        Ok(()) => (),
        // Moving its neighbours away and deleting the file would make a damaged block an absent one. It stays claimed.
        Err(error @ (StoreError::Corrupt { .. } | StoreError::CorruptHeader { .. })) => {
            tracing::error!(segment = segment.id, %error, "a segment is damaged and keeps its space");
        }
        Err(error) => {
            tracing::warn!(segment = segment.id, %error, "a segment could not be rewritten");
            segment.unclaim();
        }
    }
}

/// Moves what counts into open segments, and deletes the file once that is on disk.
fn rewrite(store: &Blockstore, inner: &Inner, segment: &Arc<Segment>) -> Result<(), StoreError> {
    let mut at = 0;
    while at < segment.end() {
        let header = segment.header(at)?.ok_or_else(|| segment.corrupt_header(at))?;
        let old = Location { segment: segment.id, offset: at, body_bytes: header.body_bytes };
        let key = header.key;
        if header.kind == Kind::Live && inner.rows.get(&key.to_bytes())? == Some(old) {
            let body = match segment.read(&key, old) {
                // Removed between the two looks.
                Err(StoreError::Corrupt { .. }) if inner.rows.get(&key.to_bytes())? != Some(old) => None,
                body => Some(body?),
            };
            if let Some(body) = body {
                inner.relocate(&key, old, body)?;
            }
        }
        at += header.record_bytes();
    }
    store.flush()?;
    inner.rows.forget(segment.id)?;
    inner.packs.delete(segment)
}
