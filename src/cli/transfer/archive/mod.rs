//! Folders and tar archives as a set of named members, read at random and never unpacked. What they hold is hostile:
//! names stay inside, and what is kept in memory has a bound.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures::Stream;

/// Members of one tar archive.
const MEMBERS_MAX: usize = 50_000;
/// Names longer than this are those of nothing that is looked for.
const NAME_BYTES_MAX: usize = 256;
/// What the headers of one member may take.
const HEADER_BYTES_MAX: u64 = 1 << 20;
/// How many links lead from one name to a file.
const LINKS_MAX: usize = 4;
/// What is read of a file at once.
const READ_BYTES: u64 = 1 << 20;

/// How what gzip packed begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Why an archive is not read.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum ArchiveError {
    #[error("cannot read {what}")]
    Read {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("{0} is no tar archive, also none packed with gzip: unpack it first, if it is packed otherwise")]
    Unknown(String),
    #[error("{0} is not a regular file")]
    NotAFile(String),
    #[error("{0} has more than {MEMBERS_MAX} members")]
    TooManyMembers(String),
    #[error("{label} ends before its member {name} does: it was cut short")]
    CutShort { label: String, name: String },
    #[error("{what} is larger than the {bytes_max} bytes that it may have")]
    TooLarge { what: String, bytes_max: usize },
}

/// A set of named members. Calls block.
#[derive(Clone)]
pub(in crate::cli) enum Archive {
    Folder(PathBuf),
    Tar(Arc<Tar>),
}

pub(in crate::cli) struct Tar {
    label: String,
    file: Arc<File>,
    members: HashMap<String, Place>,
}

/// What a name in a tar archive stands for.
enum Place {
    Bytes {
        offset: u64,
        size_bytes: u64,
    },
    /// Another name.
    Link(String),
}

/// A file, or a part of one.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Member {
    /// For errors: which archive, which name.
    pub(in crate::cli) label: String,
    pub(in crate::cli) size_bytes: u64,
    file: Arc<File>,
    offset: u64,
}

impl Archive {
    /// Opens a folder, or a tar archive, also one packed with gzip; `-` is standard input. What cannot be read at random
    /// goes through an unnamed file in the folder for temporary files.
    pub(in crate::cli) fn open(path: &Path) -> Result<Self, ArchiveError> {
        let is_stdin = path.as_os_str() == "-";
        let label = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
        let failed = |source| ArchiveError::Read { what: label.clone(), source };
        let file = if is_stdin {
            from_stdin().map_err(failed)?
        } else {
            let metadata = path.metadata().map_err(failed)?;
            if metadata.is_dir() {
                return Ok(Self::Folder(path.to_owned()));
            }
            if !metadata.is_file() {
                return Err(ArchiveError::NotAFile(label));
            }
            let file = File::open(path).map_err(failed)?;
            let mut magic = GZIP_MAGIC.map(|_| 0);
            let packed = file.read_exact_at(&mut magic, 0).is_ok() && magic == GZIP_MAGIC;
            if packed { spooled(MultiGzDecoder::new(file)).map_err(failed)? } else { file }
        };
        Ok(Self::Tar(Arc::new(Tar::open(label, file)?)))
    }

    pub(in crate::cli) fn label(&self) -> String {
        match self {
            Self::Folder(path) => path.display().to_string(),
            Self::Tar(tar) => tar.label.clone(),
        }
    }

    /// Finds a member by its name below the top.
    pub(in crate::cli) fn find(&self, name: &str) -> Result<Option<Member>, ArchiveError> {
        let Some(name) = inner_name(name) else { return Ok(None) };
        match self {
            Self::Folder(folder) => in_folder(&folder.join(name)),
            Self::Tar(tar) => Ok(tar.find(name)),
        }
    }

    /// The whole of a member that must not be larger than `bytes_max`.
    pub(in crate::cli) fn read_small(
        &self,
        name: &str,
        bytes_max: usize,
    ) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(member) = self.find(name)? else { return Ok(None) };
        let what = member.label.clone();
        if member.size_bytes > bytes_max as u64 {
            return Err(ArchiveError::TooLarge { what, bytes_max });
        }
        let mut bytes = Vec::new();
        let read = member.reader().read_to_end(&mut bytes);
        read.map_err(|source| ArchiveError::Read { what, source })?;
        Ok(Some(bytes))
    }
}

impl Tar {
    /// Reads the headers, and nothing of what is between them.
    fn open(label: String, mut file: File) -> Result<Self, ArchiveError> {
        let failed = |source| ArchiveError::Read { what: label.clone(), source };
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let length_bytes = file.metadata().map_err(failed)?.len();
        let left_bytes = Rc::new(Cell::new(HEADER_BYTES_MAX));
        let metered = Metered { file: file.try_clone().map_err(failed)?, left_bytes: left_bytes.clone() };
        let mut archive = tar::Archive::new(metered);
        let mut members = HashMap::new();
        let entries = archive.entries_with_seek().map_err(failed)?;
        for (count, entry) in entries.enumerate() {
            left_bytes.set(HEADER_BYTES_MAX);
            if count >= MEMBERS_MAX {
                return Err(ArchiveError::TooManyMembers(label));
            }
            let entry = match entry {
                Ok(entry) => entry,
                Err(_) if count == 0 => return Err(ArchiveError::Unknown(label)),
                Err(source) => return Err(failed(source)),
            };
            let name = entry.path_bytes();
            let name = std::str::from_utf8(&name).ok().filter(|name| name.len() <= NAME_BYTES_MAX);
            let Some(name) = name.and_then(inner_name) else { continue };
            let place = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let (offset, size_bytes) = (entry.raw_file_position(), entry.size());
                    if offset.checked_add(size_bytes).is_none_or(|end| end > length_bytes) {
                        return Err(ArchiveError::CutShort { label, name });
                    }
                    Place::Bytes { offset, size_bytes }
                }
                kind @ (tar::EntryType::Symlink | tar::EntryType::Link) => {
                    let Some(target) = link_target(&entry, kind, &name) else { continue };
                    Place::Link(target)
                }
                _ => continue,
            };
            members.insert(name, place);
        }
        if members.is_empty() {
            return Err(ArchiveError::Unknown(label));
        }
        Ok(Self { label, file: Arc::new(file), members })
    }

    fn find(&self, mut name: String) -> Option<Member> {
        for _ in 0..=LINKS_MAX {
            match self.members.get(&name)? {
                Place::Bytes { offset, size_bytes } => {
                    return Some(Member {
                        label: format!("{} in {}", name, self.label),
                        size_bytes: *size_bytes,
                        file: self.file.clone(),
                        offset: *offset,
                    });
                }
                Place::Link(target) => name = target.clone(),
            }
        }
        None
    }
}

