//! A key in the place of another one, in steps that each leave the folder usable, and that may be done again.

use std::fs;
use std::io;

use libp2p::identity::Keypair;

use super::{KEY_NAME_BYTES_MAX, Keystore, KeystoreError, io_error, ipns_name};
use crate::ipld::ipns::IpnsName;

/// Names that are tried for a key that is put aside.
const ASIDE_MAX: usize = 1000;

impl Keystore {
    /// The key that is to take the place of the one of that name, under `NAME.next`: the one of a rotation that was begun,
    /// else a new one, as Ed25519. `None`: what is published under `ipns` has its key elsewhere, and nothing is made.
    pub fn successor(&self, name: &str, ipns: &IpnsName) -> Result<Option<Keypair>, KeystoreError> {
        match self.get(name)? {
            Some(key) if ipns_name(&key) == *ipns => Ok(Some(self.get_or_generate(&next(name))?.0)),
            Some(_) | None => Ok(None),
        }
    }

    /// Puts the key of that name aside, under `NAME-old` or `NAME-old-2` and so on, and its successor in its place. Returns
    /// the name of the old one. Nothing is deleted.
    pub fn rotate(&self, name: &str) -> Result<String, KeystoreError> {
        let missing = |name: &str| KeystoreError::Missing { name: name.to_owned(), dir: self.dir.clone() };
        let old = self.get(name)?.ok_or_else(|| missing(name))?;
        if self.get(&next(name))?.is_none() {
            return Err(missing(&next(name)));
        }
        let (path, aside) = (self.path(name)?, self.put_aside(name, &ipns_name(&old))?);
        fs::rename(self.path(&next(name))?, &path).map_err(io_error("write", &path))?;
        fs::File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", &self.dir))?;
        Ok(aside)
    }

    /// Ends a rotation to `to` that was broken off after it was decided. `None`: there is none.
    pub fn finish_rotation(&self, name: &str, to: &IpnsName) -> Result<Option<String>, KeystoreError> {
        match self.get(&next(name))? {
            Some(key) if ipns_name(&key) == *to => self.rotate(name).map(Some),
            Some(_) | None => Ok(None),
        }
    }

    /// Links the key to a second name, unless a try before has done so.
    fn put_aside(&self, name: &str, ipns: &IpnsName) -> Result<String, KeystoreError> {
        let names = (1..=ASIDE_MAX).map(|n| match n {
            1 => format!("{name}-old"),
            n => format!("{name}-old-{n}"),
        });
        for aside in names {
            let path = self.path(&aside)?;
            match fs::hard_link(self.path(name)?, &path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if self.get(&aside)?.is_some_and(|key| ipns_name(&key) == *ipns) {
                        return Ok(aside);
                    }
                }
                linked => return linked.map(|()| aside).map_err(io_error("write", &path)),
            }
        }
        Err(KeystoreError::Exists { name: format!("{name}-old-{ASIDE_MAX}"), path: self.dir.clone() })
    }
}

fn next(name: &str) -> String {
    let room = KEY_NAME_BYTES_MAX - ".next".len();
    format!("{}.next", name.chars().take(room).collect::<String>())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::KeyKind;
    use super::*;

    fn names(keystore: &Keystore) -> Vec<String> {
        keystore.list().unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn the_old_key_is_kept_under_another_name() {
        let root = TempDir::new().unwrap();
        let keystore = Keystore::open(root.path()).unwrap();
        let first = keystore.generate("team", KeyKind::Ed25519).unwrap();
        assert!(keystore.rotate("team").is_err(), "without a successor nothing happens");
        let successor = |of: &Keypair| keystore.successor("team", &ipns_name(of)).unwrap();
        assert!(successor(&Keypair::generate_ed25519()).is_none(), "the key is elsewhere");
        assert_eq!(names(&keystore), ["team"]);
        let second = successor(&first).unwrap();
        assert_eq!(successor(&first).unwrap().public(), second.public(), "begun, and gone on with");
        assert_eq!(keystore.rotate("team").unwrap(), "team-old");
        assert_eq!(names(&keystore), ["team", "team-old"]);
        let key = |name: &str| keystore.get(name).unwrap().unwrap().public();
        assert_eq!((key("team"), key("team-old")), (second.public(), first.public()));

        let third = successor(&second).unwrap();
        assert_eq!(keystore.rotate("team").unwrap(), "team-old-2");
        assert_eq!(
            (key("team"), key("team-old"), key("team-old-2")),
            (third.public(), first.public(), second.public())
        );
    }

    #[test]
    fn a_rotation_that_was_broken_off_is_ended() {
        let root = TempDir::new().unwrap();
        let keystore = Keystore::open(root.path()).unwrap();
        let first = keystore.generate("team", KeyKind::Ed25519).unwrap();
        let second = keystore.successor("team", &ipns_name(&first)).unwrap().unwrap();
        // It ended between the two steps.
        fs::hard_link(keystore.path("team").unwrap(), keystore.path("team-old").unwrap()).unwrap();
        let elsewhere = ipns_name(&first);
        assert_eq!(keystore.finish_rotation("team", &elsewhere).unwrap(), None, "not to that name");
        assert_eq!(keystore.finish_rotation("team", &ipns_name(&second)).unwrap().unwrap(), "team-old");
        assert_eq!(names(&keystore), ["team", "team-old"]);
        assert_eq!(keystore.get("team").unwrap().unwrap().public(), second.public());
        assert_eq!(keystore.finish_rotation("team", &ipns_name(&second)).unwrap(), None, "once");
    }
}
