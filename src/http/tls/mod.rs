//! TLS of the registry: handshakes, with what the files say at that moment.

mod files;
mod selfsigned;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::connection::{Protocol, Socket, linger};
use crate::config::{HttpLimits, TlsConfig};
use crate::mirror::chain;
use crate::tasks::Tasks;
use files::{Loaded, Source};

/// How often the files are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Before a renewal that failed is tried again.
const RENEW_PAUSE: Duration = Duration::from_secs(3600);
/// The protocols of ALPN, in the order that we prefer.
const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";
/// What a client gets that speaks HTTP to a port of HTTPS.
const PLAIN_HTTP: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nthis port speaks https\n";

/// Why there is no TLS: each names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} has no {what}: a PEM file is expected ({reason})", .path.display())]
    Pem { path: PathBuf, what: &'static str, reason: String },
    #[error("certificate {} and key {} do not go together", .certificate.display(), .key.display())]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("client authority {} is not usable: {reason}", .path.display())]
    ClientCa { path: PathBuf, reason: String },
    #[error("cannot make a self-signed certificate for {names}: {reason}")]
    SelfSigned { names: String, reason: String },
    #[error("cannot set up TLS")]
    Rustls(#[from] rustls::Error),
    #[error("the daemon is shutting down")]
    Closed,
}

/// The door of TLS before a listener. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    /// What the next handshake goes by; connections that stand keep what they were made with.
    config: watch::Receiver<Arc<ServerConfig>>,
    handshakes: Arc<Semaphore>,
}

impl Tls {
    /// Reads the files, or makes a pair in `folder`, and keeps watch over them from then on.
    pub async fn start(
        tasks: &Tasks,
        tls: TlsConfig,
        http2: bool,
        folder: PathBuf,
        limits: &HttpLimits,
    ) -> Result<Self, TlsError> {
        let source = Arc::new(Source::new(tls, http2, folder));
        let loaded = load(&source).await?;
        let (sender, config) = watch::channel(loaded.config.clone());
        tasks.spawn("tls-files", |stop| keep(source, loaded, sender, stop));
        Ok(Self { config, handshakes: Arc::new(Semaphore::new(limits.handshakes_max)) })
    }

    /// Shakes hands within the time-out of `limits`, the wait for a turn included.
    pub(super) async fn accept(
        &self,
        socket: Box<dyn Socket>,
        limits: &HttpLimits,
    ) -> io::Result<(TlsStream<Box<dyn Socket>>, Protocol)> {
        tokio::time::timeout(limits.handshake_timeout, self.handshake(socket)).await?
    }

    async fn handshake(&self, socket: Box<dyn Socket>) -> io::Result<(TlsStream<Box<dyn Socket>>, Protocol)> {
        let turn = self.handshakes.acquire().await.map_err(io::Error::other)?;
        let acceptor = TlsAcceptor::from(self.config.borrow().clone());
        match acceptor.accept(socket).into_fallible().await {
            Ok(stream) => {
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2);
                Ok((stream, if is_http2 { Protocol::Http2 } else { Protocol::Http1 }))
            }
            Err((error, mut socket)) => {
                if is_no_tls(&error) {
                    // Who spoke plain HTTP learns why it does not work; who spoke something else does not care.
                    let _ = socket.write_all(PLAIN_HTTP).await;
                }
                // Of TLS 1.3 a client has sent its request by now, and is to read the alert all the same.
                drop(turn);
                let _ = linger(socket).await;
                Err(error)
            }
        }
    }
}

fn is_no_tls(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidMessage(_)))
}

async fn load(source: &Arc<Source>) -> Result<Loaded, TlsError> {
    let source = source.clone();
    tokio::task::spawn_blocking(move || source.load()).await.unwrap_or(Err(TlsError::Closed))
}

/// Loads the files again when they have changed, or when a pair of our own is due. What cannot be used is told of once.
async fn keep(
    source: Arc<Source>,
    first: Loaded,
    sender: watch::Sender<Arc<ServerConfig>>,
    stop: CancellationToken,
) {
    let Loaded { mut stamp, mut renew_at, .. } = first;
    while stop.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL)).await.is_some() {
        let look = source.clone();
        let Ok(seen) = tokio::task::spawn_blocking(move || look.stamp()).await else { return };
        let due = renew_at.is_some_and(|renew_at| renew_at <= SystemTime::now());
        if seen == stamp && !due {
            continue;
        }
        match load(&source).await {
            Ok(loaded) => {
                tracing::info!("the TLS files have changed: new connections go by them");
                (stamp, renew_at) = (loaded.stamp, loaded.renew_at);
                sender.send_replace(loaded.config);
            }
            Err(error) => {
                let error = chain(&error);
                tracing::error!(%error, "the TLS files have changed and are not usable: the old ones stay");
                stamp = seen;
                renew_at = renew_at.map(|_| SystemTime::now() + RENEW_PAUSE);
            }
        }
    }
}
