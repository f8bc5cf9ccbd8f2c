//! The actix actor, one per core, that hosts partitions and gives them their turns.
//!
//! Its mailbox carries tokens ("this partition is ready"), never rows. A turn runs behind `catch_unwind`: actix does not
//! restart an actor whose handler panics, and a panic must cost one partition's turn, never a neighbour.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::fut::wrap_future;
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message};
use fieldstream_engine_api::{Generation, LogBatch, SinkRows};
use tokio::sync::{mpsc, oneshot};

use crate::event::{Event, PartitionEvent};
use crate::partition::{Partition, TurnOutput};
use crate::queue::{NextTurn, OutputRoom, PartitionQueue, Work};
use crate::sink_task::{SinkStats, SinkWork};
use crate::spec::TurnLimits;

/// Tokens never outnumber partitions, since each has at most one on its way.
const MAILBOX: usize = 1 << 16;

/// A partition of a pipeline on this node.
pub type HostId = (u32, u32);

/// Where a partition's output goes.
#[derive(Clone, Debug)]
pub struct Outlet {
    /// One queue per sink.
    pub sinks: Vec<(mpsc::UnboundedSender<SinkWork>, Arc<SinkStats>)>,
    /// The coordinator.
    pub events: mpsc::UnboundedSender<Event>,
    /// Bytes that may be on their way.
    pub room: Arc<OutputRoom>,
    /// Digest of the plan, for checkpoints.
    pub digest: Arc<str>,
    /// Incarnation of the partition.
    pub generation: Generation,
}

struct Hosted {
    partition: Partition,
    queue: Arc<PartitionQueue>,
    outlet: Outlet,
    poisoned: bool,
    turn: TurnLimits,
    /// A timer runs for the rows that wait.
    waits: bool,
    /// The timer has run out: the next turn takes what there is.
    overdue: bool,
}

/// The actor.
#[derive(Default)]
pub struct Shard {
    hosted: HashMap<HostId, Hosted>,
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").field("hosted", &self.hosted.len()).finish()
    }
}

impl Actor for Shard {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

/// Take this partition in (again, after a restore).
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Host {
    /// Its number.
    pub id: HostId,
    /// The partition.
    pub partition: Box<Partition>,
    /// Its queue.
    pub queue: Arc<PartitionQueue>,
    /// Where output goes.
    pub outlet: Outlet,
    /// How rows are gathered.
    pub turn: TurnLimits,
}

/// This partition has work.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Ready {
    /// Its number.
    pub id: HostId,
}

/// The rows that wait for others have waited long enough.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
struct Overdue {
    id: HostId,
}

/// Give this partition up.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Remove {
    /// Its number.
    pub id: HostId,
}

/// Look at a device actor.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Inspect {
    /// Partition that would host it.
    pub id: HostId,
    /// Device id.
    pub device: String,
    /// Gets what was found; `None` when the device is not active here.
    pub reply: oneshot::Sender<Option<serde_json::Value>>,
}

impl Handler<Host> for Shard {
    type Result = ();

    fn handle(&mut self, message: Host, _: &mut Self::Context) {
        let Host { id, partition, queue, outlet, turn } = message;
        let hosted = Hosted { partition: *partition, queue, outlet, poisoned: false, turn, waits: false, overdue: false };
        self.hosted.insert(id, hosted);
    }
}

impl Handler<Remove> for Shard {
    type Result = ();

    fn handle(&mut self, message: Remove, _: &mut Self::Context) {
        self.hosted.remove(&message.id);
    }
}

impl Handler<Inspect> for Shard {
    type Result = ();

    fn handle(&mut self, message: Inspect, _: &mut Self::Context) {
        let found = self.hosted.get_mut(&message.id).and_then(|h| h.partition.inspect(&message.device));
        // Nobody waits any more when the receiver is gone.
        let _ = message.reply.send(found);
    }
}

impl Handler<Overdue> for Shard {
    type Result = ();

    fn handle(&mut self, message: Overdue, ctx: &mut Self::Context) {
        let Some(hosted) = self.hosted.get_mut(&message.id) else { return };
        (hosted.waits, hosted.overdue) = (false, true);
        if hosted.queue.schedule() {
            ctx.notify(Ready { id: message.id });
        }
    }
}

impl Handler<Ready> for Shard {
    type Result = ();

