//! Files that are changed: shown as a diff, kept beside the new one, written whole, and brought back.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use similar::TextDiff;

use crate::cli::engine::{EngineError, read};

/// Beside a file that was changed: what it was before the first change.
const BACKUP: &str = ".shoal-backup";
/// Beside a file that was made: how many folders were made for it.
const MADE: &str = ".shoal-made";
/// Of files that were made; those that were changed keep theirs.
const MODE: u32 = 0o644;

/// Why a file could not be changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", .path.display())]
pub(super) struct ChangeError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is to become of a file. `None` stands for no file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    path: PathBuf,
    before: Option<String>,
    after: Option<String>,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// A new text, the old one kept if it is the first time.
    Write,
    /// Back to what was kept.
    Restore,
    /// Away with what was made.
    Remove,
}

impl Change {
    /// `after` in the place of `before`, which is what is there.
    pub(super) fn write(path: PathBuf, before: Option<String>, after: String) -> Self {
        Self { path, before, after: Some(after), kind: Kind::Write }
    }

    /// Undoes all changes to a file; `None` if there were none.
    pub(super) fn undo(path: PathBuf) -> Result<Option<Self>, EngineError> {
        let before = read(&path)?;
        if let Some(kept) = read(&beside(&path, BACKUP))? {
            return Ok(Some(Self { path, before, after: Some(kept), kind: Kind::Restore }));
        }
        let made = read(&beside(&path, MADE))?.is_some();
        Ok(made.then_some(Self { path, before, after: None, kind: Kind::Remove }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is anything to do.
    pub(super) fn is_needed(&self) -> bool {
        self.kind != Kind::Write || self.before != self.after
    }

    /// As `diff -u` shows it.
    pub(super) fn diff(&self) -> String {
        let path = self.path.display().to_string();
        let name =
            |text: &Option<String>| text.as_ref().map_or_else(|| "/dev/null".to_owned(), |_| path.clone());
        let (before, after) = (name(&self.before), name(&self.after));
        let diff = TextDiff::from_lines(text(&self.before), text(&self.after));
        let lines = diff.unified_diff().context_radius(3).header(&before, &after).to_string();
        if lines.is_empty() { format!("--- {before}\n+++ {after}\n") } else { lines }
    }

    /// Does it. A file is always whole, the old or the new one.
    fn apply(&self) -> Result<(), ChangeError> {
        let failed = |source| ChangeError { path: self.path.clone(), source };
        match (&self.kind, &self.after) {
            (Kind::Write, Some(text)) => self.write_text(text),
            (Kind::Restore, _) => fs::rename(beside(&self.path, BACKUP), resolved(&self.path)),
            (Kind::Remove | Kind::Write, _) => self.remove(),
        }
        .map_err(failed)
    }

    fn write_text(&self, text: &str) -> io::Result<()> {
        let (made, backup) = (beside(&self.path, MADE), beside(&self.path, BACKUP));
        let folders = make_folders(&self.path)?;
        // What is kept is what was there before the first change.
        if !made.exists() && !backup.exists() {
            match &self.before {
                None => replace(&made, &format!("{folders}\n"), None)?,
                Some(text) => replace(&backup, text, Some(&fs::metadata(&self.path)?))?,
            }
        }
        let path = resolved(&self.path);
        replace(&path, text, fs::metadata(&path).ok().as_ref())
    }

    fn remove(&self) -> io::Result<()> {
        if self.before.is_some() {
            fs::remove_file(&self.path)?;
        }
        fs::remove_file(beside(&self.path, MADE))
    }

    /// The folders that were made for a file that is to be removed.
    fn made_folders(&self) -> impl Iterator<Item = &Path> {
        let marker = fs::read_to_string(beside(&self.path, MADE));
        let count =
            marker.ok().filter(|_| self.kind == Kind::Remove).and_then(|count| count.trim().parse().ok());
        self.path.ancestors().skip(1).take(count.unwrap_or(0))
    }
}

/// Does all of them, in order, and removes the folders that were made and have become empty.
pub(super) fn apply(changes: &[Change]) -> Result<(), ChangeError> {
    let mut folders: Vec<&Path> = changes.iter().flat_map(Change::made_folders).collect();
    for change in changes {
        change.apply()?;
    }
    // The innermost first. One that others have put files into stays.
    folders.sort_unstable_by_key(|folder| std::cmp::Reverse(folder.components().count()));
    for folder in folders {
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

fn text(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or_default()
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(extension);
    name.into()
}

/// Where a link leads: what it points to is replaced, not the link.
fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Makes the folders that a file needs, and says how many those are.
fn make_folders(path: &Path) -> io::Result<usize> {
    let missing = path.ancestors().skip(1).take_while(|folder| !folder.exists()).count();
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    Ok(missing)
}

/// Writes a file beside `path` and renames it, with the mode and the owner of `like`.
fn replace(path: &Path, text: &str, like: Option<&fs::Metadata>) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/")))?;
    file.write_all(text.as_bytes())?;
    let mode = like.map_or(MODE, |like| like.permissions().mode());
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    let ours = file.as_file().metadata()?;
    if let Some(like) = like.filter(|like| (like.uid(), like.gid()) != (ours.uid(), ours.gid())) {
        chown(file.path(), Some(like.uid()), Some(like.gid()))?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}
