//! `shoal load` and `shoal save`: images out of files into a running daemon, and back.

mod common;

use std::os::unix::fs::symlink;
use std::path::Path;

use common::files::*;
use common::{Image, daemon, random_bytes};
use reqwest::StatusCode;
use shoal::oci::Digest;
use tempfile::TempDir;

#[tokio::test]
async fn a_layout_comes_back_as_it_went_in() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let image = Image::small(1);
    write_layout(&folder.path().join("in"), &[&image], &[("1", &image.manifest)]);

    let loaded = shoal(&daemon, ["load", "--json", &path_in(&folder, "in"), "library/app"]);
    assert_eq!(loaded.blobs(), (4, 0, 0));
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), image);

    let saved = shoal(&daemon, ["save", "--json", "library/app:1", &path_in(&folder, "out")]);
    assert_eq!(saved.blobs(), (4, 0, 0));
    let blobs = |name: &str| files_below(&folder.path().join(name).join("blobs"));
    assert_eq!(blobs("in"), blobs("out"));
    assert_eq!(tags_of(&folder.path().join("in")), tags_of(&folder.path().join("out")));
}

#[tokio::test]
async fn each_form_of_a_layout_is_loaded() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let image = Image::small(2);
    write_layout(&folder.path().join("in"), &[&image], &[("1", &image.manifest)]);
    let plain = tar_of(&folder.path().join("in"));
    let packed = gzip(&plain);
    std::fs::write(path_in(&folder, "plain.tar"), &plain).unwrap();
    std::fs::write(path_in(&folder, "packed.tgz"), &packed).unwrap();

    let forms = [
        ("plain", shoal(&daemon, ["load", &path_in(&folder, "plain.tar"), "plain:x"])),
        ("packed", shoal(&daemon, ["load", &path_in(&folder, "packed.tgz"), "packed:x"])),
        ("stdin", shoal_fed(&daemon, ["load", "-", "stdin:x"], &plain)),
        ("packed-stdin", shoal_fed(&daemon, ["load", "-", "packed-stdin:x"], &packed)),
    ];
    for (repo, loaded) in forms {
        assert!(loaded.ok, "{repo}: {}", loaded.stderr);
        assert_eq!(daemon.pull(repo, "x").await.unwrap(), image, "{repo}");
    }
}

#[tokio::test]
async fn what_is_saved_as_tar_is_loaded_elsewhere() {
    let (here, there, folder) = (daemon().start(), daemon().start(), TempDir::new().unwrap());
    let image = Image::small(3);
    here.push("library/app", "1", &image).await;

    assert!(shoal(&here, ["save", "library/app:1", &path_in(&folder, "app.tar")]).ok);
    let piped = shoal(&here, ["save", "--quiet", "library/app:1", "-"]);
    assert_eq!(piped.stdout, std::fs::read(folder.path().join("app.tar")).unwrap());
    assert!(shoal_fed(&there, ["load", "-", "library/app"], &piped.stdout).ok);
    assert_eq!(there.pull("library/app", "1").await.unwrap(), image);
}

#[tokio::test]
async fn an_image_of_several_platforms_is_moved_whole_or_in_part() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let (amd, arm) = (Image::new(4, &[1000]), Image::new(5, &[2000]));
    let index = index_of(&[("amd64", &amd), ("arm64", &arm)]);
    write_layout(&folder.path().join("in"), &[&amd, &arm], &[("multi", &index)]);

    assert!(shoal(&daemon, ["load", &path_in(&folder, "in"), "library/app"]).ok);
    assert_eq!(digest_of(&daemon, "library/app", "multi").await, Digest::sha256(&index));
    assert!(shoal(&daemon, ["save", "library/app:multi", &path_in(&folder, "out")]).ok);
    let blobs = |name: &str| files_below(&folder.path().join(name).join("blobs"));
    assert_eq!(blobs("in"), blobs("out"));

    let arguments = ["save", "--platform", "linux/arm64", "library/app:multi", &path_in(&folder, "arm")];
    assert!(shoal(&daemon, arguments).ok);
    let only = vec![("multi".to_owned(), Digest::sha256(&arm.manifest).to_string())];
    assert_eq!(tags_of(&folder.path().join("arm")), only);
    let arguments = ["load", "--platform", "linux/amd64", &path_in(&folder, "in"), "library/app:amd"];
    assert!(shoal(&daemon, arguments).ok);
    assert_eq!(daemon.pull("library/app", "amd").await.unwrap(), amd);
    std::fs::remove_file(blob_path(&folder.path().join("in"), &arm.manifest)).unwrap();
    assert!(shoal(&daemon, ["load", "--platform", "linux/amd64", &path_in(&folder, "in"), "part"]).ok);
    let whole = shoal(&daemon, ["load", &path_in(&folder, "in"), "part"]);
    whole.failed_with("choose one with --platform");
    let absent = ["save", "--platform", "linux/s390x", "library/app:multi", &path_in(&folder, "none")];
    shoal(&daemon, absent).failed_with("it has linux/amd64, linux/arm64");
}

