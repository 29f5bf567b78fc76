//! What the event loop does with gossip: weighs records before they go on, asks who has come, looks for others.

use std::time::Instant;

use futures::FutureExt;
use jiff::Timestamp;
use libp2p::PeerId;
use libp2p::gossipsub::{self, Message, MessageAcceptance};
use libp2p::kad::RecordKey;
use multihash_codetable::{Code, MultihashDigest};

use super::super::event_loop::EventLoop;
use super::super::queries::Waiting;
use super::super::routing::{self, Dht};
use super::{Fetched, Worth, fetch, gossip};
use crate::ipld::ipns::{IpnsName, IpnsRecord};

/// Where those on a topic say in the DHT that they are: as go-libp2p-pubsub has it.
fn rendezvous(name: &IpnsName) -> RecordKey {
    let place = format!("floodsub:{}", gossip::topic(name).hash());
    RecordKey::new(&Code::Sha2_256.digest(place.as_bytes()).to_bytes())
}

impl EventLoop {
    pub(in super::super) fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                let acceptance = self.on_message(propagation_source, &message);
                if let Some(gossip) = self.swarm.behaviour_mut().gossip.as_mut() {
                    gossip.report_message_validation_result(&message_id, &propagation_source, acceptance);
                }
            }
            // What is left of a connection that has ended is of no use.
            gossipsub::Event::Subscribed { peer_id, topic } if self.peers.contains_key(&peer_id) => {
                self.pubsub.joined(peer_id, &topic, Instant::now());
                self.ask_for_records(peer_id);
            }
            gossipsub::Event::Unsubscribed { peer_id, topic } => self.pubsub.parted(&peer_id, &topic),
            _ => (),
        }
    }

    /// Weighs a record; one that is taken goes on to others.
    fn on_message(&mut self, from: PeerId, message: &Message) -> MessageAcceptance {
        let Some(name) = self.pubsub.topics.get(&message.topic).copied() else {
            return MessageAcceptance::Ignore;
        };
        if !self.peers.contains_key(&from) || !self.pubsub.admits(from, Instant::now()) {
            return MessageAcceptance::Reject;
        }
        match self.pubsub.weigh(&name, &message.data, Timestamp::now()) {
            Worth::Newer(record) => {
                self.take_in(record);
                MessageAcceptance::Accept
            }
            Worth::Nothing => MessageAcceptance::Ignore,
            Worth::Bad(error) => {
                tracing::debug!(peer.id = %from, ipns = %name, %error, "record on a topic refused");
                MessageAcceptance::Reject
            }
        }
    }

    /// Keeps a record that is newer than what the topic knew, and tells who follows its name.
    fn take_in(&mut self, record: IpnsRecord) {
        let now = Timestamp::now();
        self.pubsub.learn(&record, now);
        for dht in Dht::BOTH {
            let records = self.swarm.behaviour_mut().kad(dht).store_mut();
            match routing::store(records, &record, now) {
                Ok(_) => (),
                // Both stores hold the same, and the topic may be behind them.
                Err(routing::Refused::Older) => return,
                Err(error) => tracing::debug!(ipns = %record.name(), %error, "record not stored here"),
            }
        }
        // Nobody may be listening for updates.
        let _ = self.updates.send(record);
    }

    /// Tells those on its topic of a record that came by another way, if it is news to them.
    pub(in super::super) fn spread(&mut self, record: &IpnsRecord) {
        if self.pubsub.learn(record, Timestamp::now()) {
            self.say(record);
        }
    }

    /// Says a record on its topic, also one that is known there: peers may have missed it.
    /// One of those that it was sent to, if there was any.
    pub(in super::super) fn say_again(&mut self, record: &IpnsRecord) -> Option<PeerId> {
        self.pubsub.learn(record, Timestamp::now());
        self.say(record).then(|| self.pubsub.any_on(record.name()))?
    }

    /// Whether it was sent to somebody.
    fn say(&mut self, record: &IpnsRecord) -> bool {
        let Some(gossip) = self.swarm.behaviour_mut().gossip.as_mut() else { return false };
        if !self.pubsub.has(record.name()) {
            return false;
        }
        match gossip.publish(gossip::topic(record.name()), record.bytes().to_vec()) {
            Ok(_) => true,
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => false,
            Err(error) => {
                tracing::debug!(ipns = %record.name(), %error, "record not said on its topic");
                false
            }
        }
    }

    /// Asks a peer for the next record that it may know better.
    fn ask_for_records(&mut self, peer: PeerId) {
        if let Some(name) = self.pubsub.next_to_ask(&peer) {
            let asking = fetch::ask(self.control.clone(), peer, name);
            self.pubsub.fetching.push(asking.map(move |answer| (peer, name, answer)).boxed());
        }
    }

    pub(in super::super) fn on_fetched(&mut self, (peer, name, answer): Fetched) {
        self.pubsub.answered(&peer);
        match answer {
            Ok(Some(value)) => match self.pubsub.weigh(&name, &value, Timestamp::now()) {
                Worth::Newer(record) => {
                    self.say(&record);
                    self.take_in(record);
                }
                Worth::Nothing => (),
                Worth::Bad(error) => {
                    tracing::debug!(peer.id = %peer, ipns = %name, %error, "fetched record refused");
                }
            },
            Ok(None) => (),
            Err(error) => tracing::debug!(peer.id = %peer, ipns = %name, %error, "record not fetched"),
        }
        self.ask_for_records(peer);
    }

    /// Says in the DHTs which topics we are on.
    pub(in super::super) fn announce_topics(&mut self) {
        let places: Vec<RecordKey> = self.pubsub.searches.keys().map(rendezvous).collect();
        for dht in Dht::BOTH {
            let providing = self.providing.entry(dht).or_default();
            for place in &places {
                if !providing.add(place.clone()) {
                    tracing::warn!("a topic is not announced: too many roots are announced already");
                }
            }
        }
    }

    /// Looks for others on topics with few; where there is nobody to ask, later.
    pub(in super::super) fn find_company(&mut self) {
        let dhts = self.dhts();
        if dhts.is_empty() {
            return;
        }
        for name in self.pubsub.lonely(Instant::now()) {
            for dht in &dhts {
                let id = self.swarm.behaviour_mut().kad(*dht).get_providers(rendezvous(&name));
                self.waiting.insert((*dht, id), Waiting::Company { found: 0 });
            }
        }
    }
}
