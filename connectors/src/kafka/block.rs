//! Payloads of one partition, gathered into one allocation.

use std::sync::Arc;

use bytes::Bytes;
use fieldstream_engine_api::{LogBatch, Payloads};
use fieldstream_schemas::{PayloadBlock, PayloadEntry};

/// Most records of a block.
const RECORDS: usize = 8192;
/// A block is closed when it holds so many payload bytes.
const BYTES: usize = 1 << 20;

/// One record, borrowed from the client library.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) offset: u64,
    /// Empty for a record without a value.
    pub(crate) payload: &'a [u8],
    pub(crate) key: Option<&'a [u8]>,
    /// Where it says it comes from.
    pub(crate) origin: Option<&'a [u8]>,
    /// Append time, microseconds since the epoch.
    pub(crate) append_us: i64,
}

/// What is kept of records besides payload and time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) keys: bool,
    pub(crate) origins: bool,
}

/// A block in the making.
#[derive(Debug, Default)]
pub(crate) struct BlockBuilder {
    data: Vec<u8>,
    entries: Vec<PayloadEntry>,
    keys: Vec<Option<Bytes>>,
    origins: Vec<Option<Bytes>>,
    append_us: Option<i64>,
}

impl BlockBuilder {
    /// Appends a record; true when the block should be taken now.
    pub(crate) fn push(&mut self, record: Record<'_>, wanted: Wanted) -> bool {
        // A record is at most 2 GiB (the protocol's limit) and a block is closed at 1 MiB, so that positions fit.
        self.entries.push(PayloadEntry {
            offset: record.offset,
            start: self.data.len() as u32,
            len: record.payload.len() as u32,
            ingest_us: Some(record.append_us),
        });
        self.data.extend_from_slice(record.payload);
        if wanted.keys {
            self.keys.push(record.key.map(Bytes::copy_from_slice));
        }
        if wanted.origins {
            self.origins.push(record.origin.map(Bytes::copy_from_slice));
        }
        self.append_us = self.append_us.max(Some(record.append_us));
        self.entries.len() >= RECORDS || self.data.len() >= BYTES
    }

    /// True when there is nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The batch of what was pushed, which leaves the builder empty; `None` when there is nothing.
    pub(crate) fn take(&mut self, partition: u32, source: &Arc<str>) -> Option<LogBatch> {
        let last = self.entries.last()?.offset;
        let Self { data, entries, keys, origins, append_us } = std::mem::take(self);
        let (keys, origins) = ((!keys.is_empty()).then_some(keys), (!origins.is_empty()).then_some(origins));
        let block = PayloadBlock { data: Bytes::from(data), entries, keys, topics: None, origins };
        Some(LogBatch { partition, source: Arc::clone(source), next_offset: last + 1, append_us, payloads: Payloads::Raw(block) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_offsets_keys_and_empty_payloads() {
        let mut builder = BlockBuilder::default();
        let source = Arc::from("s");
        assert!(builder.take(3, &source).is_none());
        for (offset, payload, key, append_us) in [(5, &b"one"[..], Some(&b"k"[..]), 7), (9, b"", None, 6)] {
            let wanted = Wanted { keys: true, origins: true };
            assert!(!builder.push(Record { offset, payload, key, origin: key, append_us }, wanted));
        }
        let batch = builder.take(3, &source).expect("two records");
        assert_eq!((batch.partition, batch.next_offset, batch.append_us), (3, 10, Some(7)));
        let Payloads::Raw(block) = batch.payloads else { panic!("raw payloads") };
        assert_eq!((block.payload(0), block.payload(1), block.entries[1].offset), (&b"one"[..], &b""[..], 9));
        assert_eq!(block.keys, Some(vec![Some(Bytes::from_static(b"k")), None]));
        assert_eq!(block.origins, block.keys);
        assert!(builder.is_empty());
    }

    #[test]
    fn a_block_is_closed_by_records_or_bytes() {
        let mut builder = BlockBuilder::default();
        let record = Record { offset: 0, payload: &[0; 8], key: None, origin: None, append_us: 0 };
        let closed_at = (1..).find(|_| builder.push(record, Wanted::default()));
        assert_eq!(closed_at, Some(RECORDS));
        let mut builder = BlockBuilder::default();
        assert!(builder.push(Record { payload: &vec![0; BYTES], ..record }, Wanted::default()));
    }
}
