//! containerd's own configuration, as far as it says where `hosts.toml` files are looked for (containerd,
//! docs/cri/registry.md and docs/man/containerd-config.toml.5.md), and their order there.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};
use wildmatch::WildMatch;

use super::{EngineError, Root, Version, hosts_toml, list, read, toml};
use crate::oci::Host;

pub(in crate::cli) const CONFIG: &str = "/etc/containerd/config.toml";
/// Where nearly everybody has them.
pub(in crate::cli) const HOSTS_DIR: &str = "/etc/containerd/certs.d";
const DEFAULT: &str = "_default";
/// Files that one config may import, itself included.
const FILES_MAX: usize = 256;

/// The plugins that pull for CRI: of version 3, 2 and 1 of the config.
const CRI: [&str; 3] = ["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri", "cri"];
/// The one that pulls for `ctr` and nerdctl, from containerd 2 on.
const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// The first containerd that merges the tables of a plugin which several files have; before, the last file's replaced
/// the others.
const MERGES_SINCE: Version = Version::new(2, 0);

/// A setting, and the file that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Setting {
    pub(in crate::cli) value: String,
    pub(in crate::cli) file: PathBuf,
}

/// What the config, with all that it imports, says of registries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct ContainerdConfig {
    /// Whether there is a config at all.
    exists: bool,
    /// The file in which `config_path` is to be set.
    pub(in crate::cli) file: PathBuf,
    /// Of the schema, by the main file.
    version: Option<i64>,
    /// `config_path` of the CRI plugin: folders with a colon between them. Never empty.
    pub(in crate::cli) cri: Option<Setting>,
    /// `config_path` of the transfer service. Never empty.
    pub(in crate::cli) transfer: Option<Setting>,
    /// A file with `registry.mirrors` or the like, beside which CRI refuses a `config_path`.
    pub(in crate::cli) old_style: Option<PathBuf>,
}

impl ContainerdConfig {
    /// Reads the file that containerd calls `path`, and what it imports, as the containerd of `version` does, or else
    /// the newest. Of a key that several files have, the last counts.
    pub(in crate::cli) fn load(
        root: &Root,
        path: &Path,
        version: Option<Version>,
    ) -> Result<Self, EngineError> {
        let merges = version.is_none_or(|version| version >= MERGES_SINCE);
        let mut config = Self { file: root.under(path), ..Self::default() };
        let mut seen: Vec<PathBuf> = Vec::new();
        let mut waiting = VecDeque::from([root.under(path)]);
        while let Some(file) = waiting.pop_front() {
            let file = file.canonicalize().unwrap_or(file);
            if seen.contains(&file) {
                continue;
            }
            if seen.len() == FILES_MAX {
                let reason = format!("it imports more than {FILES_MAX} files");
                return Err(EngineError::Invalid { path: root.under(path), reason });
            }
            seen.push(file.clone());
            let Some(text) = read(&file)? else { continue };
            let document =
                toml(&text).map_err(|reason| EngineError::Invalid { path: file.clone(), reason })?;
            if seen.len() == 1 {
                config.exists = true;
                config.version = document.get("version").and_then(Item::as_integer);
            }
            config.take(&document, &file, merges);
            for pattern in document.get("imports").and_then(Item::as_array).into_iter().flatten() {
                waiting.extend(imported(root, &file, pattern.as_str().unwrap_or_default())?);
            }
        }
        Ok(config)
    }

    fn take(&mut self, document: &DocumentMut, file: &Path, merges: bool) {
        let plugin = |name: &str| document.get("plugins").and_then(|plugins| plugins.get(name));
        let setting = |item: Option<&Item>| {
            let value = item.and_then(Item::as_str).filter(|value| !value.is_empty())?;
            Some(Setting { value: value.to_owned(), file: file.to_owned() })
        };
        for cri in CRI.iter().filter_map(|name| plugin(name)) {
            if !merges {
                (self.cri, self.old_style, self.file) = (None, None, file.to_owned());
            }
            let Some(registry) = cri.get("registry") else { continue };
            self.cri = setting(registry.get("config_path")).or(self.cri.take());
            if ["mirrors", "configs"].iter().any(|key| registry.get(key).is_some_and(has_content)) {
                self.old_style = Some(file.to_owned());
            }
        }
        let transfer = plugin(TRANSFER).and_then(|plugin| plugin.get("config_path"));
        self.transfer = setting(transfer).or(self.transfer.take());
    }

    /// The folders that are looked through for a registry; none if `config_path` is not set.
    pub(in crate::cli) fn folders(&self) -> Vec<PathBuf> {
        let setting = self.cri.as_ref().or(self.transfer.as_ref());
        let value = setting.map(|setting| setting.value.as_str()).unwrap_or_default();
        value.split(':').filter(|folder| !folder.is_empty()).map(PathBuf::from).collect()
    }

    /// The lines that set `config_path` to `folder`, for a config of this one's version, or of the newest.
    pub(in crate::cli) fn lines(&self, folder: &Path) -> String {
        let plugin = match self.version {
            Some(version) if version >= 3 => CRI[0],
            _ if self.exists => CRI[1],
            _ => return format!("version = 2\n{}", section(CRI[1], folder)),
        };
        section(plugin, folder)
    }
}

fn section(plugin: &str, folder: &Path) -> String {
    format!("[plugins.\"{plugin}\".registry]\n  config_path = \"{}\"", folder.display())
}

fn has_content(item: &Item) -> bool {
    item.as_table_like().is_some_and(|table| !table.is_empty())
}

