//! A pipeline's input as one log: its own, or the journal behind its receivers.

use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::{Log, Receiver};
use fieldstream_journal::JournalError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::admission::Admission;
use crate::clock::{Clock, within};
use crate::engine::Engine;
use crate::event::Event;
use crate::ingest::{Done, Ingest, run_all};
use crate::spec::{Input, PipelineSpec};
use crate::status::Status;

/// A log ready to be read.
pub(crate) struct Opened {
    pub(crate) log: Box<dyn Log>,
    /// True when it ends by itself.
    pub(crate) finite: bool,
    /// How its receivers end.
    pub(crate) receivers: Option<watch::Receiver<Option<Done>>>,
}

/// Receivers at work: they fill the journal whether or not somebody reads it, so that they outlive a change of plan.
pub(crate) struct Intake {
    done: watch::Receiver<Option<Done>>,
    task: JoinHandle<()>,
}

impl Intake {
    /// Starts `receivers`, which work until they end or `stop` says so.
    pub(crate) async fn start(
        engine: &Engine,
        spec: &PipelineSpec,
        receivers: Vec<(usize, Box<dyn Receiver>)>,
        stop: &watch::Receiver<bool>,
        status: &Arc<Status>,
    ) -> Result<Self, JournalError> {
        let journal = engine.journal().await?.clone();
        // Registered before the first append: what comes from now on is held for this pipeline.
        journal.register(&spec.name)?;
        let ingest = |(source, receiver): (usize, Box<dyn Receiver>)| Ingest {
            source: Arc::clone(&spec.sources[source].name),
            receiver,
            decoder: (spec.sources[source].decoder)(),
            journal: journal.clone(),
            clock: Arc::clone(&engine.clock),
            stop: stop.clone(),
            admission: Admission::new(spec.max_devices_per_source),
            tight: engine.tight.clone(),
            status: Arc::clone(status),
        };
        let ingests = receivers.into_iter().map(ingest).collect();
        let (done, ended) = watch::channel(None);
        let task = tokio::spawn(run_all(ingests, journal.clone(), done));
        Ok(Self { done: ended, task })
    }

    /// The journal as this pipeline reads it.
    pub(crate) async fn open(&self, engine: &Engine, spec: &PipelineSpec) -> Result<Opened, JournalError> {
        let log = journal_log(engine.journal().await?, spec)?;
        Ok(Opened { log, finite: false, receivers: Some(self.done.clone()) })
    }

    /// Waits until receivers that were told to stop have done so: what they took is durable and acknowledged. One that waits for
    /// room in a full journal is cut off after `patience`: its sender was told nothing and sends again.
    pub(crate) async fn ended(mut self, clock: &dyn Clock, patience: Duration) {
        if within(clock, patience, &mut self.task).await.is_none() {
            self.task.abort();
        }
    }
}

fn journal_log(journal: &fieldstream_journal::Journal, spec: &PipelineSpec) -> Result<Box<dyn Log>, JournalError> {
    let names: Vec<&str> = spec.sources.iter().map(|source| &*source.name).collect();
    Ok(Box::new(journal.log(&spec.name, &names)?))
}

/// Opens `input`; receivers start to fill the journal at once.
pub(crate) async fn open(
    engine: &Engine,
    spec: &PipelineSpec,
    input: Input,
    stop: &watch::Receiver<bool>,
    status: &Arc<Status>,
) -> Result<Opened, JournalError> {
    match input {
        Input::Log { log, finite } => Ok(Opened { log, finite, receivers: None }),
        Input::Receivers(receivers) => Intake::start(engine, spec, receivers, stop, status).await?.open(engine, spec).await,
    }
}

/// Tells a coordinator how its receivers ended, for as long as it listens.
pub(crate) async fn tell(mut receivers: watch::Receiver<Option<Done>>, events: mpsc::UnboundedSender<Event>) {
    let done = tokio::select! {
        done = receivers.wait_for(Option::is_some) => done.ok().and_then(|done| done.clone()),
        () = events.closed() => None,
    };
    let event = match done {
        Some(Done::All { ends }) => Event::ReceiversDone { ends },
        Some(Done::Failed { source, error }) => Event::ReceiverFailed { source, error },
        None => return,
    };
    // The coordinator may have ended first.
    let _ = events.send(event);
}
