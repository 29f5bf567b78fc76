//! Image layouts and registries elsewhere on IPFS: what is found in them, what is refused, and what it may cost.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::{Desk, Knows};
use crate::config::{NamingConfig, Validation};
use crate::dag::file::FileWriter;
use crate::dag::{Edit, Entry};
use crate::ipld::unixfs::{File, FileChild};
use crate::ipld::{Block, Cid};
use crate::mirror::{Asked, Mirror, MirrorConfig, MirrorError, Origin, Page, Purpose};
use crate::naming::Naming;
use crate::oci::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::oci::{Algorithm, Digest, Host, RepoName, image_layout, storage};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";

/// A daemon without a key, and a far store in which layouts grow.
struct Scene {
    desk: Desk,
    mirror: Mirror,
}

/// A layout in the making.
#[derive(Default)]
struct Layout {
    files: Vec<(String, Entry)>,
    named: Vec<Value>,
}

impl Scene {
    async fn new() -> Self {
        let desk = Desk::new(Knows::Nobody);
        let config = MirrorConfig {
            signer: None,
            readonly: Vec::new(),
            follow_quota_bytes: None,
            uploads_max: 1,
            upload_idle_timeout: super::VALIDITY,
            delete_enabled: true,
            validation: Validation { image_blobs: true, index_manifests: false },
            pull_through: None,
            naming: Naming::new(&NamingConfig::default()).unwrap(),
        };
        let updates = broadcast::channel(1).0;
        let mirror = Mirror::start(&desk.tasks, &desk.store, desk.network.clone(), &updates, config);
        let mirror = mirror.await.unwrap();
        Self { desk, mirror }
    }

    async fn file(&self, content: &[u8]) -> Entry {
        let mut writer = FileWriter::new(self.desk.far.blocks());
        writer.write(Bytes::copy_from_slice(content)).await.unwrap();
        let file = writer.finish().await.unwrap();
        Entry { cid: file.cid, tsize: file.tsize }
    }

    async fn put(&self, block: Block) -> Entry {
        let entry = Entry { cid: *block.cid(), tsize: block.bytes().len() as u64 };
        self.desk.far.blocks().put(vec![block]).await.unwrap();
        entry
    }

    /// Puts bytes where those of this digest belong.
    async fn blob_as(&self, layout: &mut Layout, digest: &Digest, content: &[u8]) {
        layout.files.push((image_layout::blob(digest), self.file(content).await));
    }

    async fn blob(&self, layout: &mut Layout, content: &[u8]) -> Digest {
        let digest = Digest::sha256(content);
        self.blob_as(layout, &digest, content).await;
        digest
    }

    /// A manifest with a layer of its own.
    async fn image(&self, layout: &mut Layout, seed: &str, media_type: Option<&str>) -> Digest {
        let layer = self.blob(layout, seed.as_bytes()).await;
        let described = json!({"mediaType": "x", "digest": layer.to_string(), "size": seed.len()});
        let mut manifest = json!({"schemaVersion": 2, "config": described, "layers": [described]});
        if let Some(media_type) = media_type {
            manifest["mediaType"] = media_type.into();
        }
        self.blob(layout, manifest.to_string().as_bytes()).await
    }

    /// A nested index.
    async fn index(&self, layout: &mut Layout, media_type: &str, entries: &[Value]) -> Digest {
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
        self.blob(layout, index.to_string().as_bytes()).await
    }

    /// The root of a directory in which the layout is at `path`.
    async fn grow(&self, layout: &Layout, path: &str) -> Cid {
        let index = json!({"schemaVersion": 2, "manifests": layout.named}).to_string();
        let index = self.file(index.as_bytes()).await;
        self.grow_with(layout, path, index).await
    }

    async fn grow_with(&self, layout: &Layout, path: &str, index: Entry) -> Cid {
        let slash = if path.is_empty() { "" } else { "/" };
        let files = layout.files.iter().cloned().chain([(image_layout::INDEX.to_owned(), index)]);
        let edit = |(name, entry)| Edit { path: format!("{path}{slash}{name}"), to: Some(entry) };
        self.tree(files.map(edit).collect()).await
    }

    async fn tree(&self, edits: Vec<Edit>) -> Cid {
        let empty = self.desk.far.empty().await.unwrap().cid;
        self.desk.far.edit(&empty, &edits).await.unwrap().cid
    }

    async fn manifest(&self, repo: &str, reference: &str) -> Result<Option<Digest>, MirrorError> {
        self.manifest_of(repo, None, reference).await
    }

