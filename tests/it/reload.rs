//! Pipelines that change while they run: nothing lost, nothing doubled, and what did not change has not noticed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fleet::{self, Dice};
use crate::node::{Node, eventually, fieldstream, send};
use crate::publisher::{Message, publish};
use crate::services::{self, service};

const YAML: &str = "application/yaml";
const READINGS: u64 = 60_000;

/// A fleet with a pace, windows that are open at any time, and detectors in mid-episode.
const FLEET: &str = r#"
version: 1
pipeline: swapped
time: { out_of_orderness: 5s, idle_after: 1h }
checkpoint: { interval: 200ms }
sources:
  fleet:
    generator:
      { devices: 20, seed: 11, rate: 1, speed: 100, start: "2026-01-05T00:00:00Z", count: 60000, faults: { per_device_day: 200, warm_up: 2m, recovery: 1m } }
operators:
  clean: { validate: { rules: [{ id: range, range: { min: -60, max: 300 } }] }, inputs: [fleet] }
  minute: { window: { tumbling: 1m, by: series, aggregate: { n: { count: "*" }, mean: { mean: value }, high: { max: value } } }, inputs: [clean] }
  odd: { detect: { ewma: { warmup: 20, z: 4 } }, inputs: [clean] }
  hot: { detect: { threshold: { above: 80 } }, inputs: [clean] }
sinks:
  minutes: { file: { path: minutes.ndjson }, batch: { max_wait: 50ms }, inputs: [minute] }
  alerts: { file: { path: alerts.ndjson }, batch: { max_wait: 50ms }, inputs: [odd] }
  spare: { blackhole: {}, inputs: [hot] }
dead_letter: { file: { path: dead.ndjson } }
discard: [minute.late]
"#;

/// A folder with a pipeline file.
struct Job {
    dir: TempDir,
}

impl Job {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let job = Self { dir };
        job.write(text);
        job
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("pipeline.yaml")
    }

    /// As editors do it: beside, then in place.
    fn write(&self, text: &str) {
        let beside = self.dir.path().join("pipeline.yaml.new");
        fs::write(&beside, text).expect("a file");
        fs::rename(&beside, self.file()).expect("it is moved");
    }

    fn start(&self, pipeline: &str, more: &[&str]) -> Node {
        let mut command = fieldstream();
        // Long, for a busy machine: a plan that works passes with its first rows.
        command.arg("run").arg("pipeline.yaml").args(["--reload-trial", "60s"]).args(more);
        Node::start(command, pipeline, self.dir.path())
    }

    /// The rows of a file, in an order of their own, without what differs from run to run.
    fn rows(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let plain = |line: &str| {
            let mut row: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {line}: {e}"));
            if let Some(row) = row.as_object_mut() {
                // Made of the log's id; and a refused row, as JSON, says when it came.
                ["id", "alert_id", "payload_base64", "payload"].iter().for_each(|name| drop(row.remove(*name)));
            }
            row.to_string()
        };
        let mut rows: Vec<String> = text.lines().map(plain).collect();
        rows.sort_unstable();
        rows
    }
}

fn changed(text: &str, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    })
}

fn put(node: &Node, text: &str, query: &str) -> (u16, Value) {
    node.send("PUT", &format!("/v1/pipelines/swapped{query}"), YAML, text)
}

fn status(node: &Node) -> Value {
    eventually("a status", || serde_json::from_str(&node.get("/v1/pipelines/swapped/status")?).ok())
}

