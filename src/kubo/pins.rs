//! Which pins of a Kubo are ours, and when they come and go.
//!
//! Where Kubo gives pins names, ours have their label for a name. Each is noted here too before it is made, since not every
//! Kubo does, and others of us may use the same one. What the user has pinned, or pinned again, is none of ours.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cid::Cid;
use serde::Deserialize;

use super::rpc::Call;
use super::{KuboClient, KuboError, QUICK};
use crate::ipfs::{IpfsError, LABEL_PREFIX};
use crate::store::off_thread;

/// How long Kubo may take to look through a DAG that it has whole …
const PIN_TIMEOUT: Duration = Duration::from_secs(600);
/// … or to compare two of them, or to find what neither it nor we have.
const PIN_DIFFERENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Of the list of pins with one label.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Where our pins are noted: the label, and the root behind it.
const NOTES: &str = "kubo/pins/";
/// The note of a pin with a name; that of another one is empty.
const NAMED: &[u8] = b"named";

#[derive(Deserialize)]
struct PinList {
    #[serde(rename = "Keys", default)]
    keys: Option<BTreeMap<String, Pin>>,
}

#[derive(Deserialize)]
struct Pin {
    #[serde(rename = "Name", default)]
    name: String,
}

/// A pin that we made, or were about to make.
struct Noted {
    label: String,
    root: Cid,
    /// It was given a name.
    is_named: bool,
}

impl Noted {
    /// Whether the pin of this root is still ours by its name: the user may have made it anew.
    fn is_ours(&self, name: &str) -> bool {
        name.starts_with(LABEL_PREFIX) || name.is_empty() && !self.is_named
    }
}

impl KuboClient {
    /// Takes the pins with this label away that are not in `but`.
    pub(super) async fn unpin(&self, label: &str, but: &[Cid]) -> Result<(), IpfsError> {
        for root in self.pins(label).await?.into_iter().filter(|root| !but.contains(root)) {
            self.unpin_one(label, &root).await?;
        }
        // What came to nothing, or was taken over by the user.
        let noted = self.noted().await?.into_iter().filter(|noted| noted.label == label);
        for noted in noted.filter(|noted| !but.contains(&noted.root)) {
            self.forget(label, &noted.root).await?;
        }
        Ok(())
    }

    /// Takes away what is noted under labels that begin with `kind` and are not among `labels`.
    pub(super) async fn unpin_rest(&self, kind: &str, labels: &BTreeSet<String>) -> Result<(), IpfsError> {
        let noted = self.noted().await?.into_iter();
        for noted in noted.filter(|noted| noted.label.starts_with(kind) && !labels.contains(&noted.label)) {
            if self.pin_name(&noted.root).await?.is_some_and(|name| noted.is_ours(&name)) {
                self.unpin_one(&noted.label, &noted.root).await?;
            }
            self.forget(&noted.label, &noted.root).await?;
        }
        Ok(())
    }

    /// The note goes last: without it nobody would come back for the pin.
    async fn unpin_one(&self, label: &str, root: &Cid) -> Result<(), IpfsError> {
        let is_needed = |noted: &Noted| noted.root == *root && noted.label != label;
        if !self.noted().await?.iter().any(is_needed) {
            let argument = root.to_string();
            match self.0.rpc.bytes(quick("pin/rm", &[("arg", argument.as_str())])).await {
                Err(error) if !error.says("not pinned") => return Err(error.into()),
                _ => tracing::debug!(%root, "no longer pinned in Kubo"),
            }
        }
        Ok(self.forget(label, root).await?)
    }

    /// The roots that we have pinned under exactly this label.
    pub(super) async fn pins(&self, label: &str) -> Result<Vec<Cid>, KuboError> {
        let mut pins = match self.abilities().await?.names_pins {
            true => self.named(label).await?,
            false => Vec::new(),
        };
        for noted in self.noted().await?.into_iter().filter(|noted| noted.label == label) {
            if !pins.contains(&noted.root)
                && self.pin_name(&noted.root).await?.is_some_and(|name| noted.is_ours(&name))
            {
                pins.push(noted.root);
            }
        }
        Ok(pins)
    }

    /// The roots whose pins have exactly this name.
    async fn named(&self, label: &str) -> Result<Vec<Cid>, KuboError> {
        let query = [("type", "recursive"), ("names", "true"), ("name", label)];
        let list: PinList = self.0.rpc.ask(quick("pin/ls", &query)).await?;
        let ours = list.keys.unwrap_or_default().into_iter().filter(|(_, pin)| pin.name == label);
        Ok(ours.filter_map(|(cid, _)| cid.parse().ok()).collect())
    }

