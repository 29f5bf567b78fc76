//! Names by a Kubo: the keys that it has, its records, and those of others that it finds.

use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use jiff::Timestamp;
use multibase::Base;
use serde::Deserialize;

use super::abilities::Abilities;
use super::rpc::Call;
use super::{KuboClient, KuboError, QUICK};
use crate::ipfs::{IpfsError, Signing};
use crate::ipld::ipns::{IpnsName, IpnsRecord};

/// How long Kubo may look for a record.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it may take to put one to its peers.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(90);
/// Of all answers about records: a record has 10 KiB at most, in base64.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The names of a Kubo's keys, each with what it publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KuboKeys(pub(super) Vec<(String, IpnsName)>);

impl KuboKeys {
    /// The IPNS name of the key of exactly this name, or that is `text` itself if there is a key for it.
    pub fn find(&self, text: &str) -> Option<IpnsName> {
        let named = self.0.iter().find(|(name, _)| name == text).map(|(_, id)| *id);
        named.or_else(|| text.parse().ok().filter(|id| self.name_of(id).is_some()))
    }

    fn name_of(&self, id: &IpnsName) -> Option<&str> {
        self.0.iter().find(|(_, known)| known == id).map(|(name, _)| name.as_str())
    }
}

#[derive(Deserialize)]
struct KeyList {
    #[serde(rename = "Keys", default)]
    keys: Option<Vec<Key>>,
}

#[derive(Deserialize)]
struct Key {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Id")]
    id: String,
}

/// A line of `routing/get`.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "Type")]
    kind: i64,
    #[serde(rename = "Extra", default)]
    extra: String,
}

/// An event that carries a value.
const VALUE: i64 = 5;

impl KuboClient {
    /// The keys that it has now.
    pub(super) async fn keys(&self) -> Result<KuboKeys, KuboError> {
        let call = Call {
            command: "key/list",
            query: &[("l", "true")],
            patience: QUICK,
            bytes_max: ANSWER_BYTES_MAX,
        };
        let list: KeyList = self.0.rpc.ask(call).await?;
        let keys = list.keys.unwrap_or_default().into_iter();
        // A key of a kind that we do not know signs nothing that we could check.
        Ok(KuboKeys(keys.filter_map(|key| Some((key.name, key.id.parse().ok()?))).collect()))
    }

    pub(super) async fn record(&self, name: &IpnsName) -> Result<IpnsRecord, IpfsError> {
        let argument = format!("/ipns/{name}");
        let call = Call {
            command: "routing/get",
            query: &[("arg", &argument)],
            patience: RESOLVE_TIMEOUT,
            bytes_max: ANSWER_BYTES_MAX,
        };
        let answer = match self.0.rpc.bytes(call).await {
            Err(error) if error.says("not found") => return Err(self.no_record(name).await),
            answer => answer?,
        };
        let record = value(&answer).ok_or_else(|| self.0.rpc.strange("routing/get", "it has no record"))?;
        let record = IpnsRecord::decode(name, &record)
            .and_then(|record| record.check_validity(Timestamp::now()).map(|()| record));
        record.map_err(|error| {
            self.0.rpc.strange("routing/get", &format!("it is no record of {name}: {error}")).into()
        })
    }

    /// Kubo says the same whether it asked anybody or not. Of its own keys nobody knows more than itself.
    async fn no_record(&self, name: &IpnsName) -> IpfsError {
        let is_known = async {
            let keys = self.keys().await?;
            Ok::<_, KuboError>(keys.name_of(name).is_some() || self.peers().await? > 0)
        };
        match is_known.await {
            Ok(true) => IpfsError::NoRecord(Box::new(*name)),
            Ok(false) => IpfsError::NoPeers(name.to_string()),
            Err(error) => error.into(),
        }
    }

