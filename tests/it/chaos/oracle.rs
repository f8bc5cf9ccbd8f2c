//! What must be there in the end, worked out from what was sent in the plainest way, and compared row by row.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::field::{ALERTS, Field, READINGS};
use super::readings::{self, Kind};
use super::worker::sum;
use super::{kafka_feed, mqtt_feed};

/// Width of the windows, milliseconds.
const SPAN_MS: u64 = 10_000;

/// How many of each there were.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) rows: u64,
    pub(crate) out_of_range: u64,
    pub(crate) malformed: u64,
    /// Dead letters of malformed payloads that came again.
    pub(crate) malformed_again: u64,
    pub(crate) windows: u64,
    pub(crate) revisions: u64,
    pub(crate) alerts: u64,
    /// Alerts that came more than once, with the same id.
    pub(crate) alerts_again: u64,
}

/// Readings of `each` of `devices` that are of a kind.
fn of_kind(devices: u64, each: u64, wanted: Kind) -> impl Iterator<Item = (u64, u64)> {
    (0..devices).flat_map(move |device| (0..each).map(move |seq| (device, seq))).filter(move |(d, s)| readings::kind(*d, *s) == wanted)
}

/// Good readings of the fleet on MQTT.
pub(crate) fn good_of_mqtt(each: u64) -> u64 {
    of_kind(mqtt_feed::DEVICES, each, Kind::Good).count() as u64
}

/// Compares as multisets, and says what differs first.
fn equal<T: Ord + Clone + Debug>(what: &str, mut found: Vec<T>, mut wanted: Vec<T>) {
    found.sort_unstable();
    wanted.sort_unstable();
    if found == wanted {
        return;
    }
    let mut counts: BTreeMap<T, i64> = BTreeMap::new();
    found.iter().for_each(|row| *counts.entry(row.clone()).or_default() += 1);
    wanted.iter().for_each(|row| *counts.entry(row.clone()).or_default() -= 1);
    let few = |sign: i64| counts.iter().filter(|(_, n)| n.signum() == sign).take(10).collect::<Vec<_>>();
    let sum = |sign: i64| counts.values().filter(|n| n.signum() == sign).sum::<i64>();
    panic!("{what}: {} missing, such as {:?}; {} too many, such as {:?}", -sum(-1), few(-1), sum(1), few(1));
}

/// Rows of a table, as `device, number, value`.
fn rows(field: &Field, table: &str) -> Vec<(u64, u64, String)> {
    let rows = field.database.rows(&format!("SELECT id || '|' || value FROM {table} WHERE device_id <> 'probe'"));
    let split = |row: &String| {
        let (id, value) = row.split_once('|')?;
        let (device, seq) = readings::parse_id(id)?;
        Some((device, seq, value.to_owned()))
    };
    rows.iter().map(|row| split(row).unwrap_or_else(|| panic!("{table}: {row} was never sent"))).collect()
}

fn wanted_rows(readings: impl Iterator<Item = (u64, u64)>) -> Vec<(u64, u64, String)> {
    readings.map(|(device, seq)| (device, seq, readings::value(device, seq).to_string())).collect()
}

/// Lines of a file of JSON objects.
fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(text.is_empty() || text.ends_with('\n'), "{} ends with a whole row", path.display());
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {line}: {e}", path.display()))).collect()
}

/// Dead letters of a file: no position twice. Gives what was refused by code.
fn dead_letters(dir: &Path) -> BTreeMap<String, Vec<(u64, u64)>> {
    let mut places = BTreeSet::new();
    let mut found: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::from([("parse".to_owned(), vec![]), ("range".to_owned(), vec![])]);
    for letter in lines(&dir.join("dead-letters.ndjson")) {
        let place = (letter["partition"].as_u64(), letter["offset"].as_u64(), letter["row"].as_u64());
        assert!(places.insert(place), "a dead letter is there twice: {letter}");
        let payload = STANDARD.decode(letter["payload_base64"].as_str().expect("a payload")).expect("base64");
        let reading = readings::parse_payload(&payload).unwrap_or_else(|| panic!("never sent: {letter}"));
        found.entry(letter["code"].as_str().expect("a code").to_owned()).or_default().push(reading);
    }
    assert_eq!(found.len(), 2, "only two codes are expected: {:?}", found.keys());
    found
}

