//! The `given:` of a test to log batches: series of values with event times, or payloads as they come from outside.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, StringDictionaryBuilder, TimestampMicrosecondArray};
use arrow::datatypes::UInt32Type;
use fieldstream_engine_api::{LogBatch, Payloads};
use fieldstream_schemas::time::parse_rfc3339;
use fieldstream_schemas::{PayloadBlock, PayloadEntry, Position, Quality, QualityScale, quality, readings_schema};
use serde_json::Value;

use crate::config::{GivenConfig, TestConfig};
use crate::plan::Plan;

/// Event time of the first reading where a test does not say: 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;
/// Rows in one turn. Results do not depend on it.
const TURN: usize = 1024;
/// Values one `given` may make.
const MOST: usize = 1_000_000;

/// One value of a series.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Measured {
    Number(f64),
    Flag(bool),
}

/// One reading or payload at its place in virtual time.
struct Event<'a> {
    arrives: i64,
    ts: i64,
    given: &'a GivenConfig,
    number: usize,
    what: What,
}

enum What {
    Value(Measured),
    Payload(Vec<u8>),
}

/// What is wrong with the input of `test`: pointer below the test, and message.
pub(crate) fn check(plan: &Plan, test: &TestConfig) -> Vec<(String, String)> {
    let mut errors = Vec::new();
    if test.start.as_ref().is_some_and(|s| parse_rfc3339(s.as_bytes()).is_none()) {
        errors.push(("/start".to_owned(), "no time such as 2026-01-01T00:00:00Z".to_owned()));
    }
    for (g, given) in test.given.iter().enumerate() {
        let mut error = |field: &str, message: &str| errors.push((format!("/given/{g}{field}"), message.to_owned()));
        if !plan.sources.iter().any(|s| *s.name == *given.into) {
            error("/into", &format!("there is no source `{}`", given.into));
        }
        if given.start.as_ref().is_some_and(|s| parse_rfc3339(s.as_bytes()).is_none()) {
            error("/start", "no time such as 2026-01-01T00:00:00Z");
        }
        match (&given.values, &given.payloads) {
            (Some(values), None) => {
                if let Err(why) = parse_values(values) {
                    error("/values", &why);
                }
                if given.device.is_none() {
                    error("", "`values` need a `device`");
                }
            }
            (None, Some(_)) => {}
            _ => error("", "give either `values` or `payloads`"),
        }
    }
    errors
}

/// The input of `test` in the order in which it arrives. One event, one offset; append time is the arrival.
pub(crate) fn batches(plan: &Plan, test: &TestConfig) -> Result<Vec<LogBatch>, String> {
    let time = |text: &Option<String>, or: i64| match text {
        Some(text) => parse_rfc3339(text.as_bytes()).ok_or_else(|| format!("`{text}` is no time such as 2026-01-01T00:00:00Z")),
        None => Ok(or),
    };
    let start = time(&test.start, START_US)?;
    let mut events = Vec::new();
    for given in &test.given {
        let first = time(&given.start, start)?;
        let every = given.every.map_or(1_000_000, |e| i64::try_from(e.0.as_micros()).unwrap_or(i64::MAX));
        let delay = given.delay.map_or(0, |d| i64::try_from(d.0.as_micros()).unwrap_or(i64::MAX));
        let whats: Vec<Option<What>> = match (&given.values, &given.payloads) {
            (Some(values), _) => parse_values(values)?.into_iter().map(|v| v.map(What::Value)).collect(),
            (None, payloads) => payloads.iter().flatten().map(|p| Some(What::Payload(payload_bytes(p)))).collect(),
        };
        for (number, what) in whats.into_iter().enumerate() {
            let ts = first.saturating_add(every.saturating_mul(number as i64));
            events.extend(what.map(|what| Event { arrives: ts.saturating_add(delay), ts, given, number, what }));
        }
    }
    events.sort_by_key(|e| e.arrives);
    let same_turn = |a: &Event<'_>, b: &Event<'_>| a.given.into == b.given.into && a.is_value() == b.is_value();
    let mut offset = 0;
    let mut all = Vec::new();
    for turn in events.chunk_by(same_turn).flat_map(|run| run.chunks(TURN)) {
        all.push(log_batch(plan, turn, offset)?);
        offset += turn.len() as u64;
    }
    Ok(all)
}

impl Event<'_> {
    fn is_value(&self) -> bool {
        matches!(self.what, What::Value(_))
    }
}

fn payload_bytes(payload: &Value) -> Vec<u8> {
    match payload {
        Value::String(text) => text.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    }
}

