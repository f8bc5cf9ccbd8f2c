//! The `parquet` sink against real directories: replays, take-overs and what readers see.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, Float64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use fieldstream_engine_api::{
    ConnectContext, Edge, Generation, KeyedBatch, Keys, LogId, Mark, PartitionKey, Position, Shared, Sink as _, SinkBatch, SinkError,
    SinkInput, SinkRows, Space,
};
use fieldstream_schemas::columns::{TS, VALUE, time_type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;
use tempfile::TempDir;

use super::chain::Commit;
use super::sink::{ParquetSink, read_options};

const DAY_US: i64 = 86_400_000_000;

fn schema(value: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new(TS, time_type(), false), Field::new(value, DataType::Float64, true)]))
}

fn inputs() -> [SinkInput; 2] {
    let input = |name: &str, value| SinkInput { name: name.into(), edge: Edge { schema: schema(value), key: Space::Device } };
    [input("clean", VALUE), input("outlier.alerts", "severity")]
}

fn sink_of(dir: &TempDir, node: &str, replace: bool) -> ParquetSink {
    let context =
        ConnectContext { pipeline: "p".into(), node: node.into(), data_dir: PathBuf::new(), resume: false, shared: Shared::default() };
    let options = json!({ "url": dir.path().join("store"), "replace": replace });
    ParquetSink::new(read_options(&options, &inputs()).expect("options"), &inputs(), &context)
}

fn sink(dir: &TempDir) -> ParquetSink {
    sink_of(dir, "out", false)
}

fn key(partition: u32) -> PartitionKey {
    PartitionKey { pipeline: "p".into(), log_id: LogId("kafka:c/1".into()), partition }
}

fn mark(next_offset: u64) -> Mark {
    Mark { next_offset, next_decision: 0 }
}

fn rows(input: usize, rows: &[(i64, f64)]) -> SinkRows {
    let ts = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|(day, _)| day * DAY_US)).with_timezone("UTC");
    let value = Float64Array::from_iter_values(rows.iter().map(|(_, value)| *value));
    let columns: Vec<ArrayRef> = vec![Arc::new(ts), Arc::new(value)];
    let mut keys = Keys::default();
    (0..rows.len()).for_each(|at| keys.push(0, 0, Position::new(at as u64, 0)));
    let schema = inputs()[input].edge.schema.clone();
    SinkRows { input, batch: KeyedBatch::new(RecordBatch::try_new(schema, columns).expect("batch"), keys) }
}

/// Rows `(day, value)` of the first input, complete to `to`.
fn batch(partition: u32, values: &[(i64, f64)], to: u64) -> SinkBatch {
    let rows = if values.is_empty() { vec![] } else { vec![rows(0, values)] };
    SinkBatch { partition: key(partition), rows, complete_to: mark(to) }
}

fn walk(dir: &std::path::Path, ending: &str, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, ending, out);
        } else if path.extension().is_some_and(|e| e == ending) {
            out.push(path);
        }
    }
    out.sort();
}

fn found(dir: &TempDir, below: &str, ending: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    walk(&dir.path().join("store").join(below), ending, &mut out);
    out
}

/// `directory: values` of all committed files, sorted.
fn committed_rows(dir: &TempDir) -> Vec<String> {
    let mut out = Vec::new();
    for path in found(dir, "commits", "json") {
        let commit: Commit = serde_json::from_slice(&fs::read(path).expect("commit")).expect("json");
        for file in commit.files {
            let path = dir.path().join("store").join(&file);
            let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).expect("data file")).expect("parquet").build();
            let batches: Vec<_> = reader.expect("reader").map(|b| b.expect("rows")).collect();
            let values = batches.iter().flat_map(|b| b.column(1).as_primitive::<Float64Type>().values().to_vec());
            out.push(format!("{}: {:?}", file.rsplit_once('/').expect("directory").0, values.collect::<Vec<_>>()));
        }
    }
    out.sort();
    out
}

#[tokio::test]
async fn rows_lie_by_input_and_day_and_the_mark_comes_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir);
    assert_eq!(out.open(&key(0), Generation(1)).await.expect("open"), None);
    assert_eq!(out.open(&key(1), Generation(1)).await.expect("open"), None);
    let mut first = batch(0, &[(1, 1.0), (0, 2.0), (1, 3.0)], 10);
    first.rows.push(rows(0, &[(1, 4.0)]));
    first.rows.push(rows(1, &[(1, 5.0)]));
    let done = out.commit(&[first, batch(1, &[], 7)]).await.expect("commit");
    let told: Vec<_> = done.iter().map(|c| (c.partition.partition, c.mark, c.delivered)).collect();
    assert_eq!(told, [(0, mark(10), 5), (1, mark(7), 0)]);
    let wanted = ["clean/day=1970-01-01: [2.0]", "clean/day=1970-01-02: [1.0, 3.0, 4.0]", "outlier.alerts/day=1970-01-02: [5.0]"];
    assert_eq!(committed_rows(&dir), wanted);

    let again = sink(&dir).open(&key(0), Generation(2)).await.expect("open").expect("mark");
    assert_eq!((again.mark, again.delivered), (mark(10), 5));
    let other_log = PartitionKey { log_id: LogId("other".into()), ..key(0) };
    assert_eq!(sink(&dir).open(&other_log, Generation(1)).await.expect("open"), None);
    assert_eq!(committed_rows(&dir).len(), 3, "rows of earlier logs stay");
}

