//! Exactly once into Kafka, from Kafka, from files and from the journal: killed at random moments, each row is there once for
//! those who read what is committed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fleet::Dice;
use crate::node::{Node, eventually, fieldstream};
use crate::publisher::{Message, publish};
use crate::services::{self, Database, service};
use crate::topics::{self, Record};

const DEVICES: u64 = 24;
pub(crate) const PARTITIONS: i32 = 4;

/// A topic's readings, and a pipeline that copies the good ones to a topic and to a table.
pub(crate) struct Copying {
    pub(crate) dir: TempDir,
    pub(crate) name: String,
    pub(crate) brokers: String,
    database: Database,
    start_ms: u64,
    next: u64,
    /// Ids that must be in topic and table.
    good: BTreeSet<String>,
    /// Readings out of range, by id.
    refused: BTreeSet<String>,
}

impl Copying {
    pub(crate) fn new() -> Option<Self> {
        let brokers = service("FIELDSTREAM_TEST_KAFKA")?;
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let database = Database::new(&name)?;
        let dir = tempfile::tempdir().expect("a directory");
        for (topic, partitions) in [("readings", PARTITIONS), ("copy", 3), ("dlq", 1)] {
            topics::create(&brokers, &format!("{name}.{topic}"), partitions);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64;
        let (good, refused) = Default::default();
        Some(Self { dir, name, brokers, database, start_ms: now - 7_200_000, next: 0, good, refused })
    }

    /// Writes the pipeline; `source` are further options of its source.
    pub(crate) fn pipeline(&self, source: &str) -> PathBuf {
        let Self { name, brokers, .. } = self;
        let url = self.database.url();
        let kafka = |topic: &str| format!("brokers: [\"{brokers}\"], topic: {name}.{topic}");
        let (readings, copy, dlq) = (kafka("readings"), kafka("copy"), kafka("dlq"));
        let text = format!(
            "version: 1\npipeline: {name}\ncheckpoint: {{ interval: 300ms, keep: 3 }}\n\
             sources:\n  readings:\n    kafka: {{ {readings}, group: {name}, {source} }}\n    decode: {{ format: json }}\n\
             operators:\n  clean:\n    validate: {{ rules: [{{ id: range, range: {{ min: -1000, max: 1000000 }} }}] }}\n    inputs: [readings]\n\
             sinks:\n  copy:\n    kafka: {{ {copy} }}\n    batch: {{ max_rows: 300, max_wait: 10ms }}\n    inputs: [clean]\n  \
             history:\n    timescale: {{ url: \"{url}\", table: sensor_data }}\n    inputs: [clean]\n\
             dead_letter:\n  kafka: {{ {dlq} }}\n"
        );
        let path = self.dir.path().join("copy.yaml");
        std::fs::write(&path, text).expect("the pipeline is written");
        path
    }

    /// One reading of each device for each of `seconds`, some of them out of range.
    pub(crate) fn produce(&mut self, seconds: u64) {
        let mut records: Vec<Record> = Vec::new();
        for second in self.next..self.next + seconds {
            for number in 0..DEVICES {
                let (device, id) = (format!("d{number}"), format!("d{number}-{second}"));
                let high = (second + number) % 53 == 0;
                let set = if high { &mut self.refused } else { &mut self.good };
                set.insert(id.clone());
                let value = if high { 2e6 } else { second as f64 };
                let reading = json!({
                    "id": id, "deviceId": device, "sensorId": "t", "sensorType": "temperature",
                    "timestamp": self.start_ms + second * 1000, "value": value, "unit": "Cel", "quality": 0.9,
                });
                records.push((device, reading.to_string().into_bytes()));
            }
        }
        self.next += seconds;
        topics::produce(&self.brokers, &format!("{}.readings", self.name), &records);
    }

    pub(crate) fn produced(&self) -> u64 {
        (self.good.len() + self.refused.len()) as u64
    }

    /// Topic, table and dead letters hold each reading once, a device's in order.
    pub(crate) fn check(&self) {
        let copied = topics::read(&self.brokers, &format!("{}.copy", self.name));
        once(ids(&copied), &self.good, "the copy");
        let mut last: BTreeMap<&str, f64> = BTreeMap::new();
        for (device, row) in &copied {
            let row: Value = serde_json::from_slice(row).expect("JSON");
            let value = row["value"].as_f64().expect("a value");
            let before = last.insert(device, value);
            assert!(before.is_none_or(|before| before < value), "{device}: {value} after {before:?}");
        }
        once(self.database.rows("SELECT id FROM sensor_data"), &self.good, "the table");
        let letters = topics::read(&self.brokers, &format!("{}.dlq", self.name));
        assert_eq!(letters.len(), self.refused.len(), "dead letters are there once");
    }
}

fn ids(records: &[Record]) -> Vec<String> {
    let id = |(_, value): &Record| {
        let row: Value = serde_json::from_slice(value).expect("JSON");
        row["id"].as_str().unwrap_or_else(|| panic!("an id: {row}")).to_owned()
    };
    records.iter().map(id).collect()
}

fn once(found: Vec<String>, expected: &BTreeSet<String>, what: &str) {
    let all = found.len();
    let found: BTreeSet<String> = found.into_iter().collect();
    let (missing, odd): (Vec<_>, Vec<_>) = (expected.difference(&found).take(9).collect(), found.difference(expected).take(9).collect());
    assert!(missing.is_empty() && odd.is_empty(), "{what}: missing: {missing:?}; not expected: {odd:?}");
    assert_eq!(all, found.len(), "{what}: each row is there once");
}

#[test]
fn kafka_to_kafka_and_a_table_exactly_once_under_kills() {
    let _services = services::shared();
    let Some(mut rig) = Copying::new() else { return };
    // A named member takes its partitions back at once after a kill; the group would wait for a nameless one's session to end.
    let pipeline = rig.pipeline("instance: one");
    let start = |rig: &Copying| {
        let mut command: Command = fieldstream();
        command.arg("run").arg(&pipeline);
        Node::start(command, &rig.name, rig.dir.path())
    };
    let mut node = start(&rig);
    let mut dice = Dice::thrown();
    for seconds in [30, 60, 90, 60, 120, 200, 90, 150] {
        let before = rig.produced();
        rig.produce(seconds);
        let enough = before + 1 + dice.below((rig.produced() - before) * 3 / 4);
        node.until("some rows", |l| l["received"].as_u64() >= Some(enough));
        node.kill();
        node = start(&rig);
    }
    let ledger = node.until_settled(rig.produced());
    let good = rig.good.len() as u64;
    assert_eq!((&ledger["settled"], &ledger["dead_lettered"]["range"]), (&json!(good), &json!(rig.refused.len())), "{ledger}");
    node.until("the counts of both sinks", |l| l["delivered"]["copy"] == good && l["delivered"]["history"] == good);
    rig.check();
    node.stop();
    rig.check();
}

/// A pipeline of files into a topic.
struct Files {
    dir: TempDir,
    name: String,
    brokers: String,
    expected: BTreeSet<String>,
}

impl Files {
    fn new() -> Option<Self> {
        let brokers = service("FIELDSTREAM_TEST_KAFKA")?;
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        topics::create(&brokers, &format!("{name}.copy"), 3);
        let dir = tempfile::tempdir().expect("a directory");
        let mut expected = BTreeSet::new();
        for file in 0..4 {
            let mut text = String::new();
            for row in 0..20_000 {
                let id = format!("f{file}-{row}");
                let reading = json!({ "id": id, "deviceId": format!("d{file}-{}", row % 7), "sensorId": "t", "sensorType": "temperature",
                    "timestamp": 1_700_000_000_000_u64 + row * 1000, "value": row, "unit": "Cel" });
                text.push_str(&format!("{reading}\n"));
                expected.insert(id);
            }
            std::fs::write(dir.path().join(format!("in-{file}.ndjson")), text).expect("a file");
        }
        let pipeline = format!(
            "version: 1\npipeline: {name}\ncheckpoint: {{ interval: 200ms, keep: 2 }}\n\
             sources:\n  readings:\n    file: {{ path: \"in-*.ndjson\", format: ndjson }}\n    decode: {{ format: json }}\n\
             sinks:\n  copy:\n    kafka: {{ brokers: [\"{brokers}\"], topic: {name}.copy, marks: {name}.marks }}\n    \
             batch: {{ max_rows: 500, max_wait: 10ms }}\n    inputs: [readings]\n\
             dead_letter: {{ file: {{ path: dead-letters.ndjson }} }}\n"
        );
        std::fs::write(dir.path().join("files.yaml"), pipeline).expect("the pipeline is written");
        Some(Self { dir, name, brokers, expected })
    }

