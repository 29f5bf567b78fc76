//! The client of AutoNAT version 2 (libp2p specification `autonat-v2`): asks a server to dial an address of ours, and knows by
//! a number that only the two share that it has come.

#[cfg(test)]
pub(in crate::node) mod testing;
#[cfg(test)]
mod tests;

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

use super::candidates::{BEGUN_MAX, Candidates, SERVERS_MAX, Verdict, Voice};
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
    /// The server of each test that is under way.
    busy: Vec<PeerId>,
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
            busy: Vec::new(),
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
        for (address, server) in self.candidates.due(&self.servers, &mut self.busy, now) {
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
        if let Some(at) = self.busy.iter().position(|busy| *busy == server) {
            self.busy.swap_remove(at);
        }
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
