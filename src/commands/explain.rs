//! `fieldstream explain`: columns of every edge, state in bytes, and what each path from source to sink promises.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cli::VariableArgs;
use crate::output;
use crate::plans::plan;

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Pipeline file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    variables: VariableArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Explains the file's plan; no variable or secret needs to be there.
pub(crate) fn explain(args: &ExplainArgs) -> Result<ExitCode> {
    let explanation = fieldstream_pipelines::explain(&plan(&args.file, &args.variables.environment(true))?);
    if args.json {
        output::json_pretty(&explanation)?;
    } else {
        output::text(&explanation.to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}
