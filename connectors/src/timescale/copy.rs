//! Arrow rows as PostgreSQL's binary COPY format (PostgreSQL 15 manual, COPY, "Binary Format").

use std::ops::Range;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::compute::cast;
use arrow::datatypes::{Float64Type, Int64Type, TimestampMicrosecondType, UInt32Type, UInt64Type};
use fieldstream_schemas::time::days_from_civil;

use super::columns::{Column, PgType, canonical};

/// Microseconds from 1970-01-01 to PostgreSQL's epoch, 2000-01-01.
const PG_EPOCH_US: i64 = 946_684_800_000_000;

/// Days since 1970 of the years 1 to 9999. Times outside are refused: no sensor means them, and each would want a partition.
pub(crate) const DAYS: Range<i64> = days_from_civil(1, 1, 1)..days_from_civil(10_000, 1, 1);

/// Signature, flags and length of the header extension.
pub(crate) const HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// The end of the data: a field count of -1.
pub(crate) const TRAILER: [u8; 2] = [0xff, 0xff];

/// A row by the number of its batch, as the caller counts batches, and its number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowRef {
    /// Number of the batch.
    pub(crate) batch: usize,
    /// Number of the row.
    pub(crate) row: usize,
}

/// A row that the server cannot or will not store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The row.
    pub(crate) row: RowRef,
    /// SQLSTATE, also for what is found before the server sees it.
    pub(crate) code: String,
    /// What is wrong.
    pub(crate) message: String,
}

/// Encoded rows. Any range of them, between header and trailer, is a whole COPY.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    rows: Vec<RowRef>,
    /// Rows that have no encoding.
    pub(crate) refused: Vec<Refused>,
}

impl Encoded {
    /// Number of encoded rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The bytes of a range of rows.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        let end = |row: usize| if row == 0 { 0 } else { self.ends.get(row - 1).copied().unwrap_or(self.bytes.len()) };
        self.bytes.get(end(range.start)..end(range.end)).unwrap_or_default()
    }

    /// Which row an encoded row was.
    pub(crate) fn row(&self, index: usize) -> Option<RowRef> {
        self.rows.get(index).copied()
    }

    /// Appends the rows of batch number `batch`.
    ///
    /// # Errors
    /// If a column is missing or has another type than planned.
    pub(crate) fn push(&mut self, columns: &[Column], batch: usize, rows: &RecordBatch) -> Result<(), String> {
        let arrays = columns.iter().map(|c| column(c, rows)).collect::<Result<Vec<_>, _>>()?;
        let cells = columns.iter().zip(&arrays).map(|(c, a)| Cells::new(c, a)).collect::<Result<Vec<_>, _>>()?;
        let fields = i16::try_from(cells.len()).map_err(|_| "too many columns".to_owned())?;
        self.bytes.reserve(rows.num_rows() * (2 + cells.len() * 16));
        for row in 0..rows.num_rows() {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(&fields.to_be_bytes());
            let row_ref = RowRef { batch, row };
            match encode_row(columns, &cells, row, &mut self.bytes) {
                Ok(()) => {
                    self.ends.push(self.bytes.len());
                    self.rows.push(row_ref);
                }
                Err((code, message)) => {
                    self.bytes.truncate(start);
                    self.refused.push(Refused { row: row_ref, code: code.to_owned(), message });
                }
            }
        }
        Ok(())
    }
}

fn column(column: &Column, rows: &RecordBatch) -> Result<ArrayRef, String> {
    let array = rows.column_by_name(&column.name).ok_or_else(|| format!("rows have no column `{}`", column.name))?;
    let wanted = canonical(column.kind, array.data_type());
    if *array.data_type() == wanted { Ok(array.clone()) } else { cast(array, &wanted).map_err(|e| e.to_string()) }
}

