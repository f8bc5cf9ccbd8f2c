//! What another plan would change in a running pipeline: what becomes of every operator's state, and which parts are others.

use std::collections::BTreeSet;
use std::fmt;

use fieldstream_runtime::digest::short;
use fieldstream_runtime::shape::StateShape;
use serde::Serialize;
use serde_json::{Value, json};

use crate::digest::digest;
use crate::plan::{Plan, PlannedJournal, PlannedOperator, PlannedSource};

/// What becomes of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// Nothing.
    Same,
    /// It is there before and after, with other options, inputs or kind.
    Changed,
    /// It is there after only.
    New,
    /// It was there before only.
    Gone,
}

/// What becomes of one state of an operator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StateChange {
    /// `operator/number`.
    pub state: String,
    /// `series` or `device`; of what is lost, as it was.
    pub per: &'static str,
    /// Number of the column layout.
    pub layout: u32,
    /// Columns as `name: type`.
    pub columns: Vec<String>,
    /// `same`: it is kept. `changed`: what there was is lost, and it begins anew. `gone`: it is lost.
    pub fate: Fate,
    /// Why it is lost.
    pub why: Option<String>,
}

impl StateChange {
    /// True when something that was learned is forgotten.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        matches!(self.fate, Fate::Changed | Fate::Gone)
    }
}

/// What becomes of a source, operator or sink.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartChange {
    /// `source`, `operator` or `sink`.
    pub sort: &'static str,
    /// Name in YAML.
    pub name: String,
    /// Catalogue name; of a part that is gone, as it was.
    pub kind: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// Its states.
    pub states: Vec<StateChange>,
}

/// A setting that is another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SettingChange {
    /// As in YAML, such as `time.idle_after`.
    pub name: &'static str,
    /// Before.
    pub from: String,
    /// After.
    pub to: String,
}

/// Everything that is different.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Digest of the old plan, in short.
    pub from: String,
    /// Digest of the new plan, in short.
    pub to: String,
    /// Why the new plan cannot take the old one's place at all; empty when it can.
    pub refused: Vec<String>,
    /// What would be lost, for a person; only with `--accept-state-loss`.
    pub losses: Vec<String>,
    /// Sources, operators, sinks, those that are gone last in each.
    pub parts: Vec<PartChange>,
    /// Settings that are others.
    pub settings: Vec<SettingChange>,
}

impl Change {
    /// True when there is nothing to do.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.refused.is_empty() && self.settings.is_empty() && self.parts.iter().all(|part| part.fate == Fate::Same)
    }
}

/// Compares two plans of a pipeline.
#[must_use]
pub fn change(old: &Plan, new: &Plan) -> Change {
    let mut parts = Vec::new();
    let written = |plan: &Plan, at: &str| plan.document.as_written(at).unwrap_or_default();
    let source = |plan: &Plan, s: &PlannedSource| json!([s.kind.name, written(plan, node_of(&s.options_at))]);
    let part = |sort, name: &str, kind, fate| PartChange { sort, name: name.to_owned(), kind, fate, states: Vec::new() };
    let journals = (old.journal.as_ref().map(|j| journal(old, j)), new.journal.as_ref().map(|j| (j.kind.name, journal(new, j))));
    if let (Some(before), Some((kind, now))) = journals {
        parts.push(part("journal", kind, kind, fate(Some(before), &now)));
    }
    for now in &new.sources {
        let before = old.sources.iter().find(|s| s.name == now.name);
        parts.push(part("source", &now.name, now.kind.name, fate(before.map(|s| source(old, s)), &source(new, now))));
    }
    let gone = old.sources.iter().filter(|s| new.sources.iter().all(|now| now.name != s.name));
    parts.extend(gone.map(|s| part("source", &s.name, s.kind.name, Fate::Gone)));
    for now in &new.operators {
        let before = old.operators.iter().find(|o| o.name == now.name);
        let fate = fate(before.map(|o| operator(old, o)), &operator(new, now));
        parts.push(PartChange { states: states(before, Some(now)), ..part("operator", &now.name, now.kind.name, fate) });
    }
    for was in old.operators.iter().filter(|o| new.operators.iter().all(|now| now.name != o.name)) {
        parts.push(PartChange { states: states(Some(was), None), ..part("operator", &was.name, was.kind.name, Fate::Gone) });
    }
    for now in &new.sinks {
        let before = old.sinks.iter().find(|s| s.name == now.name);
        parts.push(part("sink", &now.name, now.kind.name, fate(before.map(|s| sink(old, s)), &sink(new, now))));
    }
    let gone = old.sinks.iter().filter(|s| new.sinks.iter().all(|now| now.name != s.name));
    parts.extend(gone.map(|s| part("sink", &s.name, s.kind.name, Fate::Gone)));
    let (from, to) = (short(&digest(old)), short(&digest(new)));
    let losses = losses(old, &parts);
    Change { pipeline: new.name.to_string(), from, to, refused: refused(old, new), losses, parts, settings: settings(old, new) }
}

