//! `fieldstream dlq`: look at dead letters and send them again, through the front door.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::dlq::done::Done;
use crate::dlq::letter::{Letter, Selection, for_each};
use crate::dlq::target::{Outlet, Target};
use crate::output;

/// Letters sent before their ids are noted. After a crash so many may be sent twice.
const BATCH: u16 = 100;

/// Arguments of `dlq`.
#[derive(Debug, Args)]
pub(crate) struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Subcommand)]
enum DlqCommand {
    /// List dead letters.
    Ls(LsArgs),
    /// Show one dead letter with its payload.
    Show(ShowArgs),
    /// Send payloads again as new readings, each dead letter once.
    Redrive(RedriveArgs),
}

#[derive(Debug, Args)]
struct LsArgs {
    /// File that a pipeline's `dead_letter: { file: ... }` wrote.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Only those with this code (the id of the rule that failed, or `parse`).
    #[arg(long)]
    code: Option<String>,
    /// Print one JSON object per dead letter.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// File that a pipeline's `dead_letter: { file: ... }` wrote.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Id of the dead letter.
    id: String,
    /// Print the payload alone, byte for byte.
    #[arg(long)]
    raw: bool,
}

#[derive(Debug, Args)]
struct RedriveArgs {
    /// File that a pipeline's `dead_letter: { file: ... }` wrote; what was sent is noted in FILE.redriven.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Only the one with this id.
    #[arg(long)]
    id: Option<String>,
    /// Only those with this code.
    #[arg(long)]
    code: Option<String>,
    /// Where to: mqtt://host:port/topic (`{device}` stands for the device's id), kafka://host:port/topic (keyed by device),
    /// or file:PATH to append to.
    #[arg(long, value_name = "TARGET")]
    to: Target,
}

/// Does what the arguments say.
pub(crate) fn dlq(args: &DlqArgs) -> Result<ExitCode> {
    match &args.command {
        DlqCommand::Ls(args) => list(args)?,
        DlqCommand::Show(args) => show(args)?,
        DlqCommand::Redrive(args) => redrive(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &LsArgs) -> Result<()> {
    let selection = Selection { id: None, code: args.code.as_deref() };
    let mut codes: BTreeMap<String, u64> = BTreeMap::new();
    for_each(&args.path, selection, |letter| {
        let text = |member| letter.text(member).unwrap_or("-");
        *codes.entry(text("code").to_owned()).or_default() += 1;
        if args.json {
            return output::json_line(&letter.record);
        }
        let line = ["id", "code", "node", "deviceId", "sensorId", "timestamp", "message"].map(text).join("\t");
        output::text(&format!("{line}\n"))
    })?;
    let counts: Vec<String> = codes.iter().map(|(code, count)| format!("{count} {code}")).collect();
    tracing::info!("dead letters: {}", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") });
    Ok(())
}

fn show(args: &ShowArgs) -> Result<()> {
    let mut found = None;
    for_each(&args.path, Selection { id: Some(&args.id), code: None }, |letter| {
        found = Some(letter);
        Ok(())
    })?;
    let Some(letter) = found else { bail!("{} holds no dead letter {}", args.path.display(), args.id) };
    if args.raw {
        return output::bytes(&letter.payload);
    }
    let mut shown = letter.record.clone();
    shown.insert("payload".to_owned(), letter.shown_payload());
    output::json_pretty(&Value::Object(shown))
}

fn redrive(args: &RedriveArgs) -> Result<()> {
    let mut done = Done::open(&args.path)?;
    let mut outlet = Outlet::open(&args.to, &format!("fieldstream-redrive-{}", std::process::id()), BATCH)?;
    let (mut batch, mut waiting) = (Vec::new(), HashSet::new());
    let (mut found, mut sent, mut before, mut refused) = (0_u64, 0_usize, 0_u64, 0_u64);
    let selection = Selection { id: args.id.as_deref(), code: args.code.as_deref() };
    for_each(&args.path, selection, |letter| {
        found += 1;
        if done.contains(letter.id()) || !waiting.insert(letter.id().to_owned()) {
            before += 1;
        } else if let Some(why) = outlet.refuses(&letter) {
            refused += 1;
            tracing::warn!("dead letter {} stays: {why}", letter.id());
        } else {
            batch.push(letter);
        }
        if batch.len() >= usize::from(BATCH) {
            sent += flush(&mut batch, &mut outlet, &mut done)?;
            waiting.clear();
            tracing::info!("{sent} sent");
        }
        Ok(())
    })?;
    sent += flush(&mut batch, &mut outlet, &mut done)?;
    outlet.close();
    output::text(&format!("{sent} sent again, {before} had been before, {refused} cannot be sent there\n"))?;
    match &args.id {
        Some(id) if found == 0 => bail!("{} holds no dead letter {id}", args.path.display()),
        _ => Ok(()),
    }
}

/// First the target, then the note: a crash in between sends again, it does not forget.
fn flush(batch: &mut Vec<Letter>, outlet: &mut Outlet, done: &mut Done) -> Result<usize> {
    if batch.is_empty() {
        return Ok(0);
    }
    outlet.send(batch)?;
    let ids: Vec<String> = batch.drain(..).map(|letter| letter.id().to_owned()).collect();
    let count = ids.len();
    done.add(ids)?;
    Ok(count)
}
