//! A document to its nodes: names, kinds, options and the fields all nodes of a sort share. Kinds are looked up, not checked.

use fieldstream_engine_api::{ConfigErrors, JournalKind, OperatorKind, SinkKind, SourceKind};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::code::Code;
use crate::config::{
    CheckpointConfig, DeadLetterConfig, JournalConfig, LimitsConfig, OperatorConfig, SinkConfig, SourceConfig, TestConfig, TimeConfig,
};
use crate::document::{Document, Outcome, read_value};
use crate::problem::{Problems, did_you_mean};
use crate::yaml::pointer_segment;

/// What a pipeline may name.
#[derive(Clone, Copy, Debug)]
pub struct Catalogue<'a> {
    /// Operators.
    pub operators: &'a [OperatorKind],
    /// Sources.
    pub sources: &'a [SourceKind],
    /// Logs that may stand for the journal.
    pub journals: &'a [JournalKind],
    /// Sinks.
    pub sinks: &'a [SinkKind],
}

impl Catalogue<'static> {
    /// Everything this program was built with.
    #[must_use]
    pub fn built_in() -> Self {
        Self {
            operators: fieldstream_operators::catalogue::OPERATORS,
            sources: fieldstream_connectors::catalogue::SOURCES,
            journals: fieldstream_connectors::catalogue::JOURNALS,
            sinks: fieldstream_connectors::catalogue::SINKS,
        }
    }
}

/// A node as written: `K` is its catalogue line, `C` the fields that all nodes of its sort share.
#[derive(Clone, Debug)]
pub struct RawNode<K, C> {
    /// Name in YAML.
    pub name: String,
    /// JSON pointer to the node.
    pub at: String,
    /// Its kind.
    pub kind: K,
    /// JSON pointer to the kind's options.
    pub options_at: String,
    /// The kind's options; `{}` where nothing was written.
    pub options: Value,
    /// Shared fields.
    pub common: C,
}

/// A file read section by section.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the pipeline.
    pub name: String,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
    /// Event time.
    pub time: TimeConfig,
    /// Bounds.
    pub limits: LimitsConfig,
    /// What stands for the journal.
    pub journal: Option<RawNode<JournalKind, JournalConfig>>,
    /// Sources in file order.
    pub sources: Vec<RawNode<SourceKind, SourceConfig>>,
    /// Operators in file order.
    pub operators: Vec<RawNode<OperatorKind, OperatorConfig>>,
    /// Sinks in file order.
    pub sinks: Vec<RawNode<SinkKind, SinkConfig>>,
    /// The dead letter.
    pub dead_letter: Option<RawNode<SinkKind, DeadLetterConfig>>,
    /// Ports dropped on purpose.
    pub discard: Vec<String>,
    /// Tests.
    pub tests: Vec<TestConfig>,
    /// Names of nodes that are in the file but could not be read; nothing is said about references to them.
    pub unreadable: Vec<String>,
}

const SECTIONS: [&str; 13] = [
    "version",
    "pipeline",
    "vars",
    "checkpoint",
    "time",
    "limits",
    "journal",
    "sources",
    "operators",
    "sinks",
    "dead_letter",
    "discard",
    "tests",
];

struct Reader<'a> {
    document: &'a Document,
    problems: Problems,
    unreadable: Vec<String>,
}

/// Reads all sections; what can be read is returned beside what is wrong.
pub fn read(document: &Document, catalogue: &Catalogue<'_>) -> (Config, Problems) {
    let mut reader = Reader { document, problems: Vec::new(), unreadable: Vec::new() };
    reader.top_level();
    let config = Config {
        name: reader.pipeline_name(),
        checkpoint: reader.section("checkpoint").unwrap_or_default(),
        time: reader.section("time").unwrap_or_default(),
        limits: reader.section("limits").unwrap_or_default(),
        journal: reader.journal(catalogue.journals),
        sources: reader.nodes("sources", "source", catalogue.sources, |k| k.name),
        operators: reader.nodes("operators", "operator", catalogue.operators, |k| k.name),
        sinks: reader.nodes("sinks", "sink", catalogue.sinks, |k| k.name),
        dead_letter: reader.dead_letter(catalogue.sinks),
        discard: reader.section("discard").unwrap_or_default(),
        tests: reader.section("tests").unwrap_or_default(),
        unreadable: std::mem::take(&mut reader.unreadable),
    };
    (config, reader.problems)
}