    /// Puts a record, and sees that it came to be known: Kubo says yes to whatever it is given. A record of a key of its own
    /// is out already if it knows it: it puts those itself, time and again.
    pub(super) async fn put(&self, record: &IpnsRecord) -> Result<(), IpfsError> {
        let name = record.name();
        let is_own = self.keys().await?.name_of(name).is_some();
        if is_own && self.knows(record).await? {
            return Ok(());
        }
        if !is_own && self.peers().await? == 0 {
            // Kept there all the same, so that who asks it is told.
            self.routing_put(record).await?;
            return Err(IpfsError::NoPeers(name.to_string()));
        }
        self.routing_put(record).await?;
        match self.knows(record).await? {
            true => Ok(()),
            false => Err(IpfsError::Publish { name: Box::new(*name), stored: 0, wanted: 1 }),
        }
    }

    async fn routing_put(&self, record: &IpnsRecord) -> Result<(), KuboError> {
        let argument = format!("/ipns/{}", record.name());
        let call = Call {
            command: "routing/put",
            query: &[("arg", &argument), ("allow-offline", "true")],
            patience: PUBLISH_TIMEOUT,
            bytes_max: ANSWER_BYTES_MAX,
        };
        let bytes = record.bytes().clone();
        let file = stream::once(async move { Ok::<Bytes, std::convert::Infallible>(bytes) });
        self.0.rpc.send(call, file).await.map(drop)
    }