    fn node(&self, resume: bool) -> Node {
        let mut command = fieldstream();
        command.args(["run", "files.yaml"]).args(resume.then_some("--resume"));
        Node::start(command, &self.name, self.dir.path())
    }
}

#[test]
fn files_to_kafka_exactly_once_under_kills() {
    let _services = services::shared();
    let Some(rig) = Files::new() else { return };
    let mut dice = Dice::thrown();
    let mut node = rig.node(false);
    let all = rig.expected.len() as u64;
    for part in 1..7 {
        let enough = all * part / 8 + dice.below(all / 16);
        let reached = eventually("some rows", || {
            if node.ended() {
                return Some(false);
            }
            node.ledger().filter(|l| l["delivered"]["copy"].as_u64() >= Some(enough)).map(|_| true)
        });
        if !reached {
            break;
        }
        node.kill();
        node = rig.node(true);
    }
    let ended = node.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let account = ended.account();
    assert_eq!((&account["ledger"]["balanced"], &account["ledger"]["delivered"]["copy"]), (&json!(true), &json!(all)), "{account}");
    once(ids(&topics::read(&rig.brokers, &format!("{}.copy", rig.name))), &rig.expected, "the copy");
}

/// What devices publish to a broker, through the journal to a topic and a table.
struct Journaled {
    dir: TempDir,
    name: String,
    brokers: String,
    mqtt: String,
    database: Database,
    sent: BTreeSet<String>,
}

impl Journaled {
    fn new() -> Option<Self> {
        let (brokers, mqtt) = (service("FIELDSTREAM_TEST_KAFKA")?, service("FIELDSTREAM_TEST_MQTT")?);
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let database = Database::new(&name)?;
        topics::create(&brokers, &format!("{name}.copy"), 3);
        let dir = tempfile::tempdir().expect("a directory");
        write_journaled(dir.path(), &name, &brokers, &mqtt, &database.url());
        Some(Self { dir, name, brokers, mqtt, database, sent: BTreeSet::new() })
    }

