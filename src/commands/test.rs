//! `fieldstream test`: the files' own tests, in virtual time and without any service.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cli::VariableArgs;
use crate::exit::{BAD_PIPELINE, FAILED};
use crate::output;

/// Arguments of `test`.
#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Pipeline files with `tests:`.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    variables: VariableArgs,
    /// Print one JSON object per file.
    #[arg(long)]
    json: bool,
}

/// Runs the tests, file by file.
pub(crate) fn test(args: &TestArgs) -> Result<ExitCode> {
    let environment = args.variables.environment(true);
    let (mut passed, mut failed, mut unplanned) = (0, 0, 0);
    for file in &args.files {
        let outcome = fieldstream_pipelines::test(file, &environment);
        passed += outcome.tests.iter().filter(|test| test.passed).count();
        failed += outcome.tests.iter().filter(|test| !test.passed).count();
        unplanned += usize::from(!outcome.problems.is_empty());
        if args.json {
            output::json_line(&outcome)?;
        } else {
            output::text(&outcome.to_string())?;
        }
    }
    if !args.json {
        output::text(&format!("{passed} passed, {failed} failed\n"))?;
    }
    Ok(match (unplanned, failed) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(FAILED),
        _ => ExitCode::from(BAD_PIPELINE),
    })
}
