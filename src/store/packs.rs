//! The segments: files that only grow, until they are full. Knows records and where they lie, nothing of the index.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;

use super::StoreError;
use super::buffers::Buffers;
use super::record::{HEADER_BYTES, Header, KEY_BYTES_MAX, KIND_AT, Kind, MAGIC};
use crate::ipld::Multihash;

/// Segments that are written to at once, so that writers do not wait for each other.
const OPEN_SEGMENTS: usize = 4;
/// Buffers that blocks were read into and that wait to be used again.
const BUFFERS_KEPT_BYTES_MAX: usize = 16 << 20;
/// Slices of one vectored write; the system allows 1,024.
const SLICES_MAX: usize = 512;
/// What is searched at once for the next record behind a damaged one.
const SEARCH_BYTES: usize = 1 << 20;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) body_bytes: u32,
}

impl Location {
    /// Bytes of the whole record of a block with this key.
    pub(super) fn record_bytes(&self, key: &Multihash) -> i64 {
        i64::try_from(HEADER_BYTES + key.to_bytes().len()).unwrap_or(0) + i64::from(self.body_bytes)
    }
}

/// A block on its way into a segment.
pub(super) struct Record<'a> {
    header: Header,
    parts: &'a [Bytes],
}

impl<'a> Record<'a> {
    /// Of a block given in parts, in order.
    pub(super) fn new(key: &Multihash, parts: &'a [Bytes]) -> Self {
        let mut crc = crc32fast::Hasher::new();
        parts.iter().for_each(|part| crc.update(part));
        let body_bytes = u32::try_from(parts.iter().map(Bytes::len).sum::<usize>()).unwrap_or(u32::MAX);
        Self { header: Header { kind: Kind::Live, key: *key, body_bytes, body_crc: crc.finalize() }, parts }
    }

    fn size_bytes(&self) -> u64 {
        self.header.record_bytes()
    }
}

/// A file of records.
pub(super) struct Segment {
    pub(super) id: u32,
    path: PathBuf,
    file: File,
    /// Where the next record goes.
    end: AtomicU64,
    /// Bytes of records that count; signed, since a block may be removed before who put it has counted it.
    live_bytes: AtomicI64,
    /// Written to since it was last synced.
    dirty: AtomicBool,
    /// Takes no more records.
    sealed: AtomicBool,
    /// Being rewritten, or found damaged by who tried.
    claimed: AtomicBool,
    buffers: Buffers,
}

