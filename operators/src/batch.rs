//! `batch`: how many rows travel together. Invisible in results: the runtime gathers rows into turns by these numbers, the
//! operator only cuts what is larger.

use fieldstream_engine_api::{
    BuildContext, Built, ConfigError, ConfigErrors, Edge, Emitter, KeyedBatch, Operator, OperatorKind, Output, SlotDirectory, Space,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::options::{self, TimeSpan};

/// Its line in the catalogue.
pub const KIND: OperatorKind = OperatorKind {
    name: "batch",
    about: "Gathers rows so that they travel together; results stay the same.",
    rejects: false,
    schema: options::schema::<BatchConfig>,
    build,
};

/// Options of `batch`. The planner reads them into the runtime's turn limits too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Most rows in a batch, at least 1.
    pub max_rows: usize,
    /// Most bytes in a batch, about; at least one row travels.
    pub max_bytes: usize,
    /// How long the first row waits for others, by the clock of the process.
    pub max_wait: TimeSpan,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_rows: 8192, max_bytes: 8 << 20, max_wait: TimeSpan(std::time::Duration::from_millis(50)) }
    }
}

impl BatchConfig {
    /// Reads and checks the options of a `batch` node.
    ///
    /// # Errors
    /// What does not fit, and limits of zero.
    pub fn parse(value: &Value) -> Result<Self, ConfigErrors> {
        let config: Self = options::parse(value)?;
        let zero = [("/max_rows", config.max_rows), ("/max_bytes", config.max_bytes)].into_iter().filter(|(_, limit)| *limit == 0);
        let errors: ConfigErrors = zero.map(|(path, _)| ConfigError::new(path, "must be at least 1")).collect();
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

struct Batch {
    config: BatchConfig,
    outputs: [Output; 1],
}

fn build(value: &Value, input: &Edge, _context: &BuildContext) -> Built<Box<dyn Operator>> {
    let config = BatchConfig::parse(value)?;
    Ok(Box::new(Batch { config, outputs: [Output { name: "".into(), edge: input.clone() }] }))
}

impl Operator for Batch {
    fn space(&self) -> Space {
        Space::Stateless
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _slots: &SlotDirectory, out: &mut Emitter) {
        let bytes = batch.rows.get_array_memory_size();
        let parts = batch.len().div_ceil(self.config.max_rows).max(bytes.div_ceil(self.config.max_bytes)).max(1);
        let size = batch.len().div_ceil(parts).max(1);
        if size >= batch.len() {
            out.forward(0, batch.clone());
            return;
        }
        for start in (0..batch.len()).step_by(size) {
            out.forward(0, batch.slice(start, size.min(batch.len() - start)));
        }
    }
}

#[cfg(test)]
mod tests {
    use fieldstream_engine_api::{Keys, Position};
    use fieldstream_testkit::{context, readings_edge, text::readings};
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_larger_is_cut_evenly() {
        let mut batch = build(&json!({"max_rows": 2}), &readings_edge(), &context()).unwrap();
        let sizes = |batch: &mut Box<dyn Operator>, rows: u64| {
            let picture: String = (0..rows).map(|n| format!("\n a {n} 1")).collect();
            let mut keys = Keys::default();
            (0..rows).for_each(|n| keys.push(0, 0, Position::new(n, 0)));
            let mut out = Emitter::default();
            batch.on_batch(&KeyedBatch::new(readings(&format!("device ts value{picture}")), keys), &SlotDirectory::default(), &mut out);
            let (sent, _, counts) = out.finish(rows as usize);
            assert!(counts.balanced());
            let firsts: Vec<u64> = sent.iter().map(|(_, b)| b.keys.position[0].offset).collect();
            assert!(firsts.is_sorted());
            sent.iter().map(|(_, b)| b.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&mut batch, 2), [2]);
        assert_eq!(sizes(&mut batch, 5), [2, 2, 1]);
    }

    #[test]
    fn options_are_checked() {
        assert_eq!(BatchConfig::parse(&Value::Null).unwrap(), BatchConfig::default());
        let config = BatchConfig::parse(&json!({"max_rows": 500, "max_wait": "1s"})).unwrap();
        assert_eq!((config.max_rows, config.max_wait.us()), (500, 1_000_000));
        let errors = BatchConfig::parse(&json!({"max_rows": 0, "max_bytes": 0})).unwrap_err();
        assert_eq!(errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["/max_rows", "/max_bytes"]);
    }
}
