//! `shoal import` and `shoal export`: a stock registry's folder into a running daemon, and out of it.

mod common;

use std::path::Path;

use common::files::*;
use common::{Daemon, Image, daemon, random_bytes};
use reqwest::StatusCode;
use shoal::oci::{Digest, storage};
use tempfile::TempDir;

fn import(daemon: &Daemon, folder: &Path, further: &[&str]) -> Ran {
    shoal(daemon, ["import", "--json", &folder.to_string_lossy()].iter().chain(further))
}

fn export(daemon: &Daemon, folder: &Path, repositories: &[&str]) -> Ran {
    shoal(daemon, ["export", "--json", &folder.to_string_lossy()].iter().chain(repositories))
}

#[tokio::test]
async fn a_folder_is_taken_over_with_tags_and_without() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let stock = StockRegistry(folder.path());
    let (tagged, untagged) = (Image::small(1), Image::new(2, &[500]));
    stock.image("library/app", Some("1"), &tagged);
    stock.image("library/app", Some("1.0"), &tagged);
    stock.image("library/app", None, &untagged);
    stock.image("team/deep/er/app", Some("x"), &tagged);
    // An upload that was never finished, and what a deleted manifest leaves.
    stock.write("docker/registry/v2/repositories/library/app/_uploads/1/data", b"half");
    let gone = storage::revision_link(&"library/app".parse().unwrap(), &Digest::sha256(b"gone"));
    std::fs::create_dir_all(folder.path().join(gone).parent().unwrap()).unwrap();

    let first = import(&daemon, folder.path(), &[]);
    // Each byte once: the second repository mounts what the first one brought.
    assert_eq!(first.blobs(), (6, 0, 4));
    for (repo, tag) in [("library/app", "1"), ("library/app", "1.0"), ("team/deep/er/app", "x")] {
        assert_eq!(daemon.pull(repo, tag).await.unwrap(), tagged, "{repo}:{tag}");
    }
    let by_digest = Digest::sha256(&untagged.manifest).to_string();
    assert_eq!(daemon.pull("library/app", &by_digest).await.unwrap(), untagged);

    // Also from the folder that is called v2.
    let again = import(&daemon, &folder.path().join("docker/registry/v2"), &[]);
    assert_eq!(again.blobs(), (0, 10, 0));
}

