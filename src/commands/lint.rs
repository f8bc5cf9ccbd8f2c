//! `fieldstream lint`: everything wrong with pipeline files, at its place.

use std::process::ExitCode;

use anyhow::Result;
use fieldstream_pipelines::lint as check;

use crate::cli::LintArgs;
use crate::exit::BAD_PIPELINE;
use crate::output;

/// Checks the files; nothing outside the process is touched, and no variable or secret needs to be there.
pub(crate) fn lint(args: &LintArgs) -> Result<ExitCode> {
    let report = check(&args.files, &args.variables.environment(true));
    if args.json {
        output::json_line(&report)?;
    } else {
        output::text(&report.to_string())?;
    }
    Ok(if report.ok() { ExitCode::SUCCESS } else { ExitCode::from(BAD_PIPELINE) })
}
