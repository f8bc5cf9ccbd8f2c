//! `fieldstream state`: what is kept of devices, in the store and in a running node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use fieldstream_checkpoint::{CheckpointStore, Location};
use fieldstream_checkpoint::fsck::{Finding, Kind, Repair};
use fieldstream_checkpoint::list::short;
use serde_json::json;

use crate::commands::run::ADMIN;
use crate::commands::store::{StoreArgs, block_on};
use crate::exit::{FAILED, WrongUsage};
use crate::node_client::{encoded, request};
use crate::output;

/// Arguments of `state`.
#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    #[command(subcommand)]
    command: StateCommand,
}

#[derive(Debug, Subcommand)]
enum StateCommand {
    /// List the partitions that have state, with their newest checkpoint.
    Ls(LsArgs),
    /// Ask a running node for one device: partition, slots, position and the state of every operator.
    Inspect(InspectArgs),
    /// Write the state of partitions as Arrow files.
    Export(ExportArgs),
    /// Read every file of the state and of the journal: what is damaged, what is left over, what can be used.
    Fsck(FsckArgs),
}

#[derive(Debug, Args)]
struct LsArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// One JSON object per partition.
    #[arg(long)]
    json: bool,
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

#[derive(Debug, Args)]
struct ExportArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Label of a savepoint, or a checkpoint as `checkpoint ls` names it; the newest unless given.
    #[arg(long)]
    checkpoint: Option<String>,
    /// Folder to write into: one folder per partition.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One JSON object per partition, with the files written.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct FsckArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// Delete what is certainly garbage. The node must be stopped.
    #[arg(long)]
    repair: bool,
    /// With --repair: also move aside what is damaged, so that the next start goes on with what is left.
    #[arg(long, requires = "repair")]
    accept_state_loss: bool,
    /// One JSON object per partition and one for the journal.
    #[arg(long)]
    json: bool,
}

/// Does what the arguments say.
pub(crate) fn state(args: &StateArgs) -> Result<ExitCode> {
    match &args.command {
        StateCommand::Ls(args) => block_on(list(args)),
        StateCommand::Inspect(args) => inspect(args),
        StateCommand::Export(args) => block_on(export(args)),
        StateCommand::Fsck(args) => block_on(fsck(args)),
    }
}

async fn list(args: &LsArgs) -> Result<ExitCode> {
    for partition in args.store.partitions().await? {
        let listed = partition.list().await?;
        let newest = listed.iter().rev().find(|c| !c.void && c.problem.is_none());
        if args.json {
            output::json_line(&json!({ "partition": partition.key(), "checkpoints": listed.len(), "newest": newest }))?;
            continue;
        }
        let text = match newest {
            None => "no checkpoint".to_owned(),
            Some(newest) => format!(
                "checkpoint {} at {}, {} devices, {} passivated, {} bytes",
                short(newest.id),
                newest.at.unwrap_or_default(),
                newest.devices,
                newest.passivated,
                newest.bytes
            ),
        };
        output::text(&format!("{}: {text}\n", partition.key()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn inspect(args: &InspectArgs) -> Result<ExitCode> {
    let path = format!("/v1/pipelines/{}/devices/{}", encoded(&args.pipeline), encoded(&args.device));
    output::json_pretty(&request(args.admin, "GET", &path, None)?)?;
    Ok(ExitCode::SUCCESS)
}

async fn export(args: &ExportArgs) -> Result<ExitCode> {
    let mut exported = 0;
    for partition in args.store.partitions().await? {
        let listed = partition.list().await?;
        let wanted = |c: &&fieldstream_checkpoint::list::Listed| match &args.checkpoint {
            None => !c.void && c.problem.is_none(),
            Some(wanted) => c.labels.contains(wanted) || wanted.parse() == Ok(c.id),
        };
        let Some(found) = listed.iter().rev().find(wanted) else { continue };
        let key = partition.key();
        let name = |text: &str| encoded(text);
        let folder = args.out.join(name(&key.pipeline)).join(name(&key.log_id.0)).join(key.partition.to_string());
        let files = partition.export(found.id, &folder).await?;
        exported += 1;
        if args.json {
            output::json_line(&json!({ "partition": key, "checkpoint": short(found.id), "files": files }))?;
        } else {
            output::text(&format!("{key}: checkpoint {} as {} files in {}\n", short(found.id), files.len(), folder.display()))?;
        }
    }
    if exported == 0 {
        return Err(WrongUsage("there is no such checkpoint: see `fieldstream checkpoint ls`".to_owned()).into());
    }
    Ok(ExitCode::SUCCESS)
}

async fn fsck(args: &FsckArgs) -> Result<ExitCode> {
    let repair = match (args.repair, args.accept_state_loss) {
        (false, _) => Repair::No,
        (true, false) => Repair::Leftovers,
        (true, true) => Repair::AcceptLoss,
    };
    let mut damaged = check_journal(args, repair)?;
    let store = match args.store.location() {
        Location::Folder(folder) if !folder.is_dir() => {
            if args.store.state.is_some() || !args.store.data_dir.is_dir() {
                bail!("{} is no folder", args.store.state.as_ref().map_or(args.store.data_dir.display().to_string(), Location::to_string));
            }
            return Ok(if damaged { ExitCode::from(FAILED) } else { ExitCode::SUCCESS });
        }
        Location::Folder(folder) if args.repair => CheckpointStore::open_alone(&folder)?,
        location => CheckpointStore::look_at(&location)?,
    };
    for finding in store.leftovers(repair).await? {
        say(args, &finding)?;
    }
    for partition in args.store.partitions_of(&store).await? {
        let checked = partition.fsck(repair).await?;
        damaged |= checked.is_damaged();
        if args.json {
            output::json_line(&json!({ "partition": partition.key(), "checked": checked }))?;
            continue;
        }
        let usable = match (&checked.usable, checked.checkpoints) {
            (Some(usable), _) => format!("checkpoint {usable} can be used"),
            (None, 0) => "there is no checkpoint".to_owned(),
            (None, _) => "NO checkpoint can be used".to_owned(),
        };
        output::text(&format!("{}: {} files read, {usable}\n", partition.key(), checked.files))?;
        checked.findings.iter().try_for_each(|finding| say(args, finding))?;
    }
    Ok(if damaged { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

fn say(args: &FsckArgs, finding: &Finding) -> Result<()> {
    if args.json {
        return output::json_line(finding);
    }
    let kind = if finding.kind == Kind::Damaged { "damaged" } else { "left over" };
    let done = finding.repaired.map(|done| format!(" ({done})")).unwrap_or_default();
    output::text(&format!("  {kind}: {}: {}{done}\n", finding.key, finding.what))
}

/// Looks through the journal, if there is one. True when damage is left.
fn check_journal(args: &FsckArgs, repair: Repair) -> Result<bool> {
    let folder = args.store.data_dir.join("journal");
    if !folder.is_dir() {
        return Ok(false);
    }
    let checked = fieldstream_journal::fsck::check(&folder, repair != Repair::No)?;
    if args.json {
        output::json_line(&json!({ "journal": checked }))?;
    } else {
        output::text(&format!("journal: {} segments, {} frames read\n", checked.segments, checked.frames))?;
        for finding in &checked.findings {
            let kind = if finding.damage { "damaged" } else { "left over" };
            let done = finding.repaired.map(|done| format!(" ({done})")).unwrap_or_default();
            output::text(&format!("  {kind}: {} at byte {}: {}{done}\n", finding.file, finding.at, finding.what))?;
        }
    }
    Ok(checked.findings.iter().any(|f| f.damage && f.repaired.is_none()))
}