/// The files that one word of `imports` means: a path, from the importing file's folder on, with `*` in its last part.
fn imported(root: &Root, importing: &Path, pattern: &str) -> Result<Vec<PathBuf>, EngineError> {
    let path = Path::new(pattern);
    let path = match importing.parent() {
        Some(folder) if path.is_relative() => folder.join(path),
        _ => root.under(path),
    };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    if !name.contains(['*', '?']) {
        return Ok(vec![path]);
    }
    let matching = WildMatch::new(name);
    let names = list(folder)?.into_iter().filter(|name| matching.matches(name));
    Ok(names.map(|name| folder.join(name)).collect())
}

/// The folder for registries that have none of their own.
pub(in crate::cli) fn default_folder(config_path: &Path) -> PathBuf {
    config_path.join(DEFAULT)
}

/// The folders of a registry below a `config_path`, in the order in which containerd looks for them; the first that is
/// there is the only one that counts.
pub(in crate::cli) fn host_folders(config_path: &Path, registry: &Host) -> Vec<PathBuf> {
    let name = registry.as_str();
    let mut names = vec![name.to_owned(), DEFAULT.to_owned()];
    if let Some((host, port)) = name.split_once(':') {
        names.insert(0, format!("{host}_{port}_"));
    }
    names.into_iter().map(|name| config_path.join(name)).collect()
}

/// The folder that counts for a registry; `None` if there is none, not even `_default`.
pub(in crate::cli) fn host_folder(config_path: &Path, registry: &Host) -> Option<PathBuf> {
    host_folders(config_path, registry).into_iter().find(|folder| folder.is_dir())
}

/// Certificates in a registry's folder, which containerd takes only while there is no `hosts.toml` beside them.
pub(in crate::cli) fn certificates(folder: &Path) -> Result<Vec<String>, EngineError> {
    let names = list(folder)?;
    if names.iter().any(|name| name == hosts_toml::FILE) {
        return Ok(Vec::new());
    }
    let is_certificate = |name: &String| [".crt", ".cert", ".key"].iter().any(|end| name.ends_with(end));
    Ok(names.into_iter().filter(is_certificate).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(files: &[(&str, &str)]) -> ContainerdConfig {
        loaded_by(None, files)
    }

    fn loaded_by(version: Option<Version>, files: &[(&str, &str)]) -> ContainerdConfig {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        ContainerdConfig::load(&Root::new(folder.path().to_owned()), Path::new(CONFIG), version).unwrap()
    }

    #[test]
    fn config_path_is_found_in_every_version_of_the_schema() {
        for section in [
            "[plugins.cri.registry]",
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]",
            "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]",
        ] {
            let config = loaded(&[("etc/containerd/config.toml", &format!("{section}\nconfig_path = '/a'"))]);
            assert_eq!(config.folders(), [PathBuf::from("/a")], "{section}");
        }
        let empty = loaded(&[("etc/containerd/config.toml", "[plugins.cri.registry]\nconfig_path = ''")]);
        assert!(empty.folders().is_empty());
        assert!(loaded(&[]).folders().is_empty());
    }

    #[test]
    fn what_is_imported_goes_before() {
        let cri = |path: &str| {
            format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = '{path}'\n")
        };
        let config = loaded(&[
            (
                "etc/containerd/config.toml",
                &format!("imports = ['/etc/containerd/conf.d/*.toml', 'b.toml']\n{}", cri("/a")),
            ),
            ("etc/containerd/conf.d/1.toml", &cri("/b")),
            ("etc/containerd/conf.d/2.toml", "imports = ['../config.toml']"),
            ("etc/containerd/conf.d/3.txt", &cri("/c")),
        ]);
        assert_eq!(config.folders(), [PathBuf::from("/b")]);
        assert!(config.cri.unwrap().file.ends_with("conf.d/1.toml"));
    }

    #[test]
    fn before_2_0_a_plugin_in_an_imported_file_takes_the_place_of_the_whole() {
        let files = [
            (
                "etc/containerd/config.toml",
                "imports = ['a.toml']\n[plugins.cri.registry]\nconfig_path = '/a'\n",
            ),
            ("etc/containerd/a.toml", "[plugins.cri]\nsandbox_image = 'x'\n"),
        ];
        assert!(loaded_by(Some(Version::new(1, 7)), &files).folders().is_empty());
        assert_eq!(loaded_by(Some(Version::new(2, 0)), &files).folders(), [PathBuf::from("/a")]);
    }

    #[test]
    fn the_transfer_service_and_mirrors_of_old_are_seen() {
        let config = loaded(&[(
            "etc/containerd/config.toml",
            "version = 3\n[plugins.'io.containerd.transfer.v1.local']\nconfig_path = '/t'\n\
             [plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['http://x']\n",
        )]);
        assert_eq!(config.transfer.as_ref().unwrap().value, "/t");
        assert_eq!(config.folders(), [PathBuf::from("/t")]);
        assert!(config.old_style.is_some());
    }

    #[test]
    fn a_registry_with_a_port_has_two_names_of_folders() {
        let folders = host_folders(Path::new("/c"), &"localhost:5000".parse().unwrap());
        assert_eq!(folders, ["/c/localhost_5000_", "/c/localhost:5000", "/c/_default"].map(PathBuf::from));
        let folders = host_folders(Path::new("/c"), &"docker.io".parse().unwrap());
        assert_eq!(folders, ["/c/docker.io", "/c/_default"].map(PathBuf::from));
    }
}