/// The pointer of a node, given that of its options.
pub(crate) fn node_of(options_at: &str) -> &str {
    options_at.rsplit_once('/').map_or("", |(node, _)| node)
}

fn operator(plan: &Plan, operator: &PlannedOperator) -> Value {
    let inputs: Vec<String> = operator.inputs.iter().map(|port| plan.port_name(*port)).collect();
    json!([operator.kind.name, inputs, operator.options])
}

/// What a sink is, without the values behind its references.
pub(crate) fn sink(plan: &Plan, sink: &crate::plan::PlannedSink) -> Value {
    let inputs: Vec<&str> = sink.inputs.iter().map(|(_, input)| &*input.name).collect();
    json!([sink.kind.name, inputs, plan.document.as_written(node_of(&sink.options_at))])
}

/// What stands for the journal, as written.
pub(crate) fn journal(plan: &Plan, journal: &PlannedJournal) -> Value {
    json!([journal.kind.name, plan.document.as_written(&journal.options_at)])
}

fn fate(before: Option<Value>, now: &Value) -> Fate {
    match before {
        None => Fate::New,
        Some(before) if before == *now => Fate::Same,
        Some(_) => Fate::Changed,
    }
}

fn states(before: Option<&PlannedOperator>, now: Option<&PlannedOperator>) -> Vec<StateChange> {
    let shapes = |operator: Option<&PlannedOperator>| operator.map(|o| o.shapes.clone()).unwrap_or_default();
    let (was, is) = (shapes(before), shapes(now));
    let name = before.or(now).map_or("", |o| &*o.name);
    let change = |number: usize| {
        let (was, is) = (was.get(number), is.get(number));
        let why = was.and_then(|was| match is {
            Some(is) => was.unfit_for(is),
            None => Some("there is no such state any more".to_owned()),
        });
        let fate = match (was, is) {
            (None, _) => Fate::New,
            (_, None) => Fate::Gone,
            _ if why.is_some() => Fate::Changed,
            _ => Fate::Same,
        };
        let StateShape { layout, columns, .. } = is.or(was)?;
        let per = is.or(was).map_or("", StateShape::per);
        Some(StateChange { state: format!("{name}/{number}"), per, layout: *layout, columns: columns.clone(), fate, why })
    };
    (0..was.len().max(is.len())).filter_map(change).collect()
}

fn losses(old: &Plan, parts: &[PartChange]) -> Vec<String> {
    let lost = parts.iter().flat_map(|part| &part.states).filter(|state| state.is_lost());
    let states = lost.map(|state| format!("state {}: {}", state.state, state.why.as_deref().unwrap_or_default()));
    let gone: BTreeSet<&str> = parts.iter().filter(|p| p.sort == "source" && p.fate == Fate::Gone).map(|p| p.name.as_str()).collect();
    // A log is read under any name; rows in the journal belong to the receiver that wrote them.
    let receivers = old.sources.iter().filter(|s| !s.is_log() && gone.contains(&*s.name));
    states.chain(receivers.map(|s| format!("source {}: what it has left unread in the journal is passed over", s.name))).collect()
}

