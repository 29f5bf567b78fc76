//! `hosts.toml`: where containerd, and Docker with containerd's store, look for a registry's images (containerd,
//! docs/hosts.md). Pure.

use toml_edit::{Array, DocumentMut, Item, Table, TableLike, value};

use super::{MirrorUrl, Version};

pub(in crate::cli) const FILE: &str = "hosts.toml";

/// What a mirror is asked for. `referrers` is left out: containerd before 2.2 ignores the whole file for it.
const CAPABILITIES: [&str; 2] = ["pull", "resolve"];
/// How long to wait for a mirror on another machine that is down, before the next host is asked.
const DIAL_TIMEOUT: &str = "1s";
/// The first containerd that knows `dial_timeout`.
const DIAL_TIMEOUT_SINCE: Version = Version::new(2, 1);
/// The first containerd that knows the capability `referrers`.
const REFERRERS_SINCE: Version = Version::new(2, 2);

/// The first line of a file of ours.
const HEADING: &str = "# Made by `shoal setup`, which takes it away again with --undo.";

/// What is to stand in the file.
pub(in crate::cli) struct Wanted<'a> {
    pub(in crate::cli) mirror: &'a MirrorUrl,
    /// The URL of the registry itself; `None`: containerd's own, as where the file is for all registries.
    pub(in crate::cli) upstream: Option<&'a str>,
    /// The file of the mirror's authority, as containerd knows it, if the system does not trust it.
    pub(in crate::cli) ca: Option<&'a str>,
    /// Of containerd; `None` if it is not known.
    pub(in crate::cli) version: Option<Version>,
}

/// A host that is asked before the registry itself.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct HostEntry {
    pub(in crate::cli) url: String,
    /// All, if none are named.
    pub(in crate::cli) capabilities: Option<Vec<String>>,
}

impl HostEntry {
    pub(in crate::cli) fn is(&self, mirror: &MirrorUrl) -> bool {
        self.url.parse().as_ref() == Ok(mirror)
    }

    /// Whether it is asked for what a mirror has to be asked for.
    pub(in crate::cli) fn pulls(&self) -> bool {
        let has =
            |wanted: &&str| self.capabilities.as_ref().is_none_or(|all| all.iter().any(|one| one == wanted));
        CAPABILITIES.iter().all(has)
    }
}

/// A file as containerd understands it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) struct Hosts {
    /// In the order in which they are asked.
    pub(in crate::cli) entries: Vec<HostEntry>,
    /// The last resort; the registry itself if none is named.
    pub(in crate::cli) server: Option<String>,
}

impl Hosts {
    /// Reads a file as the containerd of `version` does, or else the newest. An error: it ignores the whole file.
    pub(in crate::cli) fn parse(text: &str, version: Option<Version>) -> Result<Self, String> {
        let document = super::toml(text)?;
        let server = match document.get("server") {
            Some(server) => Some(server.as_str().ok_or("`server` is not a string")?.to_owned()),
            None => None,
        };
        let entries = match document.get("host") {
            Some(hosts) => entries(hosts.as_table().ok_or("`host` is not a table")?)?,
            None => Vec::new(),
        };
        for entry in &entries {
            for capability in entry.capabilities.iter().flatten() {
                let known = match capability.as_str() {
                    "pull" | "resolve" | "push" => true,
                    "referrers" => version.is_none_or(|version| version >= REFERRERS_SINCE),
                    _ => false,
                };
                if !known {
                    return Err(format!("capability {capability:?} of {} is unknown", entry.url));
                }
            }
        }
        Ok(Self { entries, server })
    }
}

