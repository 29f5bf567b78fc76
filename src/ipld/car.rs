//! CARv1 (IPLD specification "Content Addressable aRchives"): blocks with their CIDs, one after the other; and which blocks
//! belong to an answer of the trustless gateway (IPIP-402).

use bytes::{Buf, Bytes, BytesMut};
use cid::Cid;
use ipld_core::ipld::Ipld;

use super::block::{BLOCK_BYTES_MAX, Block, DAG_PB};
use super::dag_pb::Node;
use super::hamt::Fanout;
use super::unixfs::{UnixFs, UnixFsError};

/// How much of what is below a block belongs to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The block alone.
    Block,
    /// The file, or the directory without what it lists.
    Entity,
    /// Everything.
    All,
}

/// The first bytes of an archive with one root.
pub fn header(root: &Cid) -> Bytes {
    let header = Ipld::Map(
        [("roots".to_owned(), Ipld::List(vec![Ipld::Link(*root)])), ("version".to_owned(), Ipld::Integer(1))]
            .into(),
    );
    // A map of a list and a number always has an encoding.
    let header = serde_ipld_dagcbor::to_vec(&header).unwrap_or_default();
    [length(header.len()).as_slice(), &header].concat().into()
}

/// A block as an archive has it: what goes before its bytes, and these.
pub fn entry(block: &Block) -> [Bytes; 2] {
    let cid = block.cid().to_bytes();
    [[length(cid.len() + block.bytes().len()).as_slice(), &cid].concat().into(), block.bytes().clone()]
}

/// The longest header that is read, in bytes: a gateway names one root.
const HEADER_BYTES_MAX: usize = 1024;
/// The longest CID before a block, in bytes.
const CID_BYTES_MAX: usize = 168;
/// The longest length before an entry, in bytes.
const LENGTH_BYTES_MAX: usize = 4;

/// Why bytes are no archive.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CarError {
    #[error("the archive has an entry of {0} bytes, which is more than a block and its CID may have")]
    TooLarge(usize),
    #[error("the archive has no header of version 1")]
    Header,
    #[error("the archive has an entry that does not begin with a CID")]
    Cid,
    #[error("the archive has a length that is no varint of at most {LENGTH_BYTES_MAX} bytes")]
    Length,
    #[error("the archive ends within an entry")]
    Truncated,
}

/// Takes an archive apart as its bytes come; holds one entry at most beyond what was pushed last. What it gives is not
/// verified yet. Roots of the header are not looked at: who asked knows what for.
#[derive(Default)]
pub struct Decoder {
    buffer: BytesMut,
    has_header: bool,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next entry; `Ok(None)`: more bytes are needed. After an error nothing that follows has a meaning.
    pub fn next_entry(&mut self) -> Result<Option<(Cid, Bytes)>, CarError> {
        if !self.has_header {
            let Some(header) = self.next_part(HEADER_BYTES_MAX)? else { return Ok(None) };
            check_header(&header)?;
            self.has_header = true;
        }
        let Some(mut entry) = self.next_part(CID_BYTES_MAX + BLOCK_BYTES_MAX)? else { return Ok(None) };
        let mut rest = entry.as_ref();
        let cid = Cid::read_bytes(&mut rest).map_err(|_| CarError::Cid)?;
        entry.advance(entry.len() - rest.len());
        Ok(Some((cid, entry)))
    }

    /// To be called at the end of the bytes: an archive that was cut off is none.
    pub fn finish(&self) -> Result<(), CarError> {
        if self.has_header && self.buffer.is_empty() { Ok(()) } else { Err(CarError::Truncated) }
    }

    fn next_part(&mut self, bytes_max: usize) -> Result<Option<Bytes>, CarError> {
        let (size, rest) = match unsigned_varint::decode::usize(&self.buffer) {
            Ok(decoded) => decoded,
            Err(unsigned_varint::decode::Error::Insufficient) if self.buffer.len() < LENGTH_BYTES_MAX => {
                return Ok(None);
            }
            Err(_) => return Err(CarError::Length),
        };
        if size > bytes_max {
            return Err(CarError::TooLarge(size));
        }
        if rest.len() < size {
            return Ok(None);
        }
        self.buffer.advance(self.buffer.len() - rest.len());
        Ok(Some(self.buffer.split_to(size).freeze()))
    }
}

fn check_header(header: &[u8]) -> Result<(), CarError> {
    let Ok(Ipld::Map(header)) = serde_ipld_dagcbor::from_slice::<Ipld>(header) else {
        return Err(CarError::Header);
    };
    let is_first_version = header.get("version") == Some(&Ipld::Integer(1));
    if is_first_version { Ok(()) } else { Err(CarError::Header) }
}

/// Reads whatever bytes as an archive, in two pieces: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let mut decoder = Decoder::default();
    for piece in [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]] {
        decoder.push(piece);
        while let Ok(Some((cid, content))) = decoder.next_entry() {
            assert!(content.len() <= CID_BYTES_MAX + BLOCK_BYTES_MAX && cid.encoded_len() <= CID_BYTES_MAX);
        }
    }
    let _whole_or_not = decoder.finish();
}

fn length(bytes: usize) -> Vec<u8> {
    let mut buffer = unsigned_varint::encode::usize_buffer();
    unsigned_varint::encode::usize(bytes, &mut buffer).to_vec()
}

