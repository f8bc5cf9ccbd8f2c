//! The `file` sink against real files: exactly once through crashes, take-over and restarts.

use std::fs;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use fieldstream_engine_api::{
    ConnectContext, Edge, Generation, KeyedBatch, Keys, LogId, Mark, PartitionKey, Position, Shared, Sink, SinkBatch, SinkError, SinkInput,
    SinkRows, Space,
};
use fieldstream_schemas::columns::{TS, VALUE, time_type};
use serde_json::json;
use tempfile::TempDir;

use super::{FileSink, read_options};

const DAY_US: i64 = 86_400_000_000;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(TS, time_type(), false), Field::new(VALUE, DataType::Float64, true)]))
}

fn input() -> SinkInput {
    SinkInput { name: "clean".into(), edge: Edge { schema: schema(), key: Space::Device } }
}

fn sink(dir: &TempDir, path: &str, resume: bool) -> FileSink {
    sink_of(dir, path, resume, "ndjson")
}

fn sink_of(dir: &TempDir, path: &str, resume: bool, format: &str) -> FileSink {
    let inputs = [input()];
    let path = dir.path().join(path).display().to_string();
    let context =
        ConnectContext { pipeline: "p".into(), node: "out".into(), data_dir: dir.path().join("data"), resume, shared: Shared::default() };
    FileSink::new(read_options(&json!({ "path": path, "format": format }), &inputs).expect("options"), &inputs, &context)
}

fn key(partition: u32) -> PartitionKey {
    PartitionKey { pipeline: "p".into(), log_id: LogId("log".into()), partition }
}

fn mark(next_offset: u64) -> Mark {
    Mark { next_offset, next_decision: 0 }
}

/// Rows `(day, value)`, complete to `to`.
fn batch(partition: u32, rows: &[(i64, f64)], to: u64) -> SinkBatch {
    let ts = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|(day, _)| day * DAY_US)).with_timezone("UTC");
    let value = Float64Array::from_iter_values(rows.iter().map(|(_, value)| *value));
    let columns: Vec<ArrayRef> = vec![Arc::new(ts), Arc::new(value)];
    let mut keys = Keys::default();
    for at in 0..rows.len() {
        keys.push(0, 0, Position::new(at as u64, 0));
    }
    let batch = KeyedBatch::new(RecordBatch::try_new(schema(), columns).expect("batch"), keys);
    SinkBatch { partition: key(partition), rows: vec![SinkRows { input: 0, batch }], complete_to: mark(to) }
}

fn values(dir: &TempDir, file: &str) -> Vec<f64> {
    let text = fs::read_to_string(dir.path().join(file)).expect("file");
    let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("json")[VALUE].as_f64().expect("number");
    text.lines().map(row).collect()
}

#[tokio::test]
async fn a_full_disk_is_tried_again_and_writes_nothing_twice() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir, "out.ndjson", false);
    out.open(&key(0), Generation(1)).await.expect("open");
    out.commit(&[batch(0, &[(0, 1.0)], 1)]).await.expect("commit");
    // What is to replace the marks is written to a device that has no room.
    let marks = fs::read_dir(dir.path()).expect("entries").map(|e| e.expect("entry").path()).find(|p| p.ends_with(".out.ndjson.marks"));
    let beside = marks.expect("the marks").with_extension("marks.new");
    std::os::unix::fs::symlink("/dev/full", &beside).expect("symlink");
    for _ in 0..2 {
        let refused = out.commit(&[batch(0, &[(0, 2.0)], 2)]).await;
        assert!(matches!(refused, Err(SinkError::Retry { .. })), "{refused:?}");
    }
    fs::remove_file(&beside).expect("remove");
    out.commit(&[batch(0, &[(0, 2.0)], 2)]).await.expect("commit");
    assert_eq!(values(&dir, "out.ndjson"), [1.0, 2.0]);
}

