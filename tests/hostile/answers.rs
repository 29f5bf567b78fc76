//! A peer that is trusted, says that it holds what is asked for, and answers over HTTP as nobody should: packed where
//! nobody asked for it, without end, half, or not at all. The image comes from elsewhere, and whole.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::swarm::Stream;
use shoal::oci::Digest;

use crate::common::upstream::Upstream;
use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::peer::Peer;

const HTTP: StreamProtocol = StreamProtocol::new("/http/1.1");
const MESH: StreamProtocol = StreamProtocol::new("/shoal/mesh/1");
const REPO: &str = "library/app";
const MEMORY_BYTES_MAX: u64 = 320 << 20;
/// Bytes of what has no end; far more than fits a pipe.
const ENDLESS_BYTES: usize = 256 << 20;

/// What the peer sends for a blob or a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Packed with gzip, in a length that is that of the packed bytes, or of the whole.
    Gzip,
    GzipOfWholeLength,
    /// A small body that says it was packed and would be large.
    Bomb,
    /// The right bytes under a name of a packing, as if that did not matter.
    NamedBr,
    /// A head without end, and one of far too many headers.
    EndlessHead,
    ManyHeaders,
    /// A body in chunks, without end.
    EndlessBody,
    /// A length, and fewer bytes; or more of them.
    Short,
    Long,
    /// A size of 2^64 - 1 bytes.
    Giant,
    /// Nothing, and our side ends.
    HalfClosed,
    /// An answer to what was not asked, then one to what was.
    TwoAnswers,
    /// An interim answer, again and again.
    Continue,
    NoHttp,
}

const LIES: [Lie; 14] = [
    Lie::Gzip,
    Lie::GzipOfWholeLength,
    Lie::Bomb,
    Lie::NamedBr,
    Lie::EndlessHead,
    Lie::ManyHeaders,
    Lie::EndlessBody,
    Lie::Short,
    Lie::Long,
    Lie::Giant,
    Lie::HalfClosed,
    Lie::TwoAnswers,
    Lie::Continue,
    Lie::NoHttp,
];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn ok(headers: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\n").as_bytes(), body].concat()
}

fn sized(size: usize, headers: &str, body: &[u8]) -> Vec<u8> {
    ok(&format!("Content-Length: {size}{headers}"), body)
}

impl Lie {
    /// What is sent once, and what is repeated behind it until nobody takes it any more.
    fn about(self, content: &[u8]) -> (Vec<u8>, Vec<u8>) {
        const PACKED: &str = "\r\nContent-Encoding: gzip";
        let packed = gzip(content);
        let once = |bytes: Vec<u8>| (bytes, Vec::new());
        match self {
            Self::Gzip => once(sized(packed.len(), PACKED, &packed)),
            Self::GzipOfWholeLength => once(sized(content.len(), PACKED, &packed)),
            Self::Bomb => {
                let bomb = gzip(&vec![0; 8 << 20]);
                once(sized(bomb.len(), PACKED, &bomb))
            }
            Self::NamedBr => once(sized(content.len(), "\r\nContent-Encoding: br", content)),
            Self::EndlessHead => (b"HTTP/1.1 200 OK\r\nX-Long: ".to_vec(), vec![b'x'; 16 * 1024]),
            Self::ManyHeaders => (b"HTTP/1.1 200 OK\r\n".to_vec(), b"X-Many: 1\r\n".repeat(1000)),
            Self::EndlessBody => {
                let chunk = [b"4000\r\n".as_slice(), &[b'x'; 16 * 1024], b"\r\n"].concat();
                (ok("Transfer-Encoding: chunked", b""), chunk)
            }
            Self::Short => once(sized(content.len(), "", &content[..content.len() / 2])),
            Self::Long => once(sized(content.len() + 9, "", &[content, b"and more."].concat())),
            Self::Giant => (sized(usize::MAX, "", content), vec![b'x'; 16 * 1024]),
            Self::HalfClosed => once(Vec::new()),
            Self::TwoAnswers => once([sized(3, "", b"one"), sized(content.len(), "", content)].concat()),
            Self::Continue => (Vec::new(), b"HTTP/1.1 100 Continue\r\n\r\n".repeat(500)),
            Self::NoHttp => once(vec![0xff; 1 << 20]),
        }
    }
}

/// The peer, and what it was asked for.
struct Liar {
    address: String,
    /// What it says for what it is asked from now on.
    lie: Arc<Mutex<Lie>>,
    asked: Arc<AtomicUsize>,
}

