//! The nodes of a plan, each with its checked options and what flows in and out.

use std::sync::Arc;

use fieldstream_engine_api::catalogue::{JournalKind, OperatorKind, SinkKind, SourceBuild, SourceKind};
use fieldstream_engine_api::{Edge, Guarantee, Output, SinkInput, Space};
use fieldstream_runtime::shape::StateShape;
use fieldstream_runtime::spec::{Gather, PortRef};
use fieldstream_schemas::decode::DecodeConfig;
use serde_json::Value;

/// A source of a plan.
#[derive(Clone, Debug)]
pub struct PlannedSource {
    /// Name in YAML.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: SourceKind,
    /// Its options, checked.
    pub options: Value,
    /// JSON pointer to the options.
    pub options_at: String,
    /// How payloads are read.
    pub decode: DecodeConfig,
}

/// What stands for the node's journal.
#[derive(Clone, Debug)]
pub struct PlannedJournal {
    /// Its kind.
    pub kind: JournalKind,
    /// Its options, checked.
    pub options: Value,
    /// JSON pointer to the options.
    pub options_at: String,
}

impl PlannedSource {
    /// True for a log, false for a receiver.
    #[must_use]
    pub fn is_log(&self) -> bool {
        matches!(self.kind.build, SourceBuild::Log(_))
    }
}

/// An operator of a plan.
#[derive(Clone, Debug)]
pub struct PlannedOperator {
    /// Name in YAML.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: OperatorKind,
    /// Its options, checked against `input`.
    pub options: Value,
    /// JSON pointer to the options.
    pub options_at: String,
    /// Where its rows come from.
    pub inputs: Vec<PortRef>,
    /// What comes in.
    pub input: Edge,
    /// What goes out, in the order of the operator's ports.
    pub outputs: Vec<Output>,
    /// Bytes of state each slot takes, by space.
    pub state: Vec<SlotBytes>,
    /// What its states look like in a checkpoint, in the same order.
    pub shapes: Vec<StateShape>,
}

/// Memory of one keyed state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotBytes {
    /// Whose state.
    pub space: Space,
    /// Resident bytes for each slot, as measured on an empty state; what hangs off a slot in use is not in it.
    pub bytes: usize,
}

/// A sink of a plan.
#[derive(Clone, Debug)]
pub struct PlannedSink {
    /// Name in YAML, or `dead_letter`.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: SinkKind,
    /// Its options, checked against `inputs`.
    pub options: Value,
    /// JSON pointer to the options.
    pub options_at: String,
    /// What it reads.
    pub inputs: Vec<(PortRef, SinkInput)>,
    /// How rows are gathered.
    pub gather: Gather,
    /// What it promises; `None` at lint where a missing value hides it.
    pub guarantee: Option<Guarantee>,
    /// True for the pipeline's dead letter.
    pub dead_letter: bool,
}
