//! `validate`: judges readings by rules, in order; the first rule that a row fails decides what becomes of it.
//!
//! Units come first: `units: {temperature: Cel}` converts `value` of that sensor type and sets `unit`. A row without a unit is
//! taken to be in the wanted one; a unit that is unknown, or of another dimension, is rejected with code `unit`.
//!
//! Rules on `value` skip text and flag rows. `rate` and `stuck` see the rows that passed the rules before them. A row that
//! fails `rate` does not become the reference for the next one, until `resync` rows in a row have failed: then the reading has
//! really moved, and the next row is taken as the new level.

mod convert;
mod options;
mod rules;
mod series;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::buffer::BooleanBuffer;
use fieldstream_engine_api::{
    BuildContext, Built, Edge, Emitter, KeyedBatch, KeyedState, Operator, OperatorKind, Output, SlotDirectory, Space,
};
use serde_json::Value;

use crate::expr::{Failure, keep, reject_failures};
use crate::options as reading;
use convert::Units;
pub use options::ValidateOptions;
use rules::{Otherwise, Rule};

/// Its line in the catalogue.
pub const KIND: OperatorKind = OperatorKind {
    name: "validate",
    about: "Judges readings by rules: unit, range, time, quality, rate of change, stuck values, any condition.",
    rejects: true,
    schema: reading::schema::<ValidateOptions>,
    build,
};

/// Code of rows whose unit cannot be converted.
pub const CODE_UNIT: &str = "unit";

struct Validate {
    units: Option<Units>,
    rules: Vec<Rule>,
    outputs: [Output; 1],
}

fn build(value: &Value, input: &Edge, _context: &BuildContext) -> Built<Box<dyn Operator>> {
    let options: ValidateOptions = reading::parse(value)?;
    let (units, rules) = options::plan(&options, input)?;
    Ok(Box::new(Validate { units, rules, outputs: [Output { name: "".into(), edge: input.clone() }] }))
}

impl Operator for Validate {
    fn space(&self) -> Space {
        if self.rules.iter().any(|rule| rule.check.is_stateful()) { Space::Series } else { Space::Stateless }
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _slots: &SlotDirectory, out: &mut Emitter) {
        let mut work = batch.clone();
        let mut alive = BooleanBuffer::new_set(batch.len());
        if let Some(units) = &self.units {
            let converted = units.convert(&work.rows);
            if let Some(rows) = converted.rows {
                work = work.with_rows(rows);
            }
            for (rows, message) in converted.refused {
                alive = without(&alive, &rows);
                out.reject(&work, rows, CODE_UNIT, message);
            }
        }
        for rule in &mut self.rules {
            let (fails, failures) = rule.judge(&work, &alive);
            if !failures.is_empty() {
                alive = refuse_failures(&work, &alive, failures, out);
            }
            let fails = &fails & &alive;
            if fails.count_set_bits() == 0 {
                continue;
            }
            match rule.otherwise {
                Otherwise::Reject => {
                    let rows = fails.set_indices().map(|row| row as u32).collect();
                    out.reject(&work, rows, rule.id.to_string(), rule.message.as_str());
                    alive = &alive & &!&fails;
                }
                Otherwise::Quality(worst) => work = work.with_rows(rules::downgrade(&work.rows, rule.quality_column, &fails, worst)),
            }
        }
        out.forward(0, keep(&work, &BooleanArray::new(alive, None)));
    }

    fn reject_codes(&self) -> Vec<Arc<str>> {
        let mut codes: Vec<Arc<str>> = self.units.iter().map(|_| CODE_UNIT.into()).collect();
        for rule in self.rules.iter().filter(|rule| rule.otherwise == Otherwise::Reject) {
            if !codes.contains(&rule.id) {
                codes.push(Arc::clone(&rule.id));
            }
        }
        codes
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        self.rules.iter_mut().filter_map(|rule| rule.check.state()).collect()
    }
}

/// Rejects the living rows among `failures` with the code of expressions, and returns who is left.
fn refuse_failures(batch: &KeyedBatch, alive: &BooleanBuffer, failures: Vec<Failure>, out: &mut Emitter) -> BooleanBuffer {
    let failures: Vec<Failure> = failures.into_iter().filter(|f| alive.value(f.row as usize)).collect();
    reject_failures(batch, &failures, out);
    without(alive, &failures.iter().map(|f| f.row).collect::<Vec<_>>())
}

fn without(alive: &BooleanBuffer, rows: &[u32]) -> BooleanBuffer {
    let mut left: Vec<bool> = alive.iter().collect();
    rows.iter().for_each(|row| left[*row as usize] = false);
    BooleanBuffer::from(left)
}
