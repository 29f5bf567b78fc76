//! Key files: one a key, below `keystore/` of the root directory, in libp2p's protobuf as `ipfs key export` writes it.
//! `self` is the identity of the node.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use libp2p::identity::Keypair;
use zeroize::Zeroizing;

use crate::ipld::ipns::IpnsName;

/// The key that a node is known by.
pub const SELF: &str = "self";
const NAME_BYTES_MAX: usize = 128;
/// An RSA key of 4,096 bits has some 2,400 bytes.
const KEY_FILE_BYTES_MAX: u64 = 16 * 1024;

/// What goes wrong with keys.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    #[error("key name {0:?} is not valid: up to 128 of a-z A-Z 0-9 . _ -, not beginning with a dot")]
    Name(String),
    #[error("key {name} exists already: choose another name, or move {} away", .path.display())]
    Exists { name: String, path: PathBuf },
    #[error("{} is no key: a private key in libp2p's protobuf is expected, as `ipfs key export` writes it", .0.display())]
    Malformed(PathBuf),
    #[error(
        "the key to import is not valid: a private key in libp2p's protobuf is expected, as `ipfs key export` writes it"
    )]
    Import,
    #[error("{name:?} is neither a key in {} nor an IPNS name (k51…, 12D3…)", .folder.display())]
    Unresolved { name: String, folder: PathBuf },
    #[error(
        "there is no key {0:?}: make one with `shoal key gen {0}`, or list those there are with `shoal key list`"
    )]
    NoKey(String),
    #[error("cannot {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The kinds of keys that can be made here. RSA keys can be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    Ed25519,
    Secp256k1,
    Ecdsa,
}

/// The folder of keys.
#[derive(Clone, Debug)]
pub struct Keystore {
    folder: PathBuf,
}

impl Keystore {
    /// Opens the folder below `root_directory`, making it with mode 0700 if need be.
    pub fn open(root_directory: &Path) -> Result<Self, KeystoreError> {
        let folder = root_directory.join("keystore");
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(failed("protect", &folder))?;
        Ok(Self { folder })
    }

    pub fn get(&self, name: &str) -> Result<Option<Keypair>, KeystoreError> {
        let path = self.path(name)?;
        let metadata = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("read", &path))?,
        };
        if metadata.len() > KEY_FILE_BYTES_MAX || !metadata.is_file() {
            return Err(KeystoreError::Malformed(path));
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "others could read this key file: its mode is now 0600");
            fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed("protect", &path))?;
        }
        let bytes = Zeroizing::new(fs::read(&path).map_err(failed("read", &path))?);
        Keypair::from_protobuf_encoding(&bytes).map(Some).map_err(|_| KeystoreError::Malformed(path))
    }

    /// The key, and whether it was made by this call.
    pub fn get_or_generate(&self, name: &str) -> Result<(Keypair, bool), KeystoreError> {
        match self.get(name)? {
            Some(key) => Ok((key, false)),
            None => Ok((self.generate(name, KeyKind::Ed25519)?, true)),
        }
    }

    /// Makes a key; never over an old one.
    pub fn generate(&self, name: &str, kind: KeyKind) -> Result<Keypair, KeystoreError> {
        let key = match kind {
            KeyKind::Ed25519 => Keypair::generate_ed25519(),
            KeyKind::Secp256k1 => Keypair::generate_secp256k1(),
            KeyKind::Ecdsa => Keypair::generate_ecdsa(),
        };
        self.put(name, &key)?;
        Ok(key)
    }

    /// The names of all keys and what they publish under; `self` first, then by name.
    pub fn list(&self) -> Result<Vec<(String, IpnsName)>, KeystoreError> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed("read", &self.folder))? {
            let file = entry.map_err(failed("read", &self.folder))?.file_name();
            let Some(name) = file.to_str().filter(|name| check(name).is_ok()) else { continue };
            if let Some(key) = self.get(name)? {
                keys.push((name.to_owned(), IpnsName::from_peer_id(key.public().to_peer_id())));
            }
        }
        keys.sort_by(|(a, _), (b, _)| (a != SELF, a).cmp(&(b != SELF, b)));
        Ok(keys)
    }

    /// Takes a key in; never over an old one.
    pub fn import(&self, name: &str, bytes: &[u8]) -> Result<Keypair, KeystoreError> {
        let key = Keypair::from_protobuf_encoding(bytes).map_err(|_| KeystoreError::Import)?;
        self.put(name, &key)?;
        Ok(key)
    }

    /// The private key, as `ipfs key import` takes it.
    pub fn export(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, KeystoreError> {
        let path = self.path(name)?;
        let key = self.get(name)?.ok_or_else(|| KeystoreError::NoKey(name.to_owned()))?;
        key.to_protobuf_encoding().map(Zeroizing::new).map_err(|_| KeystoreError::Malformed(path))
    }

    /// What the config means by a name: a key of this folder, else an IPNS name.
    pub fn resolve_name(&self, text: &str) -> Result<IpnsName, KeystoreError> {
        if check(text).is_ok()
            && let Some(key) = self.get(text)?
        {
            return Ok(IpnsName::from_peer_id(key.public().to_peer_id()));
        }
        text.parse()
            .map_err(|_| KeystoreError::Unresolved { name: text.to_owned(), folder: self.folder.clone() })
    }

    /// Written beside and linked into place: never half, never over an old one, never readable by others.
    fn put(&self, name: &str, key: &Keypair) -> Result<(), KeystoreError> {
        let path = self.path(name)?;
        let encoded = key.to_protobuf_encoding().map_err(|_| KeystoreError::Malformed(path.clone()))?;
        let encoded = Zeroizing::new(encoded);
        let draft = self.folder.join(format!(".{name}.{}", std::process::id()));
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&encoded)?;
            file.sync_all()?;
            fs::hard_link(&draft, &path)?;
            fs::File::open(&self.folder)?.sync_all()
        })();
        // The draft is of no use either way.
        let _ = fs::remove_file(&draft);
        match written {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(KeystoreError::Exists { name: name.to_owned(), path })
            }
            other => other.map_err(failed("write", &path)),
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, KeystoreError> {
        check(name)?;
        Ok(self.folder.join(name))
    }
}

