//! A pipeline as the runtime is given it: checked, wired, without configuration format.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::{BuildContext, BuiltJournal, ConfigErrors, Log, Operator, Receiver, Sink, SinkInput, WindowTime};
use fieldstream_schemas::decode::Decoder;

/// Makes a fresh decoder; each partition (or receiver) has its own.
pub type DecoderFactory = Arc<dyn Fn() -> Decoder + Send + Sync>;

/// Makes a fresh operator; each partition has its own.
pub type OperatorFactory = Arc<dyn Fn(&BuildContext) -> Result<Box<dyn Operator>, ConfigErrors> + Send + Sync>;

/// One end of an edge: an output port of a source or operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortRef {
    /// Source by its number in [`PipelineSpec::sources`].
    Source(usize),
    /// Port `port` (number in `Operator::outputs`) of operator `node`.
    Operator {
        /// Number in [`GraphSpec::operators`].
        node: usize,
        /// Number in `Operator::outputs`.
        port: usize,
    },
    /// The `rejected` port of operator `node`: dead letters.
    Rejected {
        /// Number in [`GraphSpec::operators`].
        node: usize,
    },
    /// Undecodable payloads, clock skew and wrong partition of source `source`: dead letters.
    SourceRejected {
        /// Number in [`PipelineSpec::sources`].
        source: usize,
    },
}

/// An operator of the graph.
#[derive(Clone)]
pub struct OperatorSpec {
    /// Name in YAML.
    pub name: Arc<str>,
    /// Catalogue name, such as `validate`.
    pub kind: &'static str,
    /// Where its rows come from; all of one schema.
    pub inputs: Vec<PortRef>,
    /// Constructor.
    pub factory: OperatorFactory,
}

impl fmt::Debug for OperatorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OperatorSpec")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("inputs", &self.inputs)
            .finish_non_exhaustive()
    }
}

/// How rows are gathered before a sink commits them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    /// Commit when so many rows wait.
    pub max_rows: usize,
    /// Commit when so many bytes wait.
    pub max_bytes: usize,
    /// Commit at the latest after this, if anything waits.
    pub max_wait: Duration,
}

impl Default for Gather {
    fn default() -> Self {
        Self { max_rows: 10_000, max_bytes: 8 << 20, max_wait: Duration::from_millis(250) }
    }
}

/// A sink of the graph, without its connection.
#[derive(Clone, Debug)]
pub struct SinkSpec {
    /// Name in YAML; `dead_letter` for the pipeline's dead letter.
    pub name: Arc<str>,
    /// What arrives, in the order of `inputs`.
    pub inputs: Vec<(PortRef, SinkInput)>,
    /// How rows are gathered.
    pub gather: Gather,
    /// True for the pipeline's dead letter: what arrives is counted by code, not as delivered.
    pub dead_letter: bool,
}

/// Operators in topological order, and sinks.
#[derive(Clone, Debug, Default)]
pub struct GraphSpec {
    /// Each one's inputs are sources or earlier operators.
    pub operators: Vec<OperatorSpec>,
    /// The ends.
    pub sinks: Vec<SinkSpec>,
}

/// How many rows one turn carries (the `batch` operator's and the runtime's own limits). Invisible in results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnLimits {
    /// A turn starts when so many rows wait, ...
    pub min_rows: usize,
    /// ... or when the oldest has waited this long.
    pub max_wait: Duration,
    /// And carries at most about so many.
    pub max_rows: usize,
}

/// Time settings of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeSpec {
    /// Event time per device.
    pub window: WindowTime,
    /// A device without rows for so long (by append time) is ticked; `None` for never.
    pub idle_after: Option<Duration>,
    /// How far a reading may lie ahead of its ingest time.
    pub max_future: Option<Duration>,
}

/// Checkpoint settings of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointSpec {
    /// Time between two checkpoints of a partition.
    pub interval: Duration,
    /// Checkpoints kept.
    pub keep: usize,
}

/// A source's name and decoder. Rows of a receiver are decoded before the journal, rows of a log on the shard.
#[derive(Clone)]
pub struct SourceSpec {
    /// Name in YAML.
    pub name: Arc<str>,
    /// Decoder of its payloads.
    pub decoder: DecoderFactory,
}

impl fmt::Debug for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceSpec").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A pipeline that cannot be wrong any more.
#[derive(Clone, Debug)]
pub struct PipelineSpec {
    /// Name in YAML.
    pub name: Arc<str>,
    /// All of one log.
    pub sources: Vec<SourceSpec>,
    /// Operators and sinks.
    pub graph: GraphSpec,
    /// Event time.
    pub time: TimeSpec,
    /// Checkpoints.
    pub checkpoint: CheckpointSpec,
    /// Turn sizes.
    pub turn: TurnLimits,
    /// Active devices per partition before the quietest are passivated.
    pub max_active_devices: usize,
    /// Devices one receiver may bring before readings of further ones are refused.
    pub max_devices_per_source: usize,
}

/// Where a pipeline reads.
pub enum Input {
    /// A log of its own.
    Log {
        /// The log.
        log: Box<dyn Log>,
        /// True when it ends by itself.
        finite: bool,
    },
    /// Receivers, by source number, through the node's journal.
    Receivers(Vec<(usize, Box<dyn Receiver>)>),
    /// Receivers, by source number, through a topic that stands for the node's journal.
    Gateway {
        /// Each with the decoder of what it receives; the decoders of [`PipelineSpec::sources`] are those of the topic.
        receivers: Vec<(usize, Box<dyn Receiver>, Decoder)>,
        /// The topic.
        journal: BuiltJournal,
    },
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log { finite, .. } => f.debug_struct("Log").field("finite", finite).finish_non_exhaustive(),
            Self::Receivers(list) => f.debug_tuple("Receivers").field(&list.len()).finish(),
            Self::Gateway { receivers, .. } => f.debug_tuple("Gateway").field(&receivers.len()).finish(),
        }
    }
}

/// A pipeline with its connections, ready to run.
#[derive(Debug)]
pub struct PipelineParts {
    /// The plan.
    pub spec: PipelineSpec,
    /// Where it reads.
    pub input: Input,
    /// One per [`GraphSpec::sinks`], in that order.
    pub sinks: Vec<SinkBox>,
}

/// A sink's connection.
pub struct SinkBox(pub Box<dyn Sink>);

impl fmt::Debug for SinkBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}
