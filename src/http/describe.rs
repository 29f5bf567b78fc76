//! What the mirror tells of itself, as the command line reads it.

use std::time::Duration;

use crate::api;
use crate::config::FollowMode;
use crate::mirror::{FillStatus, FollowedStatus, OwnStatus, PublishState};

pub fn describe_own(own: OwnStatus) -> api::Own {
    let state = match own.state {
        PublishState::Pending => "pending",
        PublishState::Published => "published",
        PublishState::Blocked => "blocked",
    };
    api::Own {
        name: own.name.to_string(),
        root: own.root.to_string(),
        sequence: own.sequence,
        published_at: own.published_at.map(|at| at.to_string()),
        state: state.to_owned(),
        error: own.error,
        other_writer: own.rival.map(|rival| api::OtherWriter {
            sequence: rival.sequence(),
            value: rival.value().to_owned(),
            valid_until: rival.valid_until().to_string(),
        }),
        former_names: own.former.iter().map(ToString::to_string).collect(),
    }
}

pub fn describe_followed(followed: FollowedStatus) -> api::Readonly {
    let seconds = |duration: Duration| duration.as_secs();
    let replica = followed.replica;
    api::Readonly {
        name: followed.name.to_string(),
        follow: match followed.mode {
            FollowMode::None => "none",
            FollowMode::Tags => "tags",
            FollowMode::All => "all",
        }
        .to_owned(),
        replica: api::Replica {
            whole: replica.is_whole,
            blobs: replica.blobs,
            blobs_held: replica.blobs_held,
            received_bytes: replica.received_bytes,
            error: replica.error,
        },
        root: followed.root.map(|root| root.to_string()),
        sequence: followed.sequence,
        valid_until: followed.valid_until.map(|until| until.to_string()),
        record_age_s: followed.record_age.map(seconds),
        root_age_s: followed.root_age.map(seconds),
        error: followed.error,
        moved_to: followed.moved_to.map(|to| to.to_string()),
        expired_for_s: followed.expired_for.map(seconds),
    }
}

pub fn describe_fill(fill: FillStatus) -> api::Fill {
    api::Fill {
        repository: fill.repository.to_string(),
        digest: fill.digest.to_string(),
        size_bytes: fill.size_bytes,
        received_bytes: fill.received_bytes,
        from: fill.from.map(|from| from.to_string()),
    }
}