    async fn manifest_of(
        &self,
        repo: &str,
        registry: Option<&Host>,
        reference: &str,
    ) -> Result<Option<Digest>, MirrorError> {
        let repo: RepoName = repo.parse().unwrap();
        let asked = Asked { repo: &repo, registry, via: None, is_ours: false };
        let found = self.mirror.manifest(&asked, &reference.parse().unwrap(), Purpose::Manifest).await?;
        assert!(found.iter().all(|served| matches!(served.origin, Origin::Ipfs(_))));
        Ok(found.map(|served| served.manifest.digest))
    }

    /// Reads a blob whole.
    async fn read(&self, repo: &str, digest: &Digest) -> Result<Option<Vec<u8>>, MirrorError> {
        let repo: RepoName = repo.parse().unwrap();
        let asked = Asked { repo: &repo, registry: None, via: None, is_ours: false };
        let Some((blob, _)) = self.mirror.blob(&asked, digest, false).await? else { return Ok(None) };
        let bytes = self.mirror.read(&blob, 0..blob.size_bytes);
        Ok(Some(futures::TryStreamExt::try_collect::<Vec<Bytes>>(bytes).await?.concat()))
    }

    async fn tags(&self, repo: &str) -> Option<Page> {
        self.listed(repo).await.unwrap()
    }

    async fn listed(&self, repo: &str) -> Result<Option<Page>, MirrorError> {
        let repo: RepoName = repo.parse().unwrap();
        let asked = Asked { repo: &repo, registry: None, via: None, is_ours: false };
        Ok(self.mirror.tags(&asked, None, 100).await?.map(|listed| listed.page))
    }
}

impl Layout {
    /// Names an image in `index.json`.
    fn name(&mut self, digest: &Digest, media_type: Option<&str>, names: &[(&str, &str)]) {
        self.named.push(entry(digest, media_type, names));
    }
}

fn entry(digest: &Digest, media_type: Option<&str>, names: &[(&str, &str)]) -> Value {
    let names: serde_json::Map<String, Value> =
        names.iter().map(|(key, name)| ((*key).to_owned(), (*name).into())).collect();
    let mut entry = json!({"digest": digest.to_string(), "size": 1, "annotations": names});
    if let Some(media_type) = media_type {
        entry["mediaType"] = media_type.into();
    }
    entry
}

fn names(page: Option<Page>) -> Vec<String> {
    page.unwrap().names
}

