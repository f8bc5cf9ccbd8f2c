//! Pictures of rows as JSON and events, and the round trip of canonical readings.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use bytes::Bytes;
use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::columns::time_type;
use crate::decode::{DecodeConfig, Decoder, Format, Unknown};
use crate::records::{
    Alert, AlertBuilder, Prediction, PredictionBuilder, RecordIds, RefusedRows, Refuser, dead_letters_of_rejects, dead_letters_of_rows,
};
use crate::{PayloadBlock, PayloadEntry, Position};

fn names(names: &[Option<&str>]) -> ArrayRef {
    Arc::new(names.iter().copied().collect::<DictionaryArray<UInt32Type>>())
}

fn lines(batch: &RecordBatch) -> String {
    let mut out = Vec::new();
    JsonWriter::new(&batch.schema()).write_rows(batch, &mut out);
    String::from_utf8(out).unwrap()
}

fn alert() -> RecordBatch {
    let mut builder = AlertBuilder::default();
    builder.append(&Alert {
        id: "7",
        ts: 1_795_428_000_123_000,
        detector: "too_warm",
        method: "ewma",
        state: "row",
        severity: "high",
        description: "a \"hot\" one",
        value: Some(85.0),
        limit: Some(f64::NAN),
        deviation: Some(-4.1),
        raised_ts: Some(0),
        reading_id: Some("r"),
        ..Alert::default()
    });
    builder.finish(names(&[Some("d")]), names(&[None])).unwrap()
}

fn decode(config: &DecodeConfig, payload: &[u8], ingest_us: Option<i64>) -> crate::Decoded {
    let entries = vec![PayloadEntry { offset: 9, start: 0, len: payload.len() as u32, ingest_us }];
    let block = PayloadBlock { data: Bytes::copy_from_slice(payload), entries, ..PayloadBlock::default() };
    Decoder::new(config).unwrap().decode(&block)
}

