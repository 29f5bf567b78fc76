//! Makes rows and packs agree after a start: what the packs hold beyond the index is indexed, what is torn is cut off,
//! and rows that point to nothing go.

use std::collections::HashMap;

use cid::Cid;

use super::StoreError;
use super::packs::{Location, Packs, Segment};
use super::record::{Header, Kind};
use super::rows::Rows;
use crate::ipld::block::RAW;
use crate::ipld::{Block, Multihash};

/// What was found at the start.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// Blocks in the index.
    pub(super) blocks: u64,
    /// Those of them that the index did not know.
    pub(super) added: u64,
    /// Further records of blocks that the index has elsewhere: to be erased after the next flush. One is left where a
    /// block was moved, or removed and put again, shortly before a crash.
    pub(super) duplicates: Vec<(Multihash, Location)>,
    /// Whether index or packs were changed, and want a flush.
    pub(super) changed: bool,
}

pub(super) fn recover(rows: &Rows, packs: &Packs) -> Result<Recovered, StoreError> {
    let mut recovered = Recovered::default();
    // Below these offsets the rows were flushed after the records were synced: they need no look at the packs.
    let mut trusted = HashMap::new();
    for segment in packs.all() {
        let indexed = rows.indexed_bytes(segment.id)?;
        // A file that is shorter than what was synced is read all again.
        let from = if indexed > segment.end() { 0 } else { indexed };
        if segment.end() > from {
            take_in(rows, packs, &segment, from, &mut recovered)?;
            segment.touch();
        }
        if indexed != segment.end() {
            rows.checkpoint(segment.id, segment.end())?;
            recovered.changed = true;
        }
        trusted.insert(segment.id, from);
    }
    for id in rows.segments()? {
        if !trusted.contains_key(&id) {
            rows.forget(id)?;
            recovered.changed = true;
        }
    }
    let dropped = drop_dangling(rows, packs, &trusted, &mut recovered.blocks)?;
    if dropped > 0 {
        tracing::warn!(rows = dropped, "the index named blocks that are not in the packs: left out");
        recovered.changed = true;
    }
    Ok(recovered)
}

/// Indexes the records behind `from`, and cuts off what follows the last whole one.
fn take_in(
    rows: &Rows,
    packs: &Packs,
    segment: &Segment,
    from: u64,
    recovered: &mut Recovered,
) -> Result<(), StoreError> {
    let (mut at, end) = (from, segment.end());
    let mut resumed = false;
    while at < end {
        let Some(header) = segment.header(at)? else {
            let Some(next) = next_record(segment, at + 1)? else { break };
            tracing::error!(
                segment = segment.id,
                offset = at,
                bytes = next - at,
                "records are damaged: left out"
            );
            (at, resumed) = (next, true);
            continue;
        };
        let next = at + header.record_bytes();
        if next > end {
            break;
        }
        if header.kind == Kind::Live {
            let location = Location { segment: segment.id, offset: at, body_bytes: header.body_bytes };
            match read_whole(segment, &header, location, resumed) {
                Ok(()) => index(rows, packs, &header.key, location, recovered)?,
                Err(error) => {
                    rows.swap(&header.key.to_bytes(), Some(location), None)?;
                    if next == end && matches!(error, StoreError::Corrupt { .. }) {
                        break;
                    }
                    tracing::error!(segment = segment.id, offset = at, %error, "a block is left out");
                }
            }
        }
        at = next;
    }
    if at < end {
        tracing::warn!(segment = segment.id, bytes = end - at, "cut off what a crash left half-written");
        segment.truncate(at)?;
    }
    Ok(())
}

/// Has the row of an intact record point to it, unless it points to another one that is intact too.
fn index(
    rows: &Rows,
    packs: &Packs,
    key: &Multihash,
    location: Location,
    recovered: &mut Recovered,
) -> Result<(), StoreError> {
    let row = key.to_bytes();
    let known = rows.get(&row)?;
    let intact = |at: Location| packs.get(at.segment).is_some_and(|segment| segment.read(key, at).is_ok());
    match known {
        Some(at) if at == location => (),
        Some(at) if intact(at) => recovered.duplicates.push((*key, location)),
        _ => recovered.added += u64::from(rows.swap(&row, known, Some(location))?),
    }
    Ok(())
}

/// Reads a record by its checksum. Behind a damaged one, where a record may be a stranger's bytes inside of a block that
/// only look like one, by its hash too.
fn read_whole(segment: &Segment, header: &Header, at: Location, by_hash: bool) -> Result<(), StoreError> {
    let body = segment.read(&header.key, at)?;
    if by_hash && Block::verify(Cid::new_v1(RAW, header.key), body).is_err() {
        return Err(segment.corrupt(&header.key, at.offset));
    }
    Ok(())
}

/// The next live and whole record at `at` or behind it.
fn next_record(segment: &Segment, mut at: u64) -> Result<Option<u64>, StoreError> {
    while let Some(found) = segment.find_magic(at)? {
        if let Some(header) = segment.header(found)? {
            let location = Location { segment: segment.id, offset: found, body_bytes: header.body_bytes };
            if header.kind == Kind::Live && read_whole(segment, &header, location, true).is_ok() {
                return Ok(Some(found));
            }
        }
        at = found + 1;
    }
    Ok(None)
}

/// Drops rows that point to no record, and counts the live bytes of each segment and all blocks. Returns how many went.
fn drop_dangling(
    rows: &Rows,
    packs: &Packs,
    trusted: &HashMap<u32, u64>,
    blocks: &mut u64,
) -> Result<u64, StoreError> {
    let segments: HashMap<u32, _> = packs.all().into_iter().map(|segment| (segment.id, segment)).collect();
    segments.values().for_each(|segment| segment.count(-segment.live_bytes()));
    let mut dropped = 0;
    for row in rows.iter() {
        let (key, location) = row?;
        let segment = segments.get(&location.segment);
        let trusted = trusted.get(&location.segment).is_some_and(|trusted| location.offset < *trusted);
        match segment {
            Some(segment) if trusted || holds(segment, &key, location)? => {
                segment.count(location.record_bytes(&key));
                *blocks += 1;
            }
            _ => dropped += u64::from(rows.swap(&key.to_bytes(), Some(location), None)?),
        }
    }
    Ok(dropped)
}

/// Whether there is a live record of this block.
fn holds(segment: &Segment, key: &Multihash, location: Location) -> Result<bool, StoreError> {
    let header = if location.offset < segment.end() { segment.header(location.offset)? } else { None };
    Ok(header.is_some_and(|header| {
        header.kind == Kind::Live && header.key == *key && header.body_bytes == location.body_bytes
    }))
}
