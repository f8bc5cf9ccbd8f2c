//! A planned rule and how it judges a batch: whole columns at a time, except where it follows a series.

use std::sync::Arc;

use arrow::array::{Array, AsArray, DictionaryArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{Float64Type, TimestampMicrosecondType, UInt8Type, UInt32Type};
use fieldstream_engine_api::{KeyedBatch, KeyedState};
use fieldstream_schemas::quality::{self, Quality};

use super::series::{Rate, Stuck};
use crate::expr::{Expr, Failure};

/// What becomes of rows that fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Otherwise {
    Reject,
    /// At best this quality.
    Quality(Quality),
}

/// A name that a row must have for the rule to apply.
pub(super) struct Names {
    pub(super) column: usize,
    pub(super) name: String,
}

/// A rule.
pub(super) struct Rule {
    pub(super) id: Arc<str>,
    /// What is told about rows that fail.
    pub(super) message: String,
    pub(super) check: Check,
    pub(super) only: Vec<Names>,
    pub(super) otherwise: Otherwise,
    /// Number of the column that `Otherwise::Quality` changes.
    pub(super) quality_column: usize,
}

/// What a rule checks. Numbers of columns, whose types were checked when the rule was planned.
pub(super) enum Check {
    Condition(Expr),
    Range { column: usize, min: f64, max: f64 },
    Timestamp { ts: usize, ingest: Option<usize>, min: i64, max: Option<i64>, max_age: i64, max_future: i64 },
    Quality { score: Option<(usize, f64)>, class: Option<(usize, Quality)> },
    Required(Vec<usize>),
    Rate { value: usize, ts: usize, rate: Rate },
    Stuck { value: usize, ts: usize, stuck: Stuck },
}

impl Check {
    pub(super) fn is_stateful(&self) -> bool {
        matches!(self, Self::Rate { .. } | Self::Stuck { .. })
    }

    pub(super) fn state(&mut self) -> Option<&mut dyn KeyedState> {
        match self {
            Self::Rate { rate, .. } => Some(&mut rate.state),
            Self::Stuck { stuck, .. } => Some(&mut stuck.state),
            _ => None,
        }
    }
}

impl Rule {
    /// Rows that fail (whether they live still or not, where the rule has no state), and rows that cannot be judged.
    pub(super) fn judge(&mut self, batch: &KeyedBatch, alive: &BooleanBuffer) -> (BooleanBuffer, Vec<Failure>) {
        let rows = &batch.rows;
        let applies = applies(&self.only, rows);
        let living = applies.as_ref().map_or_else(|| alive.clone(), |applies| alive & applies);
        let fails = match &mut self.check {
            Check::Condition(condition) => {
                let (mask, mut failures) = condition.mask(rows);
                failures.retain(|f| living.value(f.row as usize));
                return (&!mask.values() & &living, failures);
            }
            Check::Range { column, min, max } => out_of_range(rows, *column, *min, *max),
            Check::Timestamp { ts, ingest, min, max, max_age, max_future } => {
                let fixed = out_of_time(rows, *ts, *min, *max);
                ingest.map_or(fixed.clone(), |ingest| &fixed | &too_far_from_ingest(rows, *ts, ingest, *max_age, *max_future))
            }
            Check::Quality { score, class } => {
                let low = score.map(|(column, min)| out_of_range(rows, column, min, f64::INFINITY));
                let worse = class.map(|(column, min)| worse_than(rows, column, min));
                low.into_iter().chain(worse).fold(BooleanBuffer::new_unset(rows.num_rows()), |all, fails| &all | &fails)
            }
            Check::Required(columns) => {
                let nulls = columns.iter().filter_map(|column| rows.column(*column).logical_nulls());
                nulls.fold(BooleanBuffer::new_unset(rows.num_rows()), |all, nulls| &all | &!nulls.inner())
            }
            Check::Rate { value, ts, rate } => follow(batch, *value, *ts, &living, |slot, value, ts| rate.fails(slot, value, ts)),
            Check::Stuck { value, ts, stuck } => follow(batch, *value, *ts, &living, |slot, value, ts| stuck.fails(slot, value, ts)),
        };
        (applies.map_or(fails.clone(), |applies| &fails & &applies), Vec::new())
    }
}