/// (device, event time in ms, state, value) of all alerts: the detector written down once more, for good readings in order.
fn alerts(devices: u64, start_ms: u64, each: u64) -> Vec<(u64, u64, String, String)> {
    let mut out = Vec::new();
    for device in 0..devices {
        let (mut count, mut mean, mut variance, mut raised) = (0, 0.0, 0.0_f64, false);
        for seq in (0..each).filter(|seq| readings::kind(device, *seq) == Kind::Good) {
            let value = readings::value(device, seq);
            let distance = value - mean;
            let wrong = count >= 30 && variance > 1e-9 && (distance / variance.sqrt()).abs() > 5.0;
            if wrong != raised {
                raised = wrong;
                let state = if wrong { "raised" } else { "cleared" };
                out.push((device, readings::time_ms(start_ms, seq), state.to_owned(), value.to_string()));
            }
            if count == 0 {
                mean = value;
            } else {
                mean += 0.05 * distance;
                variance = 0.95 * (variance + 0.05 * distance * distance);
            }
            count += 1;
        }
    }
    out
}

/// MQTT: every acknowledged reading once in the table or in the dead letters. A malformed payload has nothing to tell it from
/// its repetition, so that one that was sent again may be rejected again, at another place of the journal.
pub(crate) fn check_mqtt(field: &Field, dir: &Path, start_ms: u64, sent: mqtt_feed::Sent, ledger: &Value) -> Counts {
    let (devices, each) = (mqtt_feed::DEVICES, sent.each);
    equal("rows from MQTT", rows(field, "mqtt_rows"), wanted_rows(of_kind(devices, each, Kind::Good)));
    let letters = dead_letters(dir);
    equal("readings out of range from MQTT", letters["range"].clone(), of_kind(devices, each, Kind::OutOfRange).collect());
    let malformed: BTreeSet<(u64, u64)> = letters["parse"].iter().copied().collect();
    equal("malformed payloads from MQTT", malformed.iter().copied().collect(), of_kind(devices, each, Kind::Malformed).collect());
    let (windows, revisions) = check_windows(field, dir, start_ms, each);
    let sql = "SELECT device_id || '|' || (extract(epoch FROM ts) * 1000)::bigint || '|' || state || '|' || value FROM mqtt_alerts";
    let found = field.database.rows(sql).iter().map(|row| split_alert(row)).collect();
    let wanted = alerts(devices, start_ms, each);
    let counts = Counts {
        sent: devices * each,
        rows: good_of_mqtt(each),
        out_of_range: letters["range"].len() as u64,
        malformed: malformed.len() as u64,
        malformed_again: (letters["parse"].len() - malformed.len()) as u64,
        windows,
        revisions,
        alerts: wanted.len() as u64,
        alerts_again: 0,
    };
    equal("alerts from MQTT", found, wanted);
    // The probe's reading is one row more.
    assert_eq!(ledger["settled"], counts.rows + 1, "{ledger}");
    assert_eq!(ledger["dead_lettered"]["range"], counts.out_of_range, "{ledger}");
    assert_eq!(ledger["dead_lettered"]["parse"], counts.malformed + counts.malformed_again, "{ledger}");
    counts
}

fn split_alert(row: &str) -> (u64, u64, String, String) {
    let parts: Vec<&str> = row.split('|').collect();
    let device = parts[0].trim_start_matches('d').parse().expect("a device");
    (device, parts[1].parse().expect("a time"), parts[2].to_owned(), parts[3].to_owned())
}

/// Count, lowest and highest value of a window.
type Span = (u64, String, String);

/// Each window once in the table; a window that silence closed early is corrected in the file, reading by reading, and its last
/// correction is right.
fn check_windows(field: &Field, dir: &Path, start_ms: u64, each: u64) -> (u64, u64) {
    let mut wanted: BTreeMap<(u64, u64), (u64, f64, f64)> = BTreeMap::new();
    for (device, seq) in of_kind(mqtt_feed::DEVICES, each, Kind::Good) {
        let (ms, value) = (readings::time_ms(start_ms, seq), readings::value(device, seq));
        let span = wanted.entry((device, ms / SPAN_MS * SPAN_MS)).or_insert((0, f64::INFINITY, f64::NEG_INFINITY));
        *span = (span.0 + 1, span.1.min(value), span.2.max(value));
    }
    let mut found: BTreeMap<(u64, u64), Span> = BTreeMap::new();
    for row in spans(field) {
        let parts: Vec<&str> = row.split('|').collect();
        let key = (parts[0].trim_start_matches('d').parse().expect("a device"), parts[1].parse().expect("a time"));
        let span = (parts[2].parse().expect("a count"), parts[3].to_owned(), parts[4].to_owned());
        assert!(found.insert(key, span).is_none(), "a window is there twice: {row}");
    }
    let windows = found.len() as u64;
    let mut revisions = 0;
    for row in lines(&dir.join("revised.ndjson")).iter().filter(|row| row["deviceId"] != "probe") {
        let device = row["deviceId"].as_str().expect("a device").trim_start_matches('d').parse().expect("a number");
        let start = row["window_start"].as_str().expect("a time");
        let start = fieldstream_schemas::time::parse_rfc3339(start.as_bytes()).expect("a time") as u64 / 1000;
        let number = |name: &str| row[name].as_f64().expect("a number").to_string();
        let span = (row["readings"].as_u64().expect("a count"), number("lowest"), number("highest"));
        let before = found.get_mut(&(device, start)).unwrap_or_else(|| panic!("corrected and never told: {row}"));
        assert_eq!(span.0, before.0 + 1, "a correction is missing or there twice: {row} after {before:?}");
        *before = span;
        revisions += 1;
    }
    let wanted = wanted.into_iter().map(|(key, (count, low, high))| (key, (count, low.to_string(), high.to_string()))).collect();
    equal("windows", found.into_iter().collect::<Vec<((u64, u64), Span)>>(), wanted);
    (windows, revisions)
}

