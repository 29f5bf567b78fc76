//! What the images of an image layout are called: `index.json`, and the indexes in it that have no name themselves
//! (image specification, image-layout.md, "Indirect references").

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::digest::Digest;
use super::image_layout::{ANNOTATION_CONTAINERD_NAME, LayoutError};
use super::image_name::{ImageName, without_host};
use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use super::name::Tag;

/// Images that one layout may name, nested indexes included.
pub const IMAGES_MAX: usize = 100_000;

const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An image that an index names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub digest: Digest,
    /// It may be an index of further images.
    pub is_index: bool,
    names: Vec<Name>,
}

/// `[REPOSITORY:]TAG`
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    repository: Option<String>,
    tag: Tag,
}

/// What a tag leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    One(Digest),
    None,
    /// Images of several repositories have this tag.
    Several,
}

/// The images of a layout, in the order in which they are named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayoutNames {
    images: Vec<Named>,
    /// How many of them `index.json` names itself.
    at_top: usize,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads what an index names. Descriptors without a media type are taken; those of what is no image are left out.
pub fn parse(bytes: &[u8]) -> Result<Vec<Named>, LayoutError> {
    let index: Index = serde_json::from_slice(bytes)?;
    let mut images = Vec::new();
    for entry in index.manifests {
        let digest = entry.digest.parse()?;
        let is_index = match entry.media_type.as_deref().unwrap_or_default() {
            OCI_INDEX | DOCKER_LIST => true,
            OCI_MANIFEST | DOCKER_MANIFEST => false,
            // Without a type it may be either.
            "" => true,
            _ => continue,
        };
        let annotations = entry.annotations.unwrap_or_default();
        let written = [ANNOTATION_REF_NAME, ANNOTATION_CONTAINERD_NAME].map(|key| annotations.get(key));
        let names = written.into_iter().flatten().filter_map(|name| Name::read(name)).collect();
        images.push(Named { digest, is_index, names });
    }
    Ok(images)
}

impl Name {
    /// A tag alone, or a whole name with one; what has neither form names nothing here.
    fn read(text: &str) -> Option<Self> {
        if let Ok(tag) = text.parse() {
            return Some(Self { repository: None, tag });
        }
        // A digest behind the tag says nothing new.
        let name = text.split_once('@').map_or(text, |(name, _)| name);
        let (repository, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
        let repository = ImageName::with_registry(repository).ok()?.repo;
        Some(Self { repository: Some(repository.to_string()), tag: tag.parse().ok()? })
    }

    /// Whether it is one of `wanted`, a repository with or without its registry; an empty one is any.
    fn is_of(&self, wanted: &str) -> bool {
        let is = |repository: &String| repository == wanted || without_host(repository) == wanted;
        wanted.is_empty() || self.repository.as_ref().is_some_and(is)
    }
}

impl Named {
    pub fn has_name(&self) -> bool {
        !self.names.is_empty()
    }
}

impl LayoutNames {
    /// Of what `index.json` names.
    pub fn new(images: Vec<Named>) -> Self {
        Self { at_top: images.len(), images }
    }

    /// Adds what a nested index names. `false`: there are too many.
    pub fn extend(&mut self, nested: Vec<Named>) -> bool {
        self.images.extend(nested);
        self.images.len() <= IMAGES_MAX
    }

    /// All images so far.
    pub fn images(&self) -> &[Named] {
        &self.images
    }

    /// Those that `index.json` names itself.
    pub fn top_images(&self) -> &[Named] {
        &self.images[..self.at_top.min(self.images.len())]
    }

    /// The image of a tag. `repository` narrows it down to names of that repository; empty: any. Of several images that
    /// are called the same the first counts. `latest` is also the only image there is.
    pub fn find(&self, repository: &str, tag: &Tag) -> Found {
        let (mut first, mut repositories) = (None, BTreeSet::new());
        for image in &self.images {
            let matching: Vec<&Name> =
                image.names.iter().filter(|name| name.tag == *tag && name.is_of(repository)).collect();
            if matching.is_empty() {
                continue;
            }
            first.get_or_insert(image.digest);
            repositories.extend(matching.iter().filter_map(|name| name.repository.as_deref()));
        }
        match first {
            Some(_) if repositories.len() > 1 => self.one_of_several(repository, tag),
            Some(digest) => Found::One(digest),
            None if tag.as_str() == LATEST && repository.is_empty() => {
                self.only().map_or(Found::None, Found::One)
            }
            None => Found::None,
        }
    }

