//! `shoal key`: works on the files, with or without a running daemon; but for `rotate`, which the daemon does.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;
use hyper::Method;

use super::client::{ask, encoded};
use super::{CommandError, Which, complain, load, print};
use crate::api;
use crate::keystore::{KeyKind, Keystore};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// List keys and the IPNS names they publish under
    #[command(after_help = "Example: shoal key list")]
    List {
        #[command(flatten)]
        which: Which,
    },
    /// Make a key
    #[command(after_help = "Example: shoal key gen team")]
    Gen {
        name: String,
        /// ed25519, secp256k1 or ecdsa
        #[arg(long = "type", default_value_t)]
        kind: KeyKind,
        #[command(flatten)]
        which: Which,
    },
    /// Take in a private key, as `ipfs key export` writes it
    #[command(after_help = "Example: ipfs key export -o team.key team && shoal key import team team.key")]
    Import {
        name: String,
        /// The file; - for standard input
        file: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// Write a private key to standard output, as `ipfs key import` takes it
    #[command(after_help = "Example: shoal key export team > team.key")]
    Export {
        name: String,
        #[command(flatten)]
        which: Which,
    },
    /// Publish under a new key, to which the old name leads on
    ///
    /// The daemon makes the key and publishes the tree under its name. The old name gets a last record that points there, is
    /// kept alive like the new one, and readers follow it. The old key is kept, as NAME-old: it signs that record anew. With
    /// `self` the peer id of the daemon is another one from its next start on.
    #[command(after_help = "Example: shoal key rotate\n         shoal key rotate team")]
    Rotate {
        /// The key that the daemon publishes under, which it is if left out
        name: Option<String>,
        #[command(flatten)]
        which: Which,
    },
}

/// The longest key file that is read, in bytes.
const IMPORT_BYTES_MAX: u64 = 64 * 1024;

pub(super) fn run(command: KeyCommand) -> Result<(), CommandError> {
    match command {
        KeyCommand::List { which } => {
            for (name, ipns) in open(which)?.list().context("keys not listed")? {
                print(&format!("{name}\t{ipns}"));
            }
        }
        KeyCommand::Gen { name, kind, which } => {
            let keystore = open(which)?;
            keystore.generate(&name, kind).context("key not made")?;
            print(&keystore.resolve_name(&name).context("key not read back")?.to_string());
        }
        KeyCommand::Import { name, file, which } => {
            let mut bytes = zeroize::Zeroizing::new(Vec::new());
            let source: Box<dyn std::io::Read> = if file.as_os_str() == "-" {
                Box::new(std::io::stdin())
            } else {
                Box::new(
                    std::fs::File::open(&file).with_context(|| format!("cannot read {}", file.display()))?,
                )
            };
            source.take(IMPORT_BYTES_MAX).read_to_end(&mut bytes).context("key not read")?;
            let keystore = open(which)?;
            keystore.import(&name, &bytes).context("key not imported")?;
            print(&keystore.resolve_name(&name).context("key not read back")?.to_string());
        }
        KeyCommand::Rotate { name, which } => {
            let query = name.map(|name| format!("?name={}", encoded(&name))).unwrap_or_default();
            let rotated: api::Rotated = ask(&which, &Method::POST, &format!("/v0/key/rotate{query}"))?;
            print(&rotated.name);
            complain(&format!("{} leads there; its key is {:?}", rotated.former_name, rotated.former_key));
        }
        KeyCommand::Export { name, which } => {
            let bytes = open(which)?.export(&name).context("key not exported")?;
            std::io::stdout().write_all(&bytes).context("key not written")?;
        }
    }
    Ok(())
}

fn open(which: Which) -> Result<Keystore, CommandError> {
    let config = load(which.config)?;
    Ok(Keystore::open(&config.store.root_directory).context("keys not opened")?)
}
