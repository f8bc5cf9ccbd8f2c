//! From the edge to the cloud: a journal is forwarded to a topic without transactions, and the reader's table holds each reading
//! once, though sender and reader are killed at random moments and the topic is away until the journal is full.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fleet::Dice;
use crate::node::{Node, PATIENCE, eventually, fieldstream};
use crate::publisher::{Message, publish};
use crate::services::{self, Control, Database, service};
use crate::topics;

/// What devices publish, the edge's own table of what it has journaled, the topic and the cloud's table.
struct Forwarding {
    edge: TempDir,
    cloud: TempDir,
    name: String,
    brokers: String,
    mqtt: String,
    database: Database,
    published: u64,
}

impl Forwarding {
    fn new() -> Option<Self> {
        let (brokers, mqtt) = (service("FIELDSTREAM_TEST_KAFKA")?, service("FIELDSTREAM_TEST_MQTT")?);
        let name = format!("it_{}", uuid::Uuid::new_v4().simple());
        let database = Database::new(&name)?;
        topics::create(&brokers, &format!("{name}.forwarded"), 3);
        let (edge, cloud) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let rig = Self { edge, cloud, name, brokers, mqtt, database, published: 0 };
        rig.write_pipelines();
        Some(rig)
    }

    fn write_pipelines(&self) {
        let Self { name, brokers, mqtt, database, .. } = self;
        let (kafka, url) = (format!("brokers: [\"{brokers}\"], topic: {name}.forwarded"), database.url());
        // A long interval, so that whoever is killed has much to repeat.
        let edge = format!(
            "version: 1\npipeline: {name}_edge\ncheckpoint: {{ interval: 1s, keep: 2 }}\n\
             sources:\n  field:\n    mqtt: {{ url: \"{mqtt}\", topics: [\"{name}/+/telemetry\"], qos: 1, client_id: {name} }}\n    \
             decode: {{ format: json, device: \"topic[1]\", unknown: tags }}\n\
             sinks:\n  cloud:\n    kafka: {{ {kafka}, delivery: exactly_once_at_reader, timeout: 5s }}\n    \
             batch: {{ max_rows: 100, max_wait: 10ms }}\n    inputs: [field]\n  \
             here:\n    timescale: {{ url: \"{url}\", table: sent }}\n    inputs: [field]\n\
             discard: [field.rejected]\n"
        );
        let cloud = format!(
            "version: 1\npipeline: {name}_cloud\ncheckpoint: {{ interval: 300ms, keep: 2 }}\n\
             sources:\n  forwarded:\n    kafka: {{ {kafka}, origins: deduplicate, properties: {{ session.timeout.ms: 6000 }} }}\n    decode: {{ format: canonical }}\n\
             sinks:\n  history:\n    timescale: {{ url: \"{url}\", table: arrived }}\n    batch: {{ max_rows: 100, max_wait: 10ms }}\n    inputs: [forwarded]\n\
             dead_letter: {{ file: {{ path: dead-letters.ndjson }} }}\n"
        );
        std::fs::write(self.edge.path().join("edge.yaml"), edge).expect("the pipeline is written");
        std::fs::write(self.cloud.path().join("cloud.yaml"), cloud).expect("the pipeline is written");
    }

    fn node(&self, which: &str, dir: &Path, arguments: &[&str]) -> Node {
        let mut command = fieldstream();
        command.arg("run").arg(format!("{which}.yaml")).args(arguments);
        Node::start(command, &format!("{}_{which}", self.name), dir)
    }

    fn edge(&self) -> Node {
        self.node("edge", self.edge.path(), &["--journal-budget", "8MiB"])
    }

    fn cloud(&self) -> Node {
        self.node("cloud", self.cloud.path(), &[])
    }

    /// The next readings, each with `padding` bytes of note.
    fn messages(&mut self, count: u64, padding: usize) -> Vec<Message> {
        let numbers = self.published..self.published + count;
        self.published += count;
        let message = |number: u64| {
            let reading = json!({ "id": format!("m{number}"), "sensorId": "t", "sensorType": "temperature",
                "timestamp": 1_700_000_000_000_u64 + number, "value": number, "note": "x".repeat(padding) });
            (format!("{}/d{}/telemetry", self.name, number % 11), reading.to_string().into_bytes())
        };
        numbers.map(message).collect()
    }

