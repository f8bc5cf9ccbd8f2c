//! Too much: a sink that stalls for a long time, a journal that is full, payloads and devices beyond their limits. Memory stays flat,
//! others go on, everything is named, nothing is lost, and it goes on by itself.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Ended, Node, eventually, fieldstream};
use crate::publisher::publish;
use crate::services::{self, Control, Database, Frozen, service};

/// Readings of each pipeline: several times what may wait in memory.
const READINGS: u64 = 300_000;

/// How long the sink stalls once all else is done.
const STALL: Duration = Duration::from_secs(35);

fn to_postgres(name: &str) -> String {
    format!(
        "
version: 1
pipeline: {name}
sources:
  fleet: {{ generator: {{ devices: 200, seed: 3, speed: max, count: {READINGS} }} }}
sinks:
  history:
    timescale:
      host: ${{env:TIMESCALE_HOST}}
      port: ${{env:TIMESCALE_PORT}}
      database: ${{env:TIMESCALE_DB}}
      user: ${{env:TIMESCALE_USER}}
      password: ${{env:TIMESCALE_PASSWORD}}
      ssl: prefer
      table: readings
    inputs: [fleet]
discard: [fleet.rejected]
"
    )
}

const TO_FILE: &str = "
version: 1
pipeline: unharmed
sources:
  other: { generator: { devices: 200, seed: 4, speed: max, count: 300000 } }
sinks:
  rows: { file: { path: rows.ndjson }, inputs: [other] }
discard: [other.rejected]
";

fn ledger_of(node: &Node, pipeline: &str) -> Option<Value> {
    serde_json::from_str(&node.get(&format!("/v1/pipelines/{pipeline}/ledger"))?).ok()
}

/// Resident bytes of the process, as it tells itself.
fn resident(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).expect("the process runs");
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.expect("a resident size") * 1024
}

fn ready(node: &Node) -> Option<Value> {
    serde_json::from_str(&node.body("/readyz")?).ok()
}

fn waits(reasons: &Value, what: &str) -> bool {
    reasons["reasons"].as_array().is_some_and(|all| all.iter().filter_map(Value::as_str).any(|reason| reason.contains(what)))
}

/// Freezes the database once the pipeline has stored its first rows.
fn freeze<'a>(control: &'a Control, node: &Node, pipeline: &str) -> Frozen<'a> {
    eventually("the first rows", || ledger_of(node, pipeline).filter(|l| l["delivered"]["history"].as_u64() > Some(0)));
    control.frozen("postgres")
}

/// The node ends by itself, and the pipeline has stored every reading.
fn all_stored(node: Node, pipeline: &str) -> Ended {
    let ended = node.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let mut accounts = ended.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let account = accounts.rfind(|account| account["pipeline"] == pipeline).expect("its account")["ledger"].clone();
    assert_eq!((account["received"].as_u64(), account["delivered"]["history"].as_u64()), (Some(READINGS), Some(READINGS)), "{account}");
    assert_eq!(account["balanced"], true, "{account}");
    ended
}

fn start(dir: &Path, database: &Database, pipeline: &str, others: &[&str], arguments: &[&str]) -> Node {
    std::fs::write(dir.join("stalled.yaml"), to_postgres(pipeline)).expect("a file");
    let mut command = fieldstream();
    command.arg("run").arg("stalled.yaml").args(others).args(arguments).envs(database.variables());
    Node::start(command, pipeline, dir)
}

