//! Pictures of what SenML, CSV and Arrow IPC payloads become.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use expect_test::expect;

use super::tests::check;
use crate::encode::ipc::to_stream;

#[test]
fn senml_resolves_base_fields_and_relative_times() {
    check(
        r#"{"format": "senml_json"}"#,
        &[
            br#"[{"bn":"urn:dev:ow:10e2073a0108006:","bt":1795428000,"bu":"A","bver":5,"n":"voltage","u":"V","v":120.1},
                {"n":"current","t":-5,"v":1.2},{"n":"current","t":-4.5,"v":1.3}]"#,
            br#"[{"n":"box/door","vb":true,"t":-60},{"n":"box/label","vs":"caf\u00e9"},{"n":"box/data","vd":"aGkgCg"}]"#,
            br#"[{"bn":"box/","bv":20,"bs":100},{"n":"t","v":0.5},{"n":"e","s":5},{"n":"p","v":1,"s":-1}]"#,
        ],
        &expect![[r#"
            0/0 urn:dev:ow:10e2073a0108006 voltage - 2026-11-23T10:00:00.000Z 120.1 V good
            0/1 urn:dev:ow:10e2073a0108006 current - 2026-11-23T09:59:55.000Z 1.2 A good
            0/2 urn:dev:ow:10e2073a0108006 current - 2026-11-23T09:59:55.500Z 1.3 A good
            100/0 box door - 2026-11-23T09:59:00.000Z true - good
            100/1 box label - 2026-11-23T10:00:00.000Z "café" - good stamped
            100/2 box data - 2026-11-23T10:00:00.000Z "aGkgCg" - good stamped
            200/0 box t - 2026-11-23T10:00:00.000Z 20.5 - good stamped
            200/1 box e - 2026-11-23T10:00:00.000Z 105.0 - good stamped
            200/2 box p - 2026-11-23T10:00:00.000Z 21.0 - good tags={"sum":99.0} stamped
        "#]],
    );
    check(
        r#"{"format": "senml_json", "device": "=f1"}"#,
        &[br#"[{"n":"t","u":"Cel","v":-20}]"#, br#"[{"bn":"urn:x:","n":"t","v":1}]"#],
        &expect![[r#"
            0/0 f1 t - 2026-11-23T10:00:00.000Z -20.0 Cel good stamped
            100/0 f1 urn:x:t - 2026-11-23T10:00:00.000Z 1.0 - good stamped
        "#]],
    );
}

#[test]
fn senml_rejects_what_it_cannot_understand() {
    check(
        r#"{"format": "senml_json"}"#,
        &[
            br#"[{"n":"a:b","v":"1"},{"n":"a:b","v":2}]"#,
            br#"[{"bn":"a:","bt":"x"},{"n":"b","v":2}]"#,
            br#"[{"n":"a:b","v":1,"vs":"x"},{"n":"a:b","v":1,"must_":2},{"n":"a:","v":1},{"n":"b","v":1},{"v":1},7]"#,
            br#"[{"n":"a:b","v":1,"bver":11}]"#,
            br#"[{"n":"a:b","v":1,"t":1e300}]"#,
            br#"[{"bn":"a:"}]"#,
            br#"{"n":"a:b","v":1}"#,
            br#"[{"n":"a:b","v":1}"#,
            b"",
        ],
        &expect![[r#"
            0/1 a b - 2026-11-23T10:00:00.000Z 2.0 - good stamped
            0/0 parse: expected a number | {"n":"a:b","v":"1"}
            100/0 parse: expected a number | {"bn":"a:","bt":"x"}
            100/1 parse: a record before this one has base fields that cannot be read | {"n":"b","v":2}
            200/0 parse: a record with more than one value | {"n":"a:b","v":1,"vs":"x"}
            200/1 parse: a member that must be understood and is not | {"n":"a:b","v":1,"must_":2}
            200/2 parse: sensorId is missing | {"n":"a:","v":1}
            200/3 parse: deviceId is missing | {"n":"b","v":1}
            200/4 parse: a record without a name | {"v":1}
            200/5 parse: not a SenML record; it must be an object | 7
            300/0 parse: a SenML version above 10 | {"n":"a:b","v":1,"bver":11}
            400/0 timestamp: timestamp is no time that can be read | {"n":"a:b","v":1,"t":1e300}
            500/0 parse: the pack holds no reading | [{"bn":"a:"}]
            600/0 parse: not a SenML pack; it must be an array of records | {"n":"a:b","v":1}
            700/0 parse: expected a comma or a closing bracket | [{"n":"a:b","v":1}
            800/0 parse: the payload is empty | 
        "#]],
    );
}

#[test]
fn csv_by_named_columns_and_by_its_own_header() {
    check(
        r#"{"format": "csv", "columns": ["timestamp", "value", "deviceId", "quality", "x"], "sensor": "=s", "unknown": "tags", "header": true}"#,
        &[
            b"timestamp,value,deviceId,quality,x\n",
            b"2026-11-23 10:00:00,1.5,\"a,b\",0.9,\"say \"\"hi\"\"\"\r\n1795428000000,true,d,bad,",
            b"2026-11-23T10:00:00Z,nan,d,,\n,2,d,,\n2026,3,d\nx,3,d,,",
            b"2026-11-23T10:00:00Z,1,\xff,,\n2026-11-23T10:00:00Z,1,d,,",
        ],
        &expect![[r#"
            100/0 a,b s - 2026-11-23T10:00:00.000Z 1.5 - good 0.9 tags={"x":"say \"hi\""}
            100/1 d s - 2026-11-23T10:00:00.000Z true - bad
            200/1 d s - 2026-11-23T10:00:00.000Z 2.0 - good stamped
            300/1 d s - 2026-11-23T10:00:00.000Z 1.0 - good
            200/0 parse: value must be a finite number | 2026-11-23T10:00:00Z,nan,d,,<LF>
            200/2 parse: not as many cells as there are columns | 2026,3,d<LF>
            200/3 timestamp: timestamp is no time that can be read | x,3,d,,
            300/0 parse: not UTF-8 text | 2026-11-23T10:00:00Z,1,�,,<LF>
        "#]],
    );
    check(
        r#"{"format": "csv", "wide": true, "device": "=rig", "fields": {"timestamp": "datetime"}, "delimiter": ";"}"#,
        &[b"datetime;Pressure;Current;note\n2020-03-09 10:14:33;0.05;1;ok\n2020-03-09 10:14:34;;;ok\n", b"datetime;Pressure\n"],
        &expect![[r#"
            0/0 rig Pressure - 2020-03-09T10:14:33.000Z 0.05 - good
            0/1 rig Current - 2020-03-09T10:14:33.000Z 1.0 - good
            0/2 parse: no cell holds a number or boolean | 2020-03-09 10:14:34;;;ok<LF>
            100/0 parse: no record holds a reading | datetime;Pressure<LF>
        "#]],
    );
}

#[test]
fn arrow_ipc_with_other_types_and_missing_columns() {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("ts", Arc::new(TimestampMillisecondArray::from(vec![Some(1_795_428_000_000), None, Some(0)]))),
        ("device_id", Arc::new(StringArray::from(vec!["a", "b", "c"]))),
        ("sensor_id", Arc::new(StringArray::from(vec![Some("s"), Some("t"), None]))),
        ("value", Arc::new(Int64Array::from(vec![Some(1), Some(2), Some(3)]))),
        ("score", Arc::new(Float64Array::from(vec![Some(0.6), None, None]))),
        ("other", Arc::new(Int64Array::from(vec![1, 2, 3]))),
    ];
    let stream = to_stream(&RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()).unwrap();
    check(
        r#"{"format": "arrow_ipc"}"#,
        &[&stream],
        &expect![[r#"
        0/0 a s - 2026-11-23T10:00:00.000Z 1.0 - uncertain 0.6
        0/1 b t - 2026-11-23T10:00:00.000Z 2.0 - good stamped
        0/2 parse: sensorId is missing | 1608 bytes
    "#]],
    );
    check(
        r#"{"format": "arrow_ipc"}"#,
        &[&stream[..40], b"", b"ARROW1"],
        &expect![[r#"
        0/0 parse: not an Arrow IPC stream | 40 bytes
        100/0 parse: the payload is empty | 
        200/0 parse: not an Arrow IPC stream | ARROW1
    "#]],
    );
}
