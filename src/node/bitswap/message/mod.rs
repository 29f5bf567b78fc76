//! The wire format of Bitswap 1.0.0 to 1.2.0: protobuf behind a length, in both directions. Pure.
//!
//! The outer message is walked by hand, so that a message of many tiny fields costs no more memory than its bytes;
//! the small messages inside are prost's. Byte fields are slices of the message, and large blocks are written from where
//! they lie. Unknown fields are skipped, and so are entries whose CID cannot be used.
//!
//! Spec: <https://specs.ipfs.tech/bitswap-protocol/>

use bytes::{Buf, BufMut, Bytes, BytesMut};
use multihash_codetable::{Code, MultihashDigest};
use prost::Message as _;

use crate::ipld::Cid;
use crate::ipld::block::{BLOCK_BYTES_MAX, Multihash};

/// The largest message that is read or written, in bytes, without its length.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest CID that is read.
pub const CID_BYTES_MAX: usize = 168;
/// Wantlist entries that are read of one message; the rest is ignored.
pub const ENTRIES_MAX: usize = 1024;
/// Presences and blocks that are read of one message; the rest is ignored.
const ANSWERS_MAX: usize = 4096;
/// Blocks up to this size are joined to what is before them: each part becomes a frame of the multiplexer, which costs more
/// than to copy so few bytes.
const JOINED_BYTES_MAX: usize = 16 * 1024;
/// A block is copied out of a message that is so many times larger, rather than keep all of it alive.
const COPY_RATIO: usize = 4;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MessageError {
    #[error("bitswap message of {0} bytes: at most {MESSAGE_BYTES_MAX} are allowed")]
    TooLarge(u64),
    #[error("bitswap message ends in the middle of a field")]
    Truncated,
    #[error("bitswap message has a malformed field")]
    Malformed,
}

/// What the negotiated protocol lets us say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Blocks without their CID's prefix, understood as sha2-256. Also the protocol without a number.
    V1_0,
    V1_1,
    /// Presences: want-have, HAVE and DONT_HAVE.
    V1_2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WantType {
    Block,
    Have,
}

/// A line of a wantlist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Want { cid: Cid, want_type: WantType, priority: i32, send_dont_have: bool },
    Cancel(Cid),
}

impl Entry {
    pub fn cid(&self) -> &Cid {
        match self {
            Self::Want { cid, .. } | Self::Cancel(cid) => cid,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Have(Cid),
    DontHave(Cid),
}

/// What a peer sent, as far as it is usable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The entries replace what was wanted before.
    pub full: bool,
    pub entries: Vec<Entry>,
    pub presences: Vec<Presence>,
    pub blocks: Vec<UnverifiedBlock>,
}

/// Bytes, and how they say that they are to be hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnverifiedBlock {
    hash: Code,
    bytes: Bytes,
}

impl UnverifiedBlock {
    /// Hashes: about 0.6 ms for 1 MiB, so not on an async thread.
    pub fn identify(self) -> (Multihash, Bytes) {
        (self.hash.digest(&self.bytes), self.bytes)
    }

    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }
}

impl Message {
    /// Reads a message without its length prefix.
    pub fn decode(mut bytes: Bytes) -> Result<Self, MessageError> {
        let size_bytes = bytes.len();
        if size_bytes > MESSAGE_BYTES_MAX {
            return Err(MessageError::TooLarge(size_bytes as u64));
        }
        let mut message = Self::default();
        while let Some((tag, field)) = next_field(&mut bytes)? {
            match (tag, field) {
                (1, Field::Bytes(wantlist)) => message.read_wantlist(wantlist)?,
                (2, Field::Bytes(block)) => message.push_block(Code::Sha2_256, block, size_bytes),
                (3, Field::Bytes(payload)) => message.read_payload(payload, size_bytes)?,
                (4, Field::Bytes(presence)) => message.read_presence(presence)?,
                _ => (),
            }
        }
        Ok(message)
    }

    fn read_wantlist(&mut self, mut bytes: Bytes) -> Result<(), MessageError> {
        while let Some((tag, field)) = next_field(&mut bytes)? {
            match (tag, field) {
                (1, Field::Bytes(entry)) if self.entries.len() < ENTRIES_MAX => {
                    let entry = wire::Entry::decode(entry).map_err(|_| MessageError::Malformed)?;
                    self.entries.extend(entry.read());
                }
                (2, Field::Varint(full)) => self.full = full != 0,
                _ => (),
            }
        }
        Ok(())
    }

    fn read_payload(&mut self, bytes: Bytes, message_bytes: usize) -> Result<(), MessageError> {
        let payload = wire::Payload::decode(bytes).map_err(|_| MessageError::Malformed)?;
        if let Some(hash) = read_prefix(&payload.prefix)? {
            self.push_block(hash, payload.block, message_bytes);
        }
        Ok(())
    }

