//! Routers that say too much, too little, or what is not so.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use libp2p::identity::Keypair;
use shoal::ipld::Cid;
use shoal::ipld::ipns::{IpnsName, IpnsRecord};
use shoal::web::{Provider, Web, WebError};

use crate::common::PATIENCE;
use crate::double::{Double, JSON, NDJSON, RECORD, endless, redirect_to, said, stalled, status, web};

const ROOT: &str = "bafkreid64eywgjs445ao6ucabvyfucyj4gcxe7nhkgj5ehiv6tdwjze2ra";
/// Providers of one search, as the code bounds them.
const PROVIDERS_MAX: usize = 64;

fn root() -> Cid {
    ROOT.parse().unwrap()
}

fn peer_line() -> String {
    let peer = Keypair::generate_ed25519().public().to_peer_id();
    format!(r#"{{"Schema":"peer","ID":"{peer}","Addrs":["/ip4/127.0.0.1/tcp/1"],"Protocols":["x"]}}"#)
}

async fn search(web: &Web) -> Vec<Provider> {
    let (mut searching, mut found) = (web.find_providers(root()), Vec::new());
    let taking = async {
        while let Some(provider) = searching.recv().await {
            found.push(provider);
        }
    };
    tokio::time::timeout(PATIENCE, taking).await.expect("the search ends");
    found
}

/// A record of this key, as long after now as `hours`.
fn record(key: &Keypair, sequence: u64, hours: i64) -> IpnsRecord {
    let until = Timestamp::now() + SignedDuration::from_hours(hours);
    IpnsRecord::sign(key, &root(), sequence, until, Duration::from_secs(60)).unwrap()
}

async fn resolve(web: &Web, name: &IpnsName) -> Vec<Result<Option<u64>, WebError>> {
    let sequence =
        |said: Result<Option<IpnsRecord>, _>| said.map(|record| record.map(|record| record.sequence()));
    web.resolve(name).map(sequence).collect().await
}

#[tokio::test]
async fn providers_come_as_lines_or_as_a_list_and_unknown_schemas_are_skipped() {
    let records = [peer_line(), r#"{"Schema":"unknown","x":[1]}"#.to_owned(), peer_line(), "{}".to_owned()];
    let lines = records.join("\n");
    let list = format!(r#"{{"Providers":[{}]}}"#, records.join(","));
    for (content_type, body) in [(NDJSON, lines), ("application/json; charset=utf-8", list)] {
        let double = Double::start(move |_| said(content_type, body.clone())).await;
        let found = search(&web(&[&double], &[])).await;
        assert_eq!(found.len(), 2, "{content_type}");
        assert_eq!(found[0].addresses, ["/ip4/127.0.0.1/tcp/1".parse().unwrap()]);
        assert_eq!(double.seen()[0].path, format!("/routing/v1/providers/{ROOT}"));
    }
}

#[tokio::test]
async fn answers_without_end_are_taken_in_within_bounds() {
    let million = endless(format!("{}\n", peer_line()).into_bytes());
    let junk = endless(b"{\"Schema\":\"x\"}\n".to_vec());
    for (body, most) in [(million, PROVIDERS_MAX), (junk, 0), (endless(vec![b'x'; 4096]), 0)] {
        let body = std::sync::Mutex::new(Some(body));
        let double = Double::start(move |_| said(NDJSON, body.lock().unwrap().take().unwrap())).await;
        assert_eq!(search(&web(&[&double], &[])).await.len(), most);
    }
    let double = Double::start(|_| said(JSON, endless(b"[[[[".to_vec()))).await;
    let web = web(&[&double], &[]);
    assert!(search(&web).await.is_empty());
    assert!(matches!(web.silent_router(), Some(WebError::TooLarge { .. })));
}

#[tokio::test]
async fn a_router_that_fails_rests_and_says_why_and_the_others_are_heard() {
    let good = Double::start(|_| said(NDJSON, peer_line())).await;
    let aside = Double::start(|_| said(NDJSON, peer_line())).await;
    let target = aside.url.clone();
    for (what, answer) in [("503", 0), ("redirects", 1), ("\"text/html\"", 2)] {
        let target = target.clone();
        let bad = Double::start(move |_| match answer {
            0 => status(503),
            1 => redirect_to(&target),
            _ => said("text/html", "<html>"),
        })
        .await;
        let web = web(&[&bad, &good], &[]);
        assert_eq!(search(&web).await.len(), 1, "{what}");
        let told = &web.status()[0];
        let error = told.error.clone().unwrap_or_default();
        assert!(!told.is_asked && error.contains(what), "{what}: {told:?}");
        assert_eq!(search(&web).await.len(), 1);
        assert_eq!((bad.asked(), web.status()[1].is_asked), (1, true), "{what}: it rests");
    }
    assert_eq!(aside.asked(), 0, "no redirect is followed");
}

#[tokio::test]
async fn a_record_is_believed_only_if_it_is_of_its_name_and_not_over() {
    let (ours, stranger) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let good = record(&ours, 7, 1);
    let name = *good.name();
    let oversized = [good.bytes().as_ref(), &[0; 11 * 1024]].concat();
    let answers: Vec<(&str, &str, Vec<u8>)> = vec![
        ("good", RECORD, good.bytes().to_vec()),
        ("none in words", "text/plain; charset=utf-8", b"not found".to_vec()),
        ("of another key", RECORD, record(&stranger, 7, 1).bytes().to_vec()),
        ("over", RECORD, record(&ours, 9, -1).bytes().to_vec()),
        ("oversized", RECORD, oversized),
        ("junk", RECORD, vec![0xff; 100]),
        ("a page", "text/html", b"<html>".to_vec()),
    ];
    for (what, content_type, body) in answers {
        let double = Double::start(move |_| said(content_type, body.clone())).await;
        let web = web(&[&double], &[]);
        match (what, resolve(&web, &name).await.as_slice()) {
            ("good", [Ok(Some(7))]) | ("none in words", [Ok(None)]) => assert!(web.silent_router().is_none()),
            (_, [Err(_)]) => assert!(web.silent_router().is_some(), "{what}"),
            (_, said) => panic!("{what}: {said:?}"),
        }
        assert_eq!(double.seen()[0].path, format!("/routing/v1/ipns/{name}"));
    }
    let absent = Double::start(|_| status(404)).await;
    assert_eq!(resolve(&web(&[&absent], &[]), &name).await, [Ok(None)]);
}

#[tokio::test]
async fn a_record_is_given_again_until_it_is_taken_and_a_newer_one_takes_its_place() {
    let key = Keypair::generate_ed25519();
    let asked = AtomicUsize::new(0);
    let double =
        Double::start(move |_| status(if asked.fetch_add(1, Ordering::SeqCst) == 0 { 503 } else { 200 }))
            .await;
    let web = web(&[&double], &[]);
    let mut first = web.put(&record(&key, 1, 1));
    let waiting = async {
        while double.asked() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it is given");
    let newer = record(&key, 2, 1);
    let mut second = web.put(&newer);
    assert_eq!(tokio::time::timeout(PATIENCE, second.recv()).await.unwrap(), Some(()));
    assert_eq!(first.recv().await, None, "nobody takes it any more");
    let seen = double.seen();
    assert_eq!((seen.len(), seen[1].method.as_str(), &seen[1].body), (2, "PUT", newer.bytes()));
}

#[tokio::test]
async fn what_a_router_refuses_keeps_no_other_record_waiting() {
    let (refused, taken) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let bad = record(&refused, 1, 1).name().to_string();
    let double = Double::start(move |seen| status(if seen.path.ends_with(&bad) { 400 } else { 200 })).await;
    let web = web(&[&double], &[]);
    let mut one = web.put(&record(&refused, 1, 1));
    let mut other = web.put(&record(&taken, 1, 1));
    assert_eq!(tokio::time::timeout(PATIENCE, other.recv()).await.unwrap(), Some(()));
    assert_eq!(tokio::time::timeout(PATIENCE, one.recv()).await.unwrap(), None);
}

#[tokio::test]
async fn a_router_that_stalls_is_not_waited_for_by_who_hears_of_another() {
    let slow = Double::start(|_| said(NDJSON, stalled(peer_line().into_bytes()))).await;
    let good = Double::start(|_| said(NDJSON, peer_line())).await;
    let web = web(&[&slow, &good], &[]);
    let mut searching = web.find_providers(root());
    assert!(tokio::time::timeout(PATIENCE, searching.recv()).await.unwrap().is_some());
    assert_eq!(web.status()[0].error, None, "it was given up before");
}
