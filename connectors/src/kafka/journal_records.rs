//! What receivers got as records of a topic that stands for the journal, and back: a reading is its canonical JSON under the key of its
//! device; what could not be decoded is its bytes, with the reason in headers.

use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::error::ArrowError;
use bytes::Bytes;
use fieldstream_schemas::columns::{INGEST_TS, name_at, time_type};
use fieldstream_schemas::encode::JsonWriter;
use fieldstream_schemas::payload::known_code;
use fieldstream_schemas::{Decoded, Readings};
use rdkafka::message::Headers;

/// Header with the name of the source a record came in by.
const SOURCE: &str = "fieldstream-source";
/// Header with the code of an undecodable payload.
const REJECT: &str = "fieldstream-reject";
/// Header with what is wrong with an undecodable payload.
const WHY: &str = "fieldstream-reject-message";

/// Code of a reading, or a payload's remains, too large for a record.
const CODE_RECORD_SIZE: &str = "record_size";
/// Bytes that are kept of what is too large.
const KEPT: usize = 64 << 10;

/// A record to be written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    /// The device; nothing for what could not be decoded.
    pub(super) key: Option<String>,
    pub(super) payload: Bytes,
    /// Code and message of what could not be decoded.
    refusal: Option<(&'static str, String)>,
}

impl Written {
    /// The record's headers for what came by `source`.
    pub(super) fn headers(&self, source: &str) -> Vec<(&'static str, String)> {
        let mut headers = vec![(SOURCE, source.to_owned())];
        if let Some((code, why)) = &self.refusal {
            headers.extend([(REJECT, (*code).to_owned()), (WHY, why.clone())]);
        }
        headers
    }

    /// What is written instead of a record that is too large: a refusal with the first bytes.
    pub(super) fn shortened(&self) -> Self {
        let bytes = self.payload.len();
        let note = format!("{bytes} bytes are too many for a record; the first of them are kept");
        let refusal = match &self.refusal {
            Some((code, why)) => (*code, format!("{why}; {note}")),
            None => (CODE_RECORD_SIZE, note),
        };
        Self { key: None, payload: self.payload.slice(..bytes.min(KEPT)), refusal: Some(refusal) }
    }
}

/// One record for each row and each reject, rows in their order. The append time is the topic's to say.
///
/// # Errors
/// If the rows are no readings.
pub(super) fn records(decoded: &Decoded) -> Result<Vec<Written>, ArrowError> {
    let rows = without_append_time(&decoded.rows)?;
    let readings = Readings::new(&rows).ok_or_else(|| ArrowError::SchemaError("only readings can be journaled".to_owned()))?;
    let json = JsonWriter::new(&rows.schema());
    let mut records = Vec::with_capacity(rows.num_rows() + decoded.rejects.len());
    let (mut text, mut ends) = (Vec::new(), Vec::with_capacity(rows.num_rows()));
    for row in 0..rows.num_rows() {
        json.write_row(&rows, row, &mut text);
        ends.push(text.len());
    }
    let (text, mut start) = (Bytes::from(text), 0);
    for (row, end) in ends.into_iter().enumerate() {
        let key = name_at(readings.device_id, row).map(str::to_owned);
        records.push(Written { key, payload: text.slice(start..end), refusal: None });
        start = end;
    }
    let refused = decoded.rejects.iter();
    records.extend(refused.map(|r| Written { key: None, payload: r.payload.clone(), refusal: Some((r.code, r.message.clone())) }));
    Ok(records)
}

fn without_append_time(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let index = rows.schema().index_of(INGEST_TS)?;
    let mut columns = rows.columns().to_vec();
    if let Some(column) = columns.get_mut(index) {
        *column = new_null_array(&time_type(), rows.num_rows());
    }
    RecordBatch::try_new(rows.schema(), columns)
}

/// Code and message of an undecodable payload.
pub(super) type Refusal = (&'static str, String);

/// Which of `sources` a record belongs to, and why it was refused if it was. A record without a source's name is another producer's and
/// belongs to the first; `None` for one of a source that is not among them.
pub(super) fn whose<'a, H: Headers>(headers: Option<&H>, sources: &'a [Arc<str>]) -> Option<(&'a Arc<str>, Option<Refusal>)> {
    let text = |name: &str| {
        let found = headers.into_iter().flat_map(Headers::iter).find(|header| header.key == name)?;
        Some(String::from_utf8_lossy(found.value.unwrap_or_default()))
    };
    let source = match text(SOURCE) {
        Some(name) => sources.iter().find(|source| ***source == *name)?,
        None => sources.first()?,
    };
    Some((source, text(REJECT).map(|code| (known_code(&code), text(WHY).unwrap_or_default().into_owned()))))
}

#[cfg(test)]
mod tests {
    use fieldstream_schemas::decode::{DecodeConfig, Decoder, Format, Unknown};
    use fieldstream_schemas::{PayloadBlock, PayloadEntry};
    use proptest::prelude::*;
    use rdkafka::message::{Header, OwnedHeaders};

    use super::super::block::{BlockBuilder, Record, Wanted};
    use super::*;
    use fieldstream_engine_api::Payloads;

