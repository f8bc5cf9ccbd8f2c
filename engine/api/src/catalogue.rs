//! How operators and connectors offer themselves: one catalogue line each, a name, its options and a constructor.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::{Append, BuildContext, ConfigErrors, Edge, Guarantee, Log, Operator, Receiver, Shared, Sink};

/// A built part, or everything wrong with its options.
pub type Built<T> = Result<T, ConfigErrors>;

/// Constructor of an operator.
pub type BuildOperator = fn(&Value, &Edge, &BuildContext) -> Built<Box<dyn Operator>>;

/// Constructor of a sink.
pub type BuildSink = fn(&Value, &[SinkInput], &ConnectContext) -> Built<Box<dyn Sink>>;

/// An operator a pipeline may name.
#[derive(Clone, Copy, Debug)]
pub struct OperatorKind {
    /// Name in YAML.
    pub name: &'static str,
    /// One sentence for `--help` and the reference page.
    pub about: &'static str,
    /// True when it has a `rejected` port.
    pub rejects: bool,
    /// JSON Schema of its options.
    pub schema: fn() -> Value,
    /// Checks options against the input and builds one instance. Also called at lint, so it must be cheap.
    pub build: BuildOperator,
}

/// What a connector may know when it is built.
#[derive(Clone, Debug)]
pub struct ConnectContext {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
    /// Name of the node.
    pub node: Arc<str>,
    /// The node's own directory for durable state of the process.
    pub data_dir: PathBuf,
    /// True when the run continues an earlier one; false lets outputs of finite runs be truncated.
    pub resume: bool,
    /// What the pipeline's connectors leave for each other.
    pub shared: Shared,
}

/// One input of a sink.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkInput {
    /// `node` or `node.port`.
    pub name: Arc<str>,
    /// What arrives by it.
    pub edge: Edge,
}

/// A log together with what is known about it before it runs.
pub struct BuiltLog {
    /// The log.
    pub log: Box<dyn Log>,
    /// True when it ends by itself.
    pub finite: bool,
}

/// Constructor of a source, by its nature.
#[derive(Clone, Copy, Debug)]
pub enum SourceBuild {
    /// Replays by itself.
    Log(fn(&Value, &ConnectContext) -> Built<BuiltLog>),
    /// Needs the journal.
    Receiver(fn(&Value, &ConnectContext) -> Built<Box<dyn Receiver>>),
}

/// A source a pipeline may name.
#[derive(Clone, Copy, Debug)]
pub struct SourceKind {
    /// Name in YAML.
    pub name: &'static str,
    /// One sentence for `--help` and the reference page.
    pub about: &'static str,
    /// JSON Schema of its options.
    pub schema: fn() -> Value,
    /// Checks options at lint; touches nothing outside the process.
    pub check: fn(&Value) -> Built<()>,
    /// Options that say which log it reads: with another value it is another log. None for a receiver, whose log is the journal.
    pub log_options: &'static [&'static str],
    /// Builds it; connections are made when it is first used.
    pub build: SourceBuild,
}

/// A topic that stands for the node's journal: where receivers write, and the same log as it is read.
pub struct BuiltJournal {
    /// Where receivers write.
    pub writer: Arc<dyn Append>,
    /// What the pipeline reads: readings in the canonical JSON, undecodable payloads as they were refused.
    pub log: Box<dyn Log>,
}

/// A log that may stand for the node's journal.
#[derive(Clone, Copy, Debug)]
pub struct JournalKind {
    /// Name in YAML.
    pub name: &'static str,
    /// One sentence for `--help` and the reference page.
    pub about: &'static str,
    /// JSON Schema of its options.
    pub schema: fn() -> Value,
    /// Checks options at lint; touches nothing outside the process.
    pub check: fn(&Value) -> Built<()>,
    /// Options that say which log it is.
    pub log_options: &'static [&'static str],
    /// Builds it for receivers of these names; connections are made when it is first used.
    pub build: fn(&Value, &[Arc<str>], &ConnectContext) -> Built<BuiltJournal>,
}

/// A sink a pipeline may name.
#[derive(Clone, Copy, Debug)]
pub struct SinkKind {
    /// Name in YAML.
    pub name: &'static str,
    /// One sentence for `--help` and the reference page.
    pub about: &'static str,
    /// JSON Schema of its options.
    pub schema: fn() -> Value,
    /// Checks options against the inputs at lint; touches nothing outside the process.
    pub check: fn(&Value, &[SinkInput]) -> Built<Guarantee>,
    /// The path on this machine that checked options give to this sink alone; two sinks would empty each other there.
    pub place: fn(&Value) -> Option<PathBuf>,
    /// Builds it; connections are made when it is first used.
    pub build: BuildSink,
}
