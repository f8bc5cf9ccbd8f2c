//! The sensor-alerts job in the plainest way: hash maps, one line after the other. What the engine must agree with.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

use crate::fleet::{DAY_MS, PARTITIONS};

/// An alert: everything but its id is compared.
#[derive(Clone, Debug)]
pub(crate) struct Alert {
    pub(crate) device: String,
    pub(crate) sensor: String,
    pub(crate) timestamp: String,
    pub(crate) value: f64,
    pub(crate) mean: f64,
    pub(crate) std: f64,
    pub(crate) z: f64,
}

/// A window of a device.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) count: u64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) sum: f64,
}

/// What must come out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) received: u64,
    pub(crate) valid: u64,
    /// By id of the reading.
    pub(crate) alerts: HashMap<String, Alert>,
    /// By device and start, milliseconds since the epoch.
    pub(crate) windows: HashMap<(String, i64), Window>,
    /// Code and bytes of what is rejected, by partition and byte offset of the line.
    pub(crate) rejects: BTreeMap<(u32, u64), (&'static str, Vec<u8>)>,
}

#[derive(Default)]
struct Track {
    n: u64,
    mean: f64,
    var: f64,
}

/// Milliseconds of the day for a time of 2026-11-23 in exactly the form `2026-11-23THH:MM:SS.mmmZ`.
fn ms_of_day(time: &str) -> Option<i64> {
    let clock = time.strip_prefix("2026-11-23T")?.strip_suffix('Z').filter(|c| c.len() == 12)?;
    let part = |from: usize, to: usize| clock.get(from..to)?.parse::<i64>().ok();
    let (h, m, s, ms) = (part(0, 2)?, part(3, 5)?, part(6, 8)?, part(9, 12)?);
    (h < 24 && m < 60 && s < 60).then_some(((h * 60 + m) * 60 + s) * 1000 + ms)
}

/// Reads the files of `dir` and does the job.
pub(crate) fn answer(dir: &Path) -> Answer {
    let mut answer = Answer::default();
    let mut tracks: HashMap<(String, String), Track> = HashMap::new();
    for partition in PARTITIONS {
        let bytes = std::fs::read(dir.join(format!("p{partition}.ndjson"))).expect("the input is there");
        let mut offset = 0;
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            answer.received += 1;
            if let Err(code) = one(text, &mut tracks, &mut answer) {
                answer.rejects.insert((partition, offset), (code, text.to_vec()));
            }
            offset += line.len() as u64;
        }
    }
    answer
}

fn one(line: &[u8], tracks: &mut HashMap<(String, String), Track>, answer: &mut Answer) -> Result<(), &'static str> {
    let object: Value = serde_json::from_slice(line).map_err(|_| "parse")?;
    let text = |name: &str| object[name].as_str().map(str::to_owned).ok_or("parse");
    let number = |name: &str| object[name].as_f64().ok_or("parse");
    let (id, device, sensor, timestamp) = (text("id")?, text("deviceId")?, text("sensorId")?, text("timestamp")?);
    let (value, quality) = (number("value")?, number("quality")?);
    text("unit")?;
    text("sensorType")?;
    let ms = ms_of_day(&timestamp).ok_or("timestamp")?;
    if !(-40.0..=85.0).contains(&value) {
        return Err("range");
    }
    if quality < 0.5 {
        return Err("quality");
    }
    answer.valid += 1;
    let start = DAY_MS + ms / 10_000 * 10_000;
    let window = answer.windows.entry((device.clone(), start)).or_insert(Window { count: 0, min: value, max: value, sum: 0.0 });
    window.count += 1;
    window.min = window.min.min(value);
    window.max = window.max.max(value);
    window.sum += value;

    let track = tracks.entry((device.clone(), sensor.clone())).or_default();
    if track.n == 0 {
        *track = Track { n: 1, mean: value, var: 0.0 };
        return Ok(());
    }
    let distance = value - track.mean;
    let std = track.var.sqrt();
    if track.n >= 30 && track.var > 1e-9 && (distance / std).abs() > 4.0 {
        answer.alerts.insert(id, Alert { device, sensor, timestamp, value, mean: track.mean, std, z: distance / std });
    }
    track.mean += 0.05 * distance;
    track.var = 0.95 * (track.var + 0.05 * distance * distance);
    track.n += 1;
    Ok(())
}
