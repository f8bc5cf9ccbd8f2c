//! `gateway.yaml` in several processes: two gateways with a broker's topics each, and another producer, meet in one Kafka topic, share its
//! partitions, and every reading is a row once, whichever of them is killed.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::node::{Node, eventually, fieldstream};
use crate::publisher::{Message, publish};
use crate::services::{self, Database, service};
use crate::topics;

const PIPELINE: &str = "gateway";
const DEVICES: usize = 12;

struct Site {
    dir: TempDir,
    name: String,
    mqtt: String,
    kafka: String,
    database: Database,
    start_ms: u64,
    /// Rows that must be in the table: `device|milliseconds|value`.
    rows: BTreeSet<String>,
}

impl Site {
    fn new() -> Option<Self> {
        let (mqtt, kafka) = (service("FIELDSTREAM_TEST_MQTT")?, service("FIELDSTREAM_TEST_KAFKA")?);
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let database = Database::new(&name)?;
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("shared")).expect("a folder");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64;
        Some(Self { dir, name, mqtt, kafka, database, start_ms: now - 3_600_000, rows: BTreeSet::new() })
    }

    /// A gateway with topics, client id and group membership of its own; all share the checkpoints.
    fn gateway(&self, which: &str) -> Node {
        let dir = self.dir.path().join(which);
        if !dir.exists() {
            std::fs::create_dir_all(dir.join("state")).expect("a folder");
            symlink(self.dir.path().join("shared"), dir.join("state/state")).expect("a link");
        }
        let mut command = fieldstream();
        command.arg("run").arg(self.pipeline(which, &dir)).envs(self.database.variables());
        command.env("MQTT_ENDPOINT", &self.mqtt).env("KAFKA_BROKERS", &self.kafka).env("KAFKA_JOURNAL", &self.name);
        command.env("GATEWAY", format!("{}-{which}", self.name));
        Node::start(command, PIPELINE, &dir)
    }

    fn pipeline(&self, which: &str, dir: &Path) -> PathBuf {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/examples/gateway.yaml");
        let mut text = std::fs::read_to_string(example).expect("the example is there");
        // The shortest session that brokers allow by default.
        let topic = format!("partitions: 6\n    group: {}\n    properties: {{ session.timeout.ms: 6000 }}", self.name);
        let (topics, level) = (format!("topics: [{}/{which}/+/telemetry]", self.name), "topic[2]");
        let changes = [
            ("topics: [devices/+/telemetry]", topics.as_str()),
            ("topic[1]", level),
            ("partitions: 16", topic.as_str()),
            ("interval: 10s", "interval: 300ms"),
            // A killed gateway gets again all that it had not acknowledged: on a busy machine more of a device than the example remembers.
            ("last: 64", "last: 1024"),
        ];
        for (from, to) in changes {
            assert!(text.contains(from), "the example has {from}");
            text = text.replacen(from, to, 1);
        }
        let path = dir.join("gateway.yaml");
        std::fs::write(&path, text).expect("the pipeline is written");
        path
    }

    fn row(&mut self, device: &str, second: u64, value: f64) -> u64 {
        let ms = self.start_ms + second * 1000;
        self.rows.insert(format!("{device}|{ms}|{value}"));
        ms
    }

    /// What devices of gateway `which` send.
    fn messages(&mut self, which: &str, from: u64, seconds: u64) -> Vec<Message> {
        let mut out = Vec::new();
        for second in from..from + seconds {
            for number in 0..DEVICES {
                let (device, value) = (format!("{which}{number}"), 20.0 + (second % 50) as f64);
                let ms = self.row(&device, second, value);
                let payload = json!({ "sensorId": "t", "timestamp": ms, "value": value, "unit": "Cel" });
                out.push((format!("{}/{which}/{device}/telemetry", self.name), payload.to_string().into_bytes()));
            }
        }
        out
    }

    /// Another producer's records: canonical JSON under the key of the device, and one under another key.
    fn produce(&mut self, from: u64, seconds: u64) {
        let mut records = Vec::new();
        for second in from..from + seconds {
            let ms = self.row("plant", second, 7.5);
            let time = fieldstream_schemas::time::format_rfc3339(ms as i64 * 1000);
            let reading =
                |device: &str| json!({ "deviceId": device, "sensorId": "t", "timestamp": time, "value": 7.5 }).to_string().into_bytes();
            records.push(("plant".to_owned(), reading("plant")));
            if second == from {
                records.push(("plant".to_owned(), reading("stranger")));
            }
        }
        topics::produce(&self.kafka, &self.name, &records);
    }

    /// Waits until the table has every row, then looks that it has no other and none twice.
    fn check(&self, gateways: &mut [&mut Node]) {
        eventually(&format!("{} rows", self.rows.len()), || {
            for gateway in gateways.iter_mut() {
                assert!(!gateway.ended(), "a gateway ended:\n{}", gateway.stderr());
            }
            (self.database.count("sensor_data") >= self.rows.len() as u64).then_some(())
        });
        let found =
            self.database.rows("SELECT device_id || '|' || (extract(epoch FROM ts) * 1000)::bigint || '|' || value FROM sensor_data");
        let set: BTreeSet<String> = found.iter().cloned().collect();
        assert_eq!(set.len(), found.len(), "rows are stored once");
        let (missing, odd): (Vec<_>, Vec<_>) = (self.rows.difference(&set).collect(), set.difference(&self.rows).collect());
        assert!(missing.is_empty() && odd.is_empty(), "missing: {missing:?}; not expected: {odd:?}");
    }
}

