//! Checkpoints and state through the binary: savepoints of a running node, going back, export, and fsck on a damaged directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use arrow::ipc::reader::FileReader;
use serde_json::Value;

use crate::node::{Node, eventually, fieldstream};

const PIPELINE: &str = r#"
version: 1
pipeline: halls
checkpoint: { interval: 50ms, keep: 2 }
time: { out_of_orderness: 1s, idle_after: 1m, max_future: 1d }
sources:
  loud: { generator: { devices: 30, kinds: [pump], seed: 7, rate: 0.4, speed: 50 }, decode: { format: json } }
  quiet: { generator: { devices: 100, kinds: [freezer], seed: 8, rate: 0.0004, speed: 50 }, decode: { format: json } }
operators:
  jump: { inputs: [loud, quiet], detect: { ewma: { warmup: 30, z: 6 } } }
  minutes: { inputs: [loud, quiet], window: { tumbling: 10s, by: device, aggregate: { n: { count: "*" }, mean: { mean: value } } } }
sinks:
  rows: { inputs: [minutes], file: { path: minutes.ndjson } }
  alerts: { inputs: [jump], blackhole: }
dead_letter: { blackhole: }
"#;

fn run(dir: &Path) -> Node {
    fs::write(dir.join("halls.yaml"), PIPELINE).unwrap();
    let mut command = fieldstream();
    command.args(["run", "halls.yaml"]);
    Node::start(command, "halls", dir)
}

/// Runs a command on the directory of [`run`].
fn ask(dir: &Path, arguments: &[&str]) -> Output {
    fieldstream().args(arguments).args(["--data-dir", "state"]).current_dir(dir).output().expect("the binary runs")
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn received(at_least: u64) -> impl Fn(&Value) -> bool {
    move |ledger| ledger["received"].as_u64() >= Some(at_least)
}

/// The files of one kind under `state/state`.
fn files(dir: &Path, kind: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.join("state/state").join(kind)]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    found
}

#[test]
fn a_savepoint_is_made_listed_exported_and_gone_back_to() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut node = run(dir);
    node.until("readings", received(3000));
    let admin = node.admin().to_string();
    let create =
        |label: &str| fieldstream().args(["checkpoint", "create", label, "--pipeline", "halls", "--admin", &admin, "--json"]).output();
    let made = lines(&create("before upgrade").unwrap());
    let partitions = made[0]["partitions"].as_array().unwrap().len();
    assert_eq!(partitions, 16, "{made:?}");
    let again = create("before upgrade").unwrap();
    assert_eq!(again.status.code(), Some(1), "a label is given once");
    assert!(String::from_utf8_lossy(&again.stderr).contains("another label"), "{}", String::from_utf8_lossy(&again.stderr));
    let refused = ask(dir, &["state", "fsck", "--repair"]);
    assert_eq!(refused.status.code(), Some(1), "the node runs: {refused:?}");
    node.until("more readings", received(6000));
    // Most devices are quiet, so checkpoints hold what the others did.
    eventually("a checkpoint of several layers", || {
        let listed = lines(&ask(dir, &["checkpoint", "ls", "--json"]));
        listed.iter().any(|l| l["checkpoint"]["layers"].as_u64() > Some(1)).then_some(())
    });
    node.stop();

    let listed = lines(&ask(dir, &["checkpoint", "ls", "--json"]));
    let of_savepoint: Vec<&Value> = listed.iter().filter(|l| l["checkpoint"]["labels"][0] == "before upgrade").collect();
    assert_eq!(of_savepoint.len(), partitions);
    assert_eq!(lines(&ask(dir, &["state", "ls", "--json"])).len(), partitions);
    assert!(lines(&ask(dir, &["state", "fsck", "--json"])).iter().all(|l| l["checked"]["findings"].as_array().is_none_or(Vec::is_empty)));

    exported_state_is_readable(dir);

    let none = ask(dir, &["checkpoint", "restore", "nothing"]);
    assert_eq!(none.status.code(), Some(2), "{none:?}");
    let restored = ask(dir, &["checkpoint", "restore", "before upgrade", "--accept-gap", "--json"]);
    assert_eq!(lines(&restored).len(), partitions);
    let mut node = run(dir);
    node.until("readings after going back", received(7000));
    assert!(node.stderr().contains("because it was asked to"), "{}", node.stderr());
    node.stop();
    assert!(!ask(dir, &["checkpoint", "ls"]).stdout.is_empty());
    assert_windows_are_exact(dir);
}

