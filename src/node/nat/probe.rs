//! The client of AutoNAT version 2 (libp2p specification `autonat-v2`): asks a server to dial an address of ours, and knows by
//! a number that only the two share that it has come.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{AsyncWriteExt, FutureExt, StreamExt};
use libp2p::core::Endpoint;
use libp2p::swarm::{Stream, StreamProtocol};
use libp2p::{Multiaddr, PeerId};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::candidates::{BEGUN_MAX, Candidates, Verdict, Voice};
use crate::node::delimited::read;
use crate::node::streams::{Control, Incoming, OpenError};
use crate::tasks::Tasks;

/// Spoken by who tests addresses for others.
pub(super) const DIAL_REQUEST: StreamProtocol = StreamProtocol::new("/libp2p/autonat/2/dial-request");
/// Spoken by who has an address tested.
pub(in crate::node) const DIAL_BACK: StreamProtocol = StreamProtocol::new("/libp2p/autonat/2/dial-back");

/// From the request to the answer, the dial between them included.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);
const DIAL_BACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Dials of servers that are answered at once; those above it are reset.
const DIAL_BACKS_MAX: usize = 32;
const MESSAGE_BYTES_MAX: usize = 4096;
/// What a server may have us send before it dials, so that nobody has it dial others for nothing.
const DATA_BYTES_MAX: u64 = 100_000;
const DATA_STEP_BYTES: usize = 4000;
/// Servers that are known at once.
const SERVERS_MAX: usize = 64;
const ROUND: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(oneof = "Said", tags = "1, 2, 3, 4")]
    said: Option<Said>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Said {
    #[prost(message, tag = "1")]
    Request(DialRequest),
    #[prost(message, tag = "2")]
    Response(DialResponse),
    #[prost(message, tag = "3")]
    DataRequest(DataRequest),
    #[prost(message, tag = "4")]
    Data(Data),
}

#[derive(Clone, PartialEq, Message)]
struct DialRequest {
    #[prost(bytes = "vec", repeated, tag = "1")]
    addresses: Vec<Vec<u8>>,
    #[prost(fixed64, tag = "2")]
    nonce: u64,
}

