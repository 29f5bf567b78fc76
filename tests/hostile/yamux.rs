//! Frames of yamux as no multiplexer sends them, on a connection that was encrypted as it should be: ids that are used
//! twice, or of the other side, windows that are not kept, pings without end.

use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::core::upgrade::OutboundConnectionUpgrade;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, noise};
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncReadCompatExt;

use crate::common::{Daemon, PATIENCE};
use crate::honest::Honest;

/// Types of frames, and flags (yamux specification).
const DATA: u8 = 0;
const WINDOW: u8 = 1;
const PING: u8 = 2;
const SYN: u16 = 1;
const FIN: u16 = 4;
const RST: u16 = 8;
/// What may be sent on a stream before its other end has taken some of it, and more than that.
const WINDOW_BYTES: usize = 256 * 1024;
/// How long an attack may go on writing: a daemon that reads no more of it is as good as one that hung up.
const WRITING_MAX: Duration = Duration::from_secs(5);

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Agrees on a protocol (multistream-select 1.0).
async fn select(io: &mut impl Io, protocol: &str) {
    for line in ["/multistream/1.0.0", protocol] {
        let line = format!("{line}\n");
        let length = u8::try_from(line.len()).unwrap();
        io.write_all(&[&[length], line.as_bytes()].concat()).await.unwrap();
        io.flush().await.unwrap();
        let mut answer = vec![0; 1 + line.len()];
        io.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer[1..], line.as_bytes(), "{protocol} is not spoken");
    }
}

/// A connection on which frames are written by hand.
async fn connect(to: &Daemon) -> impl Io + use<> {
    let address: Multiaddr = to.address.parse().unwrap();
    let port = address.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let mut socket = TcpStream::connect(("127.0.0.1", port.unwrap())).await.unwrap().compat();
    select(&mut socket, "/noise").await;
    let noise = noise::Config::new(&Keypair::generate_ed25519()).unwrap();
    let (_, mut encrypted) = noise.upgrade_outbound(socket, "/noise").await.unwrap();
    select(&mut encrypted, "/yamux/1.0.0").await;
    encrypted
}

fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
    let [flags, stream, length] =
        [flags.to_be_bytes().to_vec(), stream.to_be_bytes().to_vec(), length.to_be_bytes().to_vec()];
    [vec![0, kind], flags, stream, length].concat()
}

fn data(flags: u16, stream: u32, body: &[u8]) -> Vec<u8> {
    [frame(DATA, flags, stream, u32::try_from(body.len()).unwrap()), body.to_vec()].concat()
}

/// What is written, and its name.
fn attacks() -> Vec<(&'static str, Vec<u8>)> {
    let open = |stream| frame(WINDOW, SYN, stream, 0);
    let hello = b"\x13/multistream/1.0.0\n";
    let many = |from: u32, step: u32, count: u32| -> Vec<u8> {
        (0..count).flat_map(|n| open(from + n * step)).collect()
    };
    let mut overrun = open(1);
    (0..8).for_each(|_| overrun.extend(data(0, 1, &vec![0; WINDOW_BYTES])));
    let reopened =
        [open(1), data(FIN, 1, hello), frame(WINDOW, RST, 1, 0), open(1), data(0, 1, hello)].concat();
    vec![
        ("an id opened twice", [open(1), data(0, 1, hello), open(1), data(0, 1, hello)].concat()),
        ("an id opened again after its end", reopened.repeat(200)),
        ("data on ids that were never opened", (0..2000).flat_map(|n| data(0, 2 * n + 1, hello)).collect()),
        ("ids of the other side", many(2, 2, 200)),
        ("the id of the connection", [open(0), data(SYN, 0, hello)].concat()),
        ("ids backwards", (0..2000_u32).rev().flat_map(|n| open(2 * n + 1)).collect()),
        ("more ids than there may be", many(1, 2, 20_000)),
        ("more than the window", overrun),
        ("a frame of 4 GiB", [open(1), frame(DATA, 0, 1, u32::MAX), vec![0; 1 << 20]].concat()),
        ("windows that overflow", frame(WINDOW, 0, 1, u32::MAX).repeat(1000)),
        ("pings without end", frame(PING, SYN, 0, 7).repeat(300_000)),
        ("answers to pings that were not sent", frame(PING, 2, 0, 7).repeat(10_000)),
        ("another version", vec![9; 12 * 1000]),
        ("all flags at once", frame(DATA, 0xffff, 1, 0).repeat(1000)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_against_the_rules_harm_their_own_connection_alone() {
    let honest = Honest::start(650).await;
    let attack = async {
        let mut held = Vec::new();
        for (_, bytes) in attacks().into_iter().cycle().take(2 * attacks().len()) {
            let connecting = connect(&honest.victim);
            let mut connection = tokio::time::timeout(PATIENCE, connecting).await.expect("it still accepts");
            let writing = async {
                // Reading nothing: what it answers fills its own buffers.
                let _ = connection.write_all(&bytes).await;
                let _ = connection.flush().await;
            };
            let _ = tokio::time::timeout(WRITING_MAX, writing).await;
            held.push(connection);
        }
        held
    };
    let held = honest.during("frames against the rules", attack).await;
    drop(held);
    let mut connection = tokio::time::timeout(PATIENCE, connect(&honest.victim)).await.unwrap();
    connection.close().await.unwrap();
}
