//! `map`: computes columns from the columns of the same row.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use fieldstream_engine_api::{
    BuildContext, Built, ConfigError, ConfigErrors, Edge, Emitter, KeyedBatch, Operator, OperatorKind, Output, SlotDirectory, Space,
};
use fieldstream_schemas::columns::{DEVICE_ID, SENSOR_ID, time_type};
use fieldstream_schemas::quality::{self, Quality};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::expr::{Expr, Failure, keep, reject_failures};
use crate::options::{self, Named, pointer_to};

/// Its line in the catalogue.
pub const KIND: OperatorKind = OperatorKind {
    name: "map",
    about: "Computes columns from the columns of the same row.",
    rejects: true,
    schema: options::schema::<MapOptions>,
    build,
};

/// Options of `map`: either `set` or `select`. All expressions see the columns of the input. A column that the input has keeps
/// its type, so `unit: "'Cel'"` gives a name column. A row for which an expression cannot be evaluated, or gives null for a
/// column that is never null, is rejected with code `expression`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MapOptions {
    /// Columns to add or replace, and their SQL expressions; all other columns stay.
    pub set: Option<Named>,
    /// Exactly these columns, in this order.
    pub select: Option<Named>,
}

/// Where an output column comes from.
enum Column {
    Kept(usize),
    Computed(Expr),
    /// Text to be read as quality names.
    Quality(Expr),
}

struct Map {
    columns: Vec<Column>,
    outputs: [Output; 1],
}

fn build(value: &Value, input: &Edge, _context: &BuildContext) -> Built<Box<dyn Operator>> {
    let options: MapOptions = options::parse(value)?;
    let (fields, columns) = match (&options.set, &options.select) {
        (Some(set), None) => plan_set(set, &input.schema)?,
        (None, Some(select)) => plan_select(select, &input.schema)?,
        (Some(_), Some(_)) => return Err(vec![ConfigError::new("/select", "`set` and `select` do not go together").hint("use two maps")]),
        (None, None) => return Err(vec![ConfigError::new("", "nothing to do").hint("write `set` or `select`")]),
    };
    let edge = Edge { schema: Arc::new(Schema::new(fields)), key: input.key };
    Ok(Box::new(Map { columns, outputs: [Output { name: "".into(), edge }] }))
}

type Plan = (Vec<Field>, Vec<Column>);

fn plan_set(set: &Named, input: &SchemaRef) -> Result<Plan, ConfigErrors> {
    let mut fields: Vec<Field> = input.fields().iter().map(|f| f.as_ref().clone()).collect();
    let mut columns: Vec<Column> = (0..fields.len()).map(Column::Kept).collect();
    let mut errors = ConfigErrors::new();
    for (name, sql) in &set.0 {
        match plan_column(name, sql, input) {
            Ok((field, column)) => match input.index_of(name) {
                Ok(index) => (fields[index], columns[index]) = (field, column),
                Err(_) => {
                    fields.push(field);
                    columns.push(column);
                }
            },
            Err(error) => errors.push(error.under("/set")),
        }
    }
    if errors.is_empty() { Ok((fields, columns)) } else { Err(errors) }
}

fn plan_select(select: &Named, input: &SchemaRef) -> Result<Plan, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let mut plan = Plan::default();
    for (name, sql) in &select.0 {
        match plan_column(name, sql, input) {
            Ok((field, column)) => {
                plan.0.push(field);
                plan.1.push(column);
            }
            Err(error) => errors.push(error.under("/select")),
        }
    }
    if plan.0.is_empty() && errors.is_empty() {
        errors.push(ConfigError::new("/select", "there is no column").hint("write `column: expression`"));
    }
    if errors.is_empty() { Ok(plan) } else { Err(errors) }
}

