//! The accept loop: connections, with the limits that `axum::serve` does not have.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::guard::ClientAddress;
use crate::tasks::Tasks;

/// What connections may cost.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    pub connections_max: usize,
    /// From the first byte of a request to the end of its header.
    pub header_timeout: Duration,
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

/// Serves `router` until the daemon stops; requests that run then are finished within its grace period.
pub fn serve(tasks: &Tasks, name: &'static str, listener: Listener, router: Router, limits: ServerLimits) {
    let connections = tasks.clone();
    tasks.spawn(name, |stop| async move {
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = accept(&listener) => accepted,
            };
            match accepted {
                Ok((socket, address)) => {
                    let router = router.clone();
                    connections.spawn_short("connection", |stop| async move {
                        let _slot = slot;
                        serve_connection(socket, address, router, limits, stop).await;
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

async fn accept(listener: &Listener) -> io::Result<(Box<dyn Socket>, Option<ClientAddress>)> {
    match listener {
        Listener::Tcp(listener) => {
            let (socket, address) = listener.accept().await?;
            socket.set_nodelay(true)?;
            Ok((Box::new(socket), Some(ClientAddress(address.ip()))))
        }
        Listener::Unix(listener) => Ok((Box::new(listener.accept().await?.0), None)),
    }
}

async fn serve_connection(
    socket: Box<dyn Socket>,
    address: Option<ClientAddress>,
    router: Router,
    limits: ServerLimits,
    stop: tokio_util::sync::CancellationToken,
) {
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move {
            let mut request = request.map(Body::new);
            if let Some(address) = address {
                request.extensions_mut().insert(address);
            }
            let Ok(response) = router.oneshot(request).await;
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.buffer_bytes_max)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = std::pin::pin!(connection);
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "connection ended");
    }
}
