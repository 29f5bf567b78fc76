//! HTTP as an upstream speaks it, byte for byte, so that it can be spoken wrongly.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::super::PATIENCE;
use super::fault::Fault;

/// What is written at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// A request, as it came.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// What is to be answered, were it not for a fault.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `None`: the client has gone.
    pub(super) async fn read(stream: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut words = lines.first()?.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
        let headers: Vec<_> =
            headers.map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned())).collect();
        let (path, query) = (path.to_owned(), query.to_owned());
        let mut seen = Self { method, path, query, headers, body: Vec::new() };
        let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
        seen.body.resize(length, 0);
        stream.read_exact(&mut seen.body).await.ok()?;
        Some(seen)
    }
}

impl Answer {
    pub(super) fn of(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// An answer to a request for a part of `whole`, or for all of it.
    pub(super) fn part(whole: Bytes, range: Option<&str>) -> Self {
        let size = whole.len();
        let part = range.and_then(|range| {
            let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
            let last = last.parse::<usize>().unwrap_or(usize::MAX);
            Some((first.parse::<usize>().ok()?, last.min(size.saturating_sub(1))))
        });
        match part {
            None => Self { status: 200, headers: Vec::new(), body: whole },
            Some((first, last)) if first > last || first >= size => Self::of(416),
            Some((first, last)) => {
                let range = ("content-range", format!("bytes {first}-{last}/{size}"));
                Self { status: 206, headers: vec![range], body: whole.slice(first..=last) }
            }
        }
    }

    /// Sends it, or what a fault makes of it. `false`: the connection is not to be used again.
    pub(super) async fn send(
        mut self,
        stream: &mut TcpStream,
        head_only: bool,
        fault: Option<&Fault>,
        released: &mut watch::Receiver<bool>,
    ) -> bool {
        match fault {
            Some(Fault::HoldHeader) => release(released).await,
            Some(Fault::Reset) => {
                stream.set_zero_linger().unwrap();
                return false;
            }
            Some(Fault::Gzip) => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&self.body).unwrap();
                self.body = encoder.finish().unwrap().into();
                self.headers.push(("content-encoding", "gzip".to_owned()));
            }
            _ => (),
        }
        let head = self.head(fault);
        let body = if head_only { Bytes::new() } else { self.body };
        let sent = async {
            stream.write_all(head.as_bytes()).await?;
            match fault {
                Some(Fault::Chunked) if !head_only => chunked(stream, &body).await,
                Some(Fault::BytesPerSecond(rate)) => slowly(stream, &body, *rate).await,
                Some(Fault::HoldAfter(bytes)) if body.len() > *bytes => {
                    stream.write_all(&body[..*bytes]).await?;
                    release(released).await;
                    stream.write_all(&body[*bytes..]).await
                }
                Some(Fault::EndAfter(bytes) | Fault::ResetAfter(bytes)) => {
                    stream.write_all(&body[..body.len().min(*bytes)]).await
                }
                Some(Fault::HoldThenEndAfter(bytes)) => {
                    stream.write_all(&body[..body.len().min(*bytes)]).await?;
                    release(released).await;
                    Ok(())
                }
                _ => stream.write_all(&body).await,
            }
        };
        // Who does not want the rest has gone.
        let is_sent = sent.await.is_ok();
        if matches!(fault, Some(Fault::ResetAfter(_))) {
            // A reset takes with it what was not read yet.
            is_read(stream).await;
            stream.set_zero_linger().unwrap();
        }
        let ends = matches!(
            fault,
            Some(
                Fault::EndAfter(_)
                    | Fault::HoldThenEndAfter(_)
                    | Fault::ResetAfter(_)
                    | Fault::LengthOff(_)
                    | Fault::Http10
            )
        );
        is_sent && !ends
    }

    fn head(&self, fault: Option<&Fault>) -> String {
        let version = if matches!(fault, Some(Fault::Http10)) { "HTTP/1.0" } else { "HTTP/1.1" };
        let mut head = format!("{version} {} Whatever\r\n", self.status);
        for (name, value) in &self.headers {
            if !matches!(fault, Some(Fault::Without(without)) if without.eq_ignore_ascii_case(name)) {
                head += &format!("{name}: {value}\r\n");
            }
        }
        match fault {
            Some(Fault::Chunked) => head += "transfer-encoding: chunked\r\n",
            Some(Fault::Http10) => (),
            Some(Fault::LengthOff(by)) => {
                head += &format!("content-length: {}\r\n", self.body.len() as i64 + by);
            }
            _ => head += &format!("content-length: {}\r\n", self.body.len()),
        }
        if let Some(Fault::With(lines)) = fault {
            head += &format!("{lines}\r\n");
        }
        head + "\r\n"
    }
}

/// Waits until the client, which is on this machine, has read all that was written, or has gone.
async fn is_read(stream: &TcpStream) {
    let (Ok(ours), Ok(theirs)) = (stream.local_addr(), stream.peer_addr()) else { return };
    let begun = Instant::now();
    // What has left here is there, or read.
    while queued_bytes(ours, theirs).is_some_and(|(sent, _)| sent > 0)
        || queued_bytes(theirs, ours).is_some_and(|(_, received)| received > 0)
    {
        assert!(begun.elapsed() < PATIENCE, "the client does not read what was sent");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What one end of a connection has sent and the other has not received yet, and what it has received and not read, in
/// bytes. `None`: there is no such connection (any more).
fn queued_bytes(from: SocketAddr, to: SocketAddr) -> Option<(u64, u64)> {
    let SocketAddr::V4(from) = from else { return None };
    let SocketAddr::V4(to) = to else { return None };
    let ends =
        [from, to].map(|end| format!("{:08X}:{:04X}", u32::from_ne_bytes(end.ip().octets()), end.port()));
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (sent, received) = words.get(4)?.split_once(':')?;
        let number = |hex| u64::from_str_radix(hex, 16).ok();
        (words[1..3] == ends).then_some((number(sent)?, number(received)?))
    })
}

async fn release(released: &mut watch::Receiver<bool>) {
    // A sender that is gone lets go of nobody.
    if released.wait_for(|released| *released).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn chunked(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<()> {
    for chunk in body.chunks(CHUNK_BYTES) {
        stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
        stream.write_all(chunk).await?;
        stream.write_all(b"\r\n").await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

async fn slowly(stream: &mut TcpStream, body: &[u8], bytes_per_second: usize) -> std::io::Result<()> {
    const STEPS_PER_SECOND: usize = 20;
    let mut step = tokio::time::interval(Duration::from_secs(1) / 20);
    for chunk in body.chunks((bytes_per_second / STEPS_PER_SECOND).max(1)) {
        step.tick().await;
        stream.write_all(chunk).await?;
    }
    Ok(())
}
