//! Rows of any schema as CSV records (RFC 4180), one a line, with a header for the top of a file.

use std::borrow::Cow;
use std::ops::Range;

use arrow::array::{Array as _, ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;

use super::json::column_member;
use super::value::{push_cell, text_at};

/// Writes rows of one schema as CSV records: one field per column, named as in JSON (see [`super::json::member_name`]).
///
/// Text stands as it is, quoted where it must be; numbers, times and binary columns are written as in JSON. Null, NaN and
/// infinities are empty fields, and so is empty text.
#[derive(Clone, Debug)]
pub struct CsvWriter {
    names: Vec<String>,
}

impl CsvWriter {
    /// A writer for rows of `schema`.
    #[must_use]
    pub fn new(schema: &SchemaRef) -> Self {
        Self { names: schema.fields().iter().map(|field| column_member(field)).collect() }
    }

    /// The record that names the columns, with its line feed.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::new();
        write_records(&mut out, |csv| csv.write_record(&self.names));
        out
    }

    /// Appends the rows `rows` of `batch`, which has the writer's schema, each with a line feed after it.
    pub fn write_rows(&self, batch: &RecordBatch, rows: Range<usize>, out: &mut Vec<u8>) {
        let mut cell = Vec::new();
        write_records(out, |csv| {
            for row in rows {
                for array in batch.columns() {
                    csv.write_field(field(array, row, &mut cell).as_ref())?;
                }
                csv.write_record(None::<&[u8]>)?;
            }
            Ok(())
        });
    }
}

/// The text of row `row`; `json` is room to write in.
fn field<'a>(array: &'a ArrayRef, row: usize, json: &'a mut Vec<u8>) -> Cow<'a, [u8]> {
    if array.is_null(row) {
        return Cow::Borrowed(b"");
    }
    if let Some(text) = text_at(array, row) {
        return Cow::Borrowed(text.as_bytes());
    }
    json.clear();
    push_cell(array, row, json);
    match serde_json::from_slice::<String>(json) {
        Ok(text) => Cow::Owned(text.into_bytes()),
        // A number, or nothing for one that is not finite.
        Err(_) => Cow::Borrowed(json),
    }
}

/// Runs `write` over a CSV writer that appends to `out`.
fn write_records(out: &mut Vec<u8>, write: impl FnOnce(&mut csv::Writer<&mut Vec<u8>>) -> csv::Result<()>) {
    let mut csv = csv::Writer::from_writer(out);
    // Writing to a Vec cannot fail, and all records have one field per column.
    let written = write(&mut csv).and_then(|()| csv.flush().map_err(csv::Error::from));
    debug_assert!(written.is_ok(), "{written:?}");
}
