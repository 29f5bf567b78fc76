//! Names that others keep and that lead to a path of IPFS: DNSLink, by the domain name system, and ENS, by an Ethereum
//! node. Knows nothing of what lies at the path. Absence is `Ok(None)`.

mod dnslink;
mod ens;

use std::time::Duration;

use hickory_resolver::net::NetError;

use crate::config::NamingConfig;
use crate::ipld::{Domain, IpfsPath, Pointer};
use dnslink::DnsLink;
use ens::Ens;

/// How long one name server or node is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Domains that lead from one to the next.
const HOPS_MAX: usize = 8;

/// Why a name could not be asked for: unlike absence.
#[derive(Debug, thiserror::Error)]
pub enum NamingError {
    #[error("the resolver of domains cannot be set up: see storage.ipfs.nameserver")]
    Resolver(#[source] NetError),
    #[error("no name server answered for {domain}")]
    Dns {
        domain: Domain,
        #[source]
        source: Box<NetError>,
    },
    #[error("{0} leads from domain to domain, over more than {HOPS_MAX}")]
    Hops(Domain),
    /// None of its records can be used.
    #[error("the dnslink of {domain} is {value:?}, which is no path of ipfs")]
    DnsLink { domain: Domain, value: String },
    #[error("the client of the ethereum node cannot be set up: see ethnodeurl")]
    Client(#[source] reqwest::Error),
    #[error("the ethereum node did not answer for {name}")]
    Node {
        name: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the ethereum node refused to answer for {name}: {reason}")]
    Refused { name: String, reason: String },
    #[error("the ethereum node gave no usable answer for {name}: {what}")]
    Answer { name: String, what: &'static str },
    /// A kind of content that is not on IPFS, or not written as EIP-1577 has it.
    #[error("the contenthash of {name} is of no kind that is on ipfs")]
    ContentHash { name: String },
}

/// Asks for names. Cheap to clone. Every future may be dropped midway.
#[derive(Clone)]
pub struct Naming {
    dnslink: DnsLink,
    ens: Option<Ens>,
}

impl Naming {
    /// Asks nobody yet.
    pub fn new(config: &NamingConfig) -> Result<Self, NamingError> {
        let ens = config.eth_node.clone().map(Ens::new).transpose()?;
        Ok(Self { dnslink: DnsLink::new(config.name_server), ens })
    }

    /// Whether names of ENS are known.
    pub fn has_ens(&self) -> bool {
        self.ens.is_some()
    }

    /// Where the DNSLink of a domain leads to.
    pub async fn dnslink(&self, domain: &Domain) -> Result<Option<IpfsPath>, NamingError> {
        self.dnslink.resolve(domain).await
    }

    /// The same, and on to where the last of several domains leads: never to a domain.
    pub async fn dnslink_to_the_end(&self, domain: &Domain) -> Result<Option<IpfsPath>, NamingError> {
        let (mut at, mut below) = (domain.clone(), String::new());
        for _ in 0..HOPS_MAX {
            let Some(path) = self.dnslink(&at).await? else { return Ok(None) };
            below = path.join(&below);
            match path.pointer {
                Pointer::Domain(next) => at = next,
                pointer => return Ok(Some(IpfsPath { pointer, below })),
            }
        }
        Err(NamingError::Hops(domain.clone()))
    }

    /// Where the contenthash of an ENS name leads to; without an Ethereum node nothing is known.
    pub async fn ens(&self, name: &str) -> Result<Option<IpfsPath>, NamingError> {
        match &self.ens {
            Some(ens) => ens.resolve(name).await,
            None => Ok(None),
        }
    }
}

/// Gives `bytes` to every decoder of this module. For fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    dnslink::fuzz(bytes);
    ens::abi::fuzz(bytes);
}
