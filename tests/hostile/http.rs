//! Peers that open streams for HTTP and mean ill, beside one that asks as it should.

use std::pin::pin;

use futures::future::{Either, join_all};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::swarm::Stream;

use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::honest::Honest;
use crate::peer::{Peer, peer_of};

const HTTP: StreamProtocol = StreamProtocol::new("/http/1.1");
const REQUEST: &[u8] = b"GET /.well-known/libp2p/protocols HTTP/1.1\r\nHost: x\r\n\r\n";
/// What is tried …
const STREAMS: usize = 1000;
/// … and what must come of it: a connection carries some five hundred at once, whoever asks for more.
const STREAMS_CARRIED_MIN: usize = 450;
/// How often some are opened.
const ROUNDS_MAX: usize = 80;
/// What a daemon may take in memory while it is under attack, in a debug build.
const MEMORY_BYTES_MAX: u64 = 320 << 20;

async fn open(peer: &Peer, daemon: &Daemon) -> Option<Stream> {
    peer.control.open(peer_of(daemon), vec![HTTP]).await.ok().map(|(_, stream)| stream)
}

/// The first bytes of the answer to an honest request; `None`: the stream ended without.
async fn ask(peer: &Peer, daemon: &Daemon) -> Option<String> {
    let mut stream = open(peer, daemon).await?;
    stream.write_all(REQUEST).await.ok()?;
    stream.flush().await.ok()?;
    let mut answer = [0; 15];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap();
    read.ok().map(|()| String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_streams_that_say_nothing_or_half_of_it_keep_nobody_out() {
    let daemon = daemon().start();
    let (hostile, honest) = (Peer::start().await, Peer::start().await);
    hostile.meets(&daemon).await;
    honest.meets(&daemon).await;

    let mut held = Vec::new();
    for _ in 0..ROUNDS_MAX {
        // As many as may be in negotiation at once; of these some may be refused.
        let opened = join_all((0..25).map(|_| open(&hostile, &daemon))).await;
        held.extend(opened.into_iter().flatten());
        if held.len() >= STREAMS {
            break;
        }
    }
    assert!(held.len() >= STREAMS_CARRIED_MIN, "only {} streams were opened", held.len());
    for (number, stream) in held.iter_mut().enumerate() {
        let said: &[u8] = match number % 3 {
            0 => b"",
            1 => b"GET / HT",
            _ => b"GET / HTTP/1.1\r\nX-Long: ",
        };
        // Those above the peer's share were reset.
        let _ = stream.write_all(said).await;
        let _ = stream.flush().await;
    }
    assert_eq!(ask(&honest, &daemon).await.as_deref(), Some("HTTP/1.1 200 OK"));
    let image = Image::small(1);
    daemon.push("library/app", "1", &image).await;
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), image);
    assert!(daemon.memory_bytes() < MEMORY_BYTES_MAX, "{} MiB", daemon.memory_bytes() >> 20);
}

/// What a peer says on a stream for HTTP; how often each piece is said.
struct Request {
    what: &'static str,
    pieces: Vec<(Vec<u8>, usize)>,
    /// Whether our side ends behind it.
    closes: bool,
    /// How the answer begins, if anything has to come back.
    answer: Option<&'static str>,
}

impl Request {
    fn new(what: &'static str, pieces: &[(&[u8], usize)]) -> Self {
        let pieces = pieces.iter().map(|(piece, times)| (piece.to_vec(), *times)).collect();
        Self { what, pieces, closes: false, answer: None }
    }

    fn closes(self) -> Self {
        Self { closes: true, ..self }
    }

    fn answered(self, answer: &'static str) -> Self {
        Self { answer: Some(answer), ..self }
    }
}

fn requests() -> Vec<Request> {
    const MIB: usize = 1 << 20;
    let begun = b"GET /.well-known/libp2p/protocols HTTP/1.1\r\nHost: x\r\n".as_slice();
    let with = |headers: &str| [begun, headers.as_bytes(), b"\r\n\r\n"].concat();
    let chunk = [b"4000\r\n".as_slice(), &[b'x'; 16 * 1024], b"\r\n"].concat();
    vec![
        Request::new("a header of many MiB", &[(begun, 1), (b"X-Long: ", 1), (&[b'x'; 1024], 32 * 1024)])
            .answered("HTTP/1.1 431"),
        Request::new("headers without number", &[(begun, 1), (b"X-Many: 1\r\n", MIB)])
            .answered("HTTP/1.1 431"),
        Request::new("a path of many MiB", &[(b"GET /", 1), (&[b'x'; 1024], 32 * 1024)]),
        Request::new(
            "a body in chunks without end",
            &[(&with("Transfer-Encoding: chunked"), 1), (&chunk, 8192)],
        )
        .answered("HTTP/1.1 200"),
        Request::new(
            "a chunk of 2^64 bytes",
            &[(&with("Transfer-Encoding: chunked"), 1), (b"ffffffffffffffff\r\n", 1)],
        )
        .answered("HTTP/1.1 200"),
        Request::new(
            "a chunk's size without end",
            &[(&with("Transfer-Encoding: chunked"), 1), (&[b'0'; 1024], 8192)],
        ),
        Request::new("a body that is never sent", &[(&with("Content-Length: 1000000000"), 1)])
            .answered("HTTP/1.1 200"),
        Request::new("a body that is awaited", &[(&with("Expect: 100-continue\r\nContent-Length: 9"), 1)])
            .answered("HTTP/1.1 200"),
        Request::new("two lengths", &[(&with("Content-Length: 1\r\nContent-Length: 2"), 1)])
            .answered("HTTP/1.1 400"),
        Request::new(
            "a length and chunks",
            &[(&with("Content-Length: 5\r\nTransfer-Encoding: chunked"), 1), (b"0\r\n\r\n", 1)],
        ),
        Request::new("the preface of HTTP/2", &[(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1)]),
        Request::new("a request, and our side ends", &[(REQUEST, 1)]).closes().answered("HTTP/1.1 200"),
        Request::new("half a request, and our side ends", &[(begun, 1)]).closes(),
        Request::new("nothing, and our side ends", &[]).closes(),
        Request::new("one request behind the other", &[(REQUEST, 5000)]).closes().answered("HTTP/1.1 200"),
        Request::new(
            "a connection that is to be another",
            &[(&with("Connection: Upgrade\r\nUpgrade: x"), 1)],
        )
        .answered("HTTP/1.1 200"),
    ]
}

