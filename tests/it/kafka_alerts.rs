//! `kafka-alerts.yaml`, with all readings into a database too, against a real Kafka and a real PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fleet::Dice;
use crate::node::{Node, fieldstream};
use crate::services::{self, Control, Database, service};
use crate::topics::{self, Record};

const PIPELINE: &str = "kafka-alerts";
const DEVICES: u64 = 40;
const PARTITIONS: i32 = 4;

struct Rig {
    dir: TempDir,
    pipeline: PathBuf,
    name: String,
    brokers: String,
    database: Database,
    start_ms: u64,
    /// Rows that must be in the table: `device|id|value`.
    good: BTreeSet<String>,
    /// Payloads that cannot be decoded.
    malformed: BTreeSet<Vec<u8>>,
    /// Readings out of range, by id.
    refused: BTreeSet<String>,
    /// Devices with a spike, which must raise one alarm each.
    spiked: BTreeSet<String>,
}

impl Rig {
    fn new() -> Option<Self> {
        let brokers = service("FIELDSTREAM_TEST_KAFKA")?;
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let database = Database::new(&name)?;
        let dir = tempfile::tempdir().expect("a directory");
        let pipeline = variant(&name, dir.path(), &database.url());
        for (topic, partitions) in [("readings", PARTITIONS), ("alerts", 2), ("dlq", 1)] {
            topics::create(&brokers, &format!("{name}.{topic}"), partitions);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64;
        let (good, malformed, refused, spiked) = Default::default();
        Some(Self { dir, pipeline, name, brokers, database, start_ms: now - 7_200_000, good, malformed, refused, spiked })
    }

    fn topic(&self, kind: &str) -> String {
        format!("{}.{kind}", self.name)
    }

    fn node(&self) -> Node {
        let mut command: Command = fieldstream();
        command.arg("run").arg(&self.pipeline).env("KAFKA_BROKERS", &self.brokers);
        command.env("KAFKA_TOPIC", self.topic("readings")).env("KAFKA_ALERTS", self.topic("alerts")).env("KAFKA_DLQ", self.topic("dlq"));
        Node::start(command, PIPELINE, self.dir.path())
    }

    /// Readings of the seconds `from..to`. Every fourth device has a spike at second 45.
    fn produce(&mut self, from: u64, to: u64) {
        let mut records: Vec<Record> = Vec::new();
        for second in from..to {
            for number in 0..DEVICES {
                let (device, id) = (format!("d{number}"), format!("d{number}-{second}"));
                let spike = second == 45 && number % 4 == 0;
                let value = if spike { 90.0 } else { 20.0 + (second % 2) as f64 + number as f64 / 16.0 };
                if spike {
                    self.spiked.insert(device.clone());
                }
                self.good.insert(format!("{device}|{id}|{value}"));
                records.push((device.clone(), self.reading(&device, &id, second * 1000, value)));
                if (second + number) % 97 == 0 {
                    let payload = format!(r#"{{"id":"{id}","deviceId":"{device}""#).into_bytes();
                    self.malformed.insert(payload.clone());
                    records.push((device.clone(), payload));
                }
                if (second + number) % 89 == 0 {
                    let id = format!("{id}-high");
                    let payload = self.reading(&device, &id, second * 1000 + 500, 2e6);
                    self.refused.insert(id);
                    records.push((device, payload));
                }
            }
        }
        topics::produce(&self.brokers, &self.topic("readings"), &records);
    }

    fn reading(&self, device: &str, id: &str, ms: u64, value: f64) -> Vec<u8> {
        let timestamp = self.start_ms + ms;
        let reading = json!({
            "id": id, "deviceId": device, "sensorId": "t", "sensorType": "temperature",
            "timestamp": timestamp, "value": value, "unit": "Cel", "quality": 0.9,
        });
        reading.to_string().into_bytes()
    }

    /// Sends the dead letters of readings out of range again. Gives what it says.
    fn redrive(&self) -> String {
        let target = format!("kafka://{}/{}", self.brokers, self.topic("readings"));
        let mut command = fieldstream();
        command.args(["dlq", "redrive", "dead-letters.ndjson", "--code", "range", "--to", &target]).current_dir(self.dir.path());
        let output = command.output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn produced(&self) -> u64 {
        (self.good.len() + self.malformed.len() + self.refused.len()) as u64
    }

    fn check(&self, node: &mut Node) {
        let good = self.good.len() as u64;
        // In one look: while it replays, also after the group has taken its partitions away and given them back, what its sinks have
        // already is settled before they have counted it.
        let ledger = node.until("all rows delivered and settled", |l| {
            l["received"].as_u64() >= Some(self.produced())
                && l["delivered"]["history"].as_u64() >= Some(good)
                && l["in_flight"] == 0
                && l["balanced"] == true
        });
        assert_eq!(ledger["received"], self.produced(), "{ledger}");
        assert_eq!(ledger["settled"], good, "{ledger}");
        assert_eq!(ledger["dead_lettered"]["parse"], self.malformed.len(), "{ledger}");
        assert_eq!(ledger["dead_lettered"]["range"], self.refused.len(), "{ledger}");
        assert_eq!(ledger["delivered"]["history"], good, "{ledger}");
        self.check_rows();
        self.check_alerts();
        self.check_dead_letters();
    }

    fn check_rows(&self) {
        let rows = self.database.rows("SELECT device_id || '|' || id || '|' || value FROM sensor_data");
        let found: BTreeSet<String> = rows.iter().cloned().collect();
        assert_eq!(found.len(), rows.len(), "rows are stored once");
        let (missing, odd): (Vec<_>, Vec<_>) = (self.good.difference(&found).collect(), found.difference(&self.good).collect());
        assert!(missing.is_empty() && odd.is_empty(), "missing: {missing:?}; not expected: {odd:?}");
    }

    /// The topic is written at least once, with ids that say what is the same: each spike has raised one alarm.
    fn check_alerts(&self) {
        let mut raised: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (key, value) in topics::read(&self.brokers, &self.topic("alerts")) {
            let alert: Value = serde_json::from_slice(&value).expect("JSON");
            let alert = alert.get("data").unwrap_or(&alert);
            assert_eq!(alert["deviceId"], key, "{alert}");
            if alert["state"] == "raised" {
                assert_eq!((&alert["value"], &alert["severity"]), (&json!(90.0), &json!("high")), "{alert}");
                raised.entry(key).or_default().insert(alert["id"].as_str().expect("an id").to_owned());
            }
        }
        assert!(raised.values().all(|ids| ids.len() == 1), "{raised:?}");
        assert_eq!(raised.into_keys().collect::<BTreeSet<_>>(), self.spiked);
    }

    fn check_dead_letters(&self) {
        let (mut malformed, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for (_, value) in topics::read(&self.brokers, &self.topic("dlq")) {
            let letter: Value = serde_json::from_slice(&value).expect("JSON");
            let letter = letter.get("data").unwrap_or(&letter);
            let payload =
                STANDARD.decode(letter["payload_base64"].as_str().unwrap_or_else(|| panic!("a payload: {letter}"))).expect("base64");
            match letter["code"].as_str() {
                Some("parse") => drop(malformed.insert(payload)),
                Some("range") => {
                    let reading: Value = serde_json::from_slice(&payload).expect("a reading");
                    refused.insert(reading["id"].as_str().expect("an id").to_owned());
                }
                other => panic!("{other:?}: {letter}"),
            }
        }
        assert_eq!(malformed, self.malformed);
        assert_eq!(refused, self.refused);
    }
}

/// The example with a consumer group of its own, checkpoints close together, and the history in a database.
fn variant(name: &str, dir: &Path, url: &str) -> PathBuf {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/examples/kafka-alerts.yaml");
    let mut text = std::fs::read_to_string(example).expect("the example is there");
    // A named member takes its partitions back at once after a kill; the group would wait for a nameless one's session to end.
    let member = format!("start: earliest\n      group: {name}\n      instance: one\n");
    let history = format!("sinks:\n  history:\n    timescale: {{ url: \"{url}\", table: sensor_data }}\n    inputs: [clean]\n");
    let edits = [("start: earliest\n", member.as_str()), ("interval: 10s", "interval: 300ms"), ("sinks:\n", history.as_str())];
    for (from, to) in edits {
        assert!(text.contains(from), "the example has {from}");
        text = text.replacen(from, to, 1);
    }
    let path = dir.join("kafka-alerts.yaml");
    std::fs::write(&path, text).expect("the pipeline is written");
    path
}

#[test]
fn alerts_of_a_topic_reach_a_topic_and_its_readings_a_table() {
    let _services = services::shared();
    let Some(mut rig) = Rig::new() else { return };
    rig.produce(0, 60);
    let mut node = rig.node();
    rig.check(&mut node);
    let account = node.stop();
    assert_eq!(account["ledger"]["settled"], rig.good.len() as u64, "{account}");
}

#[test]
fn killed_in_mid_run_alerts_keep_their_ids_and_rows_are_stored_once() {
    let _services = services::shared();
    let Some(mut rig) = Rig::new() else { return };
    let mut node = rig.node();
    let mut dice = Dice::thrown();
    for (from, to) in [(0, 40), (40, 60), (60, 300), (300, 700), (700, 1500)] {
        let before = rig.produced();
        rig.produce(from, to);
        let enough = before + 1 + dice.below((rig.produced() - before) * 3 / 4);
        node.until("some rows", |l| l["received"].as_u64() >= Some(enough));
        node.kill();
        node = rig.node();
    }
    rig.check(&mut node);
    node.stop();
}

#[test]
fn kafka_that_goes_away_in_mid_run_loses_nothing() {
    let Some(control) = Control::new() else { return };
    let _services = services::alone();
    let Some(mut rig) = Rig::new() else { return };
    let mut node = rig.node();
    for (from, verb) in [(0, "stop"), (600, "kill")] {
        let before = rig.produced();
        rig.produce(from, from + 600);
        node.until("some rows", |l| l["received"].as_u64() > Some(before));
        control.down(verb, "kafka").start();
        rig.check(&mut node);
    }
    node.stop();
}

#[test]
fn a_database_that_goes_away_in_mid_run_holds_the_marks_back() {
    let Some(control) = Control::new() else { return };
    let _services = services::alone();
    let Some(mut rig) = Rig::new() else { return };
    let mut node = rig.node();
    rig.produce(0, 50);
    for (from, verb) in [(50, "stop"), (400, "kill")] {
        node.until("some rows", |l| l["settled"].as_u64() > Some(0));
        let stopped = control.down(verb, "postgres");
        rig.produce(from, from + 350);
        let ledger = node.until("rows in flight", |l| l["in_flight"].as_u64() > Some(0));
        assert_ne!(ledger["settled"], rig.good.len() as u64, "{ledger}");
        stopped.start();
        rig.check(&mut node);
    }
    node.stop();
}

#[test]
fn dead_letters_are_redriven_to_a_topic_once() {
    let _services = services::shared();
    let Some(mut rig) = Rig::new() else { return };
    let text = std::fs::read_to_string(&rig.pipeline).expect("the pipeline is there");
    let (rest, _) = text.split_once("dead_letter:").expect("the example has a dead letter");
    let text = format!("{rest}dead_letter: {{ file: {{ path: dead-letters.ndjson }} }}\n");
    std::fs::write(&rig.pipeline, &text).expect("the pipeline is written");
    rig.produce(0, 60);
    let mut node = rig.node();
    node.until_settled(rig.produced());
    rig.check_rows();
    node.stop();

    // The limit was wrong: what it refused is sent again to the corrected pipeline.
    assert!(text.contains("max: 1000000 }"));
    std::fs::write(&rig.pipeline, text.replace("max: 1000000 }", "max: 3000000 }")).expect("the pipeline is written");
    let refused = rig.refused.len();
    assert_eq!(rig.redrive(), format!("{refused} sent again, 0 had been before, 0 cannot be sent there\n"));
    assert_eq!(rig.redrive(), format!("0 sent again, {refused} had been before, 0 cannot be sent there\n"));
    let all = rig.produced() + refused as u64;
    rig.good.extend(rig.refused.iter().map(|id| format!("{}|{id}|2000000", id.split('-').next().unwrap_or_default())));
    let mut node = rig.node();
    node.until_settled(all);
    rig.check_rows();
    let account = node.stop();
    assert_eq!(account["ledger"]["settled"], rig.good.len() as u64, "{account}");
    let mut redriven = 0;
    for (key, payload) in topics::read(&rig.brokers, &rig.topic("readings")) {
        // What is malformed was not sent again.
        let Ok(reading) = serde_json::from_slice::<Value>(&payload) else { continue };
        redriven += usize::from(reading.get("redrivenFrom").is_some());
        assert_eq!(reading["deviceId"], key.as_str(), "{reading}");
    }
    assert_eq!(redriven, refused);
}
