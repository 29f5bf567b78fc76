//! Trees that a valid key publishes and no honest daemon would: the reader says what is wrong, within bounds.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::StatusCode;
use shoal::dag::Entry;
use shoal::ipld::Cid;
use shoal::ipld::unixfs::{File, FileChild};
use shoal::oci::Digest;

use crate::author::{Author, blob_data, has_taken, tag_link, tags};
use crate::common::{Daemon, Image, random_bytes};
use crate::names::endless_directory;

const MIB: usize = 1 << 20;
/// No answer to a spoiled tree takes longer than one to a tree that cannot be had.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A daemon that follows a tree in which `path` was replaced.
async fn reader_of(author: &Author, image: &Image, path: &str, to: Entry) -> Daemon {
    let root = author.tree_of(image).await;
    let spoiled = author.edit(&root, path, to).await;
    reads(author, &spoiled).await
}

/// A daemon that serves a root of the author.
async fn reads(author: &Author, root: &Cid) -> Daemon {
    let reader = author.reader();
    author.publish_root(root, 1).await;
    has_taken(&reader, root).await;
    reader
}

/// The path is answered with an error of the server that says why.
async fn fails(reader: &Daemon, path: &str) {
    let begun = Instant::now();
    let answer = reader.get(path).await;
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_server_error(), "{path}: {status} {text}");
    assert!(text.contains("\"message\""), "{text}");
    assert!(begun.elapsed() < ANSWER_TIMEOUT);
    assert!(reader.memory_bytes() < 320 << 20, "{} MiB", reader.memory_bytes() >> 20);
}

/// The blob is not given with a clean end.
async fn breaks_off(reader: &Daemon, digest: &Digest) {
    let answer = reader.get(&format!("library/app/blobs/{digest}")).await;
    let status = answer.status();
    assert!(status == StatusCode::OK || status.is_server_error(), "{status}");
    if status == StatusCode::OK {
        assert!(answer.bytes().await.is_err(), "the body has a clean end");
    }
    assert!(reader.memory_bytes() < 320 << 20, "{} MiB", reader.memory_bytes() >> 20);
}

