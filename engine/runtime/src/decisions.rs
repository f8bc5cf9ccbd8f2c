//! Kinds of decisions: what from outside the log may change a result, and is therefore recorded before its effects leave.

use fieldstream_checkpoint::Decision;
use fieldstream_schemas::Position;

/// A finite input has ended: everything closes.
pub const END_OF_INPUT: &str = "end_of_input";
/// A silent partition's time moves by the wall clock. Payload: `now_us`.
pub const TICK: &str = "tick";
/// The row at the decision's position made an operator panic: it goes to the dead letter.
pub const QUARANTINE: &str = "quarantine";

fn at(offset: u64) -> Position {
    Position { offset, row: 0, tick: 1 }
}

/// The input ends at `offset`.
#[must_use]
pub fn end_of_input(offset: u64) -> Decision {
    Decision { position: at(offset), kind: END_OF_INPUT.to_owned(), payload: serde_json::Value::Null }
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
