//! Wire formats to rows and rejects: every reading of a payload becomes a row or a reject, and nothing panics.

mod arrow_ipc;
mod config;
mod csv;
mod intern;
mod json;
mod literal;
mod object;
mod output;
mod parts;
mod rows;
pub(crate) mod scan;
mod senml;
mod shape;
mod time;

pub use config::{DecodeConfig, Delimiter, Fields, Format, Part, PayloadLimits, QualityConfig, TimestampUnit, Unknown, ValueForm};

use arrow::array::RecordBatch;

use self::arrow_ipc::IpcReader;
use self::csv::CsvReader;
use self::json::JsonReader;
use self::object::{CANONICAL, ObjectReader, member_paths};
use self::output::{Accounts, Output, Payload};
use self::parts::{Checks, Fault, Surroundings};
use self::rows::Columns;
use self::senml::SenmlReader;
use crate::payload::CODE_PARSE;
use crate::{Decoded, PayloadBlock, PayloadEntry, Position, Reject, readings_schema};

/// Turns payload blocks of one source into rows and rejects. Keeps caches between blocks; results do not depend on them.
#[derive(Debug)]
pub struct Decoder {
    reader: Reader,
    device: Option<Origin>,
    sensor: Option<Origin>,
    limits: PayloadLimits,
    columns: Columns,
}

/// What is kept of a payload with too many bytes.
const KEPT_BYTES: usize = 64 << 10;

#[derive(Debug)]
enum Reader {
    Json(Box<JsonReader>),
    Senml(SenmlReader),
    Csv(Box<CsvReader>),
    Ipc(IpcReader),
}

/// Where a name comes from, if not from the payload's text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Topic(usize),
    Key,
    Always(Box<str>),
}

impl Origin {
    fn parse(text: Option<&String>, pointer: &str) -> Result<Option<Self>, (String, String)> {
        let Some(text) = text else { return Ok(None) };
        if text == "key" {
            return Ok(Some(Self::Key));
        }
        if let Some(name) = text.strip_prefix('=').filter(|n| !n.is_empty()) {
            return Ok(Some(Self::Always(name.into())));
        }
        let level = text.strip_prefix("topic[").and_then(|t| t.strip_suffix(']')).and_then(|n| n.parse().ok());
        let wrong = || (pointer.to_owned(), format!("'{text}' is not understood; write topic[1], key or =name"));
        level.map(|l| Some(Self::Topic(l))).ok_or_else(wrong)
    }

    /// The name for entry `index`; an error where the payload's surroundings do not hold it.
    fn name<'a>(&'a self, block: &'a PayloadBlock, index: usize) -> Result<&'a [u8], Fault> {
        match self {
            Self::Always(name) => Ok(name.as_bytes()),
            Self::Topic(level) => {
                let topic = block.topics.as_ref().and_then(|t| t.get(index));
                let name = topic.and_then(|t| t.split('/').nth(*level)).filter(|n| !n.is_empty());
                name.map(str::as_bytes).ok_or(Fault::Syntax("the topic has no such level"))
            }
            Self::Key => {
                let key = block.keys.as_ref().and_then(|k| k.get(index)).and_then(Option::as_ref);
                let name = key.and_then(|k| std::str::from_utf8(k).ok()).filter(|n| !n.is_empty());
                name.map(str::as_bytes).ok_or(Fault::Syntax("the record has no key that is text"))
            }
        }
    }
}

impl Decoder {
    /// A decoder for `config`.
    ///
    /// # Errors
    /// A JSON pointer into the configuration and what is wrong there.
    pub fn new(config: &DecodeConfig) -> Result<Self, (String, String)> {
        let device = Origin::parse(config.device.as_ref(), "/device")?;
        let sensor = Origin::parse(config.sensor.as_ref(), "/sensor")?;
        let (good, uncertain) = (config.quality.good, config.quality.uncertain);
        if !(good.is_finite() && uncertain.is_finite() && uncertain <= good) {
            return Err(("/quality".into(), "good and uncertain must be numbers, and uncertain not above good".into()));
        }
        if config.wide && config.required.iter().any(|p| matches!(p, Part::SensorType | Part::Unit)) {
            return Err(("/required".into(), "a wide payload has no sensorType and no unit; leave them out".into()));
        }
        if config.limits.bytes.0 == 0 || config.limits.rows == 0 {
            return Err(("/limits".into(), "a payload must be allowed at least one byte and one reading".into()));
        }
        let reader = Reader::new(config, device.is_some(), sensor.is_some())?;
        Ok(Self { reader, device, sensor, limits: config.limits, columns: Columns::default() })
    }

    /// Decodes all payloads of `block`. Never fails: what is no reading becomes a reject with its bytes. What was refused before
    /// is a reject as it stands.
    ///
    /// Every payload yields at least one row or reject, except the header of a CSV file (see `header`).
    pub fn decode(&mut self, block: &PayloadBlock) -> Decoded {
        let (decoded, crowded) = self.pass(block, &[]);
        // Rare: readings that are columns already cannot be taken back, so the block is decoded again without these payloads.
        if crowded.is_empty() { decoded } else { self.pass(block, &crowded).0 }
    }

