//! `fieldstream query`: SQL over what `parquet` sinks have written.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use fieldstream_query::{Format, Limits, Store};

use super::run::multi_thread_runtime;
use crate::output;

/// Arguments of `query`.
#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    /// The statement; without one the tables are listed.
    #[arg(value_name = "SQL")]
    statement: Option<String>,
    /// Directory that a `parquet` sink writes to, or one that holds several of them.
    #[arg(long, value_name = "DIR")]
    store: PathBuf,
    /// Print one JSON object per row.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print CSV with a header line.
    #[arg(long)]
    csv: bool,
    /// Rows to print at most.
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().rows)]
    rows: usize,
    /// Seconds that the answer may take.
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().timeout.as_secs())]
    timeout: u64,
}

/// Answers the statement. What is committed while it runs is not in the answer.
pub(crate) fn query(args: &QueryArgs) -> Result<ExitCode> {
    multi_thread_runtime().block_on(answer(args))
}

async fn answer(args: &QueryArgs) -> Result<ExitCode> {
    let store = Store::open(&args.store).await?;
    let Some(statement) = &args.statement else {
        output::text(&tables(&store))?;
        return Ok(ExitCode::SUCCESS);
    };
    let limits = Limits { rows: args.rows, timeout: Duration::from_secs(args.timeout), ..Limits::default() };
    let answer = store.query(statement, limits).await?;
    let format = match (args.json, args.csv) {
        (true, _) => Format::Ndjson,
        (_, true) => Format::Csv,
        _ => Format::Table,
    };
    output::text(&answer.render(format)?)?;
    if answer.truncated {
        tracing::warn!("there are more than {} rows: add a LIMIT or WHERE, or raise --rows", args.rows);
    }
    Ok(ExitCode::SUCCESS)
}

/// Every table with its columns.
fn tables(store: &Store) -> String {
    let mut text = String::new();
    for table in store.tables() {
        let columns: Vec<String> = table.columns.iter().map(|(name, kind)| format!("{name}: {kind}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} ({} files)\n  {}", table.name, table.files, columns.join(", "));
    }
    text
}
