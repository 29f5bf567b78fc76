//! The key of a private network (libp2p specification "Pre-shared Key Based Private Networks"), in the file that Kubo has
//! as `swarm.key`.

use std::io::Read;
use std::path::Path;

use libp2p::pnet::PreSharedKey;
use multibase::Base;

const HEADER: &str = "/key/swarm/psk/1.0.0/";
const KEY_BYTES: usize = 32;
/// A key file has some hundred bytes.
const FILE_BYTES_MAX: u64 = 4096;

/// Peers without this key cannot say a word to those who have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwarmKey(pub(super) PreSharedKey);

/// Why a file holds no such key. The text never has a part of the file in it.
#[derive(Debug, thiserror::Error)]
pub enum SwarmKeyError {
    #[error("cannot read swarm key {path}")]
    Read {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("a swarm key begins with a line {HEADER}")]
    Header,
    #[error("the second line of a swarm key is /base16/ or /base64/")]
    Encoding,
    #[error("the third line of a swarm key is {KEY_BYTES} bytes in the encoding that the second names")]
    Key,
}

impl SwarmKey {
    /// Reads a key file. Blocks.
    pub fn load(path: &Path) -> Result<Self, SwarmKeyError> {
        let mut text = String::new();
        std::fs::File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
            .map_err(|source| SwarmKeyError::Read { path: path.display().to_string(), source })?;
        Self::parse(&text)
    }

    /// libp2p's own parser knows base16 alone, and panics on what is not ASCII.
    fn parse(text: &str) -> Result<Self, SwarmKeyError> {
        let mut lines = text.lines().map(str::trim_end);
        if lines.next() != Some(HEADER) {
            return Err(SwarmKeyError::Header);
        }
        let encoding = match lines.next() {
            Some("/base16/") => Base::Base16Lower,
            Some("/base64/") => Base::Base64Pad,
            _ => return Err(SwarmKeyError::Encoding),
        };
        let written = lines.next().unwrap_or_default();
        let written =
            if encoding == Base::Base16Lower { written.to_ascii_lowercase() } else { written.to_owned() };
        let key: [u8; KEY_BYTES] =
            encoding.decode(written).ok().and_then(|key| key.try_into().ok()).ok_or(SwarmKeyError::Key)?;
        Ok(Self(PreSharedKey::new(key)))
    }
}

/// Reads whatever bytes as a key file: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let _ = str::from_utf8(bytes).map(SwarmKey::parse);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_files_that_kubo_reads_are_read() {
        let key = SwarmKey(PreSharedKey::new([0xab; KEY_BYTES]));
        let hex = "ab".repeat(KEY_BYTES);
        for (encoding, written) in [
            ("/base16/", hex.clone()),
            ("/base16/", hex.to_uppercase()),
            ("/base64/", Base::Base64Pad.encode([0xab; KEY_BYTES])),
        ] {
            for end in ["", "\n", "\r\n"] {
                let line = if end == "\r\n" { end } else { "\n" };
                let text = format!("{HEADER}{line}{encoding}{line}{written}{end}");
                assert_eq!(SwarmKey::parse(&text).unwrap(), key);
            }
        }
        assert_eq!(SwarmKey::parse(&key.0.to_key_file()).unwrap(), key);
    }

    #[test]
    fn what_is_no_key_is_named_without_being_shown() {
        let secret = "ab".repeat(KEY_BYTES - 1);
        for (text, why) in [
            (String::new(), "begins with"),
            (format!("{HEADER}\n/bin/\n{secret}"), "second line"),
            (format!("{HEADER}\n/base16/\n{secret}"), "third line"),
            (format!("{HEADER}\n/base16/\n{secret}é"), "third line"),
        ] {
            let error = SwarmKey::parse(&text).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("abab"), "{error}");
        }
        let missing = SwarmKey::load(Path::new("/nowhere/swarm.key")).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/swarm.key"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = SwarmKey::parse(&text);
            let _ = SwarmKey::parse(&format!("{HEADER}\n/base16/\n{text}"));
        }
    }
}
