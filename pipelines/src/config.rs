//! The pipeline language as types: what may be written, its defaults, and its reading out of a file.
//!
//! Doc comments here are user documentation: they become the descriptions of the published JSON Schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use fieldstream_runtime::spec::{CheckpointSpec, Gather};
pub use fieldstream_schemas::Size;
use fieldstream_schemas::decode::DecodeConfig;
use fieldstream_schemas::time::parse_duration;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// A length of time: a number and `us`, `ms`, `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let read = parse_duration(&text).map(Self);
        read.ok_or_else(|| D::Error::custom(format!("`{text}` is no duration; write 250ms, 5s, 1h or 14d")))
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": "^([0-9.]+(us|ms|s|m|h|d)|.*\\$\\{.*)$",
            "description": "A length of time: a number and one of us, ms, s, m, h, d, such as `250ms` or `14d`."
        })
    }
}

/// When state and position are saved together.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Time between two checkpoints of a partition. Default `10s`.
    pub interval: Span,
    /// How many checkpoints are kept. Default 3, at least 1.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { interval: Span(Duration::from_secs(10)), keep: 3 }
    }
}

impl CheckpointConfig {
    /// As the runtime takes it.
    #[must_use]
    pub fn spec(&self) -> CheckpointSpec {
        CheckpointSpec { interval: self.interval.0, keep: self.keep.max(1) }
    }
}

/// Event time. Every device has a clock of its own: the highest event time seen from it minus `out_of_orderness`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TimeConfig {
    /// How far the event times of one device may run backwards before a reading counts as late. Default `5s`.
    pub out_of_orderness: Span,
    /// A device that was silent for so long, by the log's append time, has its windows closed. Default `1m`.
    pub idle_after: Span,
    /// A reading further ahead of its ingest time is rejected with the code `clock_skew`. Default `1h`. Off for finite files.
    pub max_future: Span,
    /// How long a closed window still takes readings, which go to its `.revised` port; later ones go to `.late`. Default `0s`.
    pub allowed_lateness: Span,
}

impl Default for TimeConfig {
    fn default() -> Self {
        let seconds = |s| Span(Duration::from_secs(s));
        Self { out_of_orderness: seconds(5), idle_after: seconds(60), max_future: seconds(3600), allowed_lateness: seconds(0) }
    }
}

/// Bounds on what a pipeline may hold.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Devices per partition whose state is held hot; the quietest ones above that are passivated, which changes no result. Default 1000000.
    pub active_devices: usize,
    /// Rows one turn of a partition carries at most, about. Changes no result. Default 16384.
    pub turn_rows: usize,
    /// Different devices one receiver (MQTT, generator) may bring between two starts; readings of further ones are refused before the
    /// journal with code `device_limit`. Default 1000000.
    pub devices_per_source: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { active_devices: 1_000_000, turn_rows: 16_384, devices_per_source: 1_000_000 }
    }
}

/// How rows are gathered before a sink commits them. The first limit that is reached counts.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GatherConfig {
    /// Commit when so many rows wait. Default 10000.
    pub max_rows: usize,
    /// Commit when so many bytes wait. Default `8MiB`.
    pub max_bytes: Size,
    /// Commit at the latest after this, if anything waits. Default `250ms`.
    pub max_wait: Span,
}

impl Default for GatherConfig {
    fn default() -> Self {
        let gather = Gather::default();
        Self { max_rows: gather.max_rows, max_bytes: Size(gather.max_bytes), max_wait: Span(gather.max_wait) }
    }
}

impl GatherConfig {
    /// As the runtime takes it.
    #[must_use]
    pub fn spec(&self) -> Gather {
        Gather { max_rows: self.max_rows.max(1), max_bytes: self.max_bytes.0.max(1), max_wait: self.max_wait.0 }
    }
}

/// One or several names.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Names {
    /// One name.
    One(String),
    /// Several names.
    Many(Vec<String>),
}