fn check(name: &str) -> Result<(), KeystoreError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fits =
        (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed);
    if fits { Ok(()) } else { Err(KeystoreError::Name(name.to_owned())) }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeystoreError {
    let path = path.to_owned();
    move |source| KeystoreError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn keystore() -> (TempDir, Keystore) {
        let folder = TempDir::new().unwrap();
        let keystore = Keystore::open(folder.path()).unwrap();
        (folder, keystore)
    }

    #[test]
    fn a_key_is_kept_in_the_form_of_ipfs_key_export() {
        let (_folder, keystore) = keystore();
        let (key, made) = keystore.get_or_generate(SELF).unwrap();
        assert!(made);
        let path = keystore.path(SELF).unwrap();
        assert_eq!(fs::read(&path).unwrap()[..4], [8, 1, 0x12, 0x40]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (again, made) = keystore.get_or_generate(SELF).unwrap();
        assert!(!made);
        assert_eq!(again.public(), key.public());
    }

    #[test]
    fn what_is_exported_can_be_imported_but_not_over_a_key() {
        let (_folder, keystore) = keystore();
        for (name, kind) in [("a", KeyKind::Ed25519), ("b", KeyKind::Secp256k1), ("c", KeyKind::Ecdsa)] {
            let key = keystore.generate(name, kind).unwrap();
            let exported = keystore.export(name).unwrap();
            let copy = keystore.import(&format!("{name}-copy"), &exported).unwrap();
            assert_eq!(copy.public(), key.public());
            assert!(matches!(keystore.import(name, &exported), Err(KeystoreError::Exists { .. })));
        }
        assert!(matches!(keystore.import("junk", b"junk"), Err(KeystoreError::Import)));
        keystore.generate(SELF, KeyKind::Ed25519).unwrap();
        let names: Vec<String> = keystore.list().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["self", "a", "a-copy", "b", "b-copy", "c", "c-copy"]);
    }

    #[test]
    fn names_are_keys_first_and_ipns_names_then() {
        let (_folder, keystore) = keystore();
        let key = keystore.generate("friend", KeyKind::Ed25519).unwrap();
        let name = IpnsName::from_peer_id(key.public().to_peer_id());
        assert_eq!(keystore.resolve_name("friend").unwrap(), name);
        assert_eq!(keystore.resolve_name(&name.to_string()).unwrap(), name);
        assert!(matches!(keystore.resolve_name("stranger"), Err(KeystoreError::Unresolved { .. })));
    }

    #[test]
    fn paths_are_no_names_and_junk_is_no_key() {
        let (_folder, keystore) = keystore();
        for name in ["", ".", "..", "../self", "a/b", ".hidden", &"x".repeat(129)] {
            assert!(matches!(keystore.get(name), Err(KeystoreError::Name(_))), "{name}");
        }
        fs::write(keystore.folder.join("junk"), b"junk").unwrap();
        assert!(matches!(keystore.get("junk"), Err(KeystoreError::Malformed(_))));
    }
}
