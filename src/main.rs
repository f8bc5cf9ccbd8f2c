//! Fieldstream's command line: arguments, logging, exit codes. Everything else lives in the rooms of the workspace.

mod admin;
mod cli;
mod commands;
mod dlq;
mod exit;
mod node_client;
mod output;
mod plans;
mod reload;

use std::process::ExitCode;

use clap::Parser;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    cli::start_logging(&arguments.logging);
    // One crypto provider for every TLS client of the process; a second installation is refused and harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match commands::dispatch(arguments) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