#[tokio::test]
async fn a_docker_archive_goes_where_its_names_say_and_back() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let layers = [tar(&[("a", b"one")]), tar(&[("b", &random_bytes(1, 2_000_000))])];
    let archive = docker_archive(&layers, &["docker.io/library/app:1", "localhost:5000/team/app:2"]);

    assert!(shoal_fed(&daemon, ["load", "-"], &archive).ok);
    let loaded = digest_of(&daemon, "library/app", "1").await;
    assert_eq!(digest_of(&daemon, "team/app", "2").await, loaded);
    let image = daemon.pull("library/app", "1").await.unwrap();
    assert_eq!(image.blobs[1..], layers);

    let arguments = ["save", "--format", "docker-archive", "library/app:1", &path_in(&folder, "app.tar")];
    assert!(shoal(&daemon, arguments).ok);
    let again = shoal(&daemon, ["load", "--json", &path_in(&folder, "app.tar"), "again"]);
    assert_eq!(again.blobs(), (0, 0, 3));
    // Made anew from the same config and layers, the manifest is the same.
    assert_eq!(digest_of(&daemon, "again", "1").await, loaded);
}

#[tokio::test]
async fn a_docker_archive_whose_layer_was_changed_is_refused() {
    let daemon = daemon().start();
    let layer = tar(&[("a", b"honest")]);
    let archive = docker_archive(&[layer], &["app:1"]);
    let at = archive.windows(6).position(|window| window == b"honest").unwrap();
    let mut changed = archive.clone();
    changed[at..at + 6].copy_from_slice(b"forged");
    shoal_fed(&daemon, ["load", "-"], &changed).failed_with("layer-0/layer.tar in standard input is damaged");
    assert_eq!(daemon.get("app/manifests/1").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_wrong_blob_is_refused_and_nothing_names_it() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let image = Image::small(6);
    let layout = folder.path().join("in");
    write_layout(&layout, &[&image], &[("1", &image.manifest)]);
    let wrong = blob_path(&layout, &image.blobs[3]);
    let mut content = image.blobs[3].clone();
    content[1_000_000] ^= 1;
    std::fs::write(&wrong, content).unwrap();

    let loaded = shoal(&daemon, ["load", &path_in(&folder, "in"), "library/app"]);
    loaded.failed_with(&Digest::sha256(&image.blobs[3]).to_string());
    loaded.failed_with(wrong.to_str().unwrap());
    std::fs::write(&wrong, &image.blobs[3][1..]).unwrap();
    shoal(&daemon, ["load", &path_in(&folder, "in"), "library/app"]).failed_with("its manifest says 2500000");
    std::fs::remove_file(&wrong).unwrap();
    shoal(&daemon, ["load", &path_in(&folder, "in"), "library/app"]).failed_with("is not whole");
    assert_eq!(daemon.get("library/app/manifests/1").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn what_is_there_is_not_sent_again() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let image = Image::small(7);
    write_layout(&folder.path().join("in"), &[&image], &[("1", &image.manifest)]);
    daemon.push_blob("library/app", &image.blobs[3]).await;
    let load = |repo: &str| shoal(&daemon, ["load", "--json", &path_in(&folder, "in"), repo]);

    let first = load("library/app");
    assert_eq!(first.blobs(), (3, 1, 0));
    let sent = first.events().into_iter().filter(|event| event["event"] == "blob");
    let digests: Vec<_> = sent.map(|event| event["digest"].clone()).collect();
    assert!(!digests.contains(&Digest::sha256(&image.blobs[3]).to_string().into()));
    assert_eq!(load("library/app").blobs(), (0, 4, 0));
    assert_eq!(load("library/other").blobs(), (0, 0, 4));

    let save = || shoal(&daemon, ["save", "--json", "library/app:1", &path_in(&folder, "out")]);
    assert_eq!(save().blobs(), (4, 0, 0));
    std::fs::write(blob_path(&folder.path().join("out"), &image.blobs[2]), b"half").unwrap();
    assert_eq!(save().blobs(), (1, 3, 0));
}

#[tokio::test]
async fn one_of_several_images_is_chosen() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let (one, two) = (Image::new(8, &[10]), Image::new(9, &[10]));
    write_layout(
        &folder.path().join("in"),
        &[&one, &two],
        &[("1", &one.manifest), ("team/app:2", &two.manifest)],
    );
    let load = |arguments: &[&str]| {
        let layout = path_in(&folder, "in");
        shoal(&daemon, ["load", &layout].iter().chain(arguments))
    };
    load(&["library/app"]).failed_with("choose one with --image, or take --all. It has 1, team/app:2");
    assert!(load(&["library/app:1"]).ok && load(&["library/app:x", "--image", "team/app:2"]).ok);
    assert_eq!(daemon.pull("library/app", "1").await.unwrap(), one);
    assert_eq!(daemon.pull("library/app", "x").await.unwrap(), two);
    assert!(load(&["all", "--all"]).ok && load(&[]).ok);
    assert_eq!(daemon.pull("all", "1").await.unwrap(), one);
    assert_eq!(daemon.pull("all", "2").await.unwrap(), two);
    assert_eq!(daemon.pull("team/app", "2").await.unwrap(), two);
}

#[tokio::test]
async fn a_layout_gets_a_further_image_and_another_folder_is_left_alone() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let (one, two) = (Image::new(10, &[10]), Image::new(11, &[10]));
    daemon.push("library/app", "1", &one).await;
    daemon.push("library/app", "2", &two).await;
    let save = |name: &str, to: &str| shoal(&daemon, ["save", name, &path_in(&folder, to)]);
    assert!(save("library/app:1", "out").ok && save("library/app:2", "out").ok);
    let named = |tag: &str, image: &Image| (tag.to_owned(), Digest::sha256(&image.manifest).to_string());
    assert_eq!(tags_of(&folder.path().join("out")), [named("1", &one), named("2", &two)]);
    daemon.push("library/app", "1", &two).await;
    assert!(save("library/app:1", "out").ok);
    assert_eq!(tags_of(&folder.path().join("out")), [named("2", &two), named("1", &two)]);

    write(&folder.path().join("mine/letter"), b"dear");
    save("library/app:1", "mine").failed_with("has something else in it");
    save("library/app:1", "app.tar.gz").failed_with("archives are not packed here");
    let both = shoal(&daemon, ["save", "--json", "library/app:1", "-"]);
    both.failed_with("standard output cannot take both");
    save("library/none:1", "none.tar").failed_with("manifest 1 of library/none is unknown to the daemon");
    let left: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(files_below(&folder.path().join("mine")).len(), 1);
}

