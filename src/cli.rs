//! Arguments and logging.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use fieldstream_checkpoint::Location;
use fieldstream_pipelines::Environment;
use tracing_subscriber::EnvFilter;

use crate::commands::checkpoint::CheckpointArgs;
use crate::commands::completions::CompletionsArgs;
#[cfg(all(feature = "file", feature = "generator", feature = "mqtt", feature = "parquet"))]
use crate::commands::demo::DemoArgs;
use crate::commands::dlq::DlqArgs;
use crate::commands::explain::ExplainArgs;
#[cfg(feature = "generator")]
use crate::commands::generate::GenerateArgs;
use crate::commands::graph::GraphArgs;
use crate::commands::plan::PlanArgs;
use crate::commands::query::QueryArgs;
use crate::commands::state::StateArgs;
use crate::commands::test::TestArgs;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed while running, 2 wrong usage, 3 state would be lost, 4 another pipeline or log, 78 a pipeline file or variable is wrong.";

/// Stream engine for sensor data: every device an actor, every pipeline a YAML file.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) logging: Logging,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What is logged, always on stderr.
#[derive(Debug, Args)]
pub(crate) struct Logging {
    /// What to log: a level, or per-room filters such as `fieldstream_runtime=debug`.
    #[arg(long, global = true, env = "FIELDSTREAM_LOG", default_value = "info,actix_server=warn,rumqttd=warn")]
    log: String,
    /// One JSON object per line instead of text.
    #[arg(long, global = true, env = "FIELDSTREAM_LOG_JSON")]
    log_json: bool,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show it all with a simulated fleet; nothing needs to be installed.
    #[cfg(all(feature = "file", feature = "generator", feature = "mqtt", feature = "parquet"))]
    Demo(DemoArgs),
    /// Run pipelines until their input ends, or until SIGTERM or Ctrl-C.
    Run(RunArgs),
    /// Check pipeline files without running them.
    Lint(LintArgs),
    /// Run the tests that pipeline files hold, in virtual time.
    Test(TestArgs),
    /// Say what a pipeline will do: columns, state, guarantees.
    Explain(ExplainArgs),
    /// Draw a pipeline.
    Graph(GraphArgs),
    /// Say what a changed file would change: which operators keep their state, which lose it.
    Plan(PlanArgs),
    /// Print the JSON Schema of pipeline files.
    Schema,
    /// Print the readings of a simulated fleet.
    #[cfg(feature = "generator")]
    Generate(GenerateArgs),
    /// Ask the stored readings with SQL.
    Query(QueryArgs),
    /// Look at state: in the store, as Arrow files, in a running node; check and repair it.
    State(StateArgs),
    /// List checkpoints, make savepoints, go back to one.
    Checkpoint(CheckpointArgs),
    /// Look at dead letters and send them again.
    Dlq(DlqArgs),
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
}

/// Where references in pipeline files get their values.
#[derive(Clone, Debug, Args)]
pub(crate) struct VariableArgs {
    /// A variable of the pipeline: `--var limit_c=-18`.
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = parse_variable)]
    vars: Vec<(String, String)>,
    /// Folder of the files that `${secret:path}` names.
    #[arg(long, env = "FIELDSTREAM_SECRETS_DIR", value_name = "DIR")]
    secrets_dir: Option<PathBuf>,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Pipeline files.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) variables: VariableArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Continue an earlier run of finite inputs instead of starting anew.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Print one JSON object per pipeline on stdout at its end.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reload: ReloadArgs,
}

/// How pipelines change while they run.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ReloadArgs {
    /// Take changed files over while running: drain, swap, check; back to the old plan when the new one fails.
    #[arg(long)]
    pub(crate) watch: bool,
    /// Leave state out that has no place in the plan any more, at the start and at reloads by --watch.
    #[arg(long)]
    pub(crate) accept_state_loss: bool,
    /// How long a new plan has to show that it works.
    #[arg(long, env = "FIELDSTREAM_RELOAD_TRIAL", value_name = "DURATION", default_value = "10s", value_parser = parse_span)]
    pub(crate) reload_trial: Duration,
}

/// Settings of the node.
#[derive(Clone, Debug, Args)]
pub(crate) struct NodeArgs {
    /// Where state lies.
    #[arg(long, env = "FIELDSTREAM_DATA_DIR", default_value = ".fieldstream", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where checkpoints lie, if not in the data directory: a folder or s3://bucket/prefix, the same for all workers of a group.
    #[arg(long, env = "FIELDSTREAM_STATE", value_name = "PLACE")]
    pub(crate) state: Option<Location>,
    /// Give up what a log no longer holds, and count it, instead of stopping.
    #[arg(long)]
    pub(crate) accept_gap: bool,
    /// Shards; one per core unless given.
    #[arg(long, env = "FIELDSTREAM_SHARDS")]
    pub(crate) shards: Option<usize>,
    /// Address of the admin server (metrics, health, pipelines); off for finite pipelines unless given, else 127.0.0.1:9600.
    #[arg(long, env = "FIELDSTREAM_ADMIN", value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,
    /// Disk that the journal may use at most, such as 20GiB; 4GiB unless given. A full journal refuses, it does not forget.
    #[arg(long, env = "FIELDSTREAM_JOURNAL_BUDGET", value_name = "SIZE", value_parser = parse_budget)]
    pub(crate) journal_budget: Option<u64>,
    /// Memory of the process above which nothing new is read, such as 2GiB; none unless given.
    #[arg(long, env = "FIELDSTREAM_MEMORY_BUDGET", value_name = "SIZE", value_parser = parse_budget)]
    pub(crate) memory_budget: Option<u64>,
}

/// Arguments of `lint`.
#[derive(Debug, Args)]
pub(crate) struct LintArgs {
    /// Pipeline files.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) variables: VariableArgs,
    /// Print findings as JSON on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

impl VariableArgs {
    /// The environment of a run (`lenient` false) or of a check (true).
    pub(crate) fn environment(&self, lenient: bool) -> Environment {
        let vars: BTreeMap<String, String> = self.vars.iter().cloned().collect();
        let env = std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        Environment { env, vars, secrets_dir: self.secrets_dir.clone(), lenient }
    }
}

fn parse_span(text: &str) -> Result<Duration, String> {
    fieldstream_schemas::time::parse_duration(text).ok_or_else(|| "expected a duration such as 500ms, 10s or 2m".to_owned())
}

fn parse_budget(text: &str) -> Result<u64, String> {
    fieldstream_schemas::Size::parse(text).map(|size| size.0 as u64).ok_or_else(|| "write a size such as 512MiB or 2GiB".to_owned())
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Sends `tracing` events to stderr. A filter that cannot be read falls back to `info`.
pub(crate) fn start_logging(logging: &Logging) {
    let filter = EnvFilter::try_new(&logging.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A line that cannot be written, since the disk of the log is full, would be told to the same place, by a panic.
    let builder = builder.log_internal_errors(false);
    // A logger that is set already (tests) stays.
    let _ = if logging.log_json { builder.json().try_init() } else { builder.try_init() };
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn variables_are_name_and_value() {
        assert_eq!(parse_variable("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_variable("a").is_err());
    }
}