#[test]
fn a_sink_that_stalls_holds_its_own_pipeline_only_and_memory_stays_flat() {
    let _alone = services::alone();
    let (Some(database), Some(control)) = (Database::new(&format!("it_{}", uuid::Uuid::new_v4().simple())), Control::new()) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("unharmed.yaml"), TO_FILE).expect("a file");
    let node = start(dir.path(), &database, "stalled", &["unharmed.yaml"], &[]);
    let frozen = freeze(&control, &node, "stalled");
    eventually("the other pipeline to finish", || {
        ledger_of(&node, "unharmed").filter(|l| l["delivered"]["rows"].as_u64() == Some(READINGS) && l["balanced"] == true)
    });
    let (before, since) = (resident(&node), Instant::now());
    let mut highest = before;
    let reasons = eventually("the node to say what stalls", || {
        highest = highest.max(resident(&node));
        ready(&node).filter(|_| since.elapsed() >= STALL)
    });
    assert!(waits(&reasons, "stalled"), "{reasons}");
    assert!(highest < before + (48 << 20), "memory grew from {before} to {highest} bytes while the sink stood still");
    assert_ne!(ledger_of(&node, "stalled").map(|l| l["settled"].clone()), Some(READINGS.into()), "nothing can have been stored");
    frozen.thaw();
    all_stored(node, "stalled");
    assert_eq!(database.count("readings"), READINGS);
}

