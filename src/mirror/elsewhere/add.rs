//! Adding an image layout: its files come one after the other, and become a directory that is kept.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use cid::Cid;
use futures::{Stream, TryStreamExt};

use super::KeptLayout;
use crate::dag::{Edit, Entry, Keep};
use crate::mirror::writing::{Received, Writing};
use crate::mirror::{BodyError, Inner, Mirror, MirrorError};
use crate::oci::layout_names;
use crate::oci::{Algorithm, Digest, image_layout};
use crate::store::IndexEntry;

/// Files that one layout may have.
const FILES_MAX: usize = 100_000;
/// The longest path of one, in bytes: some components.
const PATH_BYTES_MAX: usize = 1024;
/// The longest name that is remembered, in characters.
const NAME_CHARS_MAX: usize = 255;

/// A layout on its way in. Dropped before it is finished, it leaves blocks that nothing needs.
pub struct LayoutWriter {
    inner: Arc<Inner>,
    files: Vec<Edit>,
    keeps: Vec<Keep>,
    size_bytes: u64,
    /// The content of `index.json`, once it came.
    index: Option<Bytes>,
    has_marker: bool,
    blobs: HashSet<Digest>,
}

impl Mirror {
    /// Begins a layout. Needs no key.
    pub fn add_layout(&self) -> Result<LayoutWriter, MirrorError> {
        self.0.elsewhere.iter().try_for_each(|elsewhere| elsewhere.kept.has_room())?;
        Ok(LayoutWriter {
            inner: self.0.clone(),
            files: Vec::new(),
            keeps: Vec::new(),
            size_bytes: 0,
            index: None,
            has_marker: false,
            blobs: HashSet::new(),
        })
    }

    /// The layouts that are kept, as they were added.
    pub fn layouts(&self) -> Vec<KeptLayout> {
        self.0.elsewhere.iter().flat_map(|elsewhere| elsewhere.kept.list()).collect()
    }

    /// Keeps a layout no longer: its blocks go when space is freed, unless something else needs them. `false`: it was not
    /// kept.
    pub async fn remove_layout(&self, cid: &Cid) -> Result<bool, MirrorError> {
        match &self.0.elsewhere {
            Some(elsewhere) => {
                let removed = elsewhere.kept.remove(cid).await;
                elsewhere.changed.notify_one();
                removed
            }
            None => Ok(false),
        }
    }
}

impl LayoutWriter {
    /// Takes a file in. `path`: below the folder, components separated by `/`. What lies at the path of a blob is held to
    /// its digest.
    pub async fn file<S>(&mut self, path: &str, mut body: S) -> Result<(), MirrorError>
    where
        S: Stream<Item = Result<Bytes, BodyError>> + Send + Unpin,
    {
        let wrong = |what: &str| Err(MirrorError::NoLayout(format!("{path:?} {what}")));
        if self.files.len() >= FILES_MAX {
            return wrong("is one file too many: 100000 are allowed");
        }
        if path.len() > PATH_BYTES_MAX || path.split('/').any(|name| matches!(name, "" | "." | "..")) {
            return wrong("is no path of a file in it");
        }
        let digest = digest_of(path);
        let algorithm = digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let mut writing = Writing::new(self.inner.tree.blocks(), algorithm);
        let mut index = (path == image_layout::INDEX).then(Vec::new);
        while let Some(bytes) = body.try_next().await.map_err(MirrorError::Body)? {
            if let Some(index) = &mut index {
                if index.len() + bytes.len() > image_layout::INDEX_BYTES_MAX {
                    return wrong("has more than 4 MiB");
                }
                index.extend_from_slice(&bytes);
            }
            writing.write(bytes).await?;
        }
        let Received { file, digest: actual, keep } = writing.finish().await?;
        let entry = IndexEntry { cid: file.cid, size_bytes: file.size_bytes, tsize: file.tsize };
        if let Some(expected) = digest {
            if expected != actual {
                return wrong(&format!("is not what it is named: its digest is {actual}"));
            }
            self.inner.proven.put(expected, entry).await?;
            self.blobs.insert(expected);
        }
        self.has_marker |= path == image_layout::MARKER;
        self.index = index.map(Bytes::from).or(self.index.take());
        self.size_bytes += entry.size_bytes;
        self.files
            .push(Edit { path: path.to_owned(), to: Some(Entry { cid: entry.cid, tsize: entry.tsize }) });
        self.keeps.push(keep);
        Ok(())
    }

    /// Makes the directory: durable and kept when this returns. `name`: what the folder is called, for people.
    pub async fn finish(self, name: &str) -> Result<KeptLayout, MirrorError> {
        self.check()?;
        let Some(elsewhere) = &self.inner.elsewhere else { return Err(MirrorError::Closed) };
        let root = self.directory().await?;
        let added_at_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let name = name.chars().filter(|letter| !letter.is_control()).take(NAME_CHARS_MAX).collect();
        let layout = KeptLayout { cid: root, name, size_bytes: self.size_bytes, added_at_s };
        elsewhere.kept.add(layout.clone())?;
        // What a sweep took away that had begun before the root was kept is put once more.
        self.directory().await?;
        self.inner.tree.blocks().flush().await?;
        elsewhere.kept.write().await?;
        elsewhere.changed.notify_one();
        tracing::info!(layout.cid = %root, files = self.files.len(), size_bytes = self.size_bytes, "layout added");
        Ok(layout)
    }

    async fn directory(&self) -> Result<Cid, MirrorError> {
        let tree = &self.inner.tree;
        let empty = tree.empty().await?.cid;
        Ok(tree.edit(&empty, &self.files).await?.cid)
    }

    /// Whether it is an image layout, and has the images that it names.
    fn check(&self) -> Result<(), MirrorError> {
        let wrong = |what: String| Err(MirrorError::NoLayout(what));
        if !self.has_marker {
            return wrong(format!("it has no file {}", image_layout::MARKER));
        }
        let Some(index) = &self.index else {
            return wrong(format!("it has no file {}", image_layout::INDEX));
        };
        let images = layout_names::parse(index)
            .map_err(|source| MirrorError::Layout { at: "the folder".to_owned(), source })?;
        match images.iter().find(|image| !self.blobs.contains(&image.digest)) {
            Some(image) => {
                wrong(format!("{} is missing, which index.json names", image_layout::blob(&image.digest)))
            }
            None => Ok(()),
        }
    }
}

/// The digest that a path is named by.
fn digest_of(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}
