//! Rows as Parquet files, one for each input and day of a commit.

use std::collections::BTreeMap;

use arrow::array::{Array as _, AsArray as _, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::TimestampMicrosecondType;
use fieldstream_engine_api::SinkRows;
use fieldstream_schemas::columns::TS;
use fieldstream_schemas::time::civil_from_days;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

const DAY_US: i64 = 86_400_000_000;

/// Rows by number of the input and day since the epoch.
pub(crate) type Days = BTreeMap<(usize, i64), Vec<RecordBatch>>;

/// Splits rows by input and by day of `ts` (UTC). Rows without a time lie on the first day of 1970.
pub(crate) fn by_day(parts: &[SinkRows]) -> Result<Days, ParquetError> {
    let mut days = Days::new();
    for part in parts {
        let rows = &part.batch.rows;
        let mut numbers: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        let times = rows.column_by_name(TS).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
        for row in 0..rows.num_rows() {
            let time = times.filter(|t| t.is_valid(row)).map_or(0, |t| t.value(row));
            numbers.entry(time.div_euclid(DAY_US)).or_default().push(u32::try_from(row).unwrap_or(u32::MAX));
        }
        let whole = numbers.len() == 1;
        for (day, numbers) in numbers {
            let rows = if whole { rows.clone() } else { take_record_batch(rows, &UInt32Array::from(numbers))? };
            days.entry((part.input, day)).or_default().push(rows);
        }
    }
    Ok(days)
}

/// One Parquet file, zstd.
pub(crate) fn encode(batches: &[RecordBatch]) -> Result<Vec<u8>, ParquetError> {
    let mut out = Vec::new();
    let Some(first) = batches.first() else { return Ok(out) };
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?)).build();
    let mut writer = ArrowWriter::try_new(&mut out, first.schema(), Some(properties))?;
    for batch in batches {
        writer.write(batch)?;
    }
    writer.close()?;
    Ok(out)
}

/// Name of a day's directory.
pub(crate) fn day_name(day: i64) -> String {
    let (year, month, date) = civil_from_days(day);
    format!("day={year:04}-{month:02}-{date:02}")
}
