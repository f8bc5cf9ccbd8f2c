//! The fleet: devices that read their sensors on a common beat. Pure: same configuration, same readings, whoever asks.

use std::fmt::Write as _;
use std::sync::Arc;

use fieldstream_schemas::time::write_rfc3339;

use super::fault::{Fault, FaultConfig, FaultKind, Label};
use super::physics::{Body, DeviceKind, MAX_SENSORS, SensorKind};
use super::rng::Rng;

/// What a fleet is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct FleetConfig {
    /// Number of devices.
    pub devices: u32,
    /// Kinds of devices, dealt in turn; empty stands for all.
    pub kinds: Vec<DeviceKind>,
    /// Seed of everything random.
    pub seed: u64,
    /// Event time of the beginning, microseconds since the epoch.
    pub start_us: i64,
    /// Event time between two readings of a sensor, microseconds, at least 1000.
    pub interval_us: i64,
    /// The fleet ends before this event time (microseconds since the epoch), if it ends.
    pub end_us: Option<i64>,
    /// What goes wrong.
    pub faults: FaultConfig,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            devices: 10,
            kinds: DeviceKind::ALL.to_vec(),
            seed: 0,
            start_us: 0,
            interval_us: 1_000_000,
            end_us: None,
            faults: FaultConfig::default(),
        }
    }
}

/// One reading of the fleet.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Device id, such as `pump-0017`.
    pub device: Arc<str>,
    /// MQTT topic of the device's telemetry, `devices/<device>/telemetry`.
    pub topic: Arc<str>,
    /// The sensor.
    pub sensor: &'static SensorKind,
    /// Number of the beat, from 0.
    pub beat: u64,
    /// Event time, whole milliseconds, in microseconds since the epoch.
    pub event_us: i64,
    /// Value in the sensor's unit.
    pub value: f64,
    /// Confidence of the sensor in its value, 0 to 1.
    pub quality: f64,
}

