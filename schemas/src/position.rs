//! Where in a partition something happened.

/// The place in a partition that a row, or an emission, belongs to.
///
/// Ordered by `offset`, then `row`, then `tick`. A payload may hold many rows, which `row` numbers from 0; `tick` is 0 for
/// what a row causes and counts from 1 for what ticks after that row cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Offset of the payload in its log: Kafka offset, journal record number, or byte offset in a file.
    pub offset: u64,
    /// Number of the row inside its payload.
    pub row: u32,
    /// 0 for a row, the number of the tick after it otherwise.
    pub tick: u32,
}

impl Position {
    /// The position of row `row` of the payload at `offset`.
    #[must_use]
    pub const fn new(offset: u64, row: u32) -> Self {
        Self { offset, row, tick: 0 }
    }
}
