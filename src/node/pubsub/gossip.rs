//! The gossip behaviour, set up as Kubo has it: signed messages, each topic one name.

use std::time::Duration;

use libp2p::gossipsub::{self};
use libp2p::gossipsub::{
    ConfigBuilder, IdentTopic, IdentityTransform, Message, MessageAuthenticity, MessageId, PeerScoreParams,
    PeerScoreThresholds, TopicScoreParams, ValidationMode, WhitelistSubscriptionFilter,
};
use libp2p::identity::Keypair;
use multibase::Base;

use super::super::NodeError;
use crate::ipld::ipns::IpnsName;

pub(in super::super) type Gossip = gossipsub::Behaviour<IdentityTransform, WhitelistSubscriptionFilter>;

/// One frame: some records, or what a peer subscribes to.
const FRAME_BYTES_MAX: usize = 64 * 1024;
/// Records that may wait for one peer.
const QUEUED_PER_PEER_MAX: usize = 512;
/// How long a message is known for one that was seen before.
const SEEN_TIME: Duration = Duration::from_secs(60);
/// A mesh stands soon after a start.
const FIRST_HEARTBEAT: Duration = Duration::from_secs(1);
/// Each peer counts its bad messages squared against it; it is not listened to below -80, so that the third silences it
/// for some seconds, and further ones keep it silent.
const BAD_MESSAGE_WEIGHT: f64 = -10.0;
const BAD_MESSAGE_DECAY: f64 = 0.95;
/// Broken promises that are forgiven: a peer that restarts breaks some.
const BROKEN_PROMISES_FORGIVEN: f64 = 6.0;

/// The topic of a name: `/record/` and the DHT key in base64url (specification of the IPNS PubSub router).
pub(super) fn topic(name: &IpnsName) -> IdentTopic {
    IdentTopic::new(format!("/record/{}", Base::Base64Url.encode(name.routing_key())))
}

/// Subscribes to the topics of `names`, and to no other ever: what peers say of others is not kept.
pub(in super::super) fn build(keypair: &Keypair, names: &[IpnsName]) -> Result<Gossip, NodeError> {
    let failed = |error: String| NodeError::Pubsub(error);
    let config = ConfigBuilder::default()
        .max_transmit_size(FRAME_BYTES_MAX)
        .max_control_message_size(FRAME_BYTES_MAX)
        .connection_handler_queue_len(QUEUED_PER_PEER_MAX)
        .heartbeat_initial_delay(FIRST_HEARTBEAT)
        .duplicate_cache_time(SEEN_TIME)
        .message_id_fn(message_id)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let topics: Vec<IdentTopic> = names.iter().map(topic).collect();
    let filter = WhitelistSubscriptionFilter(topics.iter().map(IdentTopic::hash).collect());
    let signed = MessageAuthenticity::Signed(keypair.clone());
    let mut gossip = Gossip::new_with_subscription_filter(signed, config, filter)
        .map_err(|error| failed(error.to_owned()))?;
    let score = PeerScoreParams {
        topics: topics.iter().map(|topic| (topic.hash(), topic_score())).collect(),
        // A cluster is behind one address.
        ip_colocation_factor_weight: 0.0,
        behaviour_penalty_threshold: BROKEN_PROMISES_FORGIVEN,
        ..PeerScoreParams::default()
    };
    gossip.with_peer_score(score, PeerScoreThresholds::default()).map_err(failed)?;
    for topic in &topics {
        gossip.subscribe(topic).map_err(|error| failed(error.to_string()))?;
    }
    Ok(gossip)
}

/// Only bad messages count: names change seldom, so that who brings few of them has done nothing wrong.
fn topic_score() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: BAD_MESSAGE_WEIGHT,
        invalid_message_deliveries_decay: BAD_MESSAGE_DECAY,
        ..TopicScoreParams::default()
    }
}

/// The author and his count, as Kubo has it: what others say they have is then known by the same id here.
fn message_id(message: &Message) -> MessageId {
    let mut id = message.source.map(|author| author.to_bytes()).unwrap_or_default();
    id.extend(message.sequence_number.unwrap_or_default().to_be_bytes());
    MessageId::new(&id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_the_key_in_base64url() {
        let name: IpnsName =
            "k51qzi5uqu5dgzykd8kyelftwyy2c4hqadaunjbbqk8w5f5zja4s7edjdkvmwl".parse().unwrap();
        let text = topic(&name).hash().into_string();
        assert!(text.starts_with("/record/L2lwbnMvACQIARIg"), "{text}");
        assert_eq!(
            Base::Base64Url.decode(text.strip_prefix("/record/").unwrap()).unwrap(),
            name.routing_key()
        );
    }
}
