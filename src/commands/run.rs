//! `fieldstream run`: pipelines on this node until their input ends or the process is told to stop.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fieldstream_pipelines::{BuildOptions, Plan, build};
use fieldstream_runtime::clock::SystemClock;
use fieldstream_runtime::engine::{Engine, EngineOptions};
use fieldstream_runtime::pipeline::Report;
use fieldstream_runtime::spec::{Input, PipelineParts};
use fieldstream_runtime::status::State;
use fieldstream_runtime::supervisor::{Supervision, supervise};
use futures::TryFutureExt as _;
use serde_json::json;
use tokio::sync::watch;

use crate::admin::{self, Node};
use crate::cli::RunArgs;
use crate::exit::BadPipeline;
use crate::output;
use crate::plans::plans;
use crate::reload::Supervised;
use crate::reload::watch::watch as watch_file;

/// Where the admin server listens unless told otherwise.
pub(crate) const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9600);

/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// Runs the files' pipelines.
pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let plans = plans(&args.files, &args.variables.environment(false))?;
    let mut names: Vec<&str> = plans.iter().map(|plan| &*plan.name).collect();
    names.sort_unstable();
    let twice = names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b);
    if let Some((twice, _)) = twice {
        bail!("two files hold a pipeline called `{twice}`; they would share state: rename one");
    }
    let system = actix::System::with_tokio_rt(multi_thread_runtime);
    system.block_on(run_all(args, plans))
}

/// The runtime under actix: work is stolen between threads, arbiters have threads of their own.
#[allow(clippy::expect_used)] // actix wants the runtime itself; without one there is nothing to run
pub(super) fn multi_thread_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the operating system gives threads and a poller")
}