#[test]
fn a_full_journal_refuses_says_so_and_goes_on_by_itself() {
    let _alone = services::alone();
    let (Some(database), Some(control)) = (Database::new(&format!("it_{}", uuid::Uuid::new_v4().simple())), Control::new()) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let node = start(dir.path(), &database, "full", &[], &["--journal-budget", "8MiB"]);
    let frozen = freeze(&control, &node, "full");
    eventually("the node to say that its journal is full", || ready(&node).filter(|reasons| waits(reasons, "journal is full")));
    let metrics = node.get("/metrics").expect("the node serves");
    assert!(metrics.contains(r#"fieldstream_trouble{part="journal",pipeline="full"} 1"#), "{metrics}");
    frozen.thaw();
    let ended = all_stored(node, "full");
    assert_eq!(database.count("readings"), READINGS);
    assert!(ended.stderr.contains("the journal takes what is received again"), "{}", ended.stderr);
}

const MANY_FILES: &str = r#"
version: 1
pipeline: handles
checkpoint: { interval: 1s }
sources:
  fleet: { generator: { devices: 1000, seed: 5, speed: 1 } }
sinks:
  store: { parquet: { path: store }, inputs: [fleet] }
  history: { file: { path: rows.ndjson }, inputs: [fleet] }
discard: [fleet.rejected]
"#;

/// How many files the node may have open from now on; it has more already, and keeps them.
fn allow_files(node: &Node, limit: &str) {
    let told =
        Command::new("prlimit").args(["--pid", &node.id().to_string(), &format!("--nofile={limit}:")]).status().expect("prlimit runs");
    assert!(told.success(), "prlimit {limit}");
}

#[test]
fn without_file_handles_a_node_says_so_and_goes_on_by_itself() {
    let _services = services::shared();
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("handles.yaml"), MANY_FILES).expect("a file");
    let mut command = fieldstream();
    command.arg("run").arg("handles.yaml");
    let node = Node::start(command, "handles", dir.path());
    eventually("the first rows", || ledger_of(&node, "handles").filter(|l| l["delivered"]["history"].as_u64() > Some(0)));
    let mut admin = node.keep_open();
    // A connection that waits to be accepted would wait for a file handle too.
    admin.body("/readyz").expect("the node serves");
    allow_files(&node, "8");
    let lacking = "Too many open files";
    eventually("the node to say what it lacks", || admin.body("/readyz").filter(|body| body.contains(lacking)));
    let metrics = admin.body("/metrics").expect("the node serves");
    assert!(metrics.contains(r#"fieldstream_trouble{part="checkpoints",pipeline="handles"} 1"#), "{metrics}");
    eventually("both sinks to have tried", || {
        let tried = |sink: &str| node.stderr().lines().any(|line| line.contains(lacking) && line.contains(sink));
        (tried("sink=history") && (tried("sink=store") || tried("parquet"))).then_some(())
    });
    allow_files(&node, "4096");
    eventually("the node to lack nothing", || ready(&node).filter(|reasons| reasons["ready"] == true));
    let account = node.stop()["ledger"].clone();
    let stored = account["received"].as_u64().expect("a count");
    assert_eq!(account["delivered"], serde_json::json!({ "store": stored, "history": stored }), "{account}");
    let rows = std::fs::read_to_string(dir.path().join("rows.ndjson")).expect("rows");
    assert_eq!(rows.lines().count() as u64, stored);
    let mut query = fieldstream();
    query.current_dir(dir.path()).args(["query", "--store", "store", "--json", "SELECT count(*) AS n FROM fleet"]);
    let counted = query.output().expect("the binary runs");
    assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), format!("{{\"n\":{stored}}}"), "{counted:?}");
}

const LIMITED: &str = r#"
version: 1
pipeline: limited
limits: { devices_per_source: 3 }
sources:
  field:
    mqtt: { url: "URL", topics: ["NAME/+/telemetry"], qos: 1 }
    decode: { format: json, device: "topic[1]", limits: { bytes: 2KiB, rows: 4 } }
sinks:
  rows: { file: { path: rows.ndjson }, inputs: [field] }
dead_letter: { file: { path: dead-letters.ndjson } }
"#;

#[test]
fn huge_payloads_and_made_up_devices_are_refused_before_the_journal_and_counted() {
    let _services = services::shared();
    let Some(mqtt) = service("FIELDSTREAM_TEST_MQTT") else { return };
    let (dir, name) = (tempfile::tempdir().expect("a directory"), format!("it_{}", uuid::Uuid::new_v4().simple()));
    std::fs::write(dir.path().join("limited.yaml"), LIMITED.replace("URL", &mqtt).replace("NAME", &name)).expect("a file");
    let mut command = fieldstream();
    command.arg("run").arg("limited.yaml");
    let mut node = Node::start(command, "limited", dir.path());
    let message = |device: &str, payload: String| (format!("{name}/{device}/telemetry"), payload.into_bytes());
    let reading = |value: u32| format!(r#"{{"sensorId":"t","timestamp":{},"value":{value}}}"#, 1_795_428_000_000_u64 + u64::from(value));
    eventually("the subscription", || {
        publish(&mqtt, vec![message("a", reading(0))]).finish();
        node.ledger().filter(|l| l["received"].as_u64() > Some(0))
    });
    let several = |count: u32| format!("[{}]", (0..count).map(reading).collect::<Vec<_>>().join(","));
    let huge = format!(r#"{{"sensorId":"t","timestamp":0,"value":1,"note":"{}"}}"#, "x".repeat(1 << 20));
    let mut messages = vec![message("a", huge), message("a", several(5)), message("b", several(4))];
    messages.extend((0..20).map(|n| message(&format!("made-up-{n}"), reading(n))));
    messages.push(message("b", reading(9)));
    publish(&mqtt, messages).finish();
    // Of the made-up devices one is the third device, and 19 are beyond the limit.
    let account = node.until("every message to have its end", |l| {
        l["dead_lettered"]["device_limit"].as_u64() == Some(19) && l["delivered"]["rows"].as_u64() >= Some(7) && l["in_flight"] == 0
    });
    assert_eq!(account["dead_lettered"]["payload_size"], 1, "{account}");
    assert_eq!(account["dead_lettered"]["payload_rows"], 1, "{account}");
    let account = node.stop();
    let delivered = account["ledger"]["delivered"]["rows"].as_u64();
    assert_eq!(account["ledger"]["settled"].as_u64(), delivered, "{account}");
    let letters = std::fs::read_to_string(dir.path().join("dead-letters.ndjson")).expect("dead letters");
    assert_eq!(letters.lines().count(), 21, "{letters}");
    let longest = letters.lines().map(str::len).max();
    assert!(longest < Some(100_000), "of a huge payload only the beginning is kept");
}
