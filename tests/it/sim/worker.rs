//! A worker: processes one after the other, each a real engine on the simulated world.

use std::path::Path;
use std::sync::{Arc, Mutex};

use fieldstream_checkpoint::{CheckpointStore, StoreError};
use fieldstream_engine_api::{LogError, SinkError};
use fieldstream_runtime::engine::{Engine, EngineOptions};
use fieldstream_runtime::error::PipelineError;
use fieldstream_runtime::pipeline::{Report, run};
use fieldstream_runtime::spec::{Input, PipelineParts, SinkBox};
use fieldstream_runtime::status::Status;
use tokio::sync::watch;

use super::broker::SimLog;
use super::process::{Process, ProcessClock};
use super::scenario;
use super::sink::SimSink;
use super::store::SimStore;
use super::world::World;

/// What the plan's digest says in every checkpoint.
const DIGEST: &str = "simulated=1\n";

/// A worker's process of now.
#[derive(Clone)]
pub(super) struct Running {
    pub(super) process: Arc<Process>,
    /// Its name in the group.
    pub(super) member: u64,
    stop: watch::Sender<bool>,
}

impl Running {
    /// Tells it to stop in good order.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }
}

/// Where the processes of all workers are found.
pub(super) type Workers = Arc<Mutex<Vec<Option<Running>>>>;

/// How a process ended.
pub(super) enum Ended {
    Killed,
    Run(Result<Report, PipelineError>),
}

/// Lives again and again until the world calms down.
pub(super) async fn work(world: Arc<World>, number: usize, workers: Workers, folder: Arc<Path>) {
    let mut life = 0;
    while !world.is_calm() {
        let member = (number as u64 + 1) * 1000 + life;
        life += 1;
        let name = format!("w{number}.{life}");
        let clock_error_us = if world.rng().chance(200) { world.rng().between(0, 20_000_000) as i64 - 10_000_000 } else { 0 };
        let process = Process::new(&world, name.clone(), clock_error_us);
        let ended = live(&process, member, &workers, number, &folder).await;
        // What it left behind does nothing any more.
        process.kill();
        workers.lock().unwrap()[number] = None;
        match ended {
            Ended::Killed => {
                // The group misses it only after a while.
                world.pause(0, 6_000).await;
            }
            Ended::Run(outcome) => {
                let said = outcome.as_ref().map_or_else(ToString::to_string, |report| format!("{:?}", report.state));
                world.note(format_args!("{name} ends: {said}"));
                if let Some(error) = outcome.err().filter(|error| !is_expected(error, &world, member)) {
                    world.violation(format!("{name}: {error}"));
                }
            }
        }
        world.broker().leave(member);
        world.pause(0, 3_000).await;
    }
}

/// What faults may end a process with; anything else is a defect.
fn is_expected(error: &PipelineError, world: &World, member: u64) -> bool {
    match error {
        // A stale owner may need what its successor no longer does.
        PipelineError::Log(LogError::Truncated { partition, .. }) => world.broker().owner(*partition) != Some(member),
        PipelineError::Sink { error: SinkError::Fenced { .. }, .. }
        | PipelineError::Store(StoreError::Fenced { .. } | StoreError::Io { .. })
        | PipelineError::Log(LogError::Retry { .. })
        | PipelineError::DrainDeadline(_) => true,
        _ => false,
    }
}

/// One process, to its end.
pub(super) async fn live(process: &Arc<Process>, member: u64, workers: &Workers, number: usize, folder: &Path) -> Ended {
    let (stop, stopped) = watch::channel(false);
    workers.lock().unwrap()[number] = Some(Running { process: Arc::clone(process), member, stop });
    let life = Box::pin(run_engine(process, member, number, folder, stopped));
    tokio::select! {
        biased;
        () = process.killed() => Ended::Killed,
        outcome = life => Ended::Run(outcome),
    }
}

async fn run_engine(
    process: &Arc<Process>,
    member: u64,
    number: usize,
    folder: &Path,
    stopped: watch::Receiver<bool>,
) -> Result<Report, PipelineError> {
    let store = CheckpointStore::open_remote(SimStore::connect(process)).await?;
    let options = EngineOptions { queue_bytes: 2_000, ..EngineOptions::new(folder.join(number.to_string())) };
    let engine = Engine::embedded(options, Arc::new(ProcessClock(Arc::clone(process))), store);
    let spec = process.world.spec.clone();
    let sink = |number| SinkBox(Box::new(SimSink::new(process, number, scenario::is_hook(&spec, number))));
    let sinks = (0..spec.graph.sinks.len()).map(sink).collect();
    let log = SimLog::join(process, member);
    process.world.note(format_args!("{} joins as {member}", process.name));
    let input = Input::Log { log: Box::new(log), finite: false };
    run(&engine, PipelineParts { spec, input, sinks }, DIGEST, stopped, Arc::new(Status::default())).await
}
