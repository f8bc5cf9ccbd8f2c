//! What an operator hands on in one call, and the account of every row it was given.

use std::borrow::Cow;

use crate::KeyedBatch;

/// Node account: `received = forwarded + absorbed + filtered + rejected + late + deduplicated` and `sent = forwarded + emitted`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// Rows given to the node.
    pub received: u64,
    /// Input rows sent on (changed or not).
    pub forwarded: u64,
    /// Input rows that went into state and left nothing behind.
    pub absorbed: u64,
    /// Input rows removed by a condition.
    pub filtered: u64,
    /// Input rows sent to the `rejected` port.
    pub rejected: u64,
    /// Input rows sent to the `late` port.
    pub late: u64,
    /// Input rows known already.
    pub deduplicated: u64,
    /// New rows made by the node.
    pub emitted: u64,
}

impl NodeCounts {
    /// True when every received row has exactly one disposition.
    #[must_use]
    pub fn balanced(&self) -> bool {
        self.received == self.forwarded + self.absorbed + self.filtered + self.rejected + self.late + self.deduplicated
    }

    /// Adds `other`, field by field.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.forwarded += other.forwarded;
        self.absorbed += other.absorbed;
        self.filtered += other.filtered;
        self.rejected += other.rejected;
        self.late += other.late;
        self.deduplicated += other.deduplicated;
        self.emitted += other.emitted;
    }
}

/// Rows of one batch refused by one rule. The runtime turns them into dead letters with their payload.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// The batch the rows lie in.
    pub batch: KeyedBatch,
    /// Row numbers in that batch.
    pub rows: Vec<u32>,
    /// The rule's id.
    pub code: Cow<'static, str>,
    /// What is wrong, for a person.
    pub message: String,
}

/// Collects the output of one operator call. Ports are numbered as in `Operator::outputs`.
#[derive(Debug, Default)]
pub struct Emitter {
    sent: Vec<(usize, KeyedBatch)>,
    rejected: Vec<Rejected>,
    counts: NodeCounts,
}

impl Emitter {
    /// Sends input rows on.
    pub fn forward(&mut self, port: usize, batch: KeyedBatch) {
        self.counts.forwarded += batch.len() as u64;
        self.push(port, batch);
    }

    /// Sends rows that the node made.
    pub fn emit(&mut self, port: usize, batch: KeyedBatch) {
        self.counts.emitted += batch.len() as u64;
        self.push(port, batch);
    }

    /// Sends input rows that came too late to the `late` port.
    pub fn late(&mut self, port: usize, batch: KeyedBatch) {
        self.counts.late += batch.len() as u64;
        self.push(port, batch);
    }

    /// Counts input rows that went into state.
    pub fn absorb(&mut self, rows: usize) {
        self.counts.absorbed += rows as u64;
    }

    /// Counts input rows removed by a condition.
    pub fn filter(&mut self, rows: usize) {
        self.counts.filtered += rows as u64;
    }

    /// Counts input rows known already.
    pub fn deduplicate(&mut self, rows: usize) {
        self.counts.deduplicated += rows as u64;
    }

    /// Refuses input rows: they leave by the `rejected` port with the rule's id as code.
    pub fn reject(&mut self, batch: &KeyedBatch, rows: Vec<u32>, code: impl Into<Cow<'static, str>>, message: impl Into<String>) {
        if rows.is_empty() {
            return;
        }
        self.counts.rejected += rows.len() as u64;
        self.rejected.push(Rejected { batch: batch.clone(), rows, code: code.into(), message: message.into() });
    }

    fn push(&mut self, port: usize, batch: KeyedBatch) {
        if !batch.is_empty() {
            self.sent.push((port, batch));
        }
    }

    /// Takes what was collected; the emitter is empty again. `received` is the number of rows the operator was given.
    pub fn finish(&mut self, received: usize) -> (Vec<(usize, KeyedBatch)>, Vec<Rejected>, NodeCounts) {
        let mut counts = std::mem::take(&mut self.counts);
        counts.received = received as u64;
        (std::mem::take(&mut self.sent), std::mem::take(&mut self.rejected), counts)
    }
}