/// Waits until a gateway has subscribed: the broker keeps its messages from then on.
fn subscribed(site: &mut Site, which: &str) {
    let probe = site.messages(which, 0, 1);
    let device = format!("{which}0");
    eventually("the subscription", || {
        publish(&site.mqtt, probe.clone()).finish();
        topics::read(&site.kafka, &site.name).iter().any(|(key, _)| *key == device).then_some(())
    });
}

fn dead_letters(site: &Site, code: &str) -> usize {
    let texts = ["a", "b"].iter().filter_map(|which| std::fs::read_to_string(site.dir.path().join(which).join("dead-letters.ndjson")).ok());
    // The last line may still be on its way.
    let rows: Vec<Value> = texts.flat_map(|text| text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect::<Vec<_>>()).collect();
    rows.iter().filter(|row| row["code"] == code).count()
}

#[test]
fn gateways_and_other_producers_meet_in_one_topic_and_a_killed_one_is_taken_over() {
    let _services = services::shared();
    let Some(mut site) = Site::new() else { return };
    let mut a = site.gateway("a");
    subscribed(&mut site, "a");
    a.until("a row", |l| l["delivered"]["history"].as_u64() > Some(0));
    let mut b = site.gateway("b");
    subscribed(&mut site, "b");
    let (from_a, from_b) = (site.messages("a", 1, 100), site.messages("b", 1, 100));
    let publishing = [publish(&site.mqtt, from_a), publish(&site.mqtt, from_b)];
    site.produce(1, 100);
    publishing.into_iter().for_each(|p| p.finish());
    site.check(&mut [&mut a, &mut b]);
    eventually("the dead letter of the row of another device than its record's key says", || {
        (dead_letters(&site, "partition") == 1).then_some(())
    });

    // Killed in mid-run: the other takes its partitions over. What its broker has for it waits there until it is back.
    for round in 1..3 {
        let (from_a, from_b) = (site.messages("a", 200 * round, 150), site.messages("b", 200 * round, 150));
        let before = site.database.count("sensor_data");
        let publishing = [publish(&site.mqtt, from_a), publish(&site.mqtt, from_b)];
        site.produce(200 * round, 50);
        eventually("some rows", || (site.database.count("sensor_data") > before + 200 * round).then_some(()));
        a.kill();
        publishing.into_iter().for_each(|p| p.finish());
        a = site.gateway("a");
        site.check(&mut [&mut a, &mut b]);
    }
    a.stop_unsettled();
    let last = site.messages("b", 700, 20);
    publish(&site.mqtt, last).finish();
    site.check(&mut [&mut b]);
    b.stop();
    site.check(&mut []);
}