impl Sample {
    /// Appends the reading as the platform's JSON telemetry, without a line feed. Ids are the same on every run.
    pub fn write_json(&self, out: &mut String) {
        let Self { device, sensor, beat, value, quality, .. } = self;
        let name = sensor.name;
        // Names are made here and need no escaping; writing to a String cannot fail.
        let _ =
            write!(out, r#"{{"id":"{device}.{name}.{beat}","deviceId":"{device}","sensorId":"{name}","sensorType":"{name}","timestamp":""#);
        write_rfc3339(out, self.event_us);
        let _ = write!(out, r#"","value":{value:.*},"unit":"{}","quality":{quality}}}"#, sensor.decimals, sensor.unit);
    }
}

#[derive(Debug)]
struct Device {
    kind: DeviceKind,
    name: Arc<str>,
    topic: Arc<str>,
    /// Milliseconds after the beat at which it reads.
    offset_us: i64,
    body: Body,
    /// Noise of the body; the faults have a sequence of their own, so that they do not depend on it.
    rng: Rng,
    fault_rng: Rng,
    fault: Option<Fault>,
    labelled: bool,
}

impl Device {
    fn new(config: &FleetConfig, index: u32) -> Self {
        let kinds = if config.kinds.is_empty() { &DeviceKind::ALL[..] } else { &config.kinds[..] };
        let kind = kinds.get(index as usize % kinds.len()).copied().unwrap_or(DeviceKind::Ambient);
        let name: Arc<str> = format!("{}-{index:04}", kind.name()).into();
        let stream = u64::from(index) << 1;
        let (mut rng, mut fault_rng) = (Rng::new(config.seed, stream), Rng::new(config.seed, stream | 1));
        let body = Body::new(kind, &mut rng);
        let offset_us = rng.below((config.interval_us / 1_000) as usize) as i64 * 1_000;
        let healthy_until = config.start_us.saturating_add(config.faults.warm_up_us);
        let fault = Fault::draw(&config.faults, kind, healthy_until, config.interval_us, &mut fault_rng);
        let topic = format!("devices/{name}/telemetry").into();
        Self { kind, name, topic, offset_us, body, rng, fault_rng, fault, labelled: false }
    }

    /// Forgets a fault that is over and draws the next one.
    fn turn_over(&mut self, config: &FleetConfig, us: i64) {
        while let Some(end_us) = self.fault.as_ref().map(|f| f.end_us).filter(|&end| end <= us) {
            let after = end_us.saturating_add(config.faults.recovery_us);
            self.fault = Fault::draw(&config.faults, self.kind, after, config.interval_us, &mut self.fault_rng);
            self.labelled = false;
        }
    }

    /// The label of a fault that has just begun.
    fn new_label(&mut self, us: i64, end_us: i64) -> Option<Label> {
        let fault = self.fault.as_ref().filter(|f| f.covers(us) && !self.labelled)?;
        self.labelled = true;
        let sensor = (fault.kind != FaultKind::Silence).then(|| self.kind.sensors().get(fault.sensor).map(|s| s.name)).flatten();
        Some(Label { device: self.name.clone(), sensor, kind: fault.kind, start_us: fault.start_us, end_us: fault.end_us.min(end_us) })
    }
}

/// A seeded fleet of physically plausible devices.
#[derive(Debug)]
pub struct Fleet {
    config: FleetConfig,
    devices: Vec<Device>,
    beat: u64,
    labels: Vec<Label>,
}

impl Fleet {
    /// A fleet at its beginning. An interval below a millisecond counts as one.
    #[must_use]
    pub fn new(mut config: FleetConfig) -> Self {
        config.interval_us = config.interval_us.max(1_000);
        let devices = (0..config.devices).map(|index| Device::new(&config, index)).collect();
        Self { config, devices, beat: 0, labels: Vec::new() }
    }

    /// Event time of the next beat, microseconds since the epoch.
    #[must_use]
    pub fn now_us(&self) -> i64 {
        let since = i64::try_from(self.beat).unwrap_or(i64::MAX).saturating_mul(self.config.interval_us);
        self.config.start_us.saturating_add(since)
    }

    /// Lets every device read its sensors once, in order of devices, and appends the readings to `out`. False, and nothing
    /// is appended, at the end of the fleet's time.
    pub fn step(&mut self, out: &mut Vec<Sample>) -> bool {
        let now_us = self.now_us();
        let end_us = self.config.end_us.unwrap_or(i64::MAX);
        if now_us >= end_us || now_us == i64::MAX {
            return false;
        }
        for device in &mut self.devices {
            let us = now_us + device.offset_us;
            device.turn_over(&self.config, us);
            self.labels.extend(device.new_label(us, end_us));
            let values = device.body.advance(self.config.interval_us as f64 / 1e6, us as f64 / 1e6, &mut device.rng);
            read_sensors(device, us, self.beat, &values, out);
        }
        self.beat += 1;
        true
    }

    /// The faults that have begun since this was last asked.
    pub fn take_labels(&mut self) -> Vec<Label> {
        std::mem::take(&mut self.labels)
    }
}

fn read_sensors(device: &mut Device, us: i64, beat: u64, values: &[f64; MAX_SENSORS], out: &mut Vec<Sample>) {
    let mut fault = device.fault.as_mut().filter(|f| f.covers(us));
    if fault.as_ref().is_some_and(|f| f.kind == FaultKind::Silence) {
        return;
    }
    for (number, (sensor, &healthy)) in device.kind.sensors().iter().zip(values).enumerate() {
        let value = match &mut fault {
            Some(fault) if fault.sensor == number => fault.apply(us, healthy, sensor.limit),
            _ => healthy,
        };
        let (device, topic) = (device.name.clone(), device.topic.clone());
        out.push(Sample { device, topic, sensor, beat, event_us: us, value, quality: 1.0 });
    }
}
