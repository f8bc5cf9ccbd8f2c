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
    /// True when every row has a value and a time, and is to be judged.
    plain: bool,
}

impl Columns<'_> {
    /// True when there is a number that the method can judge in `row`.
    fn has<M: Method>(&self, row: usize) -> bool {
        let value = self.values.value(row);
        self.judged.as_ref().is_none_or(|mask| mask.value(row))
            && self.values.is_valid(row)
            && self.ts.is_valid(row)
            && (value.is_finite() || !M::FINITE && !value.is_nan())
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
        let plain = values.null_count() == 0 && ts.null_count() == 0 && judged.is_none();
        Some((Columns { ts, values, judged, plain }, refused))
    }

    fn judge_all(&mut self, batch: &KeyedBatch, columns: &Columns<'_>, slots: &SlotDirectory) {
        let own = if self.space == Space::Series { &batch.keys.series } else { &batch.keys.device };
        for first in (0..batch.len()).step_by(STRETCH) {
            let rows = first..batch.len().min(first + STRETCH);
            let values = &columns.values.values()[rows.clone()];
            let quiet = self.all_quiet(&own[rows.clone()]);
            if !(quiet && self.method.all_normal(values)) {
                self.judge_rows(batch, rows, columns, own, quiet, slots);
            }
        }
    }

    /// True when no episode of these slots is under way, so that normal values tell nothing.
    #[inline(always)]
    fn all_quiet(&self, own: &[u32]) -> bool {
        match &self.telling {
            Telling::Rows => true,
            Telling::Episodes { state, .. } => state.all(own, |episode| episode.phase == Phase::Quiet),
        }
    }

    /// Judges a stretch of rows: first as far as there is nothing to tell, then each by itself.
    fn judge_rows(
        &mut self,
        batch: &KeyedBatch,
        rows: Range<usize>,
        columns: &Columns<'_>,
        own: &[u32],
        quiet: bool,
        slots: &SlotDirectory,
    ) {
        if let (Telling::Episodes { state, .. }, Some(next)) = (&self.telling, own.get(rows.end..)) {
            next.iter().take(STRETCH).for_each(|later| state.prefetch(*later));
        }
        let (values, times) = (columns.values.values(), columns.ts.values());
        let plain = columns.plain && values[rows.clone()].iter().fold(true, |all, value| all & value.is_finite());
        let mut row = rows.start;
        if quiet && plain {
            let Some((first, verdict)) = first_told(&mut self.method, rows.clone(), own, times, values) else { return };
            self.told(batch, first, Some(verdict), (values[first], times[first], own[first]), slots);
            row = first + 1;
        }
        for row in row..rows.end {
            if plain || columns.has::<M>(row) {
                let (value, ts, slot) = (values[row], times[row], own[row]);
                let verdict = self.method.judge(slot, ts, value);
                self.told(batch, row, verdict, (value, ts, slot), slots);
            }
        }
    }

    /// Follows a judgement, and tells what is to be told of it.
    #[inline]
    fn told(
        &mut self,
        batch: &KeyedBatch,
        row: usize,
        verdict: Option<Verdict>,
        (value, ts, slot): (f64, i64, u32),
        slots: &SlotDirectory,
    ) {
        if let Some((state, raised_ts)) = self.follow(slot, ts, verdict.as_ref()) {
            let verdict = verdict.unwrap_or(Verdict::NORMAL);
            self.tell(batch, row, &verdict, (state, raised_ts), (value, ts, slot), slots);
        }
    }

    /// What is to be told of a judgement, and since when that has been so.
    fn follow(&mut self, slot: u32, ts: i64, verdict: Option<&Verdict>) -> Option<(&'static str, Option<i64>)> {
        match &mut self.telling {
            Telling::Rows => verdict.is_some_and(|verdict| matches!(verdict.level, Level::Bad | Level::Shifted)).then_some(("row", None)),
            Telling::Episodes { delays, state } => {
                let episode = state.at(slot);
                if episode.phase == Phase::Quiet && verdict.is_none_or(|verdict| verdict.level != Level::Bad) {
                    return None;
                }
                let told = episode.step(*delays, verdict.unwrap_or(&Verdict::NORMAL), ts)?;
                Some((told.state, Some(told.raised_ts)))
            }
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

/// Judges rows until one that is not normal. A function of its own, so that what the loop needs stays in registers.
#[inline(never)]
fn first_told<M: Method>(method: &mut M, rows: Range<usize>, own: &[u32], times: &[i64], values: &[f64]) -> Option<(usize, Verdict)> {
    let ahead = own.get(rows.start + AHEAD..).unwrap_or_default();
    let (first, own, times, values) = (rows.start, &own[rows.clone()], &times[rows.clone()], &values[rows]);
    for (at, ((slot, ts), value)) in own.iter().zip(times).zip(values).enumerate() {
        if let Some(later) = ahead.get(at) {
            method.prefetch(*later);
        }
        if let Some(verdict) = method.judge(*slot, *ts, *value) {
            return Some((first + at, verdict));
        }
    }
    None
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
