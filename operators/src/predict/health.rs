//! `health`: a score from 0 to 100 for a device, from how far each of its series has drifted from how it began.
//!
//! Of every series the mean and deviation of its first `warmup` values are kept, and an exponentially weighted mean of the latest.
//! Its strain is the distance between the two in deviations: up to one costs nothing, from there to `worst` health falls in a
//! straight line to 0. A device is as healthy as its worst series. A prediction is made when `every` of the device's event time has
//! gone by, and at the end of input; none while no series is past its warm-up.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{Float64Type, Int64Type, UInt32Type};
use fieldstream_engine_api::{
    ConfigError, ConfigErrors, Emitter, KeyedBatch, KeyedState, NO_SLOT, Operator, Output, Position, SlotDirectory, Space, StateError,
    Tick, TickTime,
};
use fieldstream_schemas::records::Prediction;
use schemars::JsonSchema;
use serde::Deserialize;

use super::output::{At, Predictions};
use super::rows::Rows;
use crate::options::TimeSpan;
use crate::state::{Dense, Entry, numbers};

/// Options of `health`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthOptions {
    /// Column or SQL expression followed; `value` if not given.
    pub column: Option<String>,
    /// Rows for which this SQL condition is not true are passed over.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// How often a score is given, by the device's event time.
    pub every: TimeSpan,
    /// Values of a series from which its normal is learned.
    #[serde(default = "default_warmup")]
    pub warmup: u32,
    /// Weight of the newest value in the mean of the latest.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// Strain at which nothing of the health is left.
    #[serde(default = "default_worst")]
    pub worst: f64,
}

fn default_warmup() -> u32 {
    100
}

fn default_alpha() -> f64 {
    0.05
}

fn default_worst() -> f64 {
    10.0
}

/// A change of the score by more than this is a trend.
const STABLE: f64 = 2.0;

/// A series: its normal, and how it is.
#[derive(Clone, Copy, Debug)]
struct Strain {
    mean: f64,
    squares: f64,
    latest: f64,
    count: u32,
}

impl Entry for Strain {
    const BLANK: Self = Self { mean: 0.0, squares: 0.0, latest: 0.0, count: 0 };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        self.count == 0
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        let float = |of: fn(&Self) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(entries.iter().map(of))) };
        vec![
            ("mean", float(|e| e.mean)),
            ("squares", float(|e| e.squares)),
            ("latest", float(|e| e.latest)),
            ("count", Arc::new(UInt32Array::from_iter_values(entries.iter().map(|e| e.count)))),
        ]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let float = |name| numbers::<Float64Type>(rows, name);
        let (mean, squares, latest) = (float("mean")?, float("squares")?, float("latest")?);
        let count = numbers::<UInt32Type>(rows, "count")?;
        Ok((0..count.len()).map(|i| Self { mean: mean[i], squares: squares[i], latest: latest[i], count: count[i] }).collect())
    }
}

/// A device: its clock and the last score given, NaN before the first.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    last: i64,
    score: f64,
}

const NEVER: i64 = i64::MIN;

impl Entry for Pulse {
    const BLANK: Self = Self { last: NEVER, score: f64::NAN };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        self.last == NEVER
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        vec![
            ("last", Arc::new(Int64Array::from_iter_values(entries.iter().map(|e| e.last)))),
            ("score", Arc::new(Float64Array::from_iter_values(entries.iter().map(|e| e.score)))),
        ]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let (last, score) = (numbers::<Int64Type>(rows, "last")?, numbers::<Float64Type>(rows, "score")?);
        Ok(last.iter().zip(score).map(|(last, score)| Self { last: *last, score: *score }).collect())
    }
}

/// The operator.
pub(super) struct Health {
    every: i64,
    warmup: u32,
    alpha: f64,
    worst: f64,
    /// Whose strain is kept: series, or the device itself where rows have no series.
    parts: Space,
    rows: Rows,
    strains: Dense<Strain>,
    pulses: Dense<Pulse>,
    predictions: Predictions,
    outputs: Vec<Output>,
}