/// What no acceptance helps against.
fn refused(old: &Plan, new: &Plan) -> Vec<String> {
    let mut refused = Vec::new();
    if old.name != new.name {
        refused.push(format!("it is the pipeline `{}`, not `{}`: another name is another pipeline", new.name, old.name));
    }
    let log = |plan: &Plan| {
        let source = plan.sources.iter().find(|s| s.is_log()).map(|s| (s.kind.name, s.kind.log_options, &s.options));
        let journal = plan.journal.as_ref().map(|j| (j.kind.name, j.kind.log_options, &j.options));
        let (kind, names, options) = source.or(journal)?;
        Some((kind, names.iter().map(|option| options.get(option).cloned().unwrap_or_default()).collect::<Vec<Value>>()))
    };
    let (was, is) = (log(old), log(new));
    if was != is {
        let said = |log: &Option<(&str, Vec<Value>)>| match log {
            None => "the journal".to_owned(),
            Some((kind, names)) if names.is_empty() => (*kind).to_owned(),
            Some((kind, names)) => format!("{kind} {}", Value::from(names.clone())),
        };
        refused.push(format!(
            "it reads another log ({} instead of {}): state and marks belong to a log, everything would start anew. Give it another pipeline name",
            said(&is),
            said(&was)
        ));
    }
    refused
}

fn settings(old: &Plan, new: &Plan) -> Vec<SettingChange> {
    let all = |plan: &Plan| {
        let (time, turn) = (plan.time, plan.turn);
        [
            ("time.out_of_orderness", format!("{:?}", time.window.out_of_orderness)),
            ("time.allowed_lateness", format!("{:?}", time.window.allowed_lateness)),
            ("time.idle_after", format!("{:?}", time.idle_after)),
            ("time.max_future", format!("{:?}", time.max_future)),
            ("checkpoint.interval", format!("{:?}", plan.checkpoint.interval)),
            ("checkpoint.keep", plan.checkpoint.keep.to_string()),
            ("limits.active_devices", plan.max_active_devices.to_string()),
            ("limits.devices_per_source", plan.max_devices_per_source.to_string()),
            ("turns", format!("{} rows, {:?}, at most {} rows", turn.min_rows, turn.max_wait, turn.max_rows)),
        ]
    };
    let pairs = all(old).into_iter().zip(all(new));
    pairs.filter(|(from, to)| from.1 != to.1).map(|((name, from), (_, to))| SettingChange { name, from, to }).collect()
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pipeline {}: plan {} -> {}", self.pipeline, self.from, self.to)?;
        for part in &self.parts {
            let what = match part.fate {
                Fate::Same if part.states.is_empty() => continue,
                Fate::Same => "is the same",
                Fate::Changed => "changes",
                Fate::New => "is new",
                Fate::Gone => "is gone",
            };
            writeln!(f, "  {} {} ({}) {what}", part.sort, part.name, part.kind)?;
            for StateChange { state, per, layout, columns, fate, why } in &part.states {
                let what = match fate {
                    Fate::Same => "keeps",
                    Fate::New => "begins",
                    Fate::Changed | Fate::Gone => "LOSES",
                };
                write!(f, "    {what} state {state}: per {per}, layout {layout}, {}", columns.join(", "))?;
                why.as_ref().map_or(Ok(()), |why| write!(f, "; {why}"))?;
                writeln!(f)?;
            }
        }
        for SettingChange { name, from, to } in &self.settings {
            writeln!(f, "  setting {name}: {from} -> {to}")?;
        }
        for why in &self.refused {
            writeln!(f, "cannot be applied: {why}")?;
        }
        if !self.losses.is_empty() {
            writeln!(f, "needs --accept-state-loss:")?;
            self.losses.iter().try_for_each(|loss| writeln!(f, "  {loss}"))?;
        }
        if self.is_nothing() {
            writeln!(f, "nothing changes")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
