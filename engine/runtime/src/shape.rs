//! What a keyed state looks like in a checkpoint: by it a plan can say beforehand what a restore will say.

use std::collections::BTreeMap;

use arrow::datatypes::Schema;
use fieldstream_checkpoint::StateTable;
use fieldstream_engine_api::{KeyedState, Space};

/// The form of a state. A saved state is taken over by one of the same form.
#[derive(Clone, Debug, PartialEq)]
pub struct StateShape {
    /// Whose state.
    pub space: Space,
    /// Number of the column layout.
    pub layout: u32,
    /// Columns as `name: type`, the first is `slot`.
    pub columns: Vec<String>,
    /// What the values mean where columns do not tell (metadata of the snapshot's schema), such as the size of windows.
    pub meaning: BTreeMap<String, String>,
}

impl StateShape {
    /// The form of what `state` saves.
    #[must_use]
    pub fn of(state: &dyn KeyedState) -> Self {
        Self::new(state.space(), state.layout(), &state.snapshot(&[]).schema())
    }

    pub(crate) fn saved(table: &StateTable) -> Self {
        Self::new(table.space, table.layout, &table.rows.schema())
    }

    fn new(space: Space, layout: u32, schema: &Schema) -> Self {
        let columns = schema.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect();
        Self { space, layout, columns, meaning: schema.metadata().clone().into_iter().collect() }
    }

    /// `device` or `series`.
    #[must_use]
    pub fn per(&self) -> &'static str {
        match self.space {
            Space::Series => "series",
            Space::Device | Space::Stateless => "device",
        }
    }

    /// Why state of this form cannot become state of the form `now`; `None` when it can.
    #[must_use]
    pub fn unfit_for(&self, now: &Self) -> Option<String> {
        if self.space != now.space {
            return Some(format!("it was kept per {}, and is kept per {} now", self.per(), now.per()));
        }
        if self.layout != now.layout {
            return Some(format!("it has layout {}, this program reads layout {}", self.layout, now.layout));
        }
        if self.columns != now.columns {
            let gone = difference(&self.columns, &now.columns).map(|column| format!("-{column}"));
            let new = difference(&now.columns, &self.columns).map(|column| format!("+{column}"));
            let changes: Vec<String> = gone.chain(new).collect();
            let changes = if changes.is_empty() { "their order".to_owned() } else { changes.join(", ") };
            return Some(format!("it has other columns ({changes})"));
        }
        // Checkpoints from before a state said so say nothing.
        let other = self.meaning.iter().find(|(what, value)| now.meaning.get(*what) != Some(value));
        other.map(|(what, was)| match now.meaning.get(what) {
            Some(is) => format!("{what}: {was} before, {is} now"),
            None => format!("{what}: {was} before"),
        })
    }
}

fn difference<'a>(of: &'a [String], without: &'a [String]) -> impl Iterator<Item = &'a String> {
    of.iter().filter(|column| !without.contains(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_of_another_form_says_why() {
        let columns = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let was = StateShape {
            space: Space::Series,
            layout: 1,
            columns: columns(&["slot: UInt32", "sum: Float64"]),
            meaning: BTreeMap::from([("size".to_owned(), "1m".to_owned())]),
        };
        assert_eq!(was.unfit_for(&was), None);
        let says = |now: StateShape| was.unfit_for(&now).unwrap_or_default();
        assert_eq!(says(StateShape { space: Space::Device, ..was.clone() }), "it was kept per series, and is kept per device now");
        assert_eq!(says(StateShape { layout: 2, ..was.clone() }), "it has layout 1, this program reads layout 2");
        let other = StateShape { columns: columns(&["slot: UInt32", "min: Float64"]), ..was.clone() };
        assert_eq!(says(other), "it has other columns (-sum: Float64, +min: Float64)");
        let other = StateShape { columns: columns(&["sum: Float64", "slot: UInt32"]), ..was.clone() };
        assert_eq!(says(other), "it has other columns (their order)");
        let other = StateShape { meaning: BTreeMap::from([("size".to_owned(), "5m".to_owned())]), ..was.clone() };
        assert_eq!(says(other), "size: 1m before, 5m now");
        let silent = StateShape { meaning: BTreeMap::new(), ..was.clone() };
        assert_eq!(silent.unfit_for(&was), None, "an older checkpoint");
    }
}
