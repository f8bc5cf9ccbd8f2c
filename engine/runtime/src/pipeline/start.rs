//! A coordinator with its sinks' tasks, before it has taken anything over.

use std::collections::BTreeMap;
use std::sync::Arc;

use fieldstream_engine_api::Generation;
use tokio::sync::{mpsc, watch};

use super::Coordinator;
use crate::engine::Engine;
use crate::input::{self, Opened};
use crate::queue::OutputRoom;
use crate::reload::Terms;
use crate::shard::Outlet;
use crate::sink_task::{SinkHandle, SinkShared, SinkTask};
use crate::spec::{PipelineSpec, SinkBox};
use crate::status::{SinkStatus, Status};

impl<'a> Coordinator<'a> {
    /// Starts the sinks' tasks; [`Self::work`] does the rest, and [`Self::end`] must follow.
    pub(crate) fn start(
        engine: &'a Engine,
        spec: PipelineSpec,
        connections: Vec<SinkBox>,
        Opened { log, finite, receivers }: Opened,
        (digest, terms): (&str, Terms),
        stop: watch::Receiver<bool>,
        status: Arc<Status>,
    ) -> Self {
        let start = engine.clock.monotonic();
        let events = mpsc::unbounded_channel();
        let room = Arc::new(OutputRoom::new(engine.options.output_bytes));
        let shared = SinkShared {
            pipeline: Arc::clone(&spec.name),
            room: Arc::clone(&room),
            events: events.0.clone(),
            clock: Arc::clone(&engine.clock),
        };
        let number = engine.next_pipeline();
        status.begin(number, digest, &events.0);
        let (mut sinks, mut outlets) = (Vec::new(), Vec::new());
        for (number, (sink, SinkBox(connection))) in spec.graph.sinks.iter().zip(connections).enumerate() {
            let (work, queue) = mpsc::unbounded_channel();
            let task = SinkTask::new(number, Arc::clone(&sink.name), connection, sink.gather, &shared);
            outlets.push((work.clone(), Arc::clone(&task.stats)));
            status.lock().sinks.push(SinkStatus::new(sink.dead_letter, &sink.name, &task.stats));
            sinks.push(SinkHandle { name: Arc::clone(&sink.name), work, task: tokio::spawn(task.run(queue)) });
        }
        if let Some(receivers) = receivers {
            tokio::spawn(input::tell(receivers, events.0.clone()));
        }
        Self {
            engine,
            number,
            log,
            finite,
            sinks,
            outlet: Outlet { sinks: outlets, events: events.0, room, digest: digest.into(), generation: Generation::default() },
            owned: BTreeMap::new(),
            status,
            terms,
            assigned: false,
            events: events.1,
            stop,
            draining: false,
            stopped: false,
            ends: None,
            started_at: start,
            heard_at: start,
            stepping: BTreeMap::new(),
            overtaken: BTreeMap::new(),
            drain_until: None,
            prunes: Vec::new(),
            saving: None,
            spec: Arc::new(spec),
        }
    }
}