impl Liar {
    async fn start(images: &[Image]) -> Self {
        let peer = Peer::serving(vec![HTTP, MESH]).await;
        let (lie, asked) = (Arc::new(Mutex::new(LIES[0])), Arc::<AtomicUsize>::default());
        let liar = Self { address: peer.address.clone(), lie: lie.clone(), asked: asked.clone() };
        let known: Vec<Vec<u8>> =
            images.iter().flat_map(|image| image.blobs.iter().chain([&image.manifest])).cloned().collect();
        let (known, tasks) = (Arc::new(known), peer.tasks.clone());
        tasks.clone().spawn_short("lie", |_| async move {
            let mut peer = peer; // The whole of it, since it hangs up when a part is dropped.
            while let Some(incoming) = peer.incoming.recv().await {
                let (known, asked, lie) = (known.clone(), asked.clone(), lie.clone());
                tasks.spawn_short("answer", |_| async move {
                    let lie = move || *lie.lock().unwrap();
                    // The daemon may have heard enough.
                    let _ = answer(incoming.stream, &known, lie, &asked).await;
                });
            }
        });
        liar
    }
}

/// Answers one request.
async fn answer(
    mut stream: Stream,
    known: &[Vec<u8>],
    lie: impl Fn() -> Lie,
    asked: &AtomicUsize,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    if path.starts_with("/mesh/holdings") {
        if path.contains("epoch=7") {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let message = holdings(known);
        stream.write_all(&sized(message.len(), "", &message)).await?;
        return stream.close().await;
    }
    if path.starts_with("/mesh/alive") {
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
        return stream.close().await;
    }
    let named = |content: &&Vec<u8>| path.ends_with(&Digest::sha256(content).to_string());
    let Some(content) = known.iter().find(named) else {
        stream.write_all(b"HTTP/1.1 421 Misdirected Request\r\nContent-Length: 0\r\n\r\n").await?;
        return stream.close().await;
    };
    asked.fetch_add(1, Ordering::SeqCst);
    let (once, again) = lie().about(content);
    stream.write_all(&once).await?;
    stream.flush().await?;
    for _ in 0..ENDLESS_BYTES.checked_div(again.len()).unwrap_or_default() {
        stream.write_all(&again).await?;
    }
    stream.close().await
}

/// What a daemon says that holds all of these whole.
fn holdings(known: &[Vec<u8>]) -> Vec<u8> {
    let entry = |content: &Vec<u8>| {
        let hash: [u8; 8] = Digest::sha256(content).as_bytes()[..8].try_into().unwrap();
        ((u64::from_be_bytes(hash) & !0b11) | 0b10).to_be_bytes()
    };
    let head = [&[1, 0][..], &7_u64.to_be_bytes(), &1_u64.to_be_bytes()].concat();
    let count = u32::try_from(known.len()).unwrap().to_be_bytes();
    [head, count.to_vec(), known.iter().flat_map(entry).collect()].concat()
}

fn mirrors(upstream: &Upstream, liar: &Liar) -> Daemon {
    let registry = format!("{{upstream: \"{}\", prefetch: false}}", upstream.url());
    let mirror = format!("{{registries: {{registry.example: {registry}}}}}");
    daemon().mirror(&mirror).peers([liar.address.as_str()]).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_trusted_peer_answers_the_image_is_whole() {
    let images: Vec<Image> =
        (0..LIES.len()).map(|n| Image::new(710 + n as u64, &[300_000, 1_500_000])).collect();
    let upstream = Upstream::start().await;
    for (tag, image) in images.iter().enumerate() {
        upstream.push(REPO, &tag.to_string(), image);
    }
    let liar = Liar::start(&images).await;
    for (tag, (lie, image)) in LIES.into_iter().zip(&images).enumerate() {
        // One that has not found it out yet, and is alone with it.
        let daemon = mirrors(&upstream, &liar);
        daemon.logs("peer said what it holds").await;
        *liar.lie.lock().unwrap() = lie;
        let before = liar.asked.load(Ordering::SeqCst);
        let pulled = daemon.pull("registry.example/library/app", &tag.to_string()).await;
        assert_eq!(pulled.as_ref(), Ok(image), "{lie:?}: {}", daemon.log());
        // The image may have come from elsewhere before the liar has read what it was asked.
        let asked = async {
            while liar.asked.load(Ordering::SeqCst) == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, asked).await.is_ok(), "{lie:?}: it was never asked");
        let memory = daemon.memory_bytes();
        assert!(memory < MEMORY_BYTES_MAX, "{} MiB of memory after {lie:?}", memory >> 20);
    }
}
