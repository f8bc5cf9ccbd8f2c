//! `cargo xtask`: the checks that keep the repository as its documents say it is.
//!
//! A check returns findings, one line each; none means it holds. Every check has a unit test that proves it can fail.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

mod chaos;
mod ci;
mod scan;
mod schema;
mod sim;
mod sources;
mod table;
mod tidy;
mod walls;

const HELP: &str = "usage: cargo xtask COMMAND

  walls             crate edges and `use` walls against the table in xtask/src/table.rs
  tidy              module docs, lengths of files and functions, left-overs, golden cases
  schema [--check]  writes (or compares) the published JSON schemas
  chaos [--minutes M] [--seed N] [--report FILE]
                    kills, stops, freezes and starves the real processes, and compares every row
  soak --minutes M [--report FILE]
                    an even load with reloads, in which memory and open files must stay flat
  stall --minutes M [--report FILE]
                    a database that stands still, while memory must stay flat
  sim [--seed N] [--count K] [--release]
                    simulated runs of several workers with faults, see docs/reliability/simulation.md
  ci                everything continuous integration runs, tests included
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["walls"] => root().and_then(|root| report("walls", walls::check(&root))),
        ["tidy"] => root().and_then(|root| report("tidy", tidy::check(&root))),
        ["schema"] => root().and_then(|root| schema::run(&root, false)),
        ["schema", "--check"] => root().and_then(|root| schema::run(&root, true)),
        ["chaos", ref options @ ..] => root().and_then(|root| chaos::run(&root, "chaos", "chaos::chaos", options)),
        ["soak", ref options @ ..] => root().and_then(|root| chaos::run(&root, "soak", "chaos::soak::soak", options)),
        ["stall", ref options @ ..] => root().and_then(|root| chaos::run(&root, "stall", "chaos::stall::stall", options)),
        ["sim", ref options @ ..] => root().and_then(|root| sim::run(&root, options)),
        ["ci"] => root().and_then(|root| ci::run(&root)),
        _ => {
            say(HELP);
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// The workspace, wherever cargo was called.
fn root() -> Result<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(Path::to_owned).context("xtask must lie in the workspace")
}

fn report(name: &str, findings: Result<Vec<String>>) -> Result<()> {
    let findings = findings?;
    findings.iter().for_each(|finding| say(&format!("{name}: {finding}\n")));
    if findings.is_empty() {
        say(&format!("{name}: holds\n"));
        return Ok(());
    }
    bail!("{name} found {} things to mend", findings.len())
}

/// Writes to standard error; when nobody listens any more there is nothing left to do.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}
