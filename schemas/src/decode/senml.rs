//! SenML packs in JSON (RFC 8428) to readings.

use std::borrow::Cow;

use super::output::{Output, Payload};
use super::parts::{Checks, Fault, Parts, Role, Time};
use super::rows::Value;
use super::scan::Cursor;
use super::time::representable;

/// Below this a time is relative to now (RFC 8428, 4.5.3).
const RELATIVE_BELOW: f64 = 268_435_456.0;
/// The version this reads (RFC 8428, 4.4).
const VERSION: f64 = 10.0;

/// Reads SenML packs. The sensor is the resolved name, its last step where the device is the rest of the name.
#[derive(Debug)]
pub(super) struct SenmlReader {
    pub(super) checks: Checks,
}

/// The members of one record, base fields first.
#[derive(Debug, Default)]
struct Record<'a> {
    base_name: Option<Cow<'a, [u8]>>,
    base_time: Option<f64>,
    base_unit: Option<Cow<'a, [u8]>>,
    base_value: Option<f64>,
    base_sum: Option<f64>,
    name: Option<Cow<'a, [u8]>>,
    time: Option<f64>,
    unit: Option<Cow<'a, [u8]>>,
    sum: Option<f64>,
    value: Option<Value<'a>>,
}

/// What base fields have set so far.
#[derive(Debug, Default)]
struct Base {
    name: Vec<u8>,
    time: Option<f64>,
    unit: Option<Vec<u8>>,
    value: f64,
    sum: f64,
}

impl SenmlReader {
    /// Decodes one pack. A record that is wrong is rejected alone, unless it sets base fields: then nobody knows what the
    /// records after it mean, and they are rejected too.
    pub(super) fn payload(&self, payload: &Payload<'_>, out: &mut Output<'_>) {
        let refuse = |message, out: &mut Output<'_>| out.reject(payload, Fault::Syntax(message), payload.start, payload.end);
        let text = payload.data.get(..payload.end).unwrap_or_default();
        let mut whole = Cursor::new(text, payload.start);
        if !payload.utf8 {
            return refuse("not UTF-8 text", out);
        }
        match whole.skip_value() {
            Err(message) => return refuse(message, out),
            Ok(()) if !whole.at_end() => return refuse("something follows after the pack", out),
            Ok(()) => {}
        }
        let mut cursor = Cursor::new(text, payload.start);
        cursor.space();
        if !cursor.eat(b'[') {
            return refuse("not a SenML pack; it must be an array of records", out);
        }
        let mut base = Base::default();
        let mut lost = false;
        let before = out.accounts.row;
        loop {
            cursor.space();
            if cursor.eat(b']') {
                break;
            }
            let from = cursor.at();
            if cursor.skip_value().is_err() {
                break;
            }
            let record = text.get(..cursor.at()).unwrap_or_default();
            let outcome = if lost { Err(Fault::Syntax("a record before this one has base fields that cannot be read")) } else { Ok(()) };
            let outcome = outcome.and_then(|()| self.record(record, from, payload, &mut base, out));
            match outcome {
                Ok(true) => out.accounts.settle(payload, Ok(()), from, cursor.at()),
                Ok(false) => {}
                Err(fault) => {
                    lost |= sets_base(record, from);
                    out.accounts.settle(payload, Err(fault), from, cursor.at());
                }
            }
            cursor.space();
            cursor.eat(b',');
        }
        if out.accounts.row == before {
            refuse("the pack holds no reading", out);
        }
    }

    /// Appends the row of one record; false when it only sets base fields.
    fn record(&self, text: &[u8], from: usize, payload: &Payload<'_>, base: &mut Base, out: &mut Output<'_>) -> Result<bool, Fault> {
        let record = read(&mut Cursor::new(text, from))?;
        base.name = record.base_name.map_or_else(|| std::mem::take(&mut base.name), Cow::into_owned);
        base.time = record.base_time.or(base.time);
        base.unit = record.base_unit.map(Cow::into_owned).or_else(|| base.unit.take());
        base.value = record.base_value.unwrap_or(base.value);
        base.sum = record.base_sum.unwrap_or(base.sum);
        let sum = record.sum.map(|s| s + base.sum);
        let mut tags = None;
        let value = match (record.value, sum) {
            (Some(Value::Number(v)), _) if !(v + base.value).is_finite() => return Err(Fault::Syntax("a number too large for a double")),
            (_, Some(sum)) if !sum.is_finite() => return Err(Fault::Syntax("a number too large for a double")),
            (None, None) => return Ok(false),
            (None, Some(sum)) => Value::Number(sum),
            (Some(value), sum) => {
                tags = sum.map(|s| Cow::Owned(serde_json::json!({ "sum": s }).to_string().into_bytes()));
                if let Value::Number(v) = value { Value::Number(v + base.value) } else { value }
            }
        };
        if self.checks.numbers_only && !matches!(value, Value::Number(_)) {
            return Err(Fault::Part(Role::Value, "must be a number"));
        }
        let name = [base.name.as_slice(), record.name.as_deref().unwrap_or_default()].concat();
        if name.is_empty() {
            return Err(Fault::Syntax("a record without a name"));
        }
        let split = name.iter().rposition(|b| matches!(b, b':' | b'/'));
        let (device, sensor) = match split {
            Some(at) if payload.around.device.is_none() => (name.get(..at), name.get(at + 1..)),
            _ => (None, Some(name.as_slice())),
        };
        let filled = |name: Option<&[u8]>| name.filter(|n| !n.is_empty()).map(|n| Cow::Owned(n.to_vec()));
        let parts = Parts {
            device: filled(device),
            sensor: filled(sensor),
            time: time(base.time, record.time, payload.around.ingest),
            value: Some(value),
            unit: record.unit.or_else(|| base.unit.clone().map(Cow::Owned)),
            tags,
            ..Parts::default()
        };
        self.checks.append(&parts.plain(), &payload.around, out.columns).map(|()| true)
    }
}

