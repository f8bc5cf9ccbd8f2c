//! `explain`: what a plan will do: columns of every edge, state per slot, and what each path from source to sink promises.

use std::collections::BTreeSet;
use std::fmt;

use fieldstream_engine_api::{Edge, Guarantee, Space};
use fieldstream_runtime::spec::PortRef;
use serde::Serialize;
use serde_json::Value;

use crate::plan::{Plan, PlannedSource, reading_edge};

/// One output port and its columns.
#[derive(Clone, Debug, Serialize)]
pub struct PortExplanation {
    /// `node` or `node.port`.
    pub name: String,
    /// `series` or `device`.
    pub key: &'static str,
    /// Columns as `name: type`, a nullable one with `?`.
    pub columns: Vec<String>,
}

/// State of a node.
#[derive(Clone, Debug, Serialize)]
pub struct StateExplanation {
    /// `series` or `device`.
    pub per: &'static str,
    /// Resident bytes for each; what hangs off a slot in use is not in it.
    pub bytes: usize,
}

/// One node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeExplanation {
    /// Name in YAML.
    pub name: String,
    /// `source`, `operator` or `sink`.
    pub sort: &'static str,
    /// Catalogue name.
    pub kind: &'static str,
    /// The kind in one sentence.
    pub about: &'static str,
    /// Ports it reads.
    pub inputs: Vec<String>,
    /// Ports it has.
    pub outputs: Vec<PortExplanation>,
    /// State it keeps.
    pub state: Vec<StateExplanation>,
    /// Its options as written: references stay references, so that no secret is shown.
    pub options: Value,
}

/// One way from a source to a sink.
#[derive(Clone, Debug, Serialize)]
pub struct PathExplanation {
    /// Source.
    pub source: String,
    /// Sink.
    pub sink: String,
    /// `exactly once`, `at least once`, `none`, or `unknown` where a missing value hides it.
    pub guarantee: &'static str,
    /// Why.
    pub because: &'static str,
    /// What to know besides.
    pub notes: Vec<String>,
}

/// A plan explained.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Sources, operators in topological order, sinks.
    pub nodes: Vec<NodeExplanation>,
    /// Every source with every sink it reaches.
    pub paths: Vec<PathExplanation>,
    /// Ports whose rows are counted and dropped on purpose.
    pub discarded: Vec<String>,
    /// Resident state for a device, and for each of its series.
    pub state_bytes_per_device: usize,
    /// See above.
    pub state_bytes_per_series: usize,
}

/// Explains `plan`.
#[must_use]
pub fn explain(plan: &Plan) -> Explanation {
    let bytes = |space| plan.operators.iter().flat_map(|o| &o.state).filter(|s| s.space == space).map(|s| s.bytes).sum();
    Explanation {
        pipeline: plan.name.to_string(),
        nodes: nodes(plan),
        paths: paths(plan),
        discarded: plan.discarded.iter().map(|port| plan.port_name(*port)).collect(),
        state_bytes_per_device: bytes(Space::Device),
        state_bytes_per_series: bytes(Space::Series),
    }
}

fn nodes(plan: &Plan) -> Vec<NodeExplanation> {
    let as_written = |pointer: &str| plan.document.source.to_value().pointer(pointer).cloned().unwrap_or_default();
    let mut all = Vec::new();
    for source in &plan.sources {
        let (name, sort, kind) = (source.name.to_string(), "source", source.kind.name);
        let outputs = vec![port(&name, &reading_edge())];
        let options = as_written(&source.options_at);
        all.push(NodeExplanation { name, sort, kind, about: source.kind.about, inputs: Vec::new(), outputs, state: Vec::new(), options });
    }
    for (node, operator) in plan.operators.iter().enumerate() {
        let state = operator.state.iter().map(|s| StateExplanation { per: space_name(s.space), bytes: s.bytes }).collect();
        let ports = operator.outputs.iter().enumerate();
        all.push(NodeExplanation {
            name: operator.name.to_string(),
            sort: "operator",
            kind: operator.kind.name,
            about: operator.kind.about,
            inputs: operator.inputs.iter().map(|port| plan.port_name(*port)).collect(),
            outputs: ports.map(|(i, output)| port(&plan.port_name(PortRef::Operator { node, port: i }), &output.edge)).collect(),
            state,
            options: as_written(&operator.options_at),
        });
    }
    for sink in &plan.sinks {
        all.push(NodeExplanation {
            name: sink.name.to_string(),
            sort: "sink",
            kind: sink.kind.name,
            about: sink.kind.about,
            inputs: sink.inputs.iter().map(|(port, _)| plan.port_name(*port)).collect(),
            outputs: Vec::new(),
            state: Vec::new(),
            options: as_written(&sink.options_at),
        });
    }
    all
}