impl Names {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

/// Readings of a test, at a steady pace from one series; or payloads as they come from outside.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GivenConfig {
    /// The source the input goes into.
    pub into: String,
    /// Device of the readings.
    pub device: Option<String>,
    /// Sensor of the readings. Default `value`.
    pub sensor: Option<String>,
    /// Kind of quantity, such as `temperature`.
    #[serde(rename = "type")]
    pub sensor_type: Option<String>,
    /// Unit of the values.
    pub unit: Option<String>,
    /// Quality score of the readings, 0 to 1.
    pub quality: Option<f64>,
    /// Time between two values. Default `1s`.
    pub every: Option<Span>,
    /// Event time of the first value, RFC 3339. Default: the test's `start`.
    pub start: Option<String>,
    /// How long after its event time each reading arrives. Default `0s`.
    pub delay: Option<Span>,
    /// Values separated by spaces; `-20x9` is nine times -20, `_` is a gap, `1..5` counts up, `1..9/2` in steps of 2, `true` is a flag.
    pub values: Option<String>,
    /// Raw payloads instead of values: text is taken as it is, anything else as JSON. They go through `decode`.
    pub payloads: Option<Vec<Value>>,
    /// Topic the payloads come by, where `decode` reads it.
    pub topic: Option<String>,
}

/// What a test expects of one port, or of the ledger.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectConfig {
    /// The port: `node`, `node.port` or `node.rejected`.
    pub from: Option<String>,
    /// Only rows for which this SQL condition is true are looked at.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// These rows come in this order, others may lie between; each names the columns it is about. Numbers may differ by 1e-9 relative.
    pub rows: Option<Vec<Map<String, Value>>>,
    /// So many rows come.
    pub count: Option<usize>,
    /// `balanced`: every input is accounted for.
    pub ledger: Option<LedgerExpectation>,
}

/// What a test may expect of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LedgerExpectation {
    /// Received equals settled, dead-lettered, dropped and deduplicated together.
    Balanced,
}

/// A test of the pipeline, run in virtual time without any service. The end of input closes everything.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestConfig {
    /// What it shows, as a sentence.
    pub name: String,
    /// Event time of the first reading, RFC 3339. Default `2026-01-01T00:00:00Z`.
    pub start: Option<String>,
    /// Input, merged by the time it arrives.
    pub given: Vec<GivenConfig>,
    /// What comes out.
    pub expect: Vec<ExpectConfig>,
}

/// A whole file, for its JSON Schema. Reading goes section by section (`nodes.rs`), so that all errors are found at once.
#[derive(Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Fieldstream pipeline")]
pub struct FileConfig {
    /// Version of this language: 1.
    pub version: u32,
    /// Name of the pipeline: lower-case letters, digits, `-` and `_`. State and marks are kept under it.
    pub pipeline: String,
    /// Variables, used as `${var:name}` and replaced by `--var name=value`. One without a value must be given.
    #[serde(default)]
    pub vars: BTreeMap<String, Value>,
    /// When state is saved.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// Event time.
    #[serde(default)]
    pub time: TimeConfig,
    /// Bounds.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// The log that receivers write to instead of the node's own journal.
    #[serde(default)]
    pub journal: Option<JournalConfig>,
    /// Where readings come from: one log, or any number of receivers.
    pub sources: BTreeMap<String, SourceConfig>,
    /// What happens to them.
    #[serde(default)]
    pub operators: BTreeMap<String, OperatorConfig>,
    /// Where rows go.
    pub sinks: BTreeMap<String, SinkConfig>,
    /// Where rows of every unconnected `.rejected` and `.late` port go.
    #[serde(default)]
    pub dead_letter: Option<DeadLetterConfig>,
    /// Ports whose rows are counted and dropped on purpose.
    #[serde(default)]
    pub discard: Vec<String>,
    /// Tests for `fieldstream test`.
    #[serde(default)]
    pub tests: Vec<TestConfig>,
}

/// A topic instead of the node's own journal: one kind with its options (`kafka: {...}`).
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JournalConfig {}

/// A source: one kind with its options (`mqtt: {...}`), and how its payloads are read.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// How payloads become readings.
    #[serde(default)]
    pub decode: DecodeConfig,
}

/// An operator: one kind with its options (`window: {...}`), and where its rows come from.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OperatorConfig {
    /// Sources and ports it reads; all of one schema.
    pub inputs: Names,
}

/// A sink: one kind with its options (`file: {...}`), where its rows come from and how they are gathered.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SinkConfig {
    /// Sources and ports it writes.
    pub inputs: Names,
    /// How rows are gathered.
    #[serde(default)]
    pub batch: GatherConfig,
}

/// The dead letter: a sink without `inputs`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadLetterConfig {
    /// How rows are gathered.
    #[serde(default)]
    pub batch: GatherConfig,
}
