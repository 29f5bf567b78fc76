//! Folders that a crash, a disk or a person has damaged.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;

use super::{Fixture, KEY_BYTES, OVERHEAD_BYTES, block, blocks, packs, remove_index};
use crate::ipld::Block;
use crate::ipld::block::RAW;
use crate::store::StoreError;
use crate::store::record::{HEADER_BYTES, Header, Kind};

const BODY_BYTES: usize = 500;
const RECORD_BYTES: usize = OVERHEAD_BYTES + BODY_BYTES;

fn three() -> (Fixture, Vec<Block>) {
    let f = Fixture::new();
    let all = blocks(3, BODY_BYTES);
    f.put_all(&all);
    (f, all)
}

fn overwrite(path: &Path, at: usize, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at as u64).unwrap();
}

fn flip(path: &Path, at: usize) {
    let byte = fs::read(path).unwrap()[at];
    overwrite(path, at, &[!byte]);
}

#[test]
fn a_missing_index_is_rebuilt() {
    let (f, all) = three();
    f.blocks().remove(all[1].cid().hash()).unwrap();
    let f = f.reopened_after(remove_index);
    f.assert_has(&all[0]);
    f.assert_has(&all[2]);
    f.assert_lacks(&all[1]);
    f.assert_counts();
    f.put(&all[1]);
    f.reopened_after(remove_index).assert_has(&all[1]);
}

#[test]
fn a_last_record_that_is_torn_is_cut_off_and_nothing_else() {
    let within = [0, 1, 4, 5, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + KEY_BYTES - 1, OVERHEAD_BYTES];
    for kept in within.into_iter().chain([OVERHEAD_BYTES + 1, RECORD_BYTES / 2, RECORD_BYTES - 1]) {
        for with_index in [true, false] {
            let (f, all) = three();
            let f = f.reopened_after(|folder| {
                let file = fs::File::options().write(true).open(&packs(folder)[0]).unwrap();
                file.set_len((2 * RECORD_BYTES + kept) as u64).unwrap();
                if !with_index {
                    remove_index(folder);
                }
            });
            f.assert_has(&all[0]);
            f.assert_has(&all[1]);
            f.assert_lacks(&all[2]);
            f.assert_counts();
            assert_eq!(f.packs()[0].metadata().unwrap().len(), 2 * RECORD_BYTES as u64, "{kept} bytes left");
            f.put(&all[2]);
            let f = f.reopened();
            all.iter().for_each(|block| f.assert_has(block));
            f.assert_counts();
        }
    }
}

#[test]
fn junk_behind_the_last_record_is_cut_off() {
    let next = block(9, BODY_BYTES);
    let header = Header {
        kind: Kind::Live,
        key: *next.cid().hash(),
        body_bytes: BODY_BYTES as u32,
        body_crc: crc32fast::hash(next.bytes()),
    };
    let whole = [header.encode(), next.bytes().to_vec()].concat();
    let mut unwritten = whole.clone();
    unwritten[OVERHEAD_BYTES + 100..].fill(0);
    for junk in
        [&[0; 5000][..], b"x", b"shB1", b"shB1shB1", &whole[..OVERHEAD_BYTES], &whole[..RECORD_BYTES - 1]]
            .into_iter()
            .chain([unwritten.as_slice()])
    {
        for with_index in [true, false] {
            let (f, all) = three();
            let f = f.reopened_after(|folder| {
                overwrite(&packs(folder)[0], 3 * RECORD_BYTES, junk);
                if !with_index {
                    remove_index(folder);
                }
            });
            all.iter().for_each(|block| f.assert_has(block));
            f.assert_lacks(&next);
            f.assert_counts();
            assert_eq!(f.packs()[0].metadata().unwrap().len(), 3 * RECORD_BYTES as u64, "{junk:?}");
        }
    }
    let (f, _) = three();
    let f = f.reopened_after(|folder| overwrite(&packs(folder)[0], 3 * RECORD_BYTES, &whole));
    f.assert_has(&next);
    f.assert_counts();
}

#[test]
fn a_damaged_block_is_an_error_and_its_neighbours_are_not() {
    for at in (0..OVERHEAD_BYTES).step_by(3).chain([OVERHEAD_BYTES, RECORD_BYTES - 1]) {
        let (f, all) = three();
        let f = f.reopened_after(|folder| flip(&packs(folder)[0], RECORD_BYTES + at));
        let error = f.blocks().get(all[1].cid().hash()).unwrap_err();
        assert!(
            matches!(error, StoreError::Corrupt { offset, .. } if offset == RECORD_BYTES as u64),
            "{error}"
        );
        assert!(error.to_string().contains("00000000.pack"), "{error}");
        f.assert_has(&all[0]);
        f.assert_has(&all[2]);
        assert!(f.blocks().remove(all[1].cid().hash()).unwrap());
        f.put(&all[1]);
        f.assert_has(&all[1]);
    }
}

#[test]
fn a_damaged_block_is_left_out_when_the_index_is_rebuilt() {
    for at in (0..OVERHEAD_BYTES).step_by(3).chain([OVERHEAD_BYTES, RECORD_BYTES - 1]) {
        let (f, all) = three();
        let f = f.reopened_after(|folder| {
            flip(&packs(folder)[0], RECORD_BYTES + at);
            remove_index(folder);
        });
        f.assert_has(&all[0]);
        f.assert_has(&all[2]);
        f.assert_lacks(&all[1]);
        f.assert_counts();
        f.put(&all[1]);
        f.reopened().assert_has(&all[1]);
    }
}