    /// Whether this record, or a better one, is what it finds.
    async fn knows(&self, record: &IpnsRecord) -> Result<bool, IpfsError> {
        match self.record(record.name()).await {
            Ok(found) => Ok(found.bytes() == record.bytes() || !record.is_better_than(&found)),
            Err(IpfsError::NoRecord(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn sign_by_key(&self, signing: &Signing) -> Result<IpnsRecord, IpfsError> {
        let Signing { name, root, sequence, seen, .. } = signing;
        let keys = self.keys().await?;
        let Some(key) = keys.name_of(name) else { return Err(IpfsError::NoKey(Box::new(*name))) };
        let takes_sequence = self.abilities().await?.takes_sequence;
        let before = if takes_sequence { None } else { self.before(name).await? };
        let out = before.as_ref().map(IpnsRecord::sequence);
        let below = |out: Option<u64>| {
            let (api, name) = (self.0.rpc.api.clone(), Box::new(*name));
            KuboError::Sequence { api, name, out: out.unwrap_or_default() }
        };
        // Somebody else has published meanwhile: who asked has to know of it first.
        if out > *seen {
            return Err(below(out).into());
        }
        self.name_publish(key, signing, takes_sequence).await?;
        let record = self.record(name).await?;
        let is_above = match takes_sequence {
            true => record.sequence() >= *sequence,
            false => exceeds(&record, before.as_ref(), *seen),
        };
        match (record.root() == Some(*root), is_above) {
            (true, true) => Ok(record),
            (_, false) if !takes_sequence => Err(below(*seen).into()),
            _ => {
                let reason = format!("{name} points to {} after it was published for {root}", record.value());
                Err(self.0.rpc.strange("name/publish", &reason).into())
            }
        }
    }

    async fn name_publish(
        &self,
        key: &str,
        signing: &Signing,
        takes_sequence: bool,
    ) -> Result<(), KuboError> {
        let (path, sequence) = (format!("/ipfs/{}", signing.root), signing.sequence.to_string());
        let seconds = |time: Duration| format!("{}s", time.as_secs());
        let (lifetime, ttl) = (seconds(signing.validity), seconds(signing.ttl));
        let mut query = vec![
            ("arg", path.as_str()),
            ("key", key),
            ("lifetime", &lifetime),
            ("ttl", &ttl),
            ("allow-offline", "true"),
            ("resolve", "false"),
        ];
        query.extend(takes_sequence.then_some(("sequence", sequence.as_str())));
        let call = Call {
            command: "name/publish",
            query: &query,
            patience: PUBLISH_TIMEOUT,
            bytes_max: ANSWER_BYTES_MAX,
        };
        self.0.rpc.bytes(call).await.map(drop)
    }

    /// What is known of a name before it is signed for.
    async fn before(&self, name: &IpnsName) -> Result<Option<IpnsRecord>, IpfsError> {
        match self.record(name).await {
            Ok(record) => Ok(Some(record)),
            Err(IpfsError::NoRecord(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a record whose sequence Kubo chose goes over all that were seen, `before` among them. Kubo counts on only for
/// another value: for the same one the record lives longer.
fn exceeds(record: &IpnsRecord, before: Option<&IpnsRecord>, seen: Option<u64>) -> bool {
    let is_longer =
        before.is_some_and(|before| before.value() == record.value() && record.is_better_than(before));
    Some(record.sequence()) > seen || Some(record.sequence()) == seen && is_longer
}

/// The last value among the lines of an answer.
fn value(answer: &[u8]) -> Option<Vec<u8>> {
    let events = serde_json::Deserializer::from_slice(answer).into_iter::<Event>();
    let values = events.map_while(Result::ok).filter(|event| event.kind == VALUE && !event.extra.is_empty());
    values.last().and_then(|event| Base::Base64Pad.decode(event.extra).ok())
}

/// Reads whatever bytes as an answer with a record, and as one about commands: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let _ = value(bytes);
    let _ = Abilities::read(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ipld::Block;
    use crate::ipld::block::RAW;

    #[test]
    fn the_value_is_found_among_other_events() {
        let answer = b"{\"ID\":\"x\",\"Type\":0,\"Extra\":\"\"}\n{\"ID\":\"\",\"Type\":5,\"Responses\":null,\"Extra\":\"aGk=\"}\n";
        assert_eq!(value(answer).unwrap(), b"hi");
        assert_eq!(value(b"{\"ID\":\"\",\"Type\":5,\"Extra\":\"\"}"), None);
        assert_eq!(value(b"junk"), None);
    }

    #[test]
    fn a_key_is_found_by_its_name_or_by_what_it_publishes() {
        let id = "k51qzi5uqu5dhw0vim1qjkzo4ddl00af1k7ellfca8qdnhoqfri0c5q69rr01e";
        let keys = KuboKeys(vec![("self".to_owned(), id.parse().unwrap())]);
        assert_eq!(keys.find("self").unwrap().to_string(), id);
        assert_eq!(keys.find(id).unwrap().to_string(), id);
        assert_eq!(keys.find("Self"), None);
        assert_eq!(keys.find("k2k4r8kmho1gmyrjn9ls8610wfsx8n2t7bhhw3o1orlxkjcmobsxstj8"), None);
    }

    #[test]
    fn a_sequence_of_kubos_own_goes_over_all_that_were_seen_or_prolongs_the_newest() {
        let key = libp2p::identity::Keypair::generate_ed25519();
        let record = |root: &'static [u8], sequence, hours: i64| {
            let root = Block::encode(RAW, Bytes::from_static(root));
            let until = Timestamp::now() + jiff::SignedDuration::from_hours(hours);
            IpnsRecord::sign(&key, root.cid(), sequence, until, QUICK).unwrap()
        };
        let before = record(b"one", 5, 10);
        assert!(exceeds(&record(b"two", 6, 10), Some(&before), Some(5)));
        assert!(exceeds(&record(b"two", 0, 10), None, None), "the first of all");
        assert!(exceeds(&record(b"one", 5, 11), Some(&before), Some(5)), "the same root for longer");
        assert!(!exceeds(&record(b"one", 5, 9), Some(&before), Some(5)), "the same root for less long");
        assert!(!exceeds(&record(b"two", 5, 11), Some(&before), Some(5)), "another root");
        assert!(!exceeds(&record(b"one", 5, 11), Some(&before), Some(6)), "a higher one was seen elsewhere");
        assert!(!exceeds(&record(b"one", 5, 11), None, Some(5)), "nobody knows what it goes over");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            fuzz(&bytes);
        }
    }
}