    /// A message that was not acknowledged comes again and is journaled again, so the cloud's table is compared with the edge's.
    fn check(&self) {
        let rows = |table: &str| {
            let mut rows = self.database.rows(&format!("SELECT device_id || ' ' || id || ' ' || value FROM {table}"));
            rows.sort();
            rows
        };
        let (sent, arrived) = (rows("sent"), rows("arrived"));
        assert_eq!(sent.len(), arrived.len(), "rows journaled at the edge, rows in the cloud");
        assert!(sent == arrived, "the tables differ");
        let mut ids = self.database.rows("SELECT DISTINCT id FROM arrived WHERE id <> 'probe'");
        ids.sort();
        let mut all: Vec<String> = (0..self.published).map(|number| format!("m{number}")).collect();
        all.sort();
        assert!(ids == all, "{} of {} readings arrived", ids.len(), all.len());
    }
}

fn number(ledger: &Value, path: &str) -> u64 {
    ledger.pointer(path).and_then(Value::as_u64).unwrap_or_default()
}

/// Waits until the node says that its journal is full.
fn full(node: &mut Node) {
    let deadline = Instant::now() + PATIENCE;
    while !node.body("/readyz").is_some_and(|body| body.contains("journal is full")) {
        assert!(!node.ended() && Instant::now() < deadline, "the journal was not full: {:?}\n{}", node.ledger(), node.stderr());
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn edge_to_cloud_exactly_once_under_kills_and_an_outage_longer_than_the_journal() {
    let _alone = services::alone();
    let (Some(mut rig), Some(control)) = (Forwarding::new(), Control::new()) else { return };
    let mut dice = Dice::thrown();
    let (mut edge, mut cloud) = (rig.edge(), rig.cloud());
    let probe = json!({ "id": "probe", "sensorId": "t", "timestamp": 1_700_000_000_000_u64, "value": 1 }).to_string().into_bytes();
    eventually("the subscription", || {
        publish(&rig.mqtt, vec![(format!("{}/d0/telemetry", rig.name), probe.clone())]).finish();
        assert!(!edge.ended(), "{}", edge.stderr());
        edge.ledger().filter(|l| number(l, "/received") > 0)
    });
    for (round, count) in [600, 400, 900, 700].into_iter().enumerate() {
        let before = number(&edge.until("an account", |_| true), "/delivered/cloud");
        let messages = rig.messages(count, 0);
        let publishing = publish(&rig.mqtt, messages);
        let enough = before + 1 + dice.below(count * 3 / 4);
        edge.until("some rows in the topic", |l| number(l, "/delivered/cloud") >= enough);
        edge.kill();
        if round % 2 == 1 {
            cloud.kill();
            cloud = rig.cloud();
        }
        publishing.finish();
        edge = rig.edge();
    }

    // Everybody is at work before the topic goes away: who takes partitions over without brokers gives up after a while.
    let before = rig.published;
    edge.until("everything to be in the topic", |l| number(l, "/received") >= before && l["in_flight"] == 0);
    cloud.until("what was sent to have arrived", |l| number(l, "/delivered/history") >= before);

    // The topic is away. The journal takes what it may hold, then the broker keeps the rest.
    let stopped = control.down("stop", "kafka");
    let messages = rig.messages(6000, 2048);
    publish(&rig.mqtt, messages).finish();
    full(&mut edge);
    edge.kill();
    edge = rig.edge();
    full(&mut edge);
    stopped.start();

    let all = rig.published;
    let sent = edge.until("everything to be sent", |l| {
        let rows = number(l, "/received");
        rows >= all && l["in_flight"] == 0 && l["balanced"] == true && number(l, "/delivered/here") == rows
    });
    let rows = number(&sent, "/received");
    let arrived = cloud.until("everything to have arrived", |l| number(l, "/delivered/history") >= rows && l["in_flight"] == 0);
    rig.check();
    let again = edge.stop();
    assert_eq!(again["ledger"]["received"], rows, "{again}");
    let account = cloud.stop();
    rig.check();
    let ledger = &account["ledger"];
    assert!(number(ledger, "/deduplicated") > 0, "kills make the sender repeat rows: {arrived}");
    let records = topics::read(&rig.brokers, &format!("{}.forwarded", rig.name)).len() as u64;
    assert_eq!((number(ledger, "/received"), number(ledger, "/settled")), (records, rows), "{ledger}");
    assert_eq!(number(ledger, "/settled") + number(ledger, "/deduplicated"), records, "{ledger}");
}
