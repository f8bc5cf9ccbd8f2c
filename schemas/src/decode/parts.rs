//! The parts of a reading as found in a payload, and the checks that make a row of them. Shared by all text formats.

use std::borrow::Cow;

use super::config::{DecodeConfig, Part, TimestampUnit, ValueForm};
use super::rows::{Columns, Row, Value};
use super::scan::Number;
use super::time::{Times, from_number};
use crate::payload::{CODE_PARSE, CODE_ROWS, CODE_SIZE, CODE_TIMESTAMP};
use crate::{Quality, QualityScale};

/// What a member of a payload is to a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Id,
    Device,
    Sensor,
    SensorType,
    Timestamp,
    Value,
    Unit,
    Quality,
    /// Canonical form only: tags as an object.
    Tags,
    /// Canonical form only: ingest time.
    Ingest,
    /// Canonical form only: the timestamp was missing.
    Stamped,
}

impl Role {
    /// Its bit in a set of roles.
    pub(super) const fn bit(self) -> u16 {
        1 << self as u16
    }

    /// Its name in messages: the member's name in the common form.
    const fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Device => "deviceId",
            Self::Sensor => "sensorId",
            Self::SensorType => "sensorType",
            Self::Timestamp => "timestamp",
            Self::Value => "value",
            Self::Unit => "unit",
            Self::Quality => "quality",
            Self::Tags => "tags",
            Self::Ingest => "ingestTimestamp",
            Self::Stamped => "stamped",
        }
    }
}

/// Why something is no reading. Small, because it travels through the hot path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The text is malformed.
    Syntax(&'static str),
    /// A part is wrong.
    Part(Role, &'static str),
    /// The time cannot be read; everything else can.
    Timestamp(&'static str),
    /// The payload has more bytes than are taken.
    Size { bytes: usize, limit: usize },
    /// The payload has more readings than are taken.
    Rows { limit: usize },
}

impl From<&'static str> for Fault {
    fn from(message: &'static str) -> Self {
        Self::Syntax(message)
    }
}

impl Fault {
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Syntax(_) | Self::Part(..) => CODE_PARSE,
            Self::Timestamp(_) => CODE_TIMESTAMP,
            Self::Size { .. } => CODE_SIZE,
            Self::Rows { .. } => CODE_ROWS,
        }
    }

    pub(super) fn message(self) -> String {
        match self {
            Self::Syntax(message) | Self::Timestamp(message) => message.to_owned(),
            Self::Part(role, message) => format!("{} {message}", role.name()),
            Self::Size { bytes, limit } => format!("the payload has {bytes} bytes, {limit} are allowed; the first of them are kept"),
            Self::Rows { limit } => format!("the payload has more than {limit} readings"),
        }
    }
}

/// An event time that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Time {
    At(i64),
    Unreadable,
}

/// The parts found so far. `None` is missing or null.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts<'a> {
    pub(super) id: Option<Cow<'a, [u8]>>,
    pub(super) device: Option<Cow<'a, [u8]>>,
    pub(super) sensor: Option<Cow<'a, [u8]>>,
    pub(super) sensor_type: Option<Cow<'a, [u8]>>,
    pub(super) time: Option<Time>,
    pub(super) value: Option<Value<'a>>,
    pub(super) unit: Option<Cow<'a, [u8]>>,
    pub(super) quality: Option<(Quality, Option<f64>)>,
    pub(super) tags: Option<Cow<'a, [u8]>>,
    pub(super) ingest: Option<i64>,
    pub(super) stamped: bool,
}

/// The parts without their allocations, ready to be checked.
#[derive(Clone, Debug, Default)]
pub(super) struct Plain<'a> {
    pub(super) id: Option<&'a [u8]>,
    pub(super) device: Option<&'a [u8]>,
    pub(super) sensor: Option<&'a [u8]>,
    pub(super) sensor_type: Option<&'a [u8]>,
    pub(super) time: Option<Time>,
    pub(super) value: Option<Value<'a>>,
    pub(super) unit: Option<&'a [u8]>,
    pub(super) quality: Option<(Quality, Option<f64>)>,
    pub(super) tags: Option<&'a [u8]>,
    pub(super) ingest: Option<i64>,
    pub(super) stamped: bool,
    /// Roles whose names are the ones that their columns expect next.
    pub(super) expected: u16,
}

impl Parts<'_> {
    /// What was found, borrowed.
    #[inline]
    pub(super) fn plain(&self) -> Plain<'_> {
        Plain {
            id: self.id.as_deref(),
            device: self.device.as_deref(),
            sensor: self.sensor.as_deref(),
            sensor_type: self.sensor_type.as_deref(),
            time: self.time,
            value: self.value.as_ref().map(Value::as_plain),
            unit: self.unit.as_deref(),
            quality: self.quality,
            tags: self.tags.as_deref(),
            ingest: self.ingest,
            stamped: self.stamped,
            expected: 0,
        }
    }
}

