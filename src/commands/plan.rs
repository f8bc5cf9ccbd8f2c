//! `fieldstream plan`: what a changed file would change in a running pipeline, and what state it would cost.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use fieldstream_pipelines::change;
use serde_json::Value;

use crate::cli::VariableArgs;
use crate::exit::{BAD_PIPELINE, NO_SUCCESSOR, STATE_LOSS};
use crate::node_client::{ask, encoded};
use crate::output;
use crate::plans::plan as read;

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The old file and the new one; with --node, the new one alone.
    #[arg(required = true, num_args = 1..=2, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    variables: VariableArgs,
    /// Compare with what runs on the node whose admin server is there, with the node's variables.
    #[arg(long, value_name = "ADDR")]
    node: Option<SocketAddr>,
    /// Name of the pipeline on the node; the file's own unless given.
    #[arg(long, requires = "node")]
    pipeline: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Compares; nothing is changed.
pub(crate) fn plan(args: &PlanArgs) -> Result<ExitCode> {
    match (args.node, args.files.as_slice()) {
        (Some(node), [new]) => with_node(args, node, new),
        (None, [old, new]) => {
            let environment = args.variables.environment(true);
            let found = change(&read(old, &environment)?, &read(new, &environment)?);
            if args.json {
                output::json_pretty(&found)?;
            } else {
                output::text(&found.to_string())?;
            }
            Ok(code(!found.refused.is_empty(), !found.losses.is_empty()))
        }
        _ => Err(crate::exit::WrongUsage("plan compares two files, or with --node one file with what runs there".to_owned()).into()),
    }
}

fn code(refused: bool, loses: bool) -> ExitCode {
    match (refused, loses) {
        (true, _) => ExitCode::from(NO_SUCCESSOR),
        (false, true) => ExitCode::from(STATE_LOSS),
        (false, false) => ExitCode::SUCCESS,
    }
}

fn with_node(args: &PlanArgs, node: SocketAddr, new: &Path) -> Result<ExitCode> {
    let text = fs::read_to_string(new).with_context(|| format!("cannot read {}", new.display()))?;
    let name = match &args.pipeline {
        Some(name) => name.clone(),
        None => read(new, &args.variables.environment(true))?.name.to_string(),
    };
    let (status, body) = ask(node, "POST", &format!("/v1/pipelines/{}/plan", encoded(&name)), Some(("application/yaml", &text)))?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    let some = |member: &str| answer.get(member).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if args.json {
        output::json_pretty(&answer)?;
    }
    match status {
        200 => {
            if !args.json {
                output::text(answer.get("text").and_then(Value::as_str).unwrap_or_default())?;
            }
            Ok(code(some("refused"), some("losses")))
        }
        422 => {
            if !args.json {
                let text = |problem: &Value| problem.get("text").and_then(Value::as_str).unwrap_or_default().to_owned();
                let problems = answer.get("problems").and_then(Value::as_array);
                problems.into_iter().flatten().try_for_each(|problem| output::text(&format!("{}\n", text(problem))))?;
            }
            Ok(ExitCode::from(BAD_PIPELINE))
        }
        _ => {
            let why = ["detail", "title"].iter().find_map(|member| answer.get(member)?.as_str()).unwrap_or("no reason given");
            bail!("the node at {node} answered {status}: {why}")
        }
    }
}
