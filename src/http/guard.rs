//! The time-outs of a connection, kept by the socket itself: who sends half a header, takes nothing of an answer, or asks
//! nothing for long, is let go.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use hyper::body::{Body as HttpBody, Bytes, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::config::HttpLimits;
use crate::mirror::BodyError;

/// What a connection is doing, as far as its time-outs care. Shared by its socket and the bodies that go over it.
pub(super) struct Activity {
    begun: Instant,
    limits: HttpLimits,
    http2: bool,
    /// Requests whose answer is not wholly handed over yet.
    open: AtomicUsize,
    /// When something moved last, in milliseconds since `begun`.
    moved_ms: AtomicU64,
    /// The same for the first byte of a request's header that is not complete; [`NONE`] between requests.
    header_ms: AtomicU64,
    /// The last request has a body that was not read to its end.
    unread: AtomicBool,
}

const NONE: u64 = u64::MAX;

impl Activity {
    pub(super) fn new(limits: HttpLimits, http2: bool) -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            limits,
            http2,
            open: AtomicUsize::new(0),
            moved_ms: AtomicU64::new(0),
            header_ms: AtomicU64::new(NONE),
            unread: AtomicBool::new(false),
        })
    }

    /// Whether the connection has to end with the answer, since a body lies before the next request. Streams of HTTP/2 are
    /// apart.
    pub(super) fn ends_with_answer(&self) -> bool {
        !self.http2 && self.unread.load(Ordering::Relaxed)
    }

    /// A request begins; it lasts until what is returned is dropped.
    pub(super) fn request(self: &Arc<Self>) -> OpenRequest {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.header_ms.store(NONE, Ordering::Relaxed);
        self.moved();
        OpenRequest(self.clone())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(NONE)
    }

    fn moved(&self) {
        self.moved_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Bytes came. Over HTTP/2 they may answer a ping of ours, and say nothing of a request.
    fn received(&self) {
        let between_requests = self.open.load(Ordering::Relaxed) == 0;
        if between_requests && !self.http2 && self.header_ms.load(Ordering::Relaxed) == NONE {
            self.header_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    /// Bytes went. Over HTTP/2 they may be a ping.
    fn sent(&self) {
        if !self.http2 {
            self.moved();
        }
    }

    /// When the connection has waited for long enough, unless something happens before.
    fn deadline(&self) -> (Instant, Waiting) {
        let (moved_ms, header_ms) =
            (self.moved_ms.load(Ordering::Relaxed), self.header_ms.load(Ordering::Relaxed));
        let (since_ms, timeout, waiting) = if self.open.load(Ordering::Relaxed) > 0 {
            (moved_ms, self.limits.send_stall_timeout, Waiting::Transfer)
        } else if header_ms != NONE {
            (header_ms, self.limits.header_timeout, Waiting::Header)
        } else {
            (moved_ms, self.limits.idle_timeout, Waiting::Request)
        };
        (self.begun + Duration::from_millis(since_ms) + timeout, waiting)
    }
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Request,
    Header,
    Transfer,
}

/// A request that is being answered.
pub(super) struct OpenRequest(Arc<Activity>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.moved();
        self.0.header_ms.store(NONE, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket that ends when its connection has waited for too long: as if the client had closed it where a request could
/// begin, with an error in the midst of one.
pub(super) struct Guarded<S> {
    socket: S,
    activity: Arc<Activity>,
    alarm: Pin<Box<Sleep>>,
}

impl<S> Guarded<S> {
    pub(super) fn new(socket: S, activity: Arc<Activity>) -> Self {
        let alarm = Box::pin(tokio::time::sleep_until(activity.deadline().0));
        Self { socket, activity, alarm }
    }

    /// Ready when the connection is to end. The alarm may ring for a deadline that has moved on since it was set.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Waiting> {
        loop {
            let (deadline, waiting) = self.activity.deadline();
            if deadline <= Instant::now() {
                return Poll::Ready(waiting);
            }
            // An alarm that is too early costs one more look; to set it anew at each byte costs more.
            if self.alarm.deadline() > deadline || self.alarm.is_elapsed() {
                self.alarm.as_mut().reset(deadline);
            }
            ready!(self.alarm.as_mut().poll(cx));
        }
    }

    fn poll_stalled<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let _ = ready!(self.poll_overdue(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Poll::Ready(outcome) = Pin::new(&mut self.socket).poll_read(cx, buffer) {
            if buffer.filled().len() > before {
                self.activity.received();
            }
            return Poll::Ready(outcome);
        }
        match ready!(self.poll_overdue(cx)) {
            Waiting::Request => Poll::Ready(Ok(())),
            Waiting::Header | Waiting::Transfer => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.socket).poll_write(cx, bytes) {
            Poll::Ready(outcome) => {
                self.activity.sent();
                Poll::Ready(outcome)
            }
            Poll::Pending => self.poll_stalled(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.socket).poll_write_vectored(cx, slices) {
            Poll::Ready(outcome) => {
                self.activity.sent();
                Poll::Ready(outcome)
            }
            Poll::Pending => self.poll_stalled(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.socket).poll_flush(cx) {
            Poll::Pending => self.poll_stalled(cx),
            ready => ready,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.socket).poll_shutdown(cx) {
            Poll::Pending => self.poll_stalled(cx),
            ready => ready,
        }
    }
}

/// A request's body broke off because nothing more came of it.
#[derive(Debug, thiserror::Error)]
#[error("no byte of the body came for {} s", .0.as_secs())]
pub(super) struct BodyStalled(Duration);

impl BodyStalled {
    /// Whether this is why `error` came about.
    pub(super) fn is_cause_of(error: &BodyError) -> bool {
        let first: &(dyn std::error::Error + 'static) = error.as_ref();
        std::iter::successors(Some(first), |error| error.source()).any(|error| error.is::<Self>())
    }
}

/// A request's body that fails when no byte of it came for a while. Time in which nobody reads it does not count.
pub(super) struct Received {
    body: Incoming,
    activity: Arc<Activity>,
    /// Set while a byte is waited for.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Received {
    pub(super) fn new(body: Incoming, activity: Arc<Activity>) -> Self {
        activity.unread.store(!body.is_end_stream(), Ordering::Relaxed);
        Self { body, activity, alarm: None }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.activity.moved();
            self.alarm = None;
            if frame.is_none() || self.body.is_end_stream() {
                self.activity.unread.store(false, Ordering::Relaxed);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)));
        }
        let timeout = self.activity.limits.body_stall_timeout;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(alarm.as_mut().poll(cx));
        Poll::Ready(Some(Err(BodyStalled(timeout).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer, which keeps its request open.
pub(super) struct Sending {
    body: Body,
    request: OpenRequest,
}

impl Sending {
    pub(super) fn new(body: Body, request: OpenRequest) -> Self {
        Self { body, request }
    }
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = axum::Error;

    /// To be asked for more is progress too, over HTTP/2 the only one that is seen: the client has taken what came before.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.request.0.moved();
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
