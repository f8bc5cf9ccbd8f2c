//! A pipeline's input as one log: its own, or the journal behind its receivers.

use std::sync::Arc;

use fieldstream_engine_api::{Log, Receiver};
use fieldstream_journal::JournalError;
use tokio::sync::{mpsc, watch};

use crate::admission::Admission;
use crate::engine::Engine;
use crate::event::Event;
use crate::ingest::{Ingest, run_all};
use crate::spec::{Input, PipelineSpec};
use crate::status::Status;

/// A log ready to be read, and whether it ends by itself.
pub(crate) struct Opened {
    pub(crate) log: Box<dyn Log>,
    pub(crate) finite: bool,
}

/// Opens `input`; receivers start to fill the journal at once.
pub(crate) async fn open(
    engine: &Engine,
    spec: &PipelineSpec,
    input: Input,
    stop: &watch::Receiver<bool>,
    events: &mpsc::UnboundedSender<Event>,
    status: &Arc<Status>,
) -> Result<Opened, JournalError> {
    match input {
        Input::Log { log, finite } => Ok(Opened { log, finite }),
        Input::Receivers(receivers) => {
            let journal = engine.journal().await?.clone();
            let names: Vec<&str> = receivers.iter().map(|(source, _)| &*spec.sources[*source].name).collect();
            let log = journal.log(&spec.name, &names)?;
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
            tokio::spawn(run_all(ingests, journal.clone(), events.clone()));
            Ok(Opened { log: Box::new(log), finite: false })
        }
    }
}
