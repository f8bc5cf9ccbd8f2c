//! `ewma`: distance from an exponentially weighted mean, in exponentially weighted standard deviations (Roberts 1959;
//! variance after West, CACM 22(9), 1979). A value is judged by what was known before it, then learned from.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{Float64Type, UInt32Type};
use fieldstream_engine_api::{ConfigError, ConfigErrors, KeyedState, Space, StateError};
use schemars::JsonSchema;
use serde::Deserialize;

use super::verdict::{Level, Method, Verdict, chebyshev};
use crate::state::{Dense, Entry, numbers};

/// Options of `ewma`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EwmaOptions {
    /// Column or SQL expression judged; `value` if not given.
    pub column: Option<String>,
    /// Rows for which this SQL condition is not true are passed over.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Weight of the newest value, between 0 and 1.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// Wrong when further from the mean than so many standard deviations.
    #[serde(default = "default_z")]
    pub z: f64,
    /// Values learned from before any is judged.
    #[serde(default = "default_warmup")]
    pub warmup: u32,
    /// Nothing is judged while the variance is not above this.
    #[serde(default = "default_min_var")]
    pub min_var: f64,
}

fn default_alpha() -> f64 {
    0.05
}

fn default_z() -> f64 {
    4.0
}

fn default_warmup() -> u32 {
    30
}

fn default_min_var() -> f64 {
    1e-9
}

/// Mean and variance so far.
#[derive(Clone, Copy, Debug)]
struct Moments {
    mean: f64,
    variance: f64,
    /// Values seen, as far as it matters.
    count: u32,
}

impl Entry for Moments {
    const BLANK: Self = Self { mean: 0.0, variance: 0.0, count: 0 };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        self.count == 0
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        vec![
            ("mean", Arc::new(Float64Array::from_iter_values(entries.iter().map(|e| e.mean)))),
            ("variance", Arc::new(Float64Array::from_iter_values(entries.iter().map(|e| e.variance)))),
            ("count", Arc::new(UInt32Array::from_iter_values(entries.iter().map(|e| e.count)))),
        ]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let (mean, variance) = (numbers::<Float64Type>(rows, "mean")?, numbers::<Float64Type>(rows, "variance")?);
        let count = numbers::<UInt32Type>(rows, "count")?;
        Ok((0..count.len()).map(|i| Self { mean: mean[i], variance: variance[i], count: count[i] }).collect())
    }
}

/// The method.
#[derive(Debug)]
pub(super) struct Ewma {
    alpha: f64,
    keep: f64,
    z: f64,
    warmup: u32,
    min_var: f64,
    /// A squared distance below so many variances is normal, however it is rounded; 0 where squares of `z` are no good.
    surely: f64,
    state: Dense<Moments>,
}

/// Above this, squares keep their precision, and below its inverse they do not overflow.
const SQUARES: f64 = 1e-200;

/// True for variances between [`SQUARES`] and its inverse. Positive numbers are in the order of their bits, so one comparison does.
#[inline(always)]
fn can_be_squared(variance: f64) -> bool {
    let (least, most) = (SQUARES.to_bits(), (1.0 / SQUARES).to_bits());
    variance.to_bits().wrapping_sub(least) < most - least
}

impl Ewma {
    pub(super) fn new(options: &EwmaOptions, space: Space) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        if !(options.alpha > 0.0 && options.alpha < 1.0) {
            errors.push(ConfigError::new("/alpha", "must lie between 0 and 1"));
        }
        if !(options.z > 0.0 && options.z.is_finite()) {
            errors.push(ConfigError::new("/z", "must be more than 0"));
        }
        if !(options.min_var >= 0.0 && options.min_var.is_finite()) {
            errors.push(ConfigError::new("/min_var", "must be 0 or more"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let EwmaOptions { alpha, z, warmup, min_var, .. } = *options;
        let surely = if (1e-100..1e100).contains(&z) { z * z * (1.0 - 1e-9) } else { 0.0 };
        Ok(Self { alpha, keep: 1.0 - alpha, z, warmup: warmup.max(1), min_var, surely, state: Dense::new(space) })
    }
}

impl Method for Ewma {
    const NAME: &'static str = "ewma";

    #[inline]
    fn judge(&mut self, slot: u32, _ts: i64, value: f64) -> Option<Verdict> {
        let state = self.state.at(slot);
        let before = *state;
        let delta = value - before.mean;
        // Nearly every value: normal whatever the warm-up says, and far from where squares overflow.
        if can_be_squared(before.variance) && delta * delta < self.surely * before.variance {
            state.mean = before.mean + self.alpha * delta;
            state.variance = self.keep * (before.variance + self.alpha * delta * delta);
            state.count = before.count.saturating_add(1);
            return None;
        }
        self.judge_closely(slot, value)
    }

    #[inline]
    fn prefetch(&self, slot: u32) {
        self.state.prefetch(slot);
    }

    fn state(&mut self) -> Option<&mut dyn KeyedState> {
        Some(&mut self.state)
    }
}

impl Ewma {
    #[inline(never)]
    fn judge_closely(&mut self, slot: u32, value: f64) -> Option<Verdict> {
        let state = self.state.at(slot);
        if state.count == 0 {
            *state = Moments { mean: value, variance: 0.0, count: 1 };
            return None;
        }
        let before = *state;
        let delta = value - before.mean;
        state.mean = before.mean + self.alpha * delta;
        state.variance = self.keep * (before.variance + self.alpha * delta * delta);
        state.count = before.count.saturating_add(1);
        if !state.variance.is_finite() {
            // A jump beyond what doubles can square: learn anew.
            *state = Moments::BLANK;
        }
        if before.count < self.warmup || before.variance <= self.min_var {
            return None;
        }
        let spread = before.variance.sqrt();
        let deviation = delta / spread;
        if deviation.abs() <= self.z {
            return None;
        }
        let limit = before.mean + self.z.copysign(delta) * spread;
        Some(Verdict { level: Level::Bad, limit, expected: before.mean, spread, deviation, confidence: chebyshev(deviation) })
    }
}
