//! The columns of a block under construction.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::builder::NullBufferBuilder;
use arrow::array::{ArrayRef, BooleanArray, BooleanBufferBuilder, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::buffer::NullBuffer;
use arrow::error::ArrowError;

use super::intern::{NameColumn, string_array};
use super::parts::Role;
use crate::{Quality, quality, readings_schema};

/// One value, of any kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Number(f64),
    Text(Cow<'a, [u8]>),
    Flag(bool),
}

impl Value<'_> {
    /// The same value, borrowed.
    pub(super) fn as_plain(&self) -> Value<'_> {
        match self {
            Self::Number(number) => Value::Number(*number),
            Self::Text(text) => Value::Text(Cow::Borrowed(text)),
            Self::Flag(flag) => Value::Flag(*flag),
        }
    }
}

/// A row that has passed every check. Byte strings are UTF-8.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) device: &'a [u8],
    pub(super) sensor: &'a [u8],
    pub(super) sensor_type: Option<&'a [u8]>,
    pub(super) ts: i64,
    pub(super) ingest: Option<i64>,
    pub(super) number: Option<f64>,
    pub(super) text: Option<&'a [u8]>,
    pub(super) flag: Option<bool>,
    pub(super) unit: Option<&'a [u8]>,
    pub(super) quality: Quality,
    pub(super) score: Option<f64>,
    pub(super) id: Option<&'a [u8]>,
    pub(super) tags: Option<&'a [u8]>,
    pub(super) stamped: bool,
    /// Roles whose names are the ones that their columns expected.
    pub(super) expected: u16,
}

impl Row<'_> {
    fn text_bytes(&self) -> usize {
        let optional = [self.sensor_type, self.text, self.unit, self.id, self.tags];
        self.device.len() + self.sensor.len() + optional.iter().flatten().map(|t| t.len()).sum::<usize>()
    }
}

/// A text column that often has no value at all.
#[derive(Debug, Default)]
struct SparseText {
    rows: Vec<u32>,
    bytes: Vec<u8>,
    ends: Vec<i32>,
}

impl SparseText {
    #[inline]
    fn push(&mut self, row: usize, text: Option<&[u8]>) {
        if let Some(text) = text {
            self.bytes.extend_from_slice(text);
            self.rows.push(row as u32);
            self.ends.push(self.bytes.len() as i32);
        }
    }

    fn finish(&mut self, rows: usize) -> Result<ArrayRef, ArrowError> {
        let (at, ends) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.ends));
        if at.is_empty() {
            return Ok(Arc::new(StringArray::new_null(rows)));
        }
        let bytes = std::mem::take(&mut self.bytes);
        if at.len() == rows {
            return Ok(Arc::new(string_array(bytes, ends, None)?));
        }
        let mut nulls = NullBufferBuilder::new(rows);
        let mut all_ends = Vec::with_capacity(rows + 1);
        let mut end = 0;
        for (row, row_end) in at.into_iter().zip(ends) {
            let gap = row as usize - all_ends.len();
            all_ends.resize(row as usize, end);
            nulls.append_n_nulls(gap);
            nulls.append_non_null();
            all_ends.push(row_end);
            end = row_end;
        }
        nulls.append_n_nulls(rows - all_ends.len());
        all_ends.resize(rows, end);
        Ok(Arc::new(string_array(bytes, all_ends, nulls.finish())?))
    }
}

/// A number column with nulls.
#[derive(Debug)]
struct Numbers<T> {
    values: Vec<T>,
    nulls: NullBufferBuilder,
}

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self { values: Vec::new(), nulls: NullBufferBuilder::new(0) }
    }
}

impl<T: Default> Numbers<T> {
    #[inline]
    fn push(&mut self, value: Option<T>) {
        self.nulls.append(value.is_some());
        self.values.push(value.unwrap_or_default());
    }
}

/// All columns of a block under construction. Names are kept once per block, nothing is kept between blocks.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub(super) device: NameColumn,
    pub(super) sensor: NameColumn,
    pub(super) sensor_type: NameColumn,
    ts: Vec<i64>,
    ingest: Numbers<i64>,
    value: Numbers<f64>,
    text: SparseText,
    flags: Vec<(u32, bool)>,
    pub(super) unit: NameColumn,
    quality: Vec<u8>,
    score: Numbers<f64>,
    id: SparseText,
    tags: SparseText,
    stamped: Vec<u32>,
    text_bytes: usize,
}

