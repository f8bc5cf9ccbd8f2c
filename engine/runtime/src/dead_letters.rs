//! Rejected rows and undecodable payloads as dead letters with their keys, ready for the graph.

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

/// Dead letters of rows that a node rejected. The payload is what the row came in, or the row as JSON where the bytes are gone.
pub(crate) fn of_rows(refuser: Refuser<'_>, rejected: &Rejected, block: Option<&PayloadBlock>) -> KeyedBatch {
    let keys = &rejected.batch.keys;
    let refused = RefusedRows {
        batch: &rejected.batch.rows,
        rows: &rejected.rows,
        positions: &keys.position,
        code: &rejected.code,
        message: &rejected.message,
    };
    let rows = dead_letters_of_rows(refuser, refused, |position| block.and_then(|b| payload_of(b, position)));
    let rows = rows.unwrap_or_else(|_| unreachable!("{BOUNDED}"));
    KeyedBatch::new(rows, keys.take(rejected.rows.iter().map(|r| *r as usize)))
}

/// Only what came in the log has bytes: a tick's emission has none. A payload of several rows is kept row by row as JSON, since
/// redriving its bytes would bring its good rows again.
fn payload_of(block: &PayloadBlock, position: Position) -> Option<bytes::Bytes> {
    (position.tick == 0 && position.row == 0).then(|| block.at_offset(position.offset)).flatten()
}