impl Segment {
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(super) fn live_bytes(&self) -> i64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, bytes: i64) {
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(super) fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }

    /// Claims the segment for rewriting; `false` if somebody else has it.
    pub(super) fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    pub(super) fn unclaim(&self) {
        self.claimed.store(false, Ordering::Release);
    }

    /// Has it synced by the next flush.
    pub(super) fn touch(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    pub(super) fn corrupt(&self, key: &Multihash, offset: u64) -> StoreError {
        StoreError::corrupt(key, &self.path, offset)
    }

    pub(super) fn corrupt_header(&self, offset: u64) -> StoreError {
        StoreError::CorruptHeader { path: self.path.clone(), offset }
    }

    /// Reads a record whole and compares its checksum and key.
    pub(super) fn read(&self, key: &Multihash, location: Location) -> Result<Bytes, StoreError> {
        let head_bytes = HEADER_BYTES + key.to_bytes().len();
        let size_bytes = head_bytes + location.body_bytes as usize;
        let corrupt = || self.corrupt(key, location.offset);
        let mut buffer = self.buffers.take(size_bytes);
        while buffer.filled() < size_bytes {
            let at = location.offset + buffer.filled() as u64;
            match self.file.read_at(buffer.space(size_bytes, size_bytes), at) {
                Ok(0) => return Err(corrupt()),
                Ok(read_bytes) => buffer.advance(read_bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(StoreError::io("read", &self.path, error)),
            }
        }
        let bytes = buffer.freeze();
        let header = Header::decode(&bytes).filter(|header| header.key == *key).ok_or_else(corrupt)?;
        let body = bytes.slice(head_bytes..);
        if header.body_bytes != location.body_bytes || crc32fast::hash(&body) != header.body_crc {
            return Err(corrupt());
        }
        Ok(body)
    }

    /// The header at `offset`, or `None` where no record begins.
    pub(super) fn header(&self, offset: u64) -> Result<Option<Header>, StoreError> {
        let mut bytes = [0; HEADER_BYTES + KEY_BYTES_MAX];
        let filled = self.read_up_to(&mut bytes, offset)?;
        Ok(Header::decode(&bytes[..filled]))
    }

    /// Where the next record may begin, at `offset` or behind it.
    pub(super) fn find_magic(&self, mut offset: u64) -> Result<Option<u64>, StoreError> {
        let mut bytes = vec![0; SEARCH_BYTES];
        loop {
            let filled = self.read_up_to(&mut bytes, offset)?;
            let found = bytes[..filled].windows(MAGIC.len()).position(|window| window == MAGIC);
            if let Some(found) = found {
                return Ok(Some(offset + found as u64));
            }
            if filled < bytes.len() {
                return Ok(None);
            }
            offset += (filled - MAGIC.len() + 1) as u64;
        }
    }

    /// Fills `bytes` as far as the file goes, and returns how far that is.
    fn read_up_to(&self, bytes: &mut [u8], offset: u64) -> Result<usize, StoreError> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(StoreError::io("read", &self.path, error)),
            }
        }
        Ok(filled)
    }

    /// Marks a record as removed, in place, and gives its body back to the file system where that can be done.
    /// Whether it could is returned.
    pub(super) fn erase(&self, key: &Multihash, location: Location) -> Result<bool, StoreError> {
        let marked = self.file.write_all_at(&[Kind::Removed as u8], location.offset + KIND_AT);
        marked.map_err(|error| StoreError::io("write", &self.path, error))?;
        self.touch();
        let body_at = location.offset + (HEADER_BYTES + key.to_bytes().len()) as u64;
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        let length = u64::from(location.body_bytes);
        Ok(length == 0 || rustix::fs::fallocate(&self.file, flags, body_at, length).is_ok())
    }

    /// Cuts off what lies behind `end`.
    pub(super) fn truncate(&self, end: u64) -> Result<(), StoreError> {
        self.file.set_len(end).map_err(|error| StoreError::io("truncate", &self.path, error))?;
        self.end.store(end, Ordering::Release);
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.file.sync_data().map_err(|error| StoreError::io("sync", &self.path, error))
    }
}

/// All segments of a store.
pub(super) struct Packs {
    folder: PathBuf,
    segment_bytes_max: u64,
    segments: RwLock<HashMap<u32, Arc<Segment>>>,
    next_id: AtomicU32,
    /// Who holds one may append to its segment.
    open: Vec<Mutex<Option<Arc<Segment>>>>,
    turn: AtomicU32,
    new_files: AtomicBool,
    buffers: Buffers,
}

