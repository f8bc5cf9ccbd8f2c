//! `graph`: the plan as a picture (Graphviz, Mermaid) or as data.

use std::fmt::Write as _;

use fieldstream_runtime::spec::PortRef;
use serde::Serialize;

use crate::plan::Plan;

/// A node of the picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GraphNode {
    /// Name in YAML.
    pub name: String,
    /// `source`, `operator` or `sink`.
    pub sort: &'static str,
    /// Catalogue name.
    pub kind: &'static str,
}

/// An edge of the picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GraphEdge {
    /// Node the rows leave.
    pub from: String,
    /// Its port; empty for the node itself.
    pub port: String,
    /// Node the rows enter.
    pub to: String,
}

/// The picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Graph {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Sources, operators in topological order, sinks.
    pub nodes: Vec<GraphNode>,
    /// Every edge once.
    pub edges: Vec<GraphEdge>,
    /// Ports that are dropped on purpose.
    pub discarded: Vec<String>,
}

/// The picture of `plan`.
#[must_use]
pub fn graph(plan: &Plan) -> Graph {
    let node = |name: &str, sort, kind| GraphNode { name: name.to_owned(), sort, kind };
    let sources = plan.sources.iter().map(|s| node(&s.name, "source", s.kind.name));
    let operators = plan.operators.iter().map(|o| node(&o.name, "operator", o.kind.name));
    let sinks = plan.sinks.iter().map(|s| node(&s.name, "sink", s.kind.name));
    let mut edges = Vec::new();
    for operator in &plan.operators {
        edges.extend(operator.inputs.iter().map(|port| edge(plan, *port, &operator.name)));
    }
    for sink in &plan.sinks {
        edges.extend(sink.inputs.iter().map(|(port, _)| edge(plan, *port, &sink.name)));
    }
    Graph {
        pipeline: plan.name.to_string(),
        nodes: sources.chain(operators).chain(sinks).collect(),
        edges,
        discarded: plan.discarded.iter().map(|port| plan.port_name(*port)).collect(),
    }
}

fn edge(plan: &Plan, port: PortRef, to: &str) -> GraphEdge {
    let name = plan.port_name(port);
    let (from, port) = name.split_once('.').unwrap_or((&name, ""));
    GraphEdge { from: from.to_owned(), port: port.to_owned(), to: to.to_owned() }
}

impl Graph {
    /// For Graphviz.
    #[must_use]
    pub fn dot(&self) -> String {
        let mut out = format!("digraph \"{}\" {{\n  rankdir=LR;\n  node [fontname=\"sans-serif\"];\n", self.pipeline);
        for node in &self.nodes {
            let shape = match node.sort {
                "source" => "cds",
                "sink" => "cylinder",
                _ => "box",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(out, "  \"{}\" [shape={shape}, label=\"{}\\n{}\"];", node.name, node.name, node.kind);
        }
        for edge in &self.edges {
            let label = if edge.port.is_empty() { String::new() } else { format!(" [label=\"{}\", style=dashed]", edge.port) };
            let _ = writeln!(out, "  \"{}\" -> \"{}\"{label};", edge.from, edge.to);
        }
        out.push_str("}\n");
        out
    }

    /// For Markdown pages.
    #[must_use]
    pub fn mermaid(&self) -> String {
        let mut out = String::from("flowchart LR\n");
        for node in &self.nodes {
            let (open, close) = match node.sort {
                "source" => ("([", "])"),
                "sink" => ("[(", ")]"),
                _ => ("[", "]"),
            };
            let _ = writeln!(out, "  {}{open}\"{}<br/>{}\"{close}", id(&node.name), node.name, node.kind);
        }
        for edge in &self.edges {
            let arrow = if edge.port.is_empty() { "-->".to_owned() } else { format!("-. {} .->", edge.port) };
            let _ = writeln!(out, "  {} {arrow} {}", id(&edge.from), id(&edge.to));
        }
        out
    }
}

/// Mermaid reads some words (`end`, `graph`) as its own.
fn id(name: &str) -> String {
    format!("n_{}", name.replace('-', "_"))
}
