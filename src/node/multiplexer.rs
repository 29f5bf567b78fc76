//! Streams side by side on one socket, by yamux. A connection that is closed says so to its peer first, and one whose peer
//! reads nothing could never say it: it is dropped after a while, or such peers would hold any number of sockets.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::MapOk;
use futures::{AsyncRead, AsyncWrite, FutureExt, TryFutureExt};
use libp2p::core::UpgradeInfo;
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::yamux;
use tokio::time::{Sleep, sleep};

/// Streams of one connection. With this count no yamux window passes the 1 MiB that a frame may have, so that peers which
/// fill a window in one frame are understood; and opening many streams does not end the connection.
const STREAMS_MAX: usize = 4093;
/// How long a connection may take to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The upgrade of a socket.
#[derive(Clone)]
pub(super) struct Multiplexer(yamux::Config);

impl Multiplexer {
    pub(super) fn new() -> Self {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(STREAMS_MAX);
        Self(config)
    }
}

impl UpgradeInfo for Multiplexer {
    type Info = <yamux::Config as UpgradeInfo>::Info;
    type InfoIter = <yamux::Config as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

/// An upgrade by yamux, whose connection ends in time.
type Upgraded<C, F> = MapOk<F, fn(yamux::Muxer<C>) -> EndsInTime<yamux::Muxer<C>>>;

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Multiplexer {
    type Output = EndsInTime<yamux::Muxer<C>>;
    type Error = <yamux::Config as InboundConnectionUpgrade<C>>::Error;
    type Future = Upgraded<C, <yamux::Config as InboundConnectionUpgrade<C>>::Future>;

    fn upgrade_inbound(self, socket: C, protocol: Self::Info) -> Self::Future {
        self.0.upgrade_inbound(socket, protocol).map_ok(EndsInTime::new)
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Multiplexer {
    type Output = EndsInTime<yamux::Muxer<C>>;
    type Error = <yamux::Config as OutboundConnectionUpgrade<C>>::Error;
    type Future = Upgraded<C, <yamux::Config as OutboundConnectionUpgrade<C>>::Future>;

    fn upgrade_outbound(self, socket: C, protocol: Self::Info) -> Self::Future {
        self.0.upgrade_outbound(socket, protocol).map_ok(EndsInTime::new)
    }
}

/// A connection that has closed [`CLOSE_TIMEOUT`] after it was told to, whatever its peer does.
pub(super) struct EndsInTime<M> {
    muxer: M,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<M> EndsInTime<M> {
    fn new(muxer: M) -> Self {
        Self { muxer, deadline: None }
    }
}

impl<M: StreamMuxer + Unpin> StreamMuxer for EndsInTime<M> {
    type Substream = M::Substream;
    type Error = M::Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<M::Substream, M::Error>> {
        Pin::new(&mut self.muxer).poll_inbound(cx)
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<M::Substream, M::Error>> {
        Pin::new(&mut self.muxer).poll_outbound(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), M::Error>> {
        if let Poll::Ready(closed) = Pin::new(&mut self.muxer).poll_close(cx) {
            return Poll::Ready(closed);
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(CLOSE_TIMEOUT)));
        deadline.poll_unpin(cx).map(Ok)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, M::Error>> {
        Pin::new(&mut self.muxer).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;
    use futures::{AsyncWriteExt, future};
    use libp2p::core::muxing::StreamMuxerExt;
    use tokio::io::{DuplexStream, duplex};
    use tokio::time::Instant;
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

    use super::*;

    /// A connection with a peer at the other end, which is there and need not read.
    async fn connection() -> (EndsInTime<yamux::Muxer<Compat<DuplexStream>>>, DuplexStream) {
        let (socket, peer) = duplex(1024);
        let upgrade = Multiplexer::new();
        let protocol = upgrade.protocol_info().next().unwrap();
        (upgrade.upgrade_outbound(socket.compat(), protocol).await.unwrap(), peer)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_peer_reads_nothing_is_closed_in_time() {
        let (mut connection, _peer) = connection().await;
        let mut stream = future::poll_fn(|cx| connection.poll_outbound_unpin(cx)).await.unwrap();
        let writes = async { futures::io::copy(Cursor::new(vec![0; 1 << 20]), &mut stream).await };
        let drives = future::poll_fn(|cx| connection.poll_unpin(cx));
        let stuck =
            tokio::time::timeout(Duration::from_secs(1), future::select(Box::pin(writes), drives)).await;
        assert!(stuck.is_err(), "its buffers are full");
        let begun = Instant::now();
        connection.close().await.unwrap();
        assert_eq!(begun.elapsed(), CLOSE_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_peer_reads_is_closed_at_once() {
        let (mut connection, peer) = connection().await;
        let mut stream = future::poll_fn(|cx| connection.poll_outbound_unpin(cx)).await.unwrap();
        stream.write_all(b"a few bytes").await.unwrap();
        let (begun, mut peer) = (Instant::now(), peer);
        let mut sink = tokio::io::sink();
        let (closed, read) = tokio::join!(connection.close(), tokio::io::copy(&mut peer, &mut sink));
        closed.unwrap();
        assert!(read.unwrap() > 11, "it is told of the end behind what was written");
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
