//! DAGs that outlast this daemon: sent to a Kubo in archives, then pinned there.
//!
//! What was imported and is not pinned yet may be taken by Kubo's garbage collection, and a Kubo may be restarted at any
//! moment. So nothing is believed to be there until a pin says so; whatever fails is begun again from what is pinned.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use futures::stream;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::rpc::Call;
use super::walk::Walk;
use super::{KuboClient, KuboError, QUICK};
use crate::ipfs::IpfsError;
use crate::ipld::car;

/// Of blocks in one archive.
const ARCHIVE_BYTES_MAX: usize = 64 << 20;
/// How long Kubo may take for one.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(600);
/// How long Kubo may take to look through a DAG that it has whole …
const PIN_TIMEOUT: Duration = Duration::from_secs(600);
/// … or to compare two of them, or to find what neither it nor we have.
const PIN_DIFFERENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// Parts of an archive that wait to be sent.
const PARTS_QUEUED_MAX: usize = 8;
/// Of the list of pins with one label, and of what an import says.
const ANSWER_BYTES_MAX: usize = 4 << 20;

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

/// A line of `dag/import`.
#[derive(Deserialize)]
struct Imported {
    #[serde(rename = "Stats", default)]
    stats: Option<ImportStats>,
}

#[derive(Deserialize)]
struct ImportStats {
    #[serde(rename = "BlockCount")]
    block_count: u64,
}