    /// Decodes `block`, refusing the entries `crowded`; gives the entries that turned out to hold too many readings.
    fn pass(&mut self, block: &PayloadBlock, crowded: &[usize]) -> (Decoded, Vec<usize>) {
        // One check for the whole block is many times faster than one for each payload.
        let text = std::str::from_utf8(&block.data).ok();
        self.columns.reserve(block.entries.len());
        let accounts = Accounts { data: &block.data, positions: Vec::with_capacity(block.entries.len()), rejects: Vec::new(), row: 0 };
        let mut out = Output { columns: &mut self.columns, accounts };
        let mut found = Vec::new();
        for (index, entry) in block.entries.iter().enumerate() {
            let mut payload = locate(block, entry, text);
            out.accounts.row = 0;
            let device = self.device.as_ref().map(|o| o.name(block, index)).transpose();
            let sensor = self.sensor.as_ref().map(|o| o.name(block, index)).transpose();
            let (start, bytes) = (payload.start, payload.bytes().len());
            match (device, sensor) {
                _ if bytes == 0 => out.reject(&payload, Fault::Syntax("the payload is empty"), start, payload.end),
                _ if bytes > self.limits.bytes.0 => {
                    out.reject(&payload, Fault::Size { bytes, limit: self.limits.bytes.0 }, start, start + bytes.min(KEPT_BYTES));
                }
                _ if crowded.contains(&index) => out.reject(&payload, Fault::Rows { limit: self.limits.rows }, start, payload.end),
                (Err(fault), _) | (_, Err(fault)) => out.reject(&payload, fault, start, payload.end),
                (Ok(device), Ok(sensor)) => {
                    payload.around.device = device;
                    payload.around.sensor = sensor;
                    self.reader.payload(&payload, &mut out);
                }
            }
            if out.accounts.row as usize > self.limits.rows {
                found.push(index);
            }
        }
        let Accounts { positions, mut rejects, .. } = out.accounts;
        if !block.refused.is_empty() {
            rejects.extend_from_slice(&block.refused);
            rejects.sort_by_key(|reject| reject.position);
        }
        match self.columns.finish() {
            Ok(rows) => (Decoded { rows, positions, rejects }, found),
            Err(error) => {
                // The columns are equally long and their bytes checked. Should that be wrong, nothing is lost even so.
                debug_assert!(false, "columns of a block: {error}");
                self.columns = Columns::default();
                (refuse_all(block, positions, rejects), Vec::new())
            }
        }
    }
}

/// Every row of the block as a reject with the payload it came from.
fn refuse_all(block: &PayloadBlock, positions: Vec<Position>, mut rejects: Vec<Reject>) -> Decoded {
    rejects.extend(positions.into_iter().map(|position| Reject {
        position,
        code: CODE_PARSE,
        message: "the block could not be made into columns".into(),
        payload: block.at_offset(position.offset).unwrap_or_default(),
    }));
    rejects.sort_by_key(|reject| reject.position);
    Decoded { rows: RecordBatch::new_empty(readings_schema()), positions: Vec::new(), rejects }
}

/// Where `entry` lies; a range outside of the data is empty.
fn locate<'a>(block: &'a PayloadBlock, entry: &PayloadEntry, text: Option<&str>) -> Payload<'a> {
    let range = entry.range();
    let range = if block.data.get(range.clone()).is_some() { range } else { 0..0 };
    let utf8 = match text {
        Some(text) => text.is_char_boundary(range.start) && text.is_char_boundary(range.end),
        None => std::str::from_utf8(block.data.get(range.clone()).unwrap_or_default()).is_ok(),
    };
    let around = Surroundings { ingest: entry.ingest_us, ..Surroundings::default() };
    Payload { data: &block.data, start: range.start, end: range.end, offset: entry.offset, utf8, around }
}

impl Reader {
    fn new(config: &DecodeConfig, device: bool, sensor: bool) -> Result<Self, (String, String)> {
        let checks = Checks::new(config);
        match config.format {
            Format::Json => {
                let paths = member_paths(&config.fields, device, sensor, config.wide);
                let object = ObjectReader::new(&paths, config.wide, config.unknown == Unknown::Tags)?;
                Ok(Self::Json(Box::new(JsonReader { object, checks })))
            }
            Format::Canonical => {
                let fields = Fields::default();
                let mut paths = member_paths(&fields, device, sensor, false);
                paths.extend(CANONICAL);
                Ok(Self::Json(Box::new(JsonReader { object: ObjectReader::new(&paths, false, false)?, checks })))
            }
            Format::SenmlJson => Ok(Self::Senml(SenmlReader { checks })),
            Format::Csv => Ok(Self::Csv(Box::new(CsvReader::new(config, device, sensor)?))),
            Format::ArrowIpc => Ok(Self::Ipc(IpcReader { checks })),
        }
    }

    fn payload(&mut self, payload: &Payload<'_>, out: &mut Output<'_>) {
        match self {
            Self::Json(reader) => reader.payload(payload, out),
            Self::Senml(reader) => reader.payload(payload, out),
            Self::Csv(reader) => reader.payload(payload, out),
            Self::Ipc(reader) => reader.payload(payload, out),
        }
    }
}

#[cfg(test)]
mod format_tests;
#[cfg(test)]
mod shape_tests;
#[cfg(test)]
mod tests;
