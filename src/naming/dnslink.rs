//! DNSLink (<https://dnslink.dev>): the TXT records `dnslink=/ipfs/…` of `_dnslink.<domain>`, else of the domain itself.

use std::net::SocketAddr;
use std::sync::Arc;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::RData;
use tokio::sync::OnceCell;

use super::{ANSWER_TIMEOUT, NamingError};
use crate::ipld::{Domain, IpfsPath};

const PREFIX: &str = "dnslink=";
/// Records of one name that are looked at.
const RECORDS_MAX: usize = 64;
/// The longest record that is read, in bytes.
const RECORD_BYTES_MAX: usize = 4096;

#[derive(Clone)]
pub(super) struct DnsLink {
    /// `None`: those of the system.
    name_server: Option<SocketAddr>,
    /// Made when it is first needed: a system without name servers is none that needs them.
    resolver: Arc<OnceCell<TokioResolver>>,
}

impl DnsLink {
    pub(super) fn new(name_server: Option<SocketAddr>) -> Self {
        Self { name_server, resolver: Arc::default() }
    }

    pub(super) async fn resolve(&self, domain: &Domain) -> Result<Option<IpfsPath>, NamingError> {
        let below = self.records(domain, &format!("_dnslink.{domain}.")).await?;
        let records =
            if below.is_empty() { self.records(domain, &format!("{domain}.")).await? } else { below };
        chosen(domain, records)
    }

    /// The values of the DNSLink records at a fully qualified name; none if there is no such name.
    async fn records(&self, domain: &Domain, name: &str) -> Result<Vec<String>, NamingError> {
        let failed = |source| NamingError::Dns { domain: domain.clone(), source: Box::new(source) };
        let resolver = self.resolver.get_or_try_init(async || self.set_up()).await?;
        let answer = match resolver.txt_lookup(name).await {
            Ok(answer) => answer,
            Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let texts = answer.answers().iter().take(RECORDS_MAX).filter_map(|record| match &record.data {
            RData::TXT(text) => Some(text.txt_data.concat()),
            _ => None,
        });
        let texts = texts.filter(|text| text.len() <= RECORD_BYTES_MAX);
        let texts = texts.filter_map(|text| String::from_utf8(text).ok());
        Ok(texts.filter_map(|text| text.strip_prefix(PREFIX).map(str::to_owned)).collect())
    }

    fn set_up(&self) -> Result<TokioResolver, NamingError> {
        let mut builder = match self.name_server {
            None => TokioResolver::builder_tokio().map_err(NamingError::Resolver)?,
            Some(address) => {
                let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                    connection.port = address.port();
                    connection
                });
                let server = NameServerConfig::new(address.ip(), true, connections.into());
                let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
                TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            }
        };
        let options = builder.options_mut();
        options.timeout = ANSWER_TIMEOUT;
        options.attempts = 1;
        // Answers are kept by who asks, with what lies behind them.
        options.cache_size = 0;
        builder.build().map_err(|error: NetError| NamingError::Resolver(error))
    }
}

/// Of several the first in the order of their text, so that it is the same one each time.
fn chosen(domain: &Domain, mut values: Vec<String>) -> Result<Option<IpfsPath>, NamingError> {
    values.sort_unstable();
    if let Some(path) = values.iter().find_map(|value| value.trim().parse().ok()) {
        return Ok(Some(path));
    }
    match values.into_iter().next() {
        Some(value) => Err(NamingError::DnsLink { domain: domain.clone(), value }),
        None => Ok(None),
    }
}

/// Reads whatever bytes as the values of records, one a line: for fuzzing.
pub(super) fn fuzz(bytes: &[u8]) {
    if let (Ok(text), Ok(domain)) = (str::from_utf8(bytes), "example.org".parse()) {
        let _ = chosen(&domain, text.lines().map(str::to_owned).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_usable_record_counts() {
        let domain: Domain = "example.org".parse().unwrap();
        let chosen =
            |values: &[&str]| chosen(&domain, values.iter().map(|value| (*value).to_owned()).collect());
        let key = "/ipns/k51qzi5uqu5dlj2qkibv67ep4sdsa73s9asv2g3um5j441i80ks15e1afi7waz";
        assert_eq!(chosen(&[]).unwrap(), None);
        assert_eq!(chosen(&[key]).unwrap().unwrap().to_string(), key);
        assert_eq!(
            chosen(&["/swarm/x", "/ipns/b.org", "/ipns/a.org"]).unwrap().unwrap().to_string(),
            "/ipns/a.org"
        );
        assert!(matches!(chosen(&["/swarm/x"]), Err(NamingError::DnsLink { .. })));
    }
}
