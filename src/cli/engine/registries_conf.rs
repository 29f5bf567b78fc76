//! `registries.conf` and its drop-ins: where podman and CRI-O look for a registry's images
//! (containers/image, docs/containers-registries.conf.5.md).

use std::path::{Path, PathBuf};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use super::{EngineError, MirrorUrl, Root, list, read, toml};
use crate::oci::Host;

const DROP_INS: &str = "/etc/containers/registries.conf.d";
/// The drop-in of ours: behind those with other numbers, since the last one that knows a prefix counts.
pub(in crate::cli) const OURS: &str = "/etc/containers/registries.conf.d/90-shoal.conf";

/// The first line of a file of ours.
const HEADING: &str = "# Made by `shoal setup podman`, which takes it away again with --undo.\n";

/// The mirror's name for a registry, as a location: there is no `ns` here, so that the registry is in the path. A colon
/// before a port is an underscore there.
pub(in crate::cli) fn location(mirror: &MirrorUrl, registry: &Host) -> String {
    format!("{}/{}", mirror.authority(), registry.as_str().replace(':', "_"))
}

/// A `[[registry]]` of one file.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Entry {
    pub(in crate::cli) file: PathBuf,
    pub(in crate::cli) prefix: String,
    table: Table,
}

impl Entry {
    /// Location and `insecure` of its mirrors, in the order in which they are asked.
    pub(in crate::cli) fn mirrors(&self) -> Vec<(String, bool)> {
        let mirrors = self.table.get("mirror").cloned().and_then(|item| item.into_array_of_tables().ok());
        let mirror = |table: &Table| {
            let insecure = table.get("insecure").and_then(Item::as_bool).unwrap_or_default();
            Some((table.get("location")?.as_str()?.to_owned(), insecure))
        };
        mirrors.iter().flatten().filter_map(mirror).collect()
    }

    pub(in crate::cli) fn is_blocked(&self) -> bool {
        self.table.get("blocked").and_then(Item::as_bool).unwrap_or_default()
    }

