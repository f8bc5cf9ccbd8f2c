//! Payloads as a log or receiver hands them over, and what decoding makes of them.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use bytes::Bytes;

use crate::Position;

/// Code of a payload or row that is no reading at all.
pub const CODE_PARSE: &str = "parse";
/// Code of a reading whose time cannot be read.
pub const CODE_TIMESTAMP: &str = "timestamp";

/// Code of a payload with more bytes than the source takes.
pub const CODE_SIZE: &str = "payload_size";
/// Code of a payload with more readings than the source takes.
pub const CODE_ROWS: &str = "payload_rows";

/// Distinct codes of rejects read back from a log that are kept in memory for the life of the process.
const MOST_CODES: usize = 1024;

/// The code as a name that lives as long as the process. Codes are few: who rejects names them in the source.
#[must_use]
pub fn known_code(code: &str) -> &'static str {
    static SEEN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    if let Some(known) = [CODE_PARSE, CODE_TIMESTAMP].into_iter().find(|k| *k == code) {
        return known;
    }
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = seen.get(code) {
        return known;
    }
    if seen.len() >= MOST_CODES {
        return CODE_PARSE;
    }
    let known: &'static str = Box::leak(code.to_owned().into_boxed_str());
    seen.insert(known);
    known
}

/// One payload of a [`PayloadBlock`].
#[derive(Clone, Copy, Debug)]
pub struct PayloadEntry {
    /// Offset in the log.
    pub offset: u64,
    /// First byte in the block's data.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
    /// Ingest (append) time in microseconds since the epoch; `None` for finite inputs.
    pub ingest_us: Option<i64>,
}

/// Consecutive payloads of one partition in one allocation.
#[derive(Clone, Debug, Default)]
pub struct PayloadBlock {
    /// The bytes of all payloads.
    pub data: Bytes,
    /// The payloads in log order.
    pub entries: Vec<PayloadEntry>,
    /// Record keys, one per entry, where the log has keys (Kafka).
    pub keys: Option<Vec<Option<Bytes>>>,
    /// Topics, one per entry, where device or sensor may come from topic levels (MQTT).
    pub topics: Option<Vec<Arc<str>>>,
    /// Where records say they come from, one per entry, where the source asks for it: values of [`crate::origin::HEADER`].
    pub origins: Option<Vec<Option<Bytes>>>,
    /// What was found to be undecodable before it came into the log, in log order; it has no entry.
    pub refused: Vec<Reject>,
}

impl PayloadBlock {
    /// The bytes of entry `index`; empty when it lies outside the data.
    #[must_use]
    pub fn payload(&self, index: usize) -> &[u8] {
        self.entries.get(index).and_then(|e| self.data.get(e.range())).unwrap_or_default()
    }

    /// The bytes of the payload at log offset `offset`; entries are in offset order.
    #[must_use]
    pub fn at_offset(&self, offset: u64) -> Option<Bytes> {
        let index = self.entries.binary_search_by_key(&offset, |e| e.offset).ok()?;
        let range = self.entries[index].range();
        (range.end <= self.data.len()).then(|| self.data.slice(range))
    }
}

impl PayloadBlock {
    /// Takes off the payloads below log offset `offset`; `None` if there are none. The bytes are shared, not copied.
    #[must_use]
    pub fn split_below(&mut self, offset: u64) -> Option<Self> {
        let count = self.entries.partition_point(|e| e.offset < offset);
        let refused = self.refused.partition_point(|r| r.position.offset < offset);
        if count + refused == 0 {
            return None;
        }
        let entries = self.entries.split_off(count);
        Some(Self {
            data: self.data.clone(),
            entries: std::mem::replace(&mut self.entries, entries),
            keys: self.keys.as_mut().map(|keys| split_front(keys, count)),
            topics: self.topics.as_mut().map(|topics| split_front(topics, count)),
            origins: self.origins.as_mut().map(|origins| split_front(origins, count)),
            refused: split_front(&mut self.refused, refused),
        })
    }
}

impl PayloadBlock {
    /// Takes out the payloads for which `keep`, of one entry each, is false. Their bytes stay in the shared allocation.
    pub fn keep_only(&mut self, keep: &[bool]) {
        keep_only(&mut self.entries, keep);
        self.keys.iter_mut().for_each(|keys| keep_only(keys, keep));
        self.topics.iter_mut().for_each(|topics| keep_only(topics, keep));
        self.origins.iter_mut().for_each(|origins| keep_only(origins, keep));
    }
}

impl PayloadBlock {
    /// One block with the payloads of all, in order; `None` where some have keys, topics or origins and others not, or it grew beyond 2 GiB.
    #[must_use]
    pub fn join(blocks: &[Self]) -> Option<Self> {
        let size: usize = blocks.iter().map(|block| block.data.len()).sum();
        i32::try_from(size).ok()?;
        let is_empty = |block: &&Self| block.entries.is_empty();
        let first = blocks.iter().find(|block| !is_empty(block)).or(blocks.first())?;
        let mut joined = Self {
            data: Bytes::new(),
            entries: Vec::with_capacity(blocks.iter().map(|block| block.entries.len()).sum()),
            keys: first.keys.as_ref().map(|_| Vec::new()),
            topics: first.topics.as_ref().map(|_| Vec::new()),
            origins: first.origins.as_ref().map(|_| Vec::new()),
            refused: blocks.iter().flat_map(|block| block.refused.iter().cloned()).collect(),
        };
        let mut data = Vec::with_capacity(size);
        for block in blocks.iter().filter(|block| !is_empty(block)) {
            let start = data.len() as u32;
            data.extend_from_slice(&block.data);
            joined.entries.extend(block.entries.iter().map(|entry| PayloadEntry { start: entry.start + start, ..*entry }));
            append(&mut joined.keys, block.keys.as_ref())?;
            append(&mut joined.topics, block.topics.as_ref())?;
            append(&mut joined.origins, block.origins.as_ref())?;
        }
        joined.data = data.into();
        Some(joined)
    }
}

/// Leaves only the items that `keep`, of the same length, says.
fn keep_only<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    items.retain(|_| keep.next().copied().unwrap_or(true));
}

/// Appends what goes with each entry; `None` where only one side has it.
fn append<T: Clone>(all: &mut Option<Vec<T>>, more: Option<&Vec<T>>) -> Option<()> {
    match (all, more) {
        (Some(all), Some(more)) => all.extend_from_slice(more),
        (None, None) => {}
        _ => return None,
    }
    Some(())
}

/// Leaves the items from `count` on in `items` and gives those before.
fn split_front<T>(items: &mut Vec<T>, count: usize) -> Vec<T> {
    let rest = items.split_off(count);
    std::mem::replace(items, rest)
}

impl PayloadEntry {
    /// Where the payload lies in the block's data.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

/// What cannot become a row, with all of its bytes: nothing is lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Reject {
    /// Where it lay; `row` counts rows of the payload, rejected ones included.
    pub position: Position,
    /// Stable code, such as [`CODE_PARSE`].
    pub code: &'static str,
    /// What is wrong, for a person.
    pub message: String,
    /// The undecodable payload, or the undecodable part of it.
    pub payload: Bytes,
}

/// Rows and rejects of a block. `rows` has the schema of readings; `positions` has one entry per row, ascending.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// Decoded readings, in payload order.
    pub rows: RecordBatch,
    /// Position of each row.
    pub positions: Vec<Position>,
    /// What could not be decoded, in payload order.
    pub rejects: Vec<Reject>,
}
