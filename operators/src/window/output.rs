//! Finished windows on their way out, as columns.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use fieldstream_engine_api::{KeyedBatch, Keys, NO_SLOT, Position, SlotDirectory, Space};

use super::cells::{END, Reading, START, count, result};
use super::options::{Outcome, Plan};
use super::store::{Place, Windows};

/// Windows to emit by one port in one call.
#[derive(Debug, Default)]
pub(super) struct Finished {
    keys: Keys,
    /// The cells of each window, one after the other: results are read of them column by column.
    cells: Vec<u64>,
    /// Quantiles asked for, window by window: sketches are too large to be kept.
    quantiles: Vec<Option<f64>>,
}

impl Finished {
    /// Adds the window at `place` of `slot`, emitted at `position`.
    #[inline]
    pub(super) fn push(&mut self, plan: &Plan, windows: &mut Windows, slot: u32, device: u32, place: Place, position: Position) {
        self.keys.push(device, if plan.space == Space::Series { slot } else { NO_SLOT }, position);
        self.cells.extend_from_slice(windows.cells(place));
        if plan.layout.sketches > 0 {
            let window = windows.window(place);
            let asked = plan.results.iter().filter(|outcome| matches!(outcome.reading, Reading::Quantile(_)));
            let read = |outcome: &Outcome| result(&plan.layout.inputs[outcome.input], outcome.reading, window.cells, window.sketches);
            self.quantiles.extend(asked.map(read));
        }
    }

    /// The rows; `None` when nothing was pushed. What was collected is gone then.
    pub(super) fn take(&mut self, plan: &Plan, slots: &SlotDirectory) -> Option<KeyedBatch> {
        if self.keys.is_empty() {
            return None;
        }
        let keys = std::mem::take(&mut self.keys);
        let windows = || self.cells.chunks_exact(plan.layout.stride);
        let times = |at: usize| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from_iter_values(windows().map(|cells| cells[at] as i64)).with_timezone("UTC"))
        };
        let (start, end) = (times(START), times(END));
        let mut columns = vec![slots.device_column(&keys.device)];
        if plan.space == Space::Series {
            columns.push(slots.sensor_column(&keys.series));
        }
        columns.extend([Arc::clone(&end), start, end]);
        let asked = plan.results.iter().filter(|outcome| matches!(outcome.reading, Reading::Quantile(_))).count().max(1);
        let mut quantile = 0;
        for outcome in &plan.results {
            let input = &plan.layout.inputs[outcome.input];
            columns.push(match outcome.reading {
                Reading::Count => Arc::new(Int64Array::from_iter_values(windows().map(|cells| count(input, cells) as i64))),
                Reading::Quantile(_) => {
                    let column: Float64Array = self.quantiles.iter().skip(quantile).step_by(asked).copied().collect();
                    quantile += 1;
                    Arc::new(column)
                }
                reading if windows().all(|cells| count(input, cells) > u64::from(reading == Reading::Stddev)) => {
                    // No window lacks a value, so there are no nulls.
                    let value = |cells| result(input, reading, cells, &[]).unwrap_or_default();
                    Arc::new(Float64Array::from_iter_values(windows().map(value)))
                }
                reading => Arc::new(windows().map(|cells| result(input, reading, cells, &[])).collect::<Float64Array>()),
            });
        }
        self.cells.clear();
        self.quantiles.clear();
        let rows = RecordBatch::try_new(Arc::clone(&plan.schema), columns);
        Some(KeyedBatch::new(rows.unwrap_or_else(|_| unreachable!("columns are made by the schema")), keys))
    }
}