/// The blocks that belong to an answer after `block`, in order, before those below them. A block of another codec than
/// DAG-PB ends its branch.
pub fn below(block: &Block, scope: Scope) -> Result<Vec<Cid>, UnixFsError> {
    if scope == Scope::Block || block.cid().codec() != DAG_PB {
        return Ok(Vec::new());
    }
    if scope == Scope::All {
        let node = Node::decode(block)?;
        return Ok(node.links.into_iter().map(|link| link.cid).collect());
    }
    Ok(match UnixFs::decode(block)? {
        UnixFs::File(file) => file.children.into_iter().map(|child| child.cid).collect(),
        UnixFs::Directory(_) | UnixFs::Symlink(_) => Vec::new(),
        UnixFs::Shard(shard) => {
            let digits = Fanout::new(shard.fanout).map(Fanout::prefix_digits);
            let deeper = shard.links.into_iter().filter(|link| Some(link.name.len()) == digits);
            deeper.map(|link| link.cid).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipld::block::RAW;
    use crate::ipld::dag_pb::Link;
    use crate::ipld::unixfs::{File, FileChild, Shard, encode_directory};

    fn leaf() -> Block {
        Block::encode(RAW, Bytes::from_static(b"hello"))
    }

    fn link(name: &str) -> Link {
        Link { name: name.to_owned(), cid: *leaf().cid(), tsize: 5 }
    }

    #[test]
    fn an_archive_of_one_block_is_as_the_specification_has_it() {
        let leaf = leaf();
        let [before, bytes] = entry(&leaf);
        let archive = [header(leaf.cid()), before, bytes].concat();
        let cid = leaf.cid().to_bytes();
        // {"roots": [42(h'00' + CID)], "version": 1}
        let mut expected = vec![0x3a, 0xa2, 0x65];
        expected.extend(b"roots");
        expected.extend([0x81, 0xd8, 0x2a, 0x58, 0x25, 0x00]);
        expected.extend(&cid);
        expected.push(0x67);
        expected.extend(b"version");
        expected.push(0x01);
        expected.push(36 + 5);
        expected.extend(&cid);
        expected.extend(b"hello");
        assert_eq!(archive, expected);
    }

    #[test]
    fn what_was_written_is_read_in_any_pieces() {
        let (one, other) = (leaf(), encode_directory(vec![link("x")]));
        let archive = [header(one.cid()).as_ref(), &entry(&one).concat(), &entry(&other).concat()].concat();
        for size in [1, 2, 7, archive.len()] {
            let (mut decoder, mut found) = (Decoder::default(), Vec::new());
            for piece in archive.chunks(size) {
                decoder.push(piece);
                while let Some((cid, bytes)) = decoder.next_entry().unwrap() {
                    found.push(Block::verify(cid, bytes).unwrap());
                }
            }
            assert_eq!(found, [one.clone(), other.clone()]);
            assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn what_is_no_archive_or_is_cut_off_is_told_apart() {
        let leaf = leaf();
        let read = |bytes: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            while decoder.next_entry()?.is_some() {}
            decoder.finish()
        };
        let good = [header(leaf.cid()).as_ref(), &entry(&leaf).concat()].concat();
        assert_eq!(read(&good), Ok(()));
        assert_eq!(read(b""), Err(CarError::Truncated));
        for end in 1..good.len() {
            let whole = end == header(leaf.cid()).len();
            assert_eq!(read(&good[..end]), if whole { Ok(()) } else { Err(CarError::Truncated) }, "{end}");
        }
        assert_eq!(read(b"<html><body>not found</body></html>"), Err(CarError::Truncated));
        assert_eq!(read(&[[b'<'; 1].as_slice(), &[b'h'; 60]].concat()), Err(CarError::Header));
        assert_eq!(read(&[0x80; 40]), Err(CarError::Length));
        assert_eq!(read(&[0xff, 0xff, 0x7f]), Err(CarError::TooLarge(0x1f_ffff)));
        let huge = [header(leaf.cid()).as_ref(), &[0xff, 0xff, 0xff, 0x7f]].concat();
        assert_eq!(read(&huge), Err(CarError::TooLarge(0x0fff_ffff)));
        let no_cid = [header(leaf.cid()).as_ref(), &[2, 0xff, 0xff]].concat();
        assert_eq!(read(&no_cid), Err(CarError::Cid));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            fuzz(&bytes);
            fuzz(&[header(leaf().cid()).as_ref(), &bytes].concat());
        }
    }

    #[test]
    fn an_entity_is_a_whole_file_and_a_directory_without_its_entries() {
        let child = FileChild { cid: *leaf().cid(), size_bytes: 5, tsize: 5 };
        let file = File { data: Bytes::new(), children: vec![child.clone(), child] }.encode();
        let directory = encode_directory(vec![link("x")]);
        let shard = Shard {
            bitfield: Bytes::from_static(&[0b11]),
            fanout: 256,
            links: vec![link("00"), link("01x")],
        }
        .encode();
        let counted =
            |scope| [&leaf(), &file, &directory, &shard].map(|block| below(block, scope).unwrap().len());
        assert_eq!(counted(Scope::Block), [0, 0, 0, 0]);
        assert_eq!(counted(Scope::Entity), [0, 2, 0, 1]);
        assert_eq!(counted(Scope::All), [0, 2, 1, 2]);
    }
}