impl Columns {
    /// Makes room for `rows`: growing a dozen columns step by step costs more than filling them.
    pub(super) fn reserve(&mut self, rows: usize) {
        for names in [&mut self.device, &mut self.sensor, &mut self.sensor_type, &mut self.unit] {
            names.reserve(rows);
        }
        self.ts.reserve(rows);
        self.ingest.values.reserve(rows);
        self.value.values.reserve(rows);
        self.score.values.reserve(rows);
        self.quality.reserve(rows);
        self.id.rows.reserve(rows);
        self.id.ends.reserve(rows + 1);
    }

    /// Appends a row; false, and nothing is done, when the texts of the block would pass 2 GiB (the limit of an Arrow column).
    #[inline]
    pub(super) fn push(&mut self, row: &Row<'_>) -> bool {
        let text_bytes = self.text_bytes + row.text_bytes();
        if text_bytes > i32::MAX as usize {
            return false;
        }
        self.text_bytes = text_bytes;
        let at = self.ts.len();
        let names = [
            (&mut self.device, Some(row.device), Role::Device),
            (&mut self.sensor, Some(row.sensor), Role::Sensor),
            (&mut self.sensor_type, row.sensor_type, Role::SensorType),
            (&mut self.unit, row.unit, Role::Unit),
        ];
        for (column, name, role) in names {
            if row.expected & role.bit() != 0 { column.push_expected() } else { column.push(name) }
        }
        self.ts.push(row.ts);
        self.ingest.push(row.ingest);
        self.value.push(row.number);
        self.text.push(at, row.text);
        if let Some(flag) = row.flag {
            self.flags.push((at as u32, flag));
        }
        self.quality.push(row.quality as u8);
        self.score.push(row.score);
        self.id.push(at, row.id);
        self.tags.push(at, row.tags);
        if row.stamped {
            self.stamped.push(at as u32);
        }
        true
    }

    /// The batch; nothing is kept.
    pub(super) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let mut columns = std::mem::take(self);
        let rows = columns.ts.len();
        let batch = RecordBatch::try_new(
            readings_schema(),
            vec![
                columns.device.finish()?,
                columns.sensor.finish()?,
                columns.sensor_type.finish()?,
                times(columns.ts, None)?,
                times(columns.ingest.values, columns.ingest.nulls.finish())?,
                Arc::new(Float64Array::try_new(columns.value.values.into(), columns.value.nulls.finish())?),
                columns.text.finish(rows)?,
                flags(&columns.flags, rows),
                columns.unit.finish()?,
                quality::column(columns.quality),
                Arc::new(Float64Array::try_new(columns.score.values.into(), columns.score.nulls.finish())?),
                columns.id.finish(rows)?,
                columns.tags.finish(rows)?,
                marks(&columns.stamped, rows),
            ],
        );
        // The name columns have given their contents away and keep their tables for the next block.
        self.device = columns.device;
        self.sensor = columns.sensor;
        self.sensor_type = columns.sensor_type;
        self.unit = columns.unit;
        batch
    }
}

fn times(values: Vec<i64>, nulls: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
    Ok(Arc::new(TimestampMicrosecondArray::try_new(values.into(), nulls)?.with_timezone("UTC")))
}

fn marks(rows: &[u32], len: usize) -> ArrayRef {
    let mut bits = BooleanBufferBuilder::new(len);
    bits.append_n(len, false);
    for row in rows {
        bits.set_bit(*row as usize, true);
    }
    Arc::new(BooleanArray::new(bits.finish(), None))
}

fn flags(flags: &[(u32, bool)], len: usize) -> ArrayRef {
    if flags.is_empty() {
        return Arc::new(BooleanArray::new_null(len));
    }
    let mut all = vec![None; len];
    for (row, flag) in flags {
        all[*row as usize] = Some(*flag);
    }
    Arc::new(BooleanArray::from(all))
}