#[tokio::test]
async fn what_is_broken_is_named_and_the_rest_is_taken_over() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let stock = StockRegistry(folder.path());
    let (good, missing, wrong) = (Image::new(3, &[100]), Image::new(4, &[200]), Image::new(5, &[300]));
    stock.image("library/app", Some("good"), &good);
    stock.image("library/app", Some("missing"), &missing);
    stock.image("library/wrong", Some("1"), &wrong);
    let lost = Digest::sha256(&missing.blobs[1]);
    std::fs::remove_file(folder.path().join(storage::blob_data(&lost))).unwrap();
    stock.write(&storage::blob_data(&Digest::sha256(&wrong.blobs[1])), &random_bytes(99, 300));
    let repo = "library/app".parse().unwrap();
    stock.write(&storage::tag_link(&repo, &"odd".parse().unwrap()), b"sha256:../../etc/passwd");
    stock.write(
        &storage::tag_link(&repo, &"nowhere".parse().unwrap()),
        Digest::sha256(b"?").to_string().as_bytes(),
    );

    let imported = import(&daemon, folder.path(), &[]);
    imported.failed_with("4 images were not moved");
    let errors: Vec<(String, String)> = imported
        .events()
        .iter()
        .filter(|event| event["event"] == "error")
        .map(|event| {
            (event["what"].as_str().unwrap().to_owned(), event["error"].as_str().unwrap().to_owned())
        })
        .collect();
    let said = |what: &str, error: &str| {
        let found = errors.iter().any(|(of, why)| of == what && why.contains(error));
        assert!(found, "{what}: {error} is not among {errors:?}");
    };
    said("library/app:missing", &lost.to_string());
    said("library/app:odd", "is not a link to a digest");
    said("library/app:nowhere", &format!("manifest {} is missing", Digest::sha256(b"?")));
    said("library/wrong:1", &Digest::sha256(&wrong.blobs[1]).to_string());

    assert_eq!(daemon.pull("library/app", "good").await.unwrap(), good);
    for (repo, tag) in [("library/app", "missing"), ("library/wrong", "1")] {
        assert_eq!(daemon.get(&format!("{repo}/manifests/{tag}")).await.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn only_the_repositories_that_match_are_taken_over() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let stock = StockRegistry(folder.path());
    let image = Image::new(6, &[100]);
    for repo in ["library/app", "library/other", "team/app"] {
        stock.image(repo, Some("1"), &image);
    }
    assert!(import(&daemon, folder.path(), &["--repository", "library/*"]).ok);
    assert_eq!(daemon.pull("library/other", "1").await.unwrap(), image);
    assert_eq!(daemon.get("team/app/manifests/1").await.status(), StatusCode::NOT_FOUND);
    import(&daemon, folder.path(), &["--repository", "none"]).failed_with("has no repository of that name");
    import(&daemon, &folder.path().join("docker/registry/v2/blobs"), &[])
        .failed_with("is not the folder of a registry");
}

#[tokio::test]
async fn an_export_is_what_was_imported() {
    let (here, there, folder) = (daemon().start(), daemon().start(), TempDir::new().unwrap());
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let stock = StockRegistry(&from);
    let (amd, arm) = (Image::small(7), Image::new(8, &[700]));
    stock.image("library/app", Some("1"), &amd);
    stock.image("library/multi", None, &amd);
    stock.image("library/multi", None, &arm);
    let index = index_of(&[("amd64", &amd), ("arm64", &arm)]);
    stock.image("library/multi", Some("x"), &Image { blobs: vec![], manifest: index.clone() });
    assert!(import(&here, &from, &[]).ok);

    let first = export(&here, &to, &[]);
    assert_eq!(first.blobs(), (6, 4, 0));
    assert_eq!(files_below(&from), files_below(&to));
    assert_eq!(export(&here, &to, &["library/app", "library/multi"]).blobs(), (0, 10, 0));

    // What was damaged is written again, and a tag that moved is led elsewhere.
    let damaged = to.join(storage::blob_data(&Digest::sha256(&amd.blobs[2])));
    std::fs::write(&damaged, b"half").unwrap();
    here.push("library/app", "1", &arm).await;
    assert_eq!(export(&here, &to, &["library/app", "library/multi"]).blobs().0, 1);
    assert_eq!(std::fs::read(&damaged).unwrap(), amd.blobs[2]);

    assert!(import(&there, &to, &[]).ok);
    assert_eq!(there.pull("library/app", "1").await.unwrap(), arm);
    let answer = there.get("library/multi/manifests/x").await;
    assert_eq!(answer.headers()["content-type"], IMAGE_INDEX);
    assert_eq!(answer.bytes().await.unwrap(), index);
    export(&here, &to, &["library/none"]).failed_with("repository library/none is unknown to the daemon");
}

#[tokio::test]
async fn what_refers_to_an_image_goes_with_it() {
    let (here, there, folder) = (daemon().start(), daemon().start(), TempDir::new().unwrap());
    let image = Image::new(12, &[100]);
    here.push("library/app", "1", &image).await;
    // A signature, and a signature of that.
    let mut subject = Digest::sha256(&image.manifest);
    for seed in [13, 14] {
        let mut signature = Image::new(seed, &[10]);
        let mut manifest: serde_json::Value = serde_json::from_slice(&signature.manifest).unwrap();
        manifest["subject"] = serde_json::json!({"mediaType": common::IMAGE_MANIFEST, "digest": subject.to_string(), "size": 1});
        signature.manifest = serde_json::to_vec(&manifest).unwrap();
        subject = Digest::sha256(&signature.manifest);
        here.push("library/app", &subject.to_string(), &signature).await;
    }
    assert!(export(&here, folder.path(), &["library/app"]).ok);
    assert!(import(&there, folder.path(), &[]).ok);
    assert_eq!(
        there.pull("library/app", &subject.to_string()).await.unwrap(),
        here.pull("library/app", &subject.to_string()).await.unwrap()
    );
}

#[tokio::test]
async fn a_read_only_daemon_takes_nothing_and_says_so_once() {
    let publisher = daemon().start();
    let reader = daemon().knows(&publisher).reads(&publisher.ipns).read_only().start();
    publisher.push("library/app", "1", &Image::new(9, &[10])).await;
    reader.serves("library/app", "1", &Image::new(9, &[10])).await;
    let folder = TempDir::new().unwrap();
    let stock = StockRegistry(folder.path());
    stock.image("library/new", Some("1"), &Image::new(10, &[10]));
    stock.image("library/new", Some("2"), &Image::new(11, &[10]));
    let imported = import(&reader, folder.path(), &[]);
    imported.failed_with("this daemon is read-only");
    assert!(imported.events().iter().all(|event| event["event"] != "error"), "{imported:?}");
}
