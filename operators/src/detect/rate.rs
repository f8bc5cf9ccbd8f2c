//! `rate`: a value that changes faster than it can.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type};
use fieldstream_engine_api::{ConfigError, ConfigErrors, KeyedState, Space, StateError};
use schemars::JsonSchema;
use serde::Deserialize;

use super::verdict::{Level, Method, Verdict};
use crate::state::{Dense, Entry, numbers};

/// Options of `rate`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateOptions {
    /// Column or SQL expression judged; `value` if not given.
    pub column: Option<String>,
    /// Rows for which this SQL condition is not true are passed over.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Wrong when the value changes by more than this per second of event time, up or down.
    pub max_per_second: f64,
}

/// The newest value by event time.
#[derive(Clone, Copy, Debug)]
struct Newest {
    ts: i64,
    value: f64,
}

const NEVER: i64 = i64::MIN;

impl Entry for Newest {
    const BLANK: Self = Self { ts: NEVER, value: 0.0 };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        self.ts == NEVER
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        vec![
            ("ts", Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.ts)))),
            ("value", Arc::new(Float64Array::from_iter_values(entries.iter().map(|e| e.value)))),
        ]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let (ts, value) = (numbers::<Int64Type>(rows, "ts")?, numbers::<Float64Type>(rows, "value")?);
        Ok(ts.iter().zip(value).map(|(ts, value)| Self { ts: *ts, value: *value }).collect())
    }
}

/// The method. A row that is not newer than the newest is not judged.
#[derive(Debug)]
pub(super) struct Rate {
    max_per_second: f64,
    state: Dense<Newest>,
}

impl Rate {
    pub(super) fn new(options: &RateOptions, space: Space) -> Result<Self, ConfigErrors> {
        if !(options.max_per_second > 0.0 && options.max_per_second.is_finite()) {
            return Err(vec![ConfigError::new("/max_per_second", "must be more than 0")]);
        }
        Ok(Self { max_per_second: options.max_per_second, state: Dense::new(space) })
    }
}

impl Method for Rate {
    const NAME: &'static str = "rate";

    #[inline]
    fn judge(&mut self, slot: u32, ts: i64, value: f64) -> Option<Verdict> {
        let state = self.state.at(slot);
        let before = *state;
        if ts <= before.ts {
            return None;
        }
        *state = Newest { ts, value };
        if before.ts == NEVER {
            return None;
        }
        let rate = (value - before.value) / (ts.saturating_sub(before.ts) as f64 / 1e6);
        if rate.abs() <= self.max_per_second {
            return None;
        }
        let limit = self.max_per_second.copysign(rate);
        Some(Verdict { level: Level::Bad, limit, expected: before.value, deviation: rate, confidence: 1.0, ..Verdict::NORMAL })
    }

    #[inline]
    fn prefetch(&self, slot: u32) {
        self.state.prefetch(slot);
    }

    fn state(&mut self) -> Option<&mut dyn KeyedState> {
        Some(&mut self.state)
    }
}