#[tokio::test(start_paused = true)]
async fn a_layout_is_read_at_any_depth_below_a_cid() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    let plain = scene.image(&mut layout, "plain", Some(OCI_MANIFEST)).await;
    let docker = scene.image(&mut layout, "docker", Some(DOCKER_MANIFEST)).await;
    let untyped = scene.image(&mut layout, "untyped", None).await;
    let multi = scene.index(&mut layout, DOCKER_LIST, &[entry(&docker, Some(DOCKER_MANIFEST), &[])]).await;
    layout.name(&plain, Some(OCI_MANIFEST), &[(REF_NAME, "1")]);
    layout.name(&multi, Some(DOCKER_LIST), &[(REF_NAME, "multi")]);
    layout.name(&untyped, None, &[(REF_NAME, "docker.io/library/alpine:3.20")]);
    for path in ["", "a", "a/b.c/d"] {
        let root = scene.grow(&layout, path).await;
        let repo = format!("ipfs/{root}/{path}");
        let repo = repo.trim_end_matches('/');
        for (tag, digest) in [("1", plain), ("multi", multi), ("3.20", untyped)] {
            assert_eq!(scene.manifest(repo, tag).await.unwrap(), Some(digest), "{repo}:{tag}");
            assert_eq!(scene.manifest(repo, &digest.to_string()).await.unwrap(), Some(digest));
        }
        assert_eq!(scene.manifest(&format!("{repo}/library/alpine"), "3.20").await.unwrap(), Some(untyped));
        assert_eq!(scene.manifest(repo, "latest").await.unwrap(), None, "there are several");
        assert_eq!(names(scene.tags(repo).await), ["1", "3.20", "multi"]);
        assert_eq!(names(scene.tags(&format!("{repo}/docker.io/library/alpine")).await), ["3.20"]);
        assert_eq!(scene.tags(&format!("{repo}/library/other")).await, None);
        let layer = Digest::sha256(b"plain");
        assert_eq!(scene.read(repo, &layer).await.unwrap().unwrap(), b"plain");
        assert_eq!(scene.read(repo, &Digest::sha256(b"absent")).await.unwrap(), None);
    }
    let root = scene.grow(&layout, "a").await;
    assert_eq!(scene.manifest(&format!("ipfs/{root}"), "1").await.unwrap(), None);
    assert_eq!(scene.manifest(&format!("ipfs/{root}/b"), "1").await.unwrap(), None);
    // The bare name of an image stands for one of Docker Hub; that of another registry is its own.
    let (hub, other): (Host, Host) = ("docker.io".parse().unwrap(), "ghcr.io".parse().unwrap());
    let repo = format!("ipfs/{root}/a");
    assert_eq!(scene.manifest_of(&repo, Some(&hub), "1").await.unwrap(), Some(plain));
    assert_eq!(scene.manifest_of(&repo, Some(&other), "1").await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn sha512_and_large_blobs_are_read() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    let large = vec![7; 3 << 20];
    let long = Digest::of(Algorithm::Sha512, &large);
    scene.blob_as(&mut layout, &long, &large).await;
    let manifest = format!(r#"{{"layers":[{{"digest":"{long}"}}]}}"#);
    let digest = Digest::of(Algorithm::Sha512, manifest.as_bytes());
    scene.blob_as(&mut layout, &digest, manifest.as_bytes()).await;
    layout.name(&digest, Some(OCI_MANIFEST), &[]);
    let repo = format!("ipfs/{}", scene.grow(&layout, "").await);
    assert_eq!(scene.manifest(&repo, "latest").await.unwrap(), Some(digest));
    assert_eq!(scene.read(&repo, &long).await.unwrap().unwrap(), large);
}

#[tokio::test(start_paused = true)]
async fn names_in_nested_indexes_are_found() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    let image = scene.image(&mut layout, "x", Some(OCI_MANIFEST)).await;
    let named = [(FULL_NAME, "docker.io/library/app:deep"), (REF_NAME, "deep")];
    let inner = scene.index(&mut layout, OCI_INDEX, &[entry(&image, None, &named)]).await;
    let outer = scene.index(&mut layout, OCI_INDEX, &[entry(&inner, Some(OCI_INDEX), &[])]).await;
    layout.name(&outer, Some(OCI_INDEX), &[]);
    let repo = format!("ipfs/{}", scene.grow(&layout, "").await);
    assert_eq!(scene.manifest(&repo, "deep").await.unwrap(), Some(image));
    assert_eq!(scene.manifest(&format!("{repo}/library/app"), "deep").await.unwrap(), Some(image));
    assert_eq!(scene.manifest(&repo, "latest").await.unwrap(), Some(outer));
    assert_eq!(names(scene.tags(&repo).await), ["deep"]);
}