    /// Several repositories have the tag; they may mean the same image.
    fn one_of_several(&self, repository: &str, tag: &Tag) -> Found {
        let has = |image: &&Named| {
            image
                .names
                .iter()
                .any(|name| name.tag == *tag && name.is_of(repository) && name.repository.is_some())
        };
        let digests: BTreeSet<Digest> = self.images.iter().filter(has).map(|image| image.digest).collect();
        match digests.len() {
            1 => digests.first().map_or(Found::None, |digest| Found::One(*digest)),
            _ => Found::Several,
        }
    }

    /// The one image that `index.json` names, however often.
    fn only(&self) -> Option<Digest> {
        let mut digests = self.images.iter().take(self.at_top).map(|image| image.digest);
        let first = digests.next()?;
        digests.all(|digest| digest == first).then_some(first)
    }

    /// The tags, of one repository or, if that is empty, of all. A lone image without a name is `latest`.
    pub fn tags(&self, repository: &str) -> BTreeSet<&str> {
        let names = self.images.iter().flat_map(|image| &image.names);
        let mut tags: BTreeSet<&str> =
            names.filter(|name| name.is_of(repository)).map(|name| name.tag.as_str()).collect();
        if tags.is_empty() && repository.is_empty() && self.only().is_some() {
            tags.insert(LATEST);
        }
        tags
    }

    /// Whether any name is one of this repository; an empty one is always there.
    pub fn has_repository(&self, repository: &str) -> bool {
        repository.is_empty() || !self.tags(repository).is_empty()
    }