fn plan_column(name: &str, sql: &str, input: &SchemaRef) -> Result<(Field, Column), ConfigError> {
    let fail = |message: String| ConfigError::new(pointer_to(name), message);
    if let Ok(index) = input.index_of(sql.trim())
        && input.index_of(name).is_ok_and(|own| own == index) | input.index_of(name).is_err()
    {
        return Ok((input.field(index).clone().with_name(name), Column::Kept(index)));
    }
    if name == DEVICE_ID || name == SENSOR_ID {
        return Err(fail(format!("`{name}` is the row's address and stays as it is")).hint("give the column another name"));
    }
    let Ok(existing) = input.field_with_name(name) else {
        let expr = Expr::parse(sql, input).map_err(fail)?;
        let wanted = column_type(expr.data_type()).ok_or_else(|| {
            fail(format!("a column cannot hold {}", expr.data_type())).hint("cast it to DOUBLE, BIGINT, BOOLEAN, VARCHAR or TIMESTAMP")
        })?;
        let expr = if *expr.data_type() == wanted { expr } else { Expr::cast(sql, input, &wanted).map_err(fail)? };
        return Ok((Field::new(name, wanted, true), Column::Computed(expr)));
    };
    if *existing.data_type() == quality::data_type() {
        let expr = Expr::cast(sql, input, &DataType::Utf8).map_err(fail)?;
        return Ok((existing.clone(), Column::Quality(expr)));
    }
    let expr = Expr::cast(sql, input, existing.data_type()).map_err(fail)?;
    Ok((existing.clone(), Column::Computed(expr)))
}

/// Type of a new column: few types, so that every sink takes every column.
fn column_type(computed: &DataType) -> Option<DataType> {
    match computed {
        DataType::Boolean | DataType::Utf8 | DataType::Int64 | DataType::Float64 => Some(computed.clone()),
        DataType::Dictionary(_, values) if values.is_string() => Some(computed.clone()),
        DataType::Utf8View | DataType::LargeUtf8 => Some(DataType::Utf8),
        DataType::Timestamp(..) | DataType::Date32 => Some(time_type()),
        DataType::Float16 | DataType::Float32 | DataType::Decimal128(..) | DataType::UInt64 => Some(DataType::Float64),
        other if other.is_integer() => Some(DataType::Int64),
        _ => None,
    }
}

impl Operator for Map {
    fn space(&self) -> Space {
        Space::Stateless
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _slots: &SlotDirectory, out: &mut Emitter) {
        let schema = &self.outputs[0].edge.schema;
        let mut columns = Vec::with_capacity(self.columns.len());
        let mut failures: Vec<Failure> = Vec::new();
        for (column, field) in self.columns.iter().zip(schema.fields()) {
            let (values, failed) = compute(column, field, &batch.rows);
            columns.push(values);
            failures.extend(failed);
        }
        if failures.is_empty() {
            out.forward(0, batch.with_rows(assemble(schema, columns)));
            return;
        }
        // One disposition per row: its first failing column speaks.
        failures.sort_by_key(|f| f.row);
        failures.dedup_by_key(|f| f.row);
        let mut good = vec![true; batch.len()];
        failures.iter().for_each(|f| good[f.row as usize] = false);
        let good = BooleanArray::from(good);
        let columns =
            columns.iter().map(|c| arrow::compute::filter(c, &good).unwrap_or_else(|_| unreachable!("a mask has one bit for each row")));
        let rows = assemble(schema, columns.collect());
        out.forward(0, keep(batch, &good).with_rows(rows));
        reject_failures(batch, &failures, out);
    }
}

fn assemble(schema: &SchemaRef, columns: Vec<ArrayRef>) -> RecordBatch {
    RecordBatch::try_new(Arc::clone(schema), columns).unwrap_or_else(|_| unreachable!("columns were planned for the schema"))
}

/// The values of a column, and the rows that have none though they must.
fn compute(column: &Column, field: &Field, rows: &RecordBatch) -> (ArrayRef, Vec<Failure>) {
    let (values, mut failures) = match column {
        Column::Kept(index) => return (Arc::clone(rows.column(*index)), Vec::new()),
        Column::Computed(expr) => expr.eval_rows(rows),
        Column::Quality(expr) => {
            let (names, failures) = expr.eval_rows(rows);
            return read_quality(&names, failures);
        }
    };
    if !field.is_nullable() && values.null_count() > 0 {
        let failed: Vec<u32> = failures.iter().map(|f| f.row).collect();
        let nulls = (0..values.len()).filter(|row| values.is_null(*row)).map(|row| row as u32);
        let message = format!("`{}` must not be null", field.name());
        failures.extend(nulls.filter(|row| failed.binary_search(row).is_err()).map(|row| Failure { row, message: message.clone() }));
        failures.sort_by_key(|f| f.row);
    }
    (values, failures)
}

