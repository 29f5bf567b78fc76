//! A small image, pulled through the mirror as each engine would: by name, then by digest, compared.

use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::Context;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE};
use reqwest::{Client, Method, Response, StatusCode, redirect};

use super::{Patient, Report};
use crate::config::PullThrough;
use crate::oci::manifest::MANIFEST_BYTES_MAX;
use crate::oci::{Digest, Host, ImageName, Reference, RepoName};

/// How long the mirror may take to be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one answer may take, which may have to come from the registry itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest error that is read, in bytes.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// All types of manifests, as engines name them.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                         application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.docker.distribution.manifest.v2+json";

/// Small images that stay where they are.
const WELL_KNOWN: [(&str, &str); 7] = [
    ("docker.io", "library/hello-world:latest"),
    ("gcr.io", "distroless/static:latest"),
    ("ghcr.io", "containerd/busybox:latest"),
    ("mcr.microsoft.com", "hello-world:latest"),
    ("public.ecr.aws", "docker/library/hello-world:latest"),
    ("quay.io", "quay/busybox:latest"),
    ("registry.k8s.io", "pause:3.10"),
];

/// How an engine says which registry it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    /// `?ns=docker.io`: containerd, and Docker with containerd's store.
    Namespace,
    /// `/v2/docker.io/library/app`: podman and CRI-O.
    PathPrefix,
    /// Not at all: Docker with its own store, which means docker.io.
    DefaultRegistry,
}

/// An image with its registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    pub(super) registry: Host,
    repo: RepoName,
    reference: String,
}

impl FromStr for Image {
    type Err = String;

    /// Without a registry it is Docker Hub's, as all engines have it.
    fn from_str(text: &str) -> Result<Self, String> {
        let (registry, rest) = match text.split_once('/').map(|(first, rest)| (first.parse(), rest)) {
            Some((Ok(registry), rest)) => (registry, rest.to_owned()),
            _ => {
                let hub = "docker.io".parse().map_err(|error| format!("{error}"))?;
                (hub, if text.contains('/') { text.to_owned() } else { format!("library/{text}") })
            }
        };
        let name: ImageName = rest.parse().map_err(|error| format!("{error}"))?;
        let reference = name.reference.map_or_else(
            || "latest".to_owned(),
            |reference| match reference {
                Reference::Tag(tag) => tag.to_string(),
                Reference::Digest(digest) => digest.to_string(),
            },
        );
        Ok(Self { registry, repo: name.repo, reference })
    }
}

impl Image {
    fn well_known(registry: &Host) -> Option<Self> {
        let (_, name) = WELL_KNOWN.iter().find(|(host, _)| *host == registry.as_str())?;
        format!("{registry}/{name}").parse().ok()
    }

    /// Where the mirror has a manifest of it.
    fn target(&self, asked: Asked, reference: &str) -> String {
        let (repo, registry) = (&self.repo, self.registry.as_str());
        match asked {
            Asked::Namespace => format!("/v2/{repo}/manifests/{reference}?ns={registry}"),
            Asked::PathPrefix => format!("/v2/{}/{repo}/manifests/{reference}", registry.replace(':', "_")),
            Asked::DefaultRegistry => format!("/v2/{repo}/manifests/{reference}"),
        }
    }
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let joint = if self.reference.contains(':') { '@' } else { ':' };
        write!(f, "{}/{}{joint}{}", self.registry, self.repo, self.reference)
    }
}

/// Reaches the mirror, and pulls an image of each registry in each of the ways in which engines ask.
pub(super) async fn run(
    report: &mut Report,
    patient: &Patient<'_>,
    asked: &[Asked],
    image: Option<&Image>,
) -> anyhow::Result<()> {
    let client = Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
    // The mirror is asked, and nobody else.
    let client = client.no_proxy().redirect(redirect::Policy::none()).build();
    let client = client.context("cannot make an HTTP client")?;
    if !reach(report, patient, &client).await {
        return Ok(());
    }
    for registry in patient.registries {
        let named = image.filter(|image| image.registry == *registry).cloned();
        let Some(image) = named.or_else(|| Image::well_known(registry)) else {
            report.note(format!("no image of {registry} is known to try: name one with --probe"));
            continue;
        };
        for asked in asked {
            if *asked == Asked::DefaultRegistry && registry.as_str() != "docker.io" {
                continue;
            }
            match pull(patient, &client, &image, *asked).await {
                Ok(what) => report.ok(what),
                Err(error) => {
                    let unlisted = patient.configured.is_some_and(|configured| !configured.mirrors(registry));
                    let why = if unlisted {
                        format!("{registry} is not in mirror.registries: ")
                    } else {
                        String::new()
                    };
                    let mend = mend(patient.configured, registry, *asked);
                    report.wrong(format!("{image} cannot be pulled: {why}{error:#}"), mend);
                }
            }
        }
    }
    Ok(())
}

/// What is to be done when an image of a registry cannot be had.
fn mend(configured: Option<&PullThrough>, registry: &Host, asked: Asked) -> String {
    let default = || "have mirror.defaultregistry: docker.io in Shoal's config, and restart it".to_owned();
    let listed = format!("have {registry} in mirror.registries of Shoal's config, and restart it");
    let log = format!("see in Shoal's log what {registry} says, and in `shoal status` whether it is asked");
    let Some(configured) = configured else {
        return match asked {
            Asked::DefaultRegistry => default(),
            Asked::Namespace | Asked::PathPrefix => format!("{listed}; or {log}"),
        };
    };
    match asked {
        Asked::DefaultRegistry if configured.default_registry.as_ref() != Some(registry) => default(),
        _ if !configured.mirrors(registry) => listed,
        _ => log,
    }
}

