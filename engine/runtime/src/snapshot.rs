//! A partition's state to checkpoint data and back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, UInt32Type};
use fieldstream_checkpoint::tables::{DEVICES, Renumbering, SERIES, gone_table, restore_slots, slot_tables};
use fieldstream_checkpoint::{CheckpointData, StateTable, Table};
use fieldstream_engine_api::{Mark, SlotDirectory, Space};
use serde::{Deserialize, Serialize};

use crate::changes::Scope;
use crate::graph::Graph;
use crate::ledger::Totals;
use crate::losses::Losses;
use crate::origins::Origins;
use crate::shape::StateShape;
use crate::time::PartitionTime;

/// Table of last activity: `slot` (device slot), `last_seen` (append time, microseconds).
const ACTIVITY: &str = "activity";

/// Small things saved beside the tables.
#[derive(Debug, Serialize, Deserialize)]
struct Extras {
    totals: Totals,
    now_us: Option<i64>,
    /// Names behind the numbers of `totals.offered`: another plan numbers its sinks anew. None in older checkpoints.
    #[serde(default)]
    sinks: Vec<Arc<str>>,
    /// States left out at earlier restores.
    #[serde(default, skip_serializing_if = "Losses::is_empty")]
    losses: Losses,
    /// None in checkpoints of versions without forwarders.
    #[serde(default, skip_serializing_if = "Origins::is_empty")]
    origins: Origins,
}

/// What is put back beside the states.
#[derive(Debug, Default)]
pub struct Restored {
    /// The saved account, in the order of this plan's sinks.
    pub totals: Totals,
    /// States left out, now and earlier: what lies on disk of them is not put back either.
    pub losses: Losses,
    /// What was taken of forwarded streams.
    pub(crate) origins: Origins,
    /// What was left out now, for a person: `operator/state: why`.
    pub lost: Vec<String>,
}

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Everything: nothing lies below it.
    Whole,
    /// What has changed since the snapshot before, which has become a checkpoint, or since the restore.
    Changes,
    /// As `Changes`; the snapshot before came to nothing, so what was in it is changed as well.
    Retake,
}

/// Why a checkpoint does not fit this pipeline.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint cannot be restored: {0}")]
pub struct RestoreError(pub String);

/// Copies what a partition needs to go on from `at`: the devices in `scope` with all of their state, and the small things.
pub(crate) fn take(
    at: Mark,
    digest: &str,
    scope: &Scope,
    graph: &mut Graph,
    slots: &SlotDirectory,
    time: &PartitionTime,
    (totals, losses, origins): (&Totals, &Losses, &Origins),
) -> CheckpointData {
    let devices = &scope.devices;
    let mut series: Vec<u32> = devices.iter().flat_map(|d| slots.series_of(*d)).collect();
    series.sort_unstable();
    let mut states = Vec::new();
    graph.grow(slots);
    graph.for_each_state(|node, number, state| {
        let rows = state.snapshot(if state.space() == Space::Device { devices } else { &series });
        // Each file of a checkpoint costs an fsync. A whole one says of every state that it was there.
        if scope.gone.is_none() || rows.num_rows() > 0 {
            states.push(StateTable { node: node.to_string(), state: number as u32, space: state.space(), layout: state.layout(), rows });
        }
    });
    let mut tables = Vec::from(slot_tables(slots, devices, &series));
    tables.push(activity_table(devices, time));
    tables.extend(scope.gone.as_ref().map(|gone| gone_table(gone.iter().map(|name| &**name))));
    let sinks = graph.sinks().cloned().collect();
    let extras = Extras { totals: totals.clone(), now_us: time.now_us(), sinks, losses: losses.clone(), origins: origins.clone() };
    // Plain maps and numbers always serialise.
    let extras = serde_json::to_value(extras).unwrap_or_default();
    let delta = scope.gone.is_some();
    CheckpointData { at, plan_digest: digest.to_owned(), tables, states, cold: Vec::new(), absent: 0, delta, extras }
}

fn activity_table(devices: &[u32], time: &PartitionTime) -> Table {
    let schema = Schema::new(vec![Field::new("slot", DataType::UInt32, false), Field::new("last_seen", DataType::Int64, false)]);
    let seen = Int64Array::from_iter_values(devices.iter().map(|d| time.last_seen(*d)));
    let rows = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(UInt32Array::from(devices.to_vec())), Arc::new(seen)]);
    Table { name: ACTIVITY.to_owned(), rows: rows.unwrap_or_else(|_| unreachable!("the columns are those of the schema")) }
}

