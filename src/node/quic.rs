//! QUIC, and what go-libp2p does on it: a stream that is opened for one message is closed both ways right after it.
//!
//! The answer to the negotiation then meets a peer that no longer reads. For multistream-select that is the end of the
//! stream, unread message and all; Kubo before 0.37 sends each block so. Here such an answer is dropped instead.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport, quic};

/// What may be written in vain to an inbound stream: the header of multistream-select and the name of a protocol.
const ANSWER_BYTES_MAX: usize = 256;

/// QUIC as [`libp2p::quic`] has it, but for inbound streams whose opener reads nothing.
pub(super) fn transport(
    keypair: &Keypair,
) -> impl Transport<
    Output = (PeerId, Muxer<quic::Connection>),
    Error = quic::Error,
    ListenerUpgrade: Send,
    Dial: Send,
> + Send
+ Unpin
+ use<> {
    quic::tokio::Transport::new(quic::Config::new(keypair))
        .map(|(peer, connection), _| (peer, Muxer(connection)))
}

/// A connection.
pub(super) struct Muxer<M>(M);

impl<M: StreamMuxer + Unpin> StreamMuxer for Muxer<M>
where
    M::Substream: Unpin,
{
    type Substream = Stream<M::Substream>;
    type Error = M::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, M::Error>> {
        let stream = ready!(Pin::new(&mut self.0).poll_inbound(cx))?;
        Poll::Ready(Ok(Stream { stream, spared_bytes: ANSWER_BYTES_MAX }))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, M::Error>> {
        let stream = ready!(Pin::new(&mut self.0).poll_outbound(cx))?;
        Poll::Ready(Ok(Stream { stream, spared_bytes: 0 }))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), M::Error>> {
        Pin::new(&mut self.0).poll_close(cx)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, M::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// A stream of one.
pub(super) struct Stream<S> {
    stream: S,
    /// Bytes that may still be written although nobody reads them.
    spared_bytes: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_read(cx, bytes)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match ready!(Pin::new(&mut self.stream).poll_write(cx, bytes)) {
            Err(error)
                if error.kind() == io::ErrorKind::ConnectionReset && bytes.len() <= self.spared_bytes =>
            {
                bytes.len()
            }
            written => written?,
        };
        self.spared_bytes = self.spared_bytes.saturating_sub(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
    use libp2p::core::Endpoint;
    use libp2p::core::transport::{DialOpts, PortUse};
    use libp2p::swarm::SwarmEvent;
    use libp2p::{Multiaddr, StreamProtocol, SwarmBuilder};
    use tokio::sync::mpsc;

    use super::*;
    use crate::node::streams::{Behaviour, Incoming};
    use crate::tasks::Tasks;

    const TAKEN: StreamProtocol = StreamProtocol::new("/test/1");

    /// A node that takes streams, and its address.
    async fn taker(tasks: &Tasks) -> (Multiaddr, mpsc::Receiver<Incoming>) {
        let (sender, incoming) = mpsc::channel(1);
        let (behaviour, _) = Behaviour::new(vec![TAKEN], sender);
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_other_transport(transport)
            .unwrap()
            .with_behaviour(|_| behaviour)
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
            .build();
        swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()).unwrap();
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        tasks.spawn_short("swarm", |stop| async move {
            while stop.run_until_cancelled(swarm.select_next_some()).await.is_some() {}
        });
        (address, incoming)
    }

    /// One message on a stream that is closed both ways at once, before anything was read from it.
    async fn tell(connection: &mut quic::Connection, message: &[u8]) {
        let mut stream = poll_fn(|cx| Pin::new(&mut *connection).poll_outbound(cx)).await.unwrap();
        stream.write_all(b"\x13/multistream/1.0.0\n\x08/test/1\n").await.unwrap();
        stream.write_all(message).await.unwrap();
        stream.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_message_is_read_though_its_sender_closed_the_stream_both_ways() {
        let tasks = Tasks::new();
        let (address, mut incoming) = taker(&tasks).await;
        let mut dialler = quic::tokio::Transport::new(quic::Config::new(&Keypair::generate_ed25519()));
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let (_, mut connection) = dialler.dial(address, options).unwrap().await.unwrap();

        for message in [b"first", b"again"] {
            tell(&mut connection, message).await;
            let received = tokio::time::timeout(Duration::from_secs(20), incoming.recv()).await;
            let mut stream = received.expect("the stream is lost").unwrap().stream;
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, message);

            let spared = stream.write(&[0; ANSWER_BYTES_MAX]).await;
            assert!(spared.is_err(), "more than an answer is written to nobody: {spared:?}");
        }
    }
}
