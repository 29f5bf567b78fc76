//! The formats of ENS, pure: name hashes (EIP-137), calls and results as contracts have them (Solidity's ABI), and content
//! hashes (EIP-1577).

use std::fmt::Write as _;

use cid::Cid;
use sha3::{Digest as _, Keccak256};

use crate::ipld::block::IDENTITY;
use crate::ipld::ipns::IpnsName;
use crate::ipld::{IpfsPath, Pointer};

const WORD_BYTES: usize = 32;
const ADDRESS_BYTES: usize = 20;

/// The first bytes of a call: of `resolver(bytes32)` and `contenthash(bytes32)`.
pub(super) const RESOLVER: [u8; 4] = [0x01, 0x78, 0xb8, 0xbf];
pub(super) const CONTENTHASH: [u8; 4] = [0xbc, 0x1c, 0x58, 0xd1];

/// The multicodec codes `ipfs-ns` and `ipns-ns`, as varints.
const IPFS_NS: [u8; 2] = [0xe3, 0x01];
const IPNS_NS: [u8; 2] = [0xe5, 0x01];

/// The codec of CIDs that name a key.
const LIBP2P_KEY: u64 = 0x72;

/// The node of a name that is normalised, as repository names are.
pub(super) fn namehash(name: &str) -> [u8; WORD_BYTES] {
    name.rsplit('.').filter(|label| !label.is_empty()).fold([0; WORD_BYTES], |node, label| {
        let label: [u8; WORD_BYTES] = Keccak256::digest(label.as_bytes()).into();
        Keccak256::new().chain_update(node).chain_update(label).finalize().into()
    })
}

/// The input of a call with one `bytes32`, in hex.
pub(super) fn call(function: [u8; 4], argument: &[u8; WORD_BYTES]) -> String {
    to_hex(&[function.as_slice(), argument].concat())
}

/// An address that was returned, in hex; `Some(None)`: nobody's. `None`: it is no address.
pub(super) fn address(returned: &[u8]) -> Option<Option<String>> {
    let word = returned.get(..WORD_BYTES)?;
    let (padding, address) = word.split_at(WORD_BYTES - ADDRESS_BYTES);
    if padding.iter().any(|byte| *byte != 0) {
        return None;
    }
    Some(address.iter().any(|byte| *byte != 0).then(|| to_hex(address)))
}

/// The `bytes` that were returned. A contract that knows no such function returns nothing at all, as if they were empty.
pub(super) fn bytes(returned: &[u8]) -> Option<&[u8]> {
    if returned.is_empty() {
        return Some(returned);
    }
    let at = number(returned, 0)?;
    let length = number(returned, at)?;
    let begin = at.checked_add(WORD_BYTES)?;
    returned.get(begin..begin.checked_add(length)?)
}

/// The number in the word at `at`, if it is small enough to be an offset or a length.
fn number(words: &[u8], at: usize) -> Option<usize> {
    let word = words.get(at..at.checked_add(WORD_BYTES)?)?;
    let (high, low) = word.split_at(WORD_BYTES - 4);
    let low = u32::from_be_bytes(low.try_into().ok()?);
    high.iter().all(|byte| *byte == 0).then_some(usize::try_from(low).ok()?)
}

/// The path that a contenthash stands for; `None`: it is of another network, or malformed.
pub(super) fn contenthash(hash: &[u8]) -> Option<IpfsPath> {
    let pointer = if let Some(cid) = hash.strip_prefix(&IPFS_NS) {
        Pointer::Content(whole_cid(cid)?)
    } else {
        let cid = whole_cid(hash.strip_prefix(&IPNS_NS)?)?;
        match cid.codec() {
            LIBP2P_KEY => Pointer::Key(cid.to_string().parse::<IpnsName>().ok()?),
            // As they were written before there were CIDs of keys: the text of a domain or of a key.
            _ if cid.hash().code() == IDENTITY => {
                Pointer::named(std::str::from_utf8(cid.hash().digest()).ok()?).ok()?
            }
            _ => Pointer::Key(Cid::new_v1(LIBP2P_KEY, *cid.hash()).to_string().parse().ok()?),
        }
    };
    Some(IpfsPath { pointer, below: String::new() })
}

