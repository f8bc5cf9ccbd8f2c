//! States that were left out at a restore, on a person's word. What lies on disk of passivated devices still has their columns.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which states were left out, and when. Time is counted in losses: what was written before a state's loss is void, what the
/// same operator writes later, should it come back, is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Number of restores that left something out.
    pub(crate) count: u32,
    /// `operator/state` to the count at its newest loss.
    columns: BTreeMap<String, u32>,
}

impl Losses {
    /// True when nothing was ever left out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// These states are left out at one restore.
    pub(crate) fn note(&mut self, states: impl Iterator<Item = String>) {
        self.count += 1;
        self.columns.extend(states.map(|state| (state, self.count)));
    }

    /// True when what was written of `state` at `count` is void.
    pub(crate) fn voids(&self, state: &str, count: u32) -> bool {
        self.columns.get(state).is_some_and(|lost| count < *lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_a_loss_is_void_and_what_came_after_is_not() {
        let mut losses = Losses::default();
        assert!(losses.is_empty() && !losses.voids("minute/0", 0));
        losses.note(["minute/0".to_owned()].into_iter());
        losses.note(["other/0".to_owned()].into_iter());
        assert!(losses.voids("minute/0", 0) && !losses.voids("minute/0", 1), "the operator came back before the second loss");
        assert!(losses.voids("other/0", 1) && !losses.voids("other/0", 2));
        assert!(!losses.voids("never/0", 0));
    }
}
