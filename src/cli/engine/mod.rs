//! The files by which containerd, podman and Docker know their registries, read as those programs read them, and edited
//! as text. Writes nothing: `setup` does.

pub(super) mod certificates;
pub(super) mod containerd;
pub(super) mod daemon_json;
pub(super) mod hosts_toml;
pub(super) mod registries_conf;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use clap::ValueEnum;
use hyper::Uri;
use toml_edit::DocumentMut;

use crate::oci::Host;

/// Whose files they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Engine {
    Containerd,
    Podman,
    Docker,
}

impl Engine {
    pub(super) const ALL: [Self; 3] = [Self::Containerd, Self::Podman, Self::Docker];

    /// The program that says its version.
    pub(super) fn program(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Docker => "dockerd",
        }
    }

    /// What the installed program says of its version; `None` if there is none, or if it cannot be understood.
    pub(super) fn version(self) -> Option<Version> {
        let mut command = Command::new(self.program());
        let output = command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
        String::from_utf8_lossy(&output.stdout).split([' ', ',']).find_map(|word| word.parse().ok())
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Docker => "docker",
        })
    }
}

/// Of a program, as far as its behaviour depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) major: u16,
    pub(super) minor: u16,
}

impl Version {
    pub(super) const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }
}

impl FromStr for Version {
    type Err = ();

    /// Reads `2.1.9+unknown`, `v1.7.24~ds1`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let mut numbers =
            text.strip_prefix('v').unwrap_or(text).split(|letter: char| !letter.is_ascii_digit());
        let mut number = || numbers.next().and_then(|number| number.parse().ok()).ok_or(());
        Ok(Self { major: number()?, minor: number()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Where an engine finds the mirror: a scheme and `HOST:PORT`, without a path, since Docker and podman know none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MirrorUrl {
    https: bool,
    authority: String,
}

impl MirrorUrl {
    /// `HOST:PORT`.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether it speaks HTTP without TLS.
    pub(super) fn is_plain(&self) -> bool {
        !self.https
    }

    /// Whether it is on this machine: engines then do without TLS unasked.
    pub(super) fn is_loopback(&self) -> bool {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        address.map_or(host == "localhost", |address| address.is_loopback())
    }

    /// The same, at an address that can be dialled: a daemon that listens everywhere is reached on this machine.
    pub(super) fn dialled(mut self) -> Self {
        for (everywhere, here) in [("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")] {
            if let Some(port) = self.authority.strip_prefix(everywhere) {
                self.authority = format!("{here}{port}");
            }
        }
        self
    }
}

impl FromStr for MirrorUrl {
    type Err = String;

    /// Without a scheme it is plain HTTP.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a URL such as http://127.0.0.1:5000");
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = whole.parse().map_err(|_| wrong())?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        if uri.path() != "/" || uri.query().is_some() || whole.contains(['@', '#']) {
            return Err(format!("{text:?} has more than HOST:PORT: engines ask at the root, for /v2/"));
        }
        let authority = uri.authority().ok_or_else(wrong)?.as_str().to_ascii_lowercase();
        Ok(Self { https, authority })
    }
}

impl fmt::Display for MirrorUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.https { "https" } else { "http" }, self.authority)
    }
}

/// The folder that stands for `/`.
#[derive(Clone, Debug)]
pub(super) struct Root(PathBuf);

impl Root {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Where a file lies that the engine calls `path`.
    pub(super) fn under(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Why a file cannot be used. It is left as it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not valid: {reason}; it is left as it is", .path.display())]
    Invalid { path: PathBuf, reason: String },
}

/// The text of a file; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, EngineError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(source) => Err(EngineError::Read { path: path.to_owned(), source }),
    }
}

/// The names in a folder, sorted; none if there is no such folder.
pub(super) fn list(folder: &Path) -> Result<Vec<String>, EngineError> {
    let failed = |source| EngineError::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

/// Parses TOML; the reason of a failure is one line, with the number of the line that is wrong.
fn toml(text: &str) -> Result<DocumentMut, String> {
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        let line = error.span().map(|span| text[..span.start].lines().count().max(1));
        let at = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        format!("{at}{}", error.message().lines().collect::<Vec<_>>().join(", "))
    })?;
    // Comments without anything else are the end of the document: what is added goes below them.
    if document.is_empty() && !text.trim().is_empty() {
        document.set_trailing("");
        document.decor_mut().set_prefix(format!("{}\n\n", text.trim_end()));
    }
    Ok(document)
}

/// The URL at which a registry itself is asked, as engines have it: Docker Hub's differs from its name, and one on this
/// machine does without TLS.
pub(super) fn registry_url(registry: &Host) -> String {
    let name = registry.as_str();
    let here = MirrorUrl { https: false, authority: name.to_owned() }.is_loopback();
    match name {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        _ if here => format!("http://{name}"),
        _ => format!("https://{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_a_root() {
        for (text, url) in [
            ("127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("http://Node:5000/", "http://node:5000"),
            ("https://mirror.lan", "https://mirror.lan"),
            ("http://[::1]:5000", "http://[::1]:5000"),
        ] {
            assert_eq!(text.parse::<MirrorUrl>().unwrap().to_string(), url);
        }
        for text in ["", "ftp://a:1", "http://a/v2", "http://a/?x", "http://u:p@a:1", "unix:/run/x", "a b"] {
            assert!(text.parse::<MirrorUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_daemon_that_listens_everywhere_is_reached_here() {
        let dialled = |text: &str| text.parse::<MirrorUrl>().unwrap().dialled().to_string();
        assert_eq!(dialled("0.0.0.0:5000"), "http://127.0.0.1:5000");
        assert_eq!(dialled("https://[::]:5000"), "https://[::1]:5000");
        assert_eq!(dialled("10.0.0.1:5000"), "http://10.0.0.1:5000");
    }

    #[test]
    fn this_machine_is_told_from_others() {
        for (text, here) in [
            ("127.0.0.1:5000", true),
            ("127.1.2.3", true),
            ("localhost:80", true),
            ("[::1]:5000", true),
            ("10.0.0.1:5000", false),
            ("node:5000", false),
        ] {
            assert_eq!(text.parse::<MirrorUrl>().unwrap().is_loopback(), here, "{text}");
        }
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, version) in [("1.6.20~ds1", (1, 6)), ("v2.1.9+unknown", (2, 1)), ("29.0", (29, 0))] {
            assert_eq!(text.parse(), Ok(Version::new(version.0, version.1)));
        }
        for text in ["containerd", "v", "github.com/containerd/containerd", "2"] {
            assert_eq!(text.parse::<Version>(), Err(()), "{text}");
        }
    }
}