/// The hosts by the place of their headers, which is what containerd goes by.
fn entries(hosts: &Table) -> Result<Vec<HostEntry>, String> {
    let mut placed = Vec::new();
    for (url, item) in hosts {
        let table = item.as_table_like().ok_or_else(|| format!("host {url:?} is not a table"))?;
        let wrong = || format!("`capabilities` of {url} is not a list of strings");
        let capabilities = match table.get("capabilities") {
            None => None,
            Some(list) => {
                let list = list.as_array().ok_or_else(wrong)?;
                let words = list.iter().map(|word| word.as_str().map(str::to_owned).ok_or_else(wrong));
                Some(words.collect::<Result<_, _>>()?)
            }
        };
        let place = item.as_table().and_then(Table::position);
        placed.push((place, HostEntry { url: url.to_owned(), capabilities }));
    }
    placed.sort_by_key(|(place, _)| *place);
    Ok(placed.into_iter().map(|(_, entry)| entry).collect())
}

/// A new file.
pub(in crate::cli) fn new(wanted: &Wanted<'_>) -> Result<String, String> {
    let server = wanted.upstream.map(|upstream| format!("server = \"{upstream}\"\n")).unwrap_or_default();
    with_mirror(&format!("{HEADING}\n{server}"), wanted)
}

/// The file with the mirror as the first host; the other hosts, settings and comments stay. A `server` that is the
/// mirror becomes the registry itself, which would never be asked otherwise.
pub(in crate::cli) fn with_mirror(text: &str, wanted: &Wanted<'_>) -> Result<String, String> {
    let mut document = super::toml(text)?;
    let is_mirror = |url: &str| url.parse().as_ref() == Ok(wanted.mirror);
    if document.get("server").and_then(Item::as_str).is_some_and(is_mirror) {
        match wanted.upstream {
            Some(upstream) => set(document.as_table_mut(), "server", value(upstream)),
            None => drop(document.remove("server")),
        }
    }
    let mut implicit = Table::new();
    implicit.set_implicit(true);
    let hosts = document.entry("host").or_insert(Item::Table(implicit));
    let hosts = hosts.as_table_mut().ok_or("`host` is not a table")?;
    let ours = hosts.iter().map(|(url, _)| url.to_owned()).find(|url| is_mirror(url));
    let ours = ours.unwrap_or_else(|| wanted.mirror.to_string());
    let others = hosts.iter().filter(|(url, _)| *url != ours);
    let first = others.filter_map(|(_, item)| item.as_table()?.position()).min();
    let entry = hosts.entry(&ours).or_insert(Item::Table(Table::new()));
    let entry = entry.as_table_like_mut().ok_or_else(|| format!("host {ours:?} is not a table"))?;
    let listed = entry.get("capabilities").and_then(Item::as_array);
    if !listed.is_some_and(|listed| listed.iter().map(|word| word.as_str()).eq(CAPABILITIES.map(Some))) {
        set(entry, "capabilities", value(Array::from_iter(CAPABILITIES)));
    }
    let knows_timeout = wanted.version.is_some_and(|version| version >= DIAL_TIMEOUT_SINCE);
    if knows_timeout && !wanted.mirror.is_loopback() && !entry.contains_key("dial_timeout") {
        entry.insert("dial_timeout", value(DIAL_TIMEOUT));
    }
    if let Some(ca) = wanted.ca.filter(|_| !entry.contains_key("ca")) {
        entry.insert("ca", value(ca));
    }
    if let Some(first) = first {
        put_first(&mut document, &ours, first);
    }
    let written = document.to_string();
    let hosts = Hosts::parse(&written, wanted.version)?;
    if !hosts.entries.first().is_some_and(|entry| entry.is(wanted.mirror)) {
        return Err(
            "the mirror cannot be put before the other hosts: write each as [host.\"URL\"]".to_owned()
        );
    }
    Ok(written)
}

/// Changes a value, and leaves the comments around it.
fn set(table: &mut dyn TableLike, key: &str, mut new: Item) {
    let decor = table.get(key).and_then(Item::as_value).map(|old| old.decor().clone());
    if let (Some(value), Some(decor)) = (new.as_value_mut(), decor) {
        *value.decor_mut() = decor;
    }
    match table.get_mut(key) {
        Some(old) => *old = new,
        None => drop(table.insert(key, new)),
    }
}