/// Rows the rule is for; `None` for all.
fn applies(only: &[Names], rows: &RecordBatch) -> Option<BooleanBuffer> {
    only.iter()
        .map(|Names { column, name }| {
            let names: &DictionaryArray<UInt32Type> = rows.column(*column).as_dictionary();
            let wanted: Vec<bool> = names.values().as_string::<i32>().iter().map(|n| n == Some(name)).collect();
            BooleanBuffer::collect_bool(names.len(), |row| names.key(row).is_some_and(|key| wanted[key]))
        })
        .reduce(|all, named| &all & &named)
}

/// Null is in every range, NaN in none.
fn out_of_range(rows: &RecordBatch, column: usize, min: f64, max: f64) -> BooleanBuffer {
    let column = rows.column(column).as_primitive::<Float64Type>();
    let values = &column.values()[..];
    let out = BooleanBuffer::collect_bool(values.len(), |row| !(values[row] >= min && values[row] <= max));
    column.nulls().map_or(out.clone(), |nulls| &out & nulls.inner())
}

fn out_of_time(rows: &RecordBatch, ts: usize, min: i64, max: Option<i64>) -> BooleanBuffer {
    let column = rows.column(ts).as_primitive::<TimestampMicrosecondType>();
    let times = &column.values()[..];
    // An inclusive maximum makes `no maximum` an ordinary number.
    let max = max.map_or(i64::MAX, |max| max - 1);
    BooleanBuffer::collect_bool(times.len(), |row| times[row] < min || times[row] > max)
}

/// Rows without ingest time are never too far.
fn too_far_from_ingest(rows: &RecordBatch, ts: usize, ingest: usize, max_age: i64, max_future: i64) -> BooleanBuffer {
    let times = rows.column(ts).as_primitive::<TimestampMicrosecondType>().values();
    let ingest = rows.column(ingest).as_primitive::<TimestampMicrosecondType>();
    BooleanBuffer::collect_bool(times.len(), |row| {
        let ahead = times[row].saturating_sub(ingest.value(row));
        ingest.is_valid(row) && (ahead > max_future || ahead < -max_age)
    })
}

/// For each entry of the column's dictionary, the class it names; an unknown name is bad.
fn classes(column: &DictionaryArray<UInt8Type>) -> Vec<Quality> {
    column.values().as_string::<i32>().iter().map(|name| name.and_then(Quality::parse).unwrap_or(Quality::Bad)).collect()
}

fn worse_than(rows: &RecordBatch, column: usize, min: Quality) -> BooleanBuffer {
    let column: &DictionaryArray<UInt8Type> = rows.column(column).as_dictionary();
    let classes = classes(column);
    BooleanBuffer::collect_bool(column.len(), |row| column.key(row).is_none_or(|key| classes[key] > min))
}

/// Walks the living rows that have a number, in order, through the state of their series.
fn follow(
    batch: &KeyedBatch,
    value: usize,
    ts: usize,
    living: &BooleanBuffer,
    mut fails: impl FnMut(u32, f64, i64) -> bool,
) -> BooleanBuffer {
    let values = batch.rows.column(value).as_primitive::<Float64Type>();
    let times = batch.rows.column(ts).as_primitive::<TimestampMicrosecondType>().values();
    let series = &batch.keys.series;
    BooleanBuffer::collect_bool(values.len(), |row| {
        living.value(row) && values.is_valid(row) && fails(series[row], values.value(row), times[row])
    })
}

/// The same rows with at best quality `worst` where `fails`.
pub(super) fn downgrade(rows: &RecordBatch, column: usize, fails: &BooleanBuffer, worst: Quality) -> RecordBatch {
    let old: &DictionaryArray<UInt8Type> = rows.column(column).as_dictionary();
    let classes = classes(old);
    let keys = (0..old.len()).map(|row| {
        let class = old.key(row).map_or(Quality::Bad, |key| classes[key]);
        (if fails.value(row) { class.max(worst) } else { class }) as u8
    });
    let mut columns = rows.columns().to_vec();
    columns[column] = quality::column(keys);
    RecordBatch::try_new(rows.schema(), columns).unwrap_or_else(|_| unreachable!("the column keeps type and length"))
}
