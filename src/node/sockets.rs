//! TCP, dialled from the port that the node listens on, so that routers and peers know it by that one; and from another where
//! that cannot be had.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use libp2p::core::transport::{DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::tcp::tokio::{TcpStream, Transport as Tcp};
use libp2p::{Multiaddr, Transport, TransportError, tcp};

/// libp2p's transport binds the port at all addresses of the host before it dials, and gives up where somebody else has it
/// at one of them: as long as that is so, nobody would be dialled.
pub(super) struct Sockets(Tcp);

impl Sockets {
    pub(super) fn new() -> Self {
        Self(Tcp::new(tcp::Config::default().nodelay(true)))
    }
}

/// Dials an address from whatever port the system gives.
async fn dial_from_new_port(address: Multiaddr, options: DialOpts) -> io::Result<TcpStream> {
    // One that listens nowhere has no port to reuse.
    let dial = Sockets::new().0.dial(address, DialOpts { port_use: PortUse::New, ..options });
    dial.map_err(|error| match error {
        TransportError::Other(error) => error,
        error @ TransportError::MultiaddrNotSupported(_) => io::Error::other(error),
    })?
    .await
}

impl Transport for Sockets {
    type Output = TcpStream;
    type Error = io::Error;
    type ListenerUpgrade = <Tcp as Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<TcpStream>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let dial = self.0.dial(address.clone(), options)?;
        let dial = dial.or_else(move |error| async move {
            if error.kind() != io::ErrorKind::AddrInUse {
                return Err(error);
            }
            tracing::debug!(%address, "somebody else has the port that we listen on: dialled from a new one");
            dial_from_new_port(address, options).await
        });
        Ok(dial.boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::net::TcpListener;

    use libp2p::core::Endpoint;
    use libp2p::multiaddr::Protocol;

    use super::*;

    const DIALS: DialOpts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };

    async fn next(
        sockets: &mut Sockets,
    ) -> TransportEvent<<Sockets as Transport>::ListenerUpgrade, io::Error> {
        poll_fn(|cx| Pin::new(&mut *sockets).poll(cx)).await
    }

    async fn listening() -> (Sockets, Multiaddr) {
        let mut sockets = Sockets::new();
        sockets.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        let TransportEvent::NewAddress { listen_addr, .. } = next(&mut sockets).await else {
            panic!("it listens nowhere")
        };
        (sockets, listen_addr)
    }

    fn port_of(address: &Multiaddr) -> u16 {
        let port =
            address.iter().find_map(|part| if let Protocol::Tcp(port) = part { Some(port) } else { None });
        port.unwrap()
    }

    #[tokio::test]
    async fn a_dial_leaves_from_where_we_listen_and_from_elsewhere_if_that_is_taken() {
        let ((mut ours, our_address), (mut other, address)) = (listening().await, listening().await);
        for is_taken in [false, true] {
            let taken = is_taken.then(|| TcpListener::bind(("127.0.0.3", port_of(&our_address))).unwrap());
            let _dialled = ours.dial(address.clone(), DIALS).unwrap().await.unwrap();
            let TransportEvent::Incoming { send_back_addr, .. } = next(&mut other).await else {
                panic!("nobody comes in")
            };
            assert_eq!(port_of(&send_back_addr) == port_of(&our_address), taken.is_none());
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_is_an_error() {
        let (mut ours, our_address) = listening().await;
        let port = port_of(&our_address);
        let _taken = TcpListener::bind(("127.0.0.3", port)).unwrap();
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dial = ours.dial(format!("/ip4/127.0.0.1/tcp/{nobody}").parse().unwrap(), DIALS).unwrap();
        assert_eq!(dial.await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(ours.dial("/dns4/example.com/tcp/1".parse().unwrap(), DIALS).is_err());
    }
}
