//! Tokens that we hand out ourselves, where anonymous pull meets an htpasswd file: clients that are challenged for Basic
//! and have no credentials give up, but all of them fetch a Bearer token without any. They are random words that last for
//! minutes, kept in memory.

use std::time::Duration;

use moka::sync::Cache;
use uuid::Uuid;

/// The token of who has shown no credentials: a word that everybody may know, since it grants what everybody has.
pub(super) const ANONYMOUS: &str = "anonymous";

pub(super) const TTL: Duration = Duration::from_secs(300);
const SESSIONS_MAX: u64 = 16_384;

/// The tokens of who has shown a password.
pub(super) struct Sessions(Cache<String, ()>);

impl Sessions {
    pub(super) fn new() -> Self {
        // A little longer than clients are told, so that a request under way is not cut off.
        let ttl = TTL + Duration::from_secs(60);
        Self(Cache::builder().max_capacity(SESSIONS_MAX).time_to_live(ttl).build())
    }

    /// A new token, of 244 random bits.
    pub(super) fn issue(&self) -> String {
        let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        self.0.insert(token.clone(), ());
        token
    }

    pub(super) fn knows(&self, token: &str) -> bool {
        self.0.contains_key(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_issued_is_known() {
        let sessions = Sessions::new();
        let (one, two) = (sessions.issue(), sessions.issue());
        assert_ne!(one, two);
        assert!(sessions.knows(&one) && sessions.knows(&two));
        assert!(!sessions.knows(ANONYMOUS) && !sessions.knows("") && !Sessions::new().knows(&one));
    }
}
