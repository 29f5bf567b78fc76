use proptest::prelude::*;

use super::*;
use crate::ipld::block::{Block, DAG_PB, RAW};

fn block(text: &'static [u8]) -> Block {
    Block::encode(RAW, Bytes::from_static(text))
}

fn outgoing() -> Outgoing {
    let (a, b) = (block(b"a"), block(b"b"));
    Outgoing {
        full: true,
        entries: vec![
            Entry::Want { cid: *a.cid(), want_type: WantType::Have, priority: -3, send_dont_have: true },
            Entry::Cancel(*b.cid()),
        ],
        presences: vec![Presence::Have(*a.cid()), Presence::DontHave(*b.cid())],
        blocks: vec![(*a.cid(), a.into_bytes()), (*b.cid(), b.into_bytes())],
        pending_bytes: 7,
    }
}

/// Encodes, and takes the length prefix off.
fn written(message: &Outgoing, version: Version) -> Bytes {
    let mut bytes = Bytes::from(message.encode(version).concat());
    let size_bytes = take_varint(&mut bytes).unwrap();
    assert_eq!(size_bytes as usize, bytes.len());
    bytes
}

#[test]
fn what_is_written_is_read() {
    let sent = outgoing();
    let read = Message::decode(written(&sent, Version::V1_2)).unwrap();
    assert!(read.full);
    assert_eq!((read.entries, read.presences), (sent.entries, sent.presences));
    let blocks: Vec<_> = read.blocks.into_iter().map(UnverifiedBlock::identify).collect();
    let expected: Vec<_> = sent.blocks.into_iter().map(|(cid, bytes)| (*cid.hash(), bytes)).collect();
    assert_eq!(blocks, expected);
}

/// As go-bitswap writes it, worked out by hand from the protobuf schema.
#[test]
fn the_bytes_are_those_of_the_specification() {
    let a = block(b"a");
    let entry = Entry::Want { cid: *a.cid(), want_type: WantType::Have, priority: 1, send_dont_have: true };
    let message = Outgoing {
        full: true,
        entries: vec![entry],
        blocks: vec![(*a.cid(), Bytes::from_static(b"a"))],
        ..Default::default()
    };
    let mut expected = vec![0x0a, 48, 0x0a, 44, 0x0a, 36];
    expected.extend(a.cid().to_bytes());
    expected.extend([0x10, 1, 0x20, 1, 0x28, 1, 0x10, 1]);
    expected.extend([0x1a, 9, 0x0a, 4, 1, 0x55, 0x12, 32, 0x12, 1, b'a']);
    assert_eq!(written(&message, Version::V1_2), expected);
}

#[test]
fn older_versions_get_no_presences_and_the_oldest_no_prefix() {
    let sent = outgoing();
    for version in [Version::V1_0, Version::V1_1] {
        let bytes = written(&sent, version);
        let read = Message::decode(bytes).unwrap();
        assert!(read.presences.is_empty());
        assert!(matches!(read.entries[0], Entry::Want { want_type: WantType::Block, .. }));
        assert_eq!(read.blocks.len(), 2);
    }
    let blocks = Outgoing { blocks: sent.blocks, ..Outgoing::default() };
    assert_eq!(written(&blocks, Version::V1_0), [0x0a, 0, 0x12, 1, b'a', 0x12, 1, b'b'].as_slice());
}

#[test]
fn large_blocks_are_not_copied() {
    let bytes = Bytes::from(vec![1; 1 << 20]);
    let cid = *Block::encode(DAG_PB, bytes.clone()).cid();
    let message = Outgoing { blocks: vec![(cid, bytes.clone())], ..Outgoing::default() };
    let parts = message.encode(Version::V1_2);
    assert_eq!(parts[1].as_ptr(), bytes.as_ptr());
    let read = Bytes::from(parts.concat()).slice(3..);
    let start = read.as_ptr() as usize;
    let block = Message::decode(read).unwrap().blocks.remove(0);
    assert!((start..start + 100).contains(&(block.bytes.as_ptr() as usize)));
}

