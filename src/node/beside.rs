//! What delegated routers and gateways add to what the peers say: asked beside them, never before. The first good answer
//! counts, and "not there" only if all of them said so.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::bitswap::Exchange;
use super::client::NodeClient;
use super::command::Command;
use crate::ipfs::{IpfsError, Want};
use crate::ipld::Block;
use crate::ipld::ipns::{IpnsName, IpnsRecord};
use crate::web::{Web, WebError};

/// How long peers are asked for a block alone, unless the one before it came from a gateway.
const HEAD_START: Duration = Duration::from_millis(500);
/// How long gateways are waited for when the peers have given up.
const LAST_ANSWERS: Duration = Duration::from_secs(15);
/// How long the routers are asked on when the DHTs have a record.
const BETTER_RECORD: Duration = Duration::from_secs(1);
/// How long the DHTs are asked on when a router has a record.
const DHT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a router may take for a record that no peer took.
const ROUTER_TIMEOUT: Duration = Duration::from_secs(5);

/// A block from whoever has it first, peers or gateways.
pub(super) async fn fetch(web: &Web, exchange: &Exchange, want: Want) -> Result<Block, IpfsError> {
    if let Some(block) = Block::known(&want.cid).or_else(|| web.held(&want.cid)) {
        return Ok(block);
    }
    let others = CancellationToken::new();
    let by_web = async {
        if !web.leads(&want.root) {
            // Cut short when the peers give up.
            others.run_until_cancelled(sleep(HEAD_START)).await;
        }
        web.fetch(&want, &others).await
    };
    let mut by_web = Box::pin(by_web);
    let mut by_peers = Box::pin(exchange.fetch(want));
    let error = tokio::select! {
        found = &mut by_peers => match found {
            Ok(block) => {
                web.came_elsewhere(&want);
                return Ok(block);
            }
            Err(error) => error,
        },
        Ok(Some(block)) = &mut by_web => return Ok(block),
    };
    others.cancel();
    match timeout(LAST_ANSWERS, by_web).await {
        Ok(Ok(Some(block))) => Ok(block),
        Ok(Ok(None)) => Err(with_silence(web.silent_router(), error)),
        Ok(Err(failure)) => Err(with_silence(Some(failure), error)),
        Err(_) => Err(IpfsError::Timeout(format!("block {}", want.cid), LAST_ANSWERS.as_secs())),
    }
}

/// "Not there" is only said if everybody could be asked.
fn with_silence(silence: Option<WebError>, error: IpfsError) -> IpfsError {
    match (silence, error) {
        (Some(silence), IpfsError::NoProvider(cid)) => {
            IpfsError::NotAsked(format!("block {cid}"), silence.to_string())
        }
        (Some(silence), IpfsError::NoRecord(name)) => {
            IpfsError::NotAsked(format!("a record of {name}"), silence.to_string())
        }
        (_, error) => error,
    }
}

/// The best of what the DHTs and the routers have. A router's record cuts the DHTs short only after some seconds: it may be
/// an old one.
pub(super) async fn resolve(
    web: &Web,
    client: &NodeClient,
    name: &IpnsName,
) -> Result<IpnsRecord, IpfsError> {
    let mut by_dht = Box::pin(client.resolve_by_dht(name));
    let mut by_routers = Box::pin(web.resolve(name));
    let (mut dht_is_asked, mut routers_are_asked) = (true, true);
    let (mut best, mut of_dht, mut silence) = (None::<IpnsRecord>, None, None);
    let mut deadline = None;
    while dht_is_asked || routers_are_asked {
        let now = Instant::now();
        tokio::select! {
            found = &mut by_dht, if dht_is_asked => {
                dht_is_asked = false;
                if let Ok(record) = &found {
                    take(&mut best, record.clone());
                    deadline = Some(now + BETTER_RECORD);
                }
                of_dht = Some(found);
            }
            said = by_routers.next(), if routers_are_asked => match said {
                Some(Ok(Some(record))) => {
                    take(&mut best, record);
                    deadline = deadline.or(Some(now + DHT_PATIENCE));
                }
                Some(Ok(None)) => (),
                Some(Err(failure)) => silence = Some(failure),
                None => routers_are_asked = false,
            },
            () = sleep_until(deadline.unwrap_or(now)), if deadline.is_some() => break,
        }
    }
    match (best, of_dht) {
        (Some(best), Some(Ok(known))) if best.bytes() == known.bytes() => Ok(best),
        (Some(best), _) => {
            // What the DHTs have not, or not yet.
            client.send(Command::Found { record: best.clone(), behind: Vec::new() }).await?;
            Ok(best)
        }
        (None, Some(Err(error))) => Err(with_silence(silence, error)),
        (None, _) => Err(IpfsError::NoPeers(name.to_string())),
    }
}

fn take(best: &mut Option<IpnsRecord>, record: IpnsRecord) {
    if best.as_ref().is_none_or(|best| record.is_better_than(best)) {
        *best = Some(record);
    }
}

/// Puts a record to peers and routers; returns when enough peers hold it, or at least a router does. What a router has not
/// taken by then it is given again.
pub(super) async fn publish(web: &Web, client: &NodeClient, record: &IpnsRecord) -> Result<(), IpfsError> {
    let mut taken = web.put(record);
    let Err(error) = client.publish_by_dht(record).await else { return Ok(()) };
    match timeout(ROUTER_TIMEOUT, taken.recv()).await {
        Ok(Some(())) => Ok(()),
        Ok(None) | Err(_) => Err(error),
    }
}
