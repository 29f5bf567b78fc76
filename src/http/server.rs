//! The accept loop: connections, with the limits that `axum::serve` does not have.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::tasks::Tasks;

/// What connections may cost.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    pub connections_max: usize,
    /// From the first byte of a request to the end of its header.
    pub header_timeout: Duration,
    /// How long a TCP client may leave what it was sent unread.
    pub unread_timeout: Duration,
    /// Of a request's header and of what is read ahead of its body.
    pub buffer_bytes_max: usize,
}

/// A listener of either kind.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Pause after the system refused a connection, for want of file handles say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the rest of a request that was answered early is read and thrown away. A connection that is closed upon
/// bytes nobody read is reset, and the answer may be lost with it.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
const LINGER_BYTES_MAX: u64 = 64 << 20;

/// Serves `router` until the daemon stops; requests that run then are finished within its grace period.
pub fn serve(tasks: &Tasks, name: &'static str, listener: Listener, router: Router, limits: ServerLimits) {
    let connections = tasks.clone();
    tasks.spawn(name, |stop| async move {
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = accept(&listener, limits.unread_timeout) => accepted,
            };
            match accepted {
                Ok(socket) => {
                    let router = router.clone();
                    connections.spawn_short("connection", |stop| async move {
                        let _slot = slot;
                        serve_connection(socket, router, limits, stop).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for T {}

async fn accept(listener: &Listener, unread_timeout: Duration) -> io::Result<Box<dyn Socket>> {
    match listener {
        Listener::Tcp(listener) => {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            SockRef::from(&socket).set_tcp_user_timeout(Some(unread_timeout))?;
            Ok(Box::new(socket))
        }
        Listener::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
    }
}

async fn serve_connection(
    socket: Box<dyn Socket>,
    router: Router,
    limits: ServerLimits,
    stop: tokio_util::sync::CancellationToken,
) {
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        Box::pin(async move {
            let Ok(response) = router.oneshot(request.map(Body::new)).await;
            Ok::<_, Infallible>(response)
        })
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.buffer_bytes_max)
        .serve_connection(TokioIo::new(socket), service);
    let outcome = tokio::select! {
        outcome = poll_fn(|context| connection.poll_without_shutdown(context)) => outcome,
        () = stop.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|context| connection.poll_without_shutdown(context)).await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended");
    }
    let socket = connection.into_parts().io.into_inner();
    // Whoever has gone already is not waited for; the others are given their time, but for a stop.
    let _ = stop.run_until_cancelled(tokio::time::timeout(LINGER_TIMEOUT, linger(socket))).await;
}

/// Ends the sending side, then reads what the client still sends until it ends too.
async fn linger(mut socket: Box<dyn Socket>) -> io::Result<()> {
    socket.shutdown().await?;
    tokio::io::copy(&mut socket.take(LINGER_BYTES_MAX), &mut tokio::io::sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use futures::stream;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_let_go() {
        let endless = async || {
            let bytes = stream::repeat_with(|| Ok::<_, io::Error>(bytes::Bytes::from_static(&[0; 65_536])));
            Body::from_stream(bytes)
        };
        let limits = ServerLimits {
            connections_max: 4,
            header_timeout: Duration::from_secs(30),
            unread_timeout: Duration::from_secs(1),
            buffer_bytes_max: 64 * 1024,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let tasks = Tasks::new();
        serve(&tasks, "test", Listener::Tcp(listener), Router::new().route("/", get(endless)), limits);
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // The answer has begun, so there is a task for the connection, besides that which accepts.
        client.readable().await.unwrap();
        assert_eq!(tasks.len(), 2);
        let gone = async {
            while tasks.len() > 1 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(20), gone).await.is_ok());
        tasks.shutdown(Duration::ZERO).await;
    }
}