impl KuboClient {
    /// Sends what Kubo lacks below `root`, and pins it. Where a pin of this label is at hand, only what it has not.
    pub(super) async fn keep_root(&self, label: &str, root: &Cid) -> Result<(), IpfsError> {
        let pins = self.pins(label).await?;
        if pins.contains(root) || self.is_pinned(root).await? {
            return Ok(());
        }
        if self.pin_what_is_there(label, root, pins.last()).await? {
            tracing::debug!(%root, "pinned in Kubo, which had it");
            return Ok(());
        }
        if let Some(base) = pins.last() {
            let sent = self.send_difference(root, Some(*base)).await?;
            match self.pin_update(base, root, false).await {
                Ok(()) => {
                    tracing::debug!(%root, blocks = sent.blocks, "sent to Kubo, and pinned there");
                    return Ok(());
                }
                Err(error) if error.is_away() => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%root, %error, "pinned root not moved on: all of it is sent anew")
                }
            }
        }
        let sent = self.send_difference(root, None).await?;
        self.pin_add(label, root, sent.absent == 0).await?;
        tracing::debug!(%root, blocks = sent.blocks, "sent to Kubo, and pinned there");
        Ok(())
    }

    /// Takes the pins with this label away that are not in `but`.
    pub(super) async fn unpin(&self, label: &str, but: &[Cid]) -> Result<(), IpfsError> {
        for pin in self.pins(label).await?.into_iter().filter(|pin| !but.contains(pin)) {
            let argument = pin.to_string();
            let query = [("arg", argument.as_str())];
            let removed = self.0.rpc.bytes(quick("pin/rm", &query)).await;
            match removed {
                Err(error) if !error.says("not pinned") => return Err(error.into()),
                _ => tracing::debug!(root = %pin, "no longer pinned in Kubo"),
            }
        }
        Ok(())
    }

    /// The roots that are pinned under exactly this label.
    async fn pins(&self, label: &str) -> Result<Vec<Cid>, KuboError> {
        let query = [("type", "recursive"), ("names", "true"), ("name", label)];
        let list: PinList = self.0.rpc.ask(quick("pin/ls", &query)).await?;
        let ours = list.keys.unwrap_or_default().into_iter().filter(|(_, pin)| pin.name == label);
        Ok(ours.filter_map(|(cid, _)| cid.parse().ok()).collect())
    }

    /// Whether it is pinned under whatever label: then it is not ours to let go.
    async fn is_pinned(&self, root: &Cid) -> Result<bool, KuboError> {
        let argument = root.to_string();
        let query = [("arg", argument.as_str()), ("type", "recursive")];
        match self.0.rpc.bytes(quick("pin/ls", &query)).await {
            Ok(_) => Ok(true),
            Err(error) if error.says("not pinned") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Pins a root that came by Kubo itself, so that nothing need be sent. `false`: it does not have all of it.
    async fn pin_what_is_there(
        &self,
        label: &str,
        root: &Cid,
        base: Option<&Cid>,
    ) -> Result<bool, KuboError> {
        if self.block(root, true).await.is_err() {
            return Ok(false);
        }
        let pinned = match base {
            Some(base) => self.pin_update(base, root, true).await,
            None => self.pin_add(label, root, true).await,
        };
        match pinned {
            Ok(()) => Ok(true),
            Err(error) if error.is_away() => Err(error),
            Err(error) => {
                tracing::debug!(%root, %error, "Kubo does not have all of it");
                Ok(false)
            }
        }
    }

    /// Pins a root by what it has besides a pinned one; the label goes along. `is_whole`: see [`KuboClient::pin_add`].
    async fn pin_update(&self, base: &Cid, root: &Cid, is_whole: bool) -> Result<(), KuboError> {
        let (base, root) = (base.to_string(), root.to_string());
        let offline = if is_whole { "true" } else { "false" };
        let query =
            [("arg", base.as_str()), ("arg", root.as_str()), ("unpin", "false"), ("offline", offline)];
        let call = Call { patience: PIN_DIFFERENCE_TIMEOUT, ..quick("pin/update", &query) };
        self.0.rpc.bytes(call).await.map(drop)
    }

    /// `is_whole`: Kubo must have every block by now, so that a gap is an error at once rather than a search.
    async fn pin_add(&self, label: &str, root: &Cid, is_whole: bool) -> Result<(), KuboError> {
        let root = root.to_string();
        let offline = if is_whole { "true" } else { "false" };
        let query = [("arg", root.as_str()), ("recursive", "true"), ("name", label), ("offline", offline)];
        let patience = if is_whole { PIN_TIMEOUT } else { PIN_DIFFERENCE_TIMEOUT };
        self.0.rpc.bytes(Call { patience, ..quick("pin/add", &query) }).await.map(drop)
    }

    async fn send_difference(&self, root: &Cid, base: Option<Cid>) -> Result<Sent, IpfsError> {
        let mut walk = Walk::new(self, *root, base);
        let mut blocks = 0;
        loop {
            let (count, is_done) = self.send_archive(root, &mut walk).await?;
            blocks += count;
            if is_done {
                return Ok(Sent { blocks, absent: walk.absent });
            }
        }
    }

    /// Sends the next blocks of the walk, as many as one archive takes: their number, and whether they were the last.
    async fn send_archive(&self, root: &Cid, walk: &mut Walk) -> Result<(u64, bool), IpfsError> {
        let Some(mut block) = walk.next().await? else { return Ok((0, true)) };
        let (parts, queue) = mpsc::channel::<Result<Bytes, String>>(PARTS_QUEUED_MAX);
        let file = stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        let query = [("pin-roots", "false"), ("stats", "true")];
        let call = Call { patience: IMPORT_TIMEOUT, ..quick("dag/import", &query) };
        let header = car::header(root);
        let feed = async move {
            let mut sent_bytes = 0;
            let mut count = 0;
            // A closed queue means that the request has ended, which says why.
            let mut is_open = parts.send(Ok(header)).await.is_ok();
            while is_open {
                sent_bytes += block.bytes().len();
                count += 1;
                for part in car::entry(&block) {
                    is_open = is_open && parts.send(Ok(part)).await.is_ok();
                }
                if sent_bytes >= ARCHIVE_BYTES_MAX {
                    return Ok((count, false));
                }
                match walk.next().await {
                    Ok(Some(next)) => block = next,
                    Ok(None) => return Ok((count, true)),
                    Err(error) => {
                        // An archive must not look finished that is not.
                        let _ = parts.send(Err(error.to_string())).await;
                        return Err(error);
                    }
                }
            }
            Ok((count, false))
        };
        let (fed, imported) = tokio::join!(feed, self.0.rpc.send(call, file));
        let (count, is_done) = fed?;
        let answer = imported?;
        let lines = serde_json::Deserializer::from_slice(&answer).into_iter::<Imported>();
        let taken =
            lines.map_while(Result::ok).filter_map(|line| line.stats).map(|stats| stats.block_count).last();
        if taken != Some(count) {
            let reason = format!("of {count} blocks it took {}", taken.unwrap_or_default());
            return Err(self.0.rpc.strange("dag/import", &reason).into());
        }
        Ok((count, is_done))
    }
}

/// What went over.
struct Sent {
    blocks: u64,
    absent: u64,
}

fn quick<'a>(command: &'static str, query: &'a [(&'a str, &'a str)]) -> Call<'a> {
    Call { command, query, patience: QUICK, bytes_max: ANSWER_BYTES_MAX }
}
