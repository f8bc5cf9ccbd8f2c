//! The operator graph of one partition: rows in, rows at the sinks out, as plain synchronous calls in topological order.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, take_record_batch};
use fieldstream_engine_api::{
    BuildContext, ConfigErrors, Emitter, KeyedBatch, Keys, NodeCounts, Operator, Rejected, SinkRows, SlotDirectory, Tick,
};

use crate::clock::Clock;
use crate::durations::Durations;
use crate::ledger::Totals;
use crate::spec::{GraphSpec, PortRef};

/// Makes dead letters of rejected rows; given by the partition, which knows payloads and ids.
pub type MakeDeadLetters<'a> = dyn FnMut(&str, &Rejected) -> KeyedBatch + 'a;

struct Node {
    name: Arc<str>,
    kind: &'static str,
    operator: Box<dyn Operator>,
    inputs: Vec<usize>,
    /// Channel of each output port, where somebody reads it.
    outputs: Vec<Option<usize>>,
    rejected: Option<usize>,
    /// On the one path from the source, before any fan-out: its dispositions are the readings' own.
    prefix: bool,
    /// Its forwarded rows leave the prefix.
    terminal: bool,
    /// Operators it reads from.
    upstream: Vec<usize>,
    /// It takes readings into state: what leaves it are new rows, not readings.
    absorbs: bool,
    /// Its input comes from an operator that absorbs: its rows are no readings.
    detached: bool,
    /// Ports named `late`: true where they lead to the dead letter.
    late_is_dead: bool,
    meter: NodeMeter,
    emitter: Emitter,
}

/// What an operator has done since its partition was hosted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeMeter {
    /// Rows by disposition.
    pub counts: NodeCounts,
    /// Batches handled.
    pub batches: u64,
    /// Time spent in it, by turn that brought it rows or a tick.
    pub durations: Durations,
}

struct SinkNode {
    name: Arc<str>,
    inputs: Vec<usize>,
}

/// A graph with its operators, for one partition.
pub struct Graph {
    nodes: Vec<Node>,
    sinks: Vec<SinkNode>,
    sources: Vec<SourceNode>,
    /// Rows on each channel in this turn.
    channels: Vec<Vec<KeyedBatch>>,
    /// Rows that reached each sink in this turn.
    arrived: Vec<Vec<SinkRows>>,
    slots: (usize, usize),
    running: Option<usize>,
}

struct SourceNode {
    rows: Option<usize>,
    rejected: Option<usize>,
    /// Its rows reach no prefix operator: they are settled as they come.
    terminal: bool,
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph").field("nodes", &self.nodes.iter().map(|n| &n.name).collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

/// Who reads which port, and what that means for the account.
struct Wiring {
    channels: HashMap<PortRef, usize>,
    readers: HashMap<PortRef, usize>,
}

impl Wiring {
    fn new(spec: &GraphSpec) -> Self {
        let mut wiring = Self { channels: HashMap::new(), readers: HashMap::new() };
        let operator_inputs = spec.operators.iter().flat_map(|o| &o.inputs);
        let sink_inputs = spec.sinks.iter().flat_map(|s| s.inputs.iter().map(|(port, _)| port));
        for port in operator_inputs.chain(sink_inputs) {
            let next = wiring.channels.len();
            wiring.channels.entry(*port).or_insert(next);
            *wiring.readers.entry(*port).or_insert(0) += 1;
        }
        wiring
    }

    fn channel(&self, port: PortRef) -> Option<usize> {
        self.channels.get(&port).copied()
    }