fn port(name: &str, edge: &Edge) -> PortExplanation {
    let columns = edge.schema.fields().iter().map(|f| {
        let kind = match f.data_type() {
            arrow::datatypes::DataType::Dictionary(_, values) => values.to_string(),
            other => other.to_string(),
        };
        format!("{}: {kind}{}", f.name(), if f.is_nullable() { "?" } else { "" })
    });
    PortExplanation { name: name.to_owned(), key: space_name(edge.key), columns: columns.collect() }
}

fn space_name(space: Space) -> &'static str {
    match space {
        Space::Series => "series",
        Space::Device => "device",
        Space::Stateless => "row",
    }
}

fn paths(plan: &Plan) -> Vec<PathExplanation> {
    let mut all = Vec::new();
    for (index, source) in plan.sources.iter().enumerate() {
        for sink in &plan.sinks {
            let reached = sink.inputs.iter().any(|(port, _)| sources_of(plan, *port).contains(&index));
            if reached {
                let (guarantee, because) = promise(sink.guarantee);
                all.push(PathExplanation {
                    source: source.name.to_string(),
                    sink: sink.name.to_string(),
                    guarantee,
                    because,
                    notes: source_notes(source),
                });
            }
        }
    }
    all
}

/// Numbers of the sources from which rows can reach `port`.
fn sources_of(plan: &Plan, port: PortRef) -> BTreeSet<usize> {
    match port {
        PortRef::Source(source) | PortRef::SourceRejected { source } => BTreeSet::from([source]),
        PortRef::Operator { node, .. } | PortRef::Rejected { node } => {
            let inputs = plan.operators.get(node).map(|o| o.inputs.as_slice()).unwrap_or_default();
            inputs.iter().flat_map(|input| sources_of(plan, *input)).collect()
        }
    }
}

/// Every source replays, a log by itself and a receiver through the journal, so the sink decides.
fn promise(guarantee: Option<Guarantee>) -> (&'static str, &'static str) {
    match guarantee {
        Some(Guarantee::ExactlyOnce) => ("exactly once", "the sink commits rows and mark in one atomic write"),
        Some(Guarantee::AtLeastOnce) => ("at least once", "after a crash rows may come again, with the same ids"),
        Some(Guarantee::None) => ("none", "the sink keeps nothing"),
        None => ("unknown", "a value that is missing here decides it"),
    }
}

/// What a source's own options mean for what it can promise.
pub(crate) fn source_notes(source: &PlannedSource) -> Vec<String> {
    let mut notes = Vec::new();
    if !source.is_log() {
        notes.push("a reading counts from its acknowledgement on: it is in the journal then".to_owned());
    }
    if source.kind.name == "mqtt" {
        if source.options.get("qos").and_then(Value::as_u64) == Some(0) {
            notes.push("QoS 0: what the network or the broker loses is never seen".to_owned());
        }
        let topics = source.options.get("topics").and_then(Value::as_array);
        if topics.is_some_and(|t| t.iter().any(|t| t.as_str().is_some_and(|t| t.starts_with("$share/")))) {
            notes.push("a shared subscription keeps the order of a device only while this node is its one subscriber".to_owned());
        }
    }
    notes
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pipeline {}", self.pipeline)?;
        for node in &self.nodes {
            writeln!(f, "\n{} {} ({}): {}", node.sort, node.name, node.kind, node.about)?;
            if !node.inputs.is_empty() {
                writeln!(f, "  reads   {}", node.inputs.join(", "))?;
            }
            for output in &node.outputs {
                writeln!(f, "  gives   {} [{}] {}", output.name, output.key, output.columns.join(", "))?;
            }
            for state in &node.state {
                writeln!(f, "  keeps   {} bytes per {}", state.bytes, state.per)?;
            }
        }
        writeln!(f, "\nguarantees")?;
        for path in &self.paths {
            writeln!(f, "  {} -> {}: {} ({})", path.source, path.sink, path.guarantee, path.because)?;
            for note in &path.notes {
                writeln!(f, "      {note}")?;
            }
        }
        if !self.discarded.is_empty() {
            writeln!(f, "\ndiscarded on purpose: {}", self.discarded.join(", "))?;
        }
        let (device, series) = (self.state_bytes_per_device, self.state_bytes_per_series);
        writeln!(f, "\nstate: {device} bytes per device and {series} bytes per series, resident")
    }
}
