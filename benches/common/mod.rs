//! What several benches need.

use async_trait::async_trait;
use shoal::ipfs::{Ipfs, IpfsError, Want};
use shoal::ipld::ipns::{IpnsName, IpnsRecord};
use shoal::ipld::{Block, Cid};

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
}