    /// Readers of a node's rows (dead letters apart).
    fn fan_out(&self, of: PortRef) -> usize {
        let same_node = |port: &PortRef| match (of, port) {
            (PortRef::Source(a), PortRef::Source(b)) => a == *b,
            (PortRef::Operator { node: a, .. }, PortRef::Operator { node: b, .. }) => a == *b,
            _ => false,
        };
        self.readers.iter().filter(|(port, _)| same_node(port)).map(|(_, n)| n).sum()
    }
}

impl Graph {
    /// Builds the operators of `spec` for one partition. `context` is given each node's name.
    ///
    /// # Errors
    /// What the operators' constructors say; the planner has asked them before, so this is rare.
    pub fn new(spec: &GraphSpec, sources: usize, context: &BuildContext) -> Result<Self, ConfigErrors> {
        let wiring = Wiring::new(spec);
        let mut nodes: Vec<Node> = Vec::with_capacity(spec.operators.len());
        for (number, operator_spec) in spec.operators.iter().enumerate() {
            let operator = (operator_spec.factory)(&BuildContext { node: Arc::clone(&operator_spec.name), ..context.clone() })?;
            let outputs = (0..operator.outputs().len()).map(|port| wiring.channel(PortRef::Operator { node: number, port })).collect();
            let prefix = operator_spec.inputs.iter().all(|port| match port {
                PortRef::Source(_) => wiring.fan_out(*port) == 1,
                PortRef::Operator { node, port: 0 } => {
                    nodes[*node].prefix && wiring.fan_out(PortRef::Operator { node: *node, port: 0 }) == 1
                }
                _ => false,
            });
            let late = operator.outputs().iter().position(|o| &*o.name == "late");
            let late_is_dead = late.is_some_and(|port| {
                let late = PortRef::Operator { node: number, port };
                spec.sinks.iter().any(|s| s.dead_letter && s.inputs.iter().any(|(p, _)| *p == late))
            });
            nodes.push(Node {
                name: Arc::clone(&operator_spec.name),
                kind: operator_spec.kind,
                inputs: operator_spec.inputs.iter().filter_map(|port| wiring.channel(*port)).collect(),
                outputs,
                rejected: wiring.channel(PortRef::Rejected { node: number }),
                prefix,
                terminal: false,
                upstream: operator_spec
                    .inputs
                    .iter()
                    .filter_map(|port| if let PortRef::Operator { node, .. } = port { Some(*node) } else { None })
                    .collect(),
                absorbs: false,
                detached: false,
                late_is_dead,
                meter: NodeMeter::default(),
                emitter: Emitter::default(),
                operator,
            });
        }
        let feeds_prefix = |port: PortRef| spec.operators.iter().zip(&nodes).any(|(o, n)| n.prefix && o.inputs.contains(&port));
        let terminal: Vec<bool> = (0..nodes.len()).map(|node| !feeds_prefix(PortRef::Operator { node, port: 0 })).collect();
        let sources = (0..sources).map(|source| SourceNode {
            rows: wiring.channel(PortRef::Source(source)),
            rejected: wiring.channel(PortRef::SourceRejected { source }),
            terminal: !feeds_prefix(PortRef::Source(source)),
        });
        let sources = sources.collect();
        nodes.iter_mut().zip(terminal).for_each(|(node, terminal)| node.terminal = terminal);
        let sinks = spec.sinks.iter().map(|s| SinkNode {
            name: Arc::clone(&s.name),
            inputs: s.inputs.iter().filter_map(|(port, _)| wiring.channel(*port)).collect(),
        });
        Ok(Self {
            arrived: spec.sinks.iter().map(|_| Vec::new()).collect(),
            sinks: sinks.collect(),
            sources,
            channels: vec![Vec::new(); wiring.channels.len()],
            nodes,
            slots: (0, 0),
            running: None,
        })
    }

    /// Puts rows of `source` on its channel; [`Self::run`] does the work.
    pub fn push(&mut self, source: usize, batch: KeyedBatch, totals: &mut Totals) {
        totals.received += batch.len() as u64;
        let node = &self.sources[source];
        if node.terminal {
            totals.settled += batch.len() as u64;
        }
        if let Some(channel) = node.rows
            && !batch.is_empty()
        {
            self.channels[channel].push(batch);
        }
    }

    /// Puts dead letters of `source` (undecodable payloads and ingress rejects, of one code) on their channel.
    pub fn push_rejected(&mut self, source: usize, code: &str, batch: KeyedBatch, totals: &mut Totals) {
        let rows = batch.len() as u64;
        totals.received += rows;
        match self.sources[source].rejected {
            Some(channel) => {
                totals.dead_letter(code, rows);
                self.channels[channel].push(batch);
            }
            None => totals.drop_rows(code, rows),
        }
    }

