//! The `Authorization` header of a request. Pure.

use std::fmt;

use multibase::Base;
use zeroize::Zeroizing;

/// What a client shows to be known by. Its `Debug` form has no secret in it.
pub(super) enum Credentials {
    Basic {
        user: String,
        password: Zeroizing<String>,
    },
    /// A token, not looked at yet.
    Bearer(Zeroizing<String>),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { user, .. } => write!(f, "Basic({user:?})"),
            Self::Bearer(_) => f.write_str("Bearer"),
        }
    }
}

/// The header is neither Basic (RFC 7617) nor Bearer (RFC 6750).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Credentials {
    /// Reads the header. `None` is nobody: also an empty user without a password, which podman and skopeo send when they
    /// are challenged and have no credentials.
    pub(super) fn parse(header: &[u8]) -> Result<Option<Self>, Malformed> {
        let header = str::from_utf8(header).map_err(|_| Malformed)?;
        let (scheme, value) = header.trim().split_once(' ').ok_or(Malformed)?;
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") && !value.is_empty() {
            return Ok(Some(Self::Bearer(Zeroizing::new(value.to_owned()))));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return Err(Malformed);
        }
        let decoded = Base::Base64.decode(value.trim_end_matches('=')).map_err(|_| Malformed)?;
        let decoded = Zeroizing::new(decoded);
        let (user, password) =
            str::from_utf8(&decoded).ok().and_then(|pair| pair.split_once(':')).ok_or(Malformed)?;
        if user.is_empty() && password.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self::Basic { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) }))
    }
}

/// Reads whatever bytes as the header: for fuzzing.
pub(super) fn fuzz(bytes: &[u8]) {
    let _ = Credentials::parse(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn basic(header: &str) -> Option<(String, String)> {
        match Credentials::parse(header.as_bytes()) {
            Ok(Some(Credentials::Basic { user, password })) => Some((user, (*password).clone())),
            _ => None,
        }
    }

    #[test]
    fn the_header_is_read_as_the_standards_write_it() {
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(basic("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), pair("Aladdin", "open sesame"));
        assert_eq!(basic("basic  YTpiOmM="), pair("a", "b:c"));
        assert_eq!(basic("BASIC YTpiOmM"), pair("a", "b:c"));
        assert_eq!(basic("Basic YTo="), pair("a", ""));
        let bearer = Credentials::parse(b"bearer a.b.c").unwrap();
        assert!(matches!(bearer, Some(Credentials::Bearer(token)) if *token == "a.b.c"));
    }

    #[test]
    fn an_empty_pair_is_nobody() {
        assert!(matches!(Credentials::parse(b"Basic Og=="), Ok(None)));
    }

    #[test]
    fn anything_else_is_malformed() {
        for header in
            ["", "Basic", "Basic ", "Bearer ", "Basic !!!", "Basic YQ==", "Digest a=b", "Basic gICAOg=="]
        {
            assert_eq!(Credentials::parse(header.as_bytes()).err(), Some(Malformed), "{header}");
        }
        assert_eq!(Credentials::parse(b"Basic \xff").err(), Some(Malformed));
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", Credentials::parse(b"Basic YTpiOmM="));
        assert!(shown.contains("\"a\"") && !shown.contains("b:c"), "{shown}");
        assert!(!format!("{:?}", Credentials::parse(b"Bearer abcdef")).contains("abcdef"));
    }

    proptest! {
        #[test]
        fn what_a_client_sends_comes_through(user in "[^:]{0,20}", password in "\\PC{1,80}") {
            let encoded = Base::Base64Pad.encode(format!("{user}:{password}"));
            prop_assert_eq!(basic(&format!("Basic {encoded}")), Some((user, password)));
        }

        #[test]
        fn no_header_is_too_strange(header in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Credentials::parse(&header);
        }
    }
}