fn spans(field: &Field) -> Vec<String> {
    let sql = "SELECT device_id || '|' || (extract(epoch FROM window_start) * 1000)::bigint || '|' || readings || '|' || lowest || '|' || highest \
               FROM mqtt_spans WHERE device_id <> 'probe'";
    field.database.rows(sql)
}

/// Windows that must have been told of when every device is silent.
pub(crate) fn windows_of_mqtt(start_ms: u64, each: u64) -> u64 {
    let good = of_kind(mqtt_feed::DEVICES, each, Kind::Good);
    good.map(|(device, seq)| (device, readings::time_ms(start_ms, seq) / SPAN_MS)).collect::<BTreeSet<_>>().len() as u64
}

/// Kafka: every record of the topic once in the table or in the dead letters, every alert once.
pub(crate) fn check_kafka(field: &Field, start_ms: u64, each: u64, ledgers: &[Value]) -> Counts {
    let devices = kafka_feed::DEVICES;
    let all = || (0..devices).flat_map(|device| (0..each).map(move |seq| (device, seq)));
    let topic = field.topic(READINGS).iter().map(|(_, payload)| readings::parse_payload(payload).expect("a reading")).collect();
    equal("records in the topic", topic, all().collect());
    equal("rows from Kafka", rows(field, "kafka_rows"), wanted_rows(of_kind(devices, each, Kind::Good)));
    let letters = dead_letters(&field.shared());
    equal("readings out of range from Kafka", letters["range"].clone(), of_kind(devices, each, Kind::OutOfRange).collect());
    equal("malformed payloads from Kafka", letters["parse"].clone(), of_kind(devices, each, Kind::Malformed).collect());
    let mut ids: BTreeMap<String, (u64, u64, String, String)> = BTreeMap::new();
    let records = field.topic(ALERTS);
    for (key, value) in &records {
        let alert: Value = serde_json::from_slice(value).expect("JSON");
        assert_eq!(alert["deviceId"], key.as_str(), "{alert}");
        let time = alert["timestamp"].as_str().and_then(|t| fieldstream_schemas::time::parse_rfc3339(t.as_bytes())).expect("a time");
        let device = key.trim_start_matches('d').parse().expect("a device");
        let state = alert["state"].as_str().expect("a state").to_owned();
        let value = alert["value"].as_f64().expect("a value").to_string();
        let row = (device, time as u64 / 1000, state, value);
        let before = ids.insert(alert["id"].as_str().expect("an id").to_owned(), row.clone());
        assert!(before.is_none_or(|before| before == row), "two alerts with one id: {alert}");
    }
    let wanted = alerts(devices, start_ms, each);
    let counts = Counts {
        sent: devices * each,
        rows: of_kind(devices, each, Kind::Good).count() as u64,
        out_of_range: letters["range"].len() as u64,
        malformed: letters["parse"].len() as u64,
        alerts: wanted.len() as u64,
        alerts_again: (records.len() - ids.len()) as u64,
        ..Counts::default()
    };
    equal("alerts from Kafka", ids.into_values().collect(), wanted);
    assert_eq!(counts.alerts_again, 0, "the topic of alerts is written exactly once");
    let accounts = ["/received", "/settled", "/dead_lettered/range", "/dead_lettered/parse"].map(|pointer| sum(ledgers, pointer));
    assert_eq!(accounts, [counts.sent, counts.rows, counts.out_of_range, counts.malformed], "{ledgers:?}");
    counts
}
