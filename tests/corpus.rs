//! The inputs that `cargo fuzz` found to matter, and those that once broke something: each is read or refused, without a
//! panic. What finds more of them is `.ci/run fuzz TARGET SECONDS`.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

type Decoder = fn(&[u8]);

/// Each fuzz target, and what it gives its input to.
const DECODERS: [(&str, Decoder); 28] = [
    ("archive", shoal::cli::fuzz),
    ("autonat", shoal::node::fuzz_autonat),
    ("bitswap", shoal::node::bitswap::message::fuzz),
    ("block", shoal::ipld::block::fuzz),
    ("car", shoal::ipld::car::fuzz),
    ("config", shoal::config::fuzz),
    ("credentials", shoal::auth::fuzz),
    ("dag_pb", shoal::ipld::dag_pb::fuzz),
    ("directory", shoal::ipld::directory::fuzz),
    ("docker_archive", shoal::oci::docker_archive::fuzz),
    ("fetch", shoal::node::fuzz_fetch),
    ("hamt", shoal::ipld::hamt::fuzz),
    ("image_layout", shoal::oci::image_layout::fuzz),
    ("ipns", shoal::ipld::ipns::fuzz),
    ("keys", shoal::keystore::fuzz),
    ("kubo", shoal::kubo::fuzz),
    ("layout_names", shoal::oci::layout_names::fuzz),
    ("manifest", shoal::oci::manifest::fuzz),
    ("mesh", shoal::mirror::fuzz),
    ("naming", shoal::naming::fuzz),
    ("path", shoal::ipld::path::fuzz),
    ("range", shoal::oci::range::fuzz),
    ("route", shoal::oci::route::fuzz),
    ("routers", shoal::web::fuzz),
    ("store", shoal::store::fuzz),
    ("swarm_key", shoal::node::fuzz_swarm_key),
    ("unixfs", shoal::ipld::unixfs::fuzz),
    ("upstream", shoal::upstream::fuzz),
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz").join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_input_is_read_or_refused() {
    for (target, decode) in DECODERS {
        let inputs = files(&folder("corpus").join(target));
        assert!(!inputs.is_empty(), "{target} has no inputs");
        for path in inputs {
            let input = fs::read(&path).unwrap();
            assert!(std::panic::catch_unwind(|| decode(&input)).is_ok(), "{} panics", path.display());
        }
    }
}

#[test]
fn every_target_is_here_with_its_inputs() {
    let names = |folder: &Path| -> BTreeSet<String> {
        files(folder).iter().map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    let here: BTreeSet<String> = DECODERS.iter().map(|(target, _)| (*target).to_owned()).collect();
    assert_eq!(names(&folder("targets")), here);
    assert_eq!(names(&folder("corpus")), here);
}
