//! Key files: one private key each, in `keystore/` under the root directory.
//!
//! A file is named as its key and holds libp2p's protobuf without encryption, as `ipfs key export` writes it. Only its
//! owner may read it: the folder has mode 0700 and a file 0600, from the moment it exists. What is found more open than
//! that is closed with a warning when it is used, since copied files and mounted volumes often are; where it cannot be
//! closed, it is refused.
//!
//! Files appear whole or not at all and are never overwritten, so that the command line may work beside a daemon. All
//! calls block.

mod import;
mod rotate;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use libp2p::identity::{DecodingError, Keypair};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::ipld::ipns::{IpnsError, IpnsName};

#[doc(hidden)]
pub use import::fuzz;

/// The key of the node itself, which is listed first.
pub const SELF: &str = "self";

/// The longest name of a key, in bytes.
pub const KEY_NAME_BYTES_MAX: usize = 128;

/// The largest key file, in bytes: an RSA key of 8192 bits has less than 5 KiB.
pub const KEY_BYTES_MAX: usize = 16 * 1024;

/// Why a key could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    #[error(
        "{0:?} is no name for a key: 1 to {KEY_NAME_BYTES_MAX} letters, digits, `.`, `_` and `-` are allowed, and no `.` in front"
    )]
    Name(String),
    #[error("there is a key {name:?} already ({}): choose another name, or move that file away", path.display())]
    Exists { name: String, path: PathBuf },
    #[error("there is no key {name:?} in {}: `shoal key list` shows those that are there, `shoal key gen {name}` makes it", dir.display())]
    Missing { name: String, dir: PathBuf },
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is open to others (mode {mode:03o}), which cannot be changed: it should have mode {wanted:03o}", path.display())]
    Permissions { path: PathBuf, mode: u32, wanted: u32, source: io::Error },
    #[error(
        "{} is no key file: a private key in libp2p's protobuf is expected, as `ipfs key export` writes it; `shoal key import` also takes PEM",
        path.display()
    )]
    KeyFile { path: PathBuf, source: DecodingError },
    #[error("{} is no key file: a private key has at most {KEY_BYTES_MAX} bytes", path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "cannot import key {name:?}: {reason}; a private key as `ipfs key export` writes it is expected (libp2p protobuf, its base64, or PEM with PKCS #8 of Ed25519 or RSA)"
    )]
    Import { name: String, reason: String },
    #[error("cannot make a key")]
    Generate(#[source] DecodingError),
    #[error("{0:?} is no type of key that can be made: ed25519, secp256k1 or ecdsa is expected")]
    Kind(String),
    #[error("{text:?} is neither a key in {} nor an IPNS name", dir.display())]
    NeitherKeyNorName { text: String, dir: PathBuf, source: IpnsError },
}

/// The types of keys that can be made. RSA keys can be imported only: libp2p has no generator for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyKind {
    #[default]
    Ed25519,
    Secp256k1,
    Ecdsa,
}

impl FromStr for KeyKind {
    type Err = KeystoreError;

    fn from_str(kind: &str) -> Result<Self, KeystoreError> {
        match kind {
            "ed25519" => Ok(Self::Ed25519),
            "secp256k1" => Ok(Self::Secp256k1),
            "ecdsa" => Ok(Self::Ecdsa),
            _ => Err(KeystoreError::Kind(kind.to_owned())),
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ed25519 => "ed25519",
            Self::Secp256k1 => "secp256k1",
            Self::Ecdsa => "ecdsa",
        })
    }
}

/// The folder of key files. Holds nothing in memory, so several may be open at once.
#[derive(Clone, Debug)]
pub struct Keystore {
    dir: PathBuf,
}