/// A file node whose parts claim these sizes.
async fn file(author: &Author, parts: &[(Entry, u64)]) -> Entry {
    let child = |(entry, size_bytes): &(Entry, u64)| FileChild {
        cid: entry.cid,
        size_bytes: *size_bytes,
        tsize: *size_bytes,
    };
    let file = File { data: Bytes::new(), children: parts.iter().map(child).collect() };
    author.put(file.encode()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_claims_a_tebibyte_is_not_read() {
    let (author, image) = (Author::start().await, Image::small(300));
    let part = author.leaf(b"sha256:").await;
    let link = file(&author, &[(part, 1 << 40)]).await;
    let reader = reader_of(&author, &image, &tag_link("1"), link).await;
    fails(&reader, "library/app/manifests/1").await;
    // What the link does not spoil is there.
    let digest = Digest::sha256(&image.manifest);
    assert_eq!(reader.get(&format!("library/app/manifests/{digest}")).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_end_is_walked_within_bounds() {
    let (author, image) = (Author::start().await, Image::small(301));
    let bomb = endless_directory(&author, "1").await;
    let reader = reader_of(&author, &image, &tags(), bomb).await;
    fails(&reader, "library/app/manifests/1").await;
    fails(&reader, "library/app/tags/list").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_a_manifest_that_is_another_is_refused() {
    let (author, image) = (Author::start().await, Image::small(302));
    // The link names a digest under which other bytes lie.
    let claimed = Digest::sha256(b"what the author says it is");
    let link = author.leaf(claimed.to_string().as_bytes()).await;
    let other = author.leaf(&image.manifest).await;
    let root = author.tree_of(&image).await;
    let root = author.edit(&root, &blob_data(&claimed), other).await;
    let root = author.edit(&root, &tag_link("1"), link).await;
    // And one names a digest under which nothing lies.
    let nothing = author.leaf(Digest::sha256(b"nothing").to_string().as_bytes()).await;
    let root = author.edit(&root, &tag_link("2"), nothing).await;
    let no_link = author.leaf(b"../../../etc/passwd").await;
    let root = author.edit(&root, &tag_link("3"), no_link).await;
    let reader = reads(&author, &root).await;
    for tag in ["1", "2", "3"] {
        fails(&reader, &format!("library/app/manifests/{tag}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_manifest_is_not_served_as_one() {
    let (author, image) = (Author::start().await, Image::small(303));
    let junk = b"<html>not a manifest</html>";
    let digest = Digest::sha256(junk);
    let (link, data) = (author.leaf(digest.to_string().as_bytes()).await, author.leaf(junk).await);
    let root = author.tree_of(&image).await;
    let root = author.edit(&root, &blob_data(&digest), data).await;
    let root = author.edit(&root, &tag_link("1"), link).await;
    let reader = reads(&author, &root).await;
    fails(&reader, "library/app/manifests/1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_over_four_mebibytes_is_not_read() {
    let (author, image) = (Author::start().await, Image::small(304));
    let mut parts = Vec::new();
    for n in 0..5 {
        parts.push((author.leaf(&random_bytes(n, MIB)).await, MIB as u64));
    }
    let large = file(&author, &parts).await;
    let digest = Digest::sha256(&image.manifest);
    let reader = reader_of(&author, &image, &blob_data(&digest), large).await;
    fails(&reader, "library/app/manifests/1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_lies_about_its_sizes_breaks_off() {
    let (author, image) = (Author::start().await, Image::small(305));
    let digest = Digest::sha256(&image.blobs[3]);
    let honest = author.leaf(&image.blobs[3][..MIB]).await;
    for sizes in [[MIB as u64, 5 * MIB as u64], [10, MIB as u64], [1 << 40, 1 << 40]] {
        let author = Author::start().await;
        let part = author.leaf(&image.blobs[3][..MIB]).await;
        let lie = file(&author, &[(part, sizes[0]), (honest, sizes[1])]).await;
        let reader = reader_of(&author, &image, &blob_data(&digest), lie).await;
        breaks_off(&reader, &digest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_with_other_bytes_than_its_digest_breaks_off() {
    for (size, in_one_chunk) in [(1000, true), (3 * MIB, false)] {
        let (author, image) = (Author::start().await, Image::small(306));
        let digest = Digest::sha256(&image.blobs[3]);
        let mut parts = Vec::new();
        for chunk in random_bytes(9, size).chunks(MIB) {
            parts.push((author.leaf(chunk).await, chunk.len() as u64));
        }
        let other = file(&author, &parts).await;
        let reader = reader_of(&author, &image, &blob_data(&digest), other).await;
        // Neither does it become good by being asked for again.
        for _ in 0..2 {
            match in_one_chunk {
                true => fails(&reader, &format!("library/app/blobs/{digest}")).await,
                false => breaks_off(&reader, &digest).await,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_a_directory_is_an_error() {
    let (author, image) = (Author::start().await, Image::small(307));
    let digest = Digest::sha256(&image.blobs[3]);
    let directory = endless_directory(&author, "x").await;
    let reader = reader_of(&author, &image, &blob_data(&digest), directory).await;
    fails(&reader, &format!("library/app/blobs/{digest}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_contains_itself_without_end_is_read_within_bounds() {
    let (author, image) = (Author::start().await, Image::small(308));
    let digest = Digest::sha256(&image.blobs[3]);
    // As deep as a chain can be made: each node claims the size of the one below.
    let mut entry = author.leaf(&image.blobs[3][..MIB]).await;
    for _ in 0..500 {
        entry = file(&author, &[(entry, MIB as u64)]).await;
    }
    let reader = reader_of(&author, &image, &blob_data(&digest), entry).await;
    breaks_off(&reader, &digest).await;
}
