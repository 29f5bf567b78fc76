//! How a connection over TCP is encrypted: by Noise or by TLS, whichever the peer speaks, Noise before TLS.

use futures::future::{BoxFuture, Either};
use futures::{AsyncRead, AsyncWrite, FutureExt, TryFutureExt};
use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade};
use libp2p::identity::Keypair;
use libp2p::{PeerId, noise, tls};

use super::NodeError;

/// Both of them, for one connection.
#[derive(Clone)]
pub(super) struct Security {
    noise: noise::Config,
    tls: tls::Config,
}

/// Who is at the other end, and the encrypted connection.
type Secured<C> = (PeerId, Either<noise::Output<C>, tls::TlsStream<C>>);

#[derive(Debug, thiserror::Error)]
pub(super) enum SecurityError {
    #[error(transparent)]
    Noise(#[from] noise::Error),
    #[error(transparent)]
    Tls(#[from] tls::UpgradeError),
}

impl Security {
    pub(super) fn new(keypair: &Keypair) -> Result<Self, NodeError> {
        let failed = |error: &dyn std::fmt::Display| NodeError::Transport(error.to_string());
        Ok(Self {
            noise: noise::Config::new(keypair).map_err(|error| failed(&error))?,
            tls: tls::Config::new(keypair).map_err(|error| failed(&error))?,
        })
    }

    fn is_noise(&self, protocol: &str) -> bool {
        self.noise.protocol_info().any(|noise| noise == protocol)
    }
}

impl UpgradeInfo for Security {
    type Info = &'static str;
    type InfoIter = Vec<&'static str>;

    fn protocol_info(&self) -> Vec<&'static str> {
        self.noise.protocol_info().chain(self.tls.protocol_info()).collect()
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<C> for Security {
    type Output = Secured<C>;
    type Error = SecurityError;
    type Future = BoxFuture<'static, Result<Secured<C>, SecurityError>>;

    fn upgrade_inbound(self, socket: C, protocol: &'static str) -> Self::Future {
        if self.is_noise(protocol) {
            let secured = self.noise.upgrade_inbound(socket, protocol).err_into();
            return secured.map_ok(|(peer, io)| (peer, Either::Left(io))).boxed();
        }
        let secured = self.tls.upgrade_inbound(socket, protocol).err_into();
        secured.map_ok(|(peer, io)| (peer, Either::Right(io))).boxed()
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<C> for Security {
    type Output = Secured<C>;
    type Error = SecurityError;
    type Future = BoxFuture<'static, Result<Secured<C>, SecurityError>>;

    fn upgrade_outbound(self, socket: C, protocol: &'static str) -> Self::Future {
        if self.is_noise(protocol) {
            let secured = self.noise.upgrade_outbound(socket, protocol).err_into();
            return secured.map_ok(|(peer, io)| (peer, Either::Left(io))).boxed();
        }
        let secured = self.tls.upgrade_outbound(socket, protocol).err_into();
        secured.map_ok(|(peer, io)| (peer, Either::Right(io))).boxed()
    }
}