#[test]
fn a_record_inside_of_a_block_is_no_record() {
    let good = Block::encode(RAW, (&b"good"[..]).into());
    let forged = Header {
        kind: Kind::Live,
        key: *good.cid().hash(),
        body_bytes: 4,
        body_crc: crc32fast::hash(b"evil"),
    };
    let host = Block::encode(RAW, [b"xx", &forged.encode()[..], b"evil", &[7; 200]].concat().into());
    let after = block(2, 100);
    let f = Fixture::new();
    f.put_all(&[block(1, 100), host.clone(), after.clone()]);
    let f = f.reopened_after(|folder| {
        flip(&packs(folder)[0], OVERHEAD_BYTES + 100);
        remove_index(folder);
    });
    f.assert_has(&block(1, 100));
    f.assert_has(&after);
    f.assert_lacks(&good);
    f.assert_lacks(&host);
}

#[test]
fn blocks_of_a_segment_that_is_gone_are_absent_and_can_be_put_again() {
    let f = Fixture::with_segments(4000);
    let all = blocks(40, BODY_BYTES);
    f.put_all(&all);
    let f = f.reopened_after(|folder| fs::remove_file(&packs(folder)[1]).unwrap());
    let (gone, here): (Vec<_>, Vec<_>) =
        all.iter().partition(|block| f.blocks().get(block.cid().hash()).unwrap().is_none());
    assert_eq!(gone.len(), 4000 / RECORD_BYTES);
    gone.iter().for_each(|block| f.assert_lacks(block));
    here.iter().for_each(|block| f.assert_has(block));
    f.assert_counts();
    gone.iter().for_each(|block| f.put(block));
    let f = f.reopened();
    all.iter().for_each(|block| f.assert_has(block));
    f.assert_counts();
}

#[test]
fn all_packs_gone_is_an_empty_store() {
    let (f, all) = three();
    let f = f.reopened_after(|folder| fs::remove_dir_all(folder.join("packs")).unwrap());
    all.iter().for_each(|block| f.assert_lacks(block));
    f.assert_counts();
    f.put_all(&all);
    all.iter().for_each(|block| f.crashed().assert_has(block));
}

#[test]
fn a_segment_that_goes_under_a_running_store_is_an_error() {
    let (f, all) = three();
    let segment = f.blocks().0.packs.all().pop().unwrap();
    f.blocks().0.packs.delete(&segment).unwrap();
    let error = f.blocks().get(all[0].cid().hash()).unwrap_err();
    assert!(matches!(error, StoreError::Dangling { segment: 0, .. }), "{error}");
}

#[test]
fn every_file_of_the_index_may_be_emptied_or_torn() {
    let (f, _) = three();
    let Fixture { store, folder, .. } = f;
    store.close().unwrap();
    drop(store);
    let files: Vec<_> = fs::read_dir(folder.path().join("index"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().is_file())
        .map(|entry| entry.file_name())
        .collect();
    assert!(files.len() >= 2, "{files:?}");
    for name in files {
        for keep in [0, 1, 2] {
            let (f, all) = three();
            let f = f.reopened_after(|folder| {
                // The name of a snapshot depends on what is in it, which is the same in each store of three.
                let path = folder.join("index").join(&name);
                let bytes = fs::read(&path).unwrap_or_default();
                fs::write(&path, &bytes[..bytes.len() * keep / 3]).unwrap();
            });
            all.iter().for_each(|block| f.assert_has(block));
            f.assert_counts();
        }
    }
}

#[test]
fn an_index_that_is_no_database_is_moved_aside() {
    let (f, all) = three();
    let f = f.reopened_after(|folder| {
        for entry in fs::read_dir(folder.join("index")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::write(path, vec![0xa5; 300_000]).unwrap();
            }
        }
    });
    all.iter().for_each(|block| f.assert_has(block));
    assert!(f.folder.path().join("index.broken").is_dir());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn an_overwritten_index_loses_no_block(
        file in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        noise in proptest::collection::vec(any::<u8>(), 1..3000),
    ) {
        let f = Fixture::with_segments(20_000);
        let all = blocks(200, 300);
        f.put_all(&all[..100]);
        f.put_all(&all[100..]);
        let f = f.reopened_after(|folder| {
            let mut files: Vec<_> = fs::read_dir(folder.join("index")).unwrap()
                .map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
            files.sort();
            let path = &files[file.index(files.len())];
            let length = usize::try_from(path.metadata().unwrap().len()).unwrap();
            overwrite(path, at.index(length.max(1)), &noise);
        });
        all.iter().for_each(|block| f.assert_has(block));
        f.assert_counts();
    }

    #[test]
    fn a_pack_overwritten_anywhere_loses_only_what_lay_there(
        at in 0..10 * RECORD_BYTES,
        noise in proptest::collection::vec(any::<u8>(), 1..1200),
    ) {
        let f = Fixture::new();
        let all = blocks(10, BODY_BYTES);
        f.put_all(&all);
        let f = f.reopened_after(|folder| {
            let noise = &noise[..noise.len().min(10 * RECORD_BYTES - at)];
            overwrite(&packs(folder)[0], at, noise);
            remove_index(folder);
        });
        for (n, block) in all.iter().enumerate() {
            let touched = n * RECORD_BYTES < at + noise.len() && at < (n + 1) * RECORD_BYTES;
            let found = f.blocks().get(block.cid().hash()).unwrap();
            prop_assert!(found.as_ref() == Some(block.bytes()) || touched && found.is_none(), "block {n}");
        }
        f.assert_counts();
    }
}
