//! The import rules of `src/lib.rs`, and the shape of files, as a test.

#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Who may use whom. `config`, `tasks` and `metrics` are open to all but the pure modules.
const ALLOWED: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("ipld", &[]),
    ("metrics", &[]),
    ("tasks", &[]),
    ("config", &["oci", "ipld"]),
    ("api", &[]),
    ("ipfs", &["ipld"]),
    ("store", &["oci", "ipld"]),
    ("web", &["ipld", "ipfs", "upstream"]),
    ("node", &["ipld", "ipfs", "store", "web"]),
    ("kubo", &["ipld", "ipfs", "store"]),
    ("dag", &["ipld", "ipfs", "store"]),
    ("upstream", &["oci"]),
    ("naming", &["ipld"]),
    ("mirror", &["oci", "ipld", "ipfs", "store", "dag", "upstream", "naming"]),
    ("auth", &["oci"]),
    ("http", &["oci", "ipld", "ipfs", "mirror", "auth", "api"]),
    ("keystore", &["ipld"]),
    ("logging", &[]),
    ("cli", &["config", "keystore", "oci", "api", "kubo"]),
    ("network", &["api", "ipfs", "ipld", "keystore", "kubo", "mirror", "node", "store", "web"]),
];
const PURE: &[&str] = &["oci", "ipld"];
const OPEN: &[&str] = &["config", "tasks", "metrics"];

/// Crates that only some modules may name.
const ONLY_HERE: &[(&str, &[&str])] = &[
    ("sled", &["store"]),
    ("axum", &["http"]),
    ("clap", &["cli"]),
    ("jsonwebtoken", &["auth", "config"]),
    ("indicatif", &["cli"]),
    ("reqwest", &["upstream", "naming", "web", "cli", "kubo"]),
    ("hickory_resolver", &["naming"]),
    ("tar", &["cli"]),
    (
        "tokio",
        &[
            "tasks", "ipfs", "store", "web", "node", "kubo", "dag", "upstream", "naming", "mirror", "http",
            "auth", "cli", "network", "daemon",
        ],
    ),
];

/// A file longer than this wants a room of its own.
const LINES_MAX: usize = 520;

#[test]
fn modules_import_only_what_the_map_allows() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == module) else { continue };
        for used in used_modules(&text) {
            let open = OPEN.contains(&used.as_str()) && !PURE.contains(&module.as_str());
            if used != module && !open && !allowed.contains(&used.as_str()) {
                broken.push(format!("{} uses crate::{used}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "not allowed by the map in src/lib.rs:\n{}", broken.join("\n"));
}

#[test]
fn every_module_is_on_the_map() {
    let known: BTreeSet<&str> =
        ALLOWED.iter().map(|(name, _)| *name).chain(["daemon", "lib", "main"]).collect();
    let found: BTreeSet<String> = sources().map(|(path, _)| module_of(&path)).collect();
    for module in &found {
        assert!(known.contains(module.as_str()), "src/{module} is not on the map");
    }
    let map = fs::read_to_string(root().join("lib.rs")).unwrap();
    for module in found.iter().filter(|module| !["lib", "main"].contains(&module.as_str())) {
        assert!(map.contains(&format!("[`{module}`]")), "src/lib.rs does not describe {module}");
    }
}

#[test]
fn crates_are_named_only_where_they_belong() {
    for (path, text) in sources() {
        let module = module_of(&path);
        let production = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (name, modules) in ONLY_HERE {
            let uses =
                production.contains(&format!("use {name}::")) || production.contains(&format!(" {name}::"));
            let allowed = modules.contains(&module.as_str()) || ["main", "lib"].contains(&module.as_str());
            assert!(!uses || allowed, "{} names {name}", path.display());
        }
    }
}

#[test]
fn files_stay_short_enough_to_read() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= LINES_MAX,
            "{} has {lines} lines; is there a room of its own in it?",
            path.display()
        );
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file, its path relative to `src`.
fn sources() -> impl Iterator<Item = (PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 20, "the sources were not found");
    files.into_iter()
}

fn module_of(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The words after `crate::`, also in `use crate::{a, b::c}`.
fn used_modules(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let group = rest.strip_prefix('{').and_then(|group| group.split('}').next());
        for item in group.map_or_else(|| vec![rest], |group| group.split(',').collect()) {
            let word: String =
                item.trim().chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect();
            if !word.is_empty() {
                used.insert(word);
            }
        }
    }
    used
}
