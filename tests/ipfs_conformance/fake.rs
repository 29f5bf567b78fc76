//! A network of one map of blocks and one of records.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use hyper::{Request, Response};
use shoal::ipfs::{Ipfs, IpfsError, Peer, PeerBody, Want};
use shoal::ipld::ipns::{IpnsName, IpnsRecord};
use shoal::ipld::{Block, Cid};
use tokio::sync::watch;

pub struct Fake {
    block: Block,
    records: Mutex<HashMap<IpnsName, IpnsRecord>>,
    mesh: watch::Sender<Arc<[Peer]>>,
}

impl Fake {
    pub fn with(block: &Block) -> Self {
        Self { block: block.clone(), records: Mutex::default(), mesh: watch::Sender::default() }
    }
}

#[async_trait]
impl Ipfs for Fake {
    async fn fetch(&self, want: Want) -> Result<Block, IpfsError> {
        if let Some(block) = Block::known(&want.cid) {
            return Ok(block);
        }
        match want.cid == *self.block.cid() {
            true => Ok(self.block.clone()),
            false => Err(IpfsError::NoProvider(Box::new(want.cid))),
        }
    }

    async fn provide(&self, _: &[Cid]) -> Result<(), IpfsError> {
        Ok(())
    }

    async fn resolve(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        let found = self.records.lock().unwrap().get(name).cloned();
        found.ok_or_else(|| IpfsError::NoRecord(Box::new(*name)))
    }

    async fn publish(&self, record: &IpnsRecord) -> Result<(), IpfsError> {
        let mut records = self.records.lock().unwrap();
        let known = records.get(record.name());
        if known.is_none_or(|known| record.is_better_than(known)) {
            records.insert(*record.name(), record.clone());
        }
        Ok(())
    }

    fn mesh(&self) -> watch::Receiver<Arc<[Peer]>> {
        self.mesh.subscribe()
    }

    async fn request(&self, peer: &Peer, _: Request<Bytes>) -> Result<Response<PeerBody>, IpfsError> {
        Err(IpfsError::NotConnected(peer.clone()))
    }
}