    fn push_block(&mut self, hash: Code, bytes: Bytes, message_bytes: usize) {
        if self.blocks.len() >= ANSWERS_MAX || bytes.len() > BLOCK_BYTES_MAX {
            return;
        }
        let keeps_too_much = bytes.len().saturating_mul(COPY_RATIO) < message_bytes;
        let bytes = if keeps_too_much { Bytes::copy_from_slice(&bytes) } else { bytes };
        self.blocks.push(UnverifiedBlock { hash, bytes });
    }

    fn read_presence(&mut self, bytes: Bytes) -> Result<(), MessageError> {
        if self.presences.len() >= ANSWERS_MAX {
            return Ok(());
        }
        let presence = wire::Presence::decode(bytes).map_err(|_| MessageError::Malformed)?;
        if let Some(cid) = read_cid(&presence.cid) {
            match presence.kind {
                0 => self.presences.push(Presence::Have(cid)),
                1 => self.presences.push(Presence::DontHave(cid)),
                _ => (),
            }
        }
        Ok(())
    }
}

/// What goes to a peer in one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    pub full: bool,
    pub entries: Vec<Entry>,
    pub presences: Vec<Presence>,
    /// Together at most [`BLOCK_BYTES_MAX`] more than one target size: see [`Outgoing::encode`].
    pub blocks: Vec<(Cid, Bytes)>,
    /// Bytes of blocks that wait to be sent after this message.
    pub pending_bytes: usize,
}

impl Outgoing {
    /// The message with its length prefix, in parts to be written one after the other; large blocks are not copied.
    /// The caller keeps the sum of its parts under [`MESSAGE_BYTES_MAX`].
    pub fn encode(&self, version: Version) -> Vec<Bytes> {
        let head = self.head(version).encode_to_vec();
        let block_heads: Vec<Bytes> =
            self.blocks.iter().map(|(cid, bytes)| block_head(cid, bytes.len(), version)).collect();
        let blocks_bytes: usize =
            self.blocks.iter().zip(&block_heads).map(|((_, bytes), head)| head.len() + bytes.len()).sum();

        let mut first = BytesMut::with_capacity(head.len() + 10);
        put_varint(&mut first, (head.len() + blocks_bytes) as u64);
        first.put_slice(&head);
        let mut parts = Vec::with_capacity(1 + 2 * self.blocks.len());
        for ((_, bytes), block_head) in self.blocks.iter().zip(block_heads) {
            first.put_slice(&block_head);
            if bytes.len() <= JOINED_BYTES_MAX {
                first.put_slice(bytes);
                continue;
            }
            parts.push(std::mem::take(&mut first).freeze());
            parts.push(bytes.clone());
        }
        if !first.is_empty() {
            parts.push(first.freeze());
        }
        parts
    }

    fn head(&self, version: Version) -> wire::Head {
        let entries = self.entries.iter().map(|entry| wire::Entry::write(entry, version)).collect();
        let speaks_presence = version >= Version::V1_2;
        let presences = if speaks_presence { self.presences.as_slice() } else { &[] };
        wire::Head {
            // Also when empty: older readers expect it.
            wantlist: Some(wire::Wantlist { entries, full: self.full }),
            presences: presences.iter().map(wire::Presence::write).collect(),
            pending_bytes: if speaks_presence {
                i32::try_from(self.pending_bytes).unwrap_or(i32::MAX)
            } else {
                0
            },
        }
    }
}

/// The fields before the bytes of a block: all but the bytes themselves.
fn block_head(cid: &Cid, size_bytes: usize, version: Version) -> Bytes {
    let mut head = BytesMut::with_capacity(64);
    if version == Version::V1_0 {
        head.put_u8(2 << 3 | 2);
        put_varint(&mut head, size_bytes as u64);
        return head.freeze();
    }
    let mut prefix = BytesMut::with_capacity(16);
    for part in [u64::from(cid.version()), cid.codec(), cid.hash().code(), u64::from(cid.hash().size())] {
        put_varint(&mut prefix, part);
    }
    let mut fields = BytesMut::with_capacity(32);
    fields.put_u8(1 << 3 | 2);
    put_varint(&mut fields, prefix.len() as u64);
    fields.put_slice(&prefix);
    fields.put_u8(2 << 3 | 2);
    put_varint(&mut fields, size_bytes as u64);

    head.put_u8(3 << 3 | 2);
    put_varint(&mut head, (fields.len() + size_bytes) as u64);
    head.put_slice(&fields);
    head.freeze()
}

/// The hash function that a block's prefix names; `None` when it is not one of ours, or shortened.
fn read_prefix(mut prefix: &[u8]) -> Result<Option<Code>, MessageError> {
    let mut parts = [0; 4]; // CID version, codec, hash function, length of the hash.
    for part in &mut parts {
        let (value, rest) = unsigned_varint::decode::u64(prefix).map_err(|_| MessageError::Malformed)?;
        (*part, prefix) = (value, rest);
    }
    Ok(match Code::try_from(parts[2]) {
        Ok(code @ Code::Sha2_256) if parts[3] == 32 => Some(code),
        Ok(code @ Code::Sha2_512) if parts[3] == 64 => Some(code),
        _ => None,
    })
}