/// Moves the host `ours` to the place `first`, which is that of the first of the others, and all behind that by one.
fn put_first(document: &mut DocumentMut, ours: &str, first: isize) {
    fn shift(table: &mut Table, first: isize) {
        if let Some(place) = table.position().filter(|place| *place >= first) {
            table.set_position(Some(place + 1));
        }
        for (_, item) in table.iter_mut() {
            match item {
                Item::Table(table) => shift(table, first),
                Item::ArrayOfTables(tables) => tables.iter_mut().for_each(|table| shift(table, first)),
                Item::Value(_) | Item::None => (),
            }
        }
    }
    /// What has no place follows what it is part of.
    fn place(table: &mut Table, at: Option<isize>) {
        table.set_position(at);
        table.iter_mut().filter_map(|(_, item)| item.as_table_mut()).for_each(|table| place(table, None));
    }
    let table = |document: &mut DocumentMut| document.get("host")?.get(ours)?.as_table()?.position();
    if table(document).is_some_and(|place| place < first) {
        return;
    }
    let hosts = document.get_mut("host").and_then(Item::as_table_mut);
    let next = hosts.and_then(|hosts| {
        let mut tables = hosts.iter_mut().filter_map(|(_, item)| item.as_table_mut());
        tables.find(|table| table.position() == Some(first))
    });
    if let Some(decor) = next.map(Table::decor_mut) {
        let before = decor.prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
        // It may have been the first line of the file.
        if !before.starts_with('\n') {
            decor.set_prefix(format!("\n{before}"));
        }
    }
    shift(document.as_table_mut(), first);
    if let Some(table) = document["host"][ours].as_table_mut() {
        place(table, Some(first));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mirror() -> MirrorUrl {
        "http://127.0.0.1:5000".parse().unwrap()
    }

    fn wanted(mirror: &MirrorUrl) -> Wanted<'_> {
        Wanted { mirror, upstream: Some("https://registry-1.docker.io"), ca: None, version: None }
    }

    #[test]
    fn a_new_file_names_the_mirror_and_the_registry_itself() {
        let text = new(&wanted(&mirror())).unwrap();
        assert_eq!(
            text,
            format!(
                "{HEADING}\nserver = \"https://registry-1.docker.io\"\n\n[host.\"http://127.0.0.1:5000\"]\n\
                 capabilities = [\"pull\", \"resolve\"]\n"
            )
        );
    }

    #[test]
    fn hosts_settings_and_comments_stay_and_the_mirror_is_first() {
        let text = "# ours\nserver = \"https://example.com\" # the registry\n\n# the old cache\n[host.\"https://cache:443\"]\n  \
                    ca = \"/ca.pem\" # keep\n\n[host.\"https://cache:443\".header]\n  x-a = [\"1\"]\n";
        let written = with_mirror(text, &wanted(&mirror())).unwrap();
        let (before, after) = text.split_once("\n# the old cache").unwrap();
        let inserted = "\n[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        assert_eq!(written, format!("{before}{inserted}\n# the old cache{after}"));
    }

    #[test]
    fn a_mirror_that_is_there_is_brought_up_to_date_in_place_of_a_second_one() {
        let text = "[host.\"https://cache\"]\n\n# shoal\n[host.\"http://127.0.0.1:5000/\"]\n  \
                    capabilities = [\"pull\", \"push\"] # all\n  ca = \"/ca.pem\"\n[host.\"http://127.0.0.1:5000/\".header]\n  a = [\"b\"]\n";
        let written = with_mirror(text, &wanted(&mirror())).unwrap();
        let hosts = Hosts::parse(&written, None).unwrap();
        assert_eq!(hosts.entries.len(), 2, "{written}");
        assert!(hosts.entries[0].is(&mirror()) && hosts.entries[0].pulls(), "{written}");
        for kept in ["# shoal", "# all", "ca = \"/ca.pem\"", ".header]\n  a = [\"b\"]\n"] {
            assert!(written.contains(kept), "{kept} is not in\n{written}");
        }
    }

    #[test]
    fn a_blank_line_stands_before_what_was_at_the_head() {
        let text = "# the old cache\n[host.\"https://cache\"]\n";
        let written = with_mirror(text, &wanted(&mirror())).unwrap();
        let ours = "[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n";
        assert_eq!(written, format!("{ours}\n{text}"));
    }

    #[test]
    fn the_registry_itself_stays_the_last_resort() {
        let text = "server = \"http://127.0.0.1:5000\" # wrong\n";
        let written = with_mirror(text, &wanted(&mirror())).unwrap();
        assert!(written.starts_with("server = \"https://registry-1.docker.io\" # wrong\n"), "{written}");
    }

    #[test]
    fn a_dial_timeout_is_for_mirrors_elsewhere_and_containerd_that_knows_it() {
        let elsewhere: MirrorUrl = "http://10.0.0.1:5000".parse().unwrap();
        let has = |mirror: &MirrorUrl, version| {
            new(&Wanted { version, ..wanted(mirror) }).unwrap().contains("dial_timeout")
        };
        assert!(has(&elsewhere, Some(Version::new(2, 1))));
        assert!(!has(&elsewhere, Some(Version::new(2, 0))));
        assert!(!has(&elsewhere, None));
        assert!(!has(&mirror(), Some(Version::new(2, 1))));
    }

    #[test]
    fn what_containerd_ignores_is_told() {
        for (text, reason) in [
            ("server = ", "line 1"),
            ("server = 1", "`server`"),
            ("[host.\"http://a\"]\ncapabilities = \"pull\"", "list of strings"),
            ("[host.\"http://a\"]\ncapabilities = [\"pull\", \"referrers\"]", "\"referrers\""),
            ("host = 1", "`host`"),
        ] {
            let error = Hosts::parse(text, Some(Version::new(2, 1))).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let text = "[host.\"http://a\"]\ncapabilities = [\"pull\", \"referrers\"]";
        assert!(Hosts::parse(text, Some(Version::new(2, 2))).is_ok());
    }

    proptest! {
        #[test]
        fn a_second_time_changes_nothing_and_nothing_is_lost(
            server in proptest::option::of(prop_oneof![Just("https://a.example"), Just("http://127.0.0.1:5000")]),
            hosts in proptest::collection::vec((0_u8..4, any::<bool>(), any::<bool>()), 0..4),
        ) {
            let mut text = server.map(|server| format!("server = \"{server}\"\n")).unwrap_or_default();
            let mut names: Vec<String> = Vec::new();
            for (number, comment, header) in hosts {
                let name = if number == 3 { mirror().to_string() } else { format!("https://h{number}") };
                if names.contains(&name) { continue; }
                if comment { text += &format!("# about {name}\n"); }
                text += &format!("[host.\"{name}\"]\nskip_verify = true\n");
                if header { text += &format!("[host.\"{name}\".header]\nx = [\"{name}\"]\n"); }
                names.push(name);
            }
            let once = with_mirror(&text, &wanted(&mirror())).unwrap();
            prop_assert_eq!(&with_mirror(&once, &wanted(&mirror())).unwrap(), &once);
            let parsed = Hosts::parse(&once, None).unwrap();
            prop_assert!(parsed.entries[0].is(&mirror()));
            let others: Vec<_> = parsed.entries[1..].iter().map(|entry| entry.url.clone()).collect();
            names.retain(|name| *name != mirror().to_string());
            prop_assert_eq!(others, names, "{}", once);
            for line in text.lines().filter(|line| !line.starts_with("server")) {
                prop_assert!(once.contains(line), "{} is not in\n{}", line, once);
            }
            prop_assert_ne!(parsed.server, Some(mirror().to_string()));
        }

        #[test]
        fn any_bytes_are_refused_or_kept_valid(text in "\\PC*") {
            if let Ok(written) = with_mirror(&text, &wanted(&mirror())) {
                prop_assert!(Hosts::parse(&written, None).is_ok());
            }
        }
    }
}
