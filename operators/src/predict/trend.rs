//! `trend_to_limit`: when a value will cross a limit if it goes on as it has over the lookback.
//!
//! A weighted straight line through the stretch means, a confidence interval of its slope from their scatter (Student's t), and the
//! times at which the middle, steepest and flattest line reach the limit. It abstains when points or stretches are few, when the
//! slope may be zero, when it leads away from the limit, or when the crossing lies further ahead than the lookback reaches back.
//! A prediction is made when a stretch of a series ends (its next row begins a new one), and at the end of input.

use fieldstream_engine_api::{
    ConfigError, ConfigErrors, Emitter, KeyedBatch, KeyedState, NO_SLOT, Operator, Output, SlotDirectory, Space, Tick, TickTime,
};
use fieldstream_schemas::records::Prediction;
use schemars::JsonSchema;
use serde::Deserialize;

use super::buckets::{Bucket, Buckets, Head};
use super::output::{At, Predictions};
use super::rows::Rows;
use super::student::two_sided;
use crate::options::TimeSpan;

/// Options of `trend_to_limit`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrendOptions {
    /// Column or SQL expression followed; `value` if not given.
    pub column: Option<String>,
    /// Rows for which this SQL condition is not true are passed over.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// The limit whose crossing is foretold.
    pub limit: f64,
    /// From which side it is crossed; if not given, from the side on which the value is.
    pub direction: Option<Direction>,
    /// How far back the line is drawn through, and how far ahead a crossing may lie.
    pub lookback: TimeSpan,
    /// Stretches into which the lookback is cut, 4 to 32; sixteen bytes each.
    #[serde(default = "default_buckets")]
    pub buckets: usize,
    /// Probability with which the crossing lies between earliest and latest.
    #[serde(default = "default_interval")]
    pub interval: f64,
    /// Fewer values than this are no evidence.
    #[serde(default = "default_min_points")]
    pub min_points: u64,
}

fn default_buckets() -> usize {
    8
}

fn default_interval() -> f64 {
    0.9
}

fn default_min_points() -> u64 {
    30
}

/// Side from which a limit is crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From below.
    Up,
    /// From above.
    Down,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Crossing {
    /// The line's value now.
    level: f64,
    /// Milliseconds from now: expected, with the steepest line, with the flattest.
    expected: i64,
    earliest: i64,
    latest: i64,
    /// Flattest slope over steepest: 1 is certain.
    confidence: f64,
}

/// The line's settings.
#[derive(Clone, Debug)]
pub(super) struct Line {
    limit: f64,
    direction: Option<Direction>,
    /// Length of a stretch, microseconds.
    width: i64,
    min_points: u64,
    /// Student's t by number of stretches with values.
    quantiles: Vec<f64>,
}

