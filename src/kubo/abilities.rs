//! What one release of Kubo can do and an older one cannot. It is asked which options its commands take, since an unknown
//! one is passed over without a word, and a version tells nothing of a fork.

use std::sync::PoisonError;

use serde::Deserialize;

use super::{KuboClient, KuboError, Version, about};

/// What not every Kubo can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Pins are given names, and listed by them.
    pub(super) names_pins: bool,
    /// A name is signed under the sequence that is asked for.
    pub(super) takes_sequence: bool,
}

/// A line of `commands`, and those below it.
#[derive(Deserialize)]
struct Command {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Subcommands", default)]
    commands: Option<Vec<Self>>,
    #[serde(rename = "Options", default)]
    options: Option<Vec<CommandOption>>,
}

#[derive(Deserialize)]
struct CommandOption {
    /// The long one and the short one.
    #[serde(rename = "Names", default)]
    names: Option<Vec<String>>,
}

impl Command {
    fn takes(&self, path: &[&str], option: &str) -> bool {
        match path {
            [] => {
                let mut names =
                    self.options.iter().flatten().flat_map(|option| option.names.iter().flatten());
                names.any(|name| name == option)
            }
            [first, rest @ ..] => {
                let mut below = self.commands.iter().flatten().filter(|command| command.name == *first);
                below.any(|command| command.takes(rest, option))
            }
        }
    }
}

impl Abilities {
    /// What an answer to `commands` tells.
    pub(super) fn read(answer: &[u8]) -> Result<Self, serde_json::Error> {
        let root: Command = serde_json::from_slice(answer)?;
        let lists = |option| root.takes(&["pin", "ls"], option);
        Ok(Self {
            names_pins: root.takes(&["pin", "add"], "name") && lists("names") && lists("name"),
            takes_sequence: root.takes(&["name", "publish"], "sequence"),
        })
    }
}

impl KuboClient {
    /// What the Kubo that answers now can do: it may have been replaced by another release since it was asked last.
    pub(super) async fn abilities(&self) -> Result<Abilities, KuboError> {
        let Version { version } = self.0.rpc.ask(about("version")).await?;
        let known = self.0.abilities.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, abilities)) = known.filter(|(of, _)| *of == version) {
            return Ok(abilities);
        }
        let answer = self.0.rpc.bytes(about("commands")).await?;
        let abilities =
            Abilities::read(&answer).map_err(|error| self.0.rpc.strange("commands", &error.to_string()))?;
        tracing::debug!(%version, ?abilities, "Kubo said what it can do");
        *self.0.abilities.lock().unwrap_or_else(PoisonError::into_inner) = Some((version, abilities));
        Ok(abilities)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(commands: &[(&str, &str, &[&str])]) -> Abilities {
        let rows = commands.iter().map(|(name, below, options)| {
            let options: Vec<_> = options.iter().map(|option| json!({"Names": [option, "x"]})).collect();
            json!({"Name": name, "Options": [], "Subcommands": [{"Name": below, "Subcommands": null, "Options": options}]})
        });
        let root = json!({"Name": "ipfs", "Subcommands": rows.collect::<Vec<_>>(), "Options": null});
        Abilities::read(root.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn abilities_are_read_from_the_options_of_commands() {
        let new = said(&[
            ("pin", "add", &["recursive", "name"]),
            ("pin", "ls", &["names", "name"]),
            ("name", "publish", &["sequence"]),
        ]);
        assert_eq!(new, Abilities { names_pins: true, takes_sequence: true });
        let old =
            said(&[("pin", "add", &["recursive"]), ("pin", "ls", &["type"]), ("name", "publish", &["key"])]);
        assert_eq!(old, Abilities::default());
        let halfway = said(&[("pin", "add", &["name"]), ("pin", "ls", &["names"])]);
        assert!(!halfway.names_pins, "all pins would have to be listed");
        assert_eq!(said(&[]), Abilities::default());
    }

    #[test]
    fn a_hostile_depth_of_commands_is_refused() {
        let deep = "{\"Name\":\"ipfs\",\"Subcommands\":[".repeat(100_000);
        assert!(Abilities::read(deep.as_bytes()).is_err());
    }
}
