//! `cusum`: small lasting shifts, by two one-sided cumulative sums (Page, Biometrika 41, 1954) around a learned mean.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{Float64Type, UInt32Type};
use fieldstream_engine_api::{ConfigError, ConfigErrors, KeyedState, Space, StateError};
use schemars::JsonSchema;
use serde::Deserialize;

use super::verdict::{Level, Method, Verdict};
use crate::state::{Dense, Entry, numbers};

/// Options of `cusum`. Distances are in standard deviations of the learned values.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CusumOptions {
    /// Column or SQL expression judged; `value` if not given.
    pub column: Option<String>,
    /// Rows for which this SQL condition is not true are passed over.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Slack: a shift of twice this is found fastest.
    #[serde(default = "default_k")]
    pub k: f64,
    /// Wrong when a sum exceeds this.
    #[serde(default = "default_h")]
    pub h: f64,
    /// Values from which mean and deviation are learned before any is judged.
    #[serde(default = "default_warmup")]
    pub warmup: u32,
    /// After so many wrong values in a row the new level is taken for normal and learned.
    #[serde(default = "default_shift")]
    pub shift_after: u32,
}

fn default_k() -> f64 {
    0.5
}

fn default_h() -> f64 {
    5.0
}

fn default_warmup() -> u32 {
    30
}

fn default_shift() -> u32 {
    30
}

/// What is learned, and the sums.
#[derive(Clone, Copy, Debug)]
struct Sums {
    mean: f64,
    /// Sum of squared distances from the mean.
    squares: f64,
    high: f64,
    low: f64,
    count: u32,
    bad: u32,
}

impl Entry for Sums {
    const BLANK: Self = Self { mean: 0.0, squares: 0.0, high: 0.0, low: 0.0, count: 0, bad: 0 };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        self.count == 0
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        let float = |of: fn(&Self) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(entries.iter().map(of))) };
        let count = |of: fn(&Self) -> u32| -> ArrayRef { Arc::new(UInt32Array::from_iter_values(entries.iter().map(of))) };
        vec![
            ("mean", float(|e| e.mean)),
            ("squares", float(|e| e.squares)),
            ("high", float(|e| e.high)),
            ("low", float(|e| e.low)),
            ("count", count(|e| e.count)),
            ("bad", count(|e| e.bad)),
        ]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let float = |name| numbers::<Float64Type>(rows, name);
        let (mean, squares, high, low) = (float("mean")?, float("squares")?, float("high")?, float("low")?);
        let (count, bad) = (numbers::<UInt32Type>(rows, "count")?, numbers::<UInt32Type>(rows, "bad")?);
        let entry = |i: usize| Self { mean: mean[i], squares: squares[i], high: high[i], low: low[i], count: count[i], bad: bad[i] };
        Ok((0..count.len()).map(entry).collect())
    }
}

/// The method.
#[derive(Debug)]
pub(super) struct Cusum {
    k: f64,
    h: f64,
    warmup: u32,
    shift_after: u32,
    state: Dense<Sums>,
}

impl Cusum {
    pub(super) fn new(options: &CusumOptions, space: Space) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        if !(options.k >= 0.0 && options.k.is_finite()) {
            errors.push(ConfigError::new("/k", "must be 0 or more"));
        }
        if !(options.h > 0.0 && options.h.is_finite()) {
            errors.push(ConfigError::new("/h", "must be more than 0"));
        }
        if options.warmup < 2 {
            errors.push(ConfigError::new("/warmup", "must be 2 or more, or there is no deviation to learn"));
        }
        if options.shift_after == 0 {
            errors.push(ConfigError::new("/shift_after", "must be 1 or more"));
        }
        let CusumOptions { k, h, warmup, shift_after, .. } = *options;
        if errors.is_empty() { Ok(Self { k, h, warmup, shift_after, state: Dense::new(space) }) } else { Err(errors) }
    }
}

impl Method for Cusum {
    const NAME: &'static str = "cusum";

    #[inline]
    fn judge(&mut self, slot: u32, _ts: i64, value: f64) -> Option<Verdict> {
        let state = self.state.at(slot);
        if state.count < self.warmup {
            state.count += 1;
            let delta = value - state.mean;
            state.mean += delta / f64::from(state.count);
            state.squares += delta * (value - state.mean);
            if !state.squares.is_finite() || !state.mean.is_finite() {
                *state = Sums::BLANK;
            }
            return None;
        }
        let spread = (state.squares / f64::from(state.count - 1)).sqrt();
        if spread < 1e-9 {
            // Nothing but one value was learned: there is no scale to judge by, so learn on.
            *state = Sums::BLANK;
            return None;
        }
        let z = (value - state.mean) / spread;
        // Held at twice the limit, so that the sums come back soon after the values have.
        state.high = (state.high + z - self.k).clamp(0.0, 2.0 * self.h);
        state.low = (state.low - z - self.k).clamp(0.0, 2.0 * self.h);
        let sum = state.high.max(state.low);
        if sum <= self.h {
            state.bad = 0;
            return None;
        }
        state.bad += 1;
        let (expected, up) = (state.mean, state.high >= state.low);
        let level = if state.bad >= self.shift_after { Level::Shifted } else { Level::Bad };
        if level == Level::Shifted {
            *state = Sums::BLANK;
        }
        let deviation = if up { sum } else { -sum };
        let limit = expected + if up { self.k } else { -self.k } * spread;
        Some(Verdict { level, limit, expected, spread, deviation, confidence: sum / (sum + self.h) })
    }

    #[inline]
    fn prefetch(&self, slot: u32) {
        self.state.prefetch(slot);
    }

    fn state(&mut self) -> Option<&mut dyn KeyedState> {
        Some(&mut self.state)
    }
}