#[tokio::test]
async fn rows_of_several_partitions_and_their_marks_are_one_commit() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir, "o/out.ndjson", false);
    assert_eq!(out.open(&key(0), Generation(1)).await.expect("open"), None);
    assert_eq!(values(&dir, "o/out.ndjson"), [0.0; 0], "exists before any row");
    out.open(&key(1), Generation(1)).await.expect("open");
    let done = out.commit(&[batch(0, &[(0, 1.0), (0, 2.0)], 10), batch(1, &[], 7)]).await.expect("commit");
    let told: Vec<_> = done.iter().map(|c| (c.partition.partition, c.mark, c.delivered)).collect();
    assert_eq!(told, [(0, mark(10), 2), (1, mark(7), 0)]);
    out.commit(&[batch(0, &[(0, 3.0)], 12)]).await.expect("commit");
    assert_eq!(values(&dir, "o/out.ndjson"), [1.0, 2.0, 3.0]);

    let mut again = sink(&dir, "o/out.ndjson", true);
    let seen = again.open(&key(0), Generation(2)).await.expect("open").expect("mark");
    assert_eq!((seen.mark, seen.delivered), (mark(12), 3));
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_committed_rows_stay() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir, "out.ndjson", false);
    out.open(&key(0), Generation(1)).await.expect("open");
    out.commit(&[batch(0, &[(0, 1.0)], 1)]).await.expect("commit");
    let path = dir.path().join("out.ndjson");
    let mut torn = fs::read(&path).expect("read");
    torn.extend_from_slice(b"{\"ts\":1,\"val");
    fs::write(&path, &torn).expect("crash in mid-write");

    let mut again = sink(&dir, "out.ndjson", true);
    again.open(&key(0), Generation(2)).await.expect("open");
    again.commit(&[batch(0, &[(0, 2.0)], 2)]).await.expect("commit");
    assert_eq!(values(&dir, "out.ndjson"), [1.0, 2.0]);

    fs::write(&path, b"").expect("rows are lost");
    let error = sink(&dir, "out.ndjson", true).open(&key(0), Generation(3)).await.expect_err("shorter than committed");
    assert!(matches!(error, SinkError::Fatal { .. }), "{error}");
}

#[tokio::test]
async fn a_stale_owner_is_fenced_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut old = sink(&dir, "out.ndjson", true);
    old.open(&key(0), Generation(1)).await.expect("open");
    old.open(&key(1), Generation(1)).await.expect("open");
    let mut new = sink(&dir, "out.ndjson", true);
    new.open(&key(0), Generation(2)).await.expect("open");
    let error = old.commit(&[batch(1, &[(0, 9.0)], 5), batch(0, &[(0, 9.0)], 5)]).await.expect_err("fenced");
    assert!(matches!(error, SinkError::Fenced { owner: Generation(2), .. }), "{error}");
    assert!(matches!(old.open(&key(0), Generation(1)).await, Err(SinkError::Fenced { .. })));
    assert_eq!(values(&dir, "out.ndjson"), [0.0; 0]);
    // What is left of the old owner's partitions goes on.
    old.commit(&[batch(1, &[(0, 4.0)], 5)]).await.expect("commit");
    new.commit(&[batch(0, &[(0, 5.0)], 5)]).await.expect("commit");
    assert_eq!(values(&dir, "out.ndjson"), [4.0, 5.0]);
}

#[tokio::test]
async fn a_fresh_run_begins_with_empty_outputs() {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::write(dir.path().join("out.ndjson"), "from elsewhere\n").expect("write");
    let mut out = sink(&dir, "out.ndjson", false);
    out.open(&key(0), Generation(1)).await.expect("open");
    out.commit(&[batch(0, &[(0, 1.0)], 1)]).await.expect("commit");
    let mut fresh = sink(&dir, "out.ndjson", false);
    assert_eq!(fresh.open(&key(0), Generation(1)).await.expect("open"), None);
    fresh.open(&key(1), Generation(1)).await.expect("open");
    fresh.commit(&[batch(0, &[(0, 2.0)], 1)]).await.expect("commit");
    assert_eq!(values(&dir, "out.ndjson"), [2.0]);
}

#[tokio::test]
async fn rows_go_to_the_file_of_their_day_and_a_fresh_run_removes_those() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir, "late/%Y-%m-%d.ndjson", false);
    out.open(&key(0), Generation(1)).await.expect("open");
    out.commit(&[batch(0, &[(1, 1.0), (0, 2.0), (1, 3.0)], 3)]).await.expect("commit");
    assert_eq!(values(&dir, "late/1970-01-02.ndjson"), [1.0, 3.0]);
    assert_eq!(values(&dir, "late/1970-01-01.ndjson"), [2.0]);
    let mut fresh = sink(&dir, "late/%Y-%m-%d.ndjson", false);
    fresh.open(&key(0), Generation(1)).await.expect("open");
    fresh.commit(&[batch(0, &[(1, 4.0)], 3)]).await.expect("commit");
    assert_eq!(values(&dir, "late/1970-01-02.ndjson"), [4.0]);
    assert!(!dir.path().join("late/1970-01-01.ndjson").exists());
}

