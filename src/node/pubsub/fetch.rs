//! The libp2p fetch protocol, both ways: who has come to a topic is asked for its newest record, and asks us.
//!
//! A stream carries one request and its answer, each a protobuf behind its length (libp2p specification "Fetch").

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{AsyncRead, AsyncWrite, AsyncWriteExt, FutureExt, StreamExt};
use jiff::Timestamp;
use libp2p::PeerId;
use libp2p::swarm::StreamProtocol;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::delimited::read;
use super::super::streams::{Control, Incoming, OpenError};
use crate::ipld::ipns::{IpnsName, IpnsRecord, RECORD_BYTES_MAX};

pub(in super::super) const FETCH: StreamProtocol = StreamProtocol::new("/libp2p/fetch/0.0.1");

/// From the first byte of an exchange to its last.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of one peer that are answered at once, and of all peers; those above it are reset.
const ANSWERED_PER_PEER_MAX: usize = 8;
const ANSWERED_MAX: usize = 256;
/// Longer requests are for nothing that we have: `/ipns/` and a peer id.
const REQUEST_BYTES_MAX: usize = 256;
/// A record, and what is said around it.
const ANSWER_BYTES_MAX: usize = RECORD_BYTES_MAX + 64;

/// The newest record of each name that has one.
pub(super) type Newest = Arc<HashMap<IpnsName, IpnsRecord>>;

#[derive(Clone, PartialEq, Message)]
struct Request {
    /// Kubo declares a string, and sends the binary key.
    #[prost(bytes = "bytes", tag = "1")]
    identifier: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(enumeration = "Status", tag = "1")]
    status: i32,
    #[prost(bytes = "bytes", tag = "2")]
    data: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
enum Status {
    Ok = 0,
    NotFound = 1,
    Error = 2,
}

/// Why a peer gave no answer.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum FetchError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the exchange broke off")]
    Io(#[from] io::Error),
    #[error("the peer answered nothing within {} s", EXCHANGE_TIMEOUT.as_secs())]
    Timeout,
    #[error("the peer says that it failed (status {0})")]
    Failed(i32),
}

/// Asks a connected peer for the newest record of a name; `None`: it has none. The bytes are unchecked. Ends within 10 s;
/// dropping it resets the stream.
pub(super) async fn ask(control: Control, peer: PeerId, name: IpnsName) -> Result<Option<Bytes>, FetchError> {
    let exchange = async {
        let (_, mut stream) = control.open(peer, vec![FETCH]).await?;
        let request = Request { identifier: name.routing_key().into() };
        stream.write_all(&request.encode_length_delimited_to_vec()).await?;
        stream.close().await?;
        let answer: Answer = read(&mut stream, ANSWER_BYTES_MAX).await?;
        match Status::try_from(answer.status) {
            Ok(Status::Ok) => Ok(Some(answer.data)),
            Ok(Status::NotFound) => Ok(None),
            Ok(Status::Error) | Err(_) => Err(FetchError::Failed(answer.status)),
        }
    };
    timeout(EXCHANGE_TIMEOUT, exchange).await.map_err(|_| FetchError::Timeout)?
}

/// Answers what peers ask, from `newest`, until `incoming` ends or at a stop.
pub(super) async fn serve(
    mut incoming: mpsc::Receiver<Incoming>,
    newest: watch::Receiver<Newest>,
    stop: CancellationToken,
) {
    let mut answering = FuturesUnordered::new();
    let mut by_peer: HashMap<PeerId, usize> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            asked = incoming.recv() => {
                let Some(Incoming { peer, stream, .. }) = asked else { return };
                let under_way = by_peer.entry(peer).or_default();
                if *under_way >= ANSWERED_PER_PEER_MAX || answering.len() >= ANSWERED_MAX {
                    tracing::debug!(peer.id = %peer, "reset a fetch: too many are open");
                    by_peer.retain(|_, under_way| *under_way > 0);
                    continue;
                }
                *under_way += 1;
                let newest = newest.clone();
                answering.push(async move { (peer, timeout(EXCHANGE_TIMEOUT, answer(stream, &newest)).await) });
            }
            Some((peer, outcome)) = answering.next() => {
                if let Some(under_way) = by_peer.get_mut(&peer) {
                    *under_way -= 1;
                    if *under_way == 0 {
                        by_peer.remove(&peer);
                    }
                }
                if let Ok(Err(error)) = outcome {
                    tracing::debug!(peer.id = %peer, %error, "fetch not answered");
                }
            }
        }
    }
}

