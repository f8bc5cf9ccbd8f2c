//! TimescaleDB and PostgreSQL as a sink: rows by binary COPY, with the mark in the same transaction.

mod columns;
mod copy;
mod errors;
mod hyper;
mod marks;
mod options;
mod plain;
mod schema;
pub mod sink;
mod store;
mod transaction;

use arrow::array::RecordBatch;

use self::columns::plan_columns;
use self::copy::{Encoded, HEADER, TRAILER};

/// `rows` as one whole binary COPY, as the sink sends it, and how many rows have no encoding and are left out.
///
/// # Errors
/// The column that cannot be stored in a table.
pub fn copy_binary(rows: &RecordBatch) -> Result<(Vec<u8>, usize), String> {
    let columns = plan_columns(rows.schema_ref())?;
    let mut encoded = Encoded::default();
    encoded.push(&columns, 0, rows)?;
    let body = encoded.bytes(0..encoded.len());
    Ok(([&HEADER[..], body, &TRAILER[..]].concat(), encoded.refused.len()))
}