    fn decode(config: &DecodeConfig, payloads: &[Vec<u8>], ingest_us: i64) -> Decoded {
        let (mut data, mut entries) = (Vec::new(), Vec::new());
        for (offset, payload) in payloads.iter().enumerate() {
            let (start, len) = (data.len() as u32, payload.len() as u32);
            entries.push(PayloadEntry { offset: offset as u64, start, len, ingest_us: Some(ingest_us) });
            data.extend_from_slice(payload);
        }
        let mut decoder = Decoder::new(config).expect("a sound configuration");
        decoder.decode(&PayloadBlock { data: data.into(), entries, ..PayloadBlock::default() })
    }

    fn owned(record: &Written, source: &str) -> OwnedHeaders {
        let add = |all: OwnedHeaders, (key, value): (&str, String)| all.insert(Header { key, value: Some(value.as_str()) });
        record.headers(source).into_iter().fold(OwnedHeaders::new(), add)
    }

    /// Records as the topic gives them back, all in one partition, appended at `append_us`.
    fn through_topic(records: &[Written], append_us: i64) -> Decoded {
        let sources = [Arc::from("other"), Arc::from("field")];
        let mut builder = BlockBuilder::default();
        for (offset, record) in records.iter().enumerate() {
            let headers = owned(record, "field");
            let (source, refusal) = whose(Some(&headers), &sources).expect("a source of ours");
            assert_eq!(&**source, "field");
            let key = record.key.as_deref().map(str::as_bytes);
            let taken = Record { offset: offset as u64, payload: &record.payload, key, origin: None, append_us };
            match refusal {
                Some((code, why)) => builder.refuse(taken, code, why),
                None => builder.push(taken, Wanted { keys: true, origins: false }),
            };
        }
        let Some(batch) = builder.take(0, &sources[1]) else { return decode(&DecodeConfig::default(), &[], 0) };
        let Payloads::Raw(block) = batch.payloads else { panic!("raw payloads") };
        let canonical = DecodeConfig { format: Format::Canonical, ..DecodeConfig::default() };
        Decoder::new(&canonical).expect("a sound configuration").decode(&block)
    }

    fn payload() -> impl Strategy<Value = Vec<u8>> {
        let text = "\\PC{0,9}".prop_map(|t| serde_json::Value::from(t).to_string());
        let value = prop_oneof![
            any::<f64>().prop_filter("JSON has no others", |v| v.is_finite()).prop_map(|v| format!("{v:e}")),
            any::<bool>().prop_map(|v| v.to_string()),
            text.clone(),
        ];
        let reading = (text.clone(), text.clone(), prop::option::of(0..4_000_000_000_000_i64), value, prop::option::of(0.0..1.0_f64), text)
            .prop_map(|(device, sensor, ts, value, quality, more)| {
                let ts = ts.map_or(String::new(), |ts| format!(r#","timestamp":{ts}"#));
                let quality = quality.map_or(String::new(), |q| format!(r#","quality":{q}"#));
                format!(r#"{{"deviceId":{device},"sensorId":{sensor},"value":{value}{ts}{quality},"id":{more},"room":{more}}}"#)
                    .into_bytes()
            });
        prop_oneof![9 => reading, 1 => prop::collection::vec(any::<u8>(), 0..40)]
    }

    proptest! {
        /// Whatever comes in: the topic gives the same rows, but for the append time, and the same rejects with their bytes.
        #[test]
        fn what_receivers_got_comes_back_from_the_topic(payloads in prop::collection::vec(payload(), 0..8)) {
            let config = DecodeConfig { unknown: Unknown::Tags, ..DecodeConfig::default() };
            let first = decode(&config, &payloads, 1_000_000);
            let second = through_topic(&records(&first).expect("readings"), 5_000_000);
            prop_assert_eq!(without_append_time(&first.rows).expect("rows"), without_append_time(&second.rows).expect("rows"));
            let readings = Readings::new(&second.rows).expect("readings");
            prop_assert!(readings.ingest_ts.iter().all(|t| t == Some(5_000_000)), "the topic's time counts");
            let told = |decoded: &Decoded| decoded.rejects.iter().map(|r| (r.code, r.message.clone(), r.payload.clone())).collect::<Vec<_>>();
            prop_assert_eq!(told(&first), told(&second));
        }
    }

    #[test]
    fn records_of_other_producers_are_the_first_sources_and_those_of_unknown_sources_nobodys() {
        let sources = [Arc::from("field"), Arc::from("yard")];
        assert_eq!(whose::<OwnedHeaders>(None, &sources), Some((&sources[0], None)));
        let of = |name: &str| OwnedHeaders::new().insert(Header { key: SOURCE, value: Some(name) });
        assert_eq!(whose(Some(&of("yard")), &sources), Some((&sources[1], None)));
        assert_eq!(whose(Some(&of("cellar")), &sources), None);
    }

    #[test]
    fn what_is_too_large_is_refused_with_its_first_bytes_and_keeps_the_code_it_has() {
        let large = Bytes::from(vec![b'x'; 100_000]);
        let reading = Written { key: Some("d".to_owned()), payload: large.clone(), refusal: None };
        let note = "100000 bytes are too many for a record; the first of them are kept";
        let refusal = |code, why: &str| Some(Written { key: None, payload: large.slice(..KEPT), refusal: Some((code, why.to_owned())) });
        assert_eq!(Some(reading.shortened()), refusal(CODE_RECORD_SIZE, note));
        let rejected = Written { key: None, payload: large.clone(), refusal: Some(("parse", "no JSON".to_owned())) };
        assert_eq!(Some(rejected.shortened()), refusal("parse", &format!("no JSON; {note}")));
    }
}
