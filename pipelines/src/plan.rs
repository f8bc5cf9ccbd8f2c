//! A plan is a pipeline that cannot be wrong any more: every name resolved, every edge's schema known, every option checked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::catalogue::{OperatorKind, SinkKind, SourceBuild, SourceKind};
use fieldstream_engine_api::{BuildContext, ConfigError, Edge, LogId, SinkInput, Space, WindowTime};
use fieldstream_runtime::shape::StateShape;
use fieldstream_runtime::spec::{CheckpointSpec, Gather, PortRef, TimeSpec, TurnLimits};
use fieldstream_schemas::decode::Decoder;
use fieldstream_schemas::readings_schema;
use fieldstream_schemas::records::dead_letter_schema;
use serde_json::Value;

use crate::code::Code;
use crate::config::{SourceConfig, TestConfig};
use crate::document::{Document, Outcome};
use crate::nodes::{Catalogue, Config, RawNode};
pub use crate::planned::{PlannedJournal, PlannedOperator, PlannedSink, PlannedSource, SlotBytes};
use crate::problem::{Problem, Problems, Severity, did_you_mean};
use crate::wiring::{Ports, sort_operators};

/// A checked pipeline.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the pipeline.
    pub name: Arc<str>,
    /// What stands for the journal; `None` for the node's own.
    pub journal: Option<PlannedJournal>,
    /// One log, or receivers.
    pub sources: Vec<PlannedSource>,
    /// In topological order.
    pub operators: Vec<PlannedOperator>,
    /// The dead letter, where there is one, comes last.
    pub sinks: Vec<PlannedSink>,
    /// Event time.
    pub time: TimeSpec,
    /// Checkpoints.
    pub checkpoint: CheckpointSpec,
    /// Turn sizes.
    pub turn: TurnLimits,
    /// Active devices per partition.
    pub max_active_devices: usize,
    /// Devices one receiver may bring before readings of further ones are refused.
    pub max_devices_per_source: usize,
    /// Ports dropped on purpose.
    pub discarded: Vec<PortRef>,
    /// The file's own tests.
    pub tests: Vec<TestConfig>,
    /// The file.
    pub document: Document,
}

impl Plan {
    /// How a port is written in YAML.
    #[must_use]
    pub fn port_name(&self, port: PortRef) -> String {
        let operator = |node: usize| self.operators.get(node).map_or("", |o| &*o.name);
        let source = |index: usize| self.sources.get(index).map_or("", |s| &*s.name);
        match port {
            PortRef::Source(index) => source(index).to_owned(),
            PortRef::SourceRejected { source: index } => format!("{}.rejected", source(index)),
            PortRef::Rejected { node } => format!("{}.rejected", operator(node)),
            PortRef::Operator { node, port } => {
                let name = self.operators.get(node).and_then(|o| o.outputs.get(port)).map_or("", |o| &*o.name);
                if name.is_empty() { operator(node).to_owned() } else { format!("{}.{name}", operator(node)) }
            }
        }
    }
}

/// The edge that every source gives: readings, keyed by series.
#[must_use]
pub fn reading_edge() -> Edge {
    Edge { schema: readings_schema(), key: Space::Series }
}

/// The edge of every `rejected` port.
#[must_use]
pub fn rejected_edge() -> Edge {
    Edge { schema: dead_letter_schema(), key: Space::Device }
}

/// Checks `config`. The plan is there when nothing is wrong; warnings may stand beside it.
pub fn plan(document: &Document, config: &Config, catalogue: &Catalogue<'_>, mut problems: Problems) -> (Option<Plan>, Problems) {
    let mut planner = Planner { document, config, problems: Vec::new(), ports: Ports::new(&config.unreadable) };
    planner.distinct_names();
    let sources = planner.sources();
    let journal = planner.journal(&sources);
    let operators = planner.operators();
    let mut sinks = planner.sinks();
    sinks.extend(planner.dead_letter());
    planner.own_places(&sinks);
    let discarded = planner.loose_ends();
    planner.used_kinds(catalogue);
    problems.append(&mut planner.problems);
    let wrong = problems.iter().any(|p| p.severity == Severity::Error);
    let plan = (!wrong).then(|| Plan {
        name: config.name.as_str().into(),
        journal,
        sources,
        sinks,
        time: TimeSpec {
            window: window_time(config),
            idle_after: Some(config.time.idle_after.0),
            max_future: Some(config.time.max_future.0).filter(|d| !d.is_zero()),
        },
        checkpoint: config.checkpoint.spec(),
        turn: turn_limits(config, &operators),
        operators,
        max_active_devices: config.limits.active_devices.max(1),
        max_devices_per_source: config.limits.devices_per_source.max(1),
        discarded,
        tests: config.tests.clone(),
        document: document.clone(),
    });
    let wrong_tests = plan.as_ref().map(crate::testing::check).unwrap_or_default();
    let plan = plan.filter(|_| wrong_tests.is_empty());
    problems.extend(wrong_tests);
    problems.sort_by_key(|p| p.span);
    (plan, problems)
}

