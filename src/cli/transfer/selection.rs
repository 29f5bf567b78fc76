//! Which images of an archive go where: its names, and what was asked for, in; repositories and tags out. Pure.

use crate::oci::image_name::without_host;
use crate::oci::{Digest, ImageName, Reference, RepoName, Tag};

/// The tag of an image that was given none.
const LATEST: &str = "latest";

/// An image of an archive.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Offer {
    /// As the archive writes them: tags, or whole names.
    pub(in crate::cli) names: Vec<String>,
    pub(in crate::cli) digest: Option<Digest>,
}

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub(in crate::cli) struct Request {
    pub(in crate::cli) name: Option<ImageName>,
    pub(in crate::cli) image: Option<String>,
    pub(in crate::cli) all: bool,
}

/// An image, and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Chosen {
    /// Its place among the offers.
    pub(in crate::cli) offer: usize,
    pub(in crate::cli) repo: RepoName,
    pub(in crate::cli) tags: Vec<Tag>,
}

/// Why nothing was chosen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(in crate::cli) enum SelectionError {
    #[error("the archive has no image")]
    Empty,
    #[error("an image is loaded under a tag: write REPO:TAG, not REPO@DIGEST")]
    ByDigest,
    #[error("--all gives each image its own tag: leave :{0} out")]
    TagForAll(Tag),
    #[error("no image of the archive has {0}")]
    Nameless(&'static str),
    #[error("no image of the archive is called {wanted}: it has {offered}")]
    Absent { wanted: String, offered: String },
    #[error("the archive has several images: choose one with --image, or take --all. It has {0}")]
    Ambiguous(String),
}

/// Chooses among the images of an archive.
pub(in crate::cli) fn select(offers: &[Offer], request: &Request) -> Result<Vec<Chosen>, SelectionError> {
    if offers.is_empty() {
        return Err(SelectionError::Empty);
    }
    match &request.name {
        None => by_own_names(offers, request),
        Some(ImageName { reference: Some(Reference::Digest(_)), .. }) => Err(SelectionError::ByDigest),
        Some(ImageName { reference: Some(Reference::Tag(tag)), .. }) if request.all => {
            Err(SelectionError::TagForAll(tag.clone()))
        }
        Some(ImageName { repo, .. }) if request.all => all(offers, repo),
        Some(ImageName { repo, reference }) => {
            let tag = match reference {
                Some(Reference::Tag(tag)) => Some(tag),
                _ => None,
            };
            one(offers, request.image.as_deref(), repo, tag)
        }
    }
}

/// Every image goes where its whole names say.
fn by_own_names(offers: &[Offer], request: &Request) -> Result<Vec<Chosen>, SelectionError> {
    let only = request.image.as_deref().map(|wanted| find(offers, wanted)).transpose()?;
    let mut chosen: Vec<Chosen> = Vec::new();
    for (offer, image) in
        offers.iter().enumerate().filter(|(offer, _)| only.is_none_or(|only| only == *offer))
    {
        for (repo, tag) in image.names.iter().filter_map(|name| whole_name(name)) {
            match chosen.iter_mut().find(|known| known.offer == offer && known.repo == repo) {
                Some(known) if known.tags.contains(&tag) => (),
                Some(known) => known.tags.push(tag),
                None => chosen.push(Chosen { offer, repo, tags: vec![tag] }),
            }
        }
    }
    if chosen.is_empty() {
        return Err(SelectionError::Nameless(
            "the name of a repository: say which, as in `shoal load PATH REPO:TAG`",
        ));
    }
    Ok(chosen)
}

/// Every image that has a tag goes into one repository.
fn all(offers: &[Offer], repo: &RepoName) -> Result<Vec<Chosen>, SelectionError> {
    let tagged = offers.iter().enumerate().map(|(offer, image)| (offer, image.tags()));
    let tagged = tagged.filter(|(_, tags)| !tags.is_empty());
    let chosen: Vec<Chosen> =
        tagged.map(|(offer, tags)| Chosen { offer, repo: repo.clone(), tags }).collect();
    if chosen.is_empty() {
        return Err(SelectionError::Nameless("a tag: load them one by one with --image"));
    }
    Ok(chosen)
}

/// The image that is meant goes under `tag`, its own tag, or `latest`.
fn one(
    offers: &[Offer],
    wanted: Option<&str>,
    repo: &RepoName,
    tag: Option<&Tag>,
) -> Result<Vec<Chosen>, SelectionError> {
    let offer = match (wanted, offers.len()) {
        (Some(wanted), _) => find(offers, wanted)?,
        (None, 1) => 0,
        (None, _) => {
            let meant = tag.map_or(LATEST, Tag::as_str);
            find(offers, meant).map_err(|_| SelectionError::Ambiguous(listed(offers)))?
        }
    };
    let own = || offers[offer].tags().into_iter().next();
    let tag = tag.cloned().or_else(own).or_else(|| LATEST.parse().ok());
    Ok(vec![Chosen { offer, repo: repo.clone(), tags: tag.into_iter().collect() }])
}

