//! Pictures of what JSON payloads become.

use bytes::Bytes;
use expect_test::{Expect, expect};

use super::*;
use crate::columns::name_at;
use crate::time::format_rfc3339;
use crate::{Readings, quality};

/// One payload per element, offsets 0, 100, 200...
pub(super) fn block(payloads: &[&[u8]], ingest_us: Option<i64>) -> PayloadBlock {
    let mut data = Vec::new();
    let mut entries = Vec::new();
    for (n, payload) in payloads.iter().enumerate() {
        entries.push(PayloadEntry { offset: n as u64 * 100, start: data.len() as u32, len: payload.len() as u32, ingest_us });
        data.extend_from_slice(payload);
    }
    PayloadBlock { data: Bytes::from(data), entries, ..PayloadBlock::default() }
}

/// Rows and rejects as text, one a line.
pub(super) fn picture(decoded: &Decoded) -> String {
    let mut out = String::new();
    let rows = Readings::new(&decoded.rows).unwrap();
    assert_eq!(decoded.rows.num_rows(), decoded.positions.len());
    for (row, at) in decoded.positions.iter().enumerate() {
        use arrow::array::Array;
        let name = |a: &dyn Array| name_at(a, row).unwrap_or("-").to_owned();
        let mut value = String::new();
        if rows.value.is_valid(row) {
            value = format!("{:?}", rows.value.value(row));
        }
        if rows.text.is_valid(row) {
            value += &format!("{:?}", rows.text.value(row));
        }
        if rows.flag.is_valid(row) {
            value += &format!("{}", rows.flag.value(row));
        }
        let quality = quality::NAMES[rows.quality.key(row).unwrap()];
        out += &format!(
            "{}/{} {} {} {} {} {value} {} {quality}",
            at.offset,
            at.row,
            name(rows.device_id),
            name(rows.sensor_id),
            name(rows.sensor_type),
            format_rfc3339(rows.ts.value(row)),
            name(rows.unit),
        );
        if rows.score.is_valid(row) {
            out += &format!(" {}", rows.score.value(row));
        }
        if rows.id.is_valid(row) {
            out += &format!(" id={}", rows.id.value(row));
        }
        if rows.tags.is_valid(row) {
            out += &format!(" tags={}", rows.tags.value(row));
        }
        out += if rows.stamped.value(row) { " stamped\n" } else { "\n" };
    }
    for r in &decoded.rejects {
        if r.payload.contains(&0) {
            out += &format!("{}/{} {}: {} | {} bytes\n", r.position.offset, r.position.row, r.code, r.message, r.payload.len());
            continue;
        }
        let bytes = String::from_utf8_lossy(&r.payload).replace('\n', "<LF>").replace('\r', "<CR>");
        out += &format!("{}/{} {}: {} | {bytes}\n", r.position.offset, r.position.row, r.code, r.message);
    }
    out
}

pub(super) fn check(config: &str, payloads: &[&[u8]], expect: &Expect) {
    let config: DecodeConfig = serde_json::from_str(config).unwrap();
    let mut decoder = Decoder::new(&config).unwrap();
    let block = block(payloads, Some(1_795_428_000_000_000));
    let first = picture(&decoder.decode(&block));
    expect.assert_eq(&first);
    assert_eq!(picture(&decoder.decode(&block)), first, "caches do not show");
}

