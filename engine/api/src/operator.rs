//! What an operator is: a synchronous, clock-free function of rows and state, keyed by device or series.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use fieldstream_schemas::Position;

use crate::{Emitter, KeyedBatch, LogId, SlotDirectory};

/// Whose state an operator (or one of its states) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// No state.
    Stateless,
    /// One entry per device slot.
    Device,
    /// One entry per series slot.
    Series,
}

/// What flows along an edge of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// The columns. `device_id` and a time column `ts` are always among the columns of keyed rows unless a `map` dropped them.
    pub schema: SchemaRef,
    /// `Series` when rows carry series slots, else `Device`.
    pub key: Space,
}

/// One output port.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Port name; `""` is the node itself (`inputs: [node]`), others are written `node.port`. Some operators let users name ports.
    pub name: Arc<str>,
    /// What leaves by it.
    pub edge: Edge,
}

/// Event-time settings of the pipeline (Flink's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowTime {
    /// How far a device's event times may run backwards: its clock is the highest event time seen minus this.
    pub out_of_orderness: Duration,
    /// How long after closing a window accepts rows, which go to `.revised`; later ones go to `.late`.
    pub allowed_lateness: Duration,
}

/// What an operator may know when it is built, once per partition. Never a clock.
#[derive(Clone, Debug)]
pub struct BuildContext {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
    /// Name of the node.
    pub node: Arc<str>,
    /// Log read; a placeholder at lint.
    pub log_id: LogId,
    /// Partition read; 0 at lint.
    pub partition: u32,
    /// Event-time settings.
    pub time: WindowTime,
}

/// The time of a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TickTime {
    /// The partition's time: the log's append time as a running maximum, microseconds since the epoch.
    Append(i64),
    /// A finite input has ended: everything closes.
    EndOfInput,
}

/// A deterministic moment of the partition's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// Where it happens; what it emits carries this position.
    pub position: Position,
    /// What time it is.
    pub time: TickTime,
}

/// A node of the graph. It belongs to one partition and runs one turn at a time.
///
/// Every operator obeys the laws of the test kit: split, replay, isolation, shuffle, passivation and garbage.
pub trait Operator: Send {
    /// Whose state it keeps.
    fn space(&self) -> Space;

    /// Its output ports. A port named `rejected` is implied where [`Emitter::reject`] is used and is not listed.
    fn outputs(&self) -> &[Output];

    /// Handles rows. Every row gets exactly one disposition on `out`; an operator never fails on a row, it rejects it.
    fn on_batch(&mut self, batch: &KeyedBatch, slots: &SlotDirectory, out: &mut Emitter);

    /// Closes what belongs to `devices` (device slots quiet for `idle_after`, or all of them at the end of input).
    /// One tick may come in several calls with disjoint slices of devices.
    fn on_tick(&mut self, tick: &Tick, devices: &[u32], slots: &SlotDirectory, out: &mut Emitter) {
        let _ = (tick, devices, slots, out);
    }

    /// True while a later tick of append time may still emit something for the device or change what it will emit. A device for
    /// which every operator says no is not ticked again before its next row; the end of input reaches it all the same.
    fn pending(&self, device: u32, slots: &SlotDirectory) -> bool {
        let _ = (device, slots);
        false
    }

    /// Codes it may reject with, so that they are shown with a count of zero before the first one; need not be complete.
    fn reject_codes(&self) -> Vec<Arc<str>> {
        Vec::new()
    }

    /// Its keyed states; none for a stateless operator.
    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        Vec::new()
    }
}

/// Saved state that cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another layout than this program writes.
    #[error("state has layout {found}, this program reads layout {expected}")]
    Layout {
        /// Layout number found.
        found: u32,
        /// Layout number that can be read.
        expected: u32,
    },
    /// Columns that do not fit the layout.
    #[error("state columns do not fit: {0}")]
    Columns(String),
}

/// State by slot, as dense columns. Slots are handed out by the runtime; a slot never written is blank.
pub trait KeyedState: Send {
    /// `Device` or `Series`.
    fn space(&self) -> Space;

    /// Number of the snapshot's column layout; it changes whenever the columns or their meaning do.
    fn layout(&self) -> u32;

    /// Makes room so that all slots below `slots` exist.
    fn grow_to(&mut self, slots: usize);

    /// The state of `slots`: the first column is `slot` (`UInt32`), then the layout's columns. Blank slots may be left out; a
    /// slot may have several rows.
    fn snapshot(&self, slots: &[u32]) -> RecordBatch;

    /// Puts back rows written by [`Self::snapshot`] (the runtime may have renumbered the `slot` column). The slots are blank before.
    ///
    /// # Errors
    /// If the columns do not fit the layout.
    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError>;

    /// Makes `slots` blank, so that they can be given to other devices.
    fn clear(&mut self, slots: &[u32]);

    /// Bytes held in memory.
    fn bytes(&self) -> usize;
}
