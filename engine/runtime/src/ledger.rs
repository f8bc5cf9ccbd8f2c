//! The conservation account of a partition: what became of every reading received.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Input and sink totals as a function of position.
///
/// `received = settled + dead_lettered + dropped + deduplicated` at every turn's end; what a sink's mark has not passed yet
/// is reported as in flight instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Readings received; an undecodable payload counts as one.
    pub received: u64,
    /// Readings that passed ingress and validation.
    pub settled: u64,
    /// Readings sent to a dead letter, by code.
    pub dead_lettered: BTreeMap<Arc<str>, u64>,
    /// Readings removed on purpose, by reason.
    pub dropped: BTreeMap<Arc<str>, u64>,
    /// Readings known already.
    pub deduplicated: u64,
    /// Rows handed to each sink, by number of the sink.
    pub offered: Vec<u64>,
}

impl Totals {
    /// Totals for a graph with `sinks` sinks.
    #[must_use]
    pub fn new(sinks: usize) -> Self {
        Self { offered: vec![0; sinks], ..Self::default() }
    }

    /// Counts dead letters.
    pub fn dead_letter(&mut self, code: &str, rows: u64) {
        add(&mut self.dead_lettered, code, rows);
    }

    /// Counts rows removed on purpose.
    pub fn drop_rows(&mut self, reason: &str, rows: u64) {
        add(&mut self.dropped, reason, rows);
    }

    /// Readings that have an end.
    #[must_use]
    pub fn accounted(&self) -> u64 {
        self.settled + self.dead_lettered.values().sum::<u64>() + self.dropped.values().sum::<u64>() + self.deduplicated
    }

    /// Adds another partition's totals.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.settled += other.settled;
        self.deduplicated += other.deduplicated;
        other.dead_lettered.iter().for_each(|(code, n)| add(&mut self.dead_lettered, code, *n));
        other.dropped.iter().for_each(|(reason, n)| add(&mut self.dropped, reason, *n));
        self.offered.resize(self.offered.len().max(other.offered.len()), 0);
        self.offered.iter_mut().zip(&other.offered).for_each(|(a, b)| *a += b);
    }
}

fn add(map: &mut BTreeMap<Arc<str>, u64>, key: &str, rows: u64) {
    if let Some(count) = map.get_mut(key) {
        *count += rows;
    } else {
        map.insert(key.into(), rows);
    }
}

/// The account of a pipeline as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Readings received.
    pub received: u64,
    /// Readings every sink's mark has passed.
    pub settled: u64,
    /// Rows made durable, by sink (dead letters apart).
    pub delivered: BTreeMap<Arc<str>, u64>,
    /// Rows a sink's service refused, by sink; absent when there are none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<Arc<str>, u64>,
    /// Readings sent to a dead letter, by code.
    pub dead_lettered: BTreeMap<Arc<str>, u64>,
    /// Readings removed on purpose, by reason.
    pub dropped: BTreeMap<Arc<str>, u64>,
    /// Readings known already.
    pub deduplicated: u64,
    /// Readings some sink's mark has not passed yet.
    pub in_flight: u64,
    /// True when nothing is missing and nothing counted twice.
    pub balanced: bool,
}

/// What the sink side knows of one sink.
#[derive(Clone, Debug, Default)]
pub struct SinkTotals {
    /// Name of the sink.
    pub name: Arc<str>,
    /// True for dead letters.
    pub dead_letter: bool,
    /// Rows made durable.
    pub delivered: u64,
    /// Rows refused by the service.
    pub refused: u64,
    /// Rows waiting or being written.
    pub in_flight: u64,
}

impl Ledger {
    /// Joins `now` (all turns so far) and `settled` (turns every sink's mark has passed) with the sinks' own counts.
    #[must_use]
    pub fn new(now: &Totals, settled: &Totals, sinks: &[SinkTotals]) -> Self {
        let inputs_balance = now.received == now.accounted() && settled.received == settled.accounted();
        let sinks_balance =
            sinks.iter().zip(&now.offered).all(|(sink, offered)| sink.delivered + sink.refused + sink.in_flight == *offered);
        let named = |count: fn(&SinkTotals) -> u64| sinks.iter().filter(|s| !s.dead_letter).map(move |s| (Arc::clone(&s.name), count(s)));
        Self {
            received: now.received,
            settled: settled.settled,
            delivered: named(|s| s.delivered).collect(),
            refused: named(|s| s.refused).filter(|(_, n)| *n > 0).collect(),
            dead_lettered: settled.dead_lettered.clone(),
            dropped: settled.dropped.clone(),
            deduplicated: settled.deduplicated,
            in_flight: now.received - settled.received,
            balanced: inputs_balance && sinks_balance,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_reading_or_row_unbalances() {
        let mut totals = Totals { received: 5, settled: 3, offered: vec![3], ..Totals::default() };
        totals.dead_letter("parse", 2);
        let mut sink = SinkTotals { name: "out".into(), delivered: 3, ..SinkTotals::default() };
        assert!(Ledger::new(&totals, &totals, &[sink.clone()]).balanced);
        sink.delivered = 2;
        assert!(!Ledger::new(&totals, &totals, &[sink.clone()]).balanced, "a row vanished on the way to the sink");
        sink.delivered = 3;
        totals.settled = 2;
        assert!(!Ledger::new(&totals, &totals, &[sink]).balanced, "a reading vanished inside");
    }

    #[test]
    fn what_a_mark_has_not_passed_is_in_flight() {
        let now = Totals { received: 5, settled: 5, offered: vec![5], ..Totals::default() };
        let settled = Totals { received: 2, settled: 2, offered: vec![2], ..Totals::default() };
        let sink = SinkTotals { name: "out".into(), delivered: 2, in_flight: 3, ..SinkTotals::default() };
        let ledger = Ledger::new(&now, &settled, &[sink]);
        assert_eq!((ledger.settled, ledger.in_flight, ledger.balanced), (2, 3, true));
    }
}