    /// The name of the pin of this root, which may be empty; `None`: it is not pinned.
    async fn pin_name(&self, root: &Cid) -> Result<Option<String>, KuboError> {
        let argument = root.to_string();
        let query = [("arg", argument.as_str()), ("type", "recursive"), ("names", "true")];
        match self.0.rpc.ask::<PinList>(quick("pin/ls", &query)).await {
            Ok(list) => Ok(list.keys.unwrap_or_default().into_values().next().map(|pin| pin.name)),
            Err(error) if error.says("not pinned") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the root is pinned; the pin of another label of ours counts for this one too.
    pub(super) async fn is_pinned(&self, label: &str, root: &Cid) -> Result<bool, KuboError> {
        let Some(name) = self.pin_name(root).await? else { return Ok(false) };
        let is_ours = |noted: Noted| noted.root == *root && noted.is_ours(&name);
        if name == label || self.noted().await?.into_iter().any(is_ours) {
            self.note(label, root, !name.is_empty()).await?;
        }
        Ok(true)
    }

    /// Pins a root by what it has besides a pinned one. `is_whole`: see [`KuboClient::pin_add`].
    pub(super) async fn pin_update(
        &self,
        label: &str,
        base: &Cid,
        root: &Cid,
        is_whole: bool,
    ) -> Result<(), KuboError> {
        let names_pins = self.abilities().await?.names_pins;
        self.note(label, root, names_pins).await?;
        let (base, new) = (base.to_string(), root.to_string());
        let offline = if is_whole { "true" } else { "false" };
        let query = [("arg", base.as_str()), ("arg", new.as_str()), ("unpin", "false"), ("offline", offline)];
        let call = Call { patience: PIN_DIFFERENCE_TIMEOUT, ..quick("pin/update", &query) };
        self.0.rpc.bytes(call).await?;
        // Not every Kubo that gives names takes them along.
        match names_pins && self.pin_name(root).await?.is_none_or(|name| name != label) {
            true => self.pin_add(label, root, true).await,
            false => Ok(()),
        }
    }

    /// `is_whole`: Kubo must have every block by now, so that a gap is an error at once rather than a search.
    pub(super) async fn pin_add(&self, label: &str, root: &Cid, is_whole: bool) -> Result<(), KuboError> {
        let names_pins = self.abilities().await?.names_pins;
        self.note(label, root, names_pins).await?;
        let root = root.to_string();
        let offline = if is_whole { "true" } else { "false" };
        let mut query = vec![("arg", root.as_str()), ("recursive", "true"), ("offline", offline)];
        query.extend(names_pins.then_some(("name", label)));
        let patience = if is_whole { PIN_TIMEOUT } else { PIN_DIFFERENCE_TIMEOUT };
        self.0.rpc.bytes(Call { patience, ..quick("pin/add", &query) }).await.map(drop)
    }

    /// On disk when this returns.
    async fn note(&self, label: &str, root: &Cid, is_named: bool) -> Result<(), KuboError> {
        let (notes, store, key) = (self.0.notes.clone(), self.0.store.clone(), note_key(label, root));
        let note = if is_named { NAMED } else { &[] };
        let noted = off_thread(move || match notes.get(&key)?.is_some_and(|known| known == note) {
            true => Ok(()),
            false => notes.put(&key, note).and_then(|()| store.flush()),
        });
        Ok(noted.await.map_err(Arc::new)?)
    }

    async fn forget(&self, label: &str, root: &Cid) -> Result<(), KuboError> {
        let (notes, key) = (self.0.notes.clone(), note_key(label, root));
        Ok(off_thread(move || notes.remove(&key)).await.map_err(Arc::new)?)
    }

    async fn noted(&self) -> Result<Vec<Noted>, KuboError> {
        let notes = self.0.notes.clone();
        let rows = off_thread(move || notes.below(NOTES)).await.map_err(Arc::new)?.into_iter();
        let read = |(key, note): (String, Vec<u8>)| {
            let (label, root) = key.rsplit_once('/')?;
            Some(Noted { label: label.to_owned(), root: root.parse().ok()?, is_named: note == NAMED })
        };
        Ok(rows.filter_map(read).collect())
    }
}

fn note_key(label: &str, root: &Cid) -> String {
    format!("{NOTES}{label}/{root}")
}

fn quick<'a>(command: &'static str, query: &'a [(&'a str, &'a str)]) -> Call<'a> {
    Call { command, query, patience: QUICK, bytes_max: ANSWER_BYTES_MAX }
}