/// Base time plus time, in seconds; small sums are relative to `now`.
fn time(base: Option<f64>, time: Option<f64>, now: Option<i64>) -> Option<Time> {
    if base.is_none() && time.is_none() {
        return None;
    }
    let seconds = base.unwrap_or(0.0) + time.unwrap_or(0.0);
    let us = seconds * 1e6;
    // NaN and what a cast would saturate are refused.
    if !(-1e18..=1e18).contains(&us) {
        return Some(Time::Unreadable);
    }
    let us = us.round() as i64;
    let absolute = if seconds < RELATIVE_BELOW { now.and_then(|now| now.checked_add(us)) } else { Some(us) };
    Some(absolute.and_then(representable).map_or(Time::Unreadable, Time::At))
}

/// True when the record, well-formed but wrong, has a member that holds for the records after it.
fn sets_base(text: &[u8], from: usize) -> bool {
    let mut cursor = Cursor::new(text, from);
    let mut base = false;
    // A record that is no object has no members.
    let _ = members(&mut cursor, |key, cursor| {
        base |= key.starts_with(b"b");
        Ok(cursor.skip_value()?)
    });
    base
}

/// Calls `each` at the value of every member.
fn members<'a>(cursor: &mut Cursor<'a>, mut each: impl FnMut(&[u8], &mut Cursor<'a>) -> Result<(), Fault>) -> Result<(), Fault> {
    cursor.space();
    if !cursor.eat(b'{') {
        return Err(Fault::Syntax("not a SenML record; it must be an object"));
    }
    cursor.space();
    let mut more = !cursor.eat(b'}');
    while more {
        cursor.space();
        let key = cursor.string()?.resolve()?;
        cursor.colon()?;
        cursor.space();
        each(&key, cursor)?;
        cursor.space();
        more = cursor.eat(b',');
    }
    Ok(())
}

fn read<'a>(cursor: &mut Cursor<'a>) -> Result<Record<'a>, Fault> {
    let mut record = Record::default();
    let mut values = 0;
    members(cursor, |key, cursor| {
        match key {
            b"bn" => record.base_name = Some(text(cursor)?),
            b"bt" => record.base_time = Some(number(cursor)?),
            b"bu" => record.base_unit = Some(text(cursor)?),
            b"bv" => record.base_value = Some(number(cursor)?),
            b"bs" => record.base_sum = Some(number(cursor)?),
            b"bver" => {
                if number(cursor)? > VERSION {
                    return Err(Fault::Syntax("a SenML version above 10"));
                }
            }
            b"n" => record.name = Some(text(cursor)?),
            b"t" => record.time = Some(number(cursor)?),
            b"u" => record.unit = Some(text(cursor)?),
            b"s" => record.sum = Some(number(cursor)?),
            b"v" => record.value = Some(Value::Number(number(cursor)?)),
            b"vs" | b"vd" => record.value = Some(Value::Text(text(cursor)?)),
            b"vb" => {
                let flag = cursor.word()?.ok_or(Fault::Syntax("vb must be a boolean"))?;
                record.value = Some(Value::Flag(flag));
            }
            // RFC 8428, 4.4: what ends in an underscore must be understood.
            _ if key.last() == Some(&b'_') => return Err(Fault::Syntax("a member that must be understood and is not")),
            _ => cursor.skip_value()?,
        }
        values += usize::from(matches!(key, b"v" | b"vs" | b"vd" | b"vb"));
        Ok(())
    })?;
    if values > 1 { Err(Fault::Syntax("a record with more than one value")) } else { Ok(record) }
}

fn text<'a>(cursor: &mut Cursor<'a>) -> Result<Cow<'a, [u8]>, Fault> {
    Ok(cursor.string()?.resolve()?)
}

fn number(cursor: &mut Cursor<'_>) -> Result<f64, Fault> {
    match cursor.peek() {
        Some(b'-' | b'0'..=b'9') => Ok(cursor.number()?.value),
        _ => Err(Fault::Syntax("expected a number")),
    }
}
