//! What a router says of who has a DAG (Delegated Routing V1, "Known Schemas"): records of the schema `peer`; others are
//! skipped, and of what is too much the rest. Pure.

use libp2p::{Multiaddr, PeerId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::places::{Reach, is_http};

/// The longest record that is read, in bytes.
pub(super) const RECORD_BYTES_MAX: usize = 64 << 10;
/// Addresses of one provider that are taken in.
const ADDRESSES_MAX: usize = 32;
/// The longest address, in bytes.
const ADDRESS_BYTES_MAX: usize = 256;

/// Somebody who is said to have a DAG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    pub peer: PeerId,
    /// Of libp2p; none: whoever knows the peer has to know where it is.
    pub addresses: Vec<Multiaddr>,
    /// Of HTTP.
    pub web: Vec<Multiaddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Record {
    schema: Option<String>,
    #[serde(rename = "ID")]
    id: Option<String>,
    #[serde(default)]
    addrs: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer<'a> {
    #[serde(borrow, default)]
    providers: Option<Vec<&'a RawValue>>,
}

/// The provider of a record; `None`: one of another schema, or one that makes no sense. Addresses that the teller has no
/// business with are left out, and whoever has none but such.
pub(super) fn provider(record: &[u8], reach: Reach) -> Option<Provider> {
    let record: Record = serde_json::from_slice(record).ok()?;
    if record.schema.as_deref() != Some("peer") {
        return None;
    }
    let peer: PeerId = record.id?.parse().ok()?;
    let told = record.addrs.unwrap_or_default();
    let said_where = !told.is_empty();
    let parsed = told.iter().filter(|text| text.len() <= ADDRESS_BYTES_MAX).take(ADDRESSES_MAX);
    let known = parsed.filter_map(|text| text.parse().ok()).filter(|address| reach.admits(address));
    let (web, addresses): (Vec<Multiaddr>, Vec<Multiaddr>) = known.partition(is_http);
    (!said_where || !web.is_empty() || !addresses.is_empty()).then_some(Provider { peer, addresses, web })
}

/// The records of an answer in JSON; `None`: it is no such answer.
pub(super) fn records(answer: &[u8]) -> Option<Vec<&[u8]>> {
    let answer: Answer<'_> = serde_json::from_slice(answer).ok()?;
    Some(answer.providers.unwrap_or_default().into_iter().map(|record| record.get().as_bytes()).collect())
}

/// The lines of an answer in ndjson, as its bytes come. Lines that are too long are skipped.
#[derive(Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Within a line that is too long.
    skipping: bool,
}

impl Lines {
    /// Takes bytes, and gives each line that they end to `line`.
    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (piece, ends) = match piece.split_last() {
                Some((b'\n', piece)) => (piece, true),
                _ => (piece, false),
            };
            if self.buffer.len() + piece.len() > RECORD_BYTES_MAX {
                self.skipping = true;
                self.buffer.clear();
            }
            if !self.skipping {
                self.buffer.extend_from_slice(piece);
            }
            if ends {
                self.finish(&mut line);
            }
        }
    }

    /// The end: a last line needs no line feed behind it.
    pub(super) fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.skipping && !self.buffer.is_empty() {
            line(&self.buffer);
        }
        self.buffer.clear();
        self.skipping = false;
    }
}

/// Reads whatever bytes as an answer of either kind: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let read = |record: &[u8]| {
        let found = provider(record, Reach::Public);
        assert!(found.is_none_or(|found| found.addresses.len() + found.web.len() <= ADDRESSES_MAX));
    };
    let mut lines = Lines::default();
    for piece in bytes.chunks(7) {
        lines.push(piece, read);
        assert!(lines.buffer.len() <= RECORD_BYTES_MAX);
    }
    lines.finish(read);
    records(bytes).unwrap_or_default().into_iter().for_each(read);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5";

    fn read(record: &serde_json::Value, reach: Reach) -> Option<Provider> {
        provider(record.to_string().as_bytes(), reach)
    }

    #[test]
    fn peers_are_read_with_what_may_be_dialled() {
        let record = serde_json::json!({
            "Schema": "peer", "ID": PEER, "Protocols": ["transport-bitswap"], "Extra": {"a": 1},
            "Addrs": [
                "/ip4/8.8.8.8/tcp/4001", "/ip4/127.0.0.1/tcp/4001", "/ip4/169.254.169.254/tcp/80/http",
                "/dns4/gateway.example/tcp/443/tls/http", "junk", "/dns4/".to_owned() + &"x".repeat(300) + "/tcp/1",
            ],
        });
        let found = read(&record, Reach::Public).unwrap();
        assert_eq!(found.peer.to_string(), PEER);
        assert_eq!(found.addresses, ["/ip4/8.8.8.8/tcp/4001".parse().unwrap()]);
        assert_eq!(found.web, ["/dns4/gateway.example/tcp/443/tls/http".parse().unwrap()]);
        let found = read(&record, Reach::Any).unwrap();
        assert_eq!((found.addresses.len(), found.web.len()), (2, 2));
    }

    #[test]
    fn what_is_no_peer_is_skipped() {
        let bare = serde_json::json!({"Schema": "peer", "ID": PEER});
        assert!(read(&bare, Reach::Public).unwrap().addresses.is_empty(), "it may be known where it is");
        for record in [
            serde_json::json!({"Schema": "bitswap", "ID": PEER}),
            serde_json::json!({"Schema": "peer"}),
            serde_json::json!({"Schema": "peer", "ID": "somebody"}),
            serde_json::json!({"Schema": "peer", "ID": PEER, "Addrs": ["/ip4/10.0.0.1/tcp/1"]}),
            serde_json::json!({"Schema": 1}),
            serde_json::json!([]),
        ] {
            assert_eq!(read(&record, Reach::Public), None, "{record}");
        }
    }

    #[test]
    fn lines_come_in_any_pieces_and_those_without_end_are_skipped() {
        let long = "x".repeat(RECORD_BYTES_MAX + 1);
        let text = format!("one\n\n{long}\ntwo\nthree");
        for size in [1, 3, 1000, text.len()] {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            let mut keep = |line: &[u8]| found.push(String::from_utf8(line.to_vec()).unwrap());
            text.as_bytes().chunks(size).for_each(|piece| lines.push(piece, &mut keep));
            lines.finish(&mut keep);
            assert_eq!(found, ["one", "two", "three"]);
        }
    }

    #[test]
    fn an_answer_in_json_has_its_records_in_a_list() {
        assert_eq!(records(br#"{"Providers": [{"a": 1}, 2]}"#).unwrap(), [b"{\"a\": 1}".as_slice(), b"2"]);
        assert_eq!(records(br#"{"Providers": null}"#).unwrap().len(), 0);
        assert_eq!(records(b"{}").unwrap().len(), 0);
        assert!(records(b"[1]").is_none() && records(b"<html>").is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_skipped(bytes: Vec<u8>) {
            fuzz(&bytes);
        }

        #[test]
        fn hostile_records_are_read_or_skipped(schema in "peer|bitswap", id in ".*", address in ".*") {
            fuzz(serde_json::json!({"Schema": schema, "ID": id, "Addrs": [address]}).to_string().as_bytes());
        }
    }
}
