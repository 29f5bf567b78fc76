use std::io::Write;

use proptest::prelude::*;

use super::*;

fn archive(bytes: &[u8]) -> Result<Archive, ArchiveError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    Archive::open(file.path())
}

fn content(archive: &Archive, name: &str) -> Option<Vec<u8>> {
    archive.read_small(name, 1000).unwrap()
}

/// A tar archive, with `make` to put members into it.
fn tar_with(make: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    make(&mut builder);
    builder.into_inner().unwrap()
}

fn put(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    // By hand: the crate refuses names that lead out.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content).unwrap();
}

fn link(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    builder.append_link(&mut header, name, target).unwrap();
}

#[test]
fn members_are_found_by_their_shortest_name() {
    let bytes = tar_with(|tar| {
        put(tar, "./blobs/a", b"one");
        put(tar, "b/../c", b"two");
    });
    let archive = archive(&bytes).unwrap();
    assert_eq!(content(&archive, "blobs/a").unwrap(), b"one");
    assert_eq!(content(&archive, "c").unwrap(), b"two");
    assert_eq!(content(&archive, "b"), None);
    let member = archive.find("c").unwrap().unwrap();
    assert_eq!((member.size_bytes, member.label.starts_with("c in ")), (3, true));
}

#[test]
fn names_and_links_that_lead_out_are_no_members() {
    let bytes = tar_with(|tar| {
        put(tar, "kept", b"kept");
        put(tar, "/etc/passwd", b"root");
        put(tar, "../outside", b"out");
        link(tar, tar::EntryType::Symlink, "a/shadow", "../../../etc/shadow");
        link(tar, tar::EntryType::Symlink, "absolute", "/etc/shadow");
        link(tar, tar::EntryType::Symlink, "loop", "loop");
        link(tar, tar::EntryType::Symlink, "a/layer.tar", "../kept");
        link(tar, tar::EntryType::Link, "b/layer.tar", "kept");
    });
    let archive = archive(&bytes).unwrap();
    for name in ["etc/passwd", "/etc/passwd", "../outside", "outside", "a/shadow", "absolute", "loop"] {
        assert_eq!(content(&archive, name), None, "{name}");
    }
    // Within the archive a link stands for what it leads to.
    assert_eq!(content(&archive, "a/layer.tar").unwrap(), b"kept");
    assert_eq!(content(&archive, "b/layer.tar").unwrap(), b"kept");
}

#[test]
fn a_folder_is_not_left_by_a_name() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("in")).unwrap();
    std::fs::write(folder.path().join("secret"), b"x").unwrap();
    let archive = Archive::open(&folder.path().join("in")).unwrap();
    assert_eq!(content(&archive, "../secret"), None);
    assert_eq!(content(&archive, folder.path().join("secret").to_str().unwrap()), None);
}

#[test]
fn sizes_and_headers_that_lie_are_refused() {
    let mut header = tar::Header::new_gnu();
    header.set_path("index.json").unwrap();
    for size in [1 << 20, u64::MAX / 2] {
        header.set_size(size);
        header.set_cksum();
        let error = archive(header.as_bytes()).err().unwrap();
        assert!(matches!(error, ArchiveError::CutShort { .. } | ArchiveError::Unknown(_)), "{error}");
    }

    // A name of some megabytes.
    let mut long = tar::Header::new_gnu();
    long.set_entry_type(tar::EntryType::GNULongName);
    let name = vec![b'a'; 3 << 20];
    long.set_size(name.len() as u64);
    long.set_cksum();
    let bytes = tar_with(|tar| {
        put(tar, "first", b"");
        tar.append(&long, name.as_slice()).unwrap();
        put(tar, "second", b"");
    });
    let error = archive(&bytes).err().unwrap();
    let chain = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(chain.contains("bytes of headers"), "{error}: {chain}");
}

#[test]
fn only_so_much_of_a_member_is_read_to_memory() {
    let archive = archive(&tar_with(|tar| put(tar, "large", &[0; 1001]))).unwrap();
    assert!(matches!(archive.read_small("large", 1000), Err(ArchiveError::TooLarge { .. })));
}

proptest! {
    #[test]
    fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(archive(&bytes).is_err());
    }

    #[test]
    fn a_damaged_archive_never_panics(at in 0_usize..4096, byte in any::<u8>()) {
        let mut bytes = tar_with(|tar| {
            put(tar, "a", &[1; 700]);
            link(tar, tar::EntryType::Symlink, "b", "a");
        });
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(archive) = archive(&bytes) {
            let _ = (archive.read_small("a", 1000), archive.read_small("b", 1000));
        }
    }

    #[test]
    fn names_stay_inside(name in "[a./]{0,12}") {
        if let Some(name) = inner_name(&name) {
            prop_assert!(!name.starts_with('/') && name.split('/').all(|part| part != ".."));
        }
    }
}