fn read_cid(bytes: &[u8]) -> Option<Cid> {
    let cid = (bytes.len() <= CID_BYTES_MAX).then(|| Cid::try_from(bytes).ok())??;
    (cid.encoded_len() == bytes.len()).then_some(cid)
}

enum Field {
    Varint(u64),
    Bytes(Bytes),
    Fixed,
}

/// Takes the next field of a protobuf message off `bytes`; `None` at its end.
fn next_field(bytes: &mut Bytes) -> Result<Option<(u64, Field)>, MessageError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let key = take_varint(bytes)?;
    let field = match key & 7 {
        0 => Field::Varint(take_varint(bytes)?),
        1 => skip(bytes, 8)?,
        2 => {
            let size_bytes = usize::try_from(take_varint(bytes)?).map_err(|_| MessageError::Truncated)?;
            if size_bytes > bytes.len() {
                return Err(MessageError::Truncated);
            }
            Field::Bytes(bytes.split_to(size_bytes))
        }
        5 => skip(bytes, 4)?,
        _ => return Err(MessageError::Malformed),
    };
    Ok(Some((key >> 3, field)))
}

fn skip(bytes: &mut Bytes, size_bytes: usize) -> Result<Field, MessageError> {
    if size_bytes > bytes.len() {
        return Err(MessageError::Truncated);
    }
    bytes.advance(size_bytes);
    Ok(Field::Fixed)
}

fn take_varint(bytes: &mut Bytes) -> Result<u64, MessageError> {
    let (value, rest_bytes) = match unsigned_varint::decode::u64(bytes) {
        Ok((value, rest)) => (value, rest.len()),
        Err(unsigned_varint::decode::Error::Insufficient) => return Err(MessageError::Truncated),
        Err(_) => return Err(MessageError::Malformed),
    };
    bytes.advance(bytes.len() - rest_bytes);
    Ok(value)
}

fn put_varint(out: &mut BytesMut, value: u64) {
    out.put_slice(unsigned_varint::encode::u64(value, &mut unsigned_varint::encode::u64_buffer()));
}

/// The protobuf messages, but for the blocks of the outer one.
mod wire {
    use bytes::Bytes;

    use super::{Version, WantType, read_cid};

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Head {
        #[prost(message, optional, tag = "1")]
        pub(super) wantlist: Option<Wantlist>,
        #[prost(message, repeated, tag = "4")]
        pub(super) presences: Vec<Presence>,
        #[prost(int32, tag = "5")]
        pub(super) pending_bytes: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Wantlist {
        #[prost(message, repeated, tag = "1")]
        pub(super) entries: Vec<Entry>,
        #[prost(bool, tag = "2")]
        pub(super) full: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Entry {
        #[prost(bytes = "bytes", tag = "1")]
        cid: Bytes,
        #[prost(int32, tag = "2")]
        priority: i32,
        #[prost(bool, tag = "3")]
        cancel: bool,
        #[prost(int32, tag = "4")]
        want_type: i32,
        #[prost(bool, tag = "5")]
        send_dont_have: bool,
    }

    impl Entry {
        pub(super) fn read(self) -> Option<super::Entry> {
            let cid = read_cid(&self.cid)?;
            if self.cancel {
                return Some(super::Entry::Cancel(cid));
            }
            let want_type = if self.want_type == 1 { WantType::Have } else { WantType::Block };
            let (priority, send_dont_have) = (self.priority, self.send_dont_have);
            Some(super::Entry::Want { cid, want_type, priority, send_dont_have })
        }

        pub(super) fn write(entry: &super::Entry, version: Version) -> Self {
            let cid = entry.cid().to_bytes().into();
            match *entry {
                super::Entry::Cancel(_) => Self { cid, cancel: true, ..Self::default() },
                super::Entry::Want { want_type, priority, send_dont_have, .. } => {
                    let presence = version >= Version::V1_2;
                    let want_type = i32::from(presence && want_type == WantType::Have);
                    Self {
                        cid,
                        priority,
                        cancel: false,
                        want_type,
                        send_dont_have: presence && send_dont_have,
                    }
                }
            }
        }
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Payload {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) prefix: Bytes,
        #[prost(bytes = "bytes", tag = "2")]
        pub(super) block: Bytes,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Presence {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) cid: Bytes,
        #[prost(int32, tag = "2")]
        pub(super) kind: i32,
    }

    impl Presence {
        pub(super) fn write(presence: &super::Presence) -> Self {
            match presence {
                super::Presence::Have(cid) => Self { cid: cid.to_bytes().into(), kind: 0 },
                super::Presence::DontHave(cid) => Self { cid: cid.to_bytes().into(), kind: 1 },
            }
        }
    }
}

/// Reads whatever bytes as a message: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    if let Ok(message) = Message::decode(Bytes::copy_from_slice(bytes)) {
        assert!(message.entries.len() <= ENTRIES_MAX);
        assert!(message.presences.len() <= ANSWERS_MAX && message.blocks.len() <= ANSWERS_MAX);
        message.blocks.into_iter().for_each(|block| _ = block.identify());
    }
}

#[cfg(test)]
mod tests;
