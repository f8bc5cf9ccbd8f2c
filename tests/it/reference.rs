//! `sensor-alerts.yaml` on files, compared with a plain program: rows, dead letters, account, exit codes, kill -9 and resume.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::fleet::{self, Dice};
use crate::node::{Ended, Node, eventually, fieldstream};
use crate::oracle::{Answer, answer};
use crate::services::service;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/examples/sensor-alerts.yaml")
}

/// A folder with input, the pipeline to run, and a folder for output.
struct Job {
    dir: TempDir,
    pipeline: PathBuf,
    lines: u64,
    answer: Answer,
    /// Environment of the runs.
    environment: Vec<(&'static str, String)>,
}

impl Job {
    fn new(devices: u64, seconds: i64, seed: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let input = dir.path().join("in");
        fs::create_dir(&input).expect("a directory");
        let lines = fleet::write(&input, devices, seconds, seed);
        let answer = answer(&input);
        assert_eq!(answer.received, lines);
        Self { dir, pipeline: example(), lines, answer, environment: Vec::new() }
    }

    /// The same job with room for so many devices a partition: most of them lie on disk, most of the time.
    fn with_room_for(mut self, devices: usize) -> Self {
        let text = fs::read_to_string(example()).expect("the example is there");
        self.pipeline = self.dir.path().join("small.yaml");
        let limited = text.replacen("version: 1\n", &format!("version: 1\nlimits: {{ active_devices: {devices} }}\n"), 1);
        assert_ne!(text, limited);
        fs::write(&self.pipeline, limited).expect("a file");
        self
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn command(&self) -> Command {
        let mut command = fieldstream();
        let var = |name: &str, path: &Path| format!("{name}={}", path.display());
        command.arg("run").arg(&self.pipeline).arg("--var").arg(var("input", &self.dir.path().join("in")));
        command.arg("--var").arg(var("output", &self.output()));
        command.envs(self.environment.iter().cloned());
        command
    }

    /// Runs to the end without an admin server.
    fn run(&self, more: &[&str]) -> Ended {
        let mut command = self.command();
        let output =
            command.args(["--json", "--data-dir"]).arg(self.dir.path().join("state")).args(more).output().expect("the binary runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Ended { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    fn rows(&self, name: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.output().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(text.is_empty() || text.ends_with('\n'), "{name} ends with a whole row");
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{name}: {line}: {e}"))).collect()
    }

    /// Dead letters written so far.
    fn written(&self) -> u64 {
        let text = fs::read(self.output().join("dead-letters.ndjson")).unwrap_or_default();
        text.iter().filter(|b| **b == b'\n').count() as u64
    }

    fn check_account(&self, ended: &Ended) {
        assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
        let account = ended.account();
        let mut codes = BTreeMap::from([("parse", 0), ("timestamp", 0), ("range", 0), ("quality", 0)]);
        self.answer.rejects.values().for_each(|(code, _)| *codes.entry(code).or_insert(0) += 1);
        let expected = json!({
            "received": self.lines, "settled": self.answer.valid,
            "delivered": { "alerts": self.answer.alerts.len(), "windows": self.answer.windows.len() },
            "dead_lettered": codes, "dropped": {}, "deduplicated": 0, "in_flight": 0, "balanced": true,
        });
        assert_eq!(account["ledger"], expected, "{account}");
        assert_eq!((&account["pipeline"], &account["state"]), (&json!("sensor-alerts"), &json!("finished")));
        assert!(account["elapsed_s"].as_f64().is_some_and(|s| s > 0.0), "{account}");
    }

    fn check_alerts(&self) {
        let rows = self.rows("alerts.ndjson");
        assert_eq!(rows.len(), self.answer.alerts.len(), "alerts");
        let mut wanted = self.answer.alerts.clone();
        for row in rows {
            let id = row["id"].as_str().expect("an id");
            let alert = wanted.remove(id).unwrap_or_else(|| panic!("{id} is no alert, or twice: {row}"));
            assert_eq!(row.as_object().map(serde_json::Map::len), Some(8), "no member too many: {row}");
            assert_eq!((&row["deviceId"], &row["sensorId"]), (&json!(alert.device), &json!(alert.sensor)), "{row}");
            assert_eq!((&row["timestamp"], row["value"].as_f64()), (&json!(alert.timestamp), Some(alert.value)), "{row}");
            close(&row, "mean", alert.mean);
            close(&row, "std", alert.std);
            close(&row, "z", alert.z);
        }
        assert!(wanted.is_empty(), "missing: {wanted:?}");
    }

    fn check_windows(&self) {
        let rows = self.rows("windows.ndjson");
        assert_eq!(rows.len(), self.answer.windows.len(), "windows");
        let mut wanted = self.answer.windows.clone();
        for row in rows {
            let key = (row["deviceId"].as_str().expect("a device").to_owned(), row["start"].as_i64().expect("a start"));
            let window = wanted.remove(&key).unwrap_or_else(|| panic!("{key:?} is no window, or twice: {row}"));
            let exact = (row["count"].as_u64(), row["min"].as_f64(), row["max"].as_f64());
            assert_eq!(exact, (Some(window.count), Some(window.min), Some(window.max)), "{row}");
            close(&row, "mean", window.sum / window.count as f64);
        }
        assert!(wanted.is_empty(), "missing: {wanted:?}");
    }

    fn check_dead_letters(&self) {
        let mut wanted = self.answer.rejects.clone();
        for row in self.rows("dead-letters.ndjson") {
            let place = (row["partition"].as_u64().expect("a partition") as u32, row["offset"].as_u64().expect("an offset"));
            let (code, line) =
                wanted.remove(&place).unwrap_or_else(|| panic!("{place:?} was not to be rejected, or is there twice: {row}"));
            let payload = STANDARD.decode(row["payload_base64"].as_str().expect("a payload")).expect("base64");
            assert_eq!(String::from_utf8_lossy(&payload), String::from_utf8_lossy(&line), "{row}");
            assert_eq!(row["code"], code, "{}", String::from_utf8_lossy(&line));
        }
        assert!(wanted.is_empty(), "missing: {:?}", wanted.keys().collect::<Vec<_>>());
    }

    fn check(&self, ended: &Ended) {
        self.check_account(ended);
        self.check_alerts();
        self.check_windows();
        self.check_dead_letters();
    }
}

fn close(row: &Value, name: &str, wanted: f64) {
    let found = row[name].as_f64().unwrap_or_else(|| panic!("{name} is a number: {row}"));
    assert!((found - wanted).abs() <= 1e-9 * wanted.abs(), "{name} is {found}, not {wanted}: {row}");
}

#[test]
fn devices_that_leave_memory_change_nothing() {
    let job = Job::new(60, 60, 8).with_room_for(3);
    job.check(&job.run(&[]));
}

#[test]
fn the_reference_job_gives_exactly_the_right_rows() {
    let job = Job::new(60, 60, 7);
    let codes: Vec<&str> = job.answer.rejects.values().map(|(code, _)| *code).collect();
    assert!(["parse", "timestamp", "range", "quality"].iter().all(|c| codes.contains(c)), "the input has everything in it");
    assert!(job.answer.alerts.len() > 20, "the input has spikes");
    job.check(&job.run(&[]));
    // A second run starts afresh, its files too.
    job.check(&job.run(&[]));
}

#[test]
fn outputs_exist_even_when_nothing_comes_out() {
    let mut job = Job::new(3, 0, 1);
    job.check(&job.run(&[]));
    for name in ["alerts.ndjson", "windows.ndjson", "dead-letters.ndjson"] {
        assert_eq!(fs::read(job.output().join(name)).expect("the file is there"), b"");
    }
    fs::write(job.dir.path().join("in/p2.ndjson"), "{\"id\"").expect("the input is written");
    job.answer = answer(&job.dir.path().join("in"));
    job.lines = 1;
    job.check(&job.run(&[]));
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let job = Job::new(20, 30, 5);
    let full = || fs::File::options().write(true).open("/dev/full").expect("a disk that is always full");
    let mut command = job.command();
    command.args(["--json", "--data-dir"]).arg(job.dir.path().join("state")).stderr(full());
    let output = command.output().expect("the binary runs");
    let stdout = String::from_utf8(output.stdout).expect("UTF-8");
    job.check(&Ended { status: output.status, stdout, stderr: String::new() });
    let wrong = fieldstream().args(["run", "no-such-file.yaml"]).stderr(full()).status().expect("the binary runs");
    assert_eq!(wrong.code(), Some(78), "the reason cannot be told, the code can");
}

#[test]
fn wrong_use_is_told_apart_by_exit_codes() {
    let job = Job::new(1, 1, 1);
    let missing = fieldstream().arg("run").arg(example()).args(["--var", "input=x"]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert_eq!(missing.status.code(), Some(78), "{said}");
    let place = said.lines().find(|l| l.contains("output")).unwrap_or_else(|| panic!("the variable is not named: {said}"));
    let mut parts = place.split("sensor-alerts.yaml:").nth(1).unwrap_or_else(|| panic!("no file: {said}")).split(':');
    let numbers: Vec<u32> =
        parts.by_ref().take(2).map(|n| n.trim().parse().unwrap_or_else(|_| panic!("line and column: {said}"))).collect();
    assert!(numbers.len() == 2 && numbers.iter().all(|n| *n > 0), "{said}");

    let nowhere = job.dir.path().join("nowhere");
    let mut command = fieldstream();
    command.arg("run").arg(example()).args(["--json", "--var"]).arg(format!("input={}", nowhere.display()));
    command.arg("--var").arg(format!("output={}", job.output().display())).arg("--data-dir").arg(job.dir.path().join("state"));
    let output = command.output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("nowhere"), "{said}");

    let unknown = fieldstream().args(["run", "--no-such-flag"]).output().expect("the binary runs");
    assert_eq!(unknown.status.code(), Some(2));
}

/// The example with checkpoints close together, so that a killed run resumes from one and replays rows already written.
fn with_checkpoints_every(interval: &str, dir: &Path) -> PathBuf {
    let text = fs::read_to_string(example()).expect("the example is there");
    let head = "pipeline: sensor-alerts\n";
    assert!(text.contains(head));
    let path = dir.join("sensor-alerts.yaml");
    // Room for few devices: what is on disk must come back from a checkpoint, too.
    let more = format!("checkpoint: {{ interval: {interval}, keep: 2 }}\nlimits: {{ active_devices: 20 }}\n");
    let text = text.replacen(head, &format!("{head}{more}"), 1);
    fs::write(&path, text).expect("the pipeline is written");
    path
}

/// Kills runs at random moments and resumes them; the last one is left to its end.
fn kill_and_resume(mut job: Job, interval: &str) {
    job.pipeline = with_checkpoints_every(interval, job.dir.path());
    let mut dice = Dice::thrown();
    let mut kills = 0;
    for round in 0..8 {
        let mut command = job.command();
        if round > 0 {
            command.arg("--resume");
        }
        let mut node = Node::start(command, "sensor-alerts", job.dir.path());
        // Somewhere between here and the end, judged by what has become durable.
        let (from, all) = (job.written(), job.answer.rejects.len() as u64);
        let until = from + 1 + dice.below((all - from) / 2 + 1);
        eventually("rows to come", || (node.ended() || job.written() >= until).then_some(()));
        if node.ended() {
            break;
        }
        node.kill();
        kills += 1;
    }
    assert!(kills >= 2, "the input is too small to be killed in its middle");
    eprintln!("killed {kills} times");
    job.check(&job.run(&["--resume"]));
}

#[test]
fn killed_again_and_again_it_resumes_to_exactly_the_right_rows() {
    kill_and_resume(Job::new(300, 240, 11), "50ms");
}

#[test]
fn killed_again_and_again_it_resumes_from_checkpoints_in_a_bucket() {
    let Some(url) = service("FIELDSTREAM_TEST_S3") else { return };
    let mut job = Job::new(300, 600, 13);
    let place = format!("s3://fieldstream/{}/state", Uuid::new_v4());
    job.environment = vec![
        ("FIELDSTREAM_STATE", place.clone()),
        ("AWS_ENDPOINT_URL", url),
        ("AWS_ACCESS_KEY_ID", "fieldstream".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "fieldstream-secret".to_owned()),
    ];
    let (folder, environment) = (job.dir.path().join("state/state"), job.environment.clone());
    let ask = |arguments: &[&str]| {
        let output = fieldstream().args(arguments).envs(environment.clone()).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let checks = move || {
        assert!(!folder.exists(), "checkpoints lie in the bucket, not in {}", folder.display());
        let listed = ask(&["checkpoint", "ls", "--json"]);
        assert!(listed.lines().count() >= 4, "each partition has checkpoints: {listed}");
        let checked = ask(&["state", "fsck", "--json"]);
        assert!(checked.contains("usable") && !checked.contains("damaged"), "{checked}");
    };
    kill_and_resume(job, "300ms");
    checks();
}

#[test]
fn stopped_by_sigterm_it_drains_and_resumes() {
    // Long enough that the signal finds it in the middle.
    let mut job = Job::new(300, 1200, 12);
    job.pipeline = with_checkpoints_every("10s", job.dir.path());
    let mut node = Node::start(job.command(), "sensor-alerts", job.dir.path());
    eventually("the first rows", || (node.ended() || job.written() > 0).then_some(()));
    let account = node.stop();
    let received = account["ledger"]["received"].as_u64().expect("a number");
    assert!(0 < received && received < job.lines, "stopped in the middle: {account}");
    job.check(&job.run(&["--resume"]));
}
