//! Mutates a corpus and checks what must hold for every decoder and every payload. The seed is fixed, so a failure repeats.
//!
//! `FIELDSTREAM_FUZZ_SECONDS` sets the time per format (default: about half a second), `FIELDSTREAM_FUZZ_SEED` another seed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::Array;
use bytes::Bytes;
use fieldstream_schemas::columns::name_at;
use fieldstream_schemas::decode::{DecodeConfig, Decoder};
use fieldstream_schemas::encode::JsonWriter;
use fieldstream_schemas::{Decoded, PayloadBlock, PayloadEntry, Readings};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Fragments that matter to one format or another.
const TOKENS: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\",
    b"\\u",
    b"\\ud83d",
    b"\\n",
    b"null",
    b"true",
    b"-0",
    b"1e400",
    b"0.1e-7",
    b"00",
    b"\n",
    b"\r\n",
    b" ",
    b"\xff",
    b"\xc3",
    b"\xf0\x9f\x98\x80",
    b"\x00",
    b"\"value\":",
    b"\"deviceId\":\"x\"",
    b"\"id\":null",
    b"\"timestamp\":\"2026-02-30T00:00:00.000Z\"",
    b"2026-11-23T10:00:00.000Z",
    b"18446744073709551616",
    b"9007199254740993",
    b"179769313486231580000000000000e280",
    b"\"quality\":\"good\"",
    b";",
    b"\"\"",
    b"\xff\xff\xff\xff",
];

/// SplitMix64 (Steele et al., 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn corpus(folder: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(folder);
    let mut files: Vec<_> = std::fs::read_dir(path).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files.iter().map(|f| std::fs::read(f).unwrap()).collect()
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(5) {
        let at = random.below(bytes.len() + 1);
        let end = (at + 1 + random.below(12)).min(bytes.len());
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 => drop(bytes.splice(at..at, TOKENS[random.below(TOKENS.len())].iter().copied())),
            3 => drop(bytes.splice(at..end.max(at), TOKENS[random.below(TOKENS.len())].iter().copied())),
            4 => drop(bytes.drain(at..end.max(at))),
            5 => bytes.truncate(at),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                bytes.extend_from_slice(&other[from..]);
            }
        }
    }
    bytes
}

fn block(payloads: &[Vec<u8>]) -> PayloadBlock {
    let mut data = Vec::new();
    let mut entries = Vec::new();
    for (n, payload) in payloads.iter().enumerate() {
        let ingest_us = if n % 3 == 0 { None } else { Some(1_795_428_000_000_000) };
        entries.push(PayloadEntry { offset: 10 + n as u64, start: data.len() as u32, len: payload.len() as u32, ingest_us });
        data.extend_from_slice(payload);
    }
    PayloadBlock { data: Bytes::from(data), entries, ..PayloadBlock::default() }
}

/// The fate of every reading of the payload at `offset`, in order.
fn fates(decoded: &Decoded, offset: u64) -> Vec<(u32, String)> {
    let writer = JsonWriter::new(&decoded.rows.schema());
    let mut fates = Vec::new();
    for (row, at) in decoded.positions.iter().enumerate().filter(|(_, at)| at.offset == offset) {
        let mut json = Vec::new();
        writer.write_row(&decoded.rows, row, &mut json);
        fates.push((at.row, String::from_utf8(json).expect("rows are UTF-8")));
    }
    for reject in decoded.rejects.iter().filter(|r| r.position.offset == offset) {
        fates.push((reject.position.row, format!("{} {} {:?}", reject.code, reject.message, reject.payload)));
    }
    fates.sort();
    fates
}

/// What must hold for any decoder and any payload.
fn check(config: &DecodeConfig, decoder: &mut Decoder, payloads: &[Vec<u8>]) -> Decoded {
    let block = block(payloads);
    let decoded = decoder.decode(&block);
    assert!(Readings::new(&decoded.rows).is_some());
    assert_eq!(decoded.rows.num_rows(), decoded.positions.len());
    assert!(decoded.positions.is_sorted());
    for (n, (entry, payload)) in block.entries.iter().zip(payloads).enumerate() {
        let fates = fates(&decoded, entry.offset);
        assert!(!fates.is_empty(), "a payload vanished: {payload:?}");
        assert!(fates.iter().map(|f| f.0).eq(0..fates.len() as u32), "each reading has one fate: {payload:?}");
        let alone = PayloadBlock { entries: vec![block.entries[n]], ..block.clone() };
        let fresh = Decoder::new(config).unwrap().decode(&alone);
        assert_eq!(fates, self::fates(&fresh, entry.offset), "neighbours and caches show: {payload:?}");
    }
    for reject in &decoded.rejects {
        let payload = &payloads[(reject.position.offset - 10) as usize];
        let within = reject.payload.is_empty() || payload.windows(reject.payload.len()).any(|w| w == reject.payload);
        assert!(within, "a reject carries bytes of its payload: {reject:?}");
    }
    decoded
}

