//! Readings from Parquet files: columns by name, the row's number as offset.

use std::fs::File;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use bytes::Bytes;
use fieldstream_engine_api::Payloads;
use fieldstream_schemas::columns::{DEVICE_ID, QUALITY, SENSOR_ID, STAMPED, TS};
use fieldstream_schemas::encode::json::JsonWriter;
use fieldstream_schemas::payload::CODE_PARSE;
use fieldstream_schemas::{Position, Quality, Reject, quality, readings_schema};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;

/// Rows read at once.
const ROWS: usize = 8192;

/// Columns without which a row is no reading.
const NEEDED: [&str; 3] = [DEVICE_ID, SENSOR_ID, TS];

/// Why rows cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowsError {
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    #[error("column `{0}` is missing: a file of readings has {DEVICE_ID}, {SENSOR_ID} and {TS}")]
    Missing(&'static str),
    #[error("column `{column}` has the type {found}, which is no {wanted}")]
    Type { column: String, found: DataType, wanted: DataType },
}

/// A file that is read in batches of rows.
pub(crate) struct Rows {
    reader: ParquetRecordBatchReader,
    /// Number of the next row.
    pub(crate) at: u64,
}

/// Number of rows in a file.
pub(crate) fn count(file: File) -> Result<u64, RowsError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    Ok(u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or_default())
}

impl Rows {
    /// Opens a file at row `at`.
    pub(crate) fn open(file: File, at: u64) -> Result<Self, RowsError> {
        let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let skipped = usize::try_from(at).unwrap_or(usize::MAX);
        Ok(Self { reader: builder.with_offset(skipped).with_batch_size(ROWS).build()?, at })
    }

    /// The next rows, at least one; `None` at the end.
    pub(crate) fn next_rows(&mut self) -> Result<Option<Payloads>, RowsError> {
        let Some(batch) = self.reader.next().transpose()? else { return Ok(None) };
        let first = self.at;
        self.at += batch.num_rows() as u64;
        payloads(&batch, first).map(Some)
    }
}

/// Rows of a file as readings. Rows without device, sensor or time become rejects with their columns as JSON.
fn payloads(batch: &RecordBatch, first: u64) -> Result<Payloads, RowsError> {
    let schema = readings_schema();
    let columns = schema.fields().iter().map(|f| column(batch, f.name(), f.data_type())).collect::<Result<Vec<_>, _>>()?;
    let whole = |row: usize| schema.fields().iter().zip(&columns).all(|(f, c)| !NEEDED.contains(&f.name().as_str()) || c.is_valid(row));
    let keep: BooleanArray = (0..batch.num_rows()).map(|row| Some(whole(row))).collect();
    // The columns may hold nulls where a reading has none until the filter has run.
    let loose: Vec<_> = schema.fields().iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let rows = RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(loose)), columns)?;
    let rows = filter_record_batch(&rows, &keep)?;
    let rows = RecordBatch::try_new(Arc::clone(&schema), rows.columns().to_vec())?;

    let writer = JsonWriter::new(&batch.schema());
    let (mut positions, mut rejects) = (Vec::with_capacity(rows.num_rows()), Vec::new());
    for row in 0..batch.num_rows() {
        let position = Position::new(first + row as u64, 0);
        if keep.value(row) {
            positions.push(position);
            continue;
        }
        let mut payload = Vec::new();
        writer.write_row(batch, row, &mut payload);
        let message = format!("{DEVICE_ID}, {SENSOR_ID} or {TS} is missing");
        rejects.push(Reject { position, code: CODE_PARSE, message, payload: Bytes::from(payload) });
    }
    Ok(Payloads::Rows { rows, positions, rejects, raw: None })
}

fn column(batch: &RecordBatch, name: &str, wanted: &DataType) -> Result<ArrayRef, RowsError> {
    let Some(array) = batch.column_by_name(name) else {
        if let Some(missing) = NEEDED.into_iter().find(|needed| *needed == name) {
            return Err(RowsError::Missing(missing));
        }
        return Ok(match name {
            QUALITY => quality::column(std::iter::repeat_n(Quality::Good as u8, batch.num_rows())),
            STAMPED => Arc::new(BooleanArray::from(vec![false; batch.num_rows()])),
            _ => new_null_array(wanted, batch.num_rows()),
        });
    };
    // A cast between kinds would turn what it cannot read into nulls, silently.
    if kind(array.data_type()) != kind(wanted) || kind(wanted).is_none() {
        return Err(RowsError::Type { column: name.to_owned(), found: array.data_type().clone(), wanted: wanted.clone() });
    }
    match name {
        QUALITY => qualities(array),
        STAMPED => Ok(Arc::new(array.as_boolean().iter().map(|flag| Some(flag.unwrap_or(false))).collect::<BooleanArray>())),
        _ => match array.data_type() {
            DataType::Timestamp(_, zone) => microseconds(array, zone.clone()),
            _ => Ok(cast(array, wanted)?),
        },
    }
}

/// Times in microseconds, UTC. Times without zone are taken for UTC; in all zones values count from the same moment.
fn microseconds(array: &ArrayRef, zone: Option<Arc<str>>) -> Result<ArrayRef, RowsError> {
    let times = cast(array, &DataType::Timestamp(TimeUnit::Microsecond, zone))?;
    Ok(Arc::new(times.as_primitive::<TimestampMicrosecondType>().clone().with_timezone("UTC")))
}

fn kind(data_type: &DataType) -> Option<u8> {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(0),
        DataType::Dictionary(_, values) => kind(values),
        DataType::Timestamp(_, _) => Some(1),
        DataType::Boolean => Some(2),
        other if other.is_numeric() => Some(3),
        _ => None,
    }
}

/// Quality names in the dictionary of readings: an unknown name is bad, none is good.
fn qualities(array: &ArrayRef) -> Result<ArrayRef, RowsError> {
    let names = cast(array, &DataType::Utf8)?;
    let class = |name: Option<&str>| name.map_or(Quality::Good, |n| Quality::parse(n).unwrap_or(Quality::Bad));
    Ok(quality::column(names.as_string::<i32>().iter().map(|name| class(name) as u8)))
}