#[test]
fn what_did_not_change_has_not_noticed_several_reloads_under_load() {
    let undisturbed = Job::new(FLEET);
    let reference = undisturbed.start("swapped", &[]);
    let job = Job::new(FLEET);
    let mut node = job.start("swapped", &[]);
    let sink = changed(FLEET, &[("spare: { blackhole: {}", "spare: { file: { path: spare.ndjson }")]);
    let threshold = changed(&sink, &[("above: 80", "above: 60")]);
    let more = changed(&threshold, &[("sinks:\n", "sinks:\n  copy: { file: { path: copy.ndjson }, inputs: [odd] }\n")]);
    let broken = changed(&more, &[("copy.ndjson", "pipeline.yaml/copy.ndjson")]);
    node.until("some readings", |l| l["received"].as_u64() > Some(500));
    let mut before = status(&node)["plan"]["digest"].clone();
    for (number, text) in [&sink, &threshold, &more].into_iter().enumerate() {
        let enough = 1_000 * (number as u64 + 1);
        node.until("some readings", |l| l["received"].as_u64() > Some(enough));
        let (code, answer) = put(&node, text, "");
        assert_eq!((code, &answer["outcome"]), (200, &json!("applied")), "{answer}; {}", node.stderr());
        let now = status(&node);
        assert_ne!(now["plan"]["digest"], before);
        assert_eq!((&now["last_reload"]["from"], &now["last_reload"]["outcome"]), (&before, &json!("applied")), "{now}");
        before = now["plan"]["digest"].clone();
    }
    assert_eq!(put(&node, &more, "").1["outcome"], "unchanged");
    let (code, answer) = put(&node, &broken, "");
    assert_eq!((code, &answer["outcome"]), (500, &json!("reverted")), "{answer}");
    let now = status(&node);
    assert_eq!((&now["plan"]["digest"], &now["last_reload"]["outcome"]), (&before, &json!("reverted")), "{now}");
    assert!(!node.ended(), "all of this happened under load: {}", node.stderr());
    let metrics = node.get("/metrics").expect("metrics");
    for (outcome, count) in [("applied", 3), ("refused", 0), ("reverted", 1)] {
        let line = format!(r#"fieldstream_pipeline_reloads_total{{outcome="{outcome}",pipeline="swapped"}} {count}"#);
        assert!(metrics.contains(&line), "{line} in\n{metrics}");
    }
    let ended = node.wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert_eq!(reference.wait().status.code(), Some(0));
    let ledger = &ended.account()["ledger"];
    assert_eq!((&ledger["received"], &ledger["in_flight"], &ledger["balanced"]), (&json!(READINGS), &json!(0), &json!(true)), "{ledger}");
    for name in ["minutes.ndjson", "alerts.ndjson", "dead.ndjson"] {
        let (was, is) = (undisturbed.rows(name), job.rows(name));
        assert!(name == "dead.ndjson" || was.len() > 20, "{name} has rows to compare: {}", was.len());
        assert_eq!(was.len(), is.len(), "{name}");
        assert!(was == is, "{name} differs");
    }
    assert!(!job.rows("spare.ndjson").is_empty() && !job.rows("copy.ndjson").is_empty(), "new sinks get what comes after the swap");
}

#[test]
fn what_would_be_lost_or_is_wrong_is_refused_before_anything_is_drained() {
    let endless = changed(FLEET, &[(", count: 60000", ""), ("speed: 100", "speed: 20")]);
    let job = Job::new(&endless);
    let mut node = job.start("swapped", &[]);
    node.until("some readings", |l| l["received"].as_u64() > Some(200));
    let (code, answer) = put(&node, &changed(&endless, &[("z: 4", "zz: 4"), ("above: 80", "above: hot")]), "");
    assert_eq!((code, answer["status"].as_u64()), (422, Some(422)), "{answer}");
    let problems = answer["problems"].as_array().expect("a list");
    assert!(problems.iter().any(|p| p["code"] == "FS-1006" && p["line"].as_u64() > Some(1) && p["hint"].is_string()), "{answer}");
    assert_eq!(node.send("PUT", "/v1/pipelines/swapped", "application/json", "{}").0, 415);
    assert_eq!(node.send("PUT", "/v1/pipelines/swapped", YAML, &"#".repeat((1 << 20) + 1)).0, 413);
    assert_eq!(node.send("PUT", "/v1/pipelines/other", YAML, &endless).0, 404);
    assert_eq!(put(&node, &changed(&endless, &[("pipeline: swapped", "pipeline: other")]), "").0, 409);
    let renamed = changed(&endless, &[("  odd:", "  odder:"), ("inputs: [odd]", "inputs: [odder]")]);
    let (code, answer) = put(&node, &renamed, "");
    assert_eq!(code, 409, "{answer}");
    assert!(answer["detail"].as_str().is_some_and(|d| d.contains("odd/0") && d.contains("odd/1")), "{answer}");
    let now = status(&node);
    assert_eq!((&now["state"], &now["last_reload"]["outcome"]), (&json!("running"), &json!("refused")), "{now}");

    let compared = |text: &str| {
        job.write(text);
        let mut command = fieldstream();
        command.arg("plan").arg("pipeline.yaml").arg("--node").arg(node.admin().to_string()).current_dir(job.dir.path());
        let said = command.output().expect("the binary runs");
        (said.status.code(), String::from_utf8_lossy(&said.stdout).into_owned(), String::from_utf8_lossy(&said.stderr).into_owned())
    };
    let (code, out, err) = compared(&renamed);
    assert_eq!(code, Some(3), "{out}{err}");
    assert!(out.contains("operator odder (detect) is new") && out.contains("LOSES state odd/0"), "{out}");
    assert_eq!(compared(&changed(&endless, &[("above: 80", "above: 81")])).0, Some(0));
    assert_eq!(compared(&endless).1.lines().last(), Some("nothing changes"));

    let (code, answer) = put(&node, &renamed, "?accept_state_loss=true");
    assert_eq!((code, &answer["outcome"]), (200, &json!("applied")), "{answer}");
    let lost = status(&node)["plan"]["lost_state"].clone();
    assert_eq!(lost.as_array().map(Vec::len), Some(2), "{lost}");
    node.stop();
}

#[test]
fn plan_compares_two_files_and_says_by_its_exit_code_what_it_takes() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
    write("old.yaml", FLEET);
    let plan = |text: &str, more: &[&str]| {
        write("new.yaml", text);
        let mut command = fieldstream();
        let said = command.args(["plan", "old.yaml", "new.yaml"]).args(more).current_dir(dir.path()).output().expect("the binary runs");
        (said.status.code(), String::from_utf8_lossy(&said.stdout).into_owned())
    };
    assert_eq!(plan(&changed(FLEET, &[("above: 80", "above: 81")]), &[]).0, Some(0));
    let (code, json) = plan(&changed(FLEET, &[("tumbling: 1m", "tumbling: 2m")]), &["--json"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((code, json["losses"].as_array().map(Vec::len)), (Some(3), Some(1)), "{json}");
    assert_eq!(plan(&changed(FLEET, &[("pipeline: swapped", "pipeline: other")]), &[]).0, Some(4));
    assert_eq!(plan("version: 1", &[]).0, Some(78));
}

#[test]
fn a_watched_file_that_is_wrong_is_said_once_and_a_right_one_is_taken_over() {
    let endless = changed(FLEET, &[(", count: 60000", ""), ("speed: 100", "speed: 20")]);
    let job = Job::new(&endless);
    let mut node = job.start("swapped", &["--watch"]);
    node.until("some readings", |l| l["received"].as_u64() > Some(200));
    let before = status(&node)["plan"]["digest"].clone();
    job.write(&changed(&endless, &[("above: 80", "abov: 80")]));
    let refused = |node: &Node| node.stderr().matches("did you mean `above`?").count();
    eventually("the lint's words in the log", || (refused(&node) > 0).then_some(()));
    let now = status(&node);
    assert_eq!((&now["plan"]["digest"], &now["last_reload"]["outcome"]), (&before, &json!("refused")), "{now}");
    // Touched, and still wrong: it has been said.
    job.write(&changed(&endless, &[("above: 80", "abov: 80")]));
    job.write(&changed(&endless, &[("above: 80", "above: 70")]));
    eventually("the right file to be taken over", || (status(&node)["last_reload"]["outcome"] == "applied").then_some(()));
    assert_ne!(status(&node)["plan"]["digest"], before);
    assert_eq!(refused(&node), 1, "{}", node.stderr());
    node.stop();
}

/// Files of a fleet, decoded and windowed; they end by themselves.
const FILES: &str = r#"
version: 1
pipeline: swapped
time: { out_of_orderness: 5s }
checkpoint: { interval: 100ms }
sources:
  in: { file: { path: "in/*.ndjson" } }
operators:
  clean: { validate: { rules: [{ id: range, range: { min: -50, max: 150 } }] }, inputs: [in] }
  minute: { window: { tumbling: 1m, by: series, aggregate: { n: { count: "*" }, mean: { mean: value } } }, inputs: [clean] }
  odd: { detect: { ewma: { warmup: 20, z: 4 } }, inputs: [clean] }
sinks:
  minutes: { file: { path: minutes.ndjson }, batch: { max_wait: 20ms }, inputs: [minute] }
  alerts: { file: { path: alerts.ndjson }, batch: { max_wait: 20ms }, inputs: [odd] }
  rows: { blackhole: {}, inputs: [clean] }
dead_letter: { file: { path: dead.ndjson } }
discard: [minute.late]
"#;

fn files_job() -> Job {
    let job = Job::new(FILES);
    fs::create_dir(job.dir.path().join("in")).expect("a directory");
    fleet::write(&job.dir.path().join("in"), 20, 1_200, 5);
    job
}

#[test]
fn killed_in_mid_reload_it_goes_on_with_exactly_the_right_rows() {
    let undisturbed = files_job();
    let lines = undisturbed.start("swapped", &[]).wait().account()["ledger"]["received"].as_u64().expect("a number");
    let job = files_job();
    let other = changed(FILES, &[("rows: { blackhole: {}", "rows: { file: { path: rows.ndjson }")]);
    let mut dice = Dice::thrown();
    let mut kills = 0;
    for round in 0..6_u64 {
        let more: &[&str] = if round == 0 { &[] } else { &["--resume"] };
        let mut node = job.start("swapped", more);
        let wanted = lines * (round + 1) / 10;
        let there = eventually("some readings, or the end", || {
            let received = node.ledger().and_then(|l| l["received"].as_u64());
            if received >= Some(wanted) { Some(true) } else { node.ended().then_some(false) }
        });
        if !there {
            break;
        }
        // The file says at the next start what was wished for when it was killed.
        let next = if round % 2 == 0 { &other } else { FILES };
        job.write(next);
        let (admin, text) = (node.admin(), next.to_owned());
        let asking = std::thread::spawn(move || send(admin, "PUT", "/v1/pipelines/swapped", YAML, &text));
        std::thread::park_timeout(Duration::from_millis(dice.below(150)));
        node.kill();
        kills += 1;
        asking.join().expect("it asks");
    }
    assert!(kills > 0, "it was killed while it worked");
    let ended = job.start("swapped", &["--resume"]).wait();
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    let ledger = &ended.account()["ledger"];
    assert_eq!((&ledger["received"], &ledger["balanced"]), (&json!(lines), &json!(true)), "{ledger}");
    for name in ["minutes.ndjson", "alerts.ndjson", "dead.ndjson"] {
        let (was, is) = (undisturbed.rows(name), job.rows(name));
        assert!(!was.is_empty(), "{name} has rows to compare");
        assert!(was == is, "{name}: {} rows undisturbed, {} after {kills} kills\n{}", was.len(), is.len(), ended.stderr);
    }
}

/// Open files and threads of a process. Both go up and down: with the files of checkpoints under way, and with the threads that
/// work on them, which stay a while.
fn held(pid: u32) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(Path::new("/proc").join(pid.to_string()).join(what)).map_or(0, Iterator::count);
    (count("fd"), count("task"))
}

#[test]
fn many_reloads_leave_no_files_and_no_threads_behind() {
    let endless = changed(FLEET, &[(", count: 60000", ""), ("seed: 11", "seed: 12")]);
    let job = Job::new(&endless);
    let mut node = job.start("swapped", &[]);
    node.until("some readings", |l| l["received"].as_u64() > Some(500));
    let mut first = None;
    for round in 0..32 {
        let text = changed(&endless, &[("above: 80", &format!("above: {}", 10 + round))]);
        let (code, answer) = put(&node, &text, "");
        assert_eq!((code, &answer["outcome"]), (200, &json!("applied")), "{answer}; {}", node.stderr());
        // The first rounds make what is used again.
        if round == 10 {
            first = Some(held(node.id()));
        }
    }
    let ((files, threads), (files_then, threads_then)) = (held(node.id()), first.expect("round 10 was there"));
    assert!(files > 0 && threads > 0, "/proc is there");
    assert!(files <= files_then + 20, "{files_then} open files became {files}");
    assert!(threads <= threads_then + 40, "{threads_then} threads became {threads}");
    let ledger = node.until("a balanced ledger", |l| l["balanced"] == true);
    assert!(ledger["received"].as_u64() > Some(500), "{ledger}");
    node.stop();
}

#[test]
fn an_mqtt_connection_lives_through_reloads_and_every_message_is_there_once() {
    let Some(mqtt) = service("FIELDSTREAM_TEST_MQTT") else { return };
    let _services = services::shared();
    let name = format!("it_{}", uuid::Uuid::new_v4().simple());
    let text = format!(
        r#"
version: 1
pipeline: swapped
checkpoint: {{ interval: 200ms }}
sources:
  field: {{ mqtt: {{ url: "{mqtt}", topics: ["{name}/+/telemetry"], qos: 1 }}, decode: {{ format: json, device: "topic[1]" }} }}
operators:
  clean: {{ validate: {{ rules: [{{ id: range, range: {{ min: -60, max: 300 }} }}] }}, inputs: [field] }}
sinks:
  rows: {{ file: {{ path: rows.ndjson }}, batch: {{ max_wait: 20ms }}, inputs: [clean] }}
  spare: {{ blackhole: {{}}, inputs: [clean] }}
dead_letter: {{ file: {{ path: dead.ndjson }} }}
"#
    );
    let job = Job::new(&text);
    let mut node = job.start("swapped", &[]);
    eventually("the subscription", || node.stderr().contains("connected to the MQTT broker").then_some(()));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64 - 3_600_000;
    let messages: Vec<Message> = (0..6_000_u64)
        .map(|n| {
            (
                format!("{name}/d{}/telemetry", n % 40),
                format!(r#"{{"sensorId":"t","timestamp":{},"value":{}}}"#, now + n, n % 100).into_bytes(),
            )
        })
        .collect();
    let total = messages.len() as u64;
    let publishing = publish(&mqtt, messages);
    for round in 0..4_u64 {
        node.until("some messages", |l| l["received"].as_u64() > Some(round * total / 6));
        let other = changed(&text, &[("max: 300", &format!("max: {}", 301 + round))]);
        let (code, answer) = put(&node, &other, "");
        assert_eq!((code, &answer["outcome"]), (200, &json!("applied")), "{answer}; {}", node.stderr());
    }
    publishing.finish();
    node.until_settled(total);
    assert_eq!(node.stderr().matches("connected to the MQTT broker").count(), 1, "one connection for all plans: {}", node.stderr());
    node.stop();
    let rows = job.rows("rows.ndjson");
    assert_eq!(rows.len() as u64, total);
    let mut distinct = rows;
    distinct.dedup();
    assert_eq!(distinct.len() as u64, total, "no row twice");
}
