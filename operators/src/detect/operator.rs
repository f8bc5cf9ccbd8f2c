//! The operator around a detection method: which rows are judged, and what is told.

use arrow::array::{Array, AsArray, BooleanArray, Float64Array, TimestampMicrosecondArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use fieldstream_engine_api::{AHEAD, Emitter, KeyedBatch, KeyedState, Operator, Output, SlotDirectory, Space};
use std::ops::Range;
use std::sync::Arc;

use super::alerts::{Alerts, Event};
use super::episode::{Delays, Episode, Phase};
use super::verdict::{Level, Method, Verdict};
use crate::expr::{CODE, Expr};
use crate::state::Dense;

/// Rows looked at together, before each by itself.
const STRETCH: usize = 64;

/// How it tells.
#[derive(Debug)]
pub(super) enum Telling {
    /// One alert per wrong row.
    Rows,
    /// One alarm per episode.
    Episodes { delays: Delays, state: Dense<Episode> },
}

/// A detector.
pub(super) struct Detect<M> {
    pub(super) method: M,
    pub(super) space: Space,
    pub(super) column: Expr,
    pub(super) condition: Option<Expr>,
    /// Column number of `ts`.
    pub(super) ts: usize,
    pub(super) telling: Telling,
    pub(super) alerts: Alerts,
    pub(super) outputs: Vec<Output>,
}

/// The columns a detector reads.
struct Columns<'a> {
    ts: &'a TimestampMicrosecondArray,
    values: Float64Array,
    /// Rows to judge; `None` for all.
    judged: Option<BooleanArray>,
}

impl Columns<'_> {
    /// True when there is a number to judge in `row`.
    fn has(&self, row: usize) -> bool {
        self.judged.as_ref().is_none_or(|mask| mask.value(row)) && self.values.is_valid(row) && self.ts.is_valid(row)
    }
}

impl<M: Method> Detect<M> {
    /// Evaluates the expressions. Rows for which that fails are rejected; gives how many.
    fn columns<'a>(&self, batch: &'a KeyedBatch, out: &mut Emitter) -> Option<(Columns<'a>, usize)> {
        let (values, mut failures) = self.column.eval_rows(&batch.rows);
        let judged = self.condition.as_ref().map(|condition| {
            let (mask, more) = condition.mask(&batch.rows);
            failures.extend(more);
            mask
        });
        failures.sort_by_key(|f| f.row);
        failures.dedup_by_key(|f| f.row);
        let refused = failures.len();
        let judged = if refused == 0 {
            judged
        } else {
            let mut keep: Vec<bool> = (0..batch.len()).map(|row| judged.as_ref().is_none_or(|mask| mask.value(row))).collect();
            failures.iter().for_each(|f| keep[f.row as usize] = false);
            Some(BooleanArray::from(keep))
        };
        for failure in failures {
            out.reject(batch, vec![failure.row], CODE, failure.message);
        }
        let ts = batch.rows.column(self.ts).as_primitive_opt::<TimestampMicrosecondType>()?;
        let values = values.as_primitive_opt::<Float64Type>()?.clone();
        Some((Columns { ts, values, judged }, refused))
    }

    fn judge_all(&mut self, batch: &KeyedBatch, columns: &Columns<'_>, slots: &SlotDirectory) {
        let own = if self.space == Space::Series { &batch.keys.series } else { &batch.keys.device };
        let plain = columns.values.null_count() == 0 && columns.ts.null_count() == 0 && columns.judged.is_none();
        for first in (0..batch.len()).step_by(STRETCH) {
            let rows = first..batch.len().min(first + STRETCH);
            if !self.nothing_in(&columns.values.values()[rows.clone()], &own[rows.clone()]) {
                self.judge_rows(batch, rows, columns, own, plain, slots);
            }
        }
    }

    /// True when all values are normal and no episode is under way, so that no row needs to be looked at by itself.
    #[inline(always)]
    fn nothing_in(&self, values: &[f64], own: &[u32]) -> bool {
        self.method.all_normal(values)
            && match &self.telling {
                Telling::Rows => true,
                Telling::Episodes { state, .. } => state.all(own, |episode| episode.phase == Phase::Quiet),
            }
    }

    #[inline(always)]
    fn judge_rows(
        &mut self,
        batch: &KeyedBatch,
        rows: Range<usize>,
        columns: &Columns<'_>,
        own: &[u32],
        plain: bool,
        slots: &SlotDirectory,
    ) {
        let (values, times) = (&columns.values.values()[rows.clone()], &columns.ts.values()[rows.clone()]);
        for (((row, value), ts), slot) in rows.clone().zip(values).zip(times).zip(&own[rows]) {
            if let Some(later) = own.get(row + AHEAD) {
                self.method.prefetch(*later);
                if let Telling::Episodes { state, .. } = &self.telling {
                    state.prefetch(*later);
                }
            }
            if !value.is_finite() && (M::FINITE || value.is_nan()) {
                continue;
            }
            if !plain && !columns.has(row) {
                continue;
            }
            let verdict = self.method.judge(*slot, *ts, *value);
            let (state, raised_ts) = match &mut self.telling {
                Telling::Rows if verdict.is_some_and(|verdict| matches!(verdict.level, Level::Bad | Level::Shifted)) => ("row", None),
                Telling::Rows => continue,
                Telling::Episodes { delays, state } => {
                    let episode = state.at(*slot);
                    if episode.phase == Phase::Quiet && verdict.is_none_or(|verdict| verdict.level != Level::Bad) {
                        continue;
                    }
                    let Some(told) = episode.step(*delays, &verdict.unwrap_or(Verdict::NORMAL), *ts) else { continue };
                    (told.state, Some(told.raised_ts))
                }
            };
            let verdict = verdict.unwrap_or(Verdict::NORMAL);
            self.tell(batch, row, &verdict, (state, raised_ts), (*value, *ts, *slot), slots);
        }
    }

    #[cold]
    fn tell(
        &mut self,
        batch: &KeyedBatch,
        row: usize,
        verdict: &Verdict,
        (state, raised_ts): (&str, Option<i64>),
        (value, ts, slot): (f64, i64, u32),
        slots: &SlotDirectory,
    ) {
        let (device, position) = (batch.keys.device[row], batch.keys.position[row]);
        let rows = Some((&batch.rows, row));
        self.alerts.push(&Event { state, ts, raised_ts, value, verdict: *verdict, rows, slot, device, position, index: 0 }, slots);
    }
}

impl<M: Method> Operator for Detect<M> {
    fn space(&self) -> Space {
        self.space
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, slots: &SlotDirectory, out: &mut Emitter) {
        let Some((columns, refused)) = self.columns(batch, out) else {
            // The types were checked when it was built.
            out.absorb(batch.len());
            return;
        };
        self.judge_all(batch, &columns, slots);
        out.absorb(batch.len() - refused);
        if let Some(alerts) = self.alerts.take(slots) {
            out.emit(0, alerts);
        }
    }

    fn reject_codes(&self) -> Vec<Arc<str>> {
        vec![CODE.into()]
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        let mut states: Vec<&mut dyn KeyedState> = self.method.state().into_iter().collect();
        if let Telling::Episodes { state, .. } = &mut self.telling {
            states.push(state);
        }
        states
    }
}