/// Says it all, for as long as it is taken, and reads until the stream ends; the first bytes of what came.
async fn say(stream: Stream, request: &Request) -> String {
    let (mut reading, mut writing) = stream.split();
    let writes = async {
        for (piece, times) in &request.pieces {
            for _ in 0..*times {
                if writing.write_all(piece).await.is_err() {
                    return;
                }
            }
        }
        let _ = writing.flush().await;
        if request.closes {
            let _ = writing.close().await;
        }
    };
    let reads = async {
        let (mut beginning, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
        while let Ok(read @ 1..) = reading.read(&mut chunk).await {
            beginning.extend_from_slice(&chunk[..read.min(64 - beginning.len().min(64))]);
        }
        beginning
    };
    // Whoever has its answer may not be told that nobody takes the rest of its request any more.
    let writes_on = async {
        writes.await;
        std::future::pending::<()>().await;
    };
    let (reads, writes_on) = (pin!(reads), pin!(writes_on));
    let either = futures::future::select(reads, writes_on);
    let Ok(Either::Left((beginning, _))) = tokio::time::timeout(2 * PATIENCE, either).await else {
        panic!("the stream with {} does not end", request.what);
    };
    String::from_utf8_lossy(&beginning).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_measure_are_refused_and_their_streams_end() {
    let scene = Honest::start(660).await;
    let honest = Peer::start().await;
    honest.meets(&scene.victim).await;
    let attack = async {
        // As many at once as a stranger may have, whose places may be free only a moment after the streams have ended.
        let requests = requests();
        for some in requests.chunks(8) {
            let hostile = Peer::start().await;
            hostile.meets(&scene.victim).await;
            join_all(some.iter().map(async |request| {
                let stream = open(&hostile, &scene.victim).await.expect("a stream");
                let answer = say(stream, request).await;
                let wanted = request.answer.unwrap_or_default();
                assert!(answer.starts_with(wanted), "{}: {answer:?} where {wanted:?} is due", request.what);
            }))
            .await;
            assert_eq!(ask(&honest, &scene.victim).await.as_deref(), Some("HTTP/1.1 200 OK"));
        }
    };
    scene.during("requests without measure", attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_on_one_stream_are_answered_in_their_order() {
    let scene = Honest::start(670).await;
    let hostile = Peer::start().await;
    hostile.meets(&scene.victim).await;
    let mut stream = open(&hostile, &scene.victim).await.unwrap();
    let asked = b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n";
    let last = b"GET /.well-known/libp2p/protocols HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(&[REQUEST, asked, REQUEST, last].concat()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answers = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await.unwrap().unwrap();
    let answers = String::from_utf8(answers).unwrap();
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "404", "200", "200"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_read_slowly_or_not_at_all_keep_nobody_from_asking() {
    /// All the room of strangers, by the shares of eight.
    const PEERS: usize = 8;
    const STREAMS: usize = 8;
    let scene = Honest::start(680).await;
    let image = Image::new(690, &[40 << 20]);
    scene.victim.push("library/large", "1", &image).await;
    let root = scene.victim.status().own.unwrap().root;
    let request = format!("GET /ipfs/{root}?format=car HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        let peer = Peer::start().await;
        peer.meets(&scene.victim).await;
        peers.push(peer);
    }
    let mut held = Vec::new();
    for peer in &peers {
        for _ in 0..STREAMS {
            let mut stream = open(peer, &scene.victim).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            held.push(stream);
        }
    }
    let honest = Peer::start().await;
    honest.meets(&scene.victim).await;
    let attack = async {
        // Half of them read a byte now and then, so that they are never wholly still.
        let mut slow = held.split_off(held.len() / 2);
        for _ in 0..20 {
            for stream in &mut slow {
                // Some have lost their places to others.
                let _ = stream.read_exact(&mut [0]).await;
            }
            assert_eq!(ask(&honest, &scene.victim).await.as_deref(), Some("HTTP/1.1 200 OK"));
        }
    };
    scene.during("slow readers", attack).await;
}
