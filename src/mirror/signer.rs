//! Who has the key of the own tree.

use std::time::Duration;

use libp2p::identity::Keypair;

use crate::ipld::ipns::IpnsName;

/// Who has the key of the own name.
pub enum SigningKey {
    Ours(Box<Keypair>),
    /// Whoever is the network for us: see [`crate::ipfs::Ipfs::sign`].
    Network(IpnsName),
}

/// The key that the own tree is published under.
pub struct Signer {
    pub key: SigningKey,
    /// Made by this start: nobody can know a record of it.
    pub fresh: bool,
    /// From signing to the end of a record's life.
    pub record_validity: Duration,
    /// The keys of names that were given up for this one, as far as they are there.
    pub former: Vec<Keypair>,
}

impl Signer {
    pub fn name(&self) -> IpnsName {
        match &self.key {
            SigningKey::Ours(keypair) => name_of(keypair),
            SigningKey::Network(name) => *name,
        }
    }
}

pub(super) fn name_of(key: &Keypair) -> IpnsName {
    IpnsName::from_peer_id(key.public().to_peer_id())
}