/// The member that a link of an archive stands for, if it is one of the same archive. Older versions of Docker write a
/// layer that two images share once, and link to it.
fn link_target<R: Read>(entry: &tar::Entry<'_, R>, kind: tar::EntryType, name: &str) -> Option<String> {
    let target = entry.link_name_bytes()?;
    let target = std::str::from_utf8(&target).ok().filter(|target| target.len() <= NAME_BYTES_MAX)?;
    match name.rsplit_once('/') {
        Some((folder, _)) if kind == tar::EntryType::Symlink => inner_name(&format!("{folder}/{target}")),
        _ => inner_name(target),
    }
}

/// A name in its shortest form; `None` if it is absolute or leads out of the archive.
fn inner_name(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => (),
            Component::ParentDir => {
                parts.pop()?;
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

fn in_folder(path: &Path) -> Result<Option<Member>, ArchiveError> {
    let label = path.display().to_string();
    let absent =
        |error: &io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if absent(&error) => return Ok(None),
        Err(source) => return Err(ArchiveError::Read { what: label, source }),
    };
    // A pipe would make the reader wait for a writer.
    if !metadata.is_file() {
        return Err(ArchiveError::NotAFile(label));
    }
    let file = File::open(path).map_err(|source| ArchiveError::Read { what: label.clone(), source })?;
    Ok(Some(Member { label, size_bytes: metadata.len(), file: Arc::new(file), offset: 0 }))
}

/// Standard input, unpacked, as a file.
fn from_stdin() -> io::Result<File> {
    let (mut stdin, mut magic) = (io::stdin(), Vec::new());
    stdin.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
    let packed = magic == GZIP_MAGIC;
    let stream = io::Cursor::new(magic).chain(stdin);
    if packed { spooled(MultiGzDecoder::new(stream)) } else { spooled(stream) }
}

/// Copies a stream to an unnamed file.
fn spooled(mut stream: impl Read) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    io::copy(&mut stream, &mut file)?;
    Ok(file)
}

impl Member {
    /// Reads it from its beginning; blocks.
    pub(in crate::cli) fn reader(&self) -> impl Read + use<> {
        MemberReader { member: self.clone(), at: 0 }
    }

    /// A part of it, read off the async threads. An archive that was cut short is an error.
    pub(in crate::cli) fn read(
        &self,
        range: Range<u64>,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        futures::stream::try_unfold((self.clone(), range), |(member, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let length = READ_BYTES.min(range.end - range.start);
            let (file, at) = (member.file.clone(), member.offset + range.start);
            let read = move || {
                // At most READ_BYTES, which fits any usize.
                let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
                file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes))
            };
            let bytes = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
            Ok(Some((bytes, (member, range.start + length..range.end))))
        })
    }
}

struct MemberReader {
    member: Member,
    at: u64,
}

impl Read for MemberReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.member.size_bytes - self.at;
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if length == 0 {
            return Ok(0);
        }
        let read = self.member.file.read_at(&mut buffer[..length], self.member.offset + self.at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        Ok(read)
    }
}

/// A file of which only so many bytes may be read before somebody allows more: the headers of a member are read to
/// memory, and say themselves how long they are.
struct Metered {
    file: File,
    left_bytes: Rc<Cell<u64>>,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.left_bytes.get()).unwrap_or(usize::MAX).min(buffer.len());
        if length == 0 && !buffer.is_empty() {
            return Err(io::Error::other(format!(
                "a member has more than {HEADER_BYTES_MAX} bytes of headers"
            )));
        }
        let read = self.file.read(&mut buffer[..length])?;
        self.left_bytes.set(self.left_bytes.get() - read as u64);
        Ok(read)
    }
}

impl Seek for Metered {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

/// Reads whatever bytes as a tar archive: for fuzzing.
pub(in crate::cli) fn fuzz(bytes: &[u8]) {
    let file =
        tempfile::tempfile().and_then(|mut file| io::Write::write_all(&mut file, bytes).map(|()| file));
    let tar = file.ok().and_then(|file| Tar::open("fuzz".to_owned(), file).ok());
    let Some(tar) = tar else { return };
    let names: Vec<String> = tar.members.keys().cloned().collect();
    let archive = Archive::Tar(Arc::new(tar));
    for name in names {
        assert!(inner_name(&name).is_some(), "{name} stays inside");
        let _ = archive.read_small(&name, 1 << 20);
    }
}

#[cfg(test)]
mod tests;
