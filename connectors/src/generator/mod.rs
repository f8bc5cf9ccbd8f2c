//! `generator`: a seeded fleet of physically plausible devices as a source, for demos, load and tests.
//!
//! Its payloads are the platform's JSON telemetry, so that decoding, journal and pipeline are exercised as with real devices.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use fieldstream_engine_api::{Built, ConfigError, ConnectContext, ReceiveError, Received, Receiver, SourceBuild, SourceKind};
use fieldstream_schemas::time::parse_rfc3339;
use fieldstream_schemas::{PayloadBlock, PayloadEntry};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tokio::time::Instant;

use crate::options;

mod fault;
mod fleet;
mod physics;
mod rng;
#[cfg(test)]
mod tests;

pub use fault::{FaultConfig, FaultKind, Label};
pub use fleet::{Fleet, FleetConfig, Sample};
pub use physics::{DeviceKind, SensorKind};

/// Payloads in one block at most: a large fleet's beat is handed over in parts.
const BLOCK_ROWS: usize = 8_192;

/// Devices a fleet may have.
const MAX_DEVICES: u32 = 10_000_000;

/// The catalogue line.
pub const SOURCE: SourceKind = SourceKind {
    name: "generator",
    about: "a seeded fleet of simulated devices, with labelled faults",
    schema: || schemars::schema_for!(GeneratorOptions).to_value(),
    check: |value| read_options(value).map(|_| ()),
    log_options: &[],
    build: SourceBuild::Receiver(build),
};

/// How fast event time passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// Seconds of event time in one second.
    Times(f64),
    /// As fast as readings are taken.
    Max,
}

/// Options of the `generator` source.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GeneratorOptions {
    /// Number of devices.
    #[serde(default = "ten")]
    pub devices: u32,
    /// Kinds of devices, dealt in turn: freezer, pump, ambient.
    #[serde(default = "all_kinds")]
    pub kinds: Vec<DeviceKind>,
    /// Seed of everything random: the same seed gives the same readings.
    #[serde(default)]
    pub seed: u64,
    /// Readings of each sensor in a second of event time.
    #[serde(default = "one")]
    pub rate: f64,
    /// Seconds of event time that pass in one second, or `max`.
    #[serde(default = "real_time", deserialize_with = "speed")]
    #[schemars(with = "Value")]
    pub speed: Speed,
    /// Event time of the first reading (RFC 3339). Without it a run with a `duration` ends about now, any other begins now.
    #[serde(default)]
    pub start: Option<String>,
    /// Event time after which the source ends.
    #[serde(default, deserialize_with = "maybe_duration")]
    #[schemars(with = "Option<String>")]
    pub duration: Option<Duration>,
    /// Readings after which the source ends.
    #[serde(default)]
    pub count: Option<u64>,
    /// What goes wrong.
    #[serde(default)]
    pub faults: FaultOptions,
    /// File that receives the truth about the faults, one JSON object per line. It is begun anew on every run.
    #[serde(default)]
    pub labels: Option<PathBuf>,
}

/// The faults of a fleet.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultOptions {
    /// Mean number per device and day of event time.
    #[serde(default)]
    pub per_device_day: f64,
    /// Kinds: spike, level_shift, drift, flatline, silence. All by default.
    #[serde(default = "all_faults")]
    pub kinds: Vec<FaultKind>,
    /// Event time at the beginning without faults.
    #[serde(default = "one_hour", deserialize_with = "options::duration")]
    #[schemars(with = "String")]
    pub warm_up: Duration,
    /// Healthy event time after each fault.
    #[serde(default = "one_hour", deserialize_with = "options::duration")]
    #[schemars(with = "String")]
    pub recovery: Duration,
}

impl Default for FaultOptions {
    fn default() -> Self {
        Self { per_device_day: 0.0, kinds: all_faults(), warm_up: one_hour(), recovery: one_hour() }
    }
}

fn ten() -> u32 {
    10
}

fn one() -> f64 {
    1.0
}

fn real_time() -> Speed {
    Speed::Times(1.0)
}

fn one_hour() -> Duration {
    Duration::from_secs(3_600)
}

fn all_kinds() -> Vec<DeviceKind> {
    DeviceKind::ALL.to_vec()
}

fn all_faults() -> Vec<FaultKind> {
    FaultKind::ALL.to_vec()
}

fn speed<'de, D: Deserializer<'de>>(input: D) -> Result<Speed, D::Error> {
    let value = Value::deserialize(input)?;
    match (value.as_f64(), value.as_str()) {
        (Some(times), _) if times > 0.0 && times.is_finite() => Ok(Speed::Times(times)),
        (_, Some("max")) => Ok(Speed::Max),
        _ => Err(serde::de::Error::custom(format!("{value} is no speed; write a number above 0, or max"))),
    }
}

fn maybe_duration<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    options::duration(input).map(Some)
}

/// Reads and checks the options.
///
/// # Errors
/// Everything wrong, each with its place.
pub fn read_options(value: &Value) -> Built<GeneratorOptions> {
    let options: GeneratorOptions = options::parse(value)?;
    let mut errors = Vec::new();
    let mut refuse = |path: &str, wrong: bool, message: &str| {
        if wrong {
            errors.push(ConfigError::new(path, message));
        }
    };
    refuse("/devices", !(1..=MAX_DEVICES).contains(&options.devices), "must lie between 1 and 10000000");
    refuse("/rate", !(1e-6..=1e3).contains(&options.rate), "must lie between 0.000001 and 1000 a second");
    refuse("/kinds", options.kinds.is_empty(), "must name at least one kind of device");
    let no_time = options.start.as_ref().is_some_and(|s| parse_rfc3339(s.as_bytes()).is_none());
    refuse("/start", no_time, "is no RFC 3339 time such as 2026-01-31T08:00:00Z");
    let per_day = options.faults.per_device_day;
    refuse("/faults/per_device_day", !(per_day >= 0.0 && per_day.is_finite()), "must be 0 or more");
    refuse("/faults/kinds", options.faults.kinds.is_empty(), "must name at least one kind of fault");
    if errors.is_empty() { Ok(options) } else { Err(errors) }
}