fn whole_cid(bytes: &[u8]) -> Option<Cid> {
    let cid = Cid::try_from(bytes).ok()?;
    (cid.to_bytes() == bytes).then_some(cid)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Reads `0x…`.
pub(super) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix("0x")?.as_bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let pair = |pair: &[u8]| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?);
    digits.chunks(2).map(pair).collect()
}

/// Reads whatever bytes as what a contract returns: for fuzzing.
pub(in crate::naming) fn fuzz(bytes: &[u8]) {
    let _ = (address(bytes), self::bytes(bytes).and_then(contenthash));
    if let Some(path) = contenthash(bytes) {
        assert!(path.to_string().parse::<IpfsPath>().is_ok_and(|again| again == path), "{path}");
    }
    assert_eq!(from_hex(&to_hex(bytes)).as_deref(), Some(bytes));
    let _ = str::from_utf8(bytes).map(from_hex);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn name_hashes_are_those_of_eip_137() {
        for (name, hash) in [
            ("", "0x0000000000000000000000000000000000000000000000000000000000000000"),
            ("eth", "0x93cdeb708b7545dc668eb9280176169d1c33cfd8ed6f04690a0bcc88a93fc4ae"),
            ("foo.eth", "0xde9b09fd7c5f901e23a3f19fecc54828e9c848539801e86591bd9801b019f84f"),
        ] {
            assert_eq!(to_hex(&namehash(name)), hash, "{name:?}");
        }
    }

    /// The example of EIP-1577.
    const EXAMPLE: &str = "0xe3010170122029f2d17be6139079dc48696d1f582a8530eb9805b561eda517e22a892c7e3f1f";

    #[test]
    fn content_hashes_are_those_of_eip_1577() {
        let path = contenthash(&from_hex(EXAMPLE).unwrap()).unwrap();
        let cid = "QmRAQB6YaCyidP37UdDnjFY5vQuiBrcqdyoW1CuDgwxkD4".parse::<Cid>().unwrap();
        let Pointer::Content(found) = path.pointer else { panic!("{path}") };
        assert_eq!((found.codec(), found.hash()), (cid.codec(), cid.hash()));
    }

    #[test]
    fn names_of_keys_and_of_domains_are_read() {
        let name: IpnsName =
            "k51qzi5uqu5dlj2qkibv67ep4sdsa73s9asv2g3um5j441i80ks15e1afi7waz".parse().unwrap();
        let key = [IPNS_NS.as_slice(), &name.cid().to_bytes()].concat();
        assert_eq!(contenthash(&key).unwrap().pointer, Pointer::Key(name));
        let text = b"app.uniswap.org";
        let length = u8::try_from(text.len()).unwrap();
        let domain = [IPNS_NS.as_slice(), &[0x01, 0x70, 0x00, length], text].concat();
        assert_eq!(contenthash(&domain).unwrap().to_string(), "/ipns/app.uniswap.org");
    }

    #[test]
    fn other_networks_and_junk_are_refused() {
        let example = from_hex(EXAMPLE).unwrap();
        let swarm = [&[0xe4, 0x01], &example[2..]].concat();
        let longer = [example.as_slice(), &[0]].concat();
        for hash in [swarm.as_slice(), &longer, &example[..20], b"", &IPFS_NS, &IPNS_NS] {
            assert_eq!(contenthash(hash), None, "{hash:?}");
        }
    }

    #[test]
    fn results_are_read() {
        let mut word = [0; WORD_BYTES];
        assert_eq!(address(&word), Some(None));
        word[WORD_BYTES - 1] = 7;
        assert_eq!(address(&word), Some(Some(format!("0x{}07", "00".repeat(19)))));
        word[0] = 1;
        assert_eq!(address(&word), None);
        assert_eq!(address(&[]), None);
        assert_eq!(bytes(&[]), Some([].as_slice()));
        let mut result = vec![0; 96];
        (result[31], result[63], result[64], result[65]) = (32, 2, 5, 6);
        assert_eq!(bytes(&result), Some([5, 6].as_slice()));
        (result[31], result[30]) = (0, 1);
        assert_eq!(bytes(&result), None, "behind the end");
    }

    proptest! {
        #[test]
        fn junk_never_panics(junk in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,20}") {
            let _ = (address(&junk), bytes(&junk), contenthash(&junk), from_hex(&text));
            let _ = contenthash(&[IPNS_NS.as_slice(), &junk].concat());
            prop_assert_eq!(from_hex(&to_hex(&junk)), Some(junk));
        }
    }
}
