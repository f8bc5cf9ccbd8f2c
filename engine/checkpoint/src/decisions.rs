//! Decisions: what came from outside the log and changed a result, numbered per partition, durable before its effects leave.
//!
//! A decision lies at `decisions/<pipeline>/<log>/<partition>/<generation>-<number>`. A new owner writes an adoption record
//! before its first decision; it names the checkpoint and the first decision number that it does *not* take over. What an
//! older generation wrote at or after that number, before or after the record, is void: an old owner that still believes in
//! itself can write, but nobody will read it.

use fieldstream_engine_api::{Generation, Position};
use serde::{Deserialize, Serialize};

use crate::CheckpointId;

/// One decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Where in the partition it takes effect.
    pub position: Position,
    /// What it is, such as `quarantine`, `tick`, `plan`.
    pub kind: String,
    /// What it says.
    pub payload: serde_json::Value,
}

/// A decision as stored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct DecisionRecord {
    pub(crate) number: u64,
    pub(crate) offset: u64,
    pub(crate) row: u32,
    pub(crate) tick: u32,
    pub(crate) kind: String,
    pub(crate) payload: serde_json::Value,
}

impl DecisionRecord {
    pub(crate) fn new(number: u64, decision: &Decision) -> Self {
        let Position { offset, row, tick } = decision.position;
        Self { number, offset, row, tick, kind: decision.kind.clone(), payload: decision.payload.clone() }
    }

    pub(crate) fn into_decision(self) -> Decision {
        let position = Position { offset: self.offset, row: self.row, tick: self.tick };
        Decision { position, kind: self.kind, payload: self.payload }
    }
}

/// What a new owner takes over from the generations before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Adoption {
    pub(crate) generation: Generation,
    /// The owner whose adoption it builds on. One that is not in this chain never was an owner: it was overtaken before it
    /// could write its record.
    pub(crate) previous: Option<Generation>,
    /// The checkpoint it starts from; `None`: from nothing.
    pub(crate) checkpoint: Option<CheckpointId>,
    /// Decisions of older generations below this number are accepted.
    pub(crate) decisions_below: u64,
}

/// The owners that count, newest first: the newest adoption, the one it builds on, and so on. All that a new owner takes over must be
/// seen with one and the same lineage: an owner that was overtaken may still write its record meanwhile.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lineage(Vec<Adoption>);

impl Lineage {
    pub(crate) fn of(mut adoptions: Vec<Adoption>) -> Self {
        adoptions.sort_by_key(|a| std::cmp::Reverse(a.generation));
        let mut next = adoptions.first().map(|a| a.generation);
        let mut chain = Vec::with_capacity(adoptions.len());
        for adoption in adoptions {
            if next == Some(adoption.generation) {
                next = adoption.previous;
                chain.push(adoption);
            }
        }
        Self(chain)
    }

    /// The newest owner that wrote an adoption record.
    pub(crate) fn newest(&self) -> Option<Generation> {
        self.0.first().map(|a| a.generation)
    }

    fn owned(&self, generation: Generation) -> bool {
        self.0.iter().any(|a| a.generation == generation)
    }

    /// True when decision `number` of `generation` was accepted by every later owner.
    pub(crate) fn decision_counts(&self, generation: Generation, number: u64) -> bool {
        self.owned(generation) && self.0.iter().all(|a| a.generation <= generation || number < a.decisions_below)
    }

    /// True when checkpoint `id` was accepted by every later owner, or is older than the one accepted.
    pub(crate) fn checkpoint_counts(&self, id: CheckpointId) -> bool {
        let accepted = |a: &Adoption| a.generation <= id.generation || a.checkpoint.is_some_and(|accepted| id <= accepted);
        self.owned(id.generation) && self.0.iter().all(accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adoption(generation: u64, previous: u64, checkpoint: Option<(u64, u64)>, decisions_below: u64) -> Adoption {
        let checkpoint = checkpoint.map(|(g, number)| CheckpointId { generation: Generation(g), number });
        let previous = (previous > 0).then_some(Generation(previous));
        Adoption { generation: Generation(generation), previous, checkpoint, decisions_below }
    }

    #[test]
    fn what_an_old_owner_writes_after_it_was_adopted_is_void() {
        let lineage = Lineage::of(vec![
            adoption(1, 0, None, 0),
            adoption(2, 1, Some((1, 7)), 5),
            adoption(4, 2, Some((2, 9)), 6),
            // Written by an owner that generation 4 had overtaken: it must not void what 4 accepted from 2.
            adoption(3, 2, Some((1, 1)), 2),
        ]);
        for (generation, number, counts) in [(1, 4, true), (1, 5, false), (2, 5, true), (2, 6, false), (4, 6, true), (3, 5, false)] {
            assert_eq!(lineage.decision_counts(Generation(generation), number), counts, "{generation}-{number}");
        }
        for (generation, number, counts) in
            [(1, 7, true), (1, 8, false), (2, 9, true), (2, 10, false), (1, 6, true), (4, 1, true), (3, 1, false)]
        {
            let id = CheckpointId { generation: Generation(generation), number };
            assert_eq!(lineage.checkpoint_counts(id), counts, "{id}");
        }
    }

    #[test]
    fn a_fresh_start_voids_everything_before_it() {
        let lineage = Lineage::of(vec![adoption(1, 0, None, 0), adoption(2, 1, None, 0)]);
        assert!(!lineage.checkpoint_counts(CheckpointId { generation: Generation(1), number: 3 }));
        assert!(!lineage.decision_counts(Generation(1), 0));
    }
}
