//! A pipeline's input as one log: its own, or what its receivers write to: the node's journal, or a topic that stands for it.

use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::{Append, BuiltJournal, Log, Receiver};
use fieldstream_journal::JournalError;
use fieldstream_schemas::decode::Decoder;
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

/// Receivers, and where they write: what is left of an input without its log.
pub(crate) struct Receivers {
    receivers: Vec<(usize, Box<dyn Receiver>, Decoder)>,
    /// A topic that stands for the node's journal.
    topic: Option<Arc<dyn Append>>,
}

/// An input by what there is to be done for it.
pub(crate) enum Parted {
    /// A log of its own.
    Ready(Opened),
    /// Receivers, and the topic as a log where one stands for the node's journal.
    Received(Receivers, Option<Box<dyn Log>>),
}

/// Takes an input apart.
pub(crate) fn part(input: Input, spec: &PipelineSpec) -> Parted {
    match input {
        Input::Log { log, finite } => Parted::Ready(Opened { log, finite, receivers: None }),
        Input::Receivers(receivers) => {
            let receivers = receivers.into_iter().map(|(source, receiver)| (source, receiver, (spec.sources[source].decoder)())).collect();
            Parted::Received(Receivers { receivers, topic: None }, None)
        }
        Input::Gateway { receivers, journal: BuiltJournal { writer, log } } => {
            Parted::Received(Receivers { receivers, topic: Some(writer) }, Some(log))
        }
    }
}

impl Intake {
    /// Starts receivers, which work until they end or `stop` says so.
    pub(crate) async fn start(
        engine: &Engine,
        spec: &PipelineSpec,
        Receivers { receivers, topic }: Receivers,
        stop: &watch::Receiver<bool>,
        status: &Arc<Status>,
    ) -> Result<Self, JournalError> {
        let (writer, journal): (Arc<dyn Append>, _) = match topic {
            Some(topic) => (topic, None),
            None => {
                let journal = engine.journal().await?.clone();
                // Registered before the first append: what comes from now on is held for this pipeline.
                journal.register(&spec.name)?;
                (Arc::new(journal.clone()), Some(journal))
            }
        };
        let ingest = |(source, receiver, decoder): (usize, Box<dyn Receiver>, Decoder)| Ingest {
            source: Arc::clone(&spec.sources[source].name),
            receiver,
            decoder,
            journal: Arc::clone(&writer),
            clock: Arc::clone(&engine.clock),
            stop: stop.clone(),
            admission: Admission::new(spec.max_devices_per_source),
            tight: engine.tight.clone(),
            status: Arc::clone(status),
        };
        let ingests = receivers.into_iter().map(ingest).collect();
        let (done, ended) = watch::channel(None);
        let task = tokio::spawn(run_all(ingests, journal, done));
        Ok(Self { done: ended, task })
    }

    /// What the receivers wrote as this pipeline reads it: the `topic`, or the node's journal.
    pub(crate) async fn open(&self, engine: &Engine, spec: &PipelineSpec, topic: Option<Box<dyn Log>>) -> Result<Opened, JournalError> {
        let log = match topic {
            Some(topic) => topic,
            None => journal_log(engine.journal().await?, spec)?,
        };
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
    match part(input, spec) {
        Parted::Ready(opened) => Ok(opened),
        Parted::Received(receivers, topic) => Intake::start(engine, spec, receivers, stop, status).await?.open(engine, spec, topic).await,
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
