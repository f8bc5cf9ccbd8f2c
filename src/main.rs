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
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Takes as many file handles as the system gives: its first offer is often 1024, one for each input file and client.
fn allow_all_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::debug!(?limit, "the limit of open files stays as it is: {error}");
    }
}

fn main() -> ExitCode {
    let arguments = cli::Cli::parse();
    cli::start_logging(&arguments.logging);
    // One crypto provider for every TLS client of the process; a second installation is refused and harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    allow_all_files();
    match commands::dispatch(arguments) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