impl Packs {
    /// Opens the folder; what the segments hold is for the caller to find out. The longest segments stay closed: appends
    /// go on in the shortest ones.
    pub(super) fn open(folder: &Path, segment_bytes_max: u64) -> Result<Self, StoreError> {
        let failed = |error| StoreError::io("open", folder, error);
        fs::create_dir_all(folder).map_err(failed)?;
        let buffers = Buffers::new(BUFFERS_KEPT_BYTES_MAX);
        let mut segments = HashMap::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(id) = name.strip_suffix(".pack").and_then(|id| id.parse().ok()) else { continue };
            segments.insert(id, Arc::new(open_segment(id, path, buffers.clone())?));
        }
        let next_id = segments.keys().max().map_or(0, |id| id + 1);
        Ok(Self {
            folder: folder.to_owned(),
            segment_bytes_max,
            segments: RwLock::new(segments),
            next_id: AtomicU32::new(next_id),
            open: (0..OPEN_SEGMENTS).map(|_| Mutex::default()).collect(),
            turn: AtomicU32::new(0),
            new_files: AtomicBool::new(false),
            buffers,
        })
    }

    /// Goes on appending to the shortest segments; all others are sealed. Called once, after recovery.
    pub(super) fn resume(&self) {
        let mut segments = self.all();
        segments.sort_by_key(|segment| segment.end());
        for (slot, segment) in self.open.iter().zip(&segments) {
            if segment.end() < self.segment_bytes_max / 2 {
                *lock(slot) = Some(segment.clone());
            }
        }
        for segment in &segments {
            let is_open =
                self.open.iter().any(|slot| lock(slot).as_ref().is_some_and(|open| open.id == segment.id));
            segment.sealed.store(!is_open, Ordering::Release);
        }
    }

    pub(super) fn get(&self, id: u32) -> Option<Arc<Segment>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// Any segment of this kind.
    pub(super) fn find(&self, wanted: impl Fn(&Segment) -> bool) -> Option<Arc<Segment>> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.values().find(|segment| wanted(segment)).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<Segment>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Appends records, in one write as far as they go into one segment. `index` is called for each while no other record can
    /// follow them in their segment, so that all records below the end of a segment are indexed when nobody holds it. A write
    /// that fails leaves nothing of its records.
    pub(super) fn append(
        &self,
        records: &[Record<'_>],
        mut index: impl FnMut(&Arc<Segment>, &Multihash, Location) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut rest = records;
        while !rest.is_empty() {
            let appended = self.append_some(rest, &mut index)?;
            rest = &rest[appended..];
        }
        Ok(())
    }

    /// Appends the first of the records, and those behind it that go into the same segment; returns how many.
    fn append_some(
        &self,
        records: &[Record<'_>],
        index: &mut impl FnMut(&Arc<Segment>, &Multihash, Location) -> Result<(), StoreError>,
    ) -> Result<usize, StoreError> {
        let first_bytes = records.first().map_or(0, Record::size_bytes);
        let mut slot = self.pick();
        if let Some(full) = slot.take_if(|open| open.end() + first_bytes > self.segment_bytes_max) {
            // Who holds its slot is the only one who could append to it.
            full.sealed.store(true, Ordering::Release);
        }
        let segment = match slot.take() {
            Some(segment) => segment,
            None => self.create()?,
        };
        let begin = segment.end();
        let ends = records.iter().scan(begin, |end, record| {
            *end += record.size_bytes();
            Some(*end)
        });
        // A first one that is larger than a whole segment has one of its own.
        let ends: Vec<u64> = ends
            .enumerate()
            .take_while(|(n, end)| *n == 0 || *end <= self.segment_bytes_max)
            .map(|(_, end)| end)
            .collect();
        let records = &records[..ends.len()];
        let written = write_all(&segment.file, begin, records);
        if let Err(error) = written {
            // Half a record is cut off again. If even that fails, nothing may follow it.
            match segment.truncate(begin) {
                Ok(()) => *slot = Some(segment.clone()),
                Err(_) => segment.sealed.store(true, Ordering::Release),
            }
            return Err(StoreError::io("write", &segment.path, error));
        }
        segment.touch();
        segment.end.store(ends.last().copied().unwrap_or(begin), Ordering::Release);
        let begins = std::iter::once(begin).chain(ends);
        let mut failed = None;
        for (Record { header, .. }, offset) in records.iter().zip(begins) {
            let location = Location { segment: segment.id, offset, body_bytes: header.body_bytes };
            // One that cannot be indexed keeps none of the others from it.
            if let Err(error) = index(&segment, &header.key, location) {
                failed.get_or_insert(error);
            }
        }
        *slot = Some(segment);
        failed.map_or(Ok(records.len()), Err)
    }

    /// A segment that nobody writes to, or the next in turn.
    fn pick(&self) -> MutexGuard<'_, Option<Arc<Segment>>> {
        for slot in &self.open {
            if let Ok(free) = slot.try_lock() {
                return free;
            }
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        lock(&self.open[turn % OPEN_SEGMENTS])
    }

    fn create(&self) -> Result<Arc<Segment>, StoreError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{id:08}.pack"));
        let created = File::options().read(true).write(true).create_new(true).open(&path);
        created.map_err(|error| StoreError::io("create", &path, error))?;
        let segment = Arc::new(open_segment(id, path, self.buffers.clone())?);
        self.new_files.store(true, Ordering::Release);
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.insert(id, segment.clone());
        Ok(segment)
    }

    /// The ends of all segments that were written to; everything below them is indexed.
    pub(super) fn checkpoints(&self) -> Vec<(Arc<Segment>, u64)> {
        // Whoever appends holds its slot until the record is indexed, so none may while the ends are read. Nobody who
        // holds one slot waits for another.
        let _writers: Vec<_> = self.open.iter().map(lock).collect();
        let dirty = self.all().into_iter().filter(|segment| segment.dirty.load(Ordering::Acquire));
        dirty.map(|segment| (segment.clone(), segment.end())).collect()
    }

    /// Syncs these segments, and the folder if it has new files.
    pub(super) fn sync(&self, segments: &[(Arc<Segment>, u64)]) -> Result<(), StoreError> {
        for (segment, _) in segments {
            segment.dirty.store(false, Ordering::Release);
            if let Err(error) = segment.sync() {
                segment.touch();
                return Err(error);
            }
        }
        if self.new_files.swap(false, Ordering::AcqRel) {
            let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
            synced.map_err(|error| {
                self.new_files.store(true, Ordering::Release);
                StoreError::io("sync", &self.folder, error)
            })?;
        }
        Ok(())
    }

    /// Deletes a segment whose records have all been moved. Readers that hold it may go on.
    pub(super) fn delete(&self, segment: &Segment) -> Result<(), StoreError> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).remove(&segment.id);
        fs::remove_file(&segment.path).map_err(|error| StoreError::io("delete", &segment.path, error))
    }

    /// Bytes that the segments take on disk.
    pub(super) fn disk_bytes(&self) -> u64 {
        let blocks = self.all().into_iter().filter_map(|segment| {
            use std::os::unix::fs::MetadataExt;
            segment.file.metadata().ok().map(|metadata| metadata.blocks() * 512)
        });
        blocks.sum()
    }
}

