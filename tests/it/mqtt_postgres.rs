//! `mqtt-to-timescale.yaml` with a real broker and a real database: every reading once, whatever is killed or stopped, with the node's own
//! journal and with a Kafka topic that stands for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fleet::Dice;
use crate::node::{Node, eventually, fieldstream};
use crate::publisher::{Message, publish};
use crate::services::{self, Control, Database, service};

const PIPELINE: &str = "mqtt-to-timescale";
const DEVICES: usize = 20;

/// What receivers write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Journal {
    /// The journal of the node.
    Node,
    /// `journal: kafka`.
    Kafka,
}

/// A pipeline of a test's own between services that all tests share.
struct Rig {
    dir: TempDir,
    pipeline: PathBuf,
    name: String,
    mqtt: String,
    database: Database,
    start_ms: u64,
    /// Rows that must be in the table: `device|sensor|milliseconds|value`.
    good: BTreeSet<String>,
    /// Payloads that cannot be decoded.
    malformed: BTreeSet<Vec<u8>>,
    /// Devices and times of readings that break a rule.
    refused: BTreeSet<(String, u64)>,
}

impl Rig {
    fn new(journal: Journal) -> Option<Self> {
        let mqtt = service("FIELDSTREAM_TEST_MQTT")?;
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let database = Database::new(&name)?;
        let dir = tempfile::tempdir().expect("a directory");
        let pipeline = variant(&name, dir.path());
        if journal == Journal::Kafka {
            journal_in_kafka(&pipeline, &name, &service("FIELDSTREAM_TEST_KAFKA")?);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64;
        // Whole minutes of the last hours: nothing is in the future, and windows are whole.
        let start_ms = (now / 60_000 - 180) * 60_000;
        let (good, malformed, refused) = Default::default();
        Some(Self { dir, pipeline, name, mqtt, database, start_ms, good, malformed, refused })
    }

    fn command(&self) -> Command {
        let mut command = fieldstream();
        command.arg("run").arg(&self.pipeline).env("MQTT_ENDPOINT", &self.mqtt).envs(self.database.variables());
        command
    }

    fn topic(&self, device: &str) -> String {
        format!("{}/{device}/telemetry", self.name)
    }

    fn reading(&mut self, device: &str, second: u64, value: f64) -> Message {
        let ms = self.start_ms + second * 1000;
        self.good.insert(format!("{device}|t|{ms}|{value}"));
        (self.topic(device), reading(ms, value))
    }

    /// `seconds` readings of each device, and between them what is malformed or breaks a rule.
    fn messages(&mut self, from: u64, seconds: u64) -> Vec<Message> {
        let mut out = Vec::new();
        for second in from..from + seconds {
            for number in 0..DEVICES {
                let device = format!("d{number}");
                out.push(self.reading(&device, second, 20.0 + (second % 30) as f64 + number as f64 / 8.0));
                if (second as usize + number).is_multiple_of(37) {
                    let payload = format!(r#"{{"sensorId":"t","value":{second}.{number}"#).into_bytes();
                    self.malformed.insert(payload.clone());
                    out.push((self.topic(&device), payload));
                }
                if (second as usize + number).is_multiple_of(41) {
                    let ms = self.start_ms + second * 1000 + 500;
                    self.refused.insert((device.clone(), ms));
                    out.push((self.topic(&device), reading(ms, 200.0)));
                }
            }
        }
        out
    }

    /// Starts the pipeline for the first time, and waits until it has subscribed: until then the broker keeps nothing for it.
    fn start(&mut self) -> Node {
        let mut node = Node::start(self.command(), PIPELINE, self.dir.path());
        let probe = self.reading("probe", 0, 1.0);
        eventually("the subscription", || {
            publish(&self.mqtt, vec![probe.clone()]).finish();
            let running = !node.ended();
            assert!(running, "{}", node.stderr());
            node.ledger().filter(|l| l["received"].as_u64() > Some(0))
        });
        node
    }

    fn again(&self) -> Node {
        Node::start(self.command(), PIPELINE, self.dir.path())
    }

    /// Waits until everything published has its end, then compares tables and files.
    fn check(&self, node: &mut Node) {
        let bad = (self.malformed.len() + self.refused.len()) as u64;
        let good = self.good.len() as u64;
        let ledger = node.until(&format!("{good} rows settled, {bad} or more rejected, none in flight"), |l| {
            let (parse, temperature) = (l["dead_lettered"]["parse"].as_u64(), l["dead_lettered"]["temperature"].as_u64());
            let bad_ones = parse >= Some(self.malformed.len() as u64) && temperature >= Some(self.refused.len() as u64);
            // While it replays, what its sinks have already is settled before they have counted it.
            l["delivered"]["history"].as_u64() >= Some(good)
                && l["settled"].as_u64() >= Some(good)
                && bad_ones
                && l["in_flight"] == 0
                && l["balanced"] == true
        });
        assert_eq!(ledger["settled"], good, "{ledger}");
        assert_eq!(ledger["delivered"]["history"], good, "{ledger}");
        self.check_rows();
    }

    /// Drains, then compares what only an orderly end makes final: redelivered messages may still have been on their way.
    fn stop(&self, node: Node) {
        let account = node.stop();
        assert_eq!(account["ledger"]["settled"], self.good.len() as u64, "{account}");
        self.check_rows();
        self.check_dead_letters(&account["ledger"]);
    }

    /// Sends the dead letters of readings too warm again, through the broker. Gives what it says.
    fn redrive(&self) -> String {
        let target = format!("{}/{}", self.mqtt, self.topic("{device}"));
        let mut command = fieldstream();
        command.args(["dlq", "redrive", "dead-letters.ndjson", "--code", "temperature", "--to", &target]).current_dir(self.dir.path());
        let output = command.output().expect("the binary runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn check_rows(&self) {
        let sql = "SELECT device_id || '|' || sensor_id || '|' || (extract(epoch FROM ts) * 1000)::bigint || '|' || value FROM sensor_data";
        let rows = self.database.rows(sql);
        let found: BTreeSet<String> = rows.iter().cloned().collect();
        assert_eq!(found.len(), rows.len(), "rows are stored once");
        let (missing, odd): (Vec<_>, Vec<_>) = (self.good.difference(&found).collect(), found.difference(&self.good).collect());
        assert!(missing.is_empty() && odd.is_empty(), "missing: {missing:?}; not expected: {odd:?}");
    }

    /// The broker may deliver a message twice; then what cannot be decoded is rejected twice, and counted so.
    fn check_dead_letters(&self, ledger: &Value) {
        let text = std::fs::read_to_string(self.dir.path().join("dead-letters.ndjson")).expect("dead letters");
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(rows.len() as u64, rejected(ledger), "{ledger}");
        let (mut malformed, mut refused) = (BTreeSet::new(), BTreeSet::new());
        for row in &rows {
            let payload = STANDARD.decode(row["payload_base64"].as_str().expect("a payload")).expect("base64");
            if row["code"] == "parse" {
                malformed.insert(payload);
            } else {
                assert_eq!(row["code"], "temperature", "{row}");
                let reading: Value = serde_json::from_slice(&payload).expect("a reading as JSON");
                assert_eq!(reading["value"].as_f64(), Some(200.0), "{reading}");
                let ts = row["timestamp"].as_str().unwrap_or_else(|| panic!("a time: {row}"));
                let ms = fieldstream_schemas::time::parse_rfc3339(ts.as_bytes()).unwrap_or_else(|| panic!("a time: {row}")) / 1000;
                refused.insert((row["deviceId"].as_str().unwrap_or_else(|| panic!("a device: {row}")).to_owned(), ms as u64));
            }
        }
        assert_eq!(malformed, self.malformed);
        assert_eq!(refused, self.refused);
    }

    /// Windows that the devices' own clocks have closed; of others, some may have been closed by silence.
    fn check_minutes(&self) {
        let mut counts: BTreeMap<(String, u64), u64> = BTreeMap::new();
        let mut last: BTreeMap<String, u64> = BTreeMap::new();
        for row in &self.good {
            let mut parts = row.split('|');
            let (device, ms) = (parts.next().expect("a device"), parts.nth(1).and_then(|ms| ms.parse::<u64>().ok()).expect("a time"));
            *counts.entry((device.to_owned(), ms / 60_000 * 60_000)).or_default() += 1;
            let newest = last.entry(device.to_owned()).or_default();
            *newest = ms.max(*newest);
        }
        let sql = "SELECT device_id || '|' || (extract(epoch FROM window_start) * 1000)::bigint || '|' || readings FROM sensor_minutes";
        let rows = self.database.rows(sql);
        let mut found = BTreeMap::new();
        for row in &rows {
            let parts: Vec<&str> = row.split('|').collect();
            let key = (parts[0].to_owned(), parts[1].parse::<u64>().expect("a time"));
            assert_eq!(counts.get(&key).copied(), parts[2].parse().ok(), "{row}");
            assert!(found.insert(key, ()).is_none(), "{row} is there twice");
        }
        for ((device, start), _) in counts {
            let closed = last[&device].saturating_sub(30_000) >= start + 60_000;
            assert!(!closed || found.contains_key(&(device.clone(), start)), "the minute {start} of {device} is missing");
        }
    }
}

/// The example with topics and client id of its own, and checkpoints close together.
fn variant(name: &str, dir: &Path) -> PathBuf {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/examples/mqtt-to-timescale.yaml");
    let mut text = std::fs::read_to_string(example).expect("the example is there");
    let topics = format!("topics: [{name}/+/telemetry]\n      client_id: {name}\n");
    for (from, to) in [("topics: [devices/+/telemetry]\n", topics.as_str()), ("interval: 10s", "interval: 300ms")] {
        assert!(text.contains(from), "the example has {from}");
        text = text.replacen(from, to, 1);
    }
    let path = dir.join("mqtt-to-timescale.yaml");
    std::fs::write(&path, text).expect("the pipeline is written");
    path
}

/// Lets a topic of the test's own stand for the journal. A named member of the group has its partitions back at once after a kill.
fn journal_in_kafka(pipeline: &Path, name: &str, brokers: &str) {
    let text = std::fs::read_to_string(pipeline).expect("the pipeline is there");
    let journal = format!("journal: {{ kafka: {{ brokers: [\"{brokers}\"], topic: {name}, partitions: 4, instance: {name} }} }}\n");
    assert!(text.contains("\nsources:\n"));
    std::fs::write(pipeline, text.replacen("\nsources:\n", &format!("\n{journal}\nsources:\n"), 1)).expect("the pipeline is written");
}

fn reading(ms: u64, value: f64) -> Vec<u8> {
    json!({ "sensorId": "t", "sensorType": "temperature", "timestamp": ms, "value": value, "unit": "Cel", "quality": 0.9 })
        .to_string()
        .into_bytes()
}

fn rejected(ledger: &Value) -> u64 {
    ledger["dead_lettered"].as_object().map_or(0, |codes| codes.values().filter_map(Value::as_u64).sum())
}

fn drains(journal: Journal) {
    let _services = services::shared();
    let Some(mut rig) = Rig::new(journal) else { return };
    let mut node = rig.start();
    publish(&rig.mqtt.clone(), rig.messages(1, 200)).finish();
    rig.check(&mut node);
    rig.check_minutes();
    rig.stop(node);

    // The next start goes on where this one ended, and brings what the broker kept meanwhile.
    publish(&rig.mqtt.clone(), rig.messages(201, 20)).finish();
    let mut node = rig.again();
    rig.check(&mut node);
    rig.check_minutes();

    // Told to stop while rows come in, it closes no window early.
    for from in [221, 421, 621] {
        let before = rig.good.len() as u64;
        let publishing = publish(&rig.mqtt.clone(), rig.messages(from, 200));
        node.until("some rows", |l| l["settled"].as_u64() > Some(before));
        node.stop();
        node = rig.again();
        publishing.finish();
    }
    rig.check(&mut node);
    rig.check_minutes();
    rig.stop(node);
}

fn killed(journal: Journal) {
    let _services = services::shared();
    let Some(mut rig) = Rig::new(journal) else { return };
    let mut node = rig.start();
    let publishing = publish(&rig.mqtt.clone(), rig.messages(1, 400));
    let mut dice = Dice::thrown();
    for _ in 0..4 {
        let left = rig.good.len() as u64 - rig.database.count("sensor_data");
        let enough = rig.good.len() as u64 - left + dice.below(left / 2 + 1);
        node.until("some rows", |l| l["settled"].as_u64() >= Some(enough));
        node.kill();
        node = rig.again();
    }
    publishing.finish();
    rig.check(&mut node);
    rig.check_minutes();
    rig.stop(node);
}

fn broker_stopped(journal: Journal) {
    let Some(control) = Control::new() else { return };
    let _services = services::alone();
    let Some(mut rig) = Rig::new(journal) else { return };
    let mut node = rig.start();
    let publishing = publish(&rig.mqtt.clone(), rig.messages(1, 400));
    node.until("some rows", |l| l["settled"].as_u64() > Some(1));
    let stopped = control.down("stop", "mosquitto");
    let waiting = publish(&rig.mqtt.clone(), rig.messages(401, 100));
    stopped.start();
    publishing.finish();
    waiting.finish();
    // Two clients have sent for the same devices at once, so minutes may be corrected: only rows are compared.
    rig.check(&mut node);
    rig.stop(node);
}

fn database_away(journal: Journal) {
    let Some(control) = Control::new() else { return };
    let _services = services::alone();
    let Some(mut rig) = Rig::new(journal) else { return };
    let mut node = rig.start();
    for (from, verb) in [(1, "stop"), (221, "kill")] {
        let before = rig.good.len() as u64;
        let publishing = publish(&rig.mqtt.clone(), rig.messages(from, 200));
        node.until("some rows", |l| l["settled"].as_u64() > Some(before));
        let stopped = control.down(verb, "postgres");
        publishing.finish();
        // These are acknowledged, and wait in the journal.
        publish(&rig.mqtt.clone(), rig.messages(from + 200, 20)).finish();
        let all = (rig.good.len() + rig.malformed.len() + rig.refused.len()) as u64;
        node.until("all received, some in flight", |l| l["received"].as_u64() >= Some(all) && l["in_flight"].as_u64() > Some(0));
        stopped.start();
        rig.check(&mut node);
    }
    rig.check_minutes();
    rig.stop(node);
}

fn redriven(journal: Journal) {
    let _services = services::shared();
    let Some(mut rig) = Rig::new(journal) else { return };
    let mut node = rig.start();
    publish(&rig.mqtt.clone(), rig.messages(1, 60)).finish();
    rig.check(&mut node);
    rig.stop(node);

    // The limit was wrong: what it refused is sent again to the corrected pipeline.
    let text = std::fs::read_to_string(&rig.pipeline).expect("the pipeline is there");
    assert!(text.contains("max: 150"));
    std::fs::write(&rig.pipeline, text.replace("max: 150", "max: 250")).expect("the pipeline is written");
    let mut node = rig.again();
    let refused = rig.refused.len();
    assert_eq!(rig.redrive(), format!("{refused} sent again, 0 had been before, 0 cannot be sent there\n"));
    rig.good.extend(rig.refused.iter().map(|(device, ms)| format!("{device}|t|{ms}|200")));
    rig.check(&mut node);
    assert_eq!(rig.redrive(), format!("0 sent again, {refused} had been before, 0 cannot be sent there\n"));
    rig.stop(node);
}

#[test]
fn every_reading_is_a_row_and_sigterm_drains() {
    drains(Journal::Node);
}

#[test]
fn killed_in_mid_run_it_stores_every_reading_once() {
    killed(Journal::Node);
}

#[test]
fn a_broker_stopped_in_mid_run_loses_nothing() {
    broker_stopped(Journal::Node);
}

#[test]
fn a_database_that_goes_away_in_mid_run_loses_nothing() {
    database_away(Journal::Node);
}

#[test]
fn dead_letters_are_redriven_once() {
    redriven(Journal::Node);
}

/// The same, with a topic that stands for the journal.
mod by_way_of_kafka {
    use super::*;

    #[test]
    fn every_reading_is_a_row_and_sigterm_drains() {
        drains(Journal::Kafka);
    }

    #[test]
    fn killed_in_mid_run_it_stores_every_reading_once() {
        killed(Journal::Kafka);
    }

    #[test]
    fn a_broker_stopped_in_mid_run_loses_nothing() {
        broker_stopped(Journal::Kafka);
    }

    #[test]
    fn a_database_that_goes_away_in_mid_run_loses_nothing() {
        database_away(Journal::Kafka);
    }

    #[test]
    fn dead_letters_are_redriven_once() {
        redriven(Journal::Kafka);
    }

    #[test]
    fn a_journal_that_goes_away_in_mid_run_holds_sources_back_and_loses_nothing() {
        let Some(control) = Control::new() else { return };
        let _services = services::alone();
        let Some(mut rig) = Rig::new(Journal::Kafka) else { return };
        let mut node = rig.start();
        let publishing = publish(&rig.mqtt.clone(), rig.messages(1, 200));
        node.until("some rows", |l| l["settled"].as_u64() > Some(1));
        let stopped = control.down("stop", "kafka");
        publish(&rig.mqtt.clone(), rig.messages(201, 20)).finish();
        publishing.finish();
        eventually("it says that the journal does not answer", || {
            node.body("/readyz").filter(|body| body.contains("journal") && body.contains("not acknowledged"))
        });
        stopped.start();
        rig.check(&mut node);
        eventually("it is ready again", || node.get("/readyz"));
        rig.stop(node);
    }
}
