//! Which rows a predictor follows: those with a finite number, for which its condition is true.

use arrow::array::{Array, AsArray};
use arrow::datatypes::SchemaRef;
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use fieldstream_engine_api::{ConfigError, ConfigErrors, Emitter, KeyedBatch};
use fieldstream_schemas::columns::{TS, VALUE, time_type};

use crate::expr::{CODE, Expr};
use crate::options::column_of_type;

/// The followed column and its condition.
#[derive(Debug)]
pub(super) struct Rows {
    column: Expr,
    condition: Option<Expr>,
    ts: usize,
}

impl Rows {
    /// Plans the expressions over `schema`.
    pub(super) fn new(column: Option<&str>, condition: Option<&str>, schema: &SchemaRef) -> Result<Self, ConfigErrors> {
        let ts = column_of_type(schema, TS, &time_type());
        let column = Expr::number(column.unwrap_or(VALUE), schema).map_err(|why| ConfigError::new("/column", why));
        let condition = condition.map(|sql| Expr::predicate(sql, schema).map_err(|why| ConfigError::new("/where", why))).transpose();
        match (ts, column, condition) {
            (Ok(ts), Ok(column), Ok(condition)) => Ok(Self { column, condition, ts }),
            (ts, column, condition) => Err([ts.err(), column.err(), condition.err()].into_iter().flatten().collect()),
        }
    }

    /// Row number, event time and value of the rows to follow. All rows are accounted for: absorbed, or rejected where an
    /// expression fails.
    pub(super) fn judged(&self, batch: &KeyedBatch, out: &mut Emitter) -> Vec<(usize, i64, f64)> {
        let (values, mut failures) = self.column.eval_rows(&batch.rows);
        let mask = self.condition.as_ref().map(|condition| {
            let (mask, more) = condition.mask(&batch.rows);
            failures.extend(more);
            mask
        });
        failures.sort_by_key(|f| f.row);
        failures.dedup_by_key(|f| f.row);
        out.absorb(batch.len() - failures.len());
        let refused: Vec<u32> = failures.iter().map(|f| f.row).collect();
        for failure in failures {
            out.reject(batch, vec![failure.row], CODE, failure.message);
        }
        let times = batch.rows.column(self.ts).as_primitive_opt::<TimestampMicrosecondType>();
        let (Some(times), Some(values)) = (times, values.as_primitive_opt::<Float64Type>()) else { return Vec::new() };
        let kept = |row: &usize| {
            times.is_valid(*row)
                && values.is_valid(*row)
                && values.value(*row).is_finite()
                && mask.as_ref().is_none_or(|mask| mask.value(*row))
                && refused.binary_search(&(*row as u32)).is_err()
        };
        (0..batch.len()).filter(kept).map(|row| (row, times.value(row), values.value(row))).collect()
    }
}
