//! The format of htpasswd files: `user:hash` on a line, comments after `#`. Of the hashes only bcrypt, as distribution has
//! it: the others are broken. Pure.

use std::collections::HashMap;
use std::str::FromStr;

use bcrypt::HashParts;

/// The costliest hash that is taken. At each step it takes twice as long: this one already keeps a core for seconds.
pub(super) const COST_MAX: u32 = 16;

/// What an unknown user's password is compared with where the file has no entry to take instead.
const STAND_IN: &str = "$2b$10$AAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.";

/// The users of a file, each with a hash that is known to be well-formed.
#[derive(Debug)]
pub(super) struct Table {
    hashes: HashMap<String, String>,
    stand_in: String,
}

/// What is wrong with a line, which is counted from one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LineError {
    pub(super) line: usize,
    pub(super) reason: String,
}

impl Table {
    pub(super) fn parse(text: &str) -> Result<Self, LineError> {
        let mut hashes = HashMap::new();
        let mut stand_in = None;
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason: &str| LineError { line: n + 1, reason: reason.to_owned() };
            let (user, hash) = line
                .split_once(':')
                .filter(|(user, _)| !user.is_empty())
                .ok_or_else(|| wrong("user:hash is expected"))?;
            check(hash).map_err(|reason| wrong(&reason))?;
            stand_in.get_or_insert_with(|| hash.to_owned());
            if hashes.insert(user.to_owned(), hash.to_owned()).is_some() {
                return Err(wrong(&format!("user {user:?} has a line above already")));
            }
        }
        Ok(Self { hashes, stand_in: stand_in.unwrap_or_else(|| STAND_IN.to_owned()) })
    }

    pub(super) fn len(&self) -> usize {
        self.hashes.len()
    }

    pub(super) fn hash(&self, user: &str) -> Option<&str> {
        self.hashes.get(user).map(String::as_str)
    }

    /// The hash that costs for an unknown user what a known one costs.
    pub(super) fn stand_in(&self) -> &str {
        &self.stand_in
    }
}

fn check(hash: &str) -> Result<(), String> {
    if !["$2y$", "$2a$", "$2b$"].iter().any(|prefix| hash.starts_with(prefix)) {
        return Err("a bcrypt hash is expected, as htpasswd -B makes it ($2y$, $2a$ or $2b$)".to_owned());
    }
    let parts = HashParts::from_str(hash).map_err(|_| "the bcrypt hash is damaged".to_owned())?;
    let cost = parts.get_cost();
    if !(4..=COST_MAX).contains(&cost) {
        return Err(format!("bcrypt cost {cost} is not from 4 to {COST_MAX}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of `secret`, as crypt(3) of the C library makes it.
    const HASH: &str = "$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";

    #[test]
    fn a_file_of_htpasswd_is_read() {
        let table = Table::parse(&format!("# people\n\n alice:{HASH}\r\nbob:{HASH}\n")).unwrap();
        assert_eq!(table.len(), 2);
        assert_eq!(table.hash("alice"), Some(HASH));
        assert!(bcrypt::verify("secret", table.hash("bob").unwrap()).unwrap());
        assert_eq!(table.hash("carol"), None);
        assert_eq!(table.stand_in(), HASH);
        assert!(!bcrypt::verify("secret", Table::parse("").unwrap().stand_in()).unwrap());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let cases = [
            ("alice".to_owned(), "user:hash is expected"),
            (format!(":{HASH}"), "user:hash is expected"),
            ("alice:$apr1$abc$def".to_owned(), "a bcrypt hash is expected"),
            ("alice:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=".to_owned(), "a bcrypt hash is expected"),
            ("alice:secret".to_owned(), "a bcrypt hash is expected"),
            (format!("alice:{}", &HASH[..40]), "the bcrypt hash is damaged"),
            (format!("alice:{HASH}:x"), "the bcrypt hash is damaged"),
            (format!("alice:{}", HASH.replace("$04$", "$31$")), "bcrypt cost 31 is not from 4 to 16"),
            (format!("bob:{HASH}"), "user \"bob\" has a line above already"),
        ];
        for (line, reason) in cases {
            let error = Table::parse(&format!("bob:{HASH}\n# comment\n{line}\n")).unwrap_err();
            assert_eq!(error.line, 3, "{line}");
            assert!(error.reason.starts_with(reason), "{line}: {}", error.reason);
        }
    }

    proptest! {
        #[test]
        fn no_file_is_too_strange(text in "[\\PC\n]{0,200}") {
            let _ = Table::parse(&text);
        }
    }
}