/// Whether the registry API is there for everybody.
async fn reach(report: &mut Report, patient: &Patient<'_>, client: &Client) -> bool {
    let url = format!("{}/v2/", patient.mirror);
    match client.get(&url).send().await {
        Ok(answer) if answer.status() == StatusCode::OK => {
            report.ok(format!("the mirror answers at {url}"));
            return true;
        }
        Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED => report.wrong(
            format!("{url} wants a password, which engines do not give to a mirror"),
            "set auth.anonymous: pull in Shoal's config, and restart it",
        ),
        Ok(answer) => {
            report.wrong(
                format!("{url} answers {}: no registry", answer.status()),
                "name the mirror with --mirror",
            );
        }
        Err(error) => {
            let what = format!("nobody answers at {url}: {:#}", anyhow::Error::new(error.without_url()));
            report.wrong(what, "shoal serve");
        }
    }
    false
}

/// Pulls a manifest by its name, then by its digest; what came of it, as a sentence.
async fn pull(patient: &Patient<'_>, client: &Client, image: &Image, asked: Asked) -> anyhow::Result<String> {
    let send = async |method: Method, reference: &str| {
        let target = image.target(asked, reference);
        let request = client.request(method.clone(), format!("{}{target}", patient.mirror));
        let answer = request.header(ACCEPT, MANIFESTS).send().await;
        let answer =
            answer.map_err(reqwest::Error::without_url).with_context(|| format!("{method} {target}"))?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        let status = answer.status();
        let said = whole(answer, ERROR_BYTES_MAX).await.unwrap_or_default();
        Err(anyhow::anyhow!("{method} {target} answers {status}{}", message(&said)))
    };
    let begun = Instant::now();
    let head = match send(Method::HEAD, &image.reference).await {
        Ok(head) => head,
        // The answer to HEAD has no words; that to GET may have some.
        Err(error) => return Err(send(Method::GET, &image.reference).await.err().unwrap_or(error)),
    };
    for header in [&CONTENT_TYPE, &CONTENT_LENGTH] {
        anyhow::ensure!(head.headers().contains_key(header), "the answer to HEAD has no {header}");
    }
    let digest =
        header(&head, "docker-content-digest").context("the answer to HEAD has no Docker-Content-Digest")?;
    let digest: Digest = digest.parse()?;
    let source = header(&head, "x-shoal-source")
        .unwrap_or("a mirror that does not say where it has it from")
        .to_owned();
    drop(head);
    let answer = send(Method::GET, &digest.to_string()).await?;
    let bytes = whole(answer, MANIFEST_BYTES_MAX).await?;
    let is = Digest::of(digest.algorithm(), &bytes);
    anyhow::ensure!(is == digest, "the content has digest {is}, not {digest}");
    let how = match asked {
        Asked::Namespace => "by ns",
        Asked::PathPrefix => "by path",
        Asked::DefaultRegistry => "by the default registry",
    };
    let ms = begun.elapsed().as_millis();
    Ok(format!("{image} comes through the mirror, asked {how}: {digest} from {source}, {ms} ms"))
}

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// A body of at most `bytes_max`.
async fn whole(mut answer: Response, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        anyhow::ensure!(
            bytes.len() + chunk.len() <= bytes_max,
            "the answer is longer than {bytes_max} bytes"
        );
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// What the error JSON of a registry says.
fn message(body: &[u8]) -> String {
    let value: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let error = value.as_ref().and_then(|value| value.pointer("/errors/0"));
    let text = |key: &str| {
        error.and_then(|error| error.get(key)).map(|value| match value.as_str() {
            Some(text) => text.to_owned(),
            None => value.to_string(),
        })
    };
    let message = text("message").unwrap_or_default();
    // That of a mirror holds the detail already.
    let detail = text("detail").filter(|detail| !message.contains(detail.as_str())).unwrap_or_default();
    [message, detail].iter().filter(|text| !text.is_empty()).map(|text| format!(": {text}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_as_engines_do() {
        for (text, whole) in [
            ("app", "docker.io/library/app:latest"),
            ("team/app:1", "docker.io/team/app:1"),
            ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
            ("localhost:5000/app:2", "localhost:5000/app:2"),
        ] {
            assert_eq!(text.parse::<Image>().unwrap().to_string(), whole);
        }
        let digest = Digest::sha256(b"x");
        let image: Image = format!("quay.io/app@{digest}").parse().unwrap();
        assert_eq!(image.to_string(), format!("quay.io/app@{digest}"));
        for text in ["", "docker.io/", "App", "docker.io/a:"] {
            assert!(text.parse::<Image>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_engine_asks_in_its_way() {
        let image: Image = "localhost:5000/app:1".parse().unwrap();
        assert_eq!(image.target(Asked::Namespace, "1"), "/v2/app/manifests/1?ns=localhost:5000");
        assert_eq!(image.target(Asked::PathPrefix, "1"), "/v2/localhost_5000/app/manifests/1");
        assert_eq!(image.target(Asked::DefaultRegistry, "1"), "/v2/app/manifests/1");
    }

    #[test]
    fn well_known_images_have_good_names() {
        for (registry, name) in WELL_KNOWN {
            let image = Image::well_known(&registry.parse().unwrap()).unwrap();
            assert_eq!(image.to_string(), format!("{registry}/{name}"));
        }
    }

    #[test]
    fn the_reason_of_a_registry_is_told() {
        let body = br#"{"errors": [{"code": "X", "message": "not here", "detail": {"upstream": "403"}}]}"#;
        assert_eq!(message(body), r#": not here: {"upstream":"403"}"#);
        assert_eq!(message(b"<html>"), "");
    }
}