    /// Runs every operator on what waits on its inputs, then, for a tick, on the quiet devices.
    pub fn run(
        &mut self,
        tick: Option<(&Tick, &[u32])>,
        slots: &SlotDirectory,
        totals: &mut Totals,
        clock: &dyn Clock,
        dead_letters: &mut MakeDeadLetters<'_>,
    ) {
        self.grow(slots);
        for number in 0..self.nodes.len() {
            self.running = Some(number);
            let input = self.input_of(number);
            let detached = self.nodes[number].upstream.iter().any(|u| self.nodes[*u].absorbs || self.nodes[*u].detached);
            let node = &mut self.nodes[number];
            let received = input.iter().map(KeyedBatch::len).sum();
            let start = clock.monotonic();
            for batch in &input {
                node.operator.on_batch(batch, slots, &mut node.emitter);
            }
            if let Some((tick, devices)) = tick {
                node.operator.on_tick(tick, devices, slots, &mut node.emitter);
            }
            let (sent, rejected, counts) = node.emitter.finish(received);
            debug_assert!(counts.balanced(), "node {} lost or doubled rows: {counts:?}", node.name);
            node.meter.counts.add(&counts);
            node.meter.batches += input.len() as u64;
            if !input.is_empty() || tick.is_some() {
                node.meter.durations.observe(clock.monotonic().saturating_sub(start));
            }
            if node.prefix && !detached {
                account(node, &counts, &rejected, totals);
            }
            node.absorbs |= counts.absorbed + counts.emitted > 0;
            node.detached = detached;
            for (port, batch) in sent {
                if let Some(channel) = node.outputs.get(port).copied().flatten() {
                    self.channels[channel].push(batch);
                }
            }
            if let Some(channel) = node.rejected {
                let name = Arc::clone(&node.name);
                self.channels[channel].extend(rejected.iter().map(|r| dead_letters(&name, r)));
            }
        }
        self.running = None;
        self.collect();
    }

    /// Hands what lies before the sinks to them and empties all channels: a turn may run the graph several times.
    fn collect(&mut self) {
        for (sink, arrived) in self.sinks.iter().zip(&mut self.arrived) {
            for (input, channel) in sink.inputs.iter().enumerate() {
                arrived.extend(self.channels[*channel].iter().map(|batch| SinkRows { input, batch: batch.clone() }));
            }
        }
        self.channels.iter_mut().for_each(Vec::clear);
    }

    /// Takes what reached the sinks in this turn, the rows of each input by position.
    pub fn take_sink_rows(&mut self) -> Vec<Vec<SinkRows>> {
        self.collect();
        self.arrived.iter_mut().map(|arrived| in_order(std::mem::take(arrived))).collect()
    }

    /// Name of the operator whose turn did not come to an end.
    #[must_use]
    pub fn running(&self) -> Option<&str> {
        self.running.map(|number| &*self.nodes[number].name)
    }

    /// Makes room in every state for all slots of the directory.
    pub fn grow(&mut self, slots: &SlotDirectory) {
        let wanted = (slots.device_slots(), slots.series_slots());
        if self.slots == wanted {
            return;
        }
        self.slots = wanted;
        for state in self.nodes.iter_mut().flat_map(|n| n.operator.states()) {
            state.grow_to(if state.space() == fieldstream_engine_api::Space::Device { wanted.0 } else { wanted.1 });
        }
    }

    /// Calls `f(node name, number of the state in the node, state)` for every keyed state.
    pub fn for_each_state(&mut self, mut f: impl FnMut(&Arc<str>, usize, &mut dyn fieldstream_engine_api::KeyedState)) {
        for node in &mut self.nodes {
            let name = Arc::clone(&node.name);
            node.operator.states().into_iter().enumerate().for_each(|(number, state)| f(&name, number, state));
        }
    }

    /// Names of the sinks, in the order of their numbers.
    pub fn sinks(&self) -> impl Iterator<Item = &Arc<str>> + '_ {
        self.sinks.iter().map(|sink| &sink.name)
    }

    /// True while a later tick of append time may matter to the device.
    #[must_use]
    pub fn pending(&self, device: u32, slots: &SlotDirectory) -> bool {
        self.nodes.iter().any(|n| n.operator.pending(device, slots))
    }

