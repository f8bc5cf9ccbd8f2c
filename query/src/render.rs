//! Answers as text: an aligned table, newline-delimited JSON or CSV.

use datafusion::arrow::array::{Array as _, RecordBatch};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::arrow::util::pretty::pretty_format_batches_with_schema;

use crate::{Answer, QueryError};

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// An aligned table for people.
    #[default]
    Table,
    /// One JSON object a line. Numbers and booleans are such, infinite numbers and NaN are null, all else is text.
    Ndjson,
    /// RFC 4180 with a header line and `\n`; null is an empty field.
    Csv,
}

/// Writes `answer`, ending with a line break.
///
/// # Errors
/// If a value has no text, which is a defect.
pub fn render(answer: &Answer, format: Format) -> Result<String, QueryError> {
    let written = match format {
        Format::Table => pretty_format_batches_with_schema(answer.schema.clone(), &answer.batches).map(|table| format!("{table}\n")),
        Format::Ndjson => lines(answer, String::new(), json_row),
        Format::Csv => {
            let header: Vec<String> = answer.schema.fields().iter().map(|f| csv_field(f.name())).collect();
            lines(answer, header.join(",") + "\n", csv_row)
        }
    };
    written.map_err(|e| QueryError::store("write the answer", e))
}

/// One formatter per column.
type Columns<'a> = Vec<ArrayFormatter<'a>>;

fn lines(
    answer: &Answer,
    mut out: String,
    write: fn(&RecordBatch, &Columns<'_>, usize, &mut String) -> Result<(), ArrowError>,
) -> Result<String, ArrowError> {
    let options = FormatOptions::default();
    for batch in &answer.batches {
        let columns = batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options)).collect::<Result<Columns<'_>, _>>()?;
        for row in 0..batch.num_rows() {
            write(batch, &columns, row, &mut out)?;
            out.push('\n');
        }
    }
    Ok(out)
}

fn is_bare(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => is_bare(values),
        other => other.is_numeric() || *other == DataType::Boolean,
    }
}

fn json_row(batch: &RecordBatch, columns: &Columns<'_>, row: usize, out: &mut String) -> Result<(), ArrowError> {
    out.push('{');
    for (at, ((field, array), column)) in batch.schema_ref().fields().iter().zip(batch.columns()).zip(columns).enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(&serde_json::Value::from(field.name().as_str()).to_string());
        out.push(':');
        if array.is_null(row) {
            out.push_str("null");
            continue;
        }
        let text = column.value(row).try_to_string()?;
        if !is_bare(array.data_type()) {
            out.push_str(&serde_json::Value::from(text).to_string());
        } else if serde_json::from_str::<serde_json::Value>(&text).is_ok() {
            out.push_str(&text);
        } else {
            out.push_str("null");
        }
    }
    out.push('}');
    Ok(())
}

fn csv_row(batch: &RecordBatch, columns: &Columns<'_>, row: usize, out: &mut String) -> Result<(), ArrowError> {
    for (at, (array, column)) in batch.columns().iter().zip(columns).enumerate() {
        if at > 0 {
            out.push(',');
        }
        if array.is_valid(row) {
            out.push_str(&csv_field(&column.value(row).try_to_string()?));
        }
    }
    Ok(())
}

fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
