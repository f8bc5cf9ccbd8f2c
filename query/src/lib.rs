//! SQL over the directories that `parquet` sinks write, with full DataFusion, read only.
//!
//! [`Store::open`] finds the stores at or below a directory and makes a table of every input, from committed files only.
//! What is committed while the store is open is not seen: open again.

mod committed;
mod render;
mod store;
mod tables;

pub use render::{Format, render};
pub use store::{Answer, Limits, Store};
pub use tables::Table;

/// Why there is no answer. One line each, for people.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The directory holds no store.
    #[error("{path} holds no store: name the directory that a `parquet` sink writes to, after its first commit")]
    NoStore {
        /// The directory.
        path: String,
    },
    /// The store cannot be read.
    #[error("{context}: {cause}")]
    Store {
        /// What was being done.
        context: String,
        /// What went wrong.
        cause: String,
    },
    /// The statement is wrong, or not allowed.
    #[error("{0}")]
    Statement(String),
    /// The statement took too long.
    #[error("no answer within {0:?}: ask for less, for example `WHERE day = DATE '2026-11-23'`")]
    Timeout(std::time::Duration),
}

impl QueryError {
    /// A store that cannot be read.
    fn store(context: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::Store { context: context.into(), cause: cause.to_string() }
    }

    /// DataFusion's error without its nesting, in one line.
    fn statement(error: &datafusion::error::DataFusionError) -> Self {
        let text = error.find_root().message().to_string();
        let line = text.lines().next().unwrap_or_default();
        Self::Statement(line.chars().take(400).collect())
    }
}
