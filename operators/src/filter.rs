//! `filter`: keeps the rows for which a condition is true.

use fieldstream_engine_api::{
    BuildContext, Built, ConfigError, Edge, Emitter, KeyedBatch, Operator, OperatorKind, Output, SlotDirectory, Space,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::expr::{Expr, keep, reject_failures};
use crate::options;

/// Its line in the catalogue.
pub const KIND: OperatorKind = OperatorKind {
    name: "filter",
    about: "Keeps the rows for which a condition is true.",
    rejects: true,
    schema: options::schema::<FilterOptions>,
    build,
};

/// Options of `filter`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterOptions {
    /// SQL condition over the row's columns. Rows for which it is false or null are filtered; rows for which it cannot be
    /// evaluated are rejected with code `expression`.
    #[serde(rename = "where")]
    pub condition: String,
}

struct Filter {
    condition: Expr,
    outputs: [Output; 1],
}

fn build(value: &Value, input: &Edge, _context: &BuildContext) -> Built<Box<dyn Operator>> {
    let options: FilterOptions = options::parse(value)?;
    let condition = Expr::predicate(&options.condition, &input.schema).map_err(|e| vec![ConfigError::new("/where", e)])?;
    Ok(Box::new(Filter { condition, outputs: [Output { name: "".into(), edge: input.clone() }] }))
}

impl Operator for Filter {
    fn space(&self) -> Space {
        Space::Stateless
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _slots: &SlotDirectory, out: &mut Emitter) {
        let (mask, failures) = self.condition.mask(&batch.rows);
        out.filter(batch.len() - mask.true_count() - failures.len());
        out.forward(0, keep(batch, &mask));
        reject_failures(batch, &failures, out);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use fieldstream_testkit::{Rig, context, readings_edge};
    use serde_json::json;

    use super::*;

    #[test]
    fn true_stays_false_and_null_go_and_failures_are_rejected() {
        let options = json!({"where": "value > 1 AND CAST(text AS INT) > 0"});
        let mut rig = Rig::new(build(&options, &readings_edge(), &context()).unwrap());
        let turn = rig.feed("device ts value text\n a 0 2 7\n a 1 0 x\n b 2 - 7\n b 3 2 x\n b 4 2 -");
        expect![[r#"
            [out]
            device_id  ts  value  text
            a          0   2      7
            [rejected] offset 3 expression: Cast error: Cannot cast string 'x' to value of Int32 type
            counts: received 5 forwarded 1 filtered 3 rejected 1
        "#]]
        .assert_eq(&turn.picture(&["device_id", "ts", "value", "text"]));
    }

    #[test]
    fn a_batch_that_passes_whole_is_not_copied() {
        let mut filter = build(&json!({"where": "true"}), &readings_edge(), &context()).unwrap();
        let rows = fieldstream_testkit::text::readings("device ts value\n a 0 2");
        let mut keys = fieldstream_engine_api::Keys::default();
        keys.push(0, 0, fieldstream_engine_api::Position::default());
        let mut out = Emitter::default();
        filter.on_batch(&KeyedBatch::new(rows.clone(), keys), &SlotDirectory::default(), &mut out);
        let (sent, _, _) = out.finish(1);
        assert!(std::sync::Arc::ptr_eq(sent[0].1.rows.column(5), rows.column(5)));
    }

    #[test]
    fn mistakes_have_a_place() {
        let told = |options| build(&options, &readings_edge(), &context()).err().unwrap()[0].to_string();
        assert_eq!(told(json!({"where": "valeu > 1"})), "/where: there is no column `valeu` (did you mean `value`?)");
        assert_eq!(told(json!({"wher": "value > 1"})), "/wher: unknown field `wher` (did you mean `where`?)");
        assert_eq!(told(json!({})), "missing field `where`");
    }
}