    /// Roughly, for what keeps these in memory.
    pub fn memory_bytes(&self) -> usize {
        let name =
            |name: &Name| 64 + name.repository.as_ref().map_or(0, String::len) + name.tag.as_str().len();
        self.images.iter().map(|image| 128 + image.names.iter().map(name).sum::<usize>()).sum()
    }
}

const LATEST: &str = "latest";

/// Reads whatever bytes as `index.json`: for fuzzing.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    let Ok(images) = parse(bytes) else { return };
    let names = LayoutNames::new(images);
    for tag in names.tags("") {
        let tag: Option<Tag> = tag.parse().ok();
        assert!(tag.is_some_and(|tag| names.find("", &tag) != Found::None), "every listed tag is found");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text.as_bytes())
    }

    fn entry(image: &str, names: &[(&str, &str)]) -> Value {
        let annotations: BTreeMap<_, _> = names.iter().copied().collect();
        json!({"mediaType": OCI_MANIFEST, "digest": digest(image).to_string(), "size": 1, "annotations": annotations})
    }

    fn names(entries: &[Value]) -> LayoutNames {
        let text = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        LayoutNames::new(parse(text.as_bytes()).unwrap())
    }

    fn find(names: &LayoutNames, repository: &str, tag: &str) -> Found {
        names.find(repository, &tag.parse().unwrap())
    }

    fn one(image: &str) -> Found {
        Found::One(digest(image))
    }

    #[test]
    fn an_image_is_found_by_its_tag() {
        let names = names(&[
            entry("a", &[(ANNOTATION_REF_NAME, "1")]),
            entry("b", &[(ANNOTATION_REF_NAME, "2")]),
            entry("c", &[(ANNOTATION_REF_NAME, "1")]),
        ]);
        assert_eq!(find(&names, "", "1"), one("a"), "the first of those called the same");
        assert_eq!(find(&names, "", "2"), one("b"));
        assert_eq!(find(&names, "", "latest"), Found::None);
        assert_eq!(find(&names, "library/app", "1"), Found::None);
        assert_eq!(names.tags("").into_iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(!names.has_repository("library/app"));
    }

    #[test]
    fn whole_names_are_read_with_their_repository() {
        let names = names(&[
            entry("alpine", &[(ANNOTATION_REF_NAME, "docker.io/library/alpine:3.20")]),
            entry(
                "busybox",
                &[
                    (ANNOTATION_REF_NAME, "3.20"),
                    (ANNOTATION_CONTAINERD_NAME, "docker.io/library/busybox:3.20"),
                ],
            ),
            entry("local", &[(ANNOTATION_REF_NAME, "localhost:5000/app:dev")]),
        ]);
        assert_eq!(find(&names, "", "3.20"), Found::Several);
        for repository in ["library/alpine", "docker.io/library/alpine"] {
            assert_eq!(find(&names, repository, "3.20"), one("alpine"), "{repository}");
        }
        assert_eq!(find(&names, "library/busybox", "3.20"), one("busybox"));
        assert_eq!(find(&names, "", "dev"), one("local"));
        assert_eq!(find(&names, "localhost_5000/app", "dev"), one("local"));
        assert_eq!(names.tags("library/alpine").into_iter().collect::<Vec<_>>(), ["3.20"]);
        assert_eq!(names.tags("").into_iter().collect::<Vec<_>>(), ["3.20", "dev"]);
    }

    #[test]
    fn a_lone_image_is_the_latest() {
        let unnamed = names(&[entry("a", &[])]);
        assert_eq!(find(&unnamed, "", "latest"), one("a"));
        assert_eq!(find(&unnamed, "", "other"), Found::None);
        assert_eq!(unnamed.tags("").into_iter().collect::<Vec<_>>(), ["latest"]);
        let mut twice = names(&[entry("a", &[(ANNOTATION_REF_NAME, "1")]), entry("a", &[])]);
        assert!(twice.extend(names(&[entry("b", &[])]).images));
        assert_eq!(find(&twice, "", "latest"), one("a"), "what a nested index names does not count");
        assert_eq!(find(&names(&[entry("a", &[]), entry("b", &[])]), "", "latest"), Found::None);
        let named = names(&[entry("a", &[(ANNOTATION_REF_NAME, "latest")]), entry("b", &[])]);
        assert_eq!(find(&named, "", "latest"), one("a"));
    }

    #[test]
    fn media_types_may_be_of_docker_or_missing_and_what_is_no_image_is_left_out() {
        let typed = |media_type: Value| {
            let text = json!({"manifests": [{"mediaType": media_type, "digest": digest("a").to_string()}]});
            parse(text.to_string().as_bytes()).unwrap().first().map(|image| image.is_index)
        };
        assert_eq!(typed(json!(DOCKER_LIST)), Some(true));
        assert_eq!(typed(json!(DOCKER_MANIFEST)), Some(false));
        assert_eq!(typed(Value::Null), Some(true), "an index or not");
        assert_eq!(typed(json!("application/xml")), None);
    }

    #[test]
    fn a_digest_that_leads_out_of_the_layout_is_refused() {
        for digest in ["sha256:../../etc/passwd", "../x", "sha256:", "md5:00"] {
            let text = json!({"manifests": [{"digest": digest}]}).to_string();
            assert!(matches!(parse(text.as_bytes()), Err(LayoutError::Digest(_))), "{digest}");
        }
    }

    #[test]
    fn there_may_not_be_too_many() {
        let mut names = LayoutNames::default();
        let many = vec![Named { digest: digest("a"), is_index: false, names: Vec::new() }; IMAGES_MAX];
        assert!(names.extend(many.clone()));
        assert!(!names.extend(many));
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn every_listed_tag_is_found(written in proptest::collection::vec("([a-c]/)?[a-c]{1,2}(:[1-3x])?", 0..8)) {
            let entries: Vec<Value> =
                written.iter().map(|name| entry(name, &[(ANNOTATION_REF_NAME, name)])).collect();
            let names = names(&entries);
            for tag in names.tags("") {
                prop_assert!(find(&names, "", tag) != Found::None, "{}", tag);
            }
        }
    }
}
