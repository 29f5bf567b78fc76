//! Requests that no HTTP library would send, byte for byte, each on a connection of its own.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::common::{Daemon, PATIENCE};

pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self { status, head, body: bytes[end + 4..].to_vec() })
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
    }

    /// The code of the error in the body; empty if it is no JSON of the specification.
    pub(super) fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

pub(super) async fn connect(daemon: &Daemon) -> TcpStream {
    TcpStream::connect(daemon.registry.strip_prefix("http://").unwrap()).await.unwrap()
}

/// Head of a request that asks for the connection to be closed after it.
pub(super) fn head(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nhost: registry\r\nconnection: close\r\n{headers}\r\n")
}

/// Sends bytes and reads to the end of the connection. `None`: closed without an answer.
pub(super) async fn send(daemon: &Daemon, request: impl AsRef<[u8]>) -> Option<Answer> {
    let mut stream = connect(daemon).await;
    // The daemon may have answered and closed before it was sent the whole.
    let _ = stream.write_all(request.as_ref()).await;
    read_answer(&mut stream).await
}

/// Sends bytes and closes for writing, in the middle of a request.
pub(super) async fn break_off(daemon: &Daemon, request: impl AsRef<[u8]>) -> Option<Answer> {
    let mut stream = connect(daemon).await;
    stream.write_all(request.as_ref()).await.unwrap();
    stream.shutdown().await.unwrap();
    read_answer(&mut stream).await
}

/// Reads to the end of the connection; a reset after the answer is no failure of it.
pub(super) async fn read_answer(stream: &mut TcpStream) -> Option<Answer> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    assert!(read.is_ok(), "no end after {PATIENCE:?}: {:?}", String::from_utf8_lossy(&bytes));
    Answer::parse(&bytes)
}