fn read_quality(names: &ArrayRef, mut failures: Vec<Failure>) -> (ArrayRef, Vec<Failure>) {
    let names = names.as_string_opt::<i32>();
    let failed: Vec<u32> = failures.iter().map(|f| f.row).collect();
    let keys: Vec<u8> = names
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(row, name)| {
            let known = name.and_then(Quality::parse);
            if known.is_none() && failed.binary_search(&(row as u32)).is_err() {
                let message = format!("`{}` is no quality; good, uncertain and bad are", name.unwrap_or("null"));
                failures.push(Failure { row: row as u32, message });
            }
            known.unwrap_or(Quality::Bad) as u8
        })
        .collect();
    (quality::column(keys), failures)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use fieldstream_schemas::readings_schema;
    use fieldstream_testkit::{Rig, context, readings_edge};
    use serde_json::json;

    use super::*;

    fn rig(options: &Value) -> Rig {
        Rig::new(build(options, &readings_edge(), &context()).unwrap())
    }

    #[test]
    fn set_keeps_the_rest_and_the_types() {
        let mut rig = rig(&json!({"set": {
            "value": "value * 1.8 + 32", "unit": "'degF'", "hot": "value > 30", "n": "CAST(value AS INT) + 1",
            "quality": "CASE WHEN value > 39 THEN 'bad' ELSE quality END",
        }}));
        let turn = rig.feed("device type ts value unit\n a temperature 0 40 Cel\n b temperature 1 - Cel");
        expect![[r#"
            [out]
            device_id  sensor_id  sensor_type  ts  value  unit  quality  stamped  hot   n
            a          t          temperature  0   104    degF  bad      false    true  41
            b          t          temperature  1   -      degF  good     false    -     -
            counts: received 2 forwarded 2
        "#]]
        .assert_eq(&turn.picture(&[]));
        let rows = turn.port("").unwrap();
        let original = readings_schema();
        assert_eq!(rows.schema().fields()[..original.fields().len()], original.fields()[..]);
        assert!(fieldstream_schemas::Readings::new(&rows.project(&(0..14).collect::<Vec<_>>()).unwrap()).is_some());
    }

    #[test]
    fn select_gives_these_columns_only() {
        let turn = rig(&json!({"select": {"device_id": "device_id", "fahrenheit": "value * 1.8 + 32", "ts": "ts"}}))
            .feed("device ts value\n a 0 40");
        expect![[r#"
            [out]
            device_id  fahrenheit  ts
            a          104         0
            counts: received 1 forwarded 1
        "#]]
        .assert_eq(&turn.picture(&[]));
    }

    #[test]
    fn rows_that_fail_are_rejected_once() {
        let options = json!({"set": {"n": "CAST(text AS INT)", "quality": "text", "ts": "CASE WHEN value > 1 THEN ts END"}});
        let turn = rig(&options).feed("device ts value text\n a 0 2 7\n a 1 0 x\n b 2 2 bad\n b 3 0 -");
        expect![[r#"
            [rejected] offset 0 expression: `7` is no quality; good, uncertain and bad are
            [rejected] offset 1 expression: `ts` must not be null
            [rejected] offset 2 expression: Cast error: Cannot cast string 'bad' to value of Int32 type
            [rejected] offset 3 expression: `ts` must not be null
            counts: received 4 rejected 4
        "#]]
        .assert_eq(&turn.picture(&["device_id", "text", "n"]));
        let turn = rig(&json!({"set": {"quality": "text"}})).feed("device ts value text\n a 0 2 bad\n a 1 0 GOOD");
        expect![[r#"
            [out]
            device_id  quality
            a          bad
            a          good
            counts: received 2 forwarded 2
        "#]]
        .assert_eq(&turn.picture(&["device_id", "quality"]));
    }

    #[test]
    fn mistakes_have_a_place() {
        let told = |options| {
            build(&options, &readings_edge(), &context()).err().unwrap().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        let all = [
            told(json!({"set": {"a": "valeu", "device_id": "'x'", "l": "interval '1 day'"}})),
            told(json!({"set": {}, "select": {}})),
            told(json!({"select": {}})),
            told(json!({})),
            told(json!({"set": {"a": 1}})),
        ];
        expect![[r#"
            /set/a: there is no column `valeu` (did you mean `value`?)
            /set/device_id: `device_id` is the row's address and stays as it is (give the column another name)
            /set/l: a column cannot hold Interval(MonthDayNano) (cast it to DOUBLE, BIGINT, BOOLEAN, VARCHAR or TIMESTAMP)
            /select: `set` and `select` do not go together (use two maps)
            /select: there is no column (write `column: expression`)
            nothing to do (write `set` or `select`)
            /set/a: invalid type: integer `1`, expected a string"#]]
        .assert_eq(&all.join("\n"));
    }
}