/// Going back replays what the sink has already: no window may be there twice or with another count.
fn assert_windows_are_exact(dir: &Path) {
    let text = fs::read_to_string(dir.join("minutes.ndjson")).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let key = format!("{}{}", row["deviceId"], row["window_start"]);
        assert!(seen.insert(key), "twice: {line}");
    }
    assert!(!seen.is_empty());
}

fn exported_state_is_readable(dir: &Path) {
    let exported = lines(&ask(dir, &["state", "export", "--out", "out", "--json"]));
    let mut devices = std::collections::BTreeSet::new();
    for partition in &exported {
        for file in partition["files"].as_array().unwrap() {
            let path = dir.join(file.as_str().unwrap());
            if path.extension().is_some_and(|e| e == "arrow") {
                for rows in FileReader::try_new(fs::File::open(&path).unwrap(), None).unwrap() {
                    let rows = rows.unwrap();
                    assert_eq!(rows.schema().field(0).name(), "device_id", "{}", path.display());
                    let ids = arrow::array::AsArray::as_string::<i32>(rows.column(0)).clone();
                    if path.ends_with("devices.arrow") {
                        devices.extend(ids.iter().flatten().map(str::to_owned));
                    }
                }
            }
        }
    }
    assert_eq!(devices.len(), 130);
}

#[test]
fn a_damaged_directory_is_named_repaired_and_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut node = run(dir);
    node.until("readings", received(2000));
    eventually("some checkpoints", || (files(dir, "manifests").len() > 48).then_some(()));
    node.kill();
    let newest = |kind: &str| files(dir, kind).pop().expect("there is one");
    let manifest = newest("manifests");
    fs::write(&manifest, "damaged").unwrap();
    fs::write(dir.join("state/state/tmp/manifests~x"), "half").unwrap();
    let found = ask(dir, &["state", "fsck"]);
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    assert_eq!(found.status.code(), Some(1), "{text}");
    assert!(text.contains(manifest.file_name().unwrap().to_str().unwrap()) && text.contains("can be used"), "{text}");
    let repaired = ask(dir, &["state", "fsck", "--repair", "--accept-state-loss"]);
    let text = String::from_utf8_lossy(&repaired.stdout).into_owned();
    assert_eq!(repaired.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&repaired.stderr));
    assert!(text.contains("moved to quarantine") && text.contains("deleted"), "{text}");
    assert_eq!(ask(dir, &["state", "fsck"]).status.code(), Some(0), "once is enough");
    let mut node = run(dir);
    node.until("readings after the repair", received(3000));
    node.stop();
    assert_windows_are_exact(dir);
}

#[test]
fn readings_that_the_journal_has_lost_are_in_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let slow = PIPELINE.replace("interval: 50ms", "interval: 1h");
    fs::write(dir.join("slow.yaml"), slow).unwrap();
    let start = || {
        let mut command = fieldstream();
        command.args(["run", "slow.yaml"]);
        Node::start(command, "halls", dir)
    };
    let mut node = start();
    node.until("readings", received(2000));
    node.kill();
    // Everything is replayed, since there is no checkpoint: what is damaged in the middle is missed.
    let segment = dir.join("state/journal/00000000000000000000.segment");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let found = ask(dir, &["state", "fsck"]);
    assert_eq!(found.status.code(), Some(1), "{}", String::from_utf8_lossy(&found.stdout));
    let mut node = start();
    let ledger = node.until("the loss", |l| l["dropped"]["lost"].as_u64() > Some(0));
    assert!(node.stderr().contains("acknowledged payloads are lost"), "{}", node.stderr());
    let lost = ledger["dropped"]["lost"].clone();
    assert!(node.get("/metrics").unwrap().contains(r#"reason="lost""#));
    let account = node.stop();
    assert_eq!(account["ledger"]["dropped"]["lost"], lost);
}