impl Reader<'_> {
    fn error(&mut self, code: Code, pointer: &str, message: &str, hint: Option<String>) {
        self.problems.push(self.document.problem(code, pointer, message, hint));
    }

    fn top_level(&mut self) {
        for entry in self.document.root.entries() {
            if !SECTIONS.contains(&entry.key.as_str()) {
                let message = format!("unknown field `{}`", entry.key);
                self.error(Code::Shape, &pointer_segment(&entry.key), &message, did_you_mean(&entry.key, SECTIONS));
            }
        }
        match self.document.root.get("version").map(crate::yaml::Node::to_value) {
            Some(Value::Number(n)) if n.as_u64() == Some(1) => {}
            Some(other) => self.error(
                Code::Shape,
                "/version",
                &format!("version {other} of the language is not known"),
                Some("write `version: 1`".to_owned()),
            ),
            None => self.error(Code::Shape, "", "missing field `version`", Some("write `version: 1`".to_owned())),
        }
        for section in ["sources", "sinks"] {
            if self.document.root.get(section).is_none_or(|node| node.entries().is_empty()) {
                self.error(Code::Shape, &pointer_segment(section), &format!("a pipeline needs at least one entry under `{section}`"), None);
            }
        }
    }

    fn pipeline_name(&mut self) -> String {
        let name = match self.document.root.get("pipeline").map(crate::yaml::Node::to_value) {
            Some(Value::String(name)) => name,
            Some(_) => String::new(),
            None => {
                self.error(Code::Shape, "", "missing field `pipeline`", Some("name the pipeline: `pipeline: my-pipeline`".to_owned()));
                return String::new();
            }
        };
        self.check_name("/pipeline", &name);
        name
    }

    /// Names become directories, table columns and metric labels: lower-case letters, digits, `-` and `_`.
    fn check_name(&mut self, pointer: &str, name: &str) {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            let hint = "use lower-case letters, digits, `-` and `_`, beginning with a letter, at most 64".to_owned();
            self.error(Code::Name, pointer, &format!("`{name}` cannot be a name"), Some(hint));
        }
    }

    fn section<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let value = self.document.root.get(name)?.to_value();
        if value.is_null() {
            return None;
        }
        let base = pointer_segment(name);
        self.take(&base, value, read_value)
    }

    fn take<T>(&mut self, base: &str, value: Value, read: impl FnMut(&Value) -> Result<T, ConfigErrors>) -> Option<T> {
        match self.document.check(base, value, read) {
            Outcome::Good(good, _) => Some(good),
            Outcome::Unknown => None,
            Outcome::Wrong(errors) => {
                self.problems.extend(self.document.problems(Code::Shape, base, &errors));
                None
            }
        }
    }

    fn nodes<K: Copy, C: DeserializeOwned + Fields>(
        &mut self,
        section: &str,
        sort: &str,
        kinds: &[K],
        name_of: fn(&K) -> &'static str,
    ) -> Vec<RawNode<K, C>> {
        let Some(root) = self.document.root.get(section) else { return Vec::new() };
        let mut nodes = Vec::new();
        for entry in root.entries() {
            let at = format!("/{section}{}", pointer_segment(&entry.key));
            self.check_name(&at, &entry.key);
            if entry.key == "dead_letter" {
                self.error(Code::Name, &at, "the name `dead_letter` belongs to the section of that name", None);
            }
            match self.node(&entry.key, &at, sort, entry.value.to_value(), kinds, name_of) {
                Some(node) => nodes.push(node),
                None => self.unreadable.push(entry.key.clone()),
            }
        }
        nodes
    }

    fn journal(&mut self, kinds: &[JournalKind]) -> Option<RawNode<JournalKind, JournalConfig>> {
        let value = self.document.root.get("journal")?.to_value();
        self.node("journal", "/journal", "journal", value, kinds, |k| k.name)
    }

    fn dead_letter(&mut self, kinds: &[SinkKind]) -> Option<RawNode<SinkKind, DeadLetterConfig>> {
        let value = self.document.root.get("dead_letter")?.to_value();
        let node = self.node("dead_letter", "/dead_letter", "dead letter", value, kinds, |k| k.name);
        if node.is_none() {
            self.unreadable.push("dead_letter".to_owned());
        }
        node
    }

    /// One node: the fields of `C`, and exactly one other field, which names the kind.
    fn node<K: Copy, C: DeserializeOwned + Fields>(
        &mut self,
        name: &str,
        at: &str,
        sort: &str,
        value: Value,
        kinds: &[K],
        name_of: fn(&K) -> &'static str,
    ) -> Option<RawNode<K, C>> {
        let Value::Object(fields) = value else {
            self.error(Code::Kind, at, &format!("a {sort} is a map with its kind"), did_you_mean("", kinds.iter().map(name_of)));
            return None;
        };
        let (common, rest): (Map<_, _>, Map<_, _>) = fields.into_iter().partition(|(key, _)| C::FIELDS.contains(&key.as_str()));
        let mut found = None;
        let mut failed = false;
        for (key, options) in rest {
            let options_at = format!("{at}{}", pointer_segment(&key));
            match kinds.iter().find(|k| name_of(k) == key) {
                Some(_) if found.is_some() => {
                    failed = true;
                    self.error(Code::Kind, &options_at, &format!("{sort} `{name}` has two kinds"), Some("make two of it".to_owned()));
                }
                Some(kind) => found = Some((*kind, options_at, if options.is_null() { Value::Object(Map::new()) } else { options })),
                None => {
                    failed = true;
                    let known = C::FIELDS.iter().copied().chain(kinds.iter().map(name_of)).collect::<Vec<_>>();
                    // "unknown field" is what makes the place the key and not its value.
                    self.error(
                        Code::Kind,
                        &options_at,
                        &format!("unknown field `{key}`: no kind of {sort}"),
                        did_you_mean(&key, known.iter().copied()),
                    );
                }
            }
        }
        let common = self.take(at, Value::Object(common), read_value::<C>);
        if found.is_none() && !failed {
            let known: Vec<_> = kinds.iter().map(name_of).collect();
            self.error(Code::Kind, at, &format!("{sort} `{name}` does not say its kind"), Some(format!("known: {}", known.join(", "))));
        }
        let ((kind, options_at, options), common) = found.filter(|_| !failed).zip(common)?;
        Some(RawNode { name: name.to_owned(), at: at.to_owned(), kind, options_at, options, common })
    }
}

/// Names of the fields that every node of a sort shares.
pub(crate) trait Fields {
    const FIELDS: &'static [&'static str];
}

impl Fields for JournalConfig {
    const FIELDS: &'static [&'static str] = &[];
}

impl Fields for SourceConfig {
    const FIELDS: &'static [&'static str] = &["decode"];
}

impl Fields for OperatorConfig {
    const FIELDS: &'static [&'static str] = &["inputs"];
}

impl Fields for SinkConfig {
    const FIELDS: &'static [&'static str] = &["inputs", "batch"];
}

impl Fields for DeadLetterConfig {
    const FIELDS: &'static [&'static str] = &["batch"];
}