impl Keystore {
    /// Makes the folder `keystore` under `root_directory` if need be, closed to others.
    pub fn open(root_directory: &Path) -> Result<Self, KeystoreError> {
        let dir = root_directory.join("keystore");
        fs::create_dir_all(root_directory).map_err(io_error("make", root_directory))?;
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            made => made.map_err(io_error("make", &dir))?,
        }
        // Listing it fails if it is something else.
        fs::read_dir(&dir).map_err(io_error("list", &dir))?;
        tighten(&File::open(&dir).map_err(io_error("read", &dir))?, &dir)?;
        Ok(Self { dir })
    }

    /// The key of that name, read from its file.
    pub fn get(&self, name: &str) -> Result<Option<Keypair>, KeystoreError> {
        let path = self.path(name)?;
        let Some(bytes) = read(&path)? else { return Ok(None) };
        decode(&path, &bytes).map(Some)
    }

    /// The key of that name, and whether it was made by this call, as Ed25519.
    pub fn get_or_generate(&self, name: &str) -> Result<(Keypair, bool), KeystoreError> {
        if let Some(key) = self.get(name)? {
            return Ok((key, false));
        }
        match self.generate(name, KeyKind::Ed25519) {
            // Another process was quicker.
            Err(error @ KeystoreError::Exists { .. }) => Ok((self.get(name)?.ok_or(error)?, false)),
            made => Ok((made?, true)),
        }
    }

    /// Makes a key. Refuses a name that is taken.
    pub fn generate(&self, name: &str, kind: KeyKind) -> Result<Keypair, KeystoreError> {
        let key = match kind {
            KeyKind::Ed25519 => Keypair::generate_ed25519(),
            KeyKind::Secp256k1 => Keypair::generate_secp256k1(),
            KeyKind::Ecdsa => Keypair::generate_ecdsa(),
        };
        let bytes = Zeroizing::new(key.to_protobuf_encoding().map_err(KeystoreError::Generate)?);
        self.write_new(name, &bytes)?;
        Ok(key)
    }

    /// All keys by name, [`SELF`] first. Folders and hidden files are passed over.
    pub fn list(&self) -> Result<Vec<(String, IpnsName)>, KeystoreError> {
        let mut keys = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let entry = entry.map_err(io_error("list", &self.dir))?;
            let file_name = entry.file_name();
            let Some(name) = file_name.to_str().filter(|name| is_key_name(name)) else { continue };
            if !entry.path().is_file() {
                continue;
            }
            // A file that went away since is no key.
            let Some(key) = self.get(name)? else { continue };
            keys.push((name.to_owned(), ipns_name(&key)));
        }
        keys.sort_by(|(a, _), (b, _)| (a != SELF, a).cmp(&(b != SELF, b)));
        Ok(keys)
    }

    /// Keeps a key that was exported elsewhere: libp2p's protobuf, its base64 (Kubo's `Identity.PrivKey`), or PEM with
    /// PKCS #8 of Ed25519 or RSA. Refuses a name that is taken.
    pub fn import(&self, name: &str, bytes: &[u8]) -> Result<Keypair, KeystoreError> {
        let refused = |reason| KeystoreError::Import { name: name.to_owned(), reason };
        if bytes.len() > KEY_BYTES_MAX {
            return Err(refused(format!("it has {} bytes, and more than {KEY_BYTES_MAX}", bytes.len())));
        }
        let protobuf = import::to_protobuf(bytes).map_err(|reason| refused(reason.to_owned()))?;
        let key = Keypair::from_protobuf_encoding(&protobuf).map_err(|error| refused(error.to_string()))?;
        self.write_new(name, &protobuf)?;
        Ok(key)
    }

    /// The key of that name in libp2p's protobuf, as `ipfs key export` writes it and `ipfs key import` reads it.
    pub fn export(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, KeystoreError> {
        let path = self.path(name)?;
        let missing = || KeystoreError::Missing { name: name.to_owned(), dir: self.dir.clone() };
        let bytes = read(&path)?.ok_or_else(missing)?;
        decode(&path, &bytes)?;
        Ok(bytes)
    }

    /// The IPNS name that `text` means: that of the key of exactly this name, else `text` read as an IPNS name.
    pub fn resolve_name(&self, text: &str) -> Result<IpnsName, KeystoreError> {
        if is_key_name(text)
            && let Some(key) = self.get(text)?
        {
            return Ok(ipns_name(&key));
        }
        text.parse().map_err(|source| KeystoreError::NeitherKeyNorName {
            text: text.chars().take(KEY_NAME_BYTES_MAX).collect(),
            dir: self.dir.clone(),
            source,
        })
    }

    fn path(&self, name: &str) -> Result<PathBuf, KeystoreError> {
        match is_key_name(name) {
            true => Ok(self.dir.join(name)),
            false => Err(KeystoreError::Name(name.chars().take(KEY_NAME_BYTES_MAX).collect())),
        }
    }

    /// Writes a key file durably, under a hidden name first: linking it to its own name fails if that is taken.
    fn write_new(&self, name: &str, bytes: &[u8]) -> Result<(), KeystoreError> {
        let path = self.path(name)?;
        let hidden = self.dir.join(format!(".{}", Uuid::new_v4()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&hidden)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::hard_link(&hidden, &path));
        // Nothing is there if it could not be made.
        let _ = fs::remove_file(&hidden);
        match written {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(KeystoreError::Exists { name: name.to_owned(), path });
            }
            written => written.map_err(io_error("write", &path))?,
        }
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", &self.dir))
    }
}

