//! Finished windows on their way out, as columns.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, Int64Builder, RecordBatch, TimestampMicrosecondArray};
use fieldstream_engine_api::{KeyedBatch, Keys, NO_SLOT, Position, SlotDirectory, Space};

use super::cells::{Reading, count, result};
use super::options::Plan;
use super::store::{Place, Windows};

/// Windows to emit by one port in one call.
#[derive(Debug, Default)]
pub(super) struct Finished {
    keys: Keys,
    start: Vec<i64>,
    end: Vec<i64>,
    counts: Vec<Int64Builder>,
    values: Vec<Float64Builder>,
}

impl Finished {
    /// Adds the window at `place` of `slot`, emitted at `position`.
    pub(super) fn push(&mut self, plan: &Plan, windows: &mut Windows, slot: u32, device: u32, place: Place, position: Position) {
        if self.values.is_empty() {
            self.values.resize_with(plan.results.len(), Float64Builder::new);
            self.counts.resize_with(plan.results.len(), Int64Builder::new);
        }
        self.keys.push(device, if plan.space == Space::Series { slot } else { NO_SLOT }, position);
        self.start.push(windows.start(place));
        self.end.push(windows.end(place));
        let window = windows.window(place);
        for (number, outcome) in plan.results.iter().enumerate() {
            let input = &plan.layout.inputs[outcome.input];
            if outcome.reading == Reading::Count {
                self.counts[number].append_value(count(input, window.cells) as i64);
            } else {
                self.values[number].append_option(result(input, outcome.reading, window.cells, window.sketches));
            }
        }
    }

    /// The rows; `None` when nothing was pushed. What was collected is gone then.
    pub(super) fn take(&mut self, plan: &Plan, slots: &SlotDirectory) -> Option<KeyedBatch> {
        if self.keys.is_empty() {
            return None;
        }
        let times = |values: &[i64]| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(values.to_vec()).with_timezone("UTC")) };
        let (start, end) = (times(&std::mem::take(&mut self.start)), times(&std::mem::take(&mut self.end)));
        let keys = std::mem::take(&mut self.keys);
        let mut columns = vec![slots.device_column(&keys.device)];
        if plan.space == Space::Series {
            columns.push(slots.sensor_column(&keys.series));
        }
        columns.extend([Arc::clone(&end), start, end]);
        for (number, outcome) in plan.results.iter().enumerate() {
            let counts = outcome.reading == Reading::Count;
            columns.push(if counts { Arc::new(self.counts[number].finish()) } else { Arc::new(self.values[number].finish()) });
        }
        let rows = RecordBatch::try_new(Arc::clone(&plan.schema), columns);
        Some(KeyedBatch::new(rows.unwrap_or_else(|_| unreachable!("columns are made by the schema")), keys))
    }
}