#[test]
fn the_common_reading_in_any_order_with_unknown_members() {
    check(
        "{}",
        &[
            br#"{"id":"1","deviceId":"d","sensorId":"s","sensorType":"temperature","timestamp":"2026-11-23T10:00:00.123Z","value":21.5,"unit":"celsius","quality":0.9}"#,
            br#"{ "value": -4e1, "quality": 0.5, "timestamp": "2026-11-23T10:00:01.000Z", "sensorId": "s", "deviceId": "d" }"#,
            br#"{"meta":{"fw":"1.2.\"3","tags":["a","}"]},"id":"2","deviceId":"d\u00e9","sensorId":"s","timestamp":1795428000123,"value":true,"quality":"Bad"}"#,
            br#"{"deviceId":"d","sensorId":"s","value":"open","quality":{"status":"uncertain","score":0.7},"timestamp":null}"#,
        ],
        &expect![[r#"
            0/0 d s temperature 2026-11-23T10:00:00.123Z 21.5 celsius good 0.9 id=1
            100/0 d s - 2026-11-23T10:00:01.000Z -40.0 - uncertain 0.5
            200/0 dé s - 2026-11-23T10:00:00.123Z true - bad id=2
            300/0 d s - 2026-11-23T10:00:00.000Z "open" - uncertain 0.7 stamped
        "#]],
    );
}

#[test]
fn what_is_no_reading_is_rejected_with_its_bytes() {
    check(
        "{}",
        &[
            b"",
            b" \n ",
            b"null",
            b"{\"deviceId\":\"d\",\"sensorId\":\"s\",\"value\":1}x",
            br#"{"deviceId":"d","sensorId":"s","value":1,"value":1}"#,
            br#"{"deviceId":null,"sensorId":"s","value":1}"#,
            br#"{"deviceId":"d","sensorId":"\ud800","value":1}"#,
            br#"{"deviceId":"d","x":"\ud800","sensorId":"s","value":1}"#,
            br#"{"deviceId":"d","sensorId":"s","value":01}"#,
            br#"{"deviceId":"d","sensorId":"s","value":1e999}"#,
            br#"{"deviceId":"d","sensorId":"s","value":1,"timestamp":"2026-13-45T10:00:00.000Z"}"#,
            br#"{"deviceId":"d","timestamp":"2026-13-45T10:00:00.000Z","sensorId":7,"value":1}"#,
            b"{\"deviceId\":\"d\xff\",\"sensorId\":\"s\",\"value\":1}",
        ],
        &expect![[r#"
            700/0 d s - 2026-11-23T10:00:00.000Z 1.0 - good stamped
            0/0 parse: the payload is empty | 
            100/0 parse: not a JSON object |  <LF> 
            200/0 parse: not a JSON object | null
            300/0 parse: something follows after the object | {"deviceId":"d","sensorId":"s","value":1}x
            400/0 parse: value appears twice | {"deviceId":"d","sensorId":"s","value":1,"value":1}
            500/0 parse: deviceId is missing | {"deviceId":null,"sensorId":"s","value":1}
            600/0 parse: a string with an invalid escape | {"deviceId":"d","sensorId":"\ud800","value":1}
            800/0 parse: not a number | {"deviceId":"d","sensorId":"s","value":01}
            900/0 parse: a number too large for a double | {"deviceId":"d","sensorId":"s","value":1e999}
            1000/0 timestamp: timestamp is no time that can be read | {"deviceId":"d","sensorId":"s","value":1,"timestamp":"2026-13-45T10:00:00.000Z"}
            1100/0 parse: sensorId must be a string | {"deviceId":"d","timestamp":"2026-13-45T10:00:00.000Z","sensorId":7,"value":1}
            1200/0 parse: not UTF-8 text | {"deviceId":"d�","sensorId":"s","value":1}
        "#]],
    );
}

#[test]
fn arrays_and_lines_reject_row_by_row() {
    check(
        r#"{"unknown": "tags"}"#,
        &[
            br#"[{"deviceId":"d","sensorId":"s","value":1}, 7, {"deviceId":"d","sensorId":"t","value":2, "a" : [1, "x y"], "b":null}]"#,
            b"{\"deviceId\":\"d\",\"sensorId\":\"s\",\"value\":1}\n{\"deviceId\":\"d\",\r\n\n{\"deviceId\":\"e\",\"sensorId\":\"s\",\"value\":2}\n",
            b"{\"deviceId\":\"d\",\n\"sensorId\":\"s\",\n\"value\":3}\n",
            b"[{\"deviceId\":\"d\",\"sensorId\":\"s\",\"value\":4}",
            b"[]",
            b"{\"deviceId\":\"\xff\",\"sensorId\":\"s\",\"value\":1}\n{\"deviceId\":\"f\",\"sensorId\":\"s\",\"value\":5}",
        ],
        &expect![[r#"
            0/0 d s - 2026-11-23T10:00:00.000Z 1.0 - good stamped
            0/2 d t - 2026-11-23T10:00:00.000Z 2.0 - good tags={"a":[1,"x y"],"b":null} stamped
            100/0 d s - 2026-11-23T10:00:00.000Z 1.0 - good stamped
            100/2 e s - 2026-11-23T10:00:00.000Z 2.0 - good stamped
            200/0 d s - 2026-11-23T10:00:00.000Z 3.0 - good stamped
            500/1 f s - 2026-11-23T10:00:00.000Z 5.0 - good stamped
            0/1 parse: not a JSON object | 7
            100/1 parse: expected a string | {"deviceId":"d",<CR>
            300/0 parse: expected a comma or a closing bracket | [{"deviceId":"d","sensorId":"s","value":4}
            400/0 parse: the array holds no reading | []
            500/0 parse: not UTF-8 text | {"deviceId":"�","sensorId":"s","value":1}
        "#]],
    );
}

#[test]
fn wide_objects_paths_and_required_parts() {
    check(
        r#"{"wide": true, "device": "=box", "unknown": "tags"}"#,
        &[
            br#"{"temperature": 22.5, "humidity": 65, "on": true, "note": "x", "quality": 0.6, "timestamp": 1795428000000}"#,
            br#"{"note":"x"}"#,
        ],
        &expect![[r#"
            0/0 box temperature - 2026-11-23T10:00:00.000Z 22.5 - uncertain 0.6
            0/1 box humidity - 2026-11-23T10:00:00.000Z 65.0 - uncertain 0.6
            0/2 box on - 2026-11-23T10:00:00.000Z true - uncertain 0.6
            100/0 parse: no member holds a number or boolean | {"note":"x"}
        "#]],
    );
    check(
        r#"{"fields": {"device": "$.meta.device.id", "sensor": "meta.sensor", "value": "v"}, "timestamp_unit": "s"}"#,
        &[br#"{"v": 1, "meta": {"fw": 3, "device": {"id": "d"}, "sensor": "s"}, "timestamp": 1795428000.5}"#, br#"{"v": 1, "meta": 7}"#],
        &expect![[r#"
            0/0 d s - 2026-11-23T10:00:00.500Z 1.0 - good
            100/0 parse: deviceId is missing | {"v": 1, "meta": 7}
        "#]],
    );
    check(
        r#"{"required": ["id", "sensorType", "unit", "quality"], "value": "number"}"#,
        &[
            br#"{"id":"1","deviceId":"d","sensorId":"s","sensorType":"t","value":1,"unit":"u","quality":1}"#,
            br#"{"id":"1","deviceId":"d","sensorId":"s","value":1,"unit":"u","quality":1}"#,
            br#"{"id":"1","deviceId":"d","sensorId":"s","sensorType":"t","value":"1","unit":"u","quality":1}"#,
            br#"{"id":"1","deviceId":"d","sensorId":"s","sensorType":"t","value":1,"unit":"u","quality":"good"}"#,
            br#"{"id":"1","deviceId":"d","sensorId":"s","sensorType":"t","value":1,"unit":"u","quality":null}"#,
        ],
        &expect![[r#"
            0/0 d s t 2026-11-23T10:00:00.000Z 1.0 u good 1 id=1 stamped
            100/0 parse: sensorType is missing | {"id":"1","deviceId":"d","sensorId":"s","value":1,"unit":"u","quality":1}
            200/0 parse: value must be a number | {"id":"1","deviceId":"d","sensorId":"s","sensorType":"t","value":"1","unit":"u","quality":1}
            300/0 parse: quality must be a number | {"id":"1","deviceId":"d","sensorId":"s","sensorType":"t","value":1,"unit":"u","quality":"good"}
            400/0 parse: quality is missing | {"id":"1","deviceId":"d","sensorId":"s","sensorType":"t","value":1,"unit":"u","quality":null}
        "#]],
    );
}

#[test]
fn device_and_sensor_from_topic_and_key() {
    let config: DecodeConfig = serde_json::from_str(r#"{"device": "topic[1]", "sensor": "key"}"#).unwrap();
    let mut block = block(&[br#"{"value":1}"#, br#"{"value":2}"#, br#"{"value":3}"#], None);
    block.topics = Some(vec!["devices/a/x".into(), "devices/b".into(), "devices".into()]);
    block.keys = Some(vec![Some(Bytes::from_static(b"k")), None, None]);
    block.entries[0].ingest_us = Some(0);
    let decoded = Decoder::new(&config).unwrap().decode(&block);
    expect![[r#"
        0/0 a k - 1970-01-01T00:00:00.000Z 1.0 - good stamped
        100/0 parse: the record has no key that is text | {"value":2}
        200/0 parse: the topic has no such level | {"value":3}
    "#]]
    .assert_eq(&picture(&decoded));
}

#[test]
fn wrong_configurations_say_where() {
    let wrong = |text: &str| Decoder::new(&serde_json::from_str(text).unwrap()).unwrap_err();
    assert_eq!(wrong(r#"{"device": "topic[x]"}"#).0, "/device");
    assert_eq!(wrong(r#"{"fields": {"device": "a..b"}}"#).0, "/fields/device");
    assert_eq!(wrong(r#"{"fields": {"device": "value"}}"#).0, "/fields/value");
    assert_eq!(wrong(r#"{"fields": {"device": "value.id"}}"#).0, "/fields/value");
    assert_eq!(wrong(r#"{"quality": {"good": 0.2}}"#).0, "/quality");
    assert_eq!(wrong(r#"{"wide": true, "required": ["unit"]}"#).0, "/required");
    assert!(serde_json::from_str::<DecodeConfig>(r#"{"formats": "json"}"#).is_err());
}

#[test]
fn a_payload_with_too_many_readings_or_bytes_is_refused_whole_and_the_others_are_taken() {
    let reading = |value: u32| format!(r#"{{"deviceId":"d","sensorId":"s","timestamp":0,"value":{value}}}"#);
    let several = format!("[{},{},{}]", reading(1), reading(2), reading(3));
    let long = format!("[{}{}]", reading(4), " ".repeat(200));
    check(
        r#"{"limits": {"bytes": "200B", "rows": 2}}"#,
        &[reading(0).as_bytes(), several.as_bytes(), long.as_bytes(), format!("[{},{}]", reading(5), reading(6)).as_bytes()],
        &expect![[r#"
            0/0 d s - 1970-01-01T00:00:00.000Z 0.0 - good
            300/0 d s - 1970-01-01T00:00:00.000Z 5.0 - good
            300/1 d s - 1970-01-01T00:00:00.000Z 6.0 - good
            100/0 payload_rows: the payload has more than 2 readings | [{"deviceId":"d","sensorId":"s","timestamp":0,"value":1},{"deviceId":"d","sensorId":"s","timestamp":0,"value":2},{"deviceId":"d","sensorId":"s","timestamp":0,"value":3}]
            200/0 payload_size: the payload has 257 bytes, 200 are allowed; the first of them are kept | [{"deviceId":"d","sensorId":"s","timestamp":0,"value":4}                                                                                                                                                                                                        ]
        "#]],
    );
}

#[test]
fn of_a_payload_with_too_many_bytes_the_beginning_is_kept() {
    let mut decoder =
        Decoder::new(&DecodeConfig { limits: PayloadLimits { bytes: crate::Size(100_000), rows: 1 }, ..DecodeConfig::default() }).unwrap();
    let decoded = decoder.decode(&block(&[&vec![b'x'; 100_001]], None));
    assert_eq!((decoded.rejects.len(), decoded.rejects[0].payload.len(), decoded.rejects[0].code), (1, 64 << 10, "payload_size"));
    assert!(decoded.rejects[0].message.contains("100001 bytes"), "{}", decoded.rejects[0].message);
}