async fn run_all(args: &RunArgs, plans: Vec<Plan>) -> Result<ExitCode> {
    let parts = build_all(args, &plans)?;
    let finite = plans.iter().zip(&parts).all(|(plan, parts)| ends_by_itself(plan, parts));
    let mut options = EngineOptions::new(args.node.data_dir.clone());
    options.state.clone_from(&args.node.state);
    options.shards = args.node.shards.unwrap_or(options.shards);
    options.accept_gap = args.node.accept_gap;
    options.memory_budget = args.node.memory_budget;
    options.journal.budget_bytes = args.node.journal_budget.unwrap_or(options.journal.budget_bytes);
    let clock = Arc::new(SystemClock::default());
    let engine = Engine::start(options, Arc::<SystemClock>::clone(&clock)).await.context("checkpoints cannot be kept")?;
    let environment = args.variables.environment(false);
    let supervised = |plan: Plan| {
        let data_dir = data_dir(args, &plan);
        let (pipeline, reloads) = Supervised::new(plan, environment.clone(), data_dir, Arc::<SystemClock>::clone(&clock));
        (Arc::new(pipeline), reloads)
    };
    let (pipelines, reloads): (Vec<_>, Vec<_>) = plans.into_iter().map(supervised).unzip();
    let node = Arc::new(Node::new(Arc::new(engine), pipelines));
    open_admin(args.node.admin, finite, &node)?;
    tokio::spawn(say_progress(Arc::clone(&node)));
    if args.reload.watch {
        watch_files(args, &node);
    }
    let stopped = stop_on_signal();
    let settings = Supervision { accept_state_loss: args.reload.accept_state_loss, trial: args.reload.reload_trial };
    let runs = node.pipelines.iter().zip(parts).zip(reloads).map(|((pipeline, parts), reloads)| {
        let (first, status) = (pipeline.blueprint(&pipeline.plan()), Arc::clone(&pipeline.status));
        let run = supervise(&node.engine, first, parts, settings, reloads, stopped.clone(), status);
        let others = node.pipelines.len() - 1;
        run.inspect_err(move |error| {
            // The process says it at its end; others may run for long until then.
            if others > 0 {
                tracing::error!("pipeline {} has failed, {others} others go on: {error}", pipeline.name);
            }
        })
    });
    let outcomes = futures::future::join_all(runs).await;
    node.engine.stop();
    let mut failures = Vec::new();
    for (pipeline, outcome) in node.pipelines.iter().zip(outcomes) {
        match outcome {
            Ok(report) => {
                show(args, &report)?;
                if !report.ledger.balanced {
                    failures
                        .push(format!("pipeline {}: the ledger does not balance; please report this with the JSON line", report.pipeline));
                }
            }
            Err(error) => {
                let (name, why, ledger) = (&pipeline.name, error.to_string(), pipeline.status.ledger());
                if args.json {
                    output::json_line(&json!({ "pipeline": name, "state": State::Failed, "error": why, "ledger": ledger }))?;
                }
                failures.push(format!("pipeline {name}: {why}"));
            }
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// Where a pipeline's connectors keep what they need.
fn data_dir(args: &RunArgs, plan: &Plan) -> PathBuf {
    args.node.data_dir.join("pipelines").join(&*plan.name)
}

fn watch_files(args: &RunArgs, node: &Arc<Node>) {
    for (file, pipeline) in args.files.iter().zip(&node.pipelines) {
        let text = pipeline.plan().document.text.to_string();
        tokio::spawn(watch_file(file.clone(), text, Arc::clone(pipeline), args.reload.accept_state_loss));
    }
}

fn build_all(args: &RunArgs, plans: &[Plan]) -> Result<Vec<PipelineParts>> {
    let (mut parts, mut problems) = (Vec::new(), Vec::new());
    for plan in plans {
        let data_dir = data_dir(args, plan);
        std::fs::create_dir_all(&data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
        match build(plan, &BuildOptions { data_dir, resume: args.resume }) {
            Ok(built) => parts.push(built),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() { Ok(parts) } else { Err(BadPipeline(problems).into()) }
}

/// True when all sources of a pipeline end. Of the receivers only a limited generator does.
fn ends_by_itself(plan: &Plan, parts: &PipelineParts) -> bool {
    let limited = |options: &serde_json::Value| ["count", "duration"].iter().any(|limit| options.get(limit).is_some_and(|v| !v.is_null()));
    match &parts.input {
        Input::Log { finite, .. } => *finite,
        // Others may write to the topic for ever.
        Input::Gateway { .. } => false,
        Input::Receivers(_) => plan.sources.iter().all(|source| source.kind.name == "generator" && limited(&source.options)),
    }
}

/// Opens the admin server where one is wanted. Only an address that was asked for must be free.
fn open_admin(asked: Option<SocketAddr>, finite: bool, node: &Arc<Node>) -> Result<()> {
    match asked {
        Some(address) => admin::serve(address, Arc::clone(node)).map(|_| ()),
        None if finite => Ok(()),
        None => {
            if let Err(error) = admin::serve(ADMIN, Arc::clone(node)) {
                tracing::warn!("{error:#}; going on without it (--admin names another address)");
            }
            Ok(())
        }
    }
}

/// True from the first SIGTERM or Ctrl-C on; the second ends the process.
fn stop_on_signal() -> watch::Receiver<bool> {
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        tracing::info!("told to stop: draining");
        // Pipelines that have ended no longer listen.
        let _ = stop.send(true);
        wait_for_signal().await;
        tracing::error!("told to stop twice: leaving without draining; the next start replays");
        std::process::exit(130);
    });
    stopped
}

/// Says now and then how far the pipelines are.
async fn say_progress(node: Arc<Node>) {
    let mut before = vec![0; node.pipelines.len()];
    loop {
        tokio::time::sleep(PROGRESS).await;
        for (pipeline, before) in node.pipelines.iter().zip(&mut before) {
            let state = pipeline.status.lock().state;
            if matches!(state, State::Finished | State::Stopped | State::Failed) {
                continue;
            }
            let ledger = pipeline.status.ledger();
            let rate = ledger.received.saturating_sub(*before) / PROGRESS.as_secs();
            let dead: u64 = ledger.dead_lettered.values().sum();
            *before = ledger.received;
            let (name, received, in_flight) = (&pipeline.name, ledger.received, ledger.in_flight);
            tracing::info!("{name}: {received} readings, {rate}/s, {in_flight} in flight, {dead} dead letters");
        }
    }
}

fn show(args: &RunArgs, report: &Report) -> Result<()> {
    if args.json {
        let (pipeline, state, elapsed_s, ledger) = (&report.pipeline, report.state, report.elapsed_s, &report.ledger);
        output::json_line(&json!({ "pipeline": pipeline, "state": state, "elapsed_s": elapsed_s, "ledger": ledger }))?;
    } else {
        let balanced = if report.ledger.balanced { "balanced" } else { "NOT balanced" };
        let (pipeline, received, seconds) = (&report.pipeline, report.ledger.received, report.elapsed_s);
        output::text(&format!("{pipeline}: {received} readings in {seconds:.1} s; ledger: {balanced}\n"))?;
    }
    Ok(())
}

/// SIGTERM or Ctrl-C.
async fn wait_for_signal() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    match terminate {
        Ok(mut terminate) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        }
        // Without a handler SIGTERM ends the process at once, which recovery covers.
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}
