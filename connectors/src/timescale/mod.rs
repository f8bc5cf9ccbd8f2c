//! TimescaleDB and PostgreSQL as a sink: rows by binary COPY, with the mark in the same transaction.

mod columns;
mod copy;
mod errors;
mod hyper;
mod marks;
mod options;
mod plain;
mod schema;
pub mod sink;
mod store;
mod transaction;
