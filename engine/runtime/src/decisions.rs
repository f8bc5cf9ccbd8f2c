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

/// From here on another plan holds. Payload: `from`, `to` (digests), `lost` (states that were left out). It explains results and
/// changes none by itself: who replays it has its own plan.
pub const PLAN: &str = "plan";

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

/// From `offset` on the plan is `to`, after `from`; `lost` names the states that had no place in it.
#[must_use]
pub fn plan(offset: u64, from: &str, to: &str, lost: &[String]) -> Decision {
    Decision { position: at(offset), kind: PLAN.to_owned(), payload: serde_json::json!({ "from": from, "to": to, "lost": lost }) }
}

/// True when `decision` says that the plan is `to`, and `lost` is what has no place in it.
#[must_use]
pub fn is_plan(decision: &Decision, to: &str, lost: &[String]) -> bool {
    let payload = &decision.payload;
    decision.kind == PLAN && payload.get("to") == Some(&to.into()) && payload.get("lost") == Some(&serde_json::json!(lost))
}

/// The plan that was in force when the last of `decisions` had been made, after a checkpoint of the plan `saved`.
#[must_use]
pub fn plan_in_force<'a>(saved: &'a str, decisions: &'a [Decision]) -> &'a str {
    let newest = decisions.iter().rev().find(|decision| decision.kind == PLAN);
    newest.and_then(|decision| decision.payload.get("to")?.as_str()).unwrap_or(saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_change_of_plan_is_in_force() {
        assert_eq!(plan_in_force("a", &[]), "a");
        assert_eq!(plan_in_force("a", &[tick(1, 2)]), "a");
        assert_eq!(plan_in_force("a", &[plan(1, "a", "b", &[]), tick(1, 2)]), "b");
        assert_eq!(plan_in_force("a", &[plan(1, "a", "b", &[]), plan(1, "b", "a", &[])]), "a");
        let lost = ["minute/0: gone".to_owned()];
        assert!(is_plan(&plan(1, "a", "b", &lost), "b", &lost) && !is_plan(&plan(1, "a", "b", &[]), "b", &lost));
    }
}
