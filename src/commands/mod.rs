//! One file per command.

pub(crate) mod checkpoint;
pub(crate) mod completions;
#[cfg(all(feature = "file", feature = "generator", feature = "mqtt", feature = "parquet"))]
pub(crate) mod demo;
pub(crate) mod dlq;
pub(crate) mod explain;
#[cfg(feature = "generator")]
pub(crate) mod generate;
pub(crate) mod graph;
mod lint;
pub(crate) mod plan;
pub(crate) mod query;
pub(crate) mod run;
mod schema;
pub(crate) mod state;
mod store;
pub(crate) mod test;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{Cli, Command};

/// Does what the command line says.
pub(crate) fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Lint(args) => lint::lint(&args),
        Command::Test(args) => test::test(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Graph(args) => graph::graph(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Schema => schema::schema(),
        #[cfg(feature = "generator")]
        Command::Generate(args) => generate::generate(&args),
        Command::Query(args) => query::query(&args),
        Command::State(args) => state::state(&args),
        Command::Checkpoint(args) => checkpoint::checkpoint(&args),
        #[cfg(all(feature = "file", feature = "generator", feature = "mqtt", feature = "parquet"))]
        Command::Demo(args) => demo::demo(&args),
        Command::Dlq(args) => dlq::dlq(&args),
        Command::Completions(args) => completions::completions(&args),
    }
}
