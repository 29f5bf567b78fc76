//! Images in files, and the commands that move them.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reqwest::StatusCode;
use serde_json::{Value, json};
use shoal::oci::{Digest, storage};
use tempfile::TempDir;

use super::{Daemon, IMAGE_MANIFEST, Image};

pub const IMAGE_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What came of a command.
#[derive(Debug)]
pub struct Ran {
    pub ok: bool,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    /// The lines of `--json`.
    pub fn events(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// How many blobs were moved, found there, and taken from other repositories.
    pub fn blobs(&self) -> (u64, u64, u64) {
        assert!(self.ok, "{}", self.stderr);
        let done = self.events().pop().unwrap();
        assert_eq!(done["event"], "done");
        let count = |name: &str| done[name].as_u64().unwrap();
        (count("blobs_moved"), count("blobs_present"), count("blobs_mounted"))
    }

    /// The command failed, and said this.
    pub fn failed_with(&self, said: &str) {
        let stdout = String::from_utf8_lossy(&self.stdout);
        assert!(!self.ok && self.stderr.contains(said), "{}\n{stdout}", self.stderr);
    }
}

/// Runs `shoal COMMAND ARGUMENTS…` against a daemon.
pub fn shoal<S: AsRef<OsStr>>(daemon: &Daemon, arguments: impl IntoIterator<Item = S>) -> Ran {
    shoal_fed(daemon, arguments, &[])
}

/// The same, with standard input.
pub fn shoal_fed<S: AsRef<OsStr>>(
    daemon: &Daemon,
    arguments: impl IntoIterator<Item = S>,
    input: &[u8],
) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_shoal"))
        .args(arguments)
        .arg("--config")
        .arg(daemon.config())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A command that does not read it closes it.
        scope.spawn(move || stdin.write_all(input).ok());
        let output = child.wait_with_output().unwrap();
        Ran {
            ok: output.status.success(),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    })
}

/// A path as an argument.
pub fn path_in(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

/// The digest that a tag leads to.
pub async fn digest_of(daemon: &Daemon, repo: &str, tag: &str) -> Digest {
    let answer = daemon.get(&format!("{repo}/manifests/{tag}")).await;
    assert_eq!(answer.status(), StatusCode::OK, "{repo}:{tag}");
    answer.headers()["docker-content-digest"].to_str().unwrap().parse().unwrap()
}

pub fn write(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// Makes a program that says `words`. Another process writes it: a child that this one has just forked would keep the
/// file open for writing, and nobody can run it then.
pub fn program_that_says(path: &Path, words: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let script = "printf '#!/bin/sh\\necho \"%s\"\\n' \"$1\" >\"$0\" && chmod +x \"$0\"";
    let written = Command::new("sh").arg("-c").arg(script).arg(path).arg(words).status().unwrap();
    assert!(written.success());
}

pub fn blob_path(layout: &Path, content: &[u8]) -> PathBuf {
    layout.join("blobs/sha256").join(Digest::sha256(content).hex())
}

/// An index of images, one for each architecture.
pub fn index_of(images: &[(&str, &Image)]) -> Vec<u8> {
    let entries: Vec<Value> = images
        .iter()
        .map(|(architecture, image)| {
            json!({"mediaType": IMAGE_MANIFEST, "digest": Digest::sha256(&image.manifest).to_string(),
                "size": image.manifest.len(), "platform": {"os": "linux", "architecture": architecture}})
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries});
    serde_json::to_vec(&index).unwrap()
}

/// An OCI layout with these images; `tops` are the manifests or indexes that are tagged.
pub fn write_layout(folder: &Path, images: &[&Image], tops: &[(&str, &[u8])]) {
    write(&folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#);
    for image in images {
        for content in image.blobs.iter().chain([&image.manifest]) {
            write(&blob_path(folder, content), content);
        }
    }
    let mut entries = Vec::new();
    for (tag, top) in tops {
        write(&blob_path(folder, top), top);
        let parsed: Value = serde_json::from_slice(top).unwrap();
        entries.push(json!({"mediaType": parsed["mediaType"], "digest": Digest::sha256(top).to_string(),
            "size": top.len(), "annotations": {"org.opencontainers.image.ref.name": tag}}));
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    write(&folder.join("index.json"), index.to_string().as_bytes());
}

/// The digests that a layout names, by tag.
pub fn tags_of(layout: &Path) -> Vec<(String, String)> {
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let entries = index["manifests"].as_array().unwrap().iter();
    entries
        .map(|entry| {
            (text(&entry["annotations"]["org.opencontainers.image.ref.name"]), text(&entry["digest"]))
        })
        .collect()
}

/// Every file below a folder with its content, by name.
pub fn files_below(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let (mut files, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.push((path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// A tar archive of these members.
pub fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A tar archive of a folder.
pub fn tar_of(folder: &Path) -> Vec<u8> {
    let files = files_below(folder);
    let named = files.iter().map(|(path, content)| (path.to_str().unwrap(), content.as_slice()));
    tar(&named.collect::<Vec<_>>())
}

pub fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// What `docker save` makes of an image with these layers, unpacked.
pub fn docker_archive(layers: &[Vec<u8>], names: &[&str]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::sha256(layer).to_string()).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", Digest::sha256(&config).hex());
    let layer_names: Vec<String> = (0..layers.len()).map(|n| format!("layer-{n}/layer.tar")).collect();
    let index = json!([{"Config": config_name, "RepoTags": names, "Layers": layer_names}]).to_string();
    let mut members: Vec<(&str, &[u8])> = vec![(&config_name, &config)];
    members.extend(layer_names.iter().zip(layers).map(|(name, layer)| (name.as_str(), layer.as_slice())));
    // The index comes last, as in what Docker writes.
    members.push(("manifest.json", index.as_bytes()));
    tar(&members)
}

/// The folder of a stock registry, written by hand.
pub struct StockRegistry<'a>(pub &'a Path);

impl StockRegistry<'_> {
    pub fn write(&self, path: &str, content: &[u8]) {
        write(&self.0.join(path), content);
    }

    /// An image with a tag, or without one.
    pub fn image(&self, repo: &str, tag: Option<&str>, image: &Image) {
        let repo = repo.parse().unwrap();
        for blob in &image.blobs {
            let digest = Digest::sha256(blob);
            self.write(&storage::blob_data(&digest), blob);
            self.write(&storage::layer_link(&repo, &digest), digest.to_string().as_bytes());
        }
        let digest = Digest::sha256(&image.manifest);
        let link = digest.to_string();
        self.write(&storage::blob_data(&digest), &image.manifest);
        self.write(&storage::revision_link(&repo, &digest), link.as_bytes());
        if let Some(tag) = tag.map(|tag| tag.parse().unwrap()) {
            self.write(&storage::tag_index_link(&repo, &tag, &digest), link.as_bytes());
            self.write(&storage::tag_link(&repo, &tag), link.as_bytes());
        }
    }
}
