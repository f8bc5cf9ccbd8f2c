//! Wire formats to rows and rejects.

use arrow::array::RecordBatch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Decoded, PayloadBlock, readings_schema};

/// The `decode:` section of a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DecodeConfig {}

/// Turns payload blocks of one source into rows and rejects. Keeps caches between blocks; results do not depend on them.
#[derive(Debug)]
pub struct Decoder {}

impl Decoder {
    /// A decoder for `config`.
    ///
    /// # Errors
    /// A JSON pointer into the configuration and what is wrong there.
    pub fn new(config: &DecodeConfig) -> Result<Self, (String, String)> {
        let _ = config;
        Ok(Self {})
    }

    /// Decodes all payloads of `block`. Never fails: what is no reading becomes a reject with its bytes.
    pub fn decode(&mut self, block: &PayloadBlock) -> Decoded {
        let _ = block;
        Decoded { rows: RecordBatch::new_empty(readings_schema()), positions: Vec::new(), rejects: Vec::new() }
    }
}
