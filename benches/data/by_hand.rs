//! The reference job as a person would write it for this one purpose: no ledger, no dead letters, no positions, no YAML.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Write as _;

use fieldstream_schemas::PayloadBlock;

const FIRST_MS: i64 = 1_795_392_000_000;
const LAST_MS: i64 = FIRST_MS + 86_400_000;
const WINDOW_MS: i64 = 10_000;
const LATENESS_MS: i64 = 5000;

/// What must agree with the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// Readings that passed all checks.
    pub(crate) valid: u64,
    /// Readings and lines that did not.
    pub(crate) rejected: u64,
    /// Alerts.
    pub(crate) alerts: u64,
    /// Windows.
    pub(crate) windows: u64,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    device_id: Cow<'a, str>,
    #[serde(borrow)]
    sensor_id: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    value: f64,
    quality: f64,
}

#[derive(Clone, Copy, Default)]
struct Ewma {
    mean: f64,
    variance: f64,
    count: u32,
}

impl Ewma {
    /// The score where it is an alert; judged before it is learned from.
    #[inline]
    fn step(&mut self, value: f64) -> Option<f64> {
        if self.count == 0 {
            *self = Self { mean: value, variance: 0.0, count: 1 };
            return None;
        }
        let delta = value - self.mean;
        let score = (self.count >= 30 && self.variance > 1e-9).then(|| delta / self.variance.sqrt());
        self.mean += 0.05 * delta;
        self.variance = 0.95 * (self.variance + 0.05 * delta * delta);
        self.count += 1;
        score.filter(|score| score.abs() > 4.0)
    }
}

#[derive(Clone, Copy)]
struct Window {
    start: i64,
    count: u64,
    min: f64,
    max: f64,
    sum: f64,
}

#[derive(Default)]
struct Device {
    sensors: Vec<(Box<str>, Ewma)>,
    open: Vec<Window>,
}

struct Job {
    devices: HashMap<Box<str>, Device, foldhash::fast::FixedState>,
    watermark: i64,
    closed_to: i64,
    alerts: Vec<u8>,
    answer: Answer,
    sums: f64,
}

/// Runs all blocks of one partition.
pub(crate) fn run(blocks: &[PayloadBlock]) -> Answer {
    let mut job = Job {
        devices: HashMap::default(),
        watermark: i64::MIN,
        closed_to: i64::MIN,
        alerts: Vec::new(),
        answer: Answer::default(),
        sums: 0.0,
    };
    for block in blocks {
        for index in 0..block.entries.len() {
            match sonic_rs::from_slice::<Line<'_>>(block.payload(index)) {
                Ok(line) => job.line(&line),
                Err(_) => job.answer.rejected += 1,
            }
        }
    }
    job.close(LAST_MS + 1_000_000);
    std::hint::black_box((job.sums, &job.alerts));
    job.answer
}

impl Job {
    #[inline]
    fn line(&mut self, line: &Line<'_>) {
        let ms = time(line.timestamp.as_bytes()).filter(|ms| (FIRST_MS..LAST_MS).contains(ms));
        let (Some(ms), true, true) = (ms, (-40.0..=85.0).contains(&line.value), line.quality >= 0.5) else {
            self.answer.rejected += 1;
            return;
        };
        self.answer.valid += 1;
        let device = match self.devices.get_mut(&*line.device_id) {
            Some(device) => device,
            None => self.devices.entry(line.device_id.as_ref().into()).or_default(),
        };
        let sensor = device.sensors.iter().position(|s| *s.0 == *line.sensor_id).unwrap_or_else(|| {
            device.sensors.push((line.sensor_id.as_ref().into(), Ewma::default()));
            device.sensors.len() - 1
        });
        let ewma = &mut device.sensors[sensor].1;
        let before = *ewma;
        if let Some(z) = ewma.step(line.value) {
            self.answer.alerts += 1;
            let (Line { id, device_id, sensor_id, timestamp, value, .. }, mean, std) = (line, before.mean, before.variance.sqrt());
            // Writing to a Vec cannot fail.
            let _ = writeln!(
                self.alerts,
                r#"{{"id":"{id}","deviceId":"{device_id}","sensorId":"{sensor_id}","timestamp":"{timestamp}","value":{value},"mean":{mean},"std":{std},"z":{z}}}"#
            );
        }
        let start = ms.div_euclid(WINDOW_MS) * WINDOW_MS;
        match device.open.iter_mut().find(|w| w.start == start) {
            Some(w) => {
                *w = Window { start, count: w.count + 1, min: w.min.min(line.value), max: w.max.max(line.value), sum: w.sum + line.value }
            }
            None => device.open.push(Window { start, count: 1, min: line.value, max: line.value, sum: line.value }),
        }
        if ms - LATENESS_MS > self.watermark {
            self.watermark = ms - LATENESS_MS;
            let to = self.watermark.div_euclid(WINDOW_MS) * WINDOW_MS;
            if to > self.closed_to {
                self.close(to);
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn close(&mut self, to: i64) {
        self.closed_to = to;
        for device in self.devices.values_mut() {
            device.open.retain(|w| {
                let done = w.start + WINDOW_MS <= to;
                self.answer.windows += u64::from(done);
                self.sums += if done { w.min + w.max + w.sum / w.count as f64 } else { 0.0 };
                !done
            });
        }
    }
}

/// Milliseconds of `YYYY-MM-DDTHH:MM:SS.mmmZ`.
#[inline]
fn time(text: &[u8]) -> Option<i64> {
    if text.len() != 24 || text[10] != b'T' || text[19] != b'.' || text[23] != b'Z' {
        return None;
    }
    if text[4] != b'-' || text[7] != b'-' || text[13] != b':' || text[16] != b':' {
        return None;
    }
    let number = |from: usize, len: usize| {
        let mut value = 0;
        for byte in &text[from..from + len] {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                return None;
            }
            value = value * 10 + i64::from(digit);
        }
        Some(value)
    };
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second, ms) = (number(11, 2)?, number(14, 2)?, number(17, 2)?, number(20, 3)?);
    let days = match month {
        2 if year % 4 == 0 && year % 100 != 0 || year % 400 == 0 => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if !(1..=12).contains(&month) || day < 1 || day > days || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = fieldstream_schemas::time::days_from_civil(year, month, day);
    Some(((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + ms)
}
