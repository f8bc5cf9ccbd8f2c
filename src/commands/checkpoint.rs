//! `fieldstream checkpoint`: list checkpoints, make a savepoint on a running node, choose what the next start begins from.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use fieldstream_checkpoint::list::{Listed, short};
use fieldstream_checkpoint::{CheckpointId, PartitionStore};
use serde_json::{Value, json};

use crate::commands::run::ADMIN;
use crate::commands::store::{StoreArgs, block_on};
use crate::exit::WrongUsage;
use crate::node_client::{encoded, request};
use crate::output;

/// Arguments of `checkpoint`.
#[derive(Debug, Args)]
pub(crate) struct CheckpointArgs {
    #[command(subcommand)]
    command: CheckpointCommand,
}

#[derive(Debug, Subcommand)]
enum CheckpointCommand {
    /// List the checkpoints of every partition, oldest first.
    Ls(LsArgs),
    /// Make a savepoint on a running node: a checkpoint of every partition that stays until its label is removed.
    Create(CreateArgs),
    /// Choose the checkpoint that the next start begins from. Stop the node first.
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
struct LsArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// One JSON object per checkpoint.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Label of the savepoint.
    label: String,
    /// Name of the pipeline.
    #[arg(long)]
    pipeline: String,
    /// Address of the node's admin server.
    #[arg(long, env = "FIELDSTREAM_ADMIN", value_name = "ADDR", default_value_t = ADMIN)]
    admin: SocketAddr,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// Label of a savepoint, or the name of a checkpoint as `checkpoint ls` prints it.
    checkpoint: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Go back even if the log may not reach back that far: what it no longer holds is given up and counted.
    #[arg(long)]
    accept_gap: bool,
    /// Print what will be restored as JSON, one object per partition.
    #[arg(long)]
    json: bool,
}

/// Does what the arguments say.
pub(crate) fn checkpoint(args: &CheckpointArgs) -> Result<ExitCode> {
    match &args.command {
        CheckpointCommand::Ls(args) => block_on(list(args)),
        CheckpointCommand::Create(args) => create(args),
        CheckpointCommand::Restore(args) => block_on(restore(args)),
    }
}

async fn list(args: &LsArgs) -> Result<ExitCode> {
    for partition in args.store.partitions().await? {
        let listed = partition.list().await?;
        if !args.json {
            output::text(&format!("{}: {} checkpoints\n", partition.key(), listed.len()))?;
        }
        for checkpoint in listed {
            if args.json {
                output::json_line(&json!({ "partition": partition.key(), "checkpoint": checkpoint }))?;
            } else {
                output::text(&line(&checkpoint))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn line(listed: &Listed) -> String {
    let at = listed.at.map_or_else(|| "?".to_owned(), |at| at.to_string());
    let mut text = format!(
        "  {:<10} at {at:<14} {:>2} layers {:>12} bytes {:>10} devices {:>10} passivated",
        short(listed.id),
        listed.layers,
        listed.bytes,
        listed.devices,
        listed.passivated
    );
    for label in &listed.labels {
        text.push_str(&format!("  savepoint {label}"));
    }
    if listed.void {
        text.push_str("  void: a later owner went on from an earlier one");
    }
    if let Some(problem) = &listed.problem {
        text.push_str(&format!("  {problem}"));
    }
    text.push('\n');
    text
}

fn create(args: &CreateArgs) -> Result<ExitCode> {
    let path = format!("/v1/pipelines/{}/checkpoints", encoded(&args.pipeline));
    let answer = request(args.admin, "POST", &path, Some(&json!({ "label": args.label })))?;
    if args.json {
        output::json_line(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let partitions = answer.get("partitions").and_then(Value::as_array).cloned().unwrap_or_default();
    output::text(&format!("savepoint {} of {}: {} partitions\n", args.label, args.pipeline, partitions.len()))?;
    Ok(ExitCode::SUCCESS)
}

/// What is to be restored in a partition.
struct Wanted {
    store: PartitionStore,
    id: CheckpointId,
    offset: u64,
    /// The log is kept from here on.
    held_from: u64,
}

async fn restore(args: &RestoreArgs) -> Result<ExitCode> {
    let mut wanted = Vec::new();
    for store in args.store.partitions().await? {
        let listed = store.list().await?;
        let named = |c: &&Listed| c.labels.contains(&args.checkpoint) || args.checkpoint.parse() == Ok(c.id);
        let Some(found) = listed.iter().rev().find(named) else { continue };
        let at = found.at.with_context(|| format!("{}: {}", store.key(), found.problem.as_deref().unwrap_or("it cannot be read")))?;
        let regular = listed.iter().filter(|c| !c.void && c.labels.is_empty());
        let held_from = regular.filter_map(|c| c.at).map(|at| at.next_offset).min().unwrap_or(at.next_offset);
        wanted.push(Wanted { id: found.id, offset: at.next_offset, held_from, store });
    }
    if wanted.is_empty() {
        return Err(
            WrongUsage(format!("there is no checkpoint or savepoint `{}`: see `fieldstream checkpoint ls`", args.checkpoint)).into()
        );
    }
    if let Some(gap) = wanted.iter().find(|w| w.offset < w.held_from)
        && !args.accept_gap
    {
        bail!(
            "{} would go back to offset {}, but its log is only kept from offset {} on: with --accept-gap what is no longer there is given up and counted",
            gap.store.key(),
            gap.offset,
            gap.held_from
        );
    }
    for Wanted { store, id, offset, .. } in wanted {
        store.ask_restore(id, args.accept_gap).await?;
        if args.json {
            output::json_line(&json!({ "partition": store.key(), "checkpoint": short(id), "next_offset": offset }))?;
        } else {
            output::text(&format!("{}: the next start begins from checkpoint {} at offset {offset}\n", store.key(), short(id)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