/// The time each format gets.
fn span() -> Duration {
    let seconds = std::env::var("FIELDSTREAM_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(0.5))
}

/// Mutates until the time is over; returns payloads, rows and rejects seen.
fn fuzz(config: &str, folder: &str, mut extra: impl FnMut(&[Vec<u8>], &Decoded)) -> [usize; 3] {
    let config: DecodeConfig = serde_json::from_str(config).unwrap();
    fuzz_seeds(&config, &corpus(folder), &mut extra)
}

fn fuzz_seeds(config: &DecodeConfig, seeds: &[Vec<u8>], extra: &mut impl FnMut(&[Vec<u8>], &Decoded)) -> [usize; 3] {
    let seed = std::env::var("FIELDSTREAM_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(42);
    let (mut random, mut decoder, end) = (Random(seed), Decoder::new(config).unwrap(), Instant::now() + span());
    let mut seen = [0; 3];
    check(config, &mut decoder, seeds);
    while Instant::now() < end {
        let payloads: Vec<_> = (0..=random.below(8)).map(|_| mutate(&mut random, seeds)).collect();
        let decoded = check(config, &mut decoder, &payloads);
        extra(&payloads, &decoded);
        for (count, more) in seen.iter_mut().zip([payloads.len(), decoded.rows.num_rows(), decoded.rejects.len()]) {
            *count += more;
        }
    }
    seen
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Stamp {
    Text(#[allow(dead_code)] String),
    Number(#[allow(dead_code)] f64),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Plain {
    id: String,
    device_id: String,
    sensor_id: String,
    sensor_type: String,
    #[allow(dead_code)]
    timestamp: Stamp,
    value: f64,
    unit: String,
    quality: f64,
}

/// One line that is no array: accepted or refused, and read, as a derived struct would.
fn same_as_derived(payload: &[u8], offset: u64, decoded: &Decoded) {
    let first = payload.trim_ascii().first();
    if payload.contains(&b'\n') || first == Some(&b'[') {
        return;
    }
    let reject = decoded.rejects.iter().find(|r| r.position.offset == offset);
    // From bytes, serde_json would not look at the encoding of strings that it skips.
    let text = String::from_utf8_lossy(payload);
    let derived = if text.as_bytes() == payload { serde_json::from_str::<Plain>(&text) } else { Err(serde::de::Error::custom("encoding")) };
    match derived {
        Err(error) => assert_eq!(reject.map(|r| r.code), Some("parse"), "{error}: {}", String::from_utf8_lossy(payload)),
        Ok(plain) => {
            let Some(row) = decoded.positions.iter().position(|p| p.offset == offset) else {
                assert_eq!(reject.map(|r| r.code), Some("timestamp"), "{}", String::from_utf8_lossy(payload));
                return;
            };
            let rows = Readings::new(&decoded.rows).unwrap();
            let names: [&dyn Array; 4] = [rows.device_id, rows.sensor_id, rows.sensor_type, rows.unit];
            let names = names.map(|column| name_at(column, row));
            let expected = [&plain.device_id, &plain.sensor_id, &plain.sensor_type, &plain.unit].map(|t| Some(t.as_str()));
            assert_eq!((rows.id.value(row), names), (plain.id.as_str(), expected));
            near(rows.value.value(row), plain.value, payload);
            near(rows.score.value(row), plain.quality, payload);
        }
    }
}

/// By default serde_json rounds more than once, and more coarsely among the subnormal numbers; ours are tested to be exact elsewhere.
fn near(ours: f64, theirs: f64, payload: &[u8]) {
    let close = (ours - theirs).abs() <= 4.0 * f64::EPSILON * ours.abs() || ours.abs() < 1e-300 && theirs.abs() < 1e-300;
    assert!(close, "{ours:e} is not {theirs:e}: {}", String::from_utf8_lossy(payload));
}

#[test]
fn json_is_read_as_a_derived_struct_would() {
    let config = r#"{"required": ["id", "sensorType", "timestamp", "unit", "quality"], "value": "number"}"#;
    let seen = fuzz(config, "json", |payloads, decoded| {
        for (n, payload) in payloads.iter().enumerate() {
            same_as_derived(payload, 10 + n as u64, decoded);
        }
    });
    println!("json strict: {seen:?} payloads, rows, rejects");
}

#[test]
fn json_loses_no_line() {
    let seen = fuzz(r#"{"unknown": "tags"}"#, "json", |payloads, decoded| {
        for (n, payload) in payloads.iter().enumerate() {
            let lines = payload.split(|b| *b == b'\n').filter(|l| !l.trim_ascii().is_empty()).count();
            let settled = fates(decoded, 10 + n as u64).len();
            let one = payload.trim_ascii().first() == Some(&b'[') || serde_json::from_slice::<IgnoredAny>(payload).is_ok();
            assert!(one || settled >= lines, "{settled} fates for {lines} lines: {}", String::from_utf8_lossy(payload));
        }
    });
    println!("json tags: {seen:?} payloads, rows, rejects");
}

#[test]
fn json_by_paths_and_wide() {
    let config = r#"{"fields": {"device": "meta.fw", "sensor": "meta.sensor"}, "value": "any"}"#;
    println!("json paths: {:?} payloads, rows, rejects", fuzz(config, "json", |_, _| {}));
    println!("json wide: {:?} payloads, rows, rejects", fuzz(r#"{"wide": true, "device": "=d"}"#, "json", |_, _| {}));
}

#[test]
fn canonical() {
    println!("canonical: {:?} payloads, rows, rejects", fuzz(r#"{"format": "canonical"}"#, "canonical", |_, _| {}));
}

#[test]
fn senml() {
    println!("senml: {:?} payloads, rows, rejects", fuzz(r#"{"format": "senml_json"}"#, "senml", |_, _| {}));
}

#[test]
fn csv() {
    println!("csv: {:?} payloads, rows, rejects", fuzz(r#"{"format": "csv", "unknown": "tags"}"#, "csv", |_, _| {}));
    println!("csv wide: {:?} payloads, rows, rejects", fuzz(r#"{"format": "csv", "wide": true, "device": "=d"}"#, "csv", |_, _| {}));
}

#[test]
fn arrow_ipc() {
    println!("arrow: {:?} payloads, rows, rejects", fuzz(r#"{"format": "arrow_ipc"}"#, "arrow", |_, _| {}));
}
