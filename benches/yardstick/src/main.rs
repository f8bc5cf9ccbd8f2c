//! The reference job as a person would write it for this one purpose: no ledger, no dead letters, no positions, no YAML.
//!
//! `fieldstream-yardstick DIR` reads `DIR/p*.ndjson`, one after the other, and prints the answer and its CPU nanoseconds.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

const FIRST_MS: i64 = 1_795_392_000_000;
const LAST_MS: i64 = FIRST_MS + 86_400_000;
const WINDOW_MS: i64 = 10_000;
const LATENESS_MS: i64 = 5000;

/// What must agree with the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Answer {
    /// Readings that passed all checks.
    valid: u64,
    /// Readings and lines that did not.
    rejected: u64,
    /// Alerts.
    alerts: u64,
    /// Windows.
    windows: u64,
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

fn main() -> io::Result<()> {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("a folder with p0.ndjson, p1.ndjson ... is needed");
        return Ok(());
    };
    let start = cpu_ns()?;
    let mut answer = Answer::default();
    for number in 0.. {
        let path = Path::new(&folder).join(format!("p{number}.ndjson"));
        if !path.exists() {
            break;
        }
        let part = run(File::open(path)?)?;
        answer.valid += part.valid;
        answer.rejected += part.rejected;
        answer.alerts += part.alerts;
        answer.windows += part.windows;
    }
    let Answer { valid, rejected, alerts, windows } = answer;
    println!("{valid} {rejected} {alerts} {windows} {}", cpu_ns()? - start);
    Ok(())
}

/// CPU nanoseconds this thread has used. Yielding first makes the kernel bring its count up to date.
fn cpu_ns() -> io::Result<u64> {
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns = stat.split(' ').next().and_then(|ns| ns.parse().ok());
    ns.ok_or_else(|| io::Error::other("the kernel does not tell CPU time in schedstat"))
}

/// Runs one partition, in blocks of whole lines.
fn run(mut file: File) -> io::Result<Answer> {
    let mut job =
        Job { devices: HashMap::default(), watermark: i64::MIN, closed_to: i64::MIN, alerts: Vec::new(), answer: Answer::default(), sums: 0.0 };
    let (mut block, mut filled) = (vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut block[filled..])?;
        if read == 0 {
            break;
        }
        filled += read;
        let Some(end) = memchr::memrchr(b'\n', &block[..filled]) else { continue };
        let mut from = 0;
        while from <= end {
            let to = from + memchr::memchr(b'\n', &block[from..]).unwrap_or(filled - from);
            match sonic_rs::from_slice::<Line<'_>>(&block[from..to]) {
                Ok(line) => job.line(&line),
                Err(_) => job.answer.rejected += 1,
            }
            from = to + 1;
        }
        block.copy_within(end + 1..filled, 0);
        filled -= end + 1;
    }
    job.close(LAST_MS + 1_000_000);
    std::hint::black_box((job.sums, &job.alerts));
    Ok(job.answer)
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
    Some(((days_from_civil(year, month, day) * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + ms)
}

/// Days since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let (era, in_era) = (y.div_euclid(400), y.rem_euclid(400));
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + in_era * 365 + in_era / 4 - in_era / 100 + day_of_year - 719_468
}
