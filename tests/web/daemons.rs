//! Whole daemons with no peer at all: what they know of each other goes by a router, what they have by a gateway.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::StatusCode;
use shoal::ipld::Cid;
use shoal::store::{Store, StoreOptions};
use tempfile::TempDir;

use crate::common::{Daemon, Image, PATIENCE, daemon};
use crate::double::{Double, NDJSON, RAW, RECORD, said, status};

/// A router that keeps records and says of each DAG that it is at `gateway`, if there is one.
async fn router(gateway: Option<&Double>) -> Double {
    let records = Mutex::new(HashMap::<String, Bytes>::new());
    let peer = libp2p::PeerId::random();
    let provider = gateway.map(|gateway| {
        let port = gateway.url.port().unwrap();
        format!(r#"{{"Schema":"peer","ID":"{peer}","Addrs":["/ip4/127.0.0.1/tcp/{port}/http"]}}"#)
    });
    Double::start(move |seen| {
        let mut records = records.lock().unwrap();
        let known = records.get(&seen.path).cloned();
        match (seen.method.as_str(), known) {
            ("PUT", _) => {
                records.insert(seen.path.clone(), seen.body.clone());
                status(200)
            }
            (_, Some(record)) => said(RECORD, record),
            _ => match &provider {
                Some(provider) if seen.path.starts_with("/routing/v1/providers/") => {
                    said(NDJSON, provider.clone())
                }
                _ => status(404),
            },
        }
    })
    .await
}

/// A gateway for what a daemon that is gone left in its folder.
async fn gateway(folder: TempDir) -> Double {
    let store = Store::open(&folder.path().join("data"), StoreOptions::default()).unwrap();
    let kept = Arc::new((store, folder));
    Double::start(move |seen| {
        let cid: Cid = seen.path.trim_start_matches("/ipfs/").parse().unwrap();
        match kept.0.blocks().get(cid.hash()).unwrap() {
            _ if !seen.query.contains("format=raw") => status(406),
            Some(bytes) => said(RAW, bytes),
            None => status(404),
        }
    })
    .await
}

/// Publishes an image by a router alone, and goes.
async fn published(router: &Double, image: &Image) -> (String, TempDir) {
    let publisher = daemon().env("REGISTRY_P2P_DELEGATEDROUTERS", router.url.as_str()).start();
    publisher.push("library/app", "1", image).await;
    let begun = Instant::now();
    let is_out = |daemon: &Daemon| {
        let own = daemon.status().own.unwrap();
        own.state == "published"
    };
    while !is_out(&publisher) {
        assert!(begun.elapsed() < PATIENCE, "not published: {}", publisher.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (publisher.ipns.clone(), publisher.kill())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_from_a_gateway_by_a_name_that_a_router_knows() {
    let (image, names) = (Image::small(1), router(None).await);
    let (name, folder) = published(&names, &image).await;
    let gateway = gateway(folder).await;
    let reader = daemon()
        .env("REGISTRY_P2P_DELEGATEDROUTERS", names.url.as_str())
        .env("REGISTRY_P2P_GATEWAYS", gateway.url.as_str())
        .reads(&name)
        .read_only()
        .start();
    reader.serves("library/app", "1", &image).await;
    let node = reader.status().node;
    assert_eq!(node.peers, 0);
    let told: Vec<(&str, &str)> =
        node.web.iter().map(|web| (web.kind.as_str(), web.state.as_str())).collect();
    assert_eq!(told, [("router", "asked"), ("gateway", "asked")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_found_among_the_providers_that_a_router_tells_of() {
    let (image, names) = (Image::small(2), router(None).await);
    let (name, folder) = published(&names, &image).await;
    let record = names.seen().into_iter().rev().find(|seen| seen.method == "PUT").unwrap();
    let gateway = gateway(folder).await;
    let router = router(Some(&gateway)).await;
    let client = reqwest::Client::new();
    let url = format!("{}{}", router.url, record.path.trim_start_matches('/'));
    client.put(url).body(record.body).send().await.unwrap();
    let reader =
        daemon().env("REGISTRY_P2P_DELEGATEDROUTERS", router.url.as_str()).reads(&name).read_only().start();
    reader.serves("library/app", "1", &image).await;
    assert!(gateway.asked() > 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failing_gateway_may_have_is_not_said_to_be_absent() {
    let (image, names) = (Image::new(3, &[1000]), router(None).await);
    let (name, _folder) = published(&names, &image).await;
    let down = Double::start(|_| status(503)).await;
    let reader = daemon()
        .env("REGISTRY_P2P_DELEGATEDROUTERS", names.url.as_str())
        .env("REGISTRY_P2P_GATEWAYS", down.url.as_str())
        .reads(&name)
        .read_only()
        .start();
    let waiting = async {
        while reader.status().node.web[1].error.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the gateway is asked");
    let answer = reader.get("library/app/manifests/1").await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let told = &reader.status().node.web[1];
    assert!(told.kind == "gateway" && told.error.as_ref().unwrap().contains("503"), "{told:?}");
}