fn open_segment(id: u32, path: PathBuf, buffers: Buffers) -> Result<Segment, StoreError> {
    let opened = File::options().read(true).write(true).open(&path);
    let file = opened.map_err(|error| StoreError::io("open", &path, error))?;
    let end = file.metadata().map_err(|error| StoreError::io("open", &path, error))?.len();
    Ok(Segment {
        id,
        path,
        file,
        end: AtomicU64::new(end),
        live_bytes: AtomicI64::new(0),
        dirty: AtomicBool::new(false),
        sealed: AtomicBool::new(false),
        claimed: AtomicBool::new(false),
        buffers,
    })
}

/// Writes records with as few calls as the system allows, without putting them together first.
fn write_all(file: &File, mut offset: u64, records: &[Record<'_>]) -> io::Result<()> {
    let heads: Vec<Vec<u8>> = records.iter().map(|record| record.header.encode()).collect();
    let slices: Vec<&[u8]> = records
        .iter()
        .zip(&heads)
        .flat_map(|(record, head)| {
            std::iter::once(head.as_slice()).chain(record.parts.iter().map(Bytes::as_ref))
        })
        .collect();
    for group in slices.chunks(SLICES_MAX) {
        let mut slices: Vec<IoSlice<'_>> = group.iter().map(|slice| IoSlice::new(slice)).collect();
        let mut rest: &mut [IoSlice<'_>] = &mut slices;
        while rest.iter().any(|slice| !slice.is_empty()) {
            let written = rustix::io::retry_on_intr(|| rustix::io::pwritev(file, rest, offset))?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += written as u64;
            IoSlice::advance_slices(&mut rest, written);
        }
    }
    Ok(())
}

/// What the locks guard is a handle: a panic cannot leave it half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
