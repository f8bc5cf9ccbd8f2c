//! `deadband`: report by exception. A reading is sent on when it differs enough from the last one sent, or after silence.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::buffer::BooleanBuffer;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType};
use fieldstream_engine_api::{
    BuildContext, Built, ConfigError, ConfigErrors, Edge, Emitter, KeyedBatch, KeyedState, Operator, OperatorKind, Output, SlotDirectory,
    Space, StateError,
};
use fieldstream_schemas::columns::{TS, VALUE, time_type};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::expr::keep;
use crate::options::{self, TimeSpan, column_of_type};
use crate::state::{Dense, Entry, numbers};

/// Its line in the catalogue.
pub const KIND: OperatorKind = OperatorKind {
    name: "deadband",
    about: "Sends a reading on only when it differs enough from the last one sent.",
    rejects: false,
    schema: options::schema::<DeadbandOptions>,
    build,
};

/// Options of `deadband`: `absolute` or `percent`, or both (either one passes the row). Rows without a number always pass.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadbandOptions {
    /// A row passes when it differs by more than this from the last row sent.
    pub absolute: Option<f64>,
    /// A row passes when it differs by more than this percentage of the last value sent.
    pub percent: Option<f64>,
    /// A row passes when the last one sent is this much older, by event time.
    pub max_silence: Option<TimeSpan>,
    /// The numeric column watched.
    #[serde(default = "value_column")]
    pub column: String,
}

fn value_column() -> String {
    VALUE.to_owned()
}

/// The last row sent; blank while there is none.
#[derive(Clone, Copy, Debug)]
struct Sent {
    value: f64,
    ts: i64,
    any: bool,
}

impl Entry for Sent {
    const BLANK: Self = Self { value: 0.0, ts: 0, any: false };
    const LAYOUT: u32 = 1;

    fn is_blank(&self) -> bool {
        !self.any
    }

    fn columns(entries: &[Self]) -> Vec<(&'static str, ArrayRef)> {
        let value = Float64Array::from_iter_values(entries.iter().map(|e| e.value));
        let ts = Int64Array::from_iter_values(entries.iter().map(|e| e.ts));
        vec![("value", Arc::new(value)), ("ts", Arc::new(ts))]
    }

    fn read(rows: &RecordBatch) -> Result<Vec<Self>, StateError> {
        let (value, ts) = (numbers::<Float64Type>(rows, "value")?, numbers::<Int64Type>(rows, "ts")?);
        Ok(value.iter().zip(ts).map(|(value, ts)| Self { value: *value, ts: *ts, any: true }).collect())
    }
}

struct Deadband {
    absolute: f64,
    /// Share of the last value, 0.01 for one percent.
    relative: f64,
    max_silence_us: i64,
    column: usize,
    ts: usize,
    state: Dense<Sent>,
    outputs: [Output; 1],
}

fn build(value: &Value, input: &Edge, _context: &BuildContext) -> Built<Box<dyn Operator>> {
    let options: DeadbandOptions = options::parse(value)?;
    let mut errors = ConfigErrors::new();
    for (path, limit) in [("/absolute", options.absolute), ("/percent", options.percent)] {
        if limit.is_some_and(|limit| !limit.is_finite() || limit < 0.0) {
            errors.push(ConfigError::new(path, "must be 0 or more"));
        }
    }
    if options.absolute.is_none() && options.percent.is_none() {
        errors.push(ConfigError::new("", "no deadband is given").hint("write `absolute` or `percent`"));
    }
    let column = column_of_type(&input.schema, &options.column, &DataType::Float64).map_err(|e| e.under("/column"));
    let ts = column_of_type(&input.schema, TS, &time_type());
    let (column, ts) = match (column, ts) {
        (Ok(column), Ok(ts)) if errors.is_empty() => (column, ts),
        (column, ts) => {
            errors.extend(column.err());
            errors.extend(ts.err());
            return Err(errors);
        }
    };
    Ok(Box::new(Deadband {
        // Infinity never passes a row, so what is not given does not count.
        absolute: options.absolute.unwrap_or(f64::INFINITY),
        relative: options.percent.map_or(f64::INFINITY, |p| p / 100.0),
        max_silence_us: options.max_silence.map_or(i64::MAX, TimeSpan::us),
        column,
        ts,
        state: Dense::new(input.key),
        outputs: [Output { name: "".into(), edge: input.clone() }],
    }))
}

