//! One delegated router: who has a DAG, and records of names, both ways (specification "Delegated Routing V1 HTTP API").

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout};
use url::Url;

use super::WebStatus;
use super::client::{Http, WebError, place_of};
use super::gateways::Gateways;
use super::health::Health;
use super::places::{Reach, gateway_url};
use super::providers::{self, Lines, Provider};
use crate::ipld::ipns::{IpnsName, IpnsRecord, RECORD_BYTES_MAX};
use crate::tasks::jittered;

const API: &str = "routing/v1";
const NDJSON: &str = "application/x-ndjson";
const JSON: &str = "application/json";
const PROVIDERS: &str = "application/x-ndjson, application/json";
const RECORD: &str = "application/vnd.ipfs.ipns-record";
const TEXT: &str = "text/plain";

/// What a search may take.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(15);
/// What of an answer is read, in bytes: as it comes, or whole.
const NDJSON_BYTES_MAX: usize = 4 << 20;
const JSON_BYTES_MAX: usize = 1 << 20;
/// Providers that one search takes in, and records that it looks at.
const PROVIDERS_MAX: usize = 64;
const RECORDS_MAX: usize = 1000;
/// Names whose records wait to be given to a router.
const NAMES_MAX: usize = 1024;
/// The pause before a record is given again that was not taken.
const AGAIN: Duration = Duration::from_secs(5);

pub(super) struct Router {
    base: Url,
    http: Http,
    health: Health,
    /// The newest record of each name that is to be given.
    waiting: Mutex<HashMap<IpnsName, Waiting>>,
    given: Notify,
}

struct Waiting {
    record: IpnsRecord,
    taken: mpsc::Sender<()>,
}

impl Router {
    /// `base`: with or without `/routing/v1` at its end.
    pub(super) fn new(http: Http, base: Url) -> Self {
        Self { base, http, health: Health::default(), waiting: Mutex::default(), given: Notify::new() }
    }

    fn url(&self, kind: &str, key: &str) -> Url {
        let mut url = self.base.clone();
        let above = url.path().trim_end_matches('/').trim_end_matches(API).trim_end_matches('/').to_owned();
        url.set_path(&format!("{above}/{API}/{kind}/{key}"));
        url
    }

    /// Gives providers of a DAG to `found` as they come, and gateways among them to `gateways`.
    pub(super) async fn find_providers(
        &self,
        root: &Cid,
        gateways: &Gateways,
        found: &mpsc::Sender<Provider>,
    ) -> Result<(), WebError> {
        if let Some(error) = self.health.rests(Instant::now()) {
            return Err(error);
        }
        let search = self.search(root, gateways, found);
        let late = |_| WebError::Timeout { place: place_of(&self.base), waited: SEARCH_TIMEOUT };
        let outcome = timeout(SEARCH_TIMEOUT, search).await.map_err(late).and_then(|outcome| outcome);
        self.note("providers", &outcome);
        outcome
    }

