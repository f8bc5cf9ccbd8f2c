//! Lines as the reference job's generator makes them, in memory: mostly one shape, and the same shares of everything else.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use fieldstream_schemas::time::format_rfc3339;
use fieldstream_schemas::{PayloadBlock, PayloadEntry};

/// 2026-11-23T10:00:00Z, milliseconds.
const START_MS: i64 = 1_795_428_000_000;
/// Bytes that the `file` source reads at once.
const BLOCK: usize = 1 << 20;

/// A small generator (splitmix64): the same lines on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Any number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0 and 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// About normal, mean 0, deviation 1.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.share()).sum::<f64>() - 6.0
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[(self.next() % of.len() as u64) as usize]
    }
}

/// One partition of `count` lines of `devices` devices, two sensors each, a reading a second.
pub(crate) fn lines(count: u64, devices: u64) -> Vec<u8> {
    let mut random = Random(42);
    let series: Vec<(f64, f64)> = (0..devices * 2).map(|_| (15.0 + 15.0 * random.share(), 0.3 + 0.5 * random.share())).collect();
    let mut text = String::new();
    for number in 0..count {
        let at = number % (devices * 2);
        line(&mut text, &mut random, number, at, number / (devices * 2), devices * 2, series[at as usize]);
        text.push('\n');
    }
    text.into_bytes()
}

fn line(text: &mut String, random: &mut Random, id: u64, series: u64, tick: u64, all: u64, (mean, deviation): (f64, f64)) {
    let (device, sensor, start) = (series / 2, series % 2 + 1, text.len());
    let mut value = mean + deviation * random.normal() + 0.002 * tick as f64;
    let chance = random.share();
    if tick >= 30 && chance > 0.9995 {
        let sign = if random.next() & 1 == 0 { 1.0 } else { -1.0 };
        value += sign * deviation * (8.0 + 6.0 * random.share());
    }
    let ms = START_MS + tick as i64 * 1000 + (series * 1000 / all) as i64 + (random.next() % 2000) as i64;
    let mut time = format_rfc3339(ms * 1000);
    let mut value = format!("{}", (value * 100.0).round() / 100.0);
    let mut quality = format!("{}", (50.0 + 50.0 * random.share()).round() / 100.0);
    match chance {
        c if c < 0.002 => {
            time = random
                .pick(&["not-a-timestamp", "1970-01-01T00:00:00.000Z", "2099-01-01T00:00:00.000Z", "2026-13-45T10:00:00.000Z"])
                .into();
        }
        c if c < 0.007 => value = random.pick(&["999.9", "-60", "85.01", "-40.01"]).into(),
        c if c < 0.012 => quality = random.pick(&["0.49", "0.1", "0"]).into(),
        c if (0.024..0.0245).contains(&c) => value = "85".into(),
        c if (0.0245..0.025).contains(&c) => quality = "0.5".into(),
        _ => {}
    }
    let names = format!(r#""deviceId":"device-{device:07}","sensorId":"temp-{sensor:03}","sensorType":"temperature","timestamp":"{time}""#);
    // Writing to a String cannot fail.
    let _ = match chance {
        c if (0.013..0.014).contains(&c) => write!(text, r#"{{"id":"{id}",{names},"unit":"celsius","quality":{quality}}}"#),
        c if (0.014..0.019).contains(&c) => write!(
            text,
            r#"{{ "value": {value}, "quality": {quality}, "timestamp": "{time}", "unit": "celsius", "sensorType": "temperature", "sensorId": "temp-{sensor:03}", "deviceId": "device-{device:07}", "id": "{id}" }}"#
        ),
        c if (0.019..0.024).contains(&c) => write!(
            text,
            r#"{{"meta":{{"fw":"1.2.\"3","tags":["a","}}"]}},"id":"{id}",{names},"value":{value},"unit":"celsius","quality":{quality}}}"#
        ),
        _ => write!(text, r#"{{"id":"{id}",{names},"value":{value},"unit":"celsius","quality":{quality}}}"#),
    };
    if (0.012..0.013).contains(&chance) {
        text.truncate(start + 60 + (random.next() % 60) as usize);
    }
}

/// The lines as the `file` source hands them over: whole lines of about one MiB a block.
pub(crate) fn blocks(text: &[u8]) -> Vec<PayloadBlock> {
    let mut blocks = Vec::new();
    let mut from = 0;
    while from < text.len() {
        let block = block(text[from..text.len().min(from + BLOCK)].to_vec(), from as u64);
        from += block.data.len();
        blocks.push(block);
    }
    blocks
}

/// The whole lines of `text`, which begins at `offset`.
fn block(mut text: Vec<u8>, offset: u64) -> PayloadBlock {
    text.truncate(memchr::memrchr(b'\n', &text).map_or(text.len(), |end| end + 1));
    let mut entries = Vec::with_capacity(text.len() / 128);
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', &text) {
        entries.push(PayloadEntry { offset: offset + start as u64, start: start as u32, len: (end - start) as u32, ingest_us: None });
        start = end + 1;
    }
    PayloadBlock { data: text.into(), entries, ..PayloadBlock::default() }
}

/// Reads a file as the `file` source does and hands its blocks over.
pub(crate) fn read(file: &Path, mut each: impl FnMut(&PayloadBlock)) {
    let file = File::open(file).unwrap_or_else(|e| panic!("{e}"));
    let end = file.metadata().map_or(0, |m| m.len());
    let mut at = 0;
    while at < end {
        let mut text = vec![0; BLOCK.min((end - at) as usize)];
        file.read_exact_at(&mut text, at).unwrap_or_else(|e| panic!("{e}"));
        let block = block(text, at);
        at += block.data.len() as u64;
        each(&block);
    }
}
