//! A partition's state to checkpoint data and back.

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
use crate::time::PartitionTime;

/// Table of last activity: `slot` (device slot), `last_seen` (append time, microseconds).
const ACTIVITY: &str = "activity";

/// Small things saved beside the tables.
#[derive(Debug, Serialize, Deserialize)]
struct Extras {
    totals: Totals,
    now_us: Option<i64>,
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
    totals: &Totals,
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
    let extras = Extras { totals: totals.clone(), now_us: time.now_us() };
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

/// Puts saved state back into a blank partition; gives the saved account.
///
/// # Errors
/// If the checkpoint lacks a table, or its state is for operators this pipeline does not have.
pub fn restore(
    data: &CheckpointData,
    graph: &mut Graph,
    slots: &mut SlotDirectory,
    time: &mut PartitionTime,
) -> Result<Totals, RestoreError> {
    let table = |name: &str| {
        let found = data.tables.iter().find(|t| t.name == name).map(|t| &t.rows);
        found.ok_or_else(|| RestoreError(format!("table {name} is missing")))
    };
    let extras: Extras = serde_json::from_value(data.extras.clone()).map_err(|e| RestoreError(e.to_string()))?;
    let slots_now = restore_slots(table(DEVICES)?, table(SERIES)?, slots).map_err(RestoreError)?;
    graph.grow(slots);
    let mut restored = 0;
    let mut failure = None;
    graph.for_each_state(|node, number, state| {
        for saved in data.states.iter().filter(|s| s.node == **node && s.state as usize == number) {
            restored += 1;
            let outcome = if saved.layout == state.layout() {
                renumber(&saved.rows, state.space(), &slots_now).and_then(|rows| state.restore(&rows).map_err(|e| e.to_string()))
            } else {
                Err(format!("its state has layout {}, this program reads layout {}", saved.layout, state.layout()))
            };
            if let Err(error) = outcome {
                failure = Some(format!("operator {node}: {error}"));
            }
        }
    });
    if restored < data.states.len() {
        failure = failure.or_else(|| Some("it holds state of operators that the pipeline no longer has".to_owned()));
    }
    if let Some(failure) = failure {
        return Err(RestoreError(failure));
    }
    time.restore(extras.now_us);
    restore_activity(table(ACTIVITY)?, &slots_now, time)?;
    Ok(extras.totals)
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
