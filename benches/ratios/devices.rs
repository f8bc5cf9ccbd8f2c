//! Bar: a million device actors in memory at 512 bytes each or less, with threshold, EWMA and trend.

use std::fmt::Write as _;

use fieldstream_schemas::time::format_rfc3339;

use crate::reference::verdict;
use crate::{engine, lines};

const DEVICES: u64 = 1_000_000;
const READINGS: u64 = 6;
const START_US: i64 = 1_795_428_000_000_000;
const BAR: u64 = 512;

const PIPELINE: &str = r#"
version: 1
pipeline: devices
sources:
  readings:
    file: { path: "*.ndjson" }
operators:
  hot:
    detect: { threshold: { above: 90, deadband: 2 } }
    inputs: [readings]
  odd:
    detect: { ewma: { alpha: 0.05, z: 6 } }
    inputs: [readings]
  wear:
    predict: { trend_to_limit: { limit: 90, lookback: 8s, buckets: 4 } }
    inputs: [readings]
sinks:
  out:
    blackhole:
    inputs: [hot, odd, wear]
discard: [readings.rejected, hot.rejected, odd.rejected, wear.rejected]
"#;

/// A field of `/proc/self/status`, bytes.
fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix(field));
    line.and_then(|l| l.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() * 1024
}

/// Prints the bar's line.
pub(crate) fn run() {
    let spec = engine::plan(PIPELINE, &[]);
    let mut random = lines::Random(3);
    let mut text = String::new();
    let mut feed = |partition: &mut fieldstream_runtime::partition::Partition, devices: std::ops::Range<u64>, reading: u64| {
        text.clear();
        for device in devices {
            let (time, value) = (format_rfc3339(START_US + reading as i64 * 2_000_000), 20.0 + random.normal());
            // Writing to a String cannot fail.
            let _ = writeln!(text, r#"{{"deviceId":"device-{device:07}","sensorId":"temp-001","timestamp":"{time}","value":{value:.2}}}"#);
        }
        for block in lines::blocks(text.as_bytes()) {
            engine::turn(partition, &block);
        }
    };
    // What the first turns take once (planned expressions, tables, the allocator's arenas) is no device's.
    feed(&mut engine::partition(&spec), 0..1000, 0);
    let before = status("VmRSS");
    let mut partition = engine::partition(&spec);
    for reading in 0..READINGS {
        for first in (0..DEVICES).step_by(8000) {
            feed(&mut partition, first..first + 8000, reading);
        }
    }
    let (resident, peak) = (status("VmRSS") - before, status("VmHWM") - before);
    let (active, state) = (partition.slots().active_devices() as u64, partition.state_bytes() as u64);
    assert_eq!((active, partition.totals().settled), (DEVICES, DEVICES * READINGS), "every device is there, every reading settled");
    println!("\n{active} devices with threshold, EWMA and trend over 4 buckets, {READINGS} readings each");
    println!(
        "  resident {} bytes a device (operators' state {}; highest while growing {})",
        resident / active,
        state / active,
        peak / active
    );
    println!("  bar {BAR} {}", verdict(resident <= BAR * active));
}