fn window_time(config: &Config) -> WindowTime {
    WindowTime { out_of_orderness: config.time.out_of_orderness.0, allowed_lateness: config.time.allowed_lateness.0 }
}

/// A turn waits as the `batch` operators ask; without one it starts with the first row.
fn turn_limits(config: &Config, operators: &[PlannedOperator]) -> TurnLimits {
    let mut turn = TurnLimits { min_rows: 1, max_wait: Duration::ZERO, max_rows: config.limits.turn_rows.max(1) };
    let batches = operators.iter().filter(|o| o.kind.name == "batch");
    for (rows, wait) in batches.filter_map(|o| crate::build::batch_limits(&o.options)) {
        turn.min_rows = turn.min_rows.max(rows);
        turn.max_wait = turn.max_wait.max(wait);
    }
    turn.max_rows = turn.max_rows.max(turn.min_rows);
    turn
}

struct Planner<'a> {
    document: &'a Document,
    config: &'a Config,
    problems: Problems,
    ports: Ports,
}

impl Planner<'_> {
    fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    fn error(&mut self, code: Code, pointer: &str, message: &str, hint: Option<String>) {
        self.push(self.document.problem(code, pointer, message, hint));
    }

    fn distinct_names(&mut self) {
        let config = self.config;
        let sources = config.sources.iter().map(|n| (&n.name, &n.at));
        let all = sources.chain(config.operators.iter().map(|n| (&n.name, &n.at))).chain(config.sinks.iter().map(|n| (&n.name, &n.at)));
        let mut seen = BTreeSet::new();
        for (name, at) in all {
            if !seen.insert(name) {
                self.error(
                    Code::Name,
                    at,
                    &format!("there are two nodes called `{name}`"),
                    Some("names are shared by sources, operators and sinks".to_owned()),
                );
            }
        }
    }

    /// Runs a node's own check; `None` where it failed or cannot be known.
    fn check<T>(&mut self, at: &str, options: &Value, run: impl FnMut(&Value) -> Result<T, Vec<ConfigError>>) -> Option<(T, Value)> {
        match self.document.check(at, options.clone(), run) {
            Outcome::Good(good, value) => Some((good, value)),
            Outcome::Unknown => None,
            Outcome::Wrong(errors) => {
                self.problems.extend(self.document.problems(Code::Options, at, &errors));
                None
            }
        }
    }

    fn sources(&mut self) -> Vec<PlannedSource> {
        let config = self.config;
        let logs = config.sources.iter().filter(|s| matches!(s.kind.build, SourceBuild::Log(_))).count();
        if logs > 0 && config.sources.len() > 1 {
            let log = config.sources.iter().rfind(|s| matches!(s.kind.build, SourceBuild::Log(_)));
            let at = log.map_or("/sources", |s| s.at.as_str());
            let hint = "make a pipeline of each, or receive all of them (a receiver writes to the journal, which is one log)";
            self.error(Code::OneLog, at, "a pipeline reads one log", Some(hint.to_owned()));
        }
        let mut planned = Vec::new();
        for (index, node) in config.sources.iter().enumerate() {
            let options = self.check(&node.options_at, &node.options, node.kind.check).map(|(_, options)| options);
            self.decoder(node);
            self.ports.source(&node.name, index);
            planned.push(PlannedSource {
                name: node.name.as_str().into(),
                kind: node.kind,
                options: options.unwrap_or_else(|| node.options.clone()),
                options_at: node.options_at.clone(),
                decode: node.common.decode.clone(),
            });
        }
        planned
    }

    fn journal(&mut self, sources: &[PlannedSource]) -> Option<PlannedJournal> {
        let node = self.config.journal.as_ref()?;
        if let Some(log) = sources.iter().find(|source| source.is_log()) {
            let message = format!("`{}` is a log: nothing would be written to the journal", log.name);
            self.error(Code::OneLog, &node.at, &message, Some("leave `journal` out; it is for receivers such as mqtt".to_owned()));
        }
        let (_, options) = self.check(&node.options_at, &node.options, node.kind.check)?;
        Some(PlannedJournal { kind: node.kind, options, options_at: node.options_at.clone() })
    }

    fn decoder(&mut self, node: &RawNode<SourceKind, SourceConfig>) {
        if let Err((path, message)) = Decoder::new(&node.common.decode) {
            self.error(Code::Options, &format!("{}/decode{path}", node.at), &message, None);
        }
    }

    fn operators(&mut self) -> Vec<PlannedOperator> {
        let config = self.config;
        let (order, cycles) = sort_operators(&config.operators);
        for (at, message) in cycles {
            self.error(Code::Cycle, &at, &message, Some("rows flow one way only".to_owned()));
        }
        // All names are known before any input is looked up, so that a wrong one gets a good suggestion.
        self.ports.names(config.operators.iter().map(|o| o.name.as_str()), config.sinks.iter().map(|s| s.name.as_str()));
        let mut planned: Vec<PlannedOperator> = Vec::new();
        for number in order {
            let Some(node) = config.operators.get(number) else { continue };
            match self.operator(node, planned.len()) {
                Some(operator) => planned.push(operator),
                None => self.ports.unknown(&node.name),
            }
        }
        planned
    }

    fn operator(&mut self, node: &RawNode<OperatorKind, crate::config::OperatorConfig>, number: usize) -> Option<PlannedOperator> {
        let inputs = self.inputs(&node.at, node.common.inputs.all())?;
        for (i, (port, name, _)) in inputs.iter().enumerate() {
            if matches!(port, PortRef::Rejected { .. } | PortRef::SourceRejected { .. }) {
                let hint = "send it to a sink; a second pipeline may read that".to_owned();
                self.error(
                    Code::Input,
                    &input_pointer(&node.at, node.common.inputs.all(), i),
                    &format!("an operator cannot read the dead letters of `{name}`"),
                    Some(hint),
                );
                return None;
            }
        }
        let (_, first_name, input) = inputs.first()?.clone();
        for (i, (_, name, edge)) in inputs.iter().enumerate().skip(1) {
            if *edge != input {
                let message = format!("`{name}` has other columns than `{first_name}`: {}", difference(&input, edge));
                let hint = "the inputs of an operator have the same columns; put a `map` before it".to_owned();
                self.error(Code::Columns, &input_pointer(&node.at, node.common.inputs.all(), i), &message, Some(hint));
                return None;
            }
        }
        let context = BuildContext {
            pipeline: self.config.name.as_str().into(),
            node: node.name.as_str().into(),
            log_id: LogId("lint".into()),
            partition: 0,
            time: window_time(self.config),
        };
        let (mut operator, options) =
            self.check(&node.options_at, &node.options, |options| (node.kind.build)(options, &input, &context))?;
        let outputs = operator.outputs().to_vec();
        self.ports.operator(&node.name, number, &outputs, node.kind.rejects);
        Some(PlannedOperator {
            name: node.name.as_str().into(),
            kind: node.kind,
            options,
            options_at: node.options_at.clone(),
            inputs: inputs.iter().map(|(port, ..)| *port).collect(),
            input,
            outputs,
            state: slot_bytes(operator.as_mut()),
            shapes: operator.states().into_iter().map(|state| StateShape::of(state)).collect(),
        })
    }

    /// The ports that `names` mean, with their edges; `None` when one of them is wrong or not known.
    fn inputs(&mut self, at: &str, names: &[String]) -> Option<Vec<(PortRef, Arc<str>, Edge)>> {
        if names.is_empty() {
            self.error(Code::Input, &format!("{at}/inputs"), "a node needs an input", None);
            return None;
        }
        let mut found = Some(Vec::new());
        let mut seen = BTreeSet::new();
        for (i, name) in names.iter().enumerate() {
            let pointer = input_pointer(at, names, i);
            if !seen.insert(name) {
                self.error(Code::Input, &pointer, &format!("`{name}` is named twice"), None);
                found = None;
                continue;
            }
            match self.ports.take(name) {
                Ok(Some((port, edge))) => {
                    if let Some(list) = found.as_mut() {
                        list.push((port, Arc::from(name.as_str()), edge));
                    }
                }
                Ok(None) => found = None,
                Err((message, hint)) => {
                    self.error(Code::Input, &pointer, &message, hint);
                    found = None;
                }
            }
        }
        found
    }

    fn sinks(&mut self) -> Vec<PlannedSink> {
        let config = self.config;
        let mut planned = Vec::new();
        for node in &config.sinks {
            let Some(inputs) = self.inputs(&node.at, node.common.inputs.all()) else { continue };
            let inputs: Vec<_> = inputs.into_iter().map(|(port, name, edge)| (port, SinkInput { name, edge })).collect();
            planned.push(self.sink(&node.name, &node.at, node.kind, (&node.options_at, &node.options), inputs, node.common.batch.spec()));
        }
        planned
    }

    fn sink(
        &mut self,
        name: &str,
        at: &str,
        kind: SinkKind,
        (options_at, options): (&str, &Value),
        inputs: Vec<(PortRef, SinkInput)>,
        gather: Gather,
    ) -> PlannedSink {
        let list: Vec<SinkInput> = inputs.iter().map(|(_, input)| input.clone()).collect();
        // What is wrong with the inputs belongs to the node; only what lies in the options has a path there.
        let checked = self.check(options_at, options, |options| (kind.check)(options, &list));
        let (guarantee, options) = checked.map_or((None, options.clone()), |(g, o)| (Some(g), o));
        let dead_letter = at == "/dead_letter";
        PlannedSink { name: name.into(), kind, options, options_at: options_at.to_owned(), inputs, gather, guarantee, dead_letter }
    }

    /// Every `.rejected` and `.late` port that nobody reads and nobody discards.
    fn dead_letter(&mut self) -> Option<PlannedSink> {
        let config = self.config;
        let node = config.dead_letter.as_ref()?;
        let discarded: BTreeSet<&str> = config.discard.iter().map(String::as_str).collect();
        let open: Vec<String> =
            self.ports.open().filter(|name| is_dead_end(name) && !discarded.contains(name)).map(str::to_owned).collect();
        let mut inputs = Vec::new();
        for name in &open {
            if let Ok(Some((port, edge))) = self.ports.take(name) {
                inputs.push((port, SinkInput { name: name.as_str().into(), edge }));
            }
        }
        Some(self.sink("dead_letter", "/dead_letter", node.kind, (&node.options_at, &node.options), inputs, node.common.batch.spec()))
    }

    /// Sinks that write to the disk have a path each.
    fn own_places(&mut self, sinks: &[PlannedSink]) {
        let mut taken: BTreeMap<PathBuf, &PlannedSink> = BTreeMap::new();
        for sink in sinks.iter().filter(|s| s.guarantee.is_some()) {
            // Where a part of the path is not known, what is written is compared.
            let written = self.document.as_written(&sink.options_at).filter(|_| self.document.stands_in(&sink.options_at));
            let Some(place) = (sink.kind.place)(written.as_ref().unwrap_or(&sink.options)) else { continue };
            // `./rows`, `rows/` and `rows` are one path.
            let place: PathBuf = place.components().filter(|c| *c != Component::CurDir).collect();
            if let Some(other) = taken.get(&place) {
                let message = format!("`{}` and `{}` write to one path, {}", other.name, sink.name, place.display());
                let hint = "give each sink a path of its own, or name all inputs in one sink".to_owned();
                self.error(Code::OnePath, &sink.options_at, &message, Some(hint));
            } else {
                taken.insert(place, sink);
            }
        }
    }

    /// Ports that lead nowhere: an error where rows would vanish without a name, a warning where they are only unused.
    fn loose_ends(&mut self) -> Vec<PortRef> {
        let config = self.config;
        let mut discarded = Vec::new();
        for (i, name) in config.discard.iter().enumerate() {
            match self.ports.take(name) {
                Ok(found) => discarded.extend(found.map(|(port, _)| port)),
                Err((message, hint)) => self.error(Code::Input, &format!("/discard/{i}"), &message, hint),
            }
        }
        if config.unreadable.iter().any(|n| n == "dead_letter") {
            return discarded;
        }
        let at: BTreeMap<&str, &str> = config
            .sources
            .iter()
            .map(|n| (n.name.as_str(), n.at.as_str()))
            .chain(config.operators.iter().map(|n| (n.name.as_str(), n.at.as_str())))
            .collect();
        let open: Vec<String> = self.ports.open().map(str::to_owned).collect();
        for name in open {
            let (node, _) = name.split_once('.').unwrap_or((&name, ""));
            let pointer = at.get(node).copied().unwrap_or_default();
            let hint = format!("name it in the `inputs` of a sink, or under `discard: [{name}]`");
            if is_dead_end(&name) {
                self.error(Code::LooseEnd, pointer, &format!("`{name}` leads nowhere"), Some(format!("add a `dead_letter:`, {hint}")));
            } else if config.sources.iter().any(|s| s.name == name) && config.unreadable.is_empty() {
                self.error(Code::LooseEnd, pointer, &format!("nothing reads `{name}`"), None);
            } else if config.unreadable.is_empty() && !never_used(&name, config) {
                self.push(self.document.warning(Code::LooseEnd, pointer, &format!("nothing reads `{name}`"), Some(hint)));
            }
        }
        discarded
    }

    /// A catalogue without any kind of a sort is a build without its features: say so once.
    fn used_kinds(&mut self, catalogue: &Catalogue<'_>) {
        if catalogue.sources.is_empty() || catalogue.sinks.is_empty() {
            self.error(
                Code::Build,
                "",
                "this program was built without any connector",
                Some("build it with its default features".to_owned()),
            );
        }
    }
}