#[tokio::test]
async fn a_hostile_layout_is_refused_with_a_word_of_why() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let image = Image::new(12, &[10]);
    let refused = |name: &str, said: &str| {
        shoal(&daemon, ["load", &path_in(&folder, name), "library/app:1"]).failed_with(said);
    };
    let huge = |layout: &Path, name: &str| {
        write(&layout.join("oci-layout"), b"{}");
        // A file with a hole: it takes no room.
        std::fs::File::create(layout.join(name)).unwrap().set_len(1 << 30).unwrap();
    };
    huge(&folder.path().join("huge"), "index.json");
    refused("huge", "larger than the 4194304 bytes");

    let pipe = folder.path().join("pipe");
    write_layout(&pipe, &[&image], &[("1", &image.manifest)]);
    let blob = blob_path(&pipe, &image.blobs[1]);
    std::fs::remove_file(&blob).unwrap();
    symlink("/dev/zero", &blob).unwrap();
    refused("pipe", "is not a regular file");

    std::fs::write(folder.path().join("junk.tar"), random_bytes(1, 5000)).unwrap();
    refused("junk.tar", "is no tar archive");
    std::fs::write(folder.path().join("empty.tar"), b"").unwrap();
    refused("empty.tar", "is no tar archive");
    refused("nowhere", "cannot read");
    std::fs::write(folder.path().join("strange.tar"), tar(&[("index.json", b"[]")])).unwrap();
    refused("strange.tar", "is not the JSON of an image index");
    assert_eq!(daemon.get("library/app/manifests/1").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_command_without_a_daemon_says_so() {
    let (daemon, folder) = (daemon().start(), TempDir::new().unwrap());
    let config = std::fs::read_to_string(daemon.config()).unwrap();
    write_layout(&folder.path().join("in"), &[&Image::new(13, &[1])], &[]);
    std::fs::write(folder.path().join("config.yaml"), config.replace("/data", "/nobody")).unwrap();
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_shoal"))
        .args([
            "save",
            "library/app:1",
            &path_in(&folder, "out.tar"),
            "--config",
            &path_in(&folder, "config.yaml"),
        ])
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(1));
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(said.contains("no daemon answers at") && said.contains("shoal serve"), "{said}");
}
