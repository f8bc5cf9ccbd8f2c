//! Units: from what was sent to what is wanted, by sensor type.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, DictionaryArray, Float64Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Float64Type, SchemaRef, UInt32Type};
use fieldstream_engine_api::{ConfigError, ConfigErrors};
use fieldstream_schemas::columns::{SENSOR_TYPE, UNIT, VALUE, name_type};

use crate::options::{column_of_type, did_you_mean, pointer_to};
use crate::units::{self, Conversion, Unit};

/// Wanted units by sensor type, and the columns concerned.
pub(super) struct Units {
    wanted: BTreeMap<String, &'static Unit>,
    /// As written in the options; this goes into the column.
    names: BTreeMap<String, String>,
    sensor_type: usize,
    unit: usize,
    value: usize,
}

/// What became of a batch.
pub(super) struct Converted {
    /// The rows with new `value` and `unit`; `None` when all were right already.
    pub(super) rows: Option<RecordBatch>,
    /// Rows whose unit cannot be converted, and why.
    pub(super) refused: Vec<(Vec<u32>, String)>,
}

/// What to do with the rows of one sensor type that have one unit.
#[derive(Clone, Copy)]
enum Action {
    Keep,
    /// The same unit under another name, or none.
    Rename,
    Convert(Conversion),
    Refuse,
}

impl Units {
    pub(super) fn plan(options: &BTreeMap<String, String>, schema: &SchemaRef) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        let mut wanted = BTreeMap::new();
        for (sensor_type, name) in options {
            if let Some(unit) = units::find(name) {
                wanted.insert(sensor_type.clone(), unit);
                continue;
            }
            let mut error = ConfigError::new(format!("/units{}", pointer_to(sensor_type)), format!("unknown unit `{name}`"));
            error.hint = did_you_mean(name, units::names()).or(Some("use a UCUM name such as Cel, kPa, mV or l/min".to_owned()));
            errors.push(error);
        }
        let mut column = |name: &str, data_type: &DataType| {
            column_of_type(schema, name, data_type).unwrap_or_else(|e| {
                errors.push(e.under("/units"));
                0
            })
        };
        let (sensor_type, unit) = (column(SENSOR_TYPE, &name_type()), column(UNIT, &name_type()));
        let value = column(VALUE, &DataType::Float64);
        if errors.is_empty() { Ok(Self { wanted, names: options.clone(), sensor_type, unit, value }) } else { Err(errors) }
    }

    pub(super) fn convert(&self, rows: &RecordBatch) -> Converted {
        let types = rows.column(self.sensor_type).as_dictionary::<UInt32Type>();
        let units = rows.column(self.unit).as_dictionary::<UInt32Type>();
        let values = rows.column(self.value).as_primitive::<Float64Type>();
        // One line of `table` per wanted sensor type, one column per unit in the batch and a last one for none.
        let width = units.values().len() + 1;
        let table: Vec<Action> = self.wanted.iter().flat_map(|(kind, wanted)| actions(wanted, &self.names[kind], units)).collect();
        let kinds: Vec<&String> = self.wanted.keys().collect();
        let line: Vec<Option<usize>> = names(types).map(|name| kinds.iter().position(|k| Some(k.as_str()) == name)).collect();
        let action = |row: usize| {
            let line = types.key(row).and_then(|key| line[key]).filter(|_| values.is_valid(row))?;
            Some((line, table[line * width + units.key(row).unwrap_or(width - 1)]))
        };
        let mut refused: Vec<(usize, Vec<u32>)> = Vec::new();
        let mut changed = false;
        for row in 0..rows.num_rows() {
            match action(row) {
                None | Some((_, Action::Keep)) => {}
                Some((_, Action::Rename | Action::Convert(_))) => changed = true,
                Some((line, Action::Refuse)) => {
                    let key = line * width + units.key(row).unwrap_or(width - 1);
                    match refused.iter_mut().find(|(known, _)| *known == key) {
                        Some((_, rows)) => rows.push(row as u32),
                        None => refused.push((key, vec![row as u32])),
                    }
                }
            }
        }
        let told = |key: usize| {
            let unit = names(units).nth(key % width).flatten().unwrap_or_default();
            format!("unit `{unit}` cannot be converted to {}", self.names[kinds[key / width]])
        };
        let refused = refused.into_iter().map(|(key, rows)| (rows, told(key))).collect();
        Converted { rows: changed.then(|| self.rewrite(rows, units, values, action)), refused }
    }

    /// New `value` and `unit` columns.
    fn rewrite(
        &self,
        rows: &RecordBatch,
        units: &DictionaryArray<UInt32Type>,
        values: &Float64Array,
        action: impl Fn(usize) -> Option<(usize, Action)>,
    ) -> RecordBatch {
        let first_wanted = units.values().len() as u32;
        let mut value = Vec::with_capacity(values.len());
        let mut keys = Vec::with_capacity(values.len());
        for row in 0..values.len() {
            let (mut number, mut key) = (values.value(row), units.key(row).map(|key| key as u32));
            if let Some((line, Action::Rename | Action::Convert(_))) = action(row) {
                key = Some(first_wanted + line as u32);
            }
            if let Some((_, Action::Convert(conversion))) = action(row) {
                number = conversion.apply(number);
            }
            value.push(number);
            keys.push(key);
        }
        let dictionary: StringArray = names(units).chain(self.names.values().map(|name| Some(name.as_str()))).collect();
        let unit = DictionaryArray::try_new(UInt32Array::from(keys), Arc::new(dictionary))
            .unwrap_or_else(|_| unreachable!("keys count the names that were chained"));
        let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
        columns[self.value] = Arc::new(Float64Array::new(value.into(), values.nulls().cloned()));
        columns[self.unit] = Arc::new(unit);
        RecordBatch::try_new(rows.schema(), columns).unwrap_or_else(|_| unreachable!("both columns keep type and length"))
    }
}

fn names(column: &DictionaryArray<UInt32Type>) -> impl Iterator<Item = Option<&str>> {
    column.values().as_string::<i32>().iter()
}

/// Actions for each unit of the dictionary, and for none.
fn actions(wanted: &Unit, wanted_name: &str, units: &DictionaryArray<UInt32Type>) -> Vec<Action> {
    let known = names(units).map(|name| {
        let Some(name) = name else { return Action::Rename };
        if name == wanted_name {
            return Action::Keep;
        }
        match units::find(name) {
            Some(unit) if unit == wanted => Action::Rename,
            Some(unit) => Conversion::between(unit, wanted).map_or(Action::Refuse, Action::Convert),
            None => Action::Refuse,
        }
    });
    known.chain([Action::Rename]).collect()
}