/// What the payload's surroundings say, above what its text says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Surroundings<'a> {
    pub(super) device: Option<&'a [u8]>,
    pub(super) sensor: Option<&'a [u8]>,
    pub(super) ingest: Option<i64>,
}

/// The checks every row passes, from the configuration.
#[derive(Clone, Debug)]
pub(super) struct Checks {
    pub(super) scale: QualityScale,
    pub(super) numbers_only: bool,
    pub(super) timestamp_unit: TimestampUnit,
    required: u16,
}

impl Checks {
    pub(super) fn new(config: &DecodeConfig) -> Self {
        let bit = |part: &Part| match part {
            Part::Id => Role::Id.bit(),
            Part::SensorType => Role::SensorType.bit(),
            Part::Timestamp => Role::Timestamp.bit(),
            Part::Unit => Role::Unit.bit(),
            Part::Quality => Role::Quality.bit(),
            // Needed in any case.
            Part::DeviceId | Part::SensorId | Part::Value => 0,
        };
        Self {
            scale: QualityScale { good: config.quality.good, uncertain: config.quality.uncertain },
            numbers_only: config.value == ValueForm::Number,
            timestamp_unit: config.timestamp_unit,
            required: config.required.iter().map(bit).fold(0, |all, bit| all | bit),
        }
    }

    /// A quality given as a word.
    pub(super) fn quality_word(&self, word: &[u8]) -> Result<Quality, Fault> {
        let fault = Fault::Part(Role::Quality, "must be a number, good, uncertain or bad");
        std::str::from_utf8(word).ok().and_then(Quality::parse).ok_or(fault)
    }

    /// A quality given as a score.
    pub(super) fn quality_score(&self, score: f64) -> (Quality, Option<f64>) {
        (self.scale.class(score), Some(score))
    }

    /// A time given as a number.
    pub(super) fn time_number(&self, number: Number<'_>) -> Time {
        from_number(number, self.timestamp_unit).map_or(Time::Unreadable, Time::At)
    }

    fn missing(&self, parts: &Plain<'_>) -> Option<Role> {
        let of = |role: Role, present: bool| if self.required & role.bit() != 0 && !present { Some(role) } else { None };
        of(Role::Id, parts.id.is_some())
            .or_else(|| of(Role::SensorType, parts.sensor_type.is_some()))
            .or_else(|| of(Role::Timestamp, parts.time.is_some()))
            .or_else(|| of(Role::Unit, parts.unit.is_some()))
            .or_else(|| of(Role::Quality, parts.quality.is_some()))
    }

    /// Appends the row that `parts` make. All `parse` checks come before the timestamp's.
    #[inline]
    pub(super) fn append(&self, parts: &Plain<'_>, around: &Surroundings<'_>, columns: &mut Columns) -> Result<(), Fault> {
        const MISSING: &str = "is missing";
        let device = around.device.or(parts.device).ok_or(Fault::Part(Role::Device, MISSING))?;
        let sensor = around.sensor.or(parts.sensor).ok_or(Fault::Part(Role::Sensor, MISSING))?;
        let value = parts.value.as_ref().ok_or(Fault::Part(Role::Value, MISSING))?;
        if self.required != 0
            && let Some(role) = self.missing(parts)
        {
            return Err(Fault::Part(role, MISSING));
        }
        let ingest = parts.ingest.or(around.ingest);
        let (ts, stamped) = match (parts.time, ingest) {
            (Some(Time::At(ts)), _) => (ts, parts.stamped),
            (Some(Time::Unreadable), _) => return Err(Fault::Timestamp("timestamp is no time that can be read")),
            (None, Some(ingest)) => (ingest, true),
            (None, None) => return Err(Fault::Timestamp("timestamp is missing and the input has no ingest time")),
        };
        let (number, text, flag) = match value {
            Value::Number(number) => (Some(*number), None, None),
            Value::Text(text) => (None, Some(text.as_ref()), None),
            Value::Flag(flag) => (None, None, Some(*flag)),
        };
        let (quality, score) = parts.quality.unwrap_or((Quality::Good, None));
        let row = Row {
            device,
            sensor,
            sensor_type: parts.sensor_type,
            ts,
            ingest,
            number,
            text,
            flag,
            unit: parts.unit,
            quality,
            score,
            id: parts.id,
            tags: parts.tags,
            stamped,
            expected: parts.expected,
        };
        if columns.push(&row) { Ok(()) } else { Err(Fault::Syntax("the block holds more than 2 GiB of text; send smaller batches")) }
    }
}

/// A time given as text.
#[inline(always)]
pub(super) fn time_text(text: &[u8], times: &mut Times) -> Time {
    times.text(text).map_or(Time::Unreadable, Time::At)
}
