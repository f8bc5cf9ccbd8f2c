//! The `file` source against real files.

use std::fs;

use fieldstream_engine_api::{ConnectContext, Log, LogError, LogEvent, Payloads, Shared};
use serde_json::json;
use tempfile::TempDir;

use super::{FileLog, read_options};

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, content) in files {
            fs::write(dir.path().join(name), content).expect("write");
        }
        Self { dir }
    }

    fn log(&self, resume: bool) -> FileLog {
        let value = json!({ "path": format!("{}/p*.ndjson", self.dir.path().display()) });
        let context = ConnectContext {
            pipeline: "p".into(),
            node: "in".into(),
            data_dir: self.dir.path().join("data"),
            resume,
            shared: Shared::default(),
        };
        FileLog::new(read_options(&value).expect("options"), &context)
    }
}

/// Reads to the end of every partition, each from its offset in `from`; `(partition, offset, payload)` in order of arrival.
async fn drain(log: &mut FileLog, from: &[(u32, u64)]) -> Vec<(u32, u64, String)> {
    let LogEvent::Assigned(assigned) = log.next().await.expect("assigned") else { panic!("first event") };
    for part in &assigned {
        let offset = from.iter().find(|(p, _)| *p == part.partition).map_or(0, |(_, o)| *o);
        log.seek(part.partition, offset).await.expect("seek");
    }
    let (mut seen, mut ended) = (Vec::new(), 0);
    while ended < assigned.len() {
        match log.next().await.expect("event") {
            LogEvent::Batch(batch) => {
                let Payloads::Raw(block) = batch.payloads else { panic!("raw") };
                let text = |i| String::from_utf8_lossy(block.payload(i)).into_owned();
                seen.extend(block.entries.iter().enumerate().map(|(i, e)| (batch.partition, e.offset, text(i))));
                assert!(batch.next_offset > block.entries.last().expect("no empty batch").offset);
            }
            LogEvent::EndOfInput { partition, next_offset } => {
                let end = assigned.iter().find(|a| a.partition == partition).map(|a| a.end_offset);
                assert_eq!(Some(next_offset), end);
                ended += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    seen
}

#[tokio::test]
async fn each_file_is_a_partition_with_byte_offsets() {
    let bench = Bench::new(&[("p3.ndjson", "{\"a\":1}\n{\"a\":2}"), ("p7.ndjson", "{\"b\":1}\n"), ("p9.ndjson", ""), ("x.ndjson", "no")]);
    let mut seen = drain(&mut bench.log(false), &[]).await;
    seen.sort();
    assert_eq!(seen, [(3, 0, "{\"a\":1}".into()), (3, 8, "{\"a\":2}".into()), (7, 0, "{\"b\":1}".into())]);
}

#[tokio::test]
async fn a_seek_goes_on_where_it_was_told_and_refuses_what_cannot_be() {
    let bench = Bench::new(&[("p0.ndjson", "one\ntwo\nthree\n")]);
    let seen = drain(&mut bench.log(false), &[(0, 4)]).await;
    assert_eq!(seen, [(0, 4, "two".into()), (0, 8, "three".into())]);
    assert_eq!(drain(&mut bench.log(true), &[(0, 14)]).await, [], "at the end");

    let mut log = bench.log(true);
    log.next().await.expect("assigned");
    assert!(matches!(log.seek(0, 15).await, Err(LogError::Fatal { .. })), "beyond the end");
    log.seek(0, 5).await.expect("seek");
    let error = log.next().await.expect_err("amid a line");
    assert!(error.to_string().contains("beginning of a line"), "{error}");
}

#[tokio::test]
async fn nothing_is_read_before_the_seek_nor_while_paused_and_a_dropped_next_loses_nothing() {
    let content: String = (0..60_000).map(|i| format!("{{\"number\":{i},\"padding\":\"some more bytes to fill blocks\"}}\n")).collect();
    let bench = Bench::new(&[("p0.ndjson", &content), ("p1.ndjson", "x\n")]);
    let mut log = bench.log(false);
    log.next().await.expect("assigned");
    assert!(futures::FutureExt::now_or_never(log.next()).is_none(), "not sought yet");
    log.seek(0, 0).await.expect("seek");
    log.pause(0, true);
    log.seek(1, 0).await.expect("seek");
    let LogEvent::Batch(batch) = log.next().await.expect("batch") else { panic!("batch") };
    assert_eq!(batch.partition, 1, "partition 0 is paused");
    let LogEvent::EndOfInput { partition: 1, .. } = log.next().await.expect("end") else { panic!("end") };

    log.pause(0, false);
    let mut lines = 0;
    loop {
        // Poll once and drop before waiting: what was being read must still come.
        let event = match futures::FutureExt::now_or_never(log.next()) {
            Some(event) => event,
            None => log.next().await,
        };
        match event.expect("event") {
            LogEvent::Batch(batch) => {
                let Payloads::Raw(block) = batch.payloads else { panic!("raw") };
                lines += block.entries.len();
            }
            LogEvent::EndOfInput { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(lines, 60_000);
}

#[tokio::test]
async fn no_file_is_a_clear_error() {
    let error = Bench::new(&[]).log(false).next().await.expect_err("no file");
    assert!(matches!(error, LogError::Fatal { .. }));
    assert!(error.to_string().contains("no file matches"), "{error}");
}

#[test]
fn wrong_options_are_told_at_their_place() {
    let errors = read_options(&json!({ "path": [], "max_line": "0" })).expect_err("two errors");
    assert_eq!(errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["/max_line", "/path"]);
    let errors = read_options(&json!({ "path": "x", "formt": "csv" })).expect_err("typo");
    assert!(errors[0].to_string().contains("formt"), "{}", errors[0]);
}

#[tokio::test]
async fn parquet_rows_are_readings_and_rows_without_a_device_are_rejects() {
    use arrow::array::{Array as _, Int32Array, RecordBatch, StringArray, TimestampMillisecondArray};
    let dir = tempfile::tempdir().expect("tempdir");
    let rows = RecordBatch::try_from_iter_with_nullable([
        ("value", std::sync::Arc::new(Int32Array::from(vec![1, 2, 3])) as arrow::array::ArrayRef, true),
        ("device_id", std::sync::Arc::new(StringArray::from(vec![Some("a"), None, Some("c")])), true),
        ("sensor_id", std::sync::Arc::new(StringArray::from(vec!["s", "s", "s"])), true),
        ("ts", std::sync::Arc::new(TimestampMillisecondArray::from(vec![1, 2, 3])), true),
    ])
    .expect("batch");
    let file = fs::File::create(dir.path().join("p5.parquet")).expect("create");
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, rows.schema(), None).expect("writer");
    writer.write(&rows).expect("write");
    writer.close().expect("close");

    let context = ConnectContext {
        pipeline: "p".into(),
        node: "in".into(),
        data_dir: dir.path().join("data"),
        resume: false,
        shared: Shared::default(),
    };
    let value = json!({ "path": dir.path(), "format": "parquet" });
    for (from, expected) in [(0, vec![(0, 1.0), (2, 3.0)]), (2, vec![(2, 3.0)])] {
        let mut log = FileLog::new(read_options(&value).expect("options"), &context);
        let LogEvent::Assigned(assigned) = log.next().await.expect("assigned") else { panic!("assigned") };
        assert_eq!((assigned[0].partition, assigned[0].end_offset), (5, 3));
        log.seek(5, from).await.expect("seek");
        let LogEvent::Batch(batch) = log.next().await.expect("rows") else { panic!("rows") };
        let Payloads::Rows { rows, positions, rejects, .. } = batch.payloads else { panic!("rows") };
        let readings = fieldstream_schemas::Readings::new(&rows).expect("readings");
        assert_eq!((0..rows.num_rows()).map(|i| (positions[i].offset, readings.value.value(i))).collect::<Vec<_>>(), expected);
        assert_eq!(readings.ts.value(0), 1000 * (expected[0].0 as i64 + 1));
        assert_eq!(readings.quality.null_count(), 0);
        let refused: Vec<_> = rejects.iter().map(|r| (r.position.offset, r.code)).collect();
        assert_eq!(refused, if from == 0 { vec![(1, "parse")] } else { vec![] });
        assert!(matches!(log.next().await.expect("end"), LogEvent::EndOfInput { partition: 5, next_offset: 3 }));
    }
}
