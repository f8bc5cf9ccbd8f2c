//! Comma-separated values (RFC 4180) to readings.

use std::borrow::Cow;

use super::config::{DecodeConfig, Unknown};
use super::object::member_paths;
use super::output::{Output, Payload};
use super::parts::{Checks, Fault, Parts, Role, Time, time_text};
use super::rows::Value;
use super::scan::Number;
use super::time::Times;

/// Reads CSV records.
#[derive(Debug)]
pub(super) struct CsvReader {
    checks: Checks,
    /// Column names that are parts of a reading.
    parts: Vec<(Role, String)>,
    /// Meaning of each column; empty when each payload names its columns.
    columns: Vec<Column>,
    delimiter: u8,
    header: bool,
    wide: bool,
    keep_unknown: bool,
    times: Times,
}

#[derive(Clone, Debug)]
struct Column {
    role: Option<Role>,
    name: Box<[u8]>,
}

impl CsvReader {
    pub(super) fn new(config: &DecodeConfig, device: bool, sensor: bool) -> Result<Self, (String, String)> {
        let delimiter = u8::try_from(config.delimiter.0).ok().filter(|d| d.is_ascii() && !matches!(d, b'"' | b'\n' | b'\r'));
        let wrong = || ("/delimiter".to_owned(), "must be one ASCII character other than a quote or line end".to_owned());
        let delimiter = delimiter.ok_or_else(wrong)?;
        if config.header && config.columns.is_empty() {
            let message = "without columns the first record of each payload names them; name the columns or leave header out";
            return Err(("/header".into(), message.into()));
        }
        let strip = |path: &str| path.strip_prefix("$.").unwrap_or(path).to_owned();
        let parts = member_paths(&config.fields, device, sensor, config.wide).into_iter().map(|(role, path, _)| (role, strip(path)));
        let mut reader = Self {
            checks: Checks::new(config),
            parts: parts.collect(),
            columns: Vec::new(),
            delimiter,
            header: config.header,
            wide: config.wide,
            keep_unknown: config.unknown == Unknown::Tags,
            times: Times::default(),
        };
        reader.columns = reader.meaning(config.columns.iter().map(String::as_bytes));
        Ok(reader)
    }