    /// All operators: (name, kind, meter).
    pub fn meters(&self) -> impl Iterator<Item = (&Arc<str>, &'static str, NodeMeter)> + '_ {
        self.nodes.iter().map(|n| (&n.name, n.kind, n.meter))
    }

    /// Bytes of all keyed state in memory.
    pub fn state_bytes(&mut self) -> usize {
        self.nodes.iter_mut().flat_map(|n| n.operator.states()).map(|s| s.bytes()).sum()
    }

    /// Codes the operators on the path before the first fan-out may reject with.
    #[must_use]
    pub fn reject_codes(&self) -> Vec<Arc<str>> {
        self.nodes.iter().filter(|n| n.prefix).flat_map(|n| n.operator.reject_codes()).collect()
    }

    /// The rows waiting for operator `number`; several inputs are merged by position, so that batch cuts do not show.
    fn input_of(&self, number: usize) -> Vec<KeyedBatch> {
        let inputs = &self.nodes[number].inputs;
        let waiting = || inputs.iter().flat_map(|channel| &self.channels[*channel]);
        let used = inputs.iter().filter(|channel| !self.channels[**channel].is_empty()).count();
        if used <= 1 { waiting().cloned().collect() } else { merge_by_position(&waiting().cloned().collect::<Vec<_>>()) }
    }
}

/// A prefix operator's dispositions are the readings' own.
fn account(node: &Node, counts: &NodeCounts, rejected: &[Rejected], totals: &mut Totals) {
    for r in rejected {
        match node.rejected {
            Some(_) => totals.dead_letter(&r.code, r.rows.len() as u64),
            None => totals.drop_rows(&r.code, r.rows.len() as u64),
        }
    }
    if counts.filtered > 0 {
        totals.drop_rows("filtered", counts.filtered);
    }
    if counts.late > 0 && node.late_is_dead {
        totals.dead_letter("late", counts.late);
    } else {
        totals.settled += counts.late;
    }
    totals.deduplicated += counts.deduplicated;
    totals.settled += counts.absorbed + if node.terminal { counts.forwarded } else { 0 };
}

/// Rejected rows leave their node code by code: without this, the order of dead letters would tell where turns were cut.
fn in_order(arrived: Vec<SinkRows>) -> Vec<SinkRows> {
    let inputs: BTreeSet<usize> = arrived.iter().map(|rows| rows.input).collect();
    let of = |input: usize| arrived.iter().filter(move |rows| rows.input == input);
    let disordered = |input: &usize| {
        let bounds = of(*input).filter_map(|rows| Some((*rows.batch.keys.position.first()?, *rows.batch.keys.position.last()?)));
        bounds.clone().zip(bounds.skip(1)).any(|((_, last), (first, _))| first < last)
    };
    if !inputs.iter().any(disordered) {
        return arrived;
    }
    let merged = |input: usize| merge_by_position(&of(input).map(|rows| rows.batch.clone()).collect::<Vec<_>>());
    inputs.into_iter().flat_map(|input| merged(input).into_iter().map(move |batch| SinkRows { input, batch })).collect()
}

/// Joins batches into one, ordered by position; rows of equal position keep the order of the batches.
fn merge_by_position(batches: &[KeyedBatch]) -> Vec<KeyedBatch> {
    let Some(first) = batches.first() else { return Vec::new() };
    let mut keys = Keys::default();
    for batch in batches {
        keys.device.extend_from_slice(&batch.keys.device);
        keys.series.extend_from_slice(&batch.keys.series);
        keys.position.extend_from_slice(&batch.keys.position);
    }
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by_key(|row| keys.position[*row]);
    let joined: Result<RecordBatch, _> = concat_batches(&first.rows.schema(), batches.iter().map(|b| &b.rows));
    let ordered = joined.and_then(|rows| take_record_batch(&rows, &UInt64Array::from_iter_values(order.iter().map(|r| *r as u64))));
    match ordered {
        Ok(rows) => vec![KeyedBatch::new(rows, keys.take(order.into_iter()))],
        // The planner has proved that the inputs' schemas are equal; batches as they are keep every row.
        Err(_) => batches.to_vec(),
    }
}