    fn handle(&mut self, message: Ready, ctx: &mut Self::Context) {
        let Some(hosted) = self.hosted.get_mut(&message.id) else { return };
        if hosted.poisoned || !hosted.outlet.room.is_free() {
            // The coordinator sends a new token when it has restored the partition, or when output became durable.
            hosted.queue.unschedule();
            // Output may have become durable between the look and the line above; then nobody else sends the token.
            if !hosted.poisoned && hosted.outlet.room.is_free() && hosted.queue.schedule() {
                ctx.notify(message);
            }
            return;
        }
        let overdue = std::mem::take(&mut hosted.overdue);
        match hosted.queue.next_turn(&hosted.turn, overdue) {
            NextTurn::Nothing => {}
            NextTurn::Work(work) => hosted.take_turn(work),
            NextTurn::Batches(batches) => {
                for batch in LogBatch::join(batches) {
                    hosted.take_turn(Work::Batch(batch));
                }
            }
            NextTurn::Wait => {
                if !std::mem::replace(&mut hosted.waits, true) {
                    let wait = wrap_future::<_, Self>(hosted.partition.clock().sleep(hosted.turn.max_wait));
                    ctx.spawn(wait.map(move |(), _, ctx| ctx.notify(Overdue { id: message.id })));
                }
                hosted.queue.unschedule();
                // What came in between may be what it waits for, and then nobody else sends the token.
                if hosted.queue.is_ready(&hosted.turn) && hosted.queue.schedule() {
                    ctx.notify(message);
                }
                return;
            }
        }
        if hosted.queue.is_empty() {
            hosted.queue.unschedule();
            if !hosted.queue.schedule() {
                return;
            }
        }
        // The token goes behind those of the other partitions: turns are fair.
        ctx.notify(message);
    }
}

impl Hosted {
    fn take_turn(&mut self, work: Work) {
        let partition = &mut self.partition;
        let digest = &self.outlet.digest;
        let reached = if let Work::Batch(batch) = &work { batch.next_offset } else { partition.complete_to().next_offset };
        let turn = catch_unwind(AssertUnwindSafe(|| match work {
            Work::Batch(batch) => Ok((partition.turn(batch)?, None)),
            Work::Decide(decision) => Ok((vec![partition.decide(&decision)?], None)),
            Work::Lost { next_offset, payloads } => Ok((partition.lost(next_offset, payloads)?, None)),
            Work::CatchUp => Ok((partition.catch_up()?, None)),
            Work::Snapshot(kind) => Ok((Vec::new(), Some((Box::new(partition.snapshot_of(digest, kind)?), partition.state_bytes())))),
        }));
        match turn {
            Ok(Err(error)) => {
                self.poisoned = true;
                self.tell(PartitionEvent::Failed { error });
            }
            Ok(Ok((outputs, snapshot))) => {
                outputs.into_iter().for_each(|output| self.release(output));
                if let Some((data, state_bytes)) = snapshot {
                    self.tell(PartitionEvent::Snapshot { data, state_bytes });
                }
            }
            Err(panic) => {
                self.poisoned = true;
                let node = self.partition.graph().running().unwrap_or("ingress").to_owned();
                let position = self.partition.stepping_at();
                self.tell(PartitionEvent::Panicked { node, message: panic_message(&*panic), position, reached });
            }
        }
    }

    fn release(&mut self, output: TurnOutput) {
        let TurnOutput { partition, rows, complete_to, totals, ingest_us, event_us } = output;
        for ((sink, stats), rows) in self.outlet.sinks.iter().zip(rows) {
            let bytes = rows.iter().map(sink_rows_bytes).sum();
            self.outlet.room.take(bytes);
            stats.queued.fetch_add(rows.iter().map(|r| r.batch.len() as u64).sum(), Ordering::Relaxed);
            // A sink task that has ended has told the coordinator why.
            let _ = sink.send(SinkWork::Rows { partition, rows, complete_to, bytes, ingest_us, event_us });
        }
        let meters = self.partition.graph().meters().map(|(_, _, meter)| meter).collect();
        let active_devices = self.partition.slots().active_devices();
        let passivated_devices = self.partition.passivated_devices();
        self.tell(PartitionEvent::Turn { complete_to, totals, meters, active_devices, passivated_devices, event_us });
    }

    fn tell(&self, what: PartitionEvent) {
        let partition = self.partition.key().partition;
        // The coordinator outlives its partitions; when it is gone, so is the pipeline.
        let _ = self.outlet.events.send(Event::Partition { partition, generation: self.outlet.generation, what });
    }
}

fn sink_rows_bytes(rows: &SinkRows) -> usize {
    rows.batch.rows.get_array_memory_size() + rows.batch.len() * size_of::<fieldstream_engine_api::Position>()
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
