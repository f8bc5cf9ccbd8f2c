//! The `parquet` sink: a directory of zstd Parquet files by input and day, exactly once, for SQL.
//!
//! ```text
//! store.json                                        whose directory this is
//! commits/<log>/<partition>/<number>.json           what is committed, a chain per partition
//! <input>/day=2026-11-23/<log>-<partition>-<number>-<random>.parquet
//! ```
//!
//! Data files come first, then the commit object that names them, which is created only if its number is free. So a commit
//! is there whole or not at all, and of two owners that write the same number one loses. A new owner first takes a number
//! itself with a commit of no files: whatever an earlier owner still had under way can no longer be committed. Files that
//! no commit names do not exist for readers; the next owner of the partition removes them.

mod chain;
mod files;
pub mod sink;
mod store;

#[cfg(test)]
mod tests;