#[tokio::test(start_paused = true)]
async fn a_tag_of_several_repositories_is_not_guessed() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    for name in ["docker.io/library/a:1", "docker.io/library/b:1"] {
        let digest = scene.image(&mut layout, name, Some(OCI_MANIFEST)).await;
        layout.name(&digest, Some(OCI_MANIFEST), &[(REF_NAME, name)]);
    }
    let repo = format!("ipfs/{}", scene.grow(&layout, "").await);
    assert!(matches!(scene.manifest(&repo, "1").await, Err(MirrorError::SeveralImages { .. })));
    assert!(scene.manifest(&format!("{repo}/library/b"), "1").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn the_tree_of_a_registry_is_read_below_a_cid_too() {
    let scene = Scene::new().await;
    let manifest = br#"{"schemaVersion":2,"layers":[]}"#;
    let (digest, repo): (_, RepoName) = (Digest::sha256(manifest), "library/alpine".parse().unwrap());
    let (content, link) = (scene.file(manifest).await, scene.file(digest.to_string().as_bytes()).await);
    let paths = [
        (storage::blob_data(&digest), content),
        (storage::revision_link(&repo, &digest), link),
        (storage::tag_link(&repo, &"3.20".parse().unwrap()), link),
    ];
    for path in ["", "mirror/"] {
        let edits =
            paths.iter().map(|(name, entry)| Edit { path: format!("{path}{name}"), to: Some(*entry) });
        let root = scene.tree(edits.collect()).await;
        let repo = format!("ipfs/{root}/{path}library/alpine");
        assert_eq!(scene.manifest(&repo, "3.20").await.unwrap(), Some(digest));
        assert_eq!(scene.manifest(&repo, &digest.to_string()).await.unwrap(), Some(digest));
        assert_eq!(scene.read(&repo, &digest).await.unwrap().unwrap(), manifest);
        assert_eq!(scene.manifest(&repo, "other").await.unwrap(), None);
        assert_eq!(names(scene.tags(&repo).await), ["3.20"]);
        assert_eq!(scene.manifest(&format!("ipfs/{root}/{path}library/other"), "3.20").await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_leads_to_a_path_and_its_last_answer_counts_when_nobody_answers() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    let image = scene.image(&mut layout, "x", Some(OCI_MANIFEST)).await;
    layout.name(&image, Some(OCI_MANIFEST), &[(REF_NAME, "1")]);
    let root = scene.grow(&layout, "").await;
    let repo = format!("ipns/{}", scene.desk.name());
    let unknown = scene.manifest(&repo, "1").await;
    assert!(
        matches!(unknown, Err(MirrorError::Fill(_))),
        "nobody was asked, so that it is not known: {unknown:?}"
    );
    scene.desk.network.knows(Knows::Record(scene.desk.record(1, &root, 24)));
    assert_eq!(scene.manifest(&repo, "1").await.unwrap(), Some(image));
    assert_eq!(scene.manifest(&repo, "2").await.unwrap(), None);
    scene.desk.network.knows(Knows::Nobody);
    assert_eq!(scene.manifest(&repo, "1").await.unwrap(), Some(image));
}

#[tokio::test(start_paused = true)]
async fn what_nobody_delivers_is_a_failure_and_not_absent() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    let image = scene.image(&mut layout, "x", Some(OCI_MANIFEST)).await;
    layout.name(&image, Some(OCI_MANIFEST), &[(REF_NAME, "1")]);
    let root = scene.grow(&layout, "").await;
    scene.desk.network.is_reachable(false);
    let begun = tokio::time::Instant::now();
    let error = scene.manifest(&format!("ipfs/{root}"), "1").await.unwrap_err();
    assert!(matches!(&error, MirrorError::Dag(error) if error.is_no_peers()), "{error}");
    assert!(begun.elapsed() >= super::super::elsewhere::FIRST_PEER_TIMEOUT, "a peer may be on its way");
    scene.desk.network.is_reachable(true);
    scene.desk.network.hides(&[root]);
    let error = scene.manifest(&format!("ipfs/{root}"), "1").await.unwrap_err();
    assert!(matches!(&error, MirrorError::Dag(error) if error.is_fetch()), "{error}");
    let error = scene.listed(&format!("ipfs/{root}")).await.unwrap_err();
    assert!(matches!(&error, MirrorError::Dag(error) if error.is_fetch()), "{error}");
}

#[tokio::test(start_paused = true)]
async fn hostile_layouts_are_refused_at_a_bounded_cost() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    let image = scene.image(&mut layout, "x", Some(OCI_MANIFEST)).await;
    let says = |error: MirrorError, what: &str| {
        let error = crate::mirror::chain(&error);
        assert!(error.contains(what), "{error}");
    };

    // An index that claims a gibibyte: its parts are not even there.
    let part = FileChild { cid: *Block::encode(0x55, "p".into()).cid(), size_bytes: 1 << 30, tsize: 1 << 30 };
    let claims = scene.put(File { data: Bytes::new(), children: vec![part] }.encode()).await;
    let root = scene.grow_with(&layout, "", claims).await;
    says(scene.manifest(&format!("ipfs/{root}"), "1").await.unwrap_err(), "larger than");

    // A directory in the place of the index, and of a blob.
    let directory = scene.desk.far.empty().await.unwrap();
    let root = scene.grow_with(&layout, "", directory).await;
    says(scene.manifest(&format!("ipfs/{root}"), "1").await.unwrap_err(), "a file was expected");
    let mut odd = Layout::default();
    let digest = Digest::sha256(b"odd");
    odd.files.push((image_layout::blob(&digest), directory));
    odd.name(&digest, Some(OCI_MANIFEST), &[(REF_NAME, "1")]);
    let repo = format!("ipfs/{}", scene.grow(&odd, "").await);
    says(scene.manifest(&repo, "1").await.unwrap_err(), "a file was expected");
    says(scene.read(&repo, &digest).await.unwrap_err(), "a file was expected");

    // Other bytes at the path of a digest.
    let mut forged = Layout::default();
    scene.blob_as(&mut forged, &digest, br#"{"layers":[]}"#).await;
    forged.name(&digest, Some(OCI_MANIFEST), &[(REF_NAME, "1")]);
    let repo = format!("ipfs/{}", scene.grow(&forged, "").await);
    assert!(matches!(scene.manifest(&repo, "1").await, Err(MirrorError::Forged { .. })));
    assert!(matches!(scene.read(&repo, &digest).await, Err(MirrorError::Forged { .. })));

    // A path in the place of a digest.
    let bad = json!({"manifests": [{"digest": "sha256:../../../secret", "annotations": {REF_NAME: "1"}}]});
    let index = scene.file(bad.to_string().as_bytes()).await;
    let root = scene.grow_with(&layout, "", index).await;
    says(scene.manifest(&format!("ipfs/{root}"), "1").await.unwrap_err(), "sha256:../../../secret");

    // An index that names an image which is not there.
    let mut gone = Layout::default();
    gone.name(&image, Some(OCI_MANIFEST), &[(REF_NAME, "1")]);
    let repo = format!("ipfs/{}", scene.grow(&gone, "").await);
    says(scene.manifest(&repo, "1").await.unwrap_err(), "is missing");
    assert_eq!(scene.manifest(&repo, &image.to_string()).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn nested_indexes_have_bounds() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    let image = scene.image(&mut layout, "x", Some(OCI_MANIFEST)).await;
    // A chain that is too deep; a cycle would need a digest that is its own.
    let mut top = image;
    for _ in 0..8 {
        top = scene.index(&mut layout, OCI_INDEX, &[entry(&top, Some(OCI_INDEX), &[])]).await;
    }
    layout.name(&top, Some(OCI_INDEX), &[]);
    let deep = format!("ipfs/{}", scene.grow(&layout, "").await);
    assert!(matches!(scene.manifest(&deep, "1").await, Err(MirrorError::Tree { .. })));

    // Too many side by side.
    let mut wide = Layout::default();
    for n in 0..100 {
        let entries = [entry(&image, Some(OCI_MANIFEST), &[(REF_NAME, &format!("t{n}"))])];
        let index = scene.index(&mut wide, OCI_INDEX, &entries).await;
        wide.name(&index, Some(OCI_INDEX), &[]);
    }
    let wide = format!("ipfs/{}", scene.grow(&wide, "").await);
    assert!(matches!(scene.manifest(&wide, "t1").await, Err(MirrorError::Tree { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_is_no_manifest_is_not_served_as_one() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    let large = scene.blob(&mut layout, &vec![1; 5 << 20]).await;
    let small = scene.blob(&mut layout, b"text").await;
    let repo = format!("ipfs/{}", scene.grow(&layout, "").await);
    for digest in [large, small] {
        assert_eq!(scene.manifest(&repo, &digest.to_string()).await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_place_is_told_from_what_is_a_repository() {
    let scene = Scene::new().await;
    let refused = async |repo: &str| match scene.manifest(repo, "1").await {
        Err(MirrorError::Misaddressed { reason, .. }) => reason,
        other => panic!("{repo}: {other:?}"),
    };
    let (name, cid) = (scene.desk.name(), scene.desk.tree.empty().await.unwrap().cid);
    assert!(refused(&format!("ipfs/{name}/a")).await.contains("ask for ipns/"));
    assert!(refused(&format!("ipns/{cid}/a")).await.contains("ask for ipfs/"));
    assert!(refused(&format!("ipfs/{}x", cid.to_string().replace('b', "c"))).await.contains("is no CID"));
    for repo in ["ipfs/kubo", "ipns/app", "shoal.eth/app"] {
        assert_eq!(scene.manifest(repo, "1").await.unwrap(), None, "{repo}");
    }
    let push = async |repo: &str| scene.mirror.start_upload(&repo.parse().unwrap(), Algorithm::Sha256).await;
    assert!(matches!(push(&format!("ipfs/{cid}")).await, Err(MirrorError::Elsewhere(_))));
    assert!(matches!(push("ipns/example.org/app").await, Err(MirrorError::Elsewhere(_))));
    assert!(matches!(push("ipfs/kubo").await, Err(MirrorError::ReadOnly)));
}

#[tokio::test(start_paused = true)]
async fn a_layout_that_is_added_stays_until_it_is_removed() {
    let scene = Scene::new().await;
    let manifest = br#"{"schemaVersion":2,"layers":[]}"#;
    let digest = Digest::sha256(manifest);
    let index =
        json!({"manifests": [{"digest": digest.to_string(), "annotations": {REF_NAME: "1"}}]}).to_string();
    let blob = image_layout::blob(&digest);
    let files: [(&str, &[u8]); 3] =
        [("oci-layout", b"{}"), ("index.json", index.as_bytes()), (&blob, manifest.as_slice())];
    let add = async |files: &[(&str, &[u8])]| {
        let mut writer = scene.mirror.add_layout()?;
        for (path, content) in files {
            let body = futures::stream::iter([Ok(Bytes::copy_from_slice(content))]);
            writer.file(path, body).await?;
        }
        writer.finish("folder").await
    };
    let added = add(&files).await.unwrap();
    assert_eq!((added.name.as_str(), added.size_bytes), ("folder", 33 + index.len() as u64));
    let repo = format!("ipfs/{}", added.cid);
    scene.mirror.collect_garbage().await.unwrap();
    assert_eq!(scene.manifest(&repo, "1").await.unwrap(), Some(digest));
    assert_eq!(add(&files).await.unwrap().cid, added.cid);
    assert_eq!(scene.mirror.layouts().len(), 1);

    assert!(scene.mirror.remove_layout(&added.cid).await.unwrap());
    assert!(!scene.mirror.remove_layout(&added.cid).await.unwrap());
    scene.mirror.collect_garbage().await.unwrap();
    assert!(scene.manifest(&repo, "1").await.is_err());

    let refused = async |files: &[(&str, &[u8])], what: &str| {
        let error = crate::mirror::chain(&add(files).await.unwrap_err());
        assert!(error.contains(what), "{error}");
    };
    refused(&files[1..], "no file oci-layout").await;
    refused(&files[..2], "is missing").await;
    refused(&[files[0], (&blob, b"other")], "is not what it is named").await;
    refused(&[("../x", b"")], "no path").await;
    refused(&[files[0], ("index.json", b"{")], "cannot be used").await;
    assert_eq!(scene.mirror.layouts(), []);
}

#[tokio::test(start_paused = true)]
async fn what_refers_to_an_image_of_a_layout_is_listed_by_its_index() {
    let (scene, mut layout) = (Scene::new().await, Layout::default());
    let image = scene.image(&mut layout, "image", Some(OCI_MANIFEST)).await;
    let other = scene.image(&mut layout, "other", Some(OCI_MANIFEST)).await;
    let mut attached = Vec::new();
    for (kind, subject) in [("a/sbom", image), ("a/signature", image), ("a/signature", other)] {
        let artifact = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind, "layers": [],
            "config": {"mediaType": "x/empty", "digest": Digest::sha256(b"{}").to_string(), "size": 2},
            "subject": {"mediaType": OCI_MANIFEST, "digest": subject.to_string(), "size": 1},
        });
        attached.push(scene.blob(&mut layout, artifact.to_string().as_bytes()).await);
    }
    layout.name(&image, Some(OCI_MANIFEST), &[(REF_NAME, "1")]);
    attached.iter().for_each(|digest| layout.name(digest, Some(OCI_MANIFEST), &[]));
    layout.name(&Digest::sha256(b"absent"), Some(OCI_MANIFEST), &[]);
    let root = scene.grow(&layout, "a").await;
    let listed = async |subject: &Digest, kind: Option<&str>| {
        let repo: RepoName = format!("ipfs/{root}/a").parse().unwrap();
        let asked = Asked { repo: &repo, registry: None, via: None, is_ours: false };
        let page = scene.mirror.referrers(&asked, subject, kind, None, 10).await.unwrap().page;
        page.referrers.into_iter().map(|referrer| referrer.digest).collect::<BTreeSet<Digest>>()
    };
    assert_eq!(listed(&image, None).await, [attached[0], attached[1]].into());
    assert_eq!(listed(&image, Some("a/signature")).await, [attached[1]].into());
    assert_eq!(listed(&other, None).await, [attached[2]].into());
    assert_eq!(listed(&attached[0], None).await, [].into());

    // More than are read are no list that lacks some.
    for n in 0..1000 {
        layout.name(&Digest::sha256(format!("{n}").as_bytes()), Some(OCI_MANIFEST), &[]);
    }
    let root = scene.grow(&layout, "").await;
    let repo: RepoName = format!("ipfs/{root}").parse().unwrap();
    let asked = Asked { repo: &repo, registry: None, via: None, is_ours: false };
    assert!(scene.mirror.referrers(&asked, &image, None, None, 10).await.is_err());
}