    async fn search(
        &self,
        root: &Cid,
        gateways: &Gateways,
        found: &mpsc::Sender<Provider>,
    ) -> Result<(), WebError> {
        let url = self.url("providers", &root.to_string());
        let Some(mut answer) = self.http.get(url, Reach::Any, PROVIDERS).await? else { return Ok(()) };
        let reach = Reach::of_teller(answer.response.remote_addr().map(|address| address.ip()));
        let mut intake = Intake { root, reach, gateways, found, records: 0, providers: 0 };
        if answer.content_type().eq_ignore_ascii_case(JSON) {
            let place = answer.place.clone();
            let body = answer.whole(JSON_BYTES_MAX).await?;
            let no_answer = || WebError::Wrong { place, what: "it has no list of providers".to_owned() };
            for record in providers::records(&body).ok_or_else(no_answer)? {
                if !intake.take(record).await {
                    break;
                }
            }
            return Ok(());
        }
        answer.require_type(NDJSON)?;
        let (mut lines, mut read, mut whole) = (Lines::default(), 0, false);
        while !whole && read < NDJSON_BYTES_MAX {
            let mut records = Vec::new();
            match answer.chunk().await? {
                Some(bytes) => {
                    read += bytes.len();
                    lines.push(&bytes, |line| records.push(line.to_vec()));
                }
                None => {
                    whole = true;
                    lines.finish(|line| records.push(line.to_vec()));
                }
            }
            for record in &records {
                if !intake.take(record).await {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What it has for a name: verified and not expired.
    pub(super) async fn resolve(&self, name: &IpnsName) -> Result<Option<IpnsRecord>, WebError> {
        if let Some(error) = self.health.rests(Instant::now()) {
            return Err(error);
        }
        let outcome = self.get_record(name).await;
        self.note("record", &outcome);
        outcome
    }

    async fn get_record(&self, name: &IpnsName) -> Result<Option<IpnsRecord>, WebError> {
        let url = self.url("ipns", &name.to_string());
        let Some(answer) = self.http.get(url, Reach::Any, RECORD).await? else { return Ok(None) };
        // "No record" in words, with status 200.
        if answer.content_type().eq_ignore_ascii_case(TEXT) {
            return Ok(None);
        }
        answer.require_type(RECORD)?;
        let place = answer.place.clone();
        let bytes: Bytes = answer.whole(RECORD_BYTES_MAX).await?;
        let record = IpnsRecord::decode(name, &bytes)
            .and_then(|record| record.check_validity(Timestamp::now()).map(|()| record));
        record.map(Some).map_err(|error| WebError::Wrong { place, what: error.to_string() })
    }

    /// Has a record given to the router, in the place of an older one of its name; `taken` is told.
    pub(super) fn put(&self, record: IpnsRecord, taken: mpsc::Sender<()>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let name = *record.name();
        if waiting.len() >= NAMES_MAX && !waiting.contains_key(&name) {
            tracing::warn!(router = place_of(&self.base), ipns = %name, "record not given: too many wait");
            return;
        }
        if waiting.get(&name).is_none_or(|known| !known.record.is_better_than(&record)) {
            waiting.insert(name, Waiting { record, taken });
        }
        drop(waiting);
        self.given.notify_one();
    }

    /// Gives the router what waits for it, until each record is taken or outdated. Never ends; may be dropped midway.
    pub(super) async fn give_records(self: Arc<Self>) {
        loop {
            self.given.notified().await;
            while let Some(record) = self.next_to_give() {
                let url = self.url("ipns", &record.name().to_string());
                let outcome = self.http.put(url, RECORD, record.bytes().clone()).await;
                self.note("put", &outcome);
                // What it refuses it would refuse again; the others must not wait for that.
                if matches!(outcome, Ok(()) | Err(WebError::Refused { .. })) {
                    self.is_done_with(&record, outcome.is_ok());
                    continue;
                }
                let rest = self.health.rests_until().map(|until| until.duration_since(Instant::now()));
                tokio::time::sleep(jittered(rest.unwrap_or_default().max(AGAIN))).await;
            }
        }
    }

    fn next_to_give(&self) -> Option<IpnsRecord> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        waiting.retain(|_, waiting| waiting.record.check_validity(now).is_ok());
        waiting.values().next().map(|waiting| waiting.record.clone())
    }

    fn is_done_with(&self, record: &IpnsRecord, taken: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |known: &Waiting| known.record.bytes() == record.bytes();
        if waiting.get(record.name()).is_some_and(is_same)
            && let Some(done) = waiting.remove(record.name())
            && taken
        {
            // Nobody may be listening any more.
            let _ = done.taken.try_send(());
        }
    }

    /// Why it could not be asked lately, if it could not.
    pub(super) fn silence(&self) -> Option<WebError> {
        self.health.last()
    }

    fn note<T>(&self, what: &'static str, outcome: &Result<T, WebError>) {
        if let Err(error) = outcome {
            let first = self.health.last().is_none();
            if first {
                tracing::warn!(what, %error, "a delegated router fails, and rests for a while");
            } else {
                tracing::debug!(what, %error, "a delegated router fails");
            }
        }
        self.health.judge(Instant::now(), outcome);
    }

    pub(super) fn status(&self) -> WebStatus {
        WebStatus {
            url: self.base.to_string(),
            is_router: true,
            is_asked: self.health.rests(Instant::now()).is_none(),
            error: self.health.last().map(|error| error.to_string()),
        }
    }
}

/// Where the records of one answer go.
struct Intake<'a> {
    root: &'a Cid,
    reach: Reach,
    gateways: &'a Gateways,
    found: &'a mpsc::Sender<Provider>,
    records: usize,
    providers: usize,
}

impl Intake<'_> {
    /// Takes one record; `false`: no further one is needed.
    async fn take(&mut self, record: &[u8]) -> bool {
        self.records += 1;
        if let Some(provider) = providers::provider(record, self.reach) {
            self.providers += 1;
            let urls = provider.web.iter().filter_map(|address| gateway_url(address, self.reach));
            urls.for_each(|url| self.gateways.found(self.root, url, self.reach));
            let only_web = provider.addresses.is_empty() && !provider.web.is_empty();
            if !only_web && self.found.send(provider).await.is_err() {
                return false;
            }
        }
        self.records < RECORDS_MAX && self.providers < PROVIDERS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_is_named_with_or_without_the_path_of_its_api() {
        let http = Http::new().unwrap();
        for (base, url) in [
            ("https://r.example", "https://r.example/routing/v1/ipns/k"),
            ("https://r.example/routing/v1/", "https://r.example/routing/v1/ipns/k"),
            ("http://r.example:8080/a/", "http://r.example:8080/a/routing/v1/ipns/k"),
            ("http://r.example/a/routing/v1", "http://r.example/a/routing/v1/ipns/k"),
        ] {
            let router = Router::new(http.clone(), base.parse().unwrap());
            assert_eq!(router.url("ipns", "k").as_str(), url);
        }
    }
}
