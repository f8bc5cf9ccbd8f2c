//! Names to ports: which ports there are, who reads them, and in which order operators run.

use std::collections::{BTreeMap, BTreeSet};

use fieldstream_engine_api::{Edge, OperatorKind, Output};
use fieldstream_runtime::spec::PortRef;

use crate::config::OperatorConfig;
use crate::nodes::RawNode;
use crate::plan::{reading_edge, rejected_edge, unknown_name};

struct Port {
    port: PortRef,
    edge: Edge,
    read: bool,
}

/// All ports known so far, by the name they have in YAML.
pub(crate) struct Ports {
    ports: BTreeMap<String, Port>,
    /// In the order they were added, so that the dead letter's inputs follow the graph.
    order: Vec<String>,
    /// Nodes whose ports cannot be known because they are wrong themselves: references to them are not judged.
    unknown: BTreeSet<String>,
    operators: BTreeSet<String>,
    sinks: BTreeSet<String>,
}

/// A port found (or not to be judged), or a message and a hint.
pub(crate) type Found = Result<Option<(PortRef, Edge)>, (String, Option<String>)>;

impl Ports {
    pub(crate) fn new(unreadable: &[String]) -> Self {
        let unknown = unreadable.iter().cloned().collect();
        Self { ports: BTreeMap::new(), order: Vec::new(), unknown, operators: BTreeSet::new(), sinks: BTreeSet::new() }
    }

    fn add(&mut self, name: String, port: PortRef, edge: Edge) {
        self.order.push(name.clone());
        self.ports.insert(name, Port { port, edge, read: false });
    }

    pub(crate) fn source(&mut self, name: &str, index: usize) {
        self.add(name.to_owned(), PortRef::Source(index), reading_edge());
        self.add(format!("{name}.rejected"), PortRef::SourceRejected { source: index }, rejected_edge());
    }

    pub(crate) fn operator(&mut self, name: &str, node: usize, outputs: &[Output], rejects: bool) {
        for (port, output) in outputs.iter().enumerate() {
            let full = if output.name.is_empty() { name.to_owned() } else { format!("{name}.{}", output.name) };
            self.add(full, PortRef::Operator { node, port }, output.edge.clone());
        }
        if rejects {
            self.add(format!("{name}.rejected"), PortRef::Rejected { node }, rejected_edge());
        }
    }

    pub(crate) fn names<'a>(&mut self, operators: impl Iterator<Item = &'a str>, sinks: impl Iterator<Item = &'a str>) {
        self.operators = operators.map(str::to_owned).collect();
        self.sinks = sinks.map(str::to_owned).collect();
    }

    /// The ports of `name` cannot be known.
    pub(crate) fn unknown(&mut self, name: &str) {
        self.unknown.insert(name.to_owned());
    }

    /// Ports nobody has read yet.
    pub(crate) fn open(&self) -> impl Iterator<Item = &str> {
        self.order.iter().filter(|name| self.ports.get(*name).is_some_and(|p| !p.read)).map(String::as_str)
    }

    /// Reads a port.
    pub(crate) fn take(&mut self, name: &str) -> Found {
        if let Some(port) = self.ports.get_mut(name) {
            port.read = true;
            return Ok(Some((port.port, port.edge.clone())));
        }
        let (node, port) = name.split_once('.').unwrap_or((name, ""));
        if self.unknown.contains(node) {
            return Ok(None);
        }
        if self.sinks.contains(node) {
            return Err((format!("`{node}` is a sink: nothing comes out of it"), None));
        }
        let ports_of_node: Vec<String> = self.ports.keys().filter(|k| k.split('.').next() == Some(node)).cloned().collect();
        if !port.is_empty() && !ports_of_node.is_empty() {
            let known = ports_of_node.join(", ");
            return Err((format!("`{node}` has no port `{port}`"), Some(format!("known: {known}"))));
        }
        if port.is_empty() && !ports_of_node.is_empty() {
            return Err((format!("`{node}` has only named ports"), Some(format!("known: {}", ports_of_node.join(", ")))));
        }
        let names: BTreeSet<String> =
            self.ports.keys().filter_map(|k| k.split('.').next()).map(str::to_owned).chain(self.operators.iter().cloned()).collect();
        Err(unknown_name(node, &names.into_iter().collect::<Vec<_>>()))
    }
}

/// Numbers of the operators so that each comes after those it reads, in file order where that leaves a choice. Those on or
/// behind a cycle are left out; each cycle is told once, with the pointer of one of its inputs.
pub(crate) fn sort_operators(operators: &[RawNode<OperatorKind, OperatorConfig>]) -> (Vec<usize>, Vec<(String, String)>) {
    let number: BTreeMap<&str, usize> = operators.iter().enumerate().map(|(i, o)| (o.name.as_str(), i)).collect();
    let node_of = |input: &String| number.get(input.split('.').next().unwrap_or_default()).copied();
    let reads: Vec<Vec<usize>> = operators.iter().map(|o| o.common.inputs.all().iter().filter_map(node_of).collect()).collect();
    let mut order = Vec::new();
    let mut done = BTreeSet::new();
    loop {
        let next = (0..operators.len()).find(|i| !done.contains(i) && reads.get(*i).is_some_and(|r| r.iter().all(|n| done.contains(n))));
        let Some(next) = next else { break };
        done.insert(next);
        order.push(next);
    }
    (order, cycles(operators, &reads, &done))
}

/// The cycles among what could not be sorted: from each node back along its first unsorted input until one comes again.
fn cycles(operators: &[RawNode<OperatorKind, OperatorConfig>], reads: &[Vec<usize>], done: &BTreeSet<usize>) -> Vec<(String, String)> {
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for start in (0..operators.len()).filter(|i| !done.contains(i)) {
        let mut path = vec![start];
        let repeated = loop {
            let at = path.last().copied().unwrap_or(start);
            let Some(next) = reads.get(at).and_then(|r| r.iter().copied().find(|n| !done.contains(n))) else { break None };
            if let Some(first) = path.iter().position(|p| *p == next) {
                break Some(first);
            }
            path.push(next);
        };
        let Some(first) = repeated else { continue };
        let mut members: Vec<usize> = path.split_off(first);
        members.reverse();
        let smallest = members.iter().copied().min().unwrap_or(start);
        if !told.insert(smallest) {
            continue;
        }
        let turn = members.iter().position(|m| *m == smallest).unwrap_or(0);
        members.rotate_left(turn);
        members.push(smallest);
        let names: Vec<&str> = members.iter().filter_map(|m| operators.get(*m)).map(|o| o.name.as_str()).collect();
        let at = operators.get(smallest).map_or(String::new(), |o| format!("{}/inputs", o.at));
        found.push((at, format!("operators feed each other: {}", names.join(" -> "))));
    }
    found
}