impl Deadband {
    fn passes(&self, last: &Sent, value: f64, ts: i64) -> bool {
        if !last.any || ts.saturating_sub(last.ts) >= self.max_silence_us {
            return true;
        }
        let step = (value - last.value).abs();
        if step.is_nan() {
            // Into or out of NaN is news; so is nothing between two NaN or two equal infinities.
            return !(value.is_nan() && last.value.is_nan() || value == last.value);
        }
        // Infinity as last value makes the relative limit infinite or NaN: only the absolute one counts then.
        step > self.absolute || step > self.relative * last.value.abs()
    }
}

impl Operator for Deadband {
    fn space(&self) -> Space {
        self.outputs[0].edge.key
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _slots: &SlotDirectory, out: &mut Emitter) {
        let values: Option<&Float64Array> = batch.rows.column(self.column).as_primitive_opt();
        let times: Option<&TimestampMicrosecondArray> = batch.rows.column(self.ts).as_primitive_opt::<TimestampMicrosecondType>();
        let (Some(values), Some(times)) = (values, times) else {
            unreachable!("the types of both columns were checked when the operator was built")
        };
        let slots = if self.outputs[0].edge.key == Space::Series { &batch.keys.series } else { &batch.keys.device };
        let mask = BooleanBuffer::collect_bool(batch.len(), |row| {
            if values.is_null(row) {
                return true;
            }
            let (value, ts) = (values.value(row), times.value(row));
            let last = *self.state.at(slots[row]);
            let passes = self.passes(&last, value, ts);
            if passes {
                *self.state.at(slots[row]) = Sent { value, ts, any: true };
            }
            passes
        });
        out.filter(batch.len() - mask.count_set_bits());
        out.forward(0, keep(batch, &BooleanArray::new(mask, None)));
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![&mut self.state]
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use fieldstream_testkit::{Rig, context, readings_edge};
    use serde_json::json;

    use super::*;

    fn sent(options: &Value, picture: &str) -> String {
        let mut rig = Rig::new(build(options, &readings_edge(), &context()).unwrap());
        rig.feed(picture).picture(&["device_id", "sensor_id", "ts", "value"])
    }

    #[test]
    fn small_steps_wait_until_they_add_up() {
        let picture = "device sensor ts value\n a t 0 10\n a t 1 10.5\n a t 2 11\n a t 3 11.1\n a p 3 1\n b t 3 10\n a t 4 -\n a t 5 11.5";
        expect![[r#"
            [out]
            device_id  sensor_id  ts  value
            a          t          0   10
            a          t          3   11.1
            a          p          3   1
            b          t          3   10
            a          t          4   -
            counts: received 8 forwarded 5 filtered 3
        "#]]
        .assert_eq(&sent(&json!({"absolute": 1}), picture));
    }

    #[test]
    fn percent_is_of_the_last_value_and_silence_ends() {
        let picture = "device ts value\n a 0 100\n a 1 101\n a 2 102.1\n a 61 102.1\n a 62 102.1\n a 63 103";
        expect![[r#"
            [out]
            device_id  sensor_id  ts  value
            a          t          0   100
            a          t          2   102.1
            a          t          62  102.1
            counts: received 6 forwarded 3 filtered 3
        "#]]
        .assert_eq(&sent(&json!({"percent": 2, "max_silence": "1m"}), picture));
    }

    #[test]
    fn nan_is_news_once() {
        let picture = "device ts value\n a 0 1\n a 1 NaN\n a 2 NaN\n a 3 1\n a 4 inf\n a 5 inf\n a 6 1";
        expect![[r#"
            [out]
            device_id  sensor_id  ts  value
            a          t          0   1
            a          t          1   NaN
            a          t          3   1
            a          t          4   inf
            a          t          6   1
            counts: received 7 forwarded 5 filtered 2
        "#]]
        .assert_eq(&sent(&json!({"absolute": 0.5, "percent": 1}), picture));
    }

    #[test]
    fn mistakes_have_a_place() {
        let told = |options| {
            let errors = build(&options, &readings_edge(), &context()).err().unwrap();
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let all =
            [told(json!({})), told(json!({"absolute": -1, "column": "vlaue"})), told(json!({"absolute": 1, "column": "text"}))].join("\n");
        expect![[r#"
            no deadband is given (write `absolute` or `percent`)
            /absolute: must be 0 or more
            /column: there is no column `vlaue` (did you mean `value`?)
            /column: column `text` is Utf8, Float64 is needed"#]]
        .assert_eq(&all);
    }
}
