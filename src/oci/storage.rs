//! Where things lie in the published tree and in the folder of a stock registry, spelled once: distribution's storage
//! layout, so that `ipfs get` of a root is a directory that a stock registry serves (`storage/paths.go` of distribution
//! describes it).

use bytes::Bytes;

use super::{Digest, RepoName, Tag};

/// The top of everything; paths are relative to the folder that holds it.
pub const BASE: &str = "docker/registry/v2";

/// The directory of all blobs and manifests, by algorithm and the first two digits.
pub const BLOBS: &str = "docker/registry/v2/blobs";

/// A path of this module without [`BASE`] before it, for who has only the folder that is called `v2`.
pub fn below_base(path: &str) -> &str {
    path.strip_prefix(BASE).map_or(path, |below| below.trim_start_matches('/'))
}

/// The bytes of a blob or manifest.
pub fn blob_data(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("{BLOBS}/{}/{}/{hex}/data", digest.algorithm().as_str(), &hex[..2])
}

/// Whether an entry of this name is the bytes of a blob or manifest, and not a directory or a link to one.
pub fn is_content(name: &str) -> bool {
    name == "data"
}

/// Says that a repository has a blob.
pub fn layer_link(repo: &RepoName, digest: &Digest) -> String {
    format!("{REPOSITORIES}/{repo}/_layers/{}/{}/link", digest.algorithm().as_str(), digest.hex())
}

/// Says that a repository has a manifest.
pub fn revision_link(repo: &RepoName, digest: &Digest) -> String {
    let algorithm = digest.algorithm().as_str();
    format!("{REPOSITORIES}/{repo}/_manifests/revisions/{algorithm}/{}/link", digest.hex())
}

/// The directory of a repository's tags and manifests.
pub fn manifests(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}/{MANIFESTS}")
}

/// The directory whose entries are the tags of a repository.
pub fn tags(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}/_manifests/tags")
}

/// A tag with everything that is known of it.
pub fn tag(repo: &RepoName, tag: &Tag) -> String {
    format!("{}/{tag}", tags(repo))
}

/// What a tag points to.
pub fn tag_link(repo: &RepoName, tag: &Tag) -> String {
    format!("{}/{tag}/current/link", tags(repo))
}

/// The repository and the tag of a path that [`tag_link`] makes; `None` for any other path.
pub fn parse_tag_link(path: &str) -> Option<(RepoName, Tag)> {
    let path = path.strip_prefix(REPOSITORIES)?.strip_prefix('/')?.strip_suffix("/current/link")?;
    let (repo, tag) = path.split_once("/_manifests/tags/")?;
    Some((repo.parse().ok()?, tag.parse().ok()?))
}

/// What a tag points to or once pointed to.
pub fn tag_index_link(repo: &RepoName, tag: &Tag, digest: &Digest) -> String {
    format!("{}/{tag}/index/{}/{}/link", tags(repo), digest.algorithm().as_str(), digest.hex())
}

/// The directory of all repositories; a directory below it is one if it has a [`LAYERS`] or [`MANIFESTS`].
pub const REPOSITORIES: &str = "docker/registry/v2/repositories";
pub const LAYERS: &str = "_layers";
pub const MANIFESTS: &str = "_manifests";

/// The directory of the links to a repository's blobs, by algorithm.
pub fn layers(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}/{LAYERS}")
}

/// The directory of the links to a repository's manifests, by algorithm.
pub fn revisions(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}/{MANIFESTS}/revisions")
}

/// The directory of who refers to `subject`, by algorithm. Of ours: distribution skips what begins with `_` and is
/// not its own.
pub fn referrers(repo: &RepoName, subject: &Digest) -> String {
    format!("{REPOSITORIES}/{repo}/_referrers/{}/{}", subject.algorithm().as_str(), subject.hex())
}

/// Says that a manifest refers to `subject`.
pub fn referrer_link(repo: &RepoName, subject: &Digest, digest: &Digest) -> String {
    format!("{}/{}/{}/link", referrers(repo, subject), digest.algorithm().as_str(), digest.hex())
}

/// The directory that a link file lies in, and that goes with it.
pub fn directory_of(link: &str) -> String {
    link.rsplit_once('/').map_or(link, |(directory, _)| directory).to_owned()
}

/// The directory that a repository is.
pub fn repository(repo: &RepoName) -> String {
    format!("{REPOSITORIES}/{repo}")
}

/// The bytes of a link file.
pub fn link_content(digest: &Digest) -> Bytes {
    Bytes::from(digest.to_string())
}

/// Reads a link file; a newline at its end is forgiven.
pub fn parse_link(content: &[u8]) -> Option<Digest> {
    std::str::from_utf8(content).ok()?.trim_end().parse().ok()
}

/// The longest link file that is read: `sha512:` and 128 digits, with some room.
pub const LINK_BYTES_MAX: u64 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_a_stock_registry() {
        let repo: RepoName = "library/multi".parse().unwrap();
        let tag: Tag = "v1".parse().unwrap();
        let digest = Digest::sha256(b"");
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(blob_data(&digest), format!("docker/registry/v2/blobs/sha256/e3/{hex}/data"));
        let base = "docker/registry/v2/repositories/library/multi";
        assert_eq!(repository(&repo), base);
        assert_eq!(layer_link(&repo, &digest), format!("{base}/_layers/sha256/{hex}/link"));
        assert_eq!(revision_link(&repo, &digest), format!("{base}/_manifests/revisions/sha256/{hex}/link"));
        assert_eq!(tag_link(&repo, &tag), format!("{base}/_manifests/tags/v1/current/link"));
        assert_eq!(parse_tag_link(&tag_link(&repo, &tag)), Some((repo.clone(), tag.clone())));
        assert_eq!(parse_tag_link(&tag_index_link(&repo, &tag, &digest)), None);
        assert_eq!(parse_tag_link(&revision_link(&repo, &digest)), None);
        assert_eq!(
            tag_index_link(&repo, &tag, &digest),
            format!("{base}/_manifests/tags/v1/index/sha256/{hex}/link")
        );
    }

    #[test]
    fn a_link_is_a_digest_without_newline() {
        let digest = Digest::sha256(b"x");
        assert_eq!(parse_link(&link_content(&digest)), Some(digest));
        assert_eq!(parse_link(format!("{digest}\n").as_bytes()), Some(digest));
        assert_eq!(parse_link(b"sha256:../../etc"), None);
        assert_eq!(parse_link(&[0xff]), None);
    }
}
