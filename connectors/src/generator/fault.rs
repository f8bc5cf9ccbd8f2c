//! Faults: what goes wrong with a simulated device, when, and the label that says so.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::physics::DeviceKind;
use super::rng::Rng;

const HOUR_US: f64 = 3.6e9;
const DAY_US: f64 = 8.64e10;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// One to three readings far off, 8 to 14 spreads.
    Spike,
    /// 6 to 10 spreads off for 30 to 90 minutes.
    LevelShift,
    /// Ever faster towards the sensor's limit, reached after 1 to 3 hours, then repaired.
    Drift,
    /// The same value for 30 to 90 minutes.
    Flatline,
    /// The whole device says nothing for 20 to 60 minutes.
    Silence,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Spike, Self::LevelShift, Self::Drift, Self::Flatline, Self::Silence];

    /// Name, as in labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spike => "spike",
            Self::LevelShift => "level_shift",
            Self::Drift => "drift",
            Self::Flatline => "flatline",
            Self::Silence => "silence",
        }
    }
}

/// Which faults happen, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct FaultConfig {
    /// Mean number per device and day of event time; 0 for none.
    pub per_device_day: f64,
    /// Kinds to choose from.
    pub kinds: Vec<FaultKind>,
    /// No fault begins in the first microseconds of a run, so that detectors can learn.
    pub warm_up_us: i64,
    /// Healthy time after each fault, in microseconds, so that episodes can be told apart.
    pub recovery_us: i64,
}

impl Default for FaultConfig {
    fn default() -> Self {
        Self { per_device_day: 0.0, kinds: FaultKind::ALL.to_vec(), warm_up_us: 3_600_000_000, recovery_us: 3_600_000_000 }
    }
}

/// The truth about one fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    /// Device id.
    pub device: Arc<str>,
    /// Sensor; `None` when the whole device is concerned.
    pub sensor: Option<&'static str>,
    /// What goes wrong.
    pub kind: FaultKind,
    /// First moment, event time in microseconds since the epoch.
    pub start_us: i64,
    /// First moment after it, event time in microseconds since the epoch.
    pub end_us: i64,
}

impl Label {
    /// Appends the label as one line of JSON, times as RFC 3339.
    pub fn write_json(&self, out: &mut String) {
        let line = serde_json::json!({
            "device": &*self.device, "sensor": self.sensor, "kind": self.kind.name(),
            "start": fieldstream_schemas::time::format_rfc3339(self.start_us),
            "end": fieldstream_schemas::time::format_rfc3339(self.end_us),
        });
        out.push_str(&line.to_string());
        out.push('\n');
    }
}

/// The next or present fault of one device.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) kind: FaultKind,
    /// Number of the sensor; of no matter for a silence.
    pub(super) sensor: usize,
    pub(super) start_us: i64,
    pub(super) end_us: i64,
    /// Deviation in units of the sensor, for spikes and shifts.
    offset: f64,
    /// Last value before a flatline.
    frozen: Option<f64>,
}

impl Fault {
    /// Draws the first fault that begins after `after_us`; `None` when faults are off. `interval_us` is the time between readings.
    pub(super) fn draw(config: &FaultConfig, device: DeviceKind, after_us: i64, interval_us: i64, rng: &mut Rng) -> Option<Self> {
        if config.per_device_day <= 0.0 {
            return None;
        }
        let kind = *config.kinds.get(rng.below(config.kinds.len()))?;
        let sensor = rng.below(device.sensors().len());
        let start_us = after_us.saturating_add(rng.waiting(DAY_US / config.per_device_day) as i64);
        let (length_us, spreads) = match kind {
            FaultKind::Spike => ((1 + rng.below(3)) as i64 * interval_us, rng.between(8.0, 14.0)),
            FaultKind::LevelShift => (rng.between(0.5 * HOUR_US, 1.5 * HOUR_US) as i64, rng.between(6.0, 10.0)),
            FaultKind::Drift => (rng.between(HOUR_US, 3.0 * HOUR_US) as i64, 0.0),
            FaultKind::Flatline => (rng.between(0.5 * HOUR_US, 1.5 * HOUR_US) as i64, 0.0),
            FaultKind::Silence => (rng.between(HOUR_US / 3.0, HOUR_US) as i64, 0.0),
        };
        let spread = device.sensors().get(sensor).map_or(0.0, |s| s.spread);
        Some(Self { kind, sensor, start_us, end_us: start_us + length_us, offset: rng.sign() * spreads * spread, frozen: None })
    }

    /// True while it lasts.
    pub(super) fn covers(&self, us: i64) -> bool {
        (self.start_us..self.end_us).contains(&us)
    }

    /// What the sensor says at `us` in place of `value`.
    pub(super) fn apply(&mut self, us: i64, value: f64, limit: f64) -> f64 {
        match self.kind {
            FaultKind::Spike | FaultKind::LevelShift => value + self.offset,
            FaultKind::Drift => {
                let progress = (us - self.start_us) as f64 / (self.end_us - self.start_us) as f64;
                value + (limit - value) * progress * progress
            }
            FaultKind::Flatline => *self.frozen.get_or_insert(value),
            FaultKind::Silence => value,
        }
    }
}