#[derive(Clone, PartialEq, Message)]
struct DialResponse {
    #[prost(int32, tag = "1")]
    status: i32,
    #[prost(uint32, tag = "2")]
    index: u32,
    #[prost(int32, tag = "3")]
    dial_status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct DataRequest {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(uint64, tag = "2")]
    bytes: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Data {
    #[prost(bytes = "bytes", tag = "1")]
    data: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct DialBack {
    #[prost(fixed64, tag = "1")]
    nonce: u64,
}

#[derive(Clone, PartialEq, Message)]
struct DialBackResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Of both kinds of status: it was tested, and the server has come.
const OK: i32 = 200;
const DIAL_ERROR: i32 = 100;

/// Why there is no test.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the exchange broke off")]
    Io(#[from] io::Error),
    #[error("the server did not answer within {} s", TEST_TIMEOUT.as_secs())]
    Timeout,
    #[error("the server does not test it (status {0}, of the dial {1})")]
    Refused(i32, i32),
    #[error("the server said what it was not asked for")]
    Unasked,
    #[error("the server says that it came, and did not")]
    NotSeen,
}

/// The numbers that servers are to bring, and whether they have.
#[derive(Clone, Default)]
struct Nonces(Arc<Mutex<HashMap<u64, bool>>>);

/// One of them, as long as its test runs.
struct Nonce {
    nonces: Nonces,
    number: u64,
}

impl Nonces {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Nonce {
        // A new hasher has random keys.
        let number = RandomState::new().hash_one(());
        self.lock().insert(number, false);
        Nonce { nonces: self.clone(), number }
    }

    /// `false`: it belongs to no test.
    fn came(&self, number: u64) -> bool {
        self.lock().get_mut(&number).map(|came| *came = true).is_some()
    }
}

impl Nonce {
    fn has_come(&self) -> bool {
        self.nonces.lock().get(&self.number).copied().unwrap_or_default()
    }
}

impl Drop for Nonce {
    fn drop(&mut self) {
        self.nonces.lock().remove(&self.number);
    }
}

/// What came of a test.
pub(in crate::node) struct Probed {
    address: Multiaddr,
    server: PeerId,
    outcome: Result<Voice, ProbeError>,
}

/// Has addresses tested, by the servers that we have dialled: strangers who come by themselves are not asked.
pub(in crate::node) struct Prober {
    control: Control,
    nonces: Nonces,
    servers: Vec<PeerId>,
    candidates: Candidates,
    next: Instant,
    under_way: FuturesUnordered<BoxFuture<'static, Probed>>,
}

impl Prober {
    pub(in crate::node) fn new(control: Control) -> Self {
        Self {
            control,
            nonces: Nonces::default(),
            servers: Vec::new(),
            candidates: Candidates::default(),
            next: Instant::now(),
            under_way: FuturesUnordered::new(),
        }
    }

    /// Starts to take what servers bring.
    pub(in crate::node) fn serve(&self, tasks: &Tasks, incoming: mpsc::Receiver<Incoming>) {
        let nonces = self.nonces.clone();
        tasks.spawn("dial-back", |stop| take_dial_backs(incoming, nonces, stop));
    }

    pub(super) fn test(&mut self, address: &Multiaddr, now: Instant) {
        self.candidates.add(address, now);
    }

    pub(super) fn found(&mut self, server: PeerId) {
        if self.servers.len() < SERVERS_MAX && !self.servers.contains(&server) {
            self.servers.push(server);
        }
    }

    pub(super) fn lost(&mut self, server: &PeerId) {
        self.servers.retain(|known| known != server);
    }

    /// Begins the tests that are due.
    pub(super) fn round(&mut self, now: Instant) {
        if now < self.next || self.servers.is_empty() {
            return;
        }
        self.next = now + ROUND;
        if self.under_way.len() >= BEGUN_MAX {
            return;
        }
        self.servers.rotate_left(1);
        for (address, server) in self.candidates.due(&self.servers, now) {
            let (control, nonce) = (self.control.clone(), self.nonces.next());
            self.under_way.push(Box::pin(async move {
                let probe = timeout(TEST_TIMEOUT, probe(&control, server, &address, &nonce));
                let outcome = probe.await.unwrap_or(Err(ProbeError::Timeout));
                Probed { address, server, outcome }
            }));
        }
    }

    /// The next test that has ended; `None` while there is none. May be dropped midway.
    pub(in crate::node) async fn probed(&mut self) -> Option<Probed> {
        self.under_way.next().await
    }

    /// What follows of a test for its address.
    pub(super) fn judge(&mut self, probed: Probed, now: Instant) -> (Multiaddr, Option<Voice>, Verdict) {
        let Probed { address, server, outcome } = probed;
        match &outcome {
            Ok(Voice::Reached) => tracing::debug!(%address, peer.id = %server, "reached by a server"),
            Ok(Voice::NotReached) => tracing::info!(%address, peer.id = %server, "not reached from outside"),
            Err(error) => tracing::debug!(%address, peer.id = %server, %error, "address not tested"),
        }
        let voice = outcome.ok();
        let verdict = self.candidates.tested(&address, server, voice, now);
        (address, voice, verdict)
    }
}

async fn probe(
    control: &Control,
    server: PeerId,
    address: &Multiaddr,
    nonce: &Nonce,
) -> Result<Voice, ProbeError> {
    let (_, mut stream) = control.open(server, vec![DIAL_REQUEST]).await?;
    let request = DialRequest { addresses: vec![address.to_vec()], nonce: nonce.number };
    say(&mut stream, Said::Request(request)).await?;
    let mut answer: Envelope = read(&mut stream, MESSAGE_BYTES_MAX).await?;
    if let Some(Said::DataRequest(DataRequest { index: 0, bytes })) = answer.said
        && bytes <= DATA_BYTES_MAX
    {
        send_data(&mut stream, usize::try_from(bytes).unwrap_or_default()).await?;
        answer = read(&mut stream, MESSAGE_BYTES_MAX).await?;
    }
    match answer.said {
        Some(Said::Response(DialResponse { status: OK, index: 0, dial_status: OK })) => {
            if nonce.has_come() {
                Ok(Voice::Reached)
            } else {
                Err(ProbeError::NotSeen)
            }
        }
        Some(Said::Response(DialResponse { status: OK, index: 0, dial_status: DIAL_ERROR })) => {
            Ok(Voice::NotReached)
        }
        Some(Said::Response(DialResponse { status, index: 0, dial_status })) => {
            Err(ProbeError::Refused(status, dial_status))
        }
        _ => Err(ProbeError::Unasked),
    }
}

async fn say(stream: &mut Stream, said: Said) -> io::Result<()> {
    stream.write_all(&Envelope { said: Some(said) }.encode_length_delimited_to_vec()).await?;
    stream.flush().await
}

async fn send_data(stream: &mut Stream, bytes: usize) -> io::Result<()> {
    let zeros = Bytes::from_static(&[0; DATA_STEP_BYTES]);
    let mut left = bytes;
    while left > 0 {
        let step = left.min(DATA_STEP_BYTES);
        say(stream, Said::Data(Data { data: zeros.slice(..step) })).await?;
        left -= step;
    }
    Ok(())
}

async fn take_dial_backs(mut incoming: mpsc::Receiver<Incoming>, nonces: Nonces, stop: CancellationToken) {
    let mut taking = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            came = incoming.recv() => {
                let Some(Incoming { stream, role, .. }) = came else { return };
                // On a connection that we have opened nobody shows that he can come in.
                if role == Endpoint::Listener && taking.len() < DIAL_BACKS_MAX {
                    taking.push(timeout(DIAL_BACK_TIMEOUT, take_dial_back(stream, &nonces)));
                }
            }
            Some(_) = taking.next() => (),
        }
    }
}