fn log_batch(plan: &Plan, turn: &[Event<'_>], offset: u64) -> Result<LogBatch, String> {
    let first = turn.first().ok_or("an empty turn")?;
    let payloads = if first.is_value() { rows(plan, turn, offset)? } else { Payloads::Raw(block(turn, offset)) };
    Ok(LogBatch {
        partition: 0,
        source: first.given.into.as_str().into(),
        next_offset: offset + turn.len() as u64,
        append_us: turn.last().map(|e| e.arrives),
        payloads,
    })
}

fn block(turn: &[Event<'_>], offset: u64) -> PayloadBlock {
    let mut data = Vec::new();
    let mut entries = Vec::new();
    let mut topics: Vec<Arc<str>> = Vec::new();
    for (event, offset) in turn.iter().zip(offset..) {
        let What::Payload(bytes) = &event.what else { continue };
        entries.push(PayloadEntry { offset, start: data.len() as u32, len: bytes.len() as u32, ingest_us: Some(event.arrives) });
        data.extend_from_slice(bytes);
        topics.push(event.given.topic.as_deref().unwrap_or_default().into());
    }
    let named = turn.iter().any(|e| e.given.topic.is_some());
    PayloadBlock { data: data.into(), entries, topics: named.then_some(topics), ..PayloadBlock::default() }
}

fn rows(plan: &Plan, turn: &[Event<'_>], offset: u64) -> Result<Payloads, String> {
    let source = turn.first().and_then(|e| plan.sources.iter().find(|s| *s.name == *e.given.into));
    let scale =
        source.map_or(QualityScale::default(), |s| QualityScale { good: s.decode.quality.good, uncertain: s.decode.quality.uncertain });
    let names = |of: fn(&GivenConfig) -> Option<&str>| -> ArrayRef {
        let mut builder = StringDictionaryBuilder::<UInt32Type>::new();
        turn.iter().for_each(|e| builder.append_option(of(e.given)));
        Arc::new(builder.finish())
    };
    let times = |of: fn(&Event<'_>) -> i64| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter_values(turn.iter().map(of)).with_timezone("UTC"))
    };
    let value = |e: &Event<'_>| if let What::Value(Measured::Number(n)) = e.what { Some(n) } else { None };
    let flag = |e: &Event<'_>| if let What::Value(Measured::Flag(b)) = e.what { Some(b) } else { None };
    let class = |e: &Event<'_>| e.given.quality.map_or(Quality::Good, |score| scale.class(score)) as u8;
    let id = |e: &Event<'_>| {
        format!("{}-{}-{}", e.given.device.as_deref().unwrap_or_default(), e.given.sensor.as_deref().unwrap_or("value"), e.number)
    };
    let columns: Vec<ArrayRef> = vec![
        names(|g| Some(g.device.as_deref().unwrap_or_default())),
        names(|g| Some(g.sensor.as_deref().unwrap_or("value"))),
        names(|g| g.sensor_type.as_deref()),
        times(|e| e.ts),
        times(|e| e.arrives),
        Arc::new(turn.iter().map(value).collect::<Float64Array>()),
        Arc::new(StringArray::new_null(turn.len())),
        Arc::new(turn.iter().map(flag).collect::<BooleanArray>()),
        names(|g| g.unit.as_deref()),
        quality::column(turn.iter().map(class)),
        Arc::new(turn.iter().map(|e| e.given.quality).collect::<Float64Array>()),
        Arc::new(StringArray::from_iter_values(turn.iter().map(id))),
        Arc::new(StringArray::new_null(turn.len())),
        Arc::new(BooleanArray::from(vec![false; turn.len()])),
    ];
    let rows = RecordBatch::try_new(readings_schema(), columns).map_err(|e| e.to_string())?;
    let positions = (offset..).take(turn.len()).map(|o| Position::new(o, 0)).collect();
    Ok(Payloads::Rows { rows, positions, rejects: Vec::new(), raw: None })
}

/// `-20x9 1..4 _ true`: a value, optionally so many times; a range counts up or down by 1 or by the step after `/`; `_` is a gap.
fn parse_values(text: &str) -> Result<Vec<Option<Measured>>, String> {
    let mut values = Vec::new();
    for token in text.split_whitespace() {
        let wrong = || format!("`{token}` is no value; write 21.5, -20x9, 1..5, 0..1/0.1, true or _ (a gap)");
        let (value, times) = match token.rsplit_once('x') {
            Some((value, times)) => (value, times.parse::<usize>().map_err(|_| wrong())?),
            None => (token, 1),
        };
        let part = match value {
            "_" => vec![None],
            "true" | "false" => vec![Some(Measured::Flag(value == "true"))],
            _ => match value.split_once("..") {
                Some((from, to)) => range(from, to).ok_or_else(wrong)?,
                None => vec![Some(Measured::Number(value.parse().map_err(|_| wrong())?))],
            },
        };
        if part.len().saturating_mul(times) + values.len() > MOST {
            return Err(format!("`{token}`: more than {MOST} values"));
        }
        values.extend(std::iter::repeat_n(part, times).flatten());
    }
    Ok(values)
}

fn range(from: &str, to: &str) -> Option<Vec<Option<Measured>>> {
    let (to, step) = to.split_once('/').unwrap_or((to, "1"));
    let (from, to, step): (f64, f64, f64) = (from.parse().ok()?, to.parse().ok()?, step.parse().ok()?);
    let steps = ((to - from).abs() / step).round();
    if !(step > 0.0 && steps.is_finite() && steps < MOST as f64) {
        return None;
    }
    let direction = if to < from { -step } else { step };
    // Each value from its number, not from the last one: errors do not add up.
    Some((0..=steps as u64).map(|i| Some(Measured::Number(from + direction * i as f64))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_repeat_count_and_leave_gaps() {
        let numbers = |text: &str| -> Result<Vec<f64>, String> {
            Ok(parse_values(text)?.into_iter().map(|v| if let Some(Measured::Number(n)) = v { n } else { f64::NAN }).collect())
        };
        assert_eq!(numbers("-20x3 1.5").unwrap(), [-20.0, -20.0, -20.0, 1.5]);
        assert_eq!(numbers("1..3x2 3..1 0..1/0.5").unwrap(), [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 3.0, 2.0, 1.0, 0.0, 0.5, 1.0]);
        assert_eq!(parse_values("true _x2").unwrap(), [Some(Measured::Flag(true)), None, None]);
        for wrong in ["abc", "1xx", "1..", "1..2/0", "1x99999999", "0..1/-1"] {
            numbers(wrong).unwrap_err();
        }
    }
}
