//! The image layouts that were added here: roots that nobody publishes under a name, and that stay until they are removed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cid::Cid;

use crate::mirror::MirrorError;
use crate::store::{LayoutRow, State, StoreError, off_thread};

/// Layouts that may be kept.
const LAYOUTS_MAX: usize = 10_000;

/// An image layout that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptLayout {
    pub cid: Cid,
    /// What its folder was called.
    pub name: String,
    /// Of its files.
    pub size_bytes: u64,
    /// Seconds since 1970.
    pub added_at_s: u64,
}

/// The list. Cheap to clone.
#[derive(Clone)]
pub(in crate::mirror) struct Kept {
    state: State,
    layouts: Arc<Mutex<Vec<KeptLayout>>>,
    /// Held while the list is written: the last to write writes the last state.
    writing: Arc<Mutex<()>>,
}

impl Kept {
    pub(super) async fn open(state: State) -> Result<Self, StoreError> {
        let rows = {
            let state = state.clone();
            off_thread(move || state.layouts()).await?
        };
        let layouts = rows.into_iter().filter_map(|row| {
            let cid = row.cid.parse::<Cid>().inspect_err(
                |error| tracing::warn!(layout.cid = row.cid, %error, "a layout on disk is not usable"),
            );
            let LayoutRow { name, size_bytes, added_at_s, .. } = row;
            Some(KeptLayout { cid: cid.ok()?, name, size_bytes, added_at_s })
        });
        Ok(Self { state, layouts: Arc::new(Mutex::new(layouts.collect())), writing: Arc::default() })
    }

    pub(super) fn has_room(&self) -> Result<(), MirrorError> {
        match lock(&self.layouts).len() < LAYOUTS_MAX {
            true => Ok(()),
            false => Err(MirrorError::TooManyLayouts(LAYOUTS_MAX)),
        }
    }

    /// What must stay.
    pub(in crate::mirror) fn roots(&self) -> Vec<Cid> {
        lock(&self.layouts).iter().map(|layout| layout.cid).collect()
    }

    pub(super) fn list(&self) -> Vec<KeptLayout> {
        lock(&self.layouts).clone()
    }

    /// From here on it stays; not on disk before [`Kept::write`]. One that is kept already takes the new name.
    pub(super) fn add(&self, layout: KeptLayout) -> Result<(), MirrorError> {
        let mut layouts = lock(&self.layouts);
        layouts.retain(|known| known.cid != layout.cid);
        if layouts.len() >= LAYOUTS_MAX {
            return Err(MirrorError::TooManyLayouts(LAYOUTS_MAX));
        }
        layouts.push(layout);
        Ok(())
    }

    /// `false`: it is not kept. It is written when this returns.
    pub(super) async fn remove(&self, cid: &Cid) -> Result<bool, MirrorError> {
        let removed = {
            let mut layouts = lock(&self.layouts);
            let before = layouts.len();
            // By its hash: a CID may be written in several ways.
            layouts.retain(|known| known.cid.hash() != cid.hash());
            layouts.len() < before
        };
        self.write().await?;
        Ok(removed)
    }

    pub(super) async fn write(&self) -> Result<(), MirrorError> {
        let kept = self.clone();
        let write = move || {
            let _writing = lock(&kept.writing);
            let rows: Vec<LayoutRow> = kept.list().into_iter().map(row).collect();
            kept.state.set_layouts(&rows)
        };
        Ok(off_thread(write).await?)
    }
}

fn row(layout: KeptLayout) -> LayoutRow {
    let KeptLayout { cid, name, size_bytes, added_at_s } = layout;
    LayoutRow { cid: cid.to_string(), name, size_bytes, added_at_s }
}

/// A panic leaves a list with or without its last entry.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::ipld::Block;
    use crate::ipld::block::RAW;
    use crate::store::{Store, StoreOptions};

    fn layout(content: &'static str, name: &str) -> KeptLayout {
        let cid = *Block::encode(RAW, content.into()).cid();
        KeptLayout { cid, name: name.to_owned(), size_bytes: 1, added_at_s: 2 }
    }

    #[tokio::test]
    async fn what_is_kept_is_there_after_a_restart_and_gone_when_removed() {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let open = async || Kept::open(store.state().clone()).await.unwrap();
        let kept = open().await;
        kept.add(layout("a", "first")).unwrap();
        kept.add(layout("b", "other")).unwrap();
        kept.add(layout("a", "again")).unwrap();
        kept.write().await.unwrap();
        let kept = open().await;
        assert_eq!(kept.list(), [layout("b", "other"), layout("a", "again")]);
        assert!(kept.remove(&layout("b", "").cid).await.unwrap());
        assert!(!kept.remove(&layout("b", "").cid).await.unwrap());
        assert_eq!(open().await.roots(), [layout("a", "").cid]);
    }

    #[tokio::test]
    async fn there_may_not_be_too_many() {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let kept = Kept::open(store.state().clone()).await.unwrap();
        let full = (0..LAYOUTS_MAX).map(|n| {
            let cid = *Block::encode(RAW, n.to_string().into()).cid();
            KeptLayout { cid, ..layout("", "") }
        });
        lock(&kept.layouts).extend(full);
        assert!(kept.has_room().is_err());
        assert!(matches!(kept.add(layout("more", "")), Err(MirrorError::TooManyLayouts(_))));
    }
}
