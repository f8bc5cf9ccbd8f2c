//! `route`: sends each row by the first port whose condition is true.

use arrow::array::BooleanArray;
use arrow::buffer::BooleanBuffer;
use fieldstream_engine_api::{
    BuildContext, Built, ConfigError, ConfigErrors, Edge, Emitter, KeyedBatch, Operator, OperatorKind, Output, SlotDirectory, Space,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::expr::{Expr, Failure, keep, reject_failures};
use crate::options::{self, Named, pointer_to};

/// Its line in the catalogue.
pub const KIND: OperatorKind = OperatorKind {
    name: "route",
    about: "Sends each row by the first port whose condition is true.",
    rejects: true,
    schema: options::schema::<RouteOptions>,
    build,
};

/// Options of `route`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteOptions {
    /// Port names and their SQL conditions; a row leaves by the first whose condition is true. A row for which a condition
    /// before that cannot be evaluated is rejected with code `expression`.
    pub routes: Named,
    /// Port of the rows that match none; without it they are filtered.
    pub otherwise: Option<String>,
}

struct Route {
    conditions: Vec<Expr>,
    otherwise: bool,
    outputs: Vec<Output>,
}

fn build(value: &Value, input: &Edge, _context: &BuildContext) -> Built<Box<dyn Operator>> {
    let options: RouteOptions = options::parse(value)?;
    let mut errors = ConfigErrors::new();
    let mut conditions = Vec::new();
    if options.routes.0.is_empty() {
        errors.push(ConfigError::new("/routes", "there is no route").hint("write `port: condition`"));
    }
    for (port, condition) in &options.routes.0 {
        let path = format!("/routes{}", pointer_to(port));
        errors.extend(check_port(port).map(|e| ConfigError::new(&path, e)));
        match Expr::predicate(condition, &input.schema) {
            Ok(condition) => conditions.push(condition),
            Err(e) => errors.push(ConfigError::new(path, e)),
        }
    }
    if let Some(port) = &options.otherwise {
        let twice = options.routes.0.iter().any(|(name, _)| name == port).then(|| format!("`{port}` is a route already"));
        errors.extend(check_port(port).or(twice).map(|e| ConfigError::new("/otherwise", e)));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let names = options.routes.0.iter().map(|(name, _)| name).chain(&options.otherwise);
    let outputs = names.map(|name| Output { name: name.as_str().into(), edge: input.clone() }).collect();
    Ok(Box::new(Route { conditions, otherwise: options.otherwise.is_some(), outputs }))
}

/// What is wrong with a port name.
fn check_port(name: &str) -> Option<String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || !name.chars().all(legal) {
        return Some(format!("`{name}` is no port name; use letters, digits, `_` and `-`"));
    }
    (name == "rejected").then(|| "`rejected` is the port of refused rows; use another name".to_owned())
}

impl Operator for Route {
    fn space(&self) -> Space {
        Space::Stateless
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _slots: &SlotDirectory, out: &mut Emitter) {
        let mut open = BooleanBuffer::new_set(batch.len());
        let mut refused: Vec<Failure> = Vec::new();
        for (port, condition) in self.conditions.iter().enumerate() {
            let (mask, failures) = condition.mask(&batch.rows);
            let matched = mask.values() & &open;
            open = &open & &!&matched;
            let failures: Vec<Failure> = failures.into_iter().filter(|f| open.value(f.row as usize)).collect();
            if !failures.is_empty() {
                let mut evaluated = vec![true; batch.len()];
                failures.iter().for_each(|f| evaluated[f.row as usize] = false);
                open = &open & &BooleanBuffer::from(evaluated);
                refused.extend(failures);
            }
            out.forward(port, keep(batch, &BooleanArray::new(matched, None)));
        }
        if self.otherwise {
            out.forward(self.conditions.len(), keep(batch, &BooleanArray::new(open, None)));
        } else {
            out.filter(open.count_set_bits());
        }
        reject_failures(batch, &refused, out);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use fieldstream_testkit::{Rig, context, readings_edge};
    use serde_json::json;

    use super::*;

    fn feed(options: &Value) -> String {
        let mut rig = Rig::new(build(options, &readings_edge(), &context()).unwrap());
        rig.feed("device ts value text\n a 0 40 1\n b 1 -5 1\n c 2 10 1\n d 3 - 1\n e 4 10 x").picture(&["device_id", "value"])
    }

    #[test]
    fn the_first_match_wins_and_the_rest_is_filtered() {
        expect![[r#"
            [a_hot]
            device_id  value
            a          40
            [b_any]
            device_id  value
            b          -5
            counts: received 5 forwarded 2 filtered 3
        "#]]
        .assert_eq(&feed(&json!({"routes": {"a_hot": "value > 30", "b_any": "value > 20 OR value < 0"}})));
    }

    #[test]
    fn the_rest_has_a_port_and_failures_count_only_before_a_match() {
        expect![[r#"
            [a_mild]
            device_id  value
            c          10
            [rest]
            device_id  value
            a          40
            b          -5
            d          -
            [rejected] offset 4 expression: Cast error: Cannot cast string 'x' to value of Int32 type
            counts: received 5 forwarded 4 rejected 1
        "#]].assert_eq(&feed(&json!({"routes": {"a_mild": "value > 0 AND value < 20 AND device_id <> 'e'", "b_one": "CAST(text AS INT) = 2"}, "otherwise": "rest"})));
    }

    #[test]
    fn all_mistakes_are_told() {
        let options = json!({"routes": {"a b": "value > 1", "rejected": "valeu > 1"}, "otherwise": "a b"});
        let errors = build(&options, &readings_edge(), &context()).err().unwrap();
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        expect![[r#"
            /routes/a b: `a b` is no port name; use letters, digits, `_` and `-`
            /routes/rejected: `rejected` is the port of refused rows; use another name
            /routes/rejected: there is no column `valeu` (did you mean `value`?)
            /otherwise: `a b` is no port name; use letters, digits, `_` and `-`"#]]
        .assert_eq(&told.join("\n"));
    }
}
