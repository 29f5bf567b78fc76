//! end-8: tags, in pages.

use serde_json::{Value, json};

use super::common::{Daemon, Image, daemon};
use super::{header, refused};

async fn tags(daemon: &Daemon, path: &str) -> (Vec<String>, Option<String>) {
    let answer = daemon.get(path).await;
    let link = header(&answer, "link").map(str::to_owned);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["name"], "library/app");
    let names = body["tags"].as_array().unwrap().iter().map(|tag| tag.as_str().unwrap().to_owned());
    (names.collect(), link)
}

#[tokio::test]
async fn tags_are_listed_in_order_and_in_pages() {
    let daemon = daemon().start();
    let image = Image::new(1, &[10]);
    for blob in &image.blobs {
        daemon.push_blob("library/app", blob).await;
    }
    let mut all: Vec<String> =
        (0..130).map(|n| format!("v{n}")).chain(["latest", "_x", "RC"].map(str::to_owned)).collect();
    let puts = all.iter().map(|tag| daemon.put_manifest("library/app", tag, &image.manifest));
    for put in futures::future::join_all(puts).await {
        assert_eq!(put.status(), 201);
    }
    all.sort_unstable();

    assert_eq!(tags(&daemon, "library/app/tags/list").await, (all.clone(), None));
    assert_eq!(tags(&daemon, "library/app/tags/list?n=1000000000").await, (all.clone(), None));
    assert_eq!(tags(&daemon, "library/app/tags/list?n=133").await, (all.clone(), None));
    assert_eq!(tags(&daemon, "library/app/tags/list?n=0").await, (Vec::new(), None));
    assert_eq!(tags(&daemon, "library/app/tags/list?last=v98").await, (vec!["v99".to_owned()], None));
    assert_eq!(tags(&daemon, "library/app/tags/list?last=zzz").await, (Vec::new(), None));
    // What `last` names need not exist.
    assert_eq!(tags(&daemon, "library/app/tags/list?last=v989&n=5").await, (vec!["v99".to_owned()], None));

    for n in [1, 7, 50, 132] {
        let (mut path, mut listed) = (format!("library/app/tags/list?n={n}"), Vec::new());
        loop {
            let (page, link) = tags(&daemon, &path).await;
            assert!(page.len() <= n);
            listed.extend(page);
            let Some(link) = link else { break };
            let next = link.strip_prefix("</v2/").unwrap().strip_suffix(">; rel=\"next\"").unwrap();
            path = next.to_owned();
        }
        assert_eq!(listed, all, "pages of {n}");
    }
}

#[tokio::test]
async fn a_repository_without_tags_has_an_empty_list() {
    let daemon = daemon().start();
    daemon.push_blob("library/app", b"content").await;
    let body: Value = daemon.get("library/app/tags/list").await.json().await.unwrap();
    assert_eq!(body, json!({"name": "library/app", "tags": []}));
    let head = daemon.client.head(daemon.url("library/app/tags/list")).send().await.unwrap();
    assert_eq!(head.status(), 200);
    refused(daemon.get("library/other/tags/list").await, 404, "NAME_UNKNOWN").await;
}

#[tokio::test]
async fn a_page_has_a_number_of_entries_that_is_one() {
    let daemon = daemon().start();
    daemon.push("library/app", "1", &Image::new(1, &[10])).await;
    for n in ["-1", "abc", "1.5", "", "99999999999999999999999", "%00"] {
        let answer = daemon.get(&format!("library/app/tags/list?n={n}")).await;
        refused(answer, 400, "PAGINATION_NUMBER_INVALID").await;
    }
}
