//! One connection: the handshake of TLS, then HTTP/1.1 or HTTP/2, until it ends or the daemon stops.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::guard::{Activity, Guarded, Received, Sending};
use crate::config::HttpLimits;
use crate::ipfs::Peer;
use crate::tasks::Tasks;

/// What a client may send on one stream of HTTP/2, and on all of a connection, before we have read it. A window bounds
/// the bytes per round trip, so 64 KiB would hold back a push over any distance.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
const FRAME_BYTES_MAX: u32 = 1 << 20;
/// What one answer may have waiting for its client's window.
const SEND_BUFFER_BYTES_MAX: usize = 1 << 20;
const STREAMS_MAX: u32 = 128;
/// A client that is gone without a word is noticed by a ping.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How long what a client still sends is read and thrown away when all is answered: the rest of a request that was
/// answered early, window updates of HTTP/2. A connection that is closed upon bytes nobody read is reset, and what the
/// kernel holds of the answer is lost with it.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
const LINGER_BYTES_MAX: u64 = 64 << 20;

pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

/// Who is at the other end. Every request has it among its extensions.
#[derive(Clone, Debug, Default)]
pub(super) struct Client {
    /// `None` on a Unix socket, and on a stream of a peer.
    pub(super) address: Option<SocketAddr>,
    /// Who opened a stream of libp2p.
    pub(super) peer: Option<Peer>,
    pub(super) tls: bool,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, &self.peer) {
            (Some(address), _) => address.fmt(f),
            (None, Some(peer)) => peer.fmt(f),
            (None, None) => f.write_str("unix"),
        }
    }
}

/// Which protocol both ends agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// What all connections of a listener share.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) router: Router,
    pub(super) limits: HttpLimits,
    /// Where the streams of HTTP/2 run.
    pub(super) tasks: Tasks,
}

impl Server {
    /// Serves until the client leaves; once `stop` is cancelled, only what it has asked by then.
    pub(super) async fn serve(
        self,
        socket: Box<dyn Socket>,
        client: Client,
        protocol: Protocol,
        stop: CancellationToken,
    ) {
        let activity = Activity::new(self.limits, protocol == Protocol::Http2);
        let mut socket = Guarded::new(socket, activity.clone());
        let io = TokioIo::new(&mut socket);
        let (router, asking) = (self.router, client.clone());
        let service = hyper::service::service_fn(move |request| {
            Box::pin(answer(router.clone(), activity.clone(), asking.clone(), request))
        });
        let outcome = match protocol {
            Protocol::Http1 => {
                let mut builder = http1_builder(&self.limits);
                // Peers end their side with the request; other clients that do so have left.
                builder.half_close(client.peer.is_some());
                let mut connection = builder.serve_connection(io, service);
                tokio::select! {
                    outcome = poll_fn(|context| connection.poll_without_shutdown(context)) => outcome,
                    () = stop.cancelled() => {
                        Pin::new(&mut connection).graceful_shutdown();
                        poll_fn(|context| connection.poll_without_shutdown(context)).await
                    }
                }
            }
            Protocol::Http2 => {
                let connection = http2_builder(&self.limits, self.tasks).serve_connection(io, service);
                let mut connection = std::pin::pin!(connection);
                tokio::select! {
                    outcome = connection.as_mut() => outcome,
                    () = stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                }
            }
        };
        // Whoever has gone already is not waited for; the others are given their time. A stop waits for those of HTTP/2
        // only, who say how much they can take while the last of an answer is on its way.
        let lingering = linger(socket);
        let _ = match protocol {
            Protocol::Http1 => stop.run_until_cancelled(lingering).await,
            Protocol::Http2 => Some(lingering.await),
        };
        if let Err(error) = outcome {
            tracing::debug!(%client, error = %crate::mirror::chain(&error), "connection ended");
        }
    }
}

/// Ends the sending side, then reads what the client still sends until it ends too, for 5 s at most.
pub(super) async fn linger(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let read_out = async {
        socket.shutdown().await?;
        tokio::io::copy(&mut socket.take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await?;
        Ok(())
    };
    tokio::time::timeout(LINGER_TIMEOUT, read_out).await?
}

fn http1_builder(limits: &HttpLimits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // hyper's would run between requests too; the guard's begins with a header.
        .header_read_timeout(None)
        // Streams of libp2p take one slice at a time; without this hyper copies slices together to have one.
        .writev(true)
        .max_header_size(limits.header_bytes_max)
        .max_buf_size(limits.buffer_bytes_max);
    builder
}

fn http2_builder(limits: &HttpLimits, tasks: Tasks) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(Streams(tasks));
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

async fn answer(
    router: Router,
    activity: Arc<Activity>,
    client: Client,
    request: Request<Incoming>,
) -> Result<Response<Sending>, Infallible> {
    let open = activity.request();
    let mut request = request.map(|body| Body::new(Received::new(body, activity.clone())));
    request.extensions_mut().insert(client);
    let mut response = router.oneshot(request).await?;
    if activity.ends_with_answer() {
        // Else the client might send its next request just before it hears of the end.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response.map(|body| Sending::new(body, open)))
}

/// Runs the streams of HTTP/2 as tasks of the daemon.
#[derive(Clone)]
struct Streams(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.spawn_short("http2-stream", |_| stream);
    }
}