    fn meaning<'n>(&self, names: impl Iterator<Item = &'n [u8]>) -> Vec<Column> {
        let role = |name: &[u8]| self.parts.iter().find(|(_, n)| n.as_bytes() == name).map(|(role, _)| *role);
        names.map(|name| Column { role: role(name), name: name.into() }).collect()
    }

    /// Decodes one payload of one or many records.
    pub(super) fn payload(&mut self, payload: &Payload<'_>, out: &mut Output<'_>) {
        let mut csv = csv::ReaderBuilder::new().has_headers(false).flexible(true).delimiter(self.delimiter).from_reader(payload.bytes());
        let mut record = csv::ByteRecord::new();
        let mut from = payload.start;
        let own_header = self.columns.is_empty();
        let mut skip = own_header || self.header && payload.offset == 0;
        let file_header = skip && !own_header;
        let mut columns = self.columns.clone();
        let before = out.accounts.row;
        // Reading from memory, records of any length and bytes of any kind: there is no error left to happen.
        while let Ok(true) = csv.read_byte_record(&mut record) {
            let to = payload.start + usize::try_from(csv.position().byte()).unwrap_or_default();
            if skip {
                skip = false;
                if own_header {
                    if !payload.utf8 && record.iter().any(|n| std::str::from_utf8(n).is_err()) {
                        break;
                    }
                    let clean = record.iter().map(|n| n.strip_prefix(b"\xef\xbb\xbf").unwrap_or(n).trim_ascii());
                    columns = self.meaning(clean);
                }
            } else if !payload.utf8 && record.iter().any(|f| std::str::from_utf8(f).is_err()) {
                out.reject(payload, Fault::Syntax("not UTF-8 text"), from, to);
            } else {
                self.record(&record, &columns, payload, out, from..to);
            }
            from = to;
        }
        if out.accounts.row == before && !file_header {
            out.reject(payload, Fault::Syntax("no record holds a reading"), payload.start, payload.end);
        }
    }

    fn record(
        &mut self,
        record: &csv::ByteRecord,
        columns: &[Column],
        payload: &Payload<'_>,
        out: &mut Output<'_>,
        bytes: std::ops::Range<usize>,
    ) {
        let refuse = |fault, out: &mut Output<'_>| out.reject(payload, fault, bytes.start, bytes.end);
        if record.len() != columns.len() {
            return refuse(Fault::Syntax("not as many cells as there are columns"), out);
        }
        let mut parts = Parts::default();
        let mut wide: Vec<(&[u8], Value<'_>)> = Vec::new();
        let mut tags = serde_json::Map::new();
        for (column, cell) in columns.iter().zip(record.iter()).filter(|(_, cell)| !cell.is_empty()) {
            match column.role {
                Some(role) => {
                    if let Err(fault) = self.cell(role, cell, &mut parts) {
                        return refuse(fault, out);
                    }
                }
                None if self.wide => match value(cell) {
                    Some(Value::Text(_)) | None => {}
                    Some(value) => wide.push((&column.name, value)),
                },
                None if self.keep_unknown => {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    tags.insert(text(&column.name), text(cell).into());
                }
                None => {}
            }
        }
        if !tags.is_empty() {
            parts.tags = Some(Cow::Owned(serde_json::Value::Object(tags).to_string().into_bytes()));
        }
        if !self.wide {
            let outcome = self.checks.append(&parts.plain(), &payload.around, out.columns);
            return out.accounts.settle(payload, outcome, bytes.start, bytes.end);
        }
        if wide.is_empty() {
            return refuse(Fault::Syntax("no cell holds a number or boolean"), out);
        }
        if parts.id.as_ref().is_some_and(|id| id.len() > 256) {
            return refuse(Fault::Part(Role::Id, "is longer than 256 bytes"), out);
        }
        for (sensor, value) in wide {
            parts.sensor = Some(Cow::Borrowed(sensor));
            parts.value = Some(value);
            let outcome = self.checks.append(&parts.plain(), &payload.around, out.columns);
            out.accounts.settle(payload, outcome, bytes.start, bytes.end);
        }
    }

    /// Takes one cell that is not empty.
    fn cell<'a>(&mut self, role: Role, cell: &'a [u8], parts: &mut Parts<'a>) -> Result<(), Fault> {
        match role {
            Role::Id => parts.id = Some(cell.into()),
            Role::Device => parts.device = Some(cell.into()),
            Role::Sensor => parts.sensor = Some(cell.into()),
            Role::SensorType => parts.sensor_type = Some(cell.into()),
            Role::Unit => parts.unit = Some(cell.into()),
            Role::Timestamp => parts.time = Some(self.time(cell)),
            Role::Value => {
                let value = value(cell).ok_or(Fault::Part(role, "must be a finite number"))?;
                if self.checks.numbers_only && !matches!(value, Value::Number(_)) {
                    return Err(Fault::Part(role, "must be a number"));
                }
                parts.value = Some(value);
            }
            Role::Quality => {
                parts.quality = Some(match value(cell) {
                    Some(Value::Number(score)) => self.checks.quality_score(score),
                    _ if self.checks.numbers_only => return Err(Fault::Part(role, "must be a number")),
                    _ => (self.checks.quality_word(cell)?, None),
                });
            }
            // Members of the canonical JSON only.
            Role::Tags | Role::Ingest | Role::Stamped => {}
        }
        Ok(())
    }

    /// RFC 3339, or a number; spreadsheets leave the zone out, which then is UTC.
    fn time(&mut self, cell: &[u8]) -> Time {
        if let Ok(value) = fast_float2::parse::<f64, _>(cell) {
            return self.checks.time_number(Number { raw: cell, value });
        }
        match time_text(cell, &mut self.times) {
            Time::Unreadable => time_text(&[cell, b"Z"].concat(), &mut self.times),
            time => time,
        }
    }
}

/// A number, boolean or text; `None` for NaN and infinities.
fn value(cell: &[u8]) -> Option<Value<'_>> {
    if let Ok(number) = fast_float2::parse::<f64, _>(cell.trim_ascii()) {
        return number.is_finite().then_some(Value::Number(number));
    }
    Some(match cell {
        b"true" | b"TRUE" | b"True" => Value::Flag(true),
        b"false" | b"FALSE" | b"False" => Value::Flag(false),
        text => Value::Text(text.into()),
    })
}