    fn node(&self) -> Node {
        let mut command = fieldstream();
        command.args(["run", "journaled.yaml"]);
        Node::start(command, &self.name, self.dir.path())
    }

    fn messages(&mut self, count: u64) -> Vec<Message> {
        let from = self.sent.len() as u64;
        self.sent.extend((from..from + count).map(|number| format!("m{number}")));
        let message = |number: u64| {
            let reading = json!({ "id": format!("m{number}"), "sensorId": "t", "sensorType": "temperature",
                "timestamp": 1_700_000_000_000_u64 + number, "value": number });
            (format!("{}/d{}/telemetry", self.name, number % 11), reading.to_string().into_bytes())
        };
        (from..from + count).map(message).collect()
    }

    /// A message that was not acknowledged comes again and is journaled again, so topic and table are compared with each other.
    fn check(&self) {
        let mut copied = ids(&topics::read(&self.brokers, &format!("{}.copy", self.name)));
        copied.retain(|id| id != "probe");
        let mut stored = self.database.rows("SELECT id FROM sensor_data WHERE id <> 'probe'");
        copied.sort();
        stored.sort();
        assert_eq!(copied.len(), stored.len());
        assert!(copied == stored, "topic and table differ");
        assert_eq!(copied.into_iter().collect::<BTreeSet<_>>(), self.sent);
    }
}

fn write_journaled(dir: &Path, name: &str, brokers: &str, mqtt: &str, url: &str) {
    let text = format!(
        "version: 1\npipeline: {name}\ncheckpoint: {{ interval: 300ms, keep: 2 }}\n\
         sources:\n  field:\n    mqtt: {{ url: \"{mqtt}\", topics: [\"{name}/+/telemetry\"], qos: 1, client_id: {name} }}\n    \
         decode: {{ format: json, device: \"topic[1]\" }}\n\
         sinks:\n  copy:\n    kafka: {{ brokers: [\"{brokers}\"], topic: {name}.copy }}\n    batch: {{ max_rows: 100, max_wait: 10ms }}\n    inputs: [field]\n  \
         history:\n    timescale: {{ url: \"{url}\", table: sensor_data }}\n    inputs: [field]\n\
         dead_letter: {{ file: {{ path: dead-letters.ndjson }} }}\n"
    );
    std::fs::write(dir.join("journaled.yaml"), text).expect("the pipeline is written");
}

#[test]
fn journal_to_kafka_exactly_once_under_kills() {
    let _services = services::shared();
    let Some(mut rig) = Journaled::new() else { return };
    let mut dice = Dice::thrown();
    let mut node = rig.node();
    let probe = (
        format!("{}/d0/telemetry", rig.name),
        json!({ "id": "probe", "sensorId": "t", "sensorType": "temperature", "timestamp": 1_700_000_000_000_u64, "value": 1 })
            .to_string()
            .into_bytes(),
    );
    eventually("the subscription", || {
        publish(&rig.mqtt, vec![probe.clone()]).finish();
        assert!(!node.ended(), "{}", node.stderr());
        node.ledger().filter(|l| l["received"].as_u64() > Some(0))
    });
    for count in [300, 600, 400, 800, 1200, 500] {
        let before = rig.sent.len() as u64;
        let messages = rig.messages(count);
        let publishing = publish(&rig.mqtt, messages);
        let enough = before + 1 + dice.below(count * 3 / 4);
        node.until("some rows", |l| l["received"].as_u64() >= Some(enough));
        node.kill();
        publishing.finish();
        node = rig.node();
    }
    let all = rig.sent.len() as u64;
    node.until("everything settled", |l| {
        let delivered = |sink: &str| l["delivered"][sink].as_u64() >= Some(all);
        l["received"].as_u64() >= Some(all) && l["in_flight"] == 0 && l["balanced"] == true && delivered("copy") && delivered("history")
    });
    node.stop();
    rig.check();
}