/// Puts saved state back into a blank partition. With `accept_loss`, state that has no place in this pipeline is left out.
///
/// # Errors
/// If the checkpoint lacks a table, or its state is for operators this pipeline does not have.
pub fn restore(
    data: &CheckpointData,
    graph: &mut Graph,
    slots: &mut SlotDirectory,
    time: &mut PartitionTime,
    accept_loss: bool,
) -> Result<Restored, RestoreError> {
    let table = |name: &str| {
        let found = data.tables.iter().find(|t| t.name == name).map(|t| &t.rows);
        found.ok_or_else(|| RestoreError(format!("table {name} is missing")))
    };
    let extras: Extras = serde_json::from_value(data.extras.clone()).map_err(|e| RestoreError(e.to_string()))?;
    let slots_now = restore_slots(table(DEVICES)?, table(SERIES)?, slots).map_err(RestoreError)?;
    graph.grow(slots);
    let mut unfit: BTreeMap<(&str, u32), String> = BTreeMap::new();
    let mut known: BTreeSet<(&str, u32)> = BTreeSet::new();
    let mut failure = None;
    graph.for_each_state(|node, number, state| {
        for saved in data.states.iter().filter(|s| s.node == **node && s.state as usize == number) {
            known.insert((&saved.node, saved.state));
            if let Some(why) = StateShape::saved(saved).unfit_for(&StateShape::of(state)) {
                unfit.insert((&saved.node, saved.state), why);
                continue;
            }
            let outcome = renumber(&saved.rows, state.space(), &slots_now).and_then(|rows| state.restore(&rows).map_err(|e| e.to_string()));
            if let Err(error) = outcome {
                failure = Some(format!("operator {node}: {error}"));
            }
        }
    });
    for saved in data.states.iter().filter(|s| !known.contains(&(s.node.as_str(), s.state))) {
        unfit.insert((&saved.node, saved.state), "the pipeline has no such state any more".to_owned());
    }
    let lost: Vec<String> = unfit.iter().map(|((node, number), why)| format!("{node}/{number}: {why}")).collect();
    let mut losses = extras.losses;
    match (&failure, lost.is_empty()) {
        (Some(failure), _) => return Err(RestoreError(failure.clone())),
        (None, true) => {}
        (None, false) if accept_loss => losses.note(unfit.keys().map(|(node, number)| format!("{node}/{number}"))),
        (None, false) => return Err(RestoreError(format!("state would be lost: {}", lost.join("; ")))),
    }
    time.restore(extras.now_us);
    restore_activity(table(ACTIVITY)?, &slots_now, time)?;
    let totals = by_name(extras.totals, &extras.sinks, graph);
    Ok(Restored { totals, losses, origins: extras.origins, lost })
}

/// What was offered to the saved plan's sinks, in the order of this one's. A sink that is new begins at nothing.
fn by_name(saved: Totals, names: &[Arc<str>], graph: &Graph) -> Totals {
    let place = |(number, name): (usize, &Arc<str>)| if names.is_empty() { Some(number) } else { names.iter().position(|n| n == name) };
    let offered = |sink| place(sink).and_then(|number| saved.offered.get(number)).copied().unwrap_or_default();
    Totals { offered: graph.sinks().enumerate().map(offered).collect(), ..saved }
}

fn restore_activity(rows: &RecordBatch, slots_now: &Renumbering, time: &mut PartitionTime) -> Result<(), RestoreError> {
    let rows = renumber(rows, Space::Device, slots_now).map_err(RestoreError)?;
    let (slots, seen) = (rows.column(0).as_primitive_opt::<UInt32Type>(), rows.column(1).as_primitive_opt::<Int64Type>());
    let (Some(slots), Some(seen)) = (slots, seen) else { return Err(RestoreError("table activity has other columns".to_owned())) };
    slots.values().iter().zip(seen.values()).for_each(|(slot, seen)| time.seen(*slot, *seen));
    Ok(())
}

/// Rewrites the first column, `slot`, from the saved numbers to those of this process.
fn renumber(rows: &RecordBatch, space: Space, slots_now: &Renumbering) -> Result<RecordBatch, String> {
    let pairs = if space == Space::Device { &slots_now.devices } else { &slots_now.series };
    if rows.num_columns() == 0 {
        return Ok(rows.clone());
    }
    let saved = rows.column(0).as_primitive_opt::<UInt32Type>().ok_or("the first column is no slot number")?;
    let now = |slot: &u32| {
        let found = pairs.binary_search_by_key(slot, |(saved, _)| *saved).map(|at| pairs[at].1);
        found.map_err(|_| format!("slot {slot} has no name"))
    };
    let renumbered: Vec<u32> = saved.values().iter().map(now).collect::<Result<_, _>>()?;
    let mut columns = rows.columns().to_vec();
    columns[0] = Arc::new(UInt32Array::from(renumbered));
    RecordBatch::try_new(rows.schema(), columns).map_err(|e| e.to_string())
}
