//! Where decoded rows and rejects of a block are gathered.

use bytes::Bytes;

use super::parts::{Fault, Surroundings};
use super::rows::Columns;
use crate::{Position, Reject};

/// One payload of a block and what is known around it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload<'a> {
    /// The bytes of the whole block.
    pub(super) data: &'a [u8],
    /// Where the payload lies in `data`; both inside of it.
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) offset: u64,
    /// True when the payload is known to be UTF-8.
    pub(super) utf8: bool,
    pub(super) around: Surroundings<'a>,
}

impl<'a> Payload<'a> {
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }
}

/// Positions of rows, and rejects.
#[derive(Debug)]
pub(super) struct Accounts<'a> {
    pub(super) data: &'a Bytes,
    pub(super) positions: Vec<Position>,
    pub(super) rejects: Vec<Reject>,
    /// Rows of the current payload so far, rejected ones included.
    pub(super) row: u32,
}

impl Accounts<'_> {
    /// Numbers one reading that became a row, or was refused; its text is `from..to` of the block.
    #[inline]
    pub(super) fn settle(&mut self, payload: &Payload<'_>, outcome: Result<(), Fault>, from: usize, to: usize) {
        let position = Position::new(payload.offset, self.row);
        self.row += 1;
        match outcome {
            Ok(()) => self.positions.push(position),
            Err(fault) => {
                let range = from.min(self.data.len())..to.clamp(from.min(self.data.len()), self.data.len());
                let payload = self.data.slice(range);
                self.rejects.push(Reject { position, code: fault.code(), message: fault.message(), payload });
            }
        }
    }
}

/// What a block becomes.
#[derive(Debug)]
pub(super) struct Output<'a> {
    pub(super) columns: &'a mut Columns,
    pub(super) accounts: Accounts<'a>,
}

impl Output<'_> {
    /// Refuses `from..to` of the block.
    pub(super) fn reject(&mut self, payload: &Payload<'_>, fault: Fault, from: usize, to: usize) {
        self.accounts.settle(payload, Err(fault), from, to);
    }
}