/// A typed column.
enum Cells<'a> {
    Name(&'a DictionaryArray<UInt32Type>, &'a StringArray),
    Text(&'a StringArray),
    Json(&'a StringArray),
    Time(&'a TimestampMicrosecondArray),
    Float(&'a Float64Array),
    Int(&'a Int64Array),
    Unsigned(&'a UInt64Array),
    Bool(&'a BooleanArray),
    Bytes(&'a BinaryArray),
}

impl<'a> Cells<'a> {
    fn new(column: &Column, array: &'a ArrayRef) -> Result<Self, String> {
        let cells = match column.kind {
            PgType::Text => array.as_string_opt::<i32>().map(Self::Text).or_else(|| {
                let names = array.as_dictionary_opt::<UInt32Type>()?;
                Some(Self::Name(names, names.values().as_string_opt::<i32>()?))
            }),
            PgType::Json => array.as_string_opt::<i32>().map(Self::Json),
            PgType::Time => array.as_primitive_opt::<TimestampMicrosecondType>().map(Self::Time),
            PgType::Float => array.as_primitive_opt::<Float64Type>().map(Self::Float),
            PgType::Int => {
                array.as_primitive_opt::<Int64Type>().map(Self::Int).or_else(|| array.as_primitive_opt::<UInt64Type>().map(Self::Unsigned))
            }
            PgType::Bool => array.as_boolean_opt().map(Self::Bool),
            PgType::Bytes => array.as_binary_opt::<i32>().map(Self::Bytes),
        };
        cells.ok_or_else(|| format!("column `{}` has the type {}", column.name, array.data_type()))
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Name(names, values) => names.key(row).is_none_or(|key| values.is_null(key)),
            Self::Text(a) | Self::Json(a) => a.is_null(row),
            Self::Time(a) => a.is_null(row),
            Self::Float(a) => a.is_null(row),
            Self::Int(a) => a.is_null(row),
            Self::Unsigned(a) => a.is_null(row),
            Self::Bool(a) => a.is_null(row),
            Self::Bytes(a) => a.is_null(row),
        }
    }
}

type Refusal = (&'static str, String);

fn encode_row(columns: &[Column], cells: &[Cells<'_>], row: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
    for (column, cells) in columns.iter().zip(cells) {
        if cells.is_null(row) {
            out.extend_from_slice(&(-1i32).to_be_bytes());
        } else {
            encode_cell(cells, row, out).map_err(|(code, message)| (code, format!("column `{}`: {message}", column.name)))?;
        }
    }
    Ok(())
}

fn encode_cell(cells: &Cells<'_>, row: usize, out: &mut Vec<u8>) -> Result<(), Refusal> {
    match cells {
        Cells::Name(names, values) => text(values.value(names.key(row).unwrap_or_default()), &[], out),
        Cells::Text(a) => text(a.value(row), &[], out),
        // jsonb's binary form is a version byte and the text.
        Cells::Json(a) => text(a.value(row), &[1], out),
        Cells::Bytes(a) => bytes(a.value(row), &[], out),
        Cells::Time(a) => {
            let time = a.value(row);
            if !DAYS.contains(&time.div_euclid(86_400_000_000)) {
                return Err(("22008", "time outside the years 1 to 9999".to_owned()));
            }
            bytes(&(time - PG_EPOCH_US).to_be_bytes(), &[], out)
        }
        Cells::Float(a) => bytes(&a.value(row).to_be_bytes(), &[], out),
        Cells::Int(a) => bytes(&a.value(row).to_be_bytes(), &[], out),
        Cells::Unsigned(a) => {
            let value = i64::try_from(a.value(row)).map_err(|_| ("22003", "number out of range".to_owned()))?;
            bytes(&value.to_be_bytes(), &[], out)
        }
        Cells::Bool(a) => bytes(&[u8::from(a.value(row))], &[], out),
    }
}

/// Text without NUL: the server takes none, and would refuse the whole COPY for it.
fn text(value: &str, prefix: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
    if memchr::memchr(0, value.as_bytes()).is_some() {
        return Err(("22021", "text with a NUL character".to_owned()));
    }
    bytes(value.as_bytes(), prefix, out)
}

fn bytes(value: &[u8], prefix: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
    let length = i32::try_from(value.len() + prefix.len()).map_err(|_| ("54000", "value too long".to_owned()))?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(prefix);
    out.extend_from_slice(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::StringDictionaryBuilder;
    use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
    use fieldstream_schemas::columns::{name_type, time_type};

    use super::super::columns::plan_columns;
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" ")
    }

    fn encode(fields: Vec<Field>, arrays: Vec<ArrayRef>) -> Encoded {
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).expect("batch");
        let mut encoded = Encoded::default();
        encoded.push(&plan_columns(&schema).expect("columns"), 4, &batch).expect("encode");
        encoded
    }

    #[test]
    fn header_and_trailer_are_those_of_the_manual() {
        assert_eq!(hex(&HEADER), "50 47 43 4f 50 59 0a ff 0d 0a 00 00 00 00 00 00 00 00 00");
        assert_eq!(i16::from_be_bytes(TRAILER), -1);
    }

    #[test]
    fn every_type_has_its_bytes() {
        let mut names = StringDictionaryBuilder::<UInt32Type>::new();
        names.append_value("é");
        let fields = vec![
            Field::new("device_id", name_type(), false),
            Field::new("ts", time_type(), false),
            Field::new("value", DataType::Float64, true),
            Field::new("flag", DataType::Boolean, true),
            Field::new("count", DataType::UInt32, true),
            Field::new("tags", DataType::Utf8, true),
            Field::new("text", DataType::Utf8, true),
            Field::new("payload", DataType::Binary, true),
        ];
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(names.finish()),
            Arc::new(TimestampMicrosecondArray::from(vec![PG_EPOCH_US + 1]).with_timezone("UTC")),
            Arc::new(Float64Array::from(vec![-1.5])),
            Arc::new(BooleanArray::from(vec![true])),
            Arc::new(arrow::array::UInt32Array::from(vec![258])),
            Arc::new(StringArray::from(vec!["{}"])),
            Arc::new(StringArray::from(vec![None::<&str>])),
            Arc::new(BinaryArray::from_vec(vec![b"\0\xff"])),
        ];
        let encoded = encode(fields, arrays);
        let expected = [
            "00 08",
            "00 00 00 02 c3 a9",
            "00 00 00 08 00 00 00 00 00 00 00 01",
            "00 00 00 08 bf f8 00 00 00 00 00 00",
            "00 00 00 01 01",
            "00 00 00 08 00 00 00 00 00 00 01 02",
            "00 00 00 03 01 7b 7d",
            "ff ff ff ff",
            "00 00 00 02 00 ff",
        ];
        assert_eq!(hex(encoded.bytes(0..1)), expected.join(" "));
    }

    #[test]
    fn rows_without_an_encoding_are_refused_and_leave_no_bytes() {
        let fields = vec![Field::new("text", DataType::Utf8, true), Field::new("offset", DataType::UInt64, false)];
        let text = StringArray::from(vec!["a", "b\0", "c", "d"]);
        let offset = UInt64Array::from(vec![1, 2, u64::MAX, 4]);
        let encoded = encode(fields, vec![Arc::new(text), Arc::new(offset)]);
        assert_eq!((encoded.len(), encoded.row(1)), (2, Some(RowRef { batch: 4, row: 3 })));
        let refused: Vec<_> = encoded.refused.iter().map(|r| (r.row.row, r.code.as_str(), r.message.as_str())).collect();
        assert_eq!(
            refused,
            [(1, "22021", "column `text`: text with a NUL character"), (2, "22003", "column `offset`: number out of range")]
        );
        let row = "00 02 00 00 00 01 64 00 00 00 08 00 00 00 00 00 00 00 04";
        assert_eq!(hex(encoded.bytes(1..2)), row);
        assert_eq!(encoded.bytes(0..2).len(), 2 * encoded.bytes(1..2).len());
    }

    #[test]
    fn the_quality_column_is_text() {
        let quality = fieldstream_schemas::quality::column([2]);
        let fields = vec![Field::new("quality", fieldstream_schemas::quality::data_type(), false)];
        assert_eq!(encode(fields, vec![quality]).bytes(0..1), [b"\0\x01\0\0\0\x03".as_slice(), b"bad"].concat());
    }
}
