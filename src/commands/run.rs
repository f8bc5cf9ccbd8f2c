//! `fieldstream run`: pipelines on this node until their input ends or the process is told to stop.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use fieldstream_pipelines::{BuildOptions, Plan, build, load};
use fieldstream_runtime::clock::SystemClock;
use fieldstream_runtime::engine::{Engine, EngineOptions};
use fieldstream_runtime::pipeline::Report;
use fieldstream_runtime::status::Status;
use tokio::sync::watch;

use crate::cli::RunArgs;
use crate::exit::BadPipeline;

/// Runs the files' pipelines.
pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let environment = args.variables.environment(false);
    let mut plans = Vec::new();
    let mut problems = Vec::new();
    for file in &args.files {
        match load(file, &environment).into_result() {
            Ok((plan, warnings)) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                plans.push(plan);
            }
            Err(found) => problems.extend(found),
        }
    }
    if !problems.is_empty() {
        return Err(BadPipeline(problems).into());
    }
    let system = actix::System::with_tokio_rt(multi_thread_runtime);
    system.block_on(run_all(args, plans))
}

#[allow(clippy::expect_used)] // actix wants the runtime itself; without one there is nothing to run
fn multi_thread_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the operating system gives threads and a poller")
}

async fn run_all(args: &RunArgs, plans: Vec<Plan>) -> Result<ExitCode> {
    let mut options = EngineOptions::new(args.node.data_dir.clone());
    options.shards = args.node.shards.unwrap_or(options.shards);
    let engine = Engine::start(options, Arc::new(SystemClock::default())).await.context("the data directory cannot be used")?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        // Pipelines that have ended no longer listen.
        let _ = stop.send(true);
        wait_for_signal().await;
        tracing::error!("told to stop twice: leaving without draining; the next start replays");
        std::process::exit(130);
    });
    let runs = plans.iter().map(|plan| run_one(&engine, plan, args, stopped.clone()));
    let outcomes = futures::future::join_all(runs).await;
    engine.stop();
    let mut failures = Vec::new();
    for (plan, outcome) in plans.iter().zip(outcomes) {
        match outcome {
            Ok(report) => show(args, &report)?,
            Err(error) => failures.push(format!("pipeline {}: {error:#}", plan.name)),
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_one(engine: &Engine, plan: &Plan, args: &RunArgs, stop: watch::Receiver<bool>) -> Result<Report> {
    let data_dir = args.node.data_dir.join("pipelines").join(&*plan.name);
    std::fs::create_dir_all(&data_dir).with_context(|| format!("cannot make {}", data_dir.display()))?;
    let parts = build(plan, &BuildOptions { data_dir, resume: args.resume }).map_err(BadPipeline)?;
    Ok(fieldstream_runtime::pipeline::run(engine, parts, "", stop, Arc::new(Status::default())).await?)
}

#[allow(clippy::print_stdout)] // the report is this command's output
fn show(args: &RunArgs, report: &Report) -> Result<()> {
    if args.json {
        let line = serde_json::json!({ "pipeline": report.pipeline, "state": report.state, "elapsed_s": report.elapsed_s, "ledger": report.ledger });
        println!("{}", serde_json::to_string(&line)?);
    } else {
        let balanced = if report.ledger.balanced { "balanced" } else { "NOT balanced" };
        println!("{}: {} readings in {:.1} s; ledger: {balanced}", report.pipeline, report.ledger.received, report.elapsed_s);
    }
    if !report.ledger.balanced {
        bail!("pipeline {}: the ledger does not balance; please report this with the JSON line", report.pipeline);
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
