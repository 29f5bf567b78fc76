//! A registry that says what a test tells it to, down to the byte, and remembers what it was asked.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::tasks::Tasks;

/// Listens until it is dropped.
pub(super) struct Fake {
    pub(super) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    listening: AbortHandle,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    head: String,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        values.next()
    }
}

/// What is sent, and what becomes of the connection then.
pub(super) struct Reply {
    bytes: Vec<u8>,
    pub(super) ending: Ending,
}

pub(super) enum Ending {
    /// In order, with a FIN.
    Close,
    /// By a RST.
    Reset,
    /// Nothing more comes, for as long as the client stays.
    Hang,
    /// This, again and again, for as long as the client stays.
    Repeat(Vec<u8>),
}

impl Reply {
    /// Exactly these bytes.
    pub(super) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), ending: Ending::Close }
    }

    /// A whole answer with its Content-Length.
    pub(super) fn new(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status} Said\r\nConnection: close\r\n");
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        if status != 204 {
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        let mut bytes = format!("{head}\r\n").into_bytes();
        bytes.extend(body);
        Self::raw(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn status(status: u16) -> Self {
        Self::new(status, &[], b"")
    }

    pub(super) fn ending(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    /// The answer to a HEAD.
    fn without_body(mut self) -> Self {
        let end = self.bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            self.bytes.truncate(end + 4);
        }
        self
    }
}

impl Fake {
    pub(super) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve("http", None, script).await
    }

    /// Over TLS, with a certificate that nobody knows, which is returned in PEM.
    pub(super) async fn start_tls(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Self, String) {
        let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.key_pair.serialize_der()));
        let chain = vec![CertificateDer::from(pair.cert.der().to_vec())];
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        (Self::serve("https", Some(acceptor), script).await, pair.cert.pem())
    }

    async fn serve(
        scheme: &str,
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let (seen, tasks, script) = (Arc::<Mutex<Vec<Seen>>>::default(), Tasks::new(), Arc::new(script));
        let (log, spawner) = (seen.clone(), tasks.clone());
        let listening = tasks.spawn_short("fake registry", |_| async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, script, tls) = (log.clone(), script.clone(), tls.clone());
                spawner.spawn_short("connection", |_| async move {
                    // A client may leave at any time.
                    let _ = match tls {
                        None => connection(stream, &log, &*script, TcpStream::set_zero_linger).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => connection(stream, &log, &*script, |_| Ok(())).await,
                            Err(error) => Err(error),
                        },
                    };
                });
            }
        });
        Self { url, seen, listening }
    }

    /// What was asked so far, in its order.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// `METHOD TARGET` of what was asked.
    pub(super) fn asked(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect()
    }

    /// Waits until it was asked so often.
    pub(super) async fn until_asked(&self, times: usize) {
        let asked = async {
            while self.seen().len() < times {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(60), asked).await.unwrap();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    log: &Mutex<Vec<Seen>>,
    script: &(dyn Fn(&Seen) -> Reply + Send + Sync),
    reset: impl Fn(&S) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let Some(seen) = read(&mut stream).await? else { return Ok(()) };
    log.lock().unwrap().push(seen.clone());
    let reply = script(&seen);
    let reply = if seen.method == "HEAD" { reply.without_body() } else { reply };
    stream.write_all(&reply.bytes).await?;
    stream.flush().await?;
    match reply.ending {
        Ending::Close => stream.shutdown().await?,
        Ending::Reset => return reset(&stream),
        Ending::Hang => (),
        Ending::Repeat(bytes) => loop {
            stream.write_all(&bytes).await?;
        },
    }
    // Until the client has read all and closes as well.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(|_| ())
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> std::io::Result<Option<Seen>> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words = head.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut seen = Seen { method, target, head, body: String::new() };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
    seen.body = String::from_utf8_lossy(&bytes[end..]).into_owned();
    Ok(Some(seen))
}