/// The image with this name, tag or digest.
fn find(offers: &[Offer], wanted: &str) -> Result<usize, SelectionError> {
    let is_meant = |offer: &Offer| {
        offer.names.iter().any(|name| name == wanted)
            || offer.tags().iter().any(|tag| tag.as_str() == wanted)
            || offer.digest.is_some_and(|digest| digest.to_string() == wanted)
    };
    let found = offers.iter().position(is_meant);
    found.ok_or_else(|| SelectionError::Absent { wanted: wanted.to_owned(), offered: listed(offers) })
}

impl Offer {
    /// Its tags, each once.
    fn tags(&self) -> Vec<Tag> {
        let mut tags: Vec<Tag> = Vec::new();
        for name in &self.names {
            let tag = name.parse().ok().or_else(|| whole_name(name).map(|(_, tag)| tag));
            tags.extend(tag.filter(|tag| !tags.contains(tag)));
        }
        tags
    }
}

/// The repository and tag of a whole name. A tag alone is none.
fn whole_name(name: &str) -> Option<(RepoName, Tag)> {
    match without_host(name).parse().ok()? {
        ImageName { repo, reference: Some(Reference::Tag(tag)) } => Some((repo, tag)),
        _ => None,
    }
}

fn listed(offers: &[Offer]) -> String {
    let name = |offer: &Offer| match (offer.names.first(), offer.digest) {
        (Some(name), _) => name.clone(),
        (None, Some(digest)) => digest.to_string(),
        (None, None) => "an image without a name".to_owned(),
    };
    offers.iter().map(name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(names: &[&[&str]]) -> Vec<Offer> {
        let offer = |names: &&[&str]| Offer {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            digest: Some(Digest::sha256(names.join(" ").as_bytes())),
        };
        names.iter().map(offer).collect()
    }

    /// What is chosen, as `PLACE REPO:TAG,TAG`.
    fn chosen(offers: &[Offer], name: &str, image: &str, all: bool) -> Result<Vec<String>, SelectionError> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let request = Request { name: some(name).map(|name| name.parse().unwrap()), image: some(image), all };
        let text = |chosen: Chosen| {
            let tags: Vec<&str> = chosen.tags.iter().map(Tag::as_str).collect();
            format!("{} {}:{}", chosen.offer, chosen.repo, tags.join(","))
        };
        Ok(select(offers, &request)?.into_iter().map(text).collect())
    }

    #[test]
    fn one_image_goes_where_it_is_sent() {
        let nameless = offers(&[&[]]);
        assert_eq!(chosen(&nameless, "team/app:2", "", false).unwrap(), ["0 team/app:2"]);
        assert_eq!(chosen(&nameless, "team/app", "", false).unwrap(), ["0 team/app:latest"]);
        let tagged = offers(&[&["1.0"]]);
        assert_eq!(chosen(&tagged, "team/app", "", false).unwrap(), ["0 team/app:1.0"]);
        assert_eq!(chosen(&tagged, "team/app:2", "", false).unwrap(), ["0 team/app:2"]);
    }

    #[test]
    fn names_of_the_archive_say_where_to() {
        let docker = offers(&[&["docker.io/library/app:1", "1", "localhost:5000/app:x"], &["team/b:2"], &[]]);
        assert_eq!(chosen(&docker, "", "", false).unwrap(), ["0 library/app:1", "0 app:x", "1 team/b:2"]);
        assert_eq!(chosen(&docker, "", "team/b:2", false).unwrap(), ["1 team/b:2"]);
        assert!(matches!(chosen(&offers(&[&["1"]]), "", "", false), Err(SelectionError::Nameless(_))));
    }

    #[test]
    fn one_of_several_is_named() {
        let several = offers(&[&["1"], &["team/app:2"], &[]]);
        assert!(matches!(chosen(&several, "app", "", false), Err(SelectionError::Ambiguous(_))));
        assert_eq!(chosen(&several, "app:2", "", false).unwrap(), ["1 app:2"]);
        assert_eq!(chosen(&several, "app:3", "1", false).unwrap(), ["0 app:3"]);
        let digest = Digest::sha256(b"").to_string();
        assert_eq!(chosen(&several, "app:3", &digest, false).unwrap(), ["2 app:3"]);
        assert!(matches!(chosen(&several, "app", "3", false), Err(SelectionError::Absent { .. })));
    }

    #[test]
    fn all_go_under_their_own_tags() {
        let several = offers(&[&["1", "one"], &["team/app:2"], &[]]);
        assert_eq!(chosen(&several, "app", "", true).unwrap(), ["0 app:1,one", "1 app:2"]);
        assert!(matches!(chosen(&several, "app:1", "", true), Err(SelectionError::TagForAll(_))));
    }
}
