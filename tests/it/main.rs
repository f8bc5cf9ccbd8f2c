//! Integration tests: the real binary on files, brokers and databases. Each test ends with a balanced ledger.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr, clippy::indexing_slicing)] // a test that cannot go on says so by panicking

mod chaos;
mod fleet;
mod gateways;
mod golden;
mod golden_state;
mod kafka_alerts;
mod kafka_exact;
mod kafka_forward;
mod kafka_group;
mod metrics;
mod mqtt_postgres;
mod node;
mod oracle;
mod overload;
mod passivation;
mod publisher;
mod reference;
mod reload;
mod services;
mod sim;
mod state;
mod topics;
