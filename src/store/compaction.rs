//! Rewrites segments of which less than half counts: space comes back also where the file system punches no holes.

use std::sync::Arc;

use super::StoreError;
use super::blockstore::{Blockstore, Inner};
use super::packs::{Location, Segment};
use super::record::Kind;

/// Whether a segment is worth rewriting.
pub(super) fn is_due(segment: &Segment) -> bool {
    segment.is_sealed()
        && segment.live_bytes().saturating_mul(2) < i64::try_from(segment.end()).unwrap_or(i64::MAX)
}

/// Moves what counts into open segments, and deletes the file once that is on disk.
pub(super) fn rewrite(store: &Blockstore, inner: &Inner, segment: &Arc<Segment>) -> Result<(), StoreError> {
    let mut at = 0;
    while at < segment.end() {
        let Some(header) = segment.header(at)? else { break };
        let old = Location { segment: segment.id, offset: at, body_bytes: header.body_bytes };
        let row = header.key.to_bytes();
        if header.kind == Kind::Live && inner.rows.get(&row)? == Some(old) {
            let body = segment.read(&header.key, old)?;
            inner.packs.append(&header.key, &[body], |target, new| {
                if inner.rows.swap(&row, Some(old), Some(new))? {
                    target.count(i64::try_from(header.record_bytes()).unwrap_or(0));
                } else {
                    target.erase(&header.key, new)?;
                }
                Ok(())
            })?;
        }
        at += header.record_bytes();
    }
    store.flush()?;
    inner.rows.forget(segment)?;
    inner.packs.delete(segment)
}