/// Windows give no corrections without allowed lateness.
fn never_used(name: &str, config: &Config) -> bool {
    name.ends_with(".revised") && config.time.allowed_lateness.0.is_zero()
}

fn is_dead_end(name: &str) -> bool {
    name.ends_with(".rejected") || name.ends_with(".late")
}

/// Where input `i` is written: `inputs:` may be a single name.
fn input_pointer(at: &str, names: &[String], i: usize) -> String {
    if names.len() == 1 { format!("{at}/inputs/0") } else { format!("{at}/inputs/{i}") }
}

/// The first difference of two edges, for a person.
fn difference(a: &Edge, b: &Edge) -> String {
    let names = |e: &Edge| e.schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
    let (left, right) = (names(a), names(b));
    if let Some(extra) = right.iter().find(|n| !left.contains(n)) {
        return format!("`{extra}` is only in one of them");
    }
    if let Some(extra) = left.iter().find(|n| !right.contains(n)) {
        return format!("`{extra}` is only in one of them");
    }
    let typed = a.schema.fields().iter().find(|f| b.schema.field_with_name(f.name()).is_ok_and(|g| g.data_type() != f.data_type()));
    match typed {
        Some(field) => format!("`{}` has another type", field.name()),
        None if a.key != b.key => "one is keyed by series and one by device".to_owned(),
        None => "their order or nullability differs".to_owned(),
    }
}

/// Measured on 4096 blank slots of the operator built at lint.
fn slot_bytes(operator: &mut dyn fieldstream_engine_api::Operator) -> Vec<SlotBytes> {
    const SLOTS: usize = 4096;
    let measure = |state: &mut dyn fieldstream_engine_api::KeyedState| {
        let empty = state.bytes();
        state.grow_to(SLOTS);
        SlotBytes { space: state.space(), bytes: state.bytes().saturating_sub(empty).div_ceil(SLOTS) }
    };
    operator.states().into_iter().map(measure).collect()
}

/// `check` of a hint that needs all names, kept here for [`crate::wiring`].
pub(crate) fn unknown_name(name: &str, known: &[String]) -> (String, Option<String>) {
    (format!("there is no `{name}`"), did_you_mean(name, known.iter().map(String::as_str).collect::<Vec<_>>()))
}
