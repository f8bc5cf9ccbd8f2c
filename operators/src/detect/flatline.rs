//! `flatline`: a value that has stopped moving.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type};
use fieldstream_engine_api::{ConfigError, ConfigErrors, KeyedState, Space, StateError};
use schemars::JsonSchema;
use serde::Deserialize;

use super::verdict::{Level, Method, Verdict};
use crate::options::TimeSpan;
use crate::state::{Dense, Entry, numbers};

/// Options of `flatline`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlatlineOptions {
    /// Column or SQL expression judged; `value` if not given.
    pub column: Option<String>,
    /// Rows for which this SQL condition is not true are passed over.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Wrong when the value has not moved for so long.
    #[serde(rename = "for")]
    pub duration: TimeSpan,
    /// A change of at most this is no movement.
    #[serde(default)]
    pub tolerance: f64,
}

/// The value it has stood at, and since when.
#[derive(Clone, Copy, Debug)]
struct Still {
    since: i64,
    value: f64,
}

const NEVER: i64 = i64::MIN;

impl Entry for Still {
    const BLANK: Self = Self { since: NEVER, value: 0.0 };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        self.since == NEVER
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        vec![
            ("since", Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.since)))),
            ("value", Arc::new(Float64Array::from_iter_values(entries.iter().map(|e| e.value)))),
        ]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let (since, value) = (numbers::<Int64Type>(rows, "since")?, numbers::<Float64Type>(rows, "value")?);
        Ok(since.iter().zip(value).map(|(since, value)| Self { since: *since, value: *value }).collect())
    }
}

/// The method.
#[derive(Debug)]
pub(super) struct Flatline {
    duration: i64,
    tolerance: f64,
    state: Dense<Still>,
}

impl Flatline {
    pub(super) fn new(options: &FlatlineOptions, space: Space) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        if options.duration.us() == 0 {
            errors.push(ConfigError::new("/for", "must be longer than nothing"));
        }
        if !(options.tolerance >= 0.0 && options.tolerance.is_finite()) {
            errors.push(ConfigError::new("/tolerance", "must be 0 or more"));
        }
        let (duration, tolerance) = (options.duration.us(), options.tolerance);
        if errors.is_empty() { Ok(Self { duration, tolerance, state: Dense::new(space) }) } else { Err(errors) }
    }
}

impl Method for Flatline {
    const NAME: &'static str = "flatline";

    #[inline]
    fn judge(&mut self, slot: u32, ts: i64, value: f64) -> Option<Verdict> {
        let state = self.state.at(slot);
        if state.since == NEVER || (value - state.value).abs() > self.tolerance {
            *state = Still { since: ts, value };
            return None;
        }
        let still = ts.saturating_sub(state.since);
        if still < self.duration {
            return None;
        }
        let (deviation, limit) = (still as f64 / 1e6, self.duration as f64 / 1e6);
        Some(Verdict { level: Level::Bad, limit, expected: state.value, deviation, confidence: 1.0, ..Verdict::NORMAL })
    }

    #[inline]
    fn prefetch(&self, slot: u32) {
        self.state.prefetch(slot);
    }

    fn state(&mut self) -> Option<&mut dyn KeyedState> {
        Some(&mut self.state)
    }
}
