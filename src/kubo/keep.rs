//! DAGs that outlast this daemon: sent to a Kubo in archives, then pinned there.
//!
//! What was imported and is not pinned yet may be taken by Kubo's garbage collection, and a Kubo may be restarted at any
//! moment. So nothing is believed to be there until a pin says so; whatever fails is begun again from what is pinned.

use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use futures::stream;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::rpc::Call;
use super::walk::Walk;
use super::{KuboClient, KuboError};
use crate::ipfs::IpfsError;
use crate::ipld::car;

/// Of blocks in one archive.
const ARCHIVE_BYTES_MAX: usize = 64 << 20;
/// How long Kubo may take for one.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(600);
/// Parts of an archive that wait to be sent.
const PARTS_QUEUED_MAX: usize = 8;
/// Of what an import says.
const ANSWER_BYTES_MAX: usize = 4 << 20;

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
        if self.is_pinned(label, root).await? {
            return Ok(());
        }
        let pins = self.pins(label).await?;
        if self.pin_what_is_there(label, root, pins.last()).await? {
            tracing::debug!(%root, "pinned in Kubo, which had it");
            return Ok(());
        }
        if let Some(base) = pins.last() {
            let sent = self.send_difference(root, Some(*base)).await?;
            match self.pin_update(label, base, root, false).await {
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
            Some(base) => self.pin_update(label, base, root, true).await,
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
        let call = Call {
            command: "dag/import",
            query: &query,
            patience: IMPORT_TIMEOUT,
            bytes_max: ANSWER_BYTES_MAX,
        };
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