#[test]
fn small_blocks_are_written_in_one_part_and_read_as_they_were() {
    let small: Vec<Block> = (0..32).map(|n| Block::encode(RAW, Bytes::from(vec![n; 4096]))).collect();
    let large = Block::encode(RAW, Bytes::from(vec![7; JOINED_BYTES_MAX + 1]));
    let all = small.iter().chain([&large]).chain(&small);
    let blocks: Vec<_> = all.map(|block| (*block.cid(), block.bytes().clone())).collect();
    let message = Outgoing { blocks: blocks.clone(), ..Outgoing::default() };
    assert_eq!(
        message.encode(Version::V1_2).len(),
        3,
        "what is before the large one, itself, what is behind it"
    );
    let read = Message::decode(written(&message, Version::V1_2)).unwrap();
    let read: Vec<_> = read.blocks.into_iter().map(UnverifiedBlock::identify).collect();
    assert_eq!(read, blocks.into_iter().map(|(cid, bytes)| (*cid.hash(), bytes)).collect::<Vec<_>>());
}

#[test]
fn a_small_block_does_not_keep_a_large_message() {
    let (small, large) = (block(b"small"), Bytes::from(vec![0; 1 << 20]));
    let cid = *Block::encode(RAW, large.clone()).cid();
    let blocks = vec![(*small.cid(), small.into_bytes()), (cid, large)];
    let read = written(&Outgoing { blocks, ..Outgoing::default() }, Version::V1_2);
    let range = read.as_ptr_range();
    let message = Message::decode(read.clone()).unwrap();
    assert!(!range.contains(&message.blocks[0].bytes.as_ptr()));
    assert!(range.contains(&message.blocks[1].bytes.as_ptr()));
}

#[test]
fn bounds_are_kept() {
    let too_large = Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1]);
    assert_eq!(Message::decode(too_large), Err(MessageError::TooLarge(MESSAGE_BYTES_MAX as u64 + 1)));

    let cid = *block(b"a").cid();
    let entries = vec![Entry::Cancel(cid); ENTRIES_MAX + 5];
    let read = Message::decode(written(&Outgoing { entries, ..Outgoing::default() }, Version::V1_2)).unwrap();
    assert_eq!(read.entries.len(), ENTRIES_MAX);

    let blocks = vec![(cid, Bytes::from(vec![0; BLOCK_BYTES_MAX + 1]))];
    let read = Message::decode(written(&Outgoing { blocks, ..Outgoing::default() }, Version::V1_2)).unwrap();
    assert!(read.blocks.is_empty());

    // Two million empty blocks: the message is read, and costs nothing.
    let read = Message::decode(Bytes::from([0x12, 0].repeat(MESSAGE_BYTES_MAX / 2))).unwrap();
    assert_eq!(read.blocks.len(), ANSWERS_MAX);
}

#[test]
fn what_cannot_be_used_is_ignored() {
    // An entry with a CID that is none, a block with an unknown hash function, one with a shortened hash.
    let strange = [
        &[0x0a, 6, 0x0a, 4, 0x0a, 2, 0xff, 0xff][..],
        &[0x1a, 11, 0x0a, 6, 1, 0x55, 0xa0, 0xe4, 0x02, 32, 0x12, 1, b'a'],
        &[0x1a, 9, 0x0a, 4, 1, 0x55, 0x12, 20, 0x12, 1, b'a'],
        // Fields of the future.
        &[0x35, 1, 2, 3, 4, 0x39, 1, 2, 3, 4, 5, 6, 7, 8, 0x40, 1],
    ];
    assert_eq!(Message::decode(Bytes::from(strange.concat())), Ok(Message::default()));
}

#[test]
fn what_is_malformed_is_an_error() {
    for (bytes, error) in [
        (&[0x0a, 5, 1][..], MessageError::Truncated),
        (&[0x1a][..], MessageError::Truncated),
        (&[0x39, 1][..], MessageError::Truncated),
        (&[0x0b, 1][..], MessageError::Malformed),
        (&[0xff; 11][..], MessageError::Malformed),
    ] {
        assert_eq!(Message::decode(Bytes::copy_from_slice(bytes)), Err(error), "{bytes:x?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz(&bytes);
    }

    #[test]
    fn damaged_messages_are_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = written(&outgoing(), Version::V1_2).to_vec();
        let position = at.index(bytes.len());
        bytes[position] = byte;
        fuzz(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        fuzz(&bytes);
    }

    #[test]
    fn entries_survive(priority in any::<i32>(), have in any::<bool>(), send_dont_have in any::<bool>(), full in any::<bool>()) {
        let want_type = if have { WantType::Have } else { WantType::Block };
        let entries = vec![Entry::Want { cid: *block(b"a").cid(), want_type, priority, send_dont_have }];
        let read = Message::decode(written(&Outgoing { full, entries: entries.clone(), ..Default::default() }, Version::V1_2)).unwrap();
        prop_assert_eq!((read.full, read.entries), (full, entries));
    }
}