#[tokio::test]
async fn files_of_a_crash_before_the_commit_are_not_seen_and_removed() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir);
    out.open(&key(0), Generation(1)).await.expect("open");
    out.open(&key(1), Generation(1)).await.expect("open");
    out.commit(&[batch(0, &[(0, 1.0)], 1), batch(1, &[(0, 7.0)], 1)]).await.expect("commit");
    out.commit(&[batch(0, &[(0, 2.0)], 2)]).await.expect("commit");
    // A crash between data file and commit object: as if the last commit had not come to pass.
    let commits = found(&dir, "commits/kafka=3Ac=2F1/0", "json");
    fs::remove_file(commits.last().expect("commit")).expect("remove");
    assert_eq!(committed_rows(&dir), ["clean/day=1970-01-01: [1.0]", "clean/day=1970-01-01: [7.0]"]);
    assert_eq!(found(&dir, "clean", "parquet").len(), 3);

    let mut again = sink(&dir);
    let seen = again.open(&key(0), Generation(2)).await.expect("open").expect("mark");
    assert_eq!((seen.mark, seen.delivered), (mark(1), 1));
    assert_eq!(found(&dir, "clean", "parquet").len(), 2, "the orphan is gone, the other partition's file is not");
    let done = again.commit(&[batch(0, &[(0, 2.0)], 2)]).await.expect("replayed");
    assert_eq!((done[0].mark, done[0].delivered), (mark(2), 2));
    assert_eq!(committed_rows(&dir).len(), 3);
}

#[tokio::test]
async fn a_stale_owner_is_fenced_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut old = sink(&dir);
    old.open(&key(0), Generation(1)).await.expect("open");
    old.commit(&[batch(0, &[(0, 1.0)], 1)]).await.expect("commit");
    let mut new = sink(&dir);
    assert_eq!(new.open(&key(0), Generation(2)).await.expect("open").expect("mark").mark, mark(1));
    let error = old.commit(&[batch(0, &[(0, 9.0)], 2)]).await.expect_err("fenced");
    assert!(matches!(error, SinkError::Fenced { owner: Generation(2), .. }), "{error}");
    assert!(matches!(old.open(&key(0), Generation(1)).await, Err(SinkError::Fenced { .. })));
    new.commit(&[batch(0, &[(0, 2.0)], 2)]).await.expect("commit");
    assert_eq!(committed_rows(&dir), ["clean/day=1970-01-01: [1.0]", "clean/day=1970-01-01: [2.0]"]);
}

#[tokio::test]
async fn a_commit_that_comes_again_is_made_once() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir);
    out.open(&key(0), Generation(1)).await.expect("open");
    // Partition 1 was not opened, so the call fails after partition 0 is committed.
    let calls = [batch(0, &[(0, 1.0)], 1), batch(1, &[(0, 2.0)], 1)];
    out.commit(&calls).await.expect_err("not opened");
    out.open(&key(1), Generation(1)).await.expect("open");
    let done = out.commit(&calls).await.expect("again");
    assert_eq!(done.iter().map(|c| c.delivered).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(committed_rows(&dir).len(), 2);
}

#[tokio::test]
async fn a_torn_commit_never_happened() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir);
    out.open(&key(0), Generation(1)).await.expect("open");
    out.commit(&[batch(0, &[(0, 1.0)], 1)]).await.expect("commit");
    let torn = dir.path().join("store/commits/kafka=3Ac=2F1/0").join(format!("{:020}.json", 3));
    fs::write(torn, b"").expect("power loss");
    let mut again = sink(&dir);
    assert_eq!(again.open(&key(0), Generation(2)).await.expect("open").expect("mark").mark, mark(1));
    let done = again.commit(&[batch(0, &[(0, 2.0)], 2)]).await.expect("commit");
    assert_eq!(done[0].delivered, 2);
}

#[tokio::test]
async fn a_directory_has_one_sink_and_replace_empties_it_for_a_new_log() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut out = sink(&dir);
    out.open(&key(0), Generation(1)).await.expect("open");
    out.commit(&[batch(0, &[(0, 1.0)], 1)]).await.expect("commit");
    let error = sink_of(&dir, "other", true).open(&key(0), Generation(2)).await.expect_err("not ours");
    assert!(error.to_string().contains("belongs to sink `out` of pipeline `p`"), "{error}");

    let same = sink_of(&dir, "out", true).open(&key(0), Generation(2)).await.expect("open");
    assert_eq!(same.map(|c| c.mark), Some(mark(1)), "a log that goes on is kept");
    let next = PartitionKey { log_id: LogId("next".into()), ..key(0) };
    assert_eq!(sink_of(&dir, "out", true).open(&next, Generation(1)).await.expect("open"), None);
    assert!(found(&dir, "", "parquet").is_empty());
}

#[test]
fn options_are_checked() {
    let wrong = |options, inputs: &[SinkInput]| read_options(&options, inputs).expect_err("wrong")[0].to_string();
    assert!(wrong(json!({ "url": "s3://bucket/x" }), &[]).contains("no directory on this machine"));
    let timeless = Arc::new(Schema::new(vec![Field::new(VALUE, DataType::Float64, true)]));
    let input = SinkInput { name: "x".into(), edge: Edge { schema: timeless, key: Space::Device } };
    assert!(wrong(json!({ "url": "store" }), &[input]).contains("no column `ts`"));
    assert!(read_options(&json!({ "path": "file:///tmp/store" }), &inputs()).is_ok());
}
