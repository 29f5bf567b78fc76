//! The folder: who may have it, and whether it is one of ours.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::Fixture;
use crate::store::{Store, StoreError, StoreOptions};

fn open(path: &std::path::Path) -> Result<Store, StoreError> {
    Store::open(path, StoreOptions::default())
}

#[test]
fn a_store_in_use_is_refused_with_folder_and_process() {
    let f = Fixture::new();
    let error = open(f.folder.path()).err().unwrap();
    assert!(matches!(error, StoreError::Locked { .. }));
    let message = error.to_string();
    assert!(message.contains(f.folder.path().to_str().unwrap()), "{message}");
    assert!(message.contains(&std::process::id().to_string()), "{message}");
}

#[test]
fn a_store_of_another_version_is_left_alone() {
    let f = Fixture::new();
    let Fixture { store, folder, .. } = f;
    drop(store);
    fs::write(folder.path().join("FORMAT"), "shoal store 2\n").unwrap();
    let error = open(folder.path()).err().unwrap();
    assert!(matches!(&error, StoreError::Format { found, .. } if found == "shoal store 2\n"), "{error}");
    assert!(error.to_string().contains("another version"));
    assert_eq!(fs::read_to_string(folder.path().join("FORMAT")).unwrap(), "shoal store 2\n");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open(&file.join("store")).err().unwrap();
    assert_eq!(error.to_string(), format!("cannot create {}", file.join("store").display()));
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(folder.path().join("probe"), "").is_ok() {
        eprintln!("NOT CHECKED: this user may write everywhere");
        return;
    }
    let error = open(folder.path()).err().unwrap();
    assert_eq!(error.to_string(), format!("cannot lock {}", folder.path().join("LOCK").display()));
}

#[test]
fn other_files_among_the_packs_do_no_harm() {
    let block = super::block(1, 100);
    let f = Fixture::new();
    f.put(&block);
    let f = f.reopened_after(|folder| {
        fs::write(folder.join("packs/notes.txt"), "mine").unwrap();
        fs::write(folder.join("packs/x.pack"), "mine").unwrap();
    });
    f.assert_has(&block);
    assert_eq!(fs::read_to_string(f.folder.path().join("packs/x.pack")).unwrap(), "mine");
}