impl Health {
    pub(super) fn new(
        options: &HealthOptions,
        parts: Space,
        rows: Rows,
        predictions: Predictions,
        outputs: Vec<Output>,
    ) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        if options.every.us() == 0 {
            errors.push(ConfigError::new("/every", "must be longer than nothing"));
        }
        if options.warmup < 2 {
            errors.push(ConfigError::new("/warmup", "must be 2 or more, or there is no deviation to learn"));
        }
        if !(options.alpha > 0.0 && options.alpha < 1.0) {
            errors.push(ConfigError::new("/alpha", "must lie between 0 and 1"));
        }
        if !(options.worst > 1.0 && options.worst.is_finite()) {
            errors.push(ConfigError::new("/worst", "must be more than 1"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let HealthOptions { every, warmup, alpha, worst, .. } = *options;
        let (strains, pulses) = (Dense::new(parts), Dense::new(Space::Device));
        Ok(Self { every: every.us(), warmup, alpha, worst, parts, rows, strains, pulses, predictions, outputs })
    }

    /// Health of one series; `None` during its warm-up.
    fn part(&mut self, slot: u32) -> Option<f64> {
        let strain = *self.strains.at(slot);
        if strain.count < self.warmup {
            return None;
        }
        // A series that never moved has no deviation: any drift is strain then.
        let deviation = (strain.squares / f64::from(self.warmup - 1)).sqrt().max(1e-9);
        let distance = (strain.latest - strain.mean).abs() / deviation;
        let lost = ((distance - 1.0) / (self.worst - 1.0)).clamp(0.0, 1.0);
        Some(((1.0 - lost) * 1000.0).round() / 10.0)
    }

    fn score(&mut self, device: u32, position: Position, slots: &SlotDirectory) {
        let mut own: Vec<u32> = if self.parts == Space::Series { slots.series_of(device).collect() } else { vec![device] };
        own.sort_by_key(|slot| slots.sensor_name(*slot));
        let mut factors = serde_json::Map::new();
        let mut score = f64::INFINITY;
        for slot in own {
            if let Some(part) = self.part(slot) {
                let name = if self.parts == Space::Series { slots.sensor_name(slot) } else { "value" };
                factors.insert(name.to_owned(), part.into());
                score = score.min(part);
            }
        }
        if factors.is_empty() {
            return;
        }
        let pulse = self.pulses.at(device);
        let before = std::mem::replace(&mut pulse.score, score);
        let trend = if score > before + STABLE {
            "improving"
        } else if score < before - STABLE {
            "degrading"
        } else {
            "stable"
        };
        let factors = serde_json::Value::Object(factors).to_string();
        let prediction = Prediction {
            ts: pulse.last,
            method: "health",
            prediction_type: "health",
            health: Some(score),
            trend: Some(trend),
            factors: Some(&factors),
            ..Prediction::default()
        };
        self.predictions.push(At { device, series: NO_SLOT, position }, &prediction, slots);
    }

    fn row(&mut self, row: usize, ts: i64, value: f64, batch: &KeyedBatch, slots: &SlotDirectory) {
        let device = batch.keys.device[row];
        let last = self.pulses.at(device).last;
        if last != NEVER && ts.div_euclid(self.every) > last.div_euclid(self.every) {
            self.score(device, batch.keys.position[row], slots);
        }
        self.pulses.at(device).last = last.max(ts);
        let slot = if self.parts == Space::Series { batch.keys.series[row] } else { device };
        let strain = self.strains.at(slot);
        if strain.count < self.warmup {
            strain.count += 1;
            let delta = value - strain.mean;
            strain.mean += delta / f64::from(strain.count);
            strain.squares += delta * (value - strain.mean);
            strain.latest = strain.mean;
        } else {
            strain.latest += self.alpha * (value - strain.latest);
        }
        if !(strain.squares.is_finite() && strain.latest.is_finite()) {
            // A jump beyond what doubles can square: learn anew.
            *strain = Strain::BLANK;
        }
    }
}

impl Operator for Health {
    fn space(&self) -> Space {
        self.parts
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, slots: &SlotDirectory, out: &mut Emitter) {
        for (row, ts, value) in self.rows.judged(batch, out) {
            self.row(row, ts, value, batch, slots);
        }
        if let Some(rows) = self.predictions.take(slots) {
            out.emit(0, rows);
        }
    }

    fn on_tick(&mut self, tick: &Tick, devices: &[u32], slots: &SlotDirectory, out: &mut Emitter) {
        if tick.time != TickTime::EndOfInput {
            return;
        }
        for device in devices {
            if self.pulses.at(*device).last != NEVER {
                self.score(*device, tick.position, slots);
            }
        }
        if let Some(rows) = self.predictions.take(slots) {
            out.emit(0, rows);
        }
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![&mut self.strains, &mut self.pulses]
    }
}