async fn take_dial_back(mut stream: Stream, nonces: &Nonces) -> io::Result<()> {
    let DialBack { nonce } = read(&mut stream, MESSAGE_BYTES_MAX).await?;
    if nonces.came(nonce) {
        stream.write_all(&DialBackResponse { status: 0 }.encode_length_delimited_to_vec()).await?;
        stream.close().await?;
    }
    Ok(())
}

/// Reads whatever bytes as what a server sends: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let cursor = || futures::io::Cursor::new(bytes);
    if let Some(Ok(Envelope { said: Some(Said::Data(sent)) })) =
        read::<Envelope>(&mut cursor(), MESSAGE_BYTES_MAX).now_or_never()
    {
        assert!(sent.data.len() <= MESSAGE_BYTES_MAX);
    }
    let _ = read::<DialBack>(&mut cursor(), MESSAGE_BYTES_MAX).now_or_never();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::bitswap::testing::Bare;

    /// What a server does with a request.
    #[derive(Clone, Copy, PartialEq)]
    enum Server {
        /// Comes in by a connection of its own, after it was given data.
        Comes,
        /// Comes by the connection that it was asked over.
        StaysWhereItIs,
        SaysThatItCame,
        SaysThatItCannot,
        WantsMuch,
        Refuses,
    }

    impl Server {
        fn answer(self) -> Said {
            let (status, dial_status) = match self {
                Self::SaysThatItCannot => (OK, DIAL_ERROR),
                Self::Refuses => (101, 0),
                _ => (OK, OK),
            };
            match self {
                Self::WantsMuch => Said::DataRequest(DataRequest { index: 0, bytes: 1 << 40 }),
                _ => Said::Response(DialResponse { status, index: 0, dial_status }),
            }
        }

        /// Plays the server for ever; `client`: where the node really is.
        async fn play(self, mut bare: Bare, client: Multiaddr) {
            while let Some(Incoming { peer, mut stream, .. }) = bare.incoming.recv().await {
                let asked: Envelope = read(&mut stream, MESSAGE_BYTES_MAX).await.unwrap();
                let Some(Said::Request(DialRequest { nonce, .. })) = asked.said else { panic!("no request") };
                if self == Self::Comes {
                    say(&mut stream, Said::DataRequest(DataRequest { index: 0, bytes: 30_000 }))
                        .await
                        .unwrap();
                    let mut came = 0;
                    while came < 30_000 {
                        let data: Envelope = read(&mut stream, MESSAGE_BYTES_MAX).await.unwrap();
                        let Some(Said::Data(Data { data })) = data.said else { panic!("no data") };
                        came += data.len();
                    }
                    let other = Bare::speaking(Vec::new(), 1).await;
                    other.dial(&client).await;
                    dial_back(&other.control, peer, nonce).await;
                } else if self == Self::StaysWhereItIs {
                    dial_back(&bare.control, peer, nonce).await;
                }
                say(&mut stream, self.answer()).await.unwrap();
            }
        }
    }

    async fn dial_back(control: &Control, to: PeerId, nonce: u64) {
        let (_, mut stream) = control.open(to, vec![DIAL_BACK]).await.unwrap();
        stream.write_all(&DialBack { nonce }.encode_length_delimited_to_vec()).await.unwrap();
        stream.close().await.unwrap();
        // It is answered, or reset.
        let _ = read::<DialBackResponse>(&mut stream, MESSAGE_BYTES_MAX).await;
    }

    /// A node that has an address tested by these servers.
    async fn tested_by(servers: &[Server]) -> (Prober, Vec<PeerId>, Multiaddr, Tasks) {
        let mut node = Bare::speaking(vec![DIAL_BACK], 8).await;
        let tasks = node.tasks.clone();
        let (_, none) = mpsc::channel(1);
        let mut prober = Prober::new(node.control.clone());
        prober.serve(&tasks, std::mem::replace(&mut node.incoming, none));
        let mut peers = Vec::new();
        for server in servers {
            let bare = Bare::speaking(vec![DIAL_REQUEST], 8).await;
            peers.push(bare.peer);
            node.dial(&bare.address).await;
            prober.found(bare.peer);
            let (server, client) = (*server, node.address.clone());
            tasks.spawn_short("server", |stop| async move {
                stop.run_until_cancelled(server.play(bare, client)).await;
            });
        }
        let address: Multiaddr = "/ip4/8.8.8.8/tcp/4001".parse().unwrap();
        prober.test(&address, Instant::now());
        tasks.spawn_short("node", |stop| async move {
            let _node = node;
            stop.cancelled().await;
        });
        (prober, peers, address, tasks)
    }

    /// The next test, as if its time had come.
    async fn next(prober: &mut Prober, now: &mut Instant) -> (Option<Voice>, Verdict) {
        while prober.under_way.is_empty() {
            *now += ROUND;
            prober.round(*now);
        }
        let probed = prober.probed().await.unwrap();
        let (_, voice, verdict) = prober.judge(probed, *now);
        (voice, verdict)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_lies_proves_nothing_and_takes_nothing_away() {
        for (server, voice) in [
            (Server::Comes, Some(Voice::Reached)),
            (Server::StaysWhereItIs, None),
            (Server::SaysThatItCame, None),
            (Server::SaysThatItCannot, Some(Voice::NotReached)),
            (Server::WantsMuch, None),
            (Server::Refuses, None),
        ] {
            let (mut prober, _, _, _tasks) = tested_by(&[server]).await;
            let mut now = Instant::now();
            let said = next(&mut prober, &mut now).await;
            let verdict = if server == Server::Comes { Verdict::Reached } else { Verdict::Open };
            assert_eq!(said, (voice, verdict));
            assert!(prober.nonces.lock().is_empty(), "none is left");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_address_that_liars_took_away_comes_back_by_others() {
        use Server::{Comes, SaysThatItCannot};
        let (mut prober, ..) = tested_by(&[SaysThatItCannot, SaysThatItCannot, Comes, Comes]).await;
        let others = prober.servers.split_off(2);
        let mut now = Instant::now();
        let mut said = Vec::new();
        for servers in [Vec::new(), others] {
            prober.servers.extend(servers);
            for _ in 0..2 {
                said.push(next(&mut prober, &mut now).await.1);
            }
        }
        assert_eq!(said, [Verdict::Open, Verdict::NotReached, Verdict::Open, Verdict::Reached]);
    }
}
