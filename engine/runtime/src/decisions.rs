//! Kinds of decisions: what from outside the log may change a result, and is therefore recorded before its effects leave.

use fieldstream_checkpoint::Decision;
use fieldstream_schemas::Position;
use serde::{Deserialize, Serialize};

/// A finite input has ended: everything closes.
pub const END_OF_INPUT: &str = "end_of_input";
/// A silent partition's time moves by the wall clock. Payload: `now_us`.
pub const TICK: &str = "tick";
/// The row at the decision's position made an operator panic: it goes to the dead letter.
pub const QUARANTINE: &str = "quarantine";

/// What the log no longer holds is given up, because a person said so. Payload: a [`Gap`].
pub const GAP: &str = "gap";

/// What was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// First offset that cannot be read.
    pub from: u64,
    /// First offset that can.
    pub to: u64,
    /// Payloads given up, as far as they can be counted.
    pub payloads: u64,
    /// Logs that the pipeline had state for, when it goes on with another one, blank.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_logs: Vec<String>,
}

fn at(offset: u64) -> Position {
    Position { offset, row: 0, tick: 1 }
}

/// The input ends at `offset`.
#[must_use]
pub fn end_of_input(offset: u64) -> Decision {
    Decision { position: at(offset), kind: END_OF_INPUT.to_owned(), payload: serde_json::Value::Null }
}

/// A loss that a person has accepted.
#[must_use]
pub fn gap(gap: &Gap) -> Decision {
    // Plain numbers always serialise.
    Decision { position: at(gap.to), kind: GAP.to_owned(), payload: serde_json::to_value(gap).unwrap_or_default() }
}

/// The loss that a decision records, if it is of that kind.
#[must_use]
pub fn gap_of(decision: &Decision) -> Option<Gap> {
    (decision.kind == GAP).then(|| serde_json::from_value(decision.payload.clone()).ok())?
}

/// Nothing has come since `offset`, and it is `now_us`.
#[must_use]
pub fn tick(offset: u64, now_us: i64) -> Decision {
    Decision { position: at(offset), kind: TICK.to_owned(), payload: serde_json::json!({ "now_us": now_us }) }
}

/// The row at `position` is poison.
#[must_use]
pub fn quarantine(position: Position, node: &str, message: &str) -> Decision {
    Decision { position, kind: QUARANTINE.to_owned(), payload: serde_json::json!({ "node": node, "message": message }) }
}
