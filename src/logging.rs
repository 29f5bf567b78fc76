//! How log lines are written: level and form by the config, on standard error.

use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;

use serde_json::{Map, Value};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, JsonFields, Writer, format};
use tracing_subscriber::registry::LookupSpan;

use crate::config::LogConfig;

/// Makes the log of this process. Ours at the level of the config, those of libraries from `warn` on.
pub fn start(config: &LogConfig) {
    // A node without peers is nothing that Kademlia needs to warn of each time it looks for some.
    let filter = EnvFilter::new(format!(
        "warn,libp2p_kad=error,libp2p_gossipsub=error,shoal={}",
        config.level.as_str()
    ));
    let ansi = !config.json && std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    let format = format().with_target(false).with_ansi(ansi);
    if config.json {
        let format = Labelled { format: format.json(), label: json_label(&config.fields) };
        builder.fmt_fields(JsonFields::new()).event_format(format).init();
    } else {
        builder.event_format(Labelled { format, label: text_label(&config.fields) }).init();
    }
}

/// A format with the same text before the end of every line.
struct Labelled<F> {
    format: F,
    label: Label,
}

struct Label {
    /// What a line ends with, before and after.
    end: &'static str,
    labelled_end: String,
}

/// ` environment=staging`, the value in quotes if it needs them.
fn text_label(fields: &Map<String, Value>) -> Label {
    let mut labelled_end = String::new();
    for (name, value) in fields {
        let plain = value.as_str().filter(|text| !text.contains([' ', '"', '=', '\n']) && !text.is_empty());
        let value = plain.map_or_else(|| value.to_string(), str::to_owned);
        // Writing to a string cannot fail.
        let _ = write!(labelled_end, " {name}={value}");
    }
    Label { end: "\n", labelled_end: labelled_end + "\n" }
}

/// Members of the object that a line is.
fn json_label(fields: &Map<String, Value>) -> Label {
    let members = fields.iter().map(|(name, value)| format!(",{}:{value}", Value::from(name.as_str())));
    Label { end: "}\n", labelled_end: members.collect::<String>() + "}\n" }
}

impl Label {
    fn put_on<'a>(&'a self, line: &'a str) -> (&'a str, &'a str) {
        line.strip_suffix(self.end).map_or((line, ""), |line| (line, self.labelled_end.as_str()))
    }
}

impl<S, N, F> FormatEvent<S, N> for Labelled<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.label.end == self.label.labelled_end {
            return self.format.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.format.format_event(context, Writer::new(&mut line), event)?;
        let (line, end) = self.label.put_on(&line);
        writer.write_str(line)?;
        writer.write_str(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    fn labelled(label: &Label, line: &str) -> String {
        let (line, end) = label.put_on(line);
        format!("{line}{end}")
    }

    #[test]
    fn fields_stand_at_the_end_of_a_line_of_text() {
        let label =
            text_label(&fields("{\"environment\": \"staging\", \"rack\": 7, \"site\": \"St. Gallen\"}"));
        assert_eq!(labelled(&label, "INFO up\n"), "INFO up environment=staging rack=7 site=\"St. Gallen\"\n");
        assert_eq!(labelled(&text_label(&Map::new()), "INFO up\n"), "INFO up\n");
    }

    #[test]
    fn fields_are_members_of_a_line_of_json() {
        let label = json_label(&fields("{\"environment\": \"a \\\"b\\\"\", \"rack\": 7}"));
        let line = labelled(&label, "{\"level\":\"INFO\"}\n");
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read, serde_json::json!({"level": "INFO", "environment": "a \"b\"", "rack": 7}));
        assert_eq!(labelled(&json_label(&Map::new()), "{\"level\":\"INFO\"}\n"), "{\"level\":\"INFO\"}\n");
    }
}
