//! Lines as the reference job's generator makes them, in memory: mostly one shape, and the same shares of everything else.

use std::fmt::Write as _;
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
        let limit = text.len().min(from + BLOCK);
        let to = text[from..limit].iter().rposition(|b| *b == b'\n').map_or(limit, |end| from + end + 1);
        let mut entries = Vec::new();
        let mut start = 0;
        for line in text[from..to].split_inclusive(|b| *b == b'\n') {
            let len = line.strip_suffix(b"\n").unwrap_or(line).len() as u32;
            entries.push(PayloadEntry { offset: (from + start) as u64, start: start as u32, len, ingest_us: None });
            start += line.len();
        }
        blocks.push(PayloadBlock { data: text[from..to].to_vec().into(), entries, keys: None, topics: None });
        from = to;
    }
    blocks
}

/// The partitions of a run: `folder/p*.ndjson` where one is given, or made-up lines in the shape of one such file.
pub(crate) fn partitions(folder: Option<&Path>) -> Vec<Vec<PayloadBlock>> {
    let Some(folder) = folder else { return vec![blocks(&lines(250_000, 2500))] };
    let file = |number: usize| std::fs::read(folder.join(format!("p{number}.ndjson"))).ok();
    (0..).map_while(file).map(|text| blocks(&text)).collect()
}