async fn answer(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    newest: &watch::Receiver<Newest>,
) -> io::Result<()> {
    let request: Request = read(&mut stream, REQUEST_BYTES_MAX).await?;
    let record = IpnsName::from_routing_key(&request.identifier)
        .and_then(|name| newest.borrow().get(&name).cloned())
        .filter(|record| record.check_validity(Timestamp::now()).is_ok());
    let answer = match record {
        Some(record) => Answer { status: Status::Ok.into(), data: record.bytes().clone() },
        None => Answer { status: Status::NotFound.into(), data: Bytes::new() },
    };
    stream.write_all(&answer.encode_length_delimited_to_vec()).await?;
    stream.close().await
}

/// Reads whatever bytes as a request and as an answer: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let cursor = || futures::io::Cursor::new(bytes);
    if let Some(Ok(request)) = read::<Request>(&mut cursor(), REQUEST_BYTES_MAX).now_or_never() {
        assert!(request.identifier.len() <= REQUEST_BYTES_MAX);
        let _ = IpnsName::from_routing_key(&request.identifier);
    }
    if let Some(Ok(answer)) = read::<Answer>(&mut cursor(), ANSWER_BYTES_MAX).now_or_never() {
        assert!(answer.data.len() <= ANSWER_BYTES_MAX);
        let _ = Status::try_from(answer.status);
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;
    use libp2p::identity::Keypair;
    use proptest::prelude::*;

    use super::*;

    fn read_now<M: Message + Default>(bytes: &[u8], bytes_max: usize) -> io::Result<M> {
        futures::executor::block_on(read(&mut Cursor::new(bytes), bytes_max))
    }

    #[test]
    fn a_request_is_a_field_behind_its_length() {
        let name = IpnsName::from_peer_id(Keypair::generate_ed25519().public().to_peer_id());
        let key = name.routing_key();
        let bytes = Request { identifier: key.clone().into() }.encode_length_delimited_to_vec();
        assert_eq!(bytes[..3], [46, 0x0a, 44]);
        assert_eq!(bytes[3..], key);
        assert_eq!(read_now::<Request>(&bytes, REQUEST_BYTES_MAX).unwrap().identifier, key);
        // Status OK is left out, as proto3 has it.
        let found = Answer { status: 0, data: Bytes::from_static(b"x") };
        assert_eq!(found.encode_length_delimited_to_vec(), [3, 0x12, 1, b'x']);
        let missing = Answer { status: Status::NotFound.into(), data: Bytes::new() };
        assert_eq!(missing.encode_length_delimited_to_vec(), [2, 0x08, 1]);
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        for long in [&[0xff, 0xff, 0x7f][..], &[0x81, 0x02], &[0xff, 0xff, 0xff, 0x7f], &[0x80, 0x80, 0x80]] {
            let error = read_now::<Request>(&[long, &[0; 300]].concat(), REQUEST_BYTES_MAX).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{long:?}");
        }
        assert!(read_now::<Request>(&[5, 0x0a], REQUEST_BYTES_MAX).is_err(), "it ends in the middle");
    }

    proptest! {
        #[test]
        fn hostile_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_now::<Request>(&bytes, REQUEST_BYTES_MAX);
            let _ = read_now::<Answer>(&bytes, ANSWER_BYTES_MAX);
        }
    }
}