#[tokio::test]
async fn a_commit_whose_answer_got_lost_is_not_written_twice() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir, "out.ndjson", false);
    out.open(&key(0), Generation(1)).await.expect("open");
    out.commit(&[batch(0, &[(0, 1.0)], 1)]).await.expect("commit");
    let before = out.writer.lock().expect("lock").owned.clone();
    out.commit(&[batch(0, &[(0, 2.0)], 2)]).await.expect("the answer to this one gets lost");
    out.writer.lock().expect("lock").owned = before;
    let done = out.commit(&[batch(0, &[(0, 2.0)], 2)]).await.expect("again");
    assert_eq!((done[0].mark, done[0].delivered), (mark(2), 2));
    assert_eq!(values(&dir, "out.ndjson"), [1.0, 2.0]);
}

#[test]
fn a_dated_path_needs_a_time_column() {
    let timeless = Arc::new(Schema::new(vec![Field::new(VALUE, DataType::Float64, true)]));
    let input = SinkInput { name: "x".into(), edge: Edge { schema: timeless, key: Space::Device } };
    let errors = read_options(&json!({ "path": "%Y.ndjson" }), std::slice::from_ref(&input)).expect_err("no ts");
    assert!(errors[0].to_string().contains("no column `ts`"), "{}", errors[0]);
    assert!(read_options(&json!({ "path": "all.ndjson", "format": "ndjson" }), &[input]).is_ok());
}

#[tokio::test]
async fn csv_files_have_one_header_whatever_happens() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = |file: &str| fs::read_to_string(dir.path().join(file)).expect("file");
    let mut first = sink_of(&dir, "out.csv", false, "csv");
    assert_eq!(first.open(&key(0), Generation(1)).await.expect("open"), None);
    assert_eq!(text("out.csv"), "timestamp,value\n", "a table without rows");
    assert_eq!(first.open(&key(1), Generation(1)).await.expect("open"), None);
    first.commit(&[batch(0, &[(0, 1.5), (1, f64::NAN)], 2), batch(1, &[(0, 3.0)], 1)]).await.expect("committed");
    let committed = "timestamp,value\n1970-01-01T00:00:00.000Z,1.5\n1970-01-02T00:00:00.000Z,\n1970-01-01T00:00:00.000Z,3.0\n";
    assert_eq!(text("out.csv"), committed);

    // A crash in the middle of a write: what was not committed is cut, and the header is not written again.
    fs::write(dir.path().join("out.csv"), format!("{committed}1970-01")).expect("a torn tail");
    let mut second = sink_of(&dir, "out.csv", true, "csv");
    let known = second.open(&key(0), Generation(2)).await.expect("open").expect("a mark");
    assert_eq!((known.mark, known.delivered), (mark(2), 2));
    second.commit(&[batch(0, &[(3, 4.0)], 3)]).await.expect("committed");
    assert_eq!(text("out.csv"), format!("{committed}1970-01-04T00:00:00.000Z,4.0\n"));

    let mut dated = sink_of(&dir, "by/%d.csv", false, "csv");
    dated.open(&key(0), Generation(1)).await.expect("open");
    dated.commit(&[batch(0, &[(0, 1.0), (1, 2.0), (0, 3.0)], 3)]).await.expect("committed");
    dated.commit(&[batch(0, &[(1, 4.0)], 4)]).await.expect("committed");
    assert_eq!(text("by/01.csv"), "timestamp,value\n1970-01-01T00:00:00.000Z,1.0\n1970-01-01T00:00:00.000Z,3.0\n");
    assert_eq!(text("by/02.csv"), "timestamp,value\n1970-01-02T00:00:00.000Z,2.0\n1970-01-02T00:00:00.000Z,4.0\n");
}

#[test]
fn a_csv_file_has_one_schema() {
    let other = SinkInput { name: "late".into(), edge: Edge { schema: Arc::new(Schema::empty()), key: Space::Device } };
    let errors = read_options(&json!({ "path": "out.csv", "format": "csv" }), &[input(), other]).map(|_| ()).expect_err("two schemas");
    assert!(errors[0].to_string().contains("one header"), "{}", errors[0]);
}
