//! Rules that follow a series: how fast its value changes, and whether it changes at all.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{Float64Type, Int64Type, UInt32Type};
use fieldstream_engine_api::{Space, StateError};

use super::options::{RateOptions, StuckOptions};
use crate::options::TimeSpan;
use crate::state::{Dense, Entry, numbers};

/// A value, a time and a count per series. `Rate`: the last good reading and the failures since. `Stuck`: the first of the
/// equal readings, its time, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reference {
    value: f64,
    ts: i64,
    count: u32,
    any: bool,
}

impl Entry for Reference {
    const BLANK: Self = Self { value: 0.0, ts: 0, count: 0, any: false };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        !self.any
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        let value = Float64Array::from_iter_values(entries.iter().map(|e| e.value));
        let ts = Int64Array::from_iter_values(entries.iter().map(|e| e.ts));
        let count = UInt32Array::from_iter_values(entries.iter().map(|e| e.count));
        vec![("value", Arc::new(value)), ("ts", Arc::new(ts)), ("count", Arc::new(count))]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let (value, ts) = (numbers::<Float64Type>(rows, "value")?, numbers::<Int64Type>(rows, "ts")?);
        let count = numbers::<UInt32Type>(rows, "count")?;
        Ok(value.iter().zip(ts).zip(count).map(|((value, ts), count)| Self { value: *value, ts: *ts, count: *count, any: true }).collect())
    }
}

/// How fast a value may change.
pub(super) struct Rate {
    max_step: f64,
    max_per_us: f64,
    resync: u32,
    pub(super) state: Dense<Reference>,
}

impl Rate {
    pub(super) fn new(options: &RateOptions) -> Self {
        Self {
            max_step: options.max_step.unwrap_or(f64::INFINITY),
            max_per_us: options.max_per_second.map_or(f64::INFINITY, |speed| speed / 1e6),
            resync: options.resync,
            state: Dense::new(Space::Series),
        }
    }

    /// Judges a reading. Those that are no finite numbers pass and are not remembered: a range is for them.
    pub(super) fn fails(&mut self, slot: u32, value: f64, ts: i64) -> bool {
        if !value.is_finite() {
            return false;
        }
        let last = self.state.at(slot);
        if last.any && last.count < self.resync {
            let step = (value - last.value).abs();
            let elapsed = ts.saturating_sub(last.ts);
            // Speed needs elapsed time: a row that is not newer is judged by its step alone, and not remembered for speed.
            if step > self.max_step || (elapsed > 0 && step > self.max_per_us * elapsed as f64) {
                last.count += 1;
                return true;
            }
            if elapsed <= 0 && self.max_per_us.is_finite() {
                last.count = 0;
                return false;
            }
        }
        *last = Reference { value, ts, count: 0, any: true };
        false
    }
}

/// How long a value may stay the same.
pub(super) struct Stuck {
    count: u32,
    lasting_us: i64,
    tolerance: f64,
    pub(super) state: Dense<Reference>,
}

impl Stuck {
    pub(super) fn new(options: &StuckOptions) -> Self {
        Self {
            count: options.count.unwrap_or(u32::MAX),
            lasting_us: options.lasting.map_or(i64::MAX, TimeSpan::us),
            tolerance: options.tolerance,
            state: Dense::new(Space::Series),
        }
    }

    /// Judges a reading. Those that are no finite numbers pass and change nothing.
    pub(super) fn fails(&mut self, slot: u32, value: f64, ts: i64) -> bool {
        if !value.is_finite() {
            return false;
        }
        let first = self.state.at(slot);
        if !first.any || (value - first.value).abs() > self.tolerance {
            *first = Reference { value, ts, count: 1, any: true };
            return false;
        }
        first.count = first.count.saturating_add(1);
        first.count >= self.count || ts.saturating_sub(first.ts) >= self.lasting_us
    }
}
