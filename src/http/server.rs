//! The accept loop: connections, with the limits that `axum::serve` does not have.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::connection::{Client, Protocol, Server, Socket};
use super::tls::Tls;
use crate::config::HttpLimits;
use crate::tasks::Tasks;

/// A listener of either kind.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Pause after the system refused a connection, for want of file handles say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` until the daemon stops: then the listener is closed, and requests that run are finished within the
/// grace period. Without `tls` it is plain HTTP/1.1.
pub fn serve(
    tasks: &Tasks,
    name: &'static str,
    listener: Listener,
    router: Router,
    tls: Option<Tls>,
    limits: HttpLimits,
) {
    let server = Server { router, limits, tasks: tasks.clone() };
    tasks.spawn(name, |stop| async move {
        stop.run_until_cancelled(accept_all(&listener, &server, tls.as_ref())).await;
    });
}

async fn accept_all(listener: &Listener, server: &Server, tls: Option<&Tls>) {
    let slots = Arc::new(Semaphore::new(server.limits.connections_max));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match accept(listener).await {
            Ok((socket, mut client)) => {
                client.tls = tls.is_some();
                let (connection, tls) = (server.clone(), tls.cloned());
                server.tasks.spawn_short("connection", |stop| async move {
                    let _slot = slot;
                    serve_socket(connection, socket, client, tls, stop).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(listener: &Listener) -> io::Result<(Box<dyn Socket>, Client)> {
    match listener {
        Listener::Tcp(listener) => {
            let (socket, address) = listener.accept().await?;
            socket.set_nodelay(true)?;
            Ok((Box::new(socket), Client { address: Some(address), ..Client::default() }))
        }
        Listener::Unix(listener) => {
            let (socket, _) = listener.accept().await?;
            Ok((Box::new(socket), Client::default()))
        }
    }
}

async fn serve_socket(
    server: Server,
    socket: Box<dyn Socket>,
    client: Client,
    tls: Option<Tls>,
    stop: CancellationToken,
) {
    let (socket, protocol): (Box<dyn Socket>, _) = match tls {
        None => (socket, Protocol::Http1),
        Some(tls) => match stop.run_until_cancelled(Box::pin(tls.accept(socket, &server.limits))).await {
            Some(Ok((socket, protocol))) => (Box::new(socket), protocol),
            Some(Err(error)) => return tracing::debug!(%client, %error, "no TLS with this client"),
            None => return,
        },
    };
    // Each layer of a task would hold it once more; most connections are idle most of the time.
    Box::pin(server.serve(socket, client, protocol, stop)).await;
}