#[test]
fn records_and_made_columns() {
    expect![[r#"
        {"id":"7","deviceId":"d","timestamp":"2026-11-23T10:00:00.123Z","detector":"too_warm","method":"ewma","state":"row","severity":"high","description":"a \"hot\" one","value":85.0,"deviation":-4.1,"raisedTimestamp":"1970-01-01T00:00:00.000Z","readingId":"r"}
    "#]].assert_eq(&lines(&alert()));

    let mut builder = PredictionBuilder::default();
    let factors = Some("{\"a\": 1,\n \"b\": [2]}");
    builder.append(&Prediction { id: "p", trend: Some("stable"), factors, actions: Some("not json"), ..Prediction::default() });
    expect![[r#"
        {"id":"p","deviceId":"d","sensorId":"s","timestamp":"1970-01-01T00:00:00.000Z","predictor":"","method":"","predictionType":"","trend":"stable","factors":{"a":1,"b":[2]},"actions":"not json"}
    "#]].assert_eq(&lines(&builder.finish(names(&[Some("d")]), names(&[Some("s")])).unwrap()));

    let schema = Schema::new(vec![
        Field::new("device_id", DataType::Utf8, false),
        Field::new("window_start", time_type(), false),
        Field::new("max_c", DataType::Float64, true),
        Field::new("n", DataType::Int64, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["d", "e"])),
        Arc::new(TimestampMicrosecondArray::from(vec![0, 1]).with_timezone("UTC")),
        Arc::new(Float64Array::from(vec![Some(0.1), None])),
        Arc::new(Int64Array::from(vec![None, Some(-3)])),
    ];
    expect![[r#"
        {"deviceId":"d","window_start":"1970-01-01T00:00:00.000Z","max_c":0.1}
        {"deviceId":"e","window_start":"1970-01-01T00:00:00.000001Z","n":-3}
    "#]]
    .assert_eq(&lines(&RecordBatch::try_new(Arc::new(schema), columns).unwrap()));
}

#[test]
fn dead_letters_keep_bytes_or_the_row() {
    let ids = RecordIds::new("p", "clean", "log", 3);
    let refuser = Refuser { node: "clean", partition: 3, ids: &ids };
    let payload = b"{\"deviceId\":\"d\",\"sensorId\":\"s\",\"value\":1,\"quality\":0.7}\n{\"deviceId\":";
    let decoded = decode(&DecodeConfig::default(), payload, Some(0));
    let undecodable = dead_letters_of_rejects(refuser, &decoded.rejects).unwrap();
    expect![[r#"
        {"id":"dbdb15e7-b8d5-5a85-8510-4f44ea9be4ec","code":"parse","node":"clean","message":"deviceId must be a string","partition":3,"offset":9,"row":1,"payloadKind":"raw","payload_base64":"eyJkZXZpY2VJZCI6"}
    "#]].assert_eq(&lines(&undecodable));
    let refused = RefusedRows { batch: &decoded.rows, rows: &[0], positions: &decoded.positions, code: "range", message: "too small" };
    expect![[r#"
        {"id":"104a26c9-4a07-5bc9-9e62-91717e5b5207","code":"range","node":"clean","message":"too small","partition":3,"offset":9,"row":0,"deviceId":"d","sensorId":"s","timestamp":"1970-01-01T00:00:00.000Z","payloadKind":"raw","payload_base64":"cmF3"}
    "#]].assert_eq(&lines(&dead_letters_of_rows(refuser, refused, |_| Some(Bytes::from_static(b"raw"))).unwrap()));
    let kept = dead_letters_of_rows(refuser, refused, |_| None).unwrap();
    let again = dead_letters_of_rows(refuser, refused, |_| None).unwrap();
    assert_eq!(kept, again, "ids are a function of the position");
    use arrow::array::AsArray as _;
    let row = kept.column_by_name("payload").unwrap().as_binary::<i32>().value(0);
    expect![[r#"{"deviceId":"d","sensorId":"s","timestamp":"1970-01-01T00:00:00.000Z","value":1.0,"quality":{"status":"uncertain","score":0.7},"ingestTimestamp":"1970-01-01T00:00:00.000Z","stamped":true}"#]].assert_eq(std::str::from_utf8(row).unwrap());
    let canonical = DecodeConfig { format: Format::Canonical, ..DecodeConfig::default() };
    assert_eq!(decode(&canonical, row, None).rows, decoded.rows);
}

#[test]
fn events() {
    let writer = EventWriter::new(&alert().schema(), "/pipelines/p/too_warm");
    let mut out = Vec::new();
    writer.write_row(&alert(), 0, "own", &mut out);
    expect![[r#"{"specversion":"1.0","id":"7","source":"/pipelines/p/too_warm","type":"fieldstream.alert","subject":"d","time":"2026-11-23T10:00:00.123Z","datacontenttype":"application/json","data":{"id":"7","deviceId":"d","timestamp":"2026-11-23T10:00:00.123Z","detector":"too_warm","method":"ewma","state":"row","severity":"high","description":"a \"hot\" one","value":85.0,"deviation":-4.1,"raisedTimestamp":"1970-01-01T00:00:00.000Z","readingId":"r"}}"#]].assert_eq(std::str::from_utf8(&out).unwrap());
    out.clear();
    let headers = writer.write_binary(&alert(), 0, "own", &mut out);
    expect![[r#"
        [
            (
                "ce_specversion",
                "1.0",
            ),
            (
                "ce_id",
                "7",
            ),
            (
                "ce_source",
                "/pipelines/p/too_warm",
            ),
            (
                "ce_type",
                "fieldstream.alert",
            ),
            (
                "ce_subject",
                "d",
            ),
            (
                "ce_time",
                "2026-11-23T10:00:00.123Z",
            ),
            (
                "content-type",
                "application/json",
            ),
        ]
    "#]]
    .assert_debug_eq(&headers);
    assert_eq!(lines(&alert()).trim_end().as_bytes(), out);
}

#[derive(Debug, Clone)]
enum Value {
    Number(f64),
    Text(String),
    Flag(bool),
}

/// A reading's JSON with awkward names and values.
fn reading() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        any::<f64>().prop_filter("JSON has no NaN", |v| v.is_finite()).prop_map(Value::Number),
        (-1000i32..1000).prop_map(|v| Value::Number(f64::from(v) / 100.0)),
        any::<String>().prop_map(Value::Text),
        any::<bool>().prop_map(Value::Flag),
    ];
    let quality = prop_oneof![Just("null".to_owned()), Just("\"bad\"".to_owned()), (0.0..1.0).prop_map(|q: f64| q.to_string())];
    let time = prop_oneof![Just("null".to_owned()), (-62_000_000_000_000i64..250_000_000_000_000).prop_map(|t| t.to_string())];
    (any::<String>(), any::<String>(), any::<Option<String>>(), value, quality, time, any::<String>()).prop_map(
        |(device, sensor, unit, value, quality, time, tag)| {
            let value = match &value {
                Value::Number(v) => serde_json::to_string(v).unwrap(),
                Value::Text(t) => quoted(t),
                Value::Flag(f) => f.to_string(),
            };
            let unit = unit.map_or_else(|| "null".to_owned(), |u| quoted(&u));
            format!(
                r#"{{"deviceId":{},"sensorId":{},"unit":{unit},"value":{value},"quality":{quality},"timestamp":{time},"t":{},"id":{}}}"#,
                quoted(&device),
                quoted(&sensor),
                quoted(&tag),
                quoted(&sensor)
            )
        },
    )
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

proptest! {
    #[test]
    fn a_canonical_reading_decodes_to_the_same_row(text in reading(), ingest in any::<Option<u32>>()) {
        let config = DecodeConfig { unknown: Unknown::Tags, ..DecodeConfig::default() };
        let first = decode(&config, text.as_bytes(), Some(i64::from(ingest.unwrap_or(5))));
        prop_assert_eq!(first.rejects.len(), 0);
        let mut out = Vec::new();
        JsonWriter::new(&first.rows.schema()).write_row(&first.rows, 0, &mut out);
        let canonical = DecodeConfig { format: Format::Canonical, ..DecodeConfig::default() };
        let second = decode(&canonical, &out, None);
        prop_assert_eq!(&first.rows, &second.rows, "{}", String::from_utf8_lossy(&out));
        prop_assert_eq!(&first.positions, &[Position::new(9, 0)]);
        prop_assert_eq!(ipc::from_stream(ipc::to_stream(&first.rows).unwrap()).unwrap(), vec![second.rows]);
    }
}

#[test]
fn rows_are_csv_records_under_a_header() {
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("device_id", names(&[Some("a"), Some("b, \"c\"")]), true),
        ("ts", Arc::new(TimestampMicrosecondArray::from(vec![0, 1_795_428_000_123_000]).with_timezone("UTC")), true),
        ("value", Arc::new(Float64Array::from(vec![Some(0.1), Some(f64::NAN)])), true),
        ("n", Arc::new(Int64Array::from(vec![None, Some(-7)])), true),
        ("note", Arc::new(StringArray::from(vec!["two\nlines", "\"quoted\""])), true),
        ("payload", Arc::new(arrow::array::BinaryArray::from(vec![&b"raw"[..], b""])), true),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    let writer = CsvWriter::new(&batch.schema());
    let mut out = writer.header();
    writer.write_rows(&batch, 0..2, &mut out);
    expect![[r#"
        deviceId,timestamp,value,n,note,payload_base64
        a,1970-01-01T00:00:00.000Z,0.1,,"two
        lines",cmF3
        "b, ""c""",2026-11-23T10:00:00.123Z,,-7,"""quoted""",
    "#]]
    .assert_eq(&String::from_utf8(out).unwrap());
}

#[test]
fn readings_written_as_csv_are_read_again() {
    let written = [
        r#"{"deviceId":"a","sensorId":"t","sensorType":"temperature","timestamp":"2026-11-23T10:00:00.123Z","value":20.25,"unit":"Cel"}"#,
        r#"{"deviceId":"b,\"x\"","sensorId":"p","timestamp":"1969-12-31T23:59:59.999Z","value":-1e-300}"#,
    ];
    let json = decode(&DecodeConfig::default(), written.join("\n").as_bytes(), Some(0)).rows;
    let writer = CsvWriter::new(&json.schema());
    let mut text = writer.header();
    writer.write_rows(&json, 0..json.num_rows(), &mut text);
    let csv = decode(&DecodeConfig { format: Format::Csv, ..DecodeConfig::default() }, &text, Some(0)).rows;
    for name in ["device_id", "sensor_id", "sensor_type", "ts", "value", "unit"] {
        let column = |batch: &RecordBatch| {
            let column = batch.column_by_name(name).unwrap();
            (0..batch.num_rows()).map(|row| arrow::util::display::array_value_to_string(column, row).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(column(&csv), column(&json), "{name}");
    }
}
