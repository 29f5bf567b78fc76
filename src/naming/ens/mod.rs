//! ENS: the registry says who resolves a name, the resolver what its contenthash is (EIP-137, EIP-1577), both by
//! `eth_call` of an Ethereum node's JSON-RPC.

pub(super) mod abi;

use reqwest::Client;
use reqwest::redirect::Policy;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::{ANSWER_TIMEOUT, NamingError};
use crate::ipld::IpfsPath;

/// The registry on the main net.
const REGISTRY: &str = "0x00000000000c2e074ec69a0dfb2997ba6c7d2e1e";
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The most of a node's own words that is passed on.
const REASON_CHARS_MAX: usize = 200;

#[derive(Clone)]
pub(super) struct Ens {
    node: Url,
    client: Client,
}

#[derive(Deserialize)]
struct Answer {
    result: Option<String>,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    #[serde(default)]
    message: String,
}

impl Ens {
    pub(super) fn new(node: Url) -> Result<Self, NamingError> {
        let client = Client::builder().timeout(ANSWER_TIMEOUT).redirect(Policy::none());
        Ok(Self { node, client: client.build().map_err(NamingError::Client)? })
    }

    pub(super) async fn resolve(&self, name: &str) -> Result<Option<IpfsPath>, NamingError> {
        let unusable = |what| NamingError::Answer { name: name.to_owned(), what };
        let node = abi::namehash(name);
        let word = self.call(name, REGISTRY, &abi::call(abi::RESOLVER, &node)).await?;
        let Some(resolver) = abi::address(&word).ok_or_else(|| unusable("it is no address"))? else {
            return Ok(None);
        };
        let bytes = self.call(name, &resolver, &abi::call(abi::CONTENTHASH, &node)).await?;
        let hash = abi::bytes(&bytes).ok_or_else(|| unusable("it is no contenthash"))?;
        if hash.is_empty() {
            return Ok(None);
        }
        let path =
            abi::contenthash(hash).ok_or_else(|| NamingError::ContentHash { name: name.to_owned() })?;
        Ok(Some(path))
    }

    /// What a contract returns.
    async fn call(&self, name: &str, contract: &str, input: &str) -> Result<Vec<u8>, NamingError> {
        // The URL may hold a key, and stays out of errors.
        let failed = |source: reqwest::Error| NamingError::Node {
            name: name.to_owned(),
            source: source.without_url(),
        };
        let unusable = |what| NamingError::Answer { name: name.to_owned(), what };
        let request = json!({
            "jsonrpc": "2.0", "id": 1, "method": "eth_call",
            "params": [{"to": contract, "data": input}, "latest"],
        });
        let answer = self.client.post(self.node.clone()).json(&request).send().await.map_err(failed)?;
        let mut answer = answer.error_for_status().map_err(failed)?;
        let mut body = Vec::new();
        while let Some(bytes) = answer.chunk().await.map_err(failed)? {
            if body.len() + bytes.len() > ANSWER_BYTES_MAX {
                return Err(unusable("it is too long"));
            }
            body.extend_from_slice(&bytes);
        }
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| unusable("it is no JSON-RPC"))?;
        if let Some(RpcError { message }) = answer.error {
            let reason =
                message.chars().filter(|letter| !letter.is_control()).take(REASON_CHARS_MAX).collect();
            return Err(NamingError::Refused { name: name.to_owned(), reason });
        }
        let result = answer.result.ok_or_else(|| unusable("it has no result"))?;
        abi::from_hex(&result).ok_or_else(|| unusable("its result is not in hex"))
    }
}
