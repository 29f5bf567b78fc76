//! Who is asked where names lead to: DNSLink and ENS.

use std::net::{IpAddr, SocketAddr};

use url::Url;

use super::ConfigError;
use super::check::value_error;
use super::raw::RepositoryMiddleware;

const DNS_PORT: u16 = 53;

/// Who is asked for names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamingConfig {
    /// `None`: the system's.
    pub name_server: Option<SocketAddr>,
    /// The JSON-RPC of an Ethereum node, which may hold a key; `None`: names of ENS are not known.
    pub eth_node: Option<Url>,
}

pub(super) fn check(
    name_server: Option<&str>,
    middleware: Option<&[RepositoryMiddleware]>,
) -> Result<NamingConfig, ConfigError> {
    let ours = middleware.unwrap_or_default().iter().filter(|entry| entry.name.as_deref() == Some("ipfs"));
    let eth_node = ours.filter_map(|entry| entry.options.ethnodeurl.as_deref()).find(|url| !url.is_empty());
    Ok(NamingConfig {
        name_server: name_server.filter(|text| !text.is_empty()).map(socket).transpose()?,
        eth_node: eth_node.map(node).transpose()?,
    })
}

fn socket(text: &str) -> Result<SocketAddr, ConfigError> {
    let alone = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
    text.parse().or_else(|_| alone()).map_err(|_| {
        value_error("storage.ipfs.nameserver", text, "an IP address is expected, such as 127.0.0.1:53")
    })
}

fn node(text: &str) -> Result<Url, ConfigError> {
    let url = text.parse::<Url>().ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host()).ok_or_else(|| {
        let reason = "an http or https URL is expected, such as http://127.0.0.1:8545";
        value_error("middleware.repository[].options.ethnodeurl", text, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::MiddlewareOptions;

    fn with_node(url: &str) -> Result<NamingConfig, ConfigError> {
        let options = MiddlewareOptions { ethnodeurl: Some(url.to_owned()), ..MiddlewareOptions::default() };
        check(None, Some(&[RepositoryMiddleware { name: Some("ipfs".to_owned()), options }]))
    }

    #[test]
    fn who_is_asked_is_read() {
        assert_eq!(check(None, None).unwrap(), NamingConfig::default());
        assert_eq!(check(Some(""), Some(&[])).unwrap(), NamingConfig::default());
        for (text, socket) in
            [("10.0.0.1", "10.0.0.1:53"), ("::1", "[::1]:53"), ("127.0.0.1:5353", "127.0.0.1:5353")]
        {
            assert_eq!(check(Some(text), None).unwrap().name_server, Some(socket.parse().unwrap()));
        }
        assert_eq!(with_node("").unwrap().eth_node, None);
        assert_eq!(with_node("https://eth.example/key").unwrap().eth_node.unwrap().path(), "/key");
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        for text in ["ns.example", "127.0.0.1:x"] {
            assert!(check(Some(text), None).unwrap_err().to_string().contains("storage.ipfs.nameserver"));
        }
        for url in ["127.0.0.1:8545", "ftp://x", "http://", "/ip4/127.0.0.1/tcp/8545"] {
            assert!(with_node(url).unwrap_err().to_string().contains("ethnodeurl"), "{url}");
        }
    }
}
