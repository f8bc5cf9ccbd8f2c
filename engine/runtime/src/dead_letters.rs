//! Rejected rows and undecodable payloads as dead letters with their keys, ready for the graph.

use std::collections::HashSet;

use fieldstream_engine_api::{KeyedBatch, Keys, NO_SLOT, Rejected};
use fieldstream_schemas::records::{RefusedRows, Refuser, dead_letters_of_rejects, dead_letters_of_rows};
use fieldstream_schemas::{PayloadBlock, Position, Reject};

/// Why building cannot fail: batches of dead letters are limited to 2 GiB, and a turn's payloads by the queue's budget.
const BOUNDED: &str = "a turn's payloads are far below 2 GiB";

/// Dead letters of undecodable payloads.
pub(crate) fn of_payloads(refuser: Refuser<'_>, rejects: &[Reject]) -> KeyedBatch {
    let mut keys = Keys::with_capacity(rejects.len());
    rejects.iter().for_each(|reject| keys.push(NO_SLOT, NO_SLOT, reject.position));
    let rows = dead_letters_of_rejects(refuser, rejects).unwrap_or_else(|_| unreachable!("{BOUNDED}"));
    KeyedBatch::new(rows, keys)
}

/// The payloads of a turn, where their bytes are still there.
#[derive(Clone, Copy)]
pub(crate) struct TurnPayloads<'a> {
    pub(crate) block: Option<&'a PayloadBlock>,
    /// Offsets of payloads that hold several rows: redriving their bytes would bring their good rows again.
    pub(crate) several: &'a HashSet<u64>,
}

/// Dead letters of rows that a node rejected. The payload is what the row came in, or the row as JSON where the bytes are gone
/// or hold other rows too.
pub(crate) fn of_rows(refuser: Refuser<'_>, rejected: &Rejected, payloads: TurnPayloads<'_>) -> KeyedBatch {
    let keys = &rejected.batch.keys;
    let refused = RefusedRows {
        batch: &rejected.batch.rows,
        rows: &rejected.rows,
        positions: &keys.position,
        code: &rejected.code,
        message: &rejected.message,
    };
    let rows = dead_letters_of_rows(refuser, refused, |position| payloads.bytes(position));
    let rows = rows.unwrap_or_else(|_| unreachable!("{BOUNDED}"));
    KeyedBatch::new(rows, keys.take(rejected.rows.iter().map(|r| *r as usize)))
}

impl TurnPayloads<'_> {
    /// Only what came in the log has bytes: a tick's emission has none.
    fn bytes(&self, position: Position) -> Option<bytes::Bytes> {
        let alone = position.tick == 0 && !self.several.contains(&position.offset);
        self.block.filter(|_| alone)?.at_offset(position.offset)
    }
}
