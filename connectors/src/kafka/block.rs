//! Payloads of one partition, gathered into one allocation.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fieldstream_engine_api::{LogBatch, Payloads};
use fieldstream_schemas::{PayloadBlock, PayloadEntry, Position, Reject, origin};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _, Timestamp};

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
    refused: Vec<Reject>,
    append_us: Option<i64>,
    /// First offset after what was put in.
    next: Option<u64>,
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
        self.pass(record.offset, record.append_us);
        self.entries.len() >= RECORDS || self.data.len() >= BYTES
    }

    /// Appends a payload that its receiver found undecodable; true when the block should be taken now.
    pub(crate) fn refuse(&mut self, record: Record<'_>, code: &'static str, message: String) -> bool {
        let payload = Bytes::copy_from_slice(record.payload);
        self.refused.push(Reject { position: Position::new(record.offset, 0), code, message, payload });
        self.pass(record.offset, record.append_us);
        self.refused.len() >= RECORDS || self.refused.iter().map(|r| r.payload.len()).sum::<usize>() >= BYTES
    }

    /// Takes note of a record that is not in the block.
    pub(crate) fn pass(&mut self, offset: u64, append_us: i64) {
        self.append_us = self.append_us.max(Some(append_us));
        self.next = Some(offset + 1);
    }

    /// True when there is nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.next.is_none()
    }

    /// The batch of what was put in, which leaves the builder empty; `None` when there is nothing.
    pub(crate) fn take(&mut self, partition: u32, source: &Arc<str>) -> Option<LogBatch> {
        let next_offset = self.next?;
        let Self { data, entries, keys, origins, refused, append_us, .. } = std::mem::take(self);
        let (keys, origins) = ((!keys.is_empty()).then_some(keys), (!origins.is_empty()).then_some(origins));
        let block = PayloadBlock { data: Bytes::from(data), entries, keys, topics: None, origins, refused };
        Some(LogBatch { partition, source: Arc::clone(source), next_offset, append_us, payloads: Payloads::Raw(block) })
    }
}

/// Append time of a record, microseconds since the epoch.
pub(crate) fn append_us(message: &BorrowedMessage<'_>, create_time_told: &mut bool) -> i64 {
    match message.timestamp() {
        Timestamp::LogAppendTime(ms) => ms.saturating_mul(1000),
        Timestamp::CreateTime(_) | Timestamp::NotAvailable => {
            if !std::mem::replace(create_time_told, true) {
                let topic = message.topic();
                tracing::warn!(
                    topic,
                    "the topic has no append time, the receive time stands for it; set message.timestamp.type=LogAppendTime"
                );
            }
            now_us()
        }
    }
}

/// The header that says where a record comes from, as far as it may be right.
pub(crate) fn origin_of<'a>(message: &'a BorrowedMessage<'_>) -> Option<&'a [u8]> {
    let headers = message.headers()?;
    let header = (0..headers.count()).filter_map(|index| headers.try_get(index)).find(|header| header.key == origin::HEADER)?;
    let value = header.value.unwrap_or_default();
    Some(value.get(..=origin::LONGEST).unwrap_or(value))
}

fn now_us() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
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
    fn refused_payloads_and_passed_records_move_the_offset() {
        let mut builder = BlockBuilder::default();
        let source = Arc::from("s");
        let record = |offset, payload| Record { offset, payload, key: None, origin: None, append_us: 7 };
        assert!(!builder.refuse(record(4, b"?"), "parse", "no JSON".to_owned()) && !builder.is_empty());
        builder.pass(8, 9);
        let batch = builder.take(0, &source).expect("something");
        assert_eq!((batch.next_offset, batch.append_us, batch.payloads.count()), (9, Some(9), 1));
        let Payloads::Raw(block) = batch.payloads else { panic!("raw payloads") };
        let (position, payload) = (Position::new(4, 0), Bytes::from_static(b"?"));
        assert_eq!(block.refused, [Reject { position, code: "parse", message: "no JSON".to_owned(), payload }]);
        builder.pass(9, 9);
        assert_eq!(builder.take(0, &source).map(|batch| (batch.next_offset, batch.payloads.count())), Some((10, 0)));
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
