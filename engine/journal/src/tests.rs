//! Tests of the journal as its users see it, and the helpers they share.

mod damage;
mod disk;
mod reading;
mod retention;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::UInt32Type;
use bytes::Bytes;
use fieldstream_engine_api::{Log, LogBatch, LogEvent, Payloads, Position};
use fieldstream_schemas::payload::CODE_PARSE;
use fieldstream_schemas::{Decoded, PayloadBlock, PayloadEntry, Readings, Reject, quality, readings_schema};
use tempfile::TempDir;

use crate::{Journal, JournalLog, JournalOptions};

/// A small journal of four partitions.
fn options() -> JournalOptions {
    JournalOptions { partitions: 4, budget_bytes: 64 << 20, segment_bytes: 16 << 20, group_bytes: 1 << 20 }
}

fn open(dir: &TempDir) -> Journal {
    Journal::open(dir.path(), options()).unwrap()
}

/// Readings from (payload number, row in it, device, value).
fn decoded(rows: &[(u64, u32, &str, f64)]) -> Decoded {
    let names = |pick: fn(&(u64, u32, &str, f64)) -> String| -> ArrayRef {
        let names: Vec<String> = rows.iter().map(pick).collect();
        Arc::new(names.iter().map(|n| Some(n.as_str())).collect::<DictionaryArray<UInt32Type>>())
    };
    let time = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.3 as i64)).with_timezone("UTC");
    let schema = readings_schema();
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        match field.name().as_str() {
            "device_id" => names(|r| r.2.to_owned()),
            "sensor_id" => names(|_| "t".to_owned()),
            "ts" => Arc::new(time.clone()),
            "value" => Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.3))),
            "quality" => quality::column(rows.iter().map(|_| 0)),
            "id" => Arc::new(StringArray::from_iter_values(rows.iter().map(|r| format!("{}", r.3)))),
            "stamped" => Arc::new(BooleanArray::from(vec![false; rows.len()])),
            _ => new_null_array(field.data_type(), rows.len()),
        }
    });
    let columns = columns.collect();
    let positions = rows.iter().map(|r| Position::new(r.0, r.1)).collect();
    Decoded { rows: RecordBatch::try_new(schema, columns).unwrap(), positions, rejects: Vec::new() }
}

/// One payload per value of one device.
fn values(device: &str, values: std::ops::Range<u32>) -> Decoded {
    let rows: Vec<_> = values.map(|v| (u64::from(v), 0, device, f64::from(v))).collect();
    decoded(&rows)
}

fn reject(payload: u64, row: u32, bytes: &'static str) -> Reject {
    let payload_bytes = Bytes::from_static(bytes.as_bytes());
    Reject { position: Position::new(payload, row), code: CODE_PARSE, message: "no JSON".to_owned(), payload: payload_bytes }
}

fn block(payloads: &[(u64, &str)]) -> PayloadBlock {
    let mut block = PayloadBlock::default();
    let mut data = Vec::new();
    for (offset, bytes) in payloads {
        block.entries.push(PayloadEntry { offset: *offset, start: data.len() as u32, len: bytes.len() as u32, ingest_us: Some(7) });
        data.extend_from_slice(bytes.as_bytes());
    }
    block.data = data.into();
    block
}

/// A pipeline's reader, positioned at the beginning of each partition.
async fn reader(journal: &Journal, pipeline: &str, sources: &[&str]) -> JournalLog {
    let mut log = journal.log(pipeline, sources).unwrap();
    let LogEvent::Assigned(parts) = log.next().await.unwrap() else { panic!("partitions are assigned first") };
    for part in parts {
        log.seek(part.partition, part.first_offset).await.unwrap();
    }
    log
}

/// The next event, within a deadline.
async fn event(log: &mut JournalLog) -> LogEvent {
    tokio::time::timeout(Duration::from_secs(20), log.next()).await.expect("something comes").expect("and is no error")
}

/// The next batch, within a deadline; losses are passed over.
async fn batch(log: &mut JournalLog) -> LogBatch {
    loop {
        match event(log).await {
            LogEvent::Batch(batch) => return batch,
            LogEvent::Lost { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A reading: where, device, value.
type Read = (Position, String, f64);

/// What a batch holds: readings, and undecodable payloads as (position, bytes).
fn parts(batch: &LogBatch) -> (Vec<Read>, Vec<(Position, String)>) {
    let Payloads::Rows { rows, positions, rejects, .. } = &batch.payloads else { panic!("the journal holds rows") };
    let readings = Readings::new(rows).unwrap();
    let device = |row| fieldstream_schemas::columns::name_at(readings.device_id, row).unwrap().to_owned();
    let read = positions.iter().enumerate().map(|(row, p)| (*p, device(row), readings.value.value(row))).collect();
    let bad = rejects.iter().map(|r| (r.position, String::from_utf8(r.payload.to_vec()).unwrap())).collect();
    (read, bad)
}

/// Reads batches until `rows` readings were seen; returns the values by device, in log order.
async fn read_values(log: &mut JournalLog, rows: usize) -> std::collections::BTreeMap<String, Vec<f64>> {
    let mut found = std::collections::BTreeMap::<String, Vec<f64>>::new();
    let mut next: std::collections::BTreeMap<u32, u64> = std::collections::BTreeMap::new();
    let mut count = 0;
    while count < rows {
        let batch = batch(log).await;
        let (readings, _) = parts(&batch);
        for (position, device, value) in readings {
            let next = next.entry(batch.partition).or_default();
            assert!(position.offset >= *next && position.offset < batch.next_offset, "offsets ascend");
            found.entry(device).or_default().push(value);
            count += 1;
        }
        next.insert(batch.partition, batch.next_offset);
    }
    found
}

/// Copies a journal as a kill would leave it.
fn copy(from: &TempDir) -> TempDir {
    let to = TempDir::new().unwrap();
    for entry in std::fs::read_dir(from.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

/// The only, or last, segment file.
fn segment(dir: &TempDir) -> std::path::PathBuf {
    let number = *crate::segment::numbers(dir.path()).unwrap().last().unwrap();
    crate::segment::path_of(dir.path(), number)
}
