//! Exit codes: 0 done, 1 failed while running, 2 wrong usage (clap's own), 3 and 4 what `plan` found, 78 a pipeline or variable is wrong (sysexits EX_CONFIG).

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use fieldstream_pipelines::Problems;

/// Something failed while running.
pub(crate) const FAILED: u8 = 1;
/// As clap does it.
const WRONG_USAGE: u8 = 2;
/// `plan`: the new plan can be applied only if state may be lost.
pub(crate) const STATE_LOSS: u8 = 3;
/// `plan`: the new plan cannot take the old one's place.
pub(crate) const NO_SUCCESSOR: u8 = 4;
/// A pipeline file or variable is wrong.
pub(crate) const BAD_PIPELINE: u8 = 78;

/// A pipeline file that cannot run.
#[derive(Debug)]
pub(crate) struct BadPipeline(pub(crate) Problems);

impl fmt::Display for BadPipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for BadPipeline {}

/// Arguments that do not fit, found after clap had read them.
#[derive(Debug)]
pub(crate) struct WrongUsage(pub(crate) String);

impl fmt::Display for WrongUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongUsage {}

/// Says what went wrong on stderr and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(bad) = error.downcast_ref::<BadPipeline>() {
        say(&bad);
        return ExitCode::from(BAD_PIPELINE);
    }
    say(&format_args!("error: {error:#}"));
    ExitCode::from(if error.is::<WrongUsage>() { WRONG_USAGE } else { FAILED })
}

/// To stderr. Where that cannot be written, the exit code has to do.
fn say(what: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_line_on_its_page() {
        let exits = include_str!("../docs/errors/exit.md");
        for code in [FAILED, WRONG_USAGE, STATE_LOSS, NO_SUCCESSOR, BAD_PIPELINE] {
            assert!(exits.contains(&format!("\n| {code} |")), "docs/errors/exit.md says nothing of {code}");
        }
        use fieldstream_runtime::ingress::{CODE_CLOCK_SKEW, CODE_PARTITION, CODE_POISON};
        use fieldstream_schemas::payload::{CODE_PARSE, CODE_TIMESTAMP};
        let letters = include_str!("../docs/errors/dead-letters.md");
        let of_operators = ["unit", "expression", "late", "window_limit", "window_time"];
        for code in [CODE_PARSE, CODE_TIMESTAMP, CODE_CLOCK_SKEW, CODE_PARTITION, CODE_POISON].iter().chain(&of_operators) {
            assert!(letters.contains(&format!("\n| `{code}` |")), "docs/errors/dead-letters.md says nothing of {code}");
        }
    }
}