fn is_key_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=KEY_NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

fn ipns_name(key: &Keypair) -> IpnsName {
    IpnsName::from_peer_id(key.public().to_peer_id())
}

/// Reads a key file of at most [`KEY_BYTES_MAX`] that nobody else can read, or could until now.
fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, KeystoreError> {
    // Looked at before it is opened: opening a pipe waits for a writer.
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(io_error("read", path))?,
    };
    if !metadata.is_file() || metadata.len() > KEY_BYTES_MAX as u64 {
        return Err(KeystoreError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io_error("read", path))?;
    tighten(&file, path)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES_MAX));
    file.take(KEY_BYTES_MAX as u64).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    Ok(Some(bytes))
}

/// Takes the permissions of others away from a file or folder.
fn tighten(file: &File, path: &Path) -> Result<(), KeystoreError> {
    let mode = file.metadata().map_err(io_error("read", path))?.permissions().mode() & 0o777;
    let wanted = mode & 0o700;
    if mode == wanted {
        return Ok(());
    }
    file.set_permissions(Permissions::from_mode(wanted)).map_err(|source| KeystoreError::Permissions {
        path: path.to_owned(),
        mode,
        wanted,
        source,
    })?;
    tracing::warn!(
        file.path = %path.display(),
        "{} was open to others (mode {mode:03o}) and is closed to them: if they are not trusted, make new keys",
        path.display()
    );
    Ok(())
}

