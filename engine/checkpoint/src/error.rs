//! What can go wrong with the store, by what has to be done about it.

use fieldstream_engine_api::Generation;

/// Why the checkpoint store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store could not be reached or refused; it may work later.
    #[error("{context}: {cause}")]
    Io {
        /// What was being done, with the key.
        context: String,
        /// The store's own words.
        cause: String,
    },
    /// The disk is full. Nothing was changed: the same can be tried again.
    #[error("{context}: {cause}; make room on the disk")]
    Full {
        /// What was being done, with the key.
        context: String,
        /// The system's own words.
        cause: String,
    },
    /// The key exists already: somebody else was first.
    #[error("{0} exists already and is never overwritten")]
    Exists(String),
    /// A file is not what was written: its checksum, length or form is wrong.
    #[error("{key} is damaged: {what}")]
    Damaged {
        /// The file.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// There are checkpoints, but none can be read. Starting from nothing would silently lose state.
    #[error(
        "none of {count} checkpoints of {partition} can be read; the newest: {newest}. Restore them from a backup, or start anew: `fieldstream state fsck --repair --accept-state-loss` moves them aside"
    )]
    NoneReadable {
        /// Whose they are.
        partition: String,
        /// How many there are.
        count: usize,
        /// What is wrong with the newest.
        newest: String,
    },
    /// A newer owner has claimed the partition: this one must stop.
    #[error("partition {partition} is owned by generation {owner}")]
    Fenced {
        /// The partition.
        partition: String,
        /// Its owner.
        owner: Generation,
    },
    /// The store does not give what the protocol needs.
    #[error("the checkpoint store {location} cannot be used: {what}")]
    Unsuitable {
        /// Where it is.
        location: String,
        /// What is missing.
        what: String,
    },
    /// Rows that do not fit Arrow's file format.
    #[error("cannot write {key} as an arrow file: {cause}")]
    Encode {
        /// The file.
        key: String,
        /// Arrow's own words.
        cause: String,
    },
}

impl StoreError {
    pub(crate) fn io(context: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Io { context: context.into(), cause: cause.to_string() }
    }

    /// A failed write after which nothing has changed.
    pub(crate) fn unwritten(context: impl Into<String>, cause: &std::io::Error) -> Self {
        if fieldstream_engine_api::is_shortage(cause) {
            return Self::Full { context: context.into(), cause: cause.to_string() };
        }
        Self::io(context, cause)
    }

    pub(crate) fn damaged(key: &object_store::path::Path, what: impl Into<String>) -> Self {
        Self::Damaged { key: key.to_string(), what: what.into() }
    }
}
