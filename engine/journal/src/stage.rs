//! Splitting what was decoded into partitions, before offsets are known. Runs on the caller's thread.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use bytes::Bytes;
use fieldstream_schemas::{Decoded, PayloadBlock, Position, Readings, Reject, readings_schema};

use crate::tables::{Raw, compact, stamp};
use crate::{JournalError, partition_of};

/// One append, split. Offsets in it count payloads from 0 within each run.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) source: Arc<str>,
    /// Readings, run by run.
    pub(crate) rows: RecordBatch,
    /// Position of each row.
    pub(crate) positions: Vec<Position>,
    /// Run by run.
    pub(crate) rejects: Vec<Reject>,
    /// Run by run.
    pub(crate) raws: Vec<Raw>,
    pub(crate) runs: Vec<StagedRun>,
    /// Commit time at the earliest, microseconds since the epoch.
    pub(crate) now_us: i64,
    /// About so many bytes.
    pub(crate) bytes: usize,
}

/// What of an append goes to one partition.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StagedRun {
    pub(crate) partition: u32,
    /// Offsets it needs.
    pub(crate) payloads: u64,
    pub(crate) rows: Range<u32>,
    pub(crate) rejects: Range<u32>,
    pub(crate) raws: Range<u32>,
}

/// What goes to one partition, while it is gathered.
#[derive(Default)]
struct Bucket {
    /// Payload (as numbered by the receiver) that got the newest offset.
    last: Option<u64>,
    payloads: u64,
    rows: Vec<u32>,
    positions: Vec<Position>,
    rejects: Vec<Reject>,
    raws: Vec<Raw>,
}

impl Bucket {
    /// The run's offset for `payload`. A payload's rows in one partition share it.
    fn offset_of(&mut self, payload: u64, raw: Option<&PayloadBlock>) -> u64 {
        if self.last != Some(payload) {
            self.last = Some(payload);
            self.payloads += 1;
            if let Some((block, entry)) = raw.and_then(|b| Some((b, b.entries.binary_search_by_key(&payload, |e| e.offset).ok()?))) {
                let ingest_us = block.entries.get(entry).and_then(|e| e.ingest_us);
                let payload = Bytes::copy_from_slice(block.payload(entry));
                self.raws.push(Raw { offset: self.payloads - 1, ingest_us, payload });
            }
        }
        self.payloads - 1
    }
}

/// Splits `decoded` (and the payload bytes, where they are kept) over `partitions`: rows by their device, undecodable
/// payloads by their bytes.
pub(crate) fn stage(
    source: &str,
    decoded: Decoded,
    raw: Option<&PayloadBlock>,
    now_us: i64,
    partitions: u32,
) -> Result<Staged, JournalError> {
    let schema = |cause: &dyn std::fmt::Display| JournalError::Schema(cause.to_string());
    if decoded.rows.schema() != readings_schema() || decoded.rows.num_rows() != decoded.positions.len() {
        return Err(schema(&"columns or positions do not fit"));
    }
    let readings = Readings::new(&decoded.rows).ok_or_else(|| schema(&"columns do not fit"))?;
    let names = readings.device_id.values();
    let mut by_name: Vec<Option<u32>> = vec![None; names.len()];
    let mut buckets: BTreeMap<u32, Bucket> = BTreeMap::new();
    let mut rejects = decoded.rejects.into_iter().peekable();
    for (row, position) in decoded.positions.iter().enumerate() {
        while let Some(reject) = rejects.next_if(|r| r.position < *position) {
            put_reject(&mut buckets, reject, raw, partitions);
        }
        let partition = device_partition(&readings, row, &mut by_name, partitions);
        let bucket = buckets.entry(partition).or_default();
        let offset = bucket.offset_of(position.offset, raw);
        bucket.rows.push(row as u32);
        bucket.positions.push(Position::new(offset, position.row));
    }
    rejects.for_each(|reject| put_reject(&mut buckets, reject, raw, partitions));
    assemble(source, &decoded.rows, buckets, now_us).map_err(|e| schema(&e))
}

fn put_reject(buckets: &mut BTreeMap<u32, Bucket>, mut reject: Reject, raw: Option<&PayloadBlock>, partitions: u32) {
    let bucket = buckets.entry(partition_of(&reject.payload, partitions)).or_default();
    reject.position.offset = bucket.offset_of(reject.position.offset, raw);
    bucket.rejects.push(reject);
}

/// The partition of a row's device, hashed once per distinct name.
fn device_partition(readings: &Readings<'_>, row: usize, by_name: &mut [Option<u32>], partitions: u32) -> u32 {
    let name = fieldstream_schemas::columns::name_at(readings.device_id, row).unwrap_or_default();
    let known = readings.device_id.key(row).and_then(|key| by_name.get_mut(key));
    known.map_or_else(|| partition_of(name.as_bytes(), partitions), |k| *k.get_or_insert_with(|| partition_of(name.as_bytes(), partitions)))
}

fn assemble(source: &str, rows: &RecordBatch, buckets: BTreeMap<u32, Bucket>, now_us: i64) -> Result<Staged, arrow::error::ArrowError> {
    let mut order = Vec::with_capacity(rows.num_rows());
    let mut staged = Staged {
        source: source.into(),
        rows: RecordBatch::new_empty(readings_schema()),
        positions: Vec::with_capacity(rows.num_rows()),
        rejects: Vec::new(),
        raws: Vec::new(),
        runs: Vec::with_capacity(buckets.len()),
        now_us,
        bytes: 0,
    };
    for (partition, bucket) in buckets {
        let from = |have: usize, more: usize| have as u32..(have + more) as u32;
        staged.runs.push(StagedRun {
            partition,
            payloads: bucket.payloads,
            rows: from(order.len(), bucket.rows.len()),
            rejects: from(staged.rejects.len(), bucket.rejects.len()),
            raws: from(staged.raws.len(), bucket.raws.len()),
        });
        order.extend(bucket.rows);
        staged.positions.extend(bucket.positions);
        staged.rejects.extend(bucket.rejects);
        staged.raws.extend(bucket.raws);
    }
    if staged.runs.len() > 1 {
        staged.rows = compact(&stamp(&take_record_batch(rows, &UInt32Array::from(order))?, now_us)?)?;
    } else {
        staged.rows = compact(&stamp(rows, now_us)?)?;
    }
    staged.bytes = staged.rows.get_array_memory_size()
        + staged.rejects.iter().map(|r| r.payload.len() + r.message.len() + 32).sum::<usize>()
        + staged.raws.iter().map(|r| r.payload.len() + 32).sum::<usize>();
    Ok(staged)
}
