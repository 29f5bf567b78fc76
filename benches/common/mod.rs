//! What several benches need.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Request, Response};
use shoal::ipfs::{Ipfs, IpfsError, Peer, PeerBody, Want};
use shoal::ipld::ipns::{IpnsName, IpnsRecord};
use shoal::ipld::{Block, Cid};
use tokio::sync::watch;

/// A network without anybody.
pub struct Nobody;

#[async_trait]
impl Ipfs for Nobody {
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        Err(IpfsError::NoProvider(Box::new(want.cid)))
    }
    async fn provide(&self, _: &[Cid]) -> Result<(), IpfsError> {
        Err(IpfsError::Closed)
    }
    async fn resolve(&self, _: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        Err(IpfsError::Closed)
    }
    async fn publish(&self, _: &IpnsRecord) -> Result<(), IpfsError> {
        Err(IpfsError::Closed)
    }
    fn mesh(&self) -> watch::Receiver<Arc<[Peer]>> {
        watch::Sender::default().subscribe()
    }
    async fn request(&self, _: &Peer, _: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError> {
        Err(IpfsError::Closed)
    }
}
