//! A machine that `shoal setup` is run on: a folder that stands for `/`, and engines that say their versions.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::MIRROR;
use crate::common::files::program_that_says;

/// A machine: its files, and the engines that say their versions.
pub struct Machine {
    folder: TempDir,
}

/// What a command that has ended left.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Machine {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::create_dir_all(folder.path().join("root/etc")).unwrap();
        Self { folder }
    }

    /// Has an engine that says `version`.
    pub fn engine(self, program: &str, version: &str) -> Self {
        program_that_says(&self.folder.path().join("bin").join(program), version);
        self
    }

    /// Has a file; the path is absolute, as the engine knows it.
    pub fn file(self, path: &str, text: &str) -> Self {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// Every file and folder, with the text and mode of files.
    pub fn tree(&self) -> BTreeMap<PathBuf, Option<(String, u32)>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.root()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let content = path.is_file().then(|| {
                    (fs::read_to_string(&path).unwrap(), path.metadata().unwrap().permissions().mode())
                });
                if content.is_none() {
                    folders.push(path.clone());
                }
                found.insert(path.strip_prefix(self.root()).unwrap().to_owned(), content);
            }
        }
        found
    }

    pub fn run(&self, words: &str) -> Ended {
        let output = Command::new(env!("CARGO_BIN_EXE_shoal"))
            .args(words.split(' '))
            .arg("--root")
            .arg(self.root())
            .env("PATH", self.folder.path().join("bin"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// `shoal setup` with the mirror, unasked.
    pub fn setup(&self, words: &str) -> Ended {
        let ended = self.run(&format!("setup {words} --mirror {MIRROR} --yes"));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended
    }

    pub fn undo(&self, engine: &str) -> Ended {
        let ended = self.run(&format!("setup {engine} --undo --yes"));
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended
    }
}
