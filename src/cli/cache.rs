//! What was pulled through from other registries, as operators see and steer it: `cache`, `prefetch`, `pin`, `unpin`,
//! `evict`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use hyper::Method;
use indicatif::{HumanBytes, HumanDuration};

use super::client::{ask, encoded};
use super::pull::PlatformArguments;
use super::status::print_json;
use super::transfer::progress::short;
use super::{CommandError, Which, complain, print};
use crate::api::{CachedImage, Changed};
use crate::oci::{Digest, ImageName, Repository};

/// An image of another registry.
#[derive(Args, Debug)]
pub(super) struct ImageArguments {
    /// The image, with its registry if that is another than the default one
    #[arg(value_name = "IMAGE", value_parser = ImageName::with_registry)]
    image: ImageName,
    #[command(flatten)]
    which: Which,
}

#[derive(Args, Debug)]
pub(super) struct EvictArguments {
    #[command(flatten)]
    image: ImageArguments,
    /// Also if a pin keeps it; the pin stays, for when the image comes again
    #[arg(long)]
    force: bool,
}

#[derive(Args, Debug)]
pub(super) struct PrefetchArguments {
    /// The images, each with its registry if that is another than the default one
    #[arg(value_name = "IMAGE", value_parser = ImageName::with_registry, required = true)]
    images: Vec<ImageName>,
    #[command(flatten)]
    platforms: PlatformArguments,
    #[command(flatten)]
    which: Which,
}

/// All of them, one after the other; one that fails does not keep the others.
pub(super) fn prefetch(arguments: &PrefetchArguments) -> Result<(), CommandError> {
    let PrefetchArguments { images, platforms, which } = arguments;
    let platform = platforms.platform().map(|platform| format!("&platform={platform}")).unwrap_or_default();
    let mut failed = 0;
    for image in images {
        let target = format!("{}{platform}", target("prefetch", image));
        match ask::<Changed>(which, &Method::POST, &target) {
            Ok(_) => print(&format!("{} is in the cache", image.shown())),
            Err(CommandError::Other(error)) if images.len() > 1 => {
                failed += 1;
                complain(&format!("{}: {error:#}", image.shown()));
            }
            Err(error) => return Err(error),
        }
    }
    match failed {
        0 => Ok(()),
        _ => Err(anyhow::anyhow!("{failed} of {} images are not in the cache", images.len()).into()),
    }
}

pub(super) fn pin(arguments: &ImageArguments) -> Result<(), CommandError> {
    change(arguments, "pin")?;
    print(&format!("{} is pinned: it stays in the cache once it is there", arguments.image.shown()));
    Ok(())
}

pub(super) fn unpin(arguments: &ImageArguments) -> Result<(), CommandError> {
    match change(arguments, "unpin")? {
        true => print(&format!("{} is no longer pinned", arguments.image.shown())),
        false => return Err(anyhow::anyhow!("{} is not pinned", arguments.image.shown()).into()),
    }
    Ok(())
}

pub(super) fn evict(arguments: &EvictArguments) -> Result<(), CommandError> {
    let ImageArguments { image, which } = &arguments.image;
    let target = format!("{}&force={}", target("evict", image), arguments.force);
    match ask::<Changed>(which, &Method::POST, &target)?.changed {
        true => print(&format!("{} has left the cache", image.shown())),
        false => return Err(anyhow::anyhow!("{} is not in the cache", image.shown()).into()),
    }
    Ok(())
}

fn change(arguments: &ImageArguments, verb: &str) -> Result<bool, CommandError> {
    let changed: Changed = ask(&arguments.which, &Method::POST, &target(verb, &arguments.image))?;
    Ok(changed.changed)
}

fn target(verb: &str, image: &ImageName) -> String {
    format!("/v0/cache/{verb}?image={}", encoded(&image.to_string()))
}

pub(super) fn list(which: &Which, json: bool) -> Result<(), CommandError> {
    let images: Vec<CachedImage> = ask(which, &Method::GET, "/v0/cache")?;
    if json {
        print_json(&images);
    } else {
        print(&table(&images, SystemTime::now()));
    }
    Ok(())
}

/// A line for each image, in columns.
fn table(images: &[CachedImage], now: SystemTime) -> String {
    let heading = ["IMAGE", "TAGS", "SIZE", "LAST USED", "STATE"].map(str::to_owned);
    let rows: Vec<[String; 5]> =
        std::iter::once(heading).chain(images.iter().map(|image| row(image, now))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |row: &[String; 5]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(image: &CachedImage, now: SystemTime) -> [String; 5] {
    let repository = image.repository.parse().ok().and_then(|joined| Repository::split(&joined));
    let repository = repository.map_or_else(|| image.repository.clone(), |named| named.to_string());
    let digest =
        image.digest.parse::<Digest>().map_or_else(|_| image.digest.clone(), |digest| short(&digest));
    let used_at = UNIX_EPOCH + Duration::from_secs(image.used_at_s);
    let used = match image.used_at_s {
        0 => "not known".to_owned(),
        _ => format!("{} ago", HumanDuration(now.duration_since(used_at).unwrap_or_default())),
    };
    let pinned = if image.pinned { ", pinned" } else { "" };
    let state = match image.missing_blobs {
        0 => format!("complete{pinned}"),
        1 => format!("1 blob is missing{pinned}"),
        missing => format!("{missing} blobs are missing{pinned}"),
    };
    let tags = if image.tags.is_empty() { "-".to_owned() } else { image.tags.join(",") };
    [format!("{repository}@{digest}"), tags, HumanBytes(image.size_bytes).to_string(), used, state]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_in_columns() {
        let digest = Digest::sha256(b"x");
        let image = |repository: &str, tags: &[&str], missing_blobs, pinned| CachedImage {
            repository: repository.to_owned(),
            digest: digest.to_string(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            size_bytes: 3 << 20,
            missing_blobs,
            used_at_s: 1000,
            pinned,
        };
        let images = [
            image("docker.io/library/app", &["1", "latest"], 0, true),
            image("localhost_5000/a", &[], 2, false),
        ];
        let shown = table(&images, UNIX_EPOCH + Duration::from_secs(1120));
        let digest = short(&digest);
        assert_eq!(
            shown.lines().collect::<Vec<_>>(),
            [
                "IMAGE                               TAGS      SIZE      LAST USED      STATE",
                &format!(
                    "docker.io/library/app@{digest}  1,latest  3.00 MiB  2 minutes ago  complete, pinned"
                ),
                &format!(
                    "localhost:5000/a@{digest}       -         3.00 MiB  2 minutes ago  2 blobs are missing"
                ),
            ]
        );
    }
}
