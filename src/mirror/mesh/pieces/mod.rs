//! One blob from several sources at once, by ranges: who is asked for which piece, and the bytes in their order. Pure: it
//! is told what happens and when, and says what to do.
//!
//! Pieces lie within a window ahead of what was taken, so that as many bytes at most wait for those before them. A source
//! has one piece at a time, of a size that follows its speed. What a source does not deliver goes to another.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// How far ahead of what was taken pieces may lie, and so the most that is held in memory.
pub(super) const WINDOW_BYTES: u64 = 16 << 20;
const PIECE_BYTES_MIN: u64 = 256 << 10;
const PIECE_BYTES_MAX: u64 = 4 << 20;
/// How long a source should be busy with a piece.
const PIECE_TAKES: Duration = Duration::from_millis(250);
/// A source that brings nothing for so long loses its piece.
const STALL: Duration = Duration::from_millis(500);
/// How long it then rests, and how often that may happen before it is given up.
const REST: Duration = Duration::from_secs(2);
const STALLS_MAX: u32 = 2;
/// A source is not called slow before it had so long.
const JUDGED_AFTER: Duration = Duration::from_millis(250);
/// What is assumed of a source that has brought nothing yet.
const SPEED_AT_FIRST: u64 = 1 << 20;

/// A source, by the order in which they were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct SourceId(pub(super) usize);

/// A request that is under way. None has the id of one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RequestId(u64);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Ask {
        id: RequestId,
        source: SourceId,
        range: Range<u64>,
    },
    /// The rest of the answer is not wanted.
    Drop(RequestId),
}

/// What may be hoped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    UnderWay,
    /// All was taken.
    Complete,
    /// No source is left that could bring the rest in time.
    Failed,
}

pub(super) struct Pieces {
    /// All before it was taken.
    position: u64,
    /// Nobody was asked for anything from here on.
    unasked: u64,
    end: u64,
    /// What lies before `unasked` and has no source any more: where it begins, and where it ends.
    lost: BTreeMap<u64, u64>,
    /// What came and was not taken, by where it begins.
    came: BTreeMap<u64, Bytes>,
    under_way: BTreeMap<RequestId, Request>,
    sources: Vec<Source>,
    unwanted: VecDeque<RequestId>,
    /// Whether anything has come.
    has_begun: bool,
    next_id: u64,
}

struct Request {
    source: SourceId,
    /// The next byte to come.
    at: u64,
    end: u64,
    asked_at: Instant,
    /// When it brought something, or was asked.
    heard_at: Instant,
    came_bytes: u64,
    /// Another request for the same bytes: the first to bring any stays.
    twin: Option<RequestId>,
}

struct Source {
    /// How long it may take to begin before another is asked as well.
    hedge_after: Duration,
    /// Bytes per second.
    speed: Option<u64>,
    rests_until: Option<Instant>,
    stalls: u32,
    is_busy: bool,
    is_gone: bool,
}

impl Pieces {
    /// The bytes of `range`, from sources that usually begin to answer within these times. The first is asked first.
    pub(super) fn new(range: Range<u64>, sources: impl IntoIterator<Item = Duration>) -> Self {
        let source = |hedge_after| Source {
            hedge_after,
            speed: None,
            rests_until: None,
            stalls: 0,
            is_busy: false,
            is_gone: false,
        };
        Self {
            position: range.start,
            unasked: range.start,
            end: range.end,
            lost: BTreeMap::new(),
            came: BTreeMap::new(),
            under_way: BTreeMap::new(),
            sources: sources.into_iter().map(source).collect(),
            unwanted: VecDeque::new(),
            has_begun: false,
            next_id: 0,
        }
    }