fn decode(path: &Path, bytes: &[u8]) -> Result<Keypair, KeystoreError> {
    Keypair::from_protobuf_encoding(bytes)
        .map_err(|source| KeystoreError::KeyFile { path: path.to_owned(), source })
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> KeystoreError + 'a {
    move |source| KeystoreError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use multibase::Base;
    use tempfile::TempDir;

    use super::*;

    const ED25519: &[u8] = include_bytes!("../../tests/fixtures/keys/ed25519.key");
    const ED25519_PEM: &[u8] = include_bytes!("../../tests/fixtures/keys/ed25519.pem");
    const ED25519_NAME: &str = "k51qzi5uqu5dlybd241e2a7wzcy8hv1l9tkjcqmjjs5dfbfjk9scrylpk11ckn";
    const RSA: &[u8] = include_bytes!("../../tests/fixtures/keys/rsa.key");
    const RSA_PEM: &[u8] = include_bytes!("../../tests/fixtures/keys/rsa.pem");
    const RSA_NAME: &str = "k2k4r8kjmblynv6dyeaghkkdi0xd1bmwf3644b1dqfk206mmlr8nw6gx";
    const SECP256K1: &[u8] = include_bytes!("../../tests/fixtures/keys/secp256k1.key");
    const SECP256K1_NAME: &str = "kzwfwjn5ji4puruygv5mg4bu2wxb18px9rwbjhl3mbzl6v9z61fl0kvxlya0u24";

    fn keystore() -> (TempDir, Keystore) {
        let root = tempfile::tempdir().unwrap();
        let keystore = Keystore::open(&root.path().join("shoal")).unwrap();
        (root, keystore)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let (root, keystore) = keystore();
        assert!(keystore.get(SELF).unwrap().is_none());
        let (made, true) = keystore.get_or_generate(SELF).unwrap() else { panic!("found a key") };
        let again = Keystore::open(&root.path().join("shoal")).unwrap();
        let (found, false) = again.get_or_generate(SELF).unwrap() else { panic!("made another") };
        assert_eq!(found.public(), made.public());

        let bytes = fs::read(keystore.dir.join(SELF)).unwrap();
        assert_eq!((bytes.len(), &bytes[..4]), (68, [0x08, 0x01, 0x12, 0x40].as_slice()));
        assert_eq!(mode(&keystore.dir.join(SELF)), 0o600);
        assert_eq!(mode(&keystore.dir), 0o700);
        assert_eq!(fs::read_dir(&keystore.dir).unwrap().count(), 1, "nothing but the key is left");
    }

    #[test]
    fn every_kind_of_key_is_made_and_listed_with_self_first() {
        let (_root, keystore) = keystore();
        let mut wanted = Vec::new();
        for (name, kind) in
            [("self", "ed25519"), ("Alice", "secp256k1"), ("zoe", "ecdsa"), ("bob", "ed25519")]
        {
            let kind: KeyKind = kind.parse().unwrap();
            wanted.push((name.to_owned(), ipns_name(&keystore.generate(name, kind).unwrap())));
        }
        wanted.swap(2, 3);
        fs::write(keystore.dir.join(".hidden"), "junk").unwrap();
        fs::create_dir(keystore.dir.join("folder")).unwrap();
        assert_eq!(keystore.list().unwrap(), wanted);
        assert!(matches!("rsa".parse::<KeyKind>(), Err(KeystoreError::Kind(_))));
    }

    #[test]
    fn no_key_is_ever_overwritten() {
        let (_root, keystore) = keystore();
        keystore.import("k", ED25519).unwrap();
        for error in [
            keystore.generate("k", KeyKind::Ed25519).unwrap_err(),
            keystore.import("k", SECP256K1).unwrap_err(),
        ] {
            assert!(matches!(error, KeystoreError::Exists { .. }), "{error}");
        }
        assert_eq!(keystore.export("k").unwrap().as_slice(), ED25519);
    }

    #[test]
    fn several_processes_make_one_key() {
        let (_root, keystore) = keystore();
        let made: Vec<_> = std::thread::scope(|scope| {
            let call = || keystore.get_or_generate(SELF).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|(_, made)| *made).count(), 1);
        assert!(made.iter().all(|(key, _)| key.public() == made[0].0.public()));
    }

    #[test]
    fn keys_of_kubo_are_imported_in_each_form_and_exported_as_they_were() {
        let kubo_config = format!("{}\n", Base::Base64Pad.encode(ED25519));
        for (bytes, exported, name) in [
            (ED25519, ED25519, ED25519_NAME),
            (ED25519_PEM, ED25519, ED25519_NAME),
            (kubo_config.as_bytes(), ED25519, ED25519_NAME),
            (RSA, RSA, RSA_NAME),
            (RSA_PEM, RSA, RSA_NAME),
            (SECP256K1, SECP256K1, SECP256K1_NAME),
        ] {
            let (_root, keystore) = keystore();
            let key = keystore.import("kubo", bytes).unwrap();
            assert_eq!(ipns_name(&key).to_string(), name);
            assert_eq!(keystore.get("kubo").unwrap().unwrap().public(), key.public());
            assert_eq!(keystore.export("kubo").unwrap().as_slice(), exported);
        }
        let (_root, keystore) = keystore();
        assert!(matches!(keystore.export("kubo"), Err(KeystoreError::Missing { .. })));
    }

    #[test]
    fn what_is_no_key_is_not_imported() {
        let (_root, keystore) = keystore();
        let public = Keypair::generate_ed25519().public().encode_protobuf();
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----";
        let huge = vec![b'A'; KEY_BYTES_MAX + 1];
        let swapped = [&ED25519[..36], &[0; 32]].concat();
        let cut = &RSA_PEM[..900];
        for bytes in
            [b"", b"junk".as_slice(), &public, encrypted.as_bytes(), &huge, &swapped, &ED25519[..67], cut]
        {
            let error = keystore.import("k", bytes).unwrap_err();
            assert!(matches!(error, KeystoreError::Import { .. }), "{error}");
        }
        assert!(keystore.list().unwrap().is_empty());
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_folder() {
        let (_root, keystore) = keystore();
        let long = "k".repeat(KEY_NAME_BYTES_MAX + 1);
        for name in
            ["", ".", "..", "../self", "a/b", "/etc/passwd", ".hidden", "a b", "a\0", "schlüssel", &long]
        {
            for error in [
                keystore.get(name).unwrap_err(),
                keystore.generate(name, KeyKind::Ed25519).unwrap_err(),
                keystore.import(name, ED25519).unwrap_err(),
                keystore.export(name).unwrap_err(),
            ] {
                assert!(matches!(error, KeystoreError::Name(_)), "{error}");
            }
            assert!(matches!(keystore.resolve_name(name), Err(KeystoreError::NeitherKeyNorName { .. })));
        }
        keystore.import(&long[1..], ED25519).unwrap();
        keystore.import("A.b-c_9", ED25519).unwrap();
    }

    #[test]
    fn a_bad_key_file_is_named() {
        let (_root, keystore) = keystore();
        let path = keystore.dir.join("bad");
        for bytes in [b"".as_slice(), b"junk", ED25519_PEM, &vec![0; KEY_BYTES_MAX + 1]] {
            fs::write(&path, bytes).unwrap();
            set_mode(&path, 0o600);
            for error in [
                keystore.get("bad").unwrap_err(),
                keystore.export("bad").unwrap_err(),
                keystore.get_or_generate("bad").unwrap_err(),
                keystore.list().unwrap_err(),
                keystore.resolve_name("bad").unwrap_err(),
            ] {
                assert!(error.to_string().starts_with(&format!("{} is no key file", path.display())));
            }
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(keystore.get("bad"), Err(KeystoreError::NotAFile { .. })));
    }

    #[test]
    fn what_is_open_to_others_is_closed_when_it_is_used() {
        let (root, keystore) = keystore();
        let path = keystore.dir.join("copied");
        fs::write(&path, ED25519).unwrap();
        set_mode(&path, 0o644);
        set_mode(&keystore.dir, 0o775);
        Keystore::open(&root.path().join("shoal")).unwrap().get("copied").unwrap().unwrap();
        assert_eq!((mode(&path), mode(&keystore.dir)), (0o600, 0o700));
    }

    #[test]
    fn a_text_means_the_key_of_that_name_before_an_ipns_name() {
        let (_root, keystore) = keystore();
        keystore.import("publisher", ED25519).unwrap();
        assert_eq!(keystore.resolve_name("publisher").unwrap().to_string(), ED25519_NAME);
        assert_eq!(keystore.resolve_name(RSA_NAME).unwrap().to_string(), RSA_NAME);
        keystore.import(RSA_NAME, ED25519).unwrap();
        assert_eq!(keystore.resolve_name(RSA_NAME).unwrap().to_string(), ED25519_NAME);
        let error = keystore.resolve_name("Publisher").unwrap_err();
        assert!(matches!(error, KeystoreError::NeitherKeyNorName { .. }), "{error}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("keystore"), "a file").unwrap();
        let error = Keystore::open(root.path()).unwrap_err();
        assert!(error.to_string().ends_with("/keystore"), "{error}");
    }
}
