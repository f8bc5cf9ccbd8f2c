//! `fieldstream state inspect`: what a running node keeps of one device, asked over its admin server.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::{ask, encoded};
use crate::commands::run::ADMIN;
use crate::output;

/// Arguments of `state`.
#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// Print partition, slots, position and the state of every operator for one device.
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Device id.
    device: String,
    /// Name of the pipeline.
    #[arg(long)]
    pipeline: String,
    /// Address of the node's admin server.
    #[arg(long, env = "FIELDSTREAM_ADMIN", value_name = "ADDR", default_value_t = ADMIN)]
    admin: SocketAddr,
}

/// Does what the arguments say.
pub(crate) fn state(args: &StateArgs) -> Result<ExitCode> {
    let StateCommand::Inspect(inspect) = &args.command;
    let path = format!("/v1/pipelines/{}/devices/{}", encoded(&inspect.pipeline), encoded(&inspect.device));
    let (status, body) = ask(inspect.admin, "GET", &path, None)?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status != 200 {
        let why = ["detail", "title"].iter().find_map(|member| answer.get(member)?.as_str()).unwrap_or("no reason given");
        bail!("the node at {} answered {status}: {why}", inspect.admin);
    }
    output::json_pretty(&answer)?;
    Ok(ExitCode::SUCCESS)
}