    /// What is to be done now; to be called until it is `None`.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Act> {
        self.drop_stalled(now);
        if let Some(id) = self.unwanted.pop_front() {
            return Some(Act::Drop(id));
        }
        let source = self.fastest_idle(now)?;
        let may_begin = self.has_begun || self.under_way.is_empty();
        if may_begin && let Some(range) = self.next_piece(self.piece_bytes(source)) {
            return Some(self.ask(source, range, None, now));
        }
        if let Some(late) = self.late_to_begin(now) {
            let range = self.under_way.get(&late).map(|request| request.at..request.end)?;
            return Some(self.ask(source, range, Some(late), now));
        }
        let slow = self.slower_than(source, now)?;
        self.measure(slow, now);
        self.take_back(slow);
        // Its source is free for another piece; this one goes to the faster one.
        self.poll(now)
    }

    /// When to poll again if nothing comes.
    pub(super) fn wakes_at(&self, now: Instant) -> Option<Instant> {
        let of_requests = self.under_way.values().flat_map(|request| {
            let hedge_after = self.sources[request.source.0].hedge_after;
            [request.heard_at + STALL, request.asked_at + JUDGED_AFTER, request.asked_at + hedge_after]
        });
        let of_sources = self.sources.iter().filter_map(|source| source.rests_until);
        of_requests.chain(of_sources).filter(|at| *at > now).min()
    }

    /// Bytes came. Returns how long the source took to begin, if these are the first of a request.
    pub(super) fn arrived(&mut self, id: RequestId, mut bytes: Bytes, now: Instant) -> Option<Duration> {
        let request = self.under_way.get_mut(&id).filter(|_| !bytes.is_empty())?;
        let wanted = usize::try_from(request.end - request.at).unwrap_or(usize::MAX);
        bytes.truncate(wanted);
        let first_after = (request.came_bytes == 0).then(|| now.duration_since(request.asked_at));
        let (at, count) = (request.at, bytes.len() as u64);
        request.at += count;
        request.came_bytes += count;
        request.heard_at = now;
        let (is_whole, twin) = (request.at == request.end, request.twin.take());
        self.came.insert(at, bytes);
        self.has_begun = true;
        if let Some(twin) = twin {
            self.forget(twin);
            self.unwanted.push_back(twin);
        }
        if is_whole {
            self.measure(id, now);
            self.forget(id);
            self.unwanted.push_back(id);
        }
        first_after
    }

    /// A request was refused, broke off, or ended too early: its source is not asked any more.
    pub(super) fn failed(&mut self, id: RequestId) {
        if let Some(source) = self.take_back(id) {
            self.unwanted.retain(|unwanted| *unwanted != id);
            self.sources[source.0].is_gone = true;
        }
    }

    /// The next bytes in their order, if they are there.
    pub(super) fn take(&mut self) -> Option<Bytes> {
        let bytes = self.came.remove(&self.position)?;
        self.position += bytes.len() as u64;
        Some(bytes)
    }

    pub(super) fn outlook(&self, now: Instant) -> Outlook {
        if self.position == self.end {
            Outlook::Complete
        } else if self.under_way.is_empty()
            && !self.came.contains_key(&self.position)
            && self.fastest_idle(now).is_none()
        {
            Outlook::Failed
        } else {
            Outlook::UnderWay
        }
    }

    fn ask(&mut self, source: SourceId, range: Range<u64>, twin: Option<RequestId>, now: Instant) -> Act {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        if let Some(first) = twin.and_then(|twin| self.under_way.get_mut(&twin)) {
            first.twin = Some(id);
        }
        let (at, end) = (range.start, range.end);
        let request = Request { source, at, end, asked_at: now, heard_at: now, came_bytes: 0, twin };
        self.under_way.insert(id, request);
        self.sources[source.0].is_busy = true;
        Act::Ask { id, source, range }
    }

    fn fastest_idle(&self, now: Instant) -> Option<SourceId> {
        let is_idle = |source: &Source| {
            !source.is_busy && !source.is_gone && source.rests_until.is_none_or(|until| until <= now)
        };
        let idle = self.sources.iter().enumerate().filter(|(_, source)| is_idle(source));
        let fastest = idle.max_by_key(|(n, source)| (source.speed.unwrap_or(SPEED_AT_FIRST), Reverse(*n)));
        fastest.map(|(n, _)| SourceId(n))
    }

    fn speed(&self, source: SourceId) -> u64 {
        self.sources[source.0].speed.unwrap_or(SPEED_AT_FIRST)
    }

    fn piece_bytes(&self, source: SourceId) -> u64 {
        let bytes = u128::from(self.speed(source)) * PIECE_TAKES.as_millis() / 1000;
        u64::try_from(bytes).unwrap_or(u64::MAX).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
    }

    /// The first bytes within the window that nobody is asked for.
    fn next_piece(&mut self, bytes_max: u64) -> Option<Range<u64>> {
        if let Some((start, lost_end)) = self.lost.pop_first() {
            let end = lost_end.min(start + bytes_max);
            if end < lost_end {
                self.lost.insert(end, lost_end);
            }
            return Some(start..end);
        }
        let window_end = self.end.min(self.position.saturating_add(WINDOW_BYTES));
        let (start, end) = (self.unasked, window_end.min(self.unasked + bytes_max));
        // A sliver at the end of the window waits until it has moved.
        if start >= end || (end < self.end && end - start < PIECE_BYTES_MIN) {
            return None;
        }
        self.unasked = end;
        Some(start..end)
    }

    /// The request that all else waits for, if its source has not begun although it should have.
    fn late_to_begin(&self, now: Instant) -> Option<RequestId> {
        let (id, first) = self.under_way.iter().min_by_key(|(_, request)| request.at)?;
        let late_at = first.asked_at + self.sources[first.source.0].hedge_after;
        (first.came_bytes == 0 && first.twin.is_none() && late_at <= now).then_some(*id)
    }

    /// The request that all else waits for, if it is so slow that `source` would bring its rest much sooner.
    fn slower_than(&self, source: SourceId, now: Instant) -> Option<RequestId> {
        let (id, first) = self.under_way.iter().min_by_key(|(_, request)| request.at)?;
        let took = now.duration_since(first.asked_at);
        if first.came_bytes == 0 || took < JUDGED_AFTER {
            return None;
        }
        let rest = u128::from(first.end - first.at);
        let left_ms = rest * took.as_millis() / u128::from(first.came_bytes);
        let instead_ms = rest * 1000 / u128::from(self.speed(source).max(1));
        (left_ms > STALL.as_millis() + 2 * instead_ms).then_some(*id)
    }

    fn drop_stalled(&mut self, now: Instant) {
        let stalled = |request: &Request| now.duration_since(request.heard_at) >= STALL;
        let stalled: Vec<RequestId> =
            self.under_way.iter().filter(|(_, request)| stalled(request)).map(|(id, _)| *id).collect();
        for id in stalled {
            self.unwanted.push_back(id);
            let Some(source) = self.take_back(id) else { continue };
            let source = &mut self.sources[source.0];
            source.stalls += 1;
            source.is_gone = source.stalls >= STALLS_MAX;
            source.rests_until = Some(now + REST);
        }
    }

    /// Takes what is left of a piece from its source, which is returned.
    fn take_back(&mut self, id: RequestId) -> Option<SourceId> {
        let Request { source, at, end, twin, .. } = self.forget(id)?;
        match twin.and_then(|twin| self.under_way.get_mut(&twin)) {
            Some(twin) => twin.twin = None,
            None => {
                self.lost.insert(at, end);
            }
        }
        Some(source)
    }

    fn forget(&mut self, id: RequestId) -> Option<Request> {
        let request = self.under_way.remove(&id)?;
        self.sources[request.source.0].is_busy = false;
        Some(request)
    }

    /// Notes the speed of a request's source: half of it is what was known.
    fn measure(&mut self, id: RequestId, now: Instant) {
        let Some(request) = self.under_way.get(&id) else { return };
        let took_us = now.duration_since(request.asked_at).as_micros().max(1);
        let speed = u128::from(request.came_bytes) * 1_000_000 / took_us;
        let speed = u64::try_from(speed).unwrap_or(u64::MAX / 2);
        let known = &mut self.sources[request.source.0].speed;
        *known = Some(known.map_or(speed, |known| known / 2 + speed / 2));
    }
}