impl GeneratorOptions {
    /// The fleet these options describe; `now_us` (microseconds since the epoch) is used where they name no start.
    #[must_use]
    pub fn fleet(&self, now_us: i64) -> FleetConfig {
        let duration_us = self.duration.map(micros);
        let wanted = self.start.as_ref().and_then(|text| parse_rfc3339(text.as_bytes()));
        let interval_us = (1e6 / self.rate) as i64;
        // Devices read within the interval after a beat, and readings from the future would be refused.
        let start_us = wanted.unwrap_or_else(|| now_us.saturating_sub(duration_us.unwrap_or(0)).saturating_sub(interval_us));
        FleetConfig {
            devices: self.devices,
            kinds: self.kinds.clone(),
            seed: self.seed,
            start_us,
            interval_us,
            end_us: duration_us.map(|d| start_us.saturating_add(d)),
            faults: FaultConfig {
                per_device_day: self.faults.per_device_day,
                kinds: self.faults.kinds.clone(),
                warm_up_us: micros(self.faults.warm_up),
                recovery_us: micros(self.faults.recovery),
            },
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn build(value: &Value, _: &ConnectContext) -> Built<Box<dyn Receiver>> {
    let options = read_options(value)?;
    Ok(Box::new(Generator { options, running: None, pending: Vec::new(), sent: 0, handle: 0 }))
}

/// The fleet as a receiver.
struct Generator {
    options: GeneratorOptions,
    running: Option<Running>,
    /// Readings of the present beat that are still to be handed over.
    pending: Vec<Sample>,
    sent: u64,
    handle: u64,
}

struct Running {
    fleet: Fleet,
    began: Instant,
    start_us: i64,
    labels: Option<File>,
}

impl Generator {
    fn start(&self) -> Result<Running, ReceiveError> {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros);
        let now_us = wall - wall % 1_000; // readings carry whole milliseconds
        let config = self.options.fleet(now_us);
        let start_us = config.start_us;
        let labels = self.options.labels.as_ref().map(File::create).transpose().map_err(|e| self.labels_failed(&e))?;
        Ok(Running { fleet: Fleet::new(config), began: Instant::now(), start_us, labels })
    }

    fn labels_failed(&self, error: &std::io::Error) -> ReceiveError {
        let path = self.options.labels.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
        ReceiveError::Fatal { context: format!("write fault labels to {path}"), cause: error.to_string() }
    }

    /// Waits for the next beat and takes its readings; false at the end.
    async fn beat(&mut self) -> Result<bool, ReceiveError> {
        let running = match self.running.take() {
            Some(running) => running,
            None => self.start()?,
        };
        let running = self.running.insert(running);
        let ahead_us = (running.fleet.now_us() - running.start_us).max(0);
        match self.options.speed {
            Speed::Times(speed) => {
                let due = Duration::try_from_secs_f64(ahead_us as f64 / 1e6 / speed).ok().and_then(|d| running.began.checked_add(d));
                let Some(due) = due else { return Ok(false) }; // further away than clocks reach
                tokio::time::sleep_until(due).await;
            }
            Speed::Max => tokio::task::yield_now().await, // a source that is always ready must not starve its neighbours
        }
        // Nothing is awaited from here on, so a dropped call loses nothing.
        let goes_on = running.fleet.step(&mut self.pending);
        let mut lines = String::new();
        running.fleet.take_labels().iter().for_each(|label| label.write_json(&mut lines));
        // A few bytes now and then: not worth another thread.
        if let Some(Err(error)) = running.labels.as_mut().map(|file| file.write_all(lines.as_bytes())) {
            return Err(self.labels_failed(&error));
        }
        Ok(goes_on)
    }

    /// Hands over a part of the pending readings.
    fn take_block(&mut self) -> PayloadBlock {
        let left = self.options.count.map_or(u64::MAX, |count| count - self.sent);
        let rows = self.pending.len().min(BLOCK_ROWS).min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut text = String::with_capacity(rows * 200);
        let mut entries = Vec::with_capacity(rows);
        let mut topics: Vec<Arc<str>> = Vec::with_capacity(rows);
        for sample in self.pending.drain(..rows) {
            let start = text.len();
            sample.write_json(&mut text);
            entries.push(PayloadEntry {
                offset: self.sent,
                start: u32::try_from(start).unwrap_or(u32::MAX),
                len: u32::try_from(text.len() - start).unwrap_or(0),
                ingest_us: None,
            });
            topics.push(sample.topic);
            self.sent += 1;
        }
        PayloadBlock { data: Bytes::from(text), entries, topics: Some(topics), ..PayloadBlock::default() }
    }
}

#[async_trait]
impl Receiver for Generator {
    async fn next(&mut self) -> Result<Option<Received>, ReceiveError> {
        if self.options.count.is_some_and(|count| self.sent >= count) {
            return Ok(None);
        }
        while self.pending.is_empty() {
            if !self.beat().await? {
                return Ok(None);
            }
        }
        let block = self.take_block();
        self.handle += 1;
        Ok(Some(Received { block, handle: self.handle }))
    }

    async fn acknowledge(&mut self, _: u64) -> Result<(), ReceiveError> {
        Ok(()) // what is simulated can be simulated again
    }
}