    /// Whether it speaks of a repository, named with its registry.
    fn covers(&self, name: &str) -> bool {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            return name.split('/').next().is_some_and(|host| host.ends_with(domain));
        }
        name.strip_prefix(&self.prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// What all files say, in the order in which they are read.
#[derive(Debug)]
pub(in crate::cli) struct Registries(Vec<Entry>);

impl Registries {
    /// The file that is read first.
    pub(in crate::cli) const MAIN: &str = "/etc/containers/registries.conf";

    pub(in crate::cli) fn load(root: &Root) -> Result<Self, EngineError> {
        let folder = root.under(DROP_INS);
        let drop_ins = list(&folder)?.into_iter().filter(|name| name.ends_with(".conf"));
        let mut entries = Vec::new();
        for file in std::iter::once(root.under(Self::MAIN)).chain(drop_ins.map(|name| folder.join(name))) {
            let Some(text) = read(&file)? else { continue };
            let invalid = |reason| EngineError::Invalid { path: file.clone(), reason };
            entries.extend(parse(&text, &file).map_err(invalid)?);
        }
        Ok(Self(entries))
    }

    /// The entry that counts for a prefix: the last one with it.
    fn of_prefix(&self, prefix: &str) -> Option<&Entry> {
        self.0.iter().rev().find(|entry| entry.prefix == prefix)
    }

    /// The entry that counts for a repository, named with its registry: that of the longest prefix.
    pub(in crate::cli) fn of(&self, name: &str) -> Option<&Entry> {
        let longest =
            self.0.iter().filter(|entry| entry.covers(name)).max_by_key(|entry| entry.prefix.len())?;
        self.of_prefix(&longest.prefix)
    }

    /// What the files before `ours` say of a registry, if ours does not have it yet: it has to be taken over, since our
    /// entry takes its place.
    pub(in crate::cli) fn before(&self, ours: &Path, registry: &Host) -> Option<&Entry> {
        let mut same = self.0.iter().rev().filter(|entry| entry.prefix == registry.as_str());
        let is_ours = |entry: &Entry| entry.file == ours;
        if same.clone().any(is_ours) {
            return None;
        }
        same.find(|entry| !is_after(&entry.file, ours))
    }

    /// Entries that go before ours: those of later files, and those of parts of the registry.
    pub(in crate::cli) fn above(&self, ours: &Path, registry: &Host) -> Vec<&Entry> {
        let part = format!("{registry}/");
        let above = |entry: &&Entry| {
            let later = entry.prefix == registry.as_str() && is_after(&entry.file, ours);
            later || (entry.prefix.starts_with(&part) && entry.file != ours)
        };
        self.0.iter().filter(above).collect()
    }
}

/// Whether a drop-in is read after `ours`.
fn is_after(file: &Path, ours: &Path) -> bool {
    file.parent() == ours.parent() && file.file_name() > ours.file_name()
}

fn parse(text: &str, file: &Path) -> Result<Vec<Entry>, String> {
    let document = toml(text)?;
    let Some(registries) = document.get("registry") else { return Ok(Vec::new()) };
    let registries = registries.as_array_of_tables().ok_or("`registry` is not a list of tables")?;
    let entry = |table: &Table| {
        let text = |key: &str| table.get(key).and_then(Item::as_str);
        let prefix = text("prefix").filter(|prefix| !prefix.is_empty()).or(text("location"));
        let prefix = prefix.ok_or("a [[registry]] has neither prefix nor location")?.to_owned();
        Ok(Entry { file: file.to_owned(), prefix, table: table.clone() })
    };
    registries.iter().map(entry).collect()
}

/// Our drop-in, given what it has, with the mirror before the others of `registry`. `before` is what other files say
/// of the registry: it is taken over when the drop-in does not have the registry yet.
pub(in crate::cli) fn with_mirror(
    text: Option<&str>,
    registry: &Host,
    mirror: &MirrorUrl,
    before: Option<&Entry>,
) -> Result<String, String> {
    let mut document = toml(text.unwrap_or(HEADING))?;
    let registries = document.entry("registry").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    let registries = registries.as_array_of_tables_mut().ok_or("`registry` is not a list of tables")?;
    let has = |table: &Table| table.get("prefix").and_then(Item::as_str) == Some(registry.as_str());
    let found = registries.iter().position(has);
    let at = match found {
        Some(at) => at,
        None => {
            registries.push(before.map_or_else(Table::new, |entry| entry.table.clone()));
            registries.len() - 1
        }
    };
    let table = registries.get_mut(at).ok_or("`registry` is empty")?;
    for key in ["prefix", "location"] {
        table.entry(key).or_insert_with(|| value(registry.as_str()));
    }
    let mirrors = table.remove("mirror").unwrap_or_else(|| Item::ArrayOfTables(ArrayOfTables::new()));
    let mirrors = mirrors.into_array_of_tables().map_err(|_| "`mirror` is not a list of tables")?;
    table.insert("mirror", Item::ArrayOfTables(first(mirrors, registry, mirror)));
    unplaced(&mut document);
    Ok(document.to_string())
}

/// The mirrors of a registry, ours before the others.
fn first(mirrors: ArrayOfTables, registry: &Host, mirror: &MirrorUrl) -> ArrayOfTables {
    let location = location(mirror, registry);
    let is_ours = |table: &Table| table.get("location").and_then(Item::as_str) == Some(location.as_str());
    let (ours, others): (Vec<Table>, Vec<Table>) = mirrors.into_iter().partition(is_ours);
    let mut ours = ours.into_iter().next().unwrap_or_default();
    ours.entry("location").or_insert_with(|| value(&location));
    if mirror.is_plain() && ours.get("insecure").and_then(Item::as_bool) != Some(true) {
        ours.insert("insecure", value(true));
    }
    std::iter::once(ours).chain(others).collect()
}

/// Lets tables stand in the order in which they are listed, whichever file they come from.
fn unplaced(document: &mut DocumentMut) {
    fn forget(table: &mut Table) {
        table.set_position(None);
        for (_, item) in table.iter_mut() {
            match item {
                Item::Table(table) => forget(table),
                Item::ArrayOfTables(tables) => tables.iter_mut().for_each(forget),
                Item::Value(_) | Item::None => (),
            }
        }
    }
    forget(document.as_table_mut());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror() -> MirrorUrl {
        "http://127.0.0.1:5000".parse().unwrap()
    }

    fn written(text: Option<&str>, registry: &str, before: Option<&Entry>) -> String {
        with_mirror(text, &registry.parse().unwrap(), &mirror(), before).unwrap()
    }

    #[test]
    fn a_new_drop_in_names_the_registry_in_the_path_of_the_mirror() {
        let expected = format!(
            "{HEADING}\n[[registry]]\nprefix = \"localhost:80\"\nlocation = \"localhost:80\"\n\n[[registry.mirror]]\n\
             location = \"127.0.0.1:5000/localhost_80\"\ninsecure = true\n"
        );
        assert_eq!(written(None, "localhost:80", None), expected);
    }

    #[test]
    fn registries_are_added_and_a_second_time_changes_nothing() {
        let one = written(None, "docker.io", None);
        let two = written(Some(&one), "ghcr.io", None);
        assert!(two.starts_with(&one), "{two}");
        assert_eq!(parse(&two, Path::new("x")).unwrap().len(), 2);
        assert_eq!(written(Some(&two), "docker.io", None), two);
        assert_eq!(written(Some(&two), "ghcr.io", None), two);
    }

    #[test]
    fn what_other_files_say_of_the_registry_is_taken_over_behind_the_mirror() {
        let text = "[[registry]]\nprefix = \"docker.io\"\nlocation = \"hub.lan\" # ours\n\
                    mirror = [{location = \"old.lan\", insecure = true}]\n";
        let entry = parse(text, Path::new("x")).unwrap().remove(0);
        let text = written(None, "docker.io", Some(&entry));
        assert!(text.contains("location = \"hub.lan\" # ours\n"), "{text}");
        let mirrors = parse(&text, Path::new("x")).unwrap()[0].mirrors();
        assert_eq!(mirrors, [("127.0.0.1:5000/docker.io".to_owned(), true), ("old.lan".to_owned(), true)]);
        assert_eq!(written(Some(&text), "docker.io", Some(&entry)), text);
    }

    #[test]
    fn the_longest_prefix_counts_and_of_equal_ones_the_last() {
        let entries = |text: &str, file: &str| parse(text, Path::new(file)).unwrap();
        let mut all = entries("[[registry]]\nlocation = \"docker.io\"\n", "a");
        all.extend(entries("[[registry]]\nprefix = \"docker.io\"\nlocation = \"x\"\n", "b"));
        all.extend(entries(
            "[[registry]]\nprefix = \"docker.io/team\"\n[[registry]]\nprefix = \"*.lan\"\n",
            "c",
        ));
        let registries = Registries(all);
        let file = |name: &str| registries.of(name).map(|entry| entry.file.display().to_string());
        assert_eq!(file("docker.io/library/app").as_deref(), Some("b"));
        assert_eq!(file("docker.io/team/app").as_deref(), Some("c"));
        assert_eq!(file("docker.io/teams/app").as_deref(), Some("b"));
        assert_eq!(file("hub.lan/app").as_deref(), Some("c"));
        assert_eq!(file("ghcr.io/app"), None);
    }
}