impl Line {
    pub(super) fn new(options: &TrendOptions) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        if !options.limit.is_finite() {
            errors.push(ConfigError::new("/limit", "must be a finite number"));
        }
        if !(4..=32).contains(&options.buckets) {
            errors.push(ConfigError::new("/buckets", "must lie between 4 and 32"));
        }
        if !(options.interval > 0.0 && options.interval < 1.0) {
            errors.push(ConfigError::new("/interval", "must lie between 0 and 1"));
        }
        let width = options.lookback.us() / options.buckets.max(1) as i64;
        if width < 1000 {
            errors.push(ConfigError::new("/lookback", "must be longer, at least a millisecond a bucket"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let quantiles = (0..=options.buckets as u32).map(|n| two_sided(options.interval, n.saturating_sub(2))).collect();
        Ok(Self { limit: options.limit, direction: options.direction, width, min_points: options.min_points, quantiles })
    }

    /// The crossing foretold by a slot's stretches, if the evidence will bear it.
    fn crossing(&self, head: &Head, buckets: &[Bucket]) -> Option<Crossing> {
        let count = buckets.len() as i64;
        // Time in stretches before the end of the newest; oldest first, so that sums have one order.
        let points = (0..count).rev().map(|age| {
            let bucket = &buckets[(head.newest - age).rem_euclid(count) as usize];
            (f64::from(bucket.at) - age as f64, bucket.mean, f64::from(bucket.count))
        });
        let points = points.filter(|p| p.2 > 0.0);
        let (used, weight) = points.clone().fold((0_usize, 0.0), |(n, w), p| (n + 1, w + p.2));
        if used < 3.max(buckets.len() / 2) || weight < self.min_points as f64 {
            return None;
        }
        let mean_t = points.clone().map(|p| p.0 * p.2).sum::<f64>() / weight;
        let mean_x = points.clone().map(|p| p.1 * p.2).sum::<f64>() / weight;
        let tt: f64 = points.clone().map(|p| p.2 * (p.0 - mean_t) * (p.0 - mean_t)).sum();
        let tx: f64 = points.clone().map(|p| p.2 * (p.0 - mean_t) * (p.1 - mean_x)).sum();
        let slope = tx / tt;
        let residuals: f64 = points.map(|p| p.2 * (p.1 - mean_x - slope * (p.0 - mean_t)).powi(2)).sum();
        let spread = self.quantiles.get(used)? * (residuals / (used - 2) as f64 / tt).sqrt();
        let now = (head.last - head.newest.saturating_mul(self.width)) as f64 / self.width as f64;
        let level = mean_x + slope * (now - mean_t);
        if !(slope.is_finite() && spread.is_finite() && level.is_finite()) {
            return None;
        }
        let up = self.direction.map_or(level < self.limit, |d| d == Direction::Up);
        let sign = if up { 1.0 } else { -1.0 };
        let (middle, flat, steep) = (slope * sign, slope * sign - spread, slope * sign + spread);
        if flat <= 0.0 {
            return None;
        }
        let distance = ((self.limit - level) * sign).max(0.0);
        if distance / middle > buckets.len() as f64 {
            return None;
        }
        let ms = |stretches: f64| (stretches * self.width as f64 / 1000.0).round() as i64;
        let (expected, earliest, latest) = (ms(distance / middle), ms(distance / steep), ms(distance / flat));
        Some(Crossing { level, expected, earliest, latest, confidence: flat / steep })
    }
}

/// The operator.
pub(super) struct Trend {
    pub(super) line: Line,
    pub(super) space: Space,
    pub(super) rows: Rows,
    pub(super) buckets: Buckets,
    pub(super) predictions: Predictions,
    pub(super) outputs: Vec<Output>,
}

/// Event times further away than this are passed over, so that stretch numbers cannot overflow.
const FARTHEST_US: i64 = 1 << 60;

impl Trend {
    fn foretell(&mut self, slot: u32, device: u32, position: fieldstream_engine_api::Position, slots: &SlotDirectory) {
        let (head, buckets) = self.buckets.slot(slot);
        let Some(found) = self.line.crossing(head, buckets) else { return };
        let series = if self.space == Space::Series { slot } else { NO_SLOT };
        let prediction = Prediction {
            ts: head.last,
            method: "trend_to_limit",
            prediction_type: "limit_crossing",
            value: Some(found.level),
            limit: Some(self.line.limit),
            time_to_event_ms: Some(found.expected),
            earliest_ms: Some(found.earliest),
            latest_ms: Some(found.latest),
            confidence: Some(found.confidence),
            ..Prediction::default()
        };
        self.predictions.push(At { device, series, position }, &prediction, slots);
    }

    fn row(&mut self, row: usize, ts: i64, value: f64, batch: &KeyedBatch, slots: &SlotDirectory) {
        let device = batch.keys.device[row];
        let slot = if self.space == Space::Series { batch.keys.series[row] } else { device };
        let number = ts.div_euclid(self.line.width);
        let head = *self.buckets.slot(slot).0;
        let blank = head.last == i64::MIN;
        if !blank && number > head.newest {
            self.foretell(slot, device, batch.keys.position[row], slots);
        }
        let (head, buckets) = self.buckets.slot(slot);
        let count = buckets.len() as i64;
        if blank || number > head.newest {
            let fresh = if blank { count } else { (number - head.newest).min(count) };
            for age in 0..fresh {
                buckets[(number - age).rem_euclid(count) as usize] = Bucket::default();
            }
            head.newest = number;
        } else if head.newest - number >= count {
            return;
        }
        head.last = head.last.max(ts);
        let bucket = &mut buckets[number.rem_euclid(count) as usize];
        bucket.count = bucket.count.saturating_add(1);
        bucket.mean += (value - bucket.mean) / f64::from(bucket.count);
        let at = ts.rem_euclid(self.line.width) as f64 / self.line.width as f64;
        bucket.at += ((at - f64::from(bucket.at)) / f64::from(bucket.count)) as f32;
        if !bucket.mean.is_finite() {
            *bucket = Bucket::default();
        }
    }
}

impl Operator for Trend {
    fn space(&self) -> Space {
        self.space
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, slots: &SlotDirectory, out: &mut Emitter) {
        let rows = self.rows.judged(batch, out);
        for (row, ts, value) in rows {
            if (-FARTHEST_US..=FARTHEST_US).contains(&ts) {
                self.row(row, ts, value, batch, slots);
            }
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
            let mut own: Vec<u32> = if self.space == Space::Series { slots.series_of(*device).collect() } else { vec![*device] };
            own.sort_by_key(|slot| slots.sensor_name(*slot));
            for slot in own {
                if self.buckets.slot(slot).0.last != i64::MIN {
                    self.foretell(slot, *device, tick.position, slots);
                }
            }
        }
        if let Some(rows) = self.predictions.take(slots) {
            out.emit(0, rows);
        }
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![&mut self.buckets]
    }
}
