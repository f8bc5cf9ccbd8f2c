//! What was learned of a source's objects must not show: a decoder that has seen much reads each payload as one that has seen nothing.

use proptest::prelude::*;
use proptest::sample::select;

use super::tests::{block, picture};
use super::*;

/// Members of a producer's object, in the order it sends them. `~` stands for a string, `%` for a number, `@` for a time.
const TEMPLATES: [&str; 6] = [
    r#"{"id":"~","deviceId":"~","sensorId":"~","sensorType":"~","timestamp":"@","value":%,"unit":"~","quality":%}"#,
    r#"{ "value": %, "quality": %, "timestamp": "@", "sensorId": "~", "deviceId": "~" }"#,
    r#"{"meta":{"fw":"~","n":[1,{"a":null}]},"deviceId":"~","sensorId":"~","value":%,"unit":null,"timestamp":"@","seq":%}"#,
    r#"{"deviceId":"~","sensorId":"~","value":"~","timestamp":"@"}"#,
    r#"{"deviceId":"~","deviceId":"~","sensorId":"~","value":%}"#,
    r#"{"deviceId":"~","sensorId":"~","value":true,"quality":"good"}"#,
];

fn strings() -> impl Strategy<Value = String> {
    let usual =
        select(vec!["a", "device-0000001", "device-0000002", "device-00000021", "temp-001", "celsius", "a-name-longer-than-sixteen-bytes"]);
    let odd = select(vec!["", r"a\u0041", r"a\b", r"a\\b", r#"\""#, "\u{e9}", "a\tb", r"a\\", "x\",\"value\":7,\"y\":\"z", "a\"b"]);
    prop_oneof![8 => usual, 1 => odd].prop_map(str::to_owned)
}

fn numbers() -> impl Strategy<Value = String> {
    let usual = (-1000..1000_i32, 0..100_u32).prop_map(|(whole, cents)| format!("{whole}.{cents}"));
    let odd = select(vec![
        "0",
        "-0",
        "1e3",
        "12345678901234567890",
        "1E400",
        "01",
        "1.",
        ".5",
        "-",
        "null",
        "true",
        "\"7\"",
        "{}",
        "0.49",
        "-0.5",
    ]);
    prop_oneof![8 => usual, 1 => odd.prop_map(str::to_owned)]
}

fn times() -> impl Strategy<Value = String> {
    let usual = (0..60_u32, 0..1000_u32).prop_map(|(second, ms)| format!("2026-11-23T10:00:{second:02}.{ms:03}Z"));
    let odd = select(vec![
        "2026-11-24T00:00:00Z",
        "not-a-time",
        "",
        "2026-13-45T10:00:00.000Z",
        "2026-11-23T10:00:00.00\"Z",
        r"2026-11-23T10:00:00.00\nZ",
    ]);
    prop_oneof![8 => usual, 1 => odd.prop_map(str::to_owned)]
}

/// A template with values in place of its marks; sometimes cut, or with something behind it.
fn line(template: &str) -> impl Strategy<Value = String> + use<> {
    let parts: Vec<BoxedStrategy<String>> = template
        .chars()
        .map(|mark| match mark {
            '~' => strings().boxed(),
            '%' => numbers().boxed(),
            '@' => times().boxed(),
            other => Just(other.to_string()).boxed(),
        })
        .collect();
    (parts, 0..40_usize, select(vec!["", "", "", " ", "\r", "}", ",", "\n{}"])).prop_map(|(parts, cut, after)| {
        let mut text = parts.concat();
        if cut == 0 {
            let half = text.len() / 2;
            text.truncate((half..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or_default());
        }
        text + after
    })
}

/// What a producer sends: mostly the same template for a while.
fn stream() -> impl Strategy<Value = Vec<String>> {
    let run = (0..TEMPLATES.len(), 1..12_usize).prop_flat_map(|(number, count)| prop::collection::vec(line(TEMPLATES[number]), count));
    prop::collection::vec(run, 1..8).prop_map(|runs| runs.concat())
}

/// What a decoder that has seen all lines makes of them, and what decoders make of them that see one each.
fn both_ways(config: &str, lines: &[String]) -> (String, String) {
    let config: DecodeConfig = serde_json::from_str(config).unwrap();
    let payloads: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    let mut decoder = Decoder::new(&config).unwrap();
    decoder.decode(&block(&payloads, Some(5)));
    let learned = decoder.decode(&block(&payloads, Some(5)));
    let (mut rows, mut rejects) = (String::new(), String::new());
    for (number, payload) in payloads.iter().enumerate() {
        let mut one = block(&[payload], Some(5));
        one.entries[0].offset = number as u64 * 100;
        let decoded = Decoder::new(&config).unwrap().decode(&one);
        rejects +=
            &picture(&Decoded { rows: RecordBatch::new_empty(readings_schema()), positions: Vec::new(), rejects: decoded.rejects.clone() });
        rows += &picture(&Decoded { rejects: Vec::new(), ..decoded });
    }
    (picture(&learned), rows + &rejects)
}

#[test]
fn a_name_that_is_written_like_another_ones_meaning_is_not_taken_for_it() {
    let names = ["a", "a", "a", "a", "a", "a", r"a\\b", r"a\\b", r"a\b", r"a\b"];
    let lines: Vec<String> = names.iter().map(|name| format!(r#"{{"deviceId":"{name}","sensorId":"s","value":1}}"#)).collect();
    let (learned, alone) = both_ways(r#"{"format":"json"}"#, &lines);
    assert_eq!(learned, alone);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn what_was_learned_does_not_show(
        lines in stream(),
        config in select(vec![
            r#"{"format":"json"}"#,
            r#"{"format":"json","unknown":"tags"}"#,
            r#"{"format":"json","value":"number","required":["id","sensorType","timestamp","unit","quality"]}"#,
            r#"{"format":"json","device":"=gateway","fields":{"sensor":"meta.fw"}}"#,
            r#"{"format":"json","wide":true}"#,
        ]),
    ) {
        let (learned, alone) = both_ways(config, &lines);
        prop_assert_eq!(learned, alone);
    }
}

#[test]
fn a_producer_that_changes_its_mind_is_learned_anew_and_its_shape_is_used() {
    let text = |template: &str, number: u32| {
        template.replace('~', &format!("name-{}", number % 3)).replace('%', &number.to_string()).replace('@', "2026-11-23T10:00:00.000Z")
    };
    let lines: Vec<String> = TEMPLATES[..2].iter().flat_map(|template| (0..40).map(|number| text(template, number))).collect();
    let payloads: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
    let mut decoder = Decoder::new(&DecodeConfig::default()).unwrap();
    assert_eq!(decoder.decode(&block(&payloads, None)).positions.len(), 80);
    let Reader::Json(reader) = &decoder.reader else { panic!("JSON is the default") };
    assert_eq!(reader.object.misses(), 0, "the last ones fitted what was learned");
}
