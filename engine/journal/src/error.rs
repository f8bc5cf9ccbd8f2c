//! What can go wrong with the journal, by what has to be done about it.

/// Why the journal refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk budget is used up. Nothing was written and nothing is lost: do not acknowledge the producer, wait
    /// with [`crate::Journal::wait_for_room`], and append again.
    #[error("the journal is full ({used} of {budget} bytes): raise the budget, or see which pipeline does not acknowledge")]
    Full {
        /// Bytes on disk.
        used: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// The disk is full, or the process has no file handle left. Nothing was written and nothing is lost, as with [`Self::Full`].
    #[error("the journal cannot be written for now: {0}: make room, it goes on by itself")]
    Short(String),
    /// One append that no budget could hold.
    #[error("an append of {bytes} bytes is larger than the journal takes ({limit} bytes): send smaller blocks")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The disk failed. What is in memory and on disk may differ, so nothing more is accepted until the process restarts.
    #[error("the journal failed and accepts nothing more until a restart: {0}")]
    Failed(String),
    /// The journal cannot be opened.
    #[error("cannot open the journal {folder}: {cause}")]
    Open {
        /// Its folder.
        folder: String,
        /// Why.
        cause: String,
    },
    /// Rows that are no readings. A defect of the caller.
    #[error("only readings can be journaled: {0}")]
    Schema(String),
}
