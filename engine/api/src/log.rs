//! Where rows come from: logs, which replay, and receivers, which the journal makes replayable.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use async_trait::async_trait;
use fieldstream_schemas::{Decoded, PayloadBlock, Position, Reject};

use crate::LogId;

/// What a log says about a partition when it assigns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Partition number.
    pub partition: u32,
    /// Identity of the log.
    pub log_id: LogId,
    /// Lowest offset that can still be read.
    pub first_offset: u64,
    /// First offset after the end, as known now.
    pub end_offset: u64,
}

/// Consecutive payloads of one partition.
#[derive(Clone, Debug)]
pub struct LogBatch {
    /// Partition number.
    pub partition: u32,
    /// The source (receiver or log) the payloads came through.
    pub source: Arc<str>,
    /// First offset after this batch. A batch holds whole payloads.
    pub next_offset: u64,
    /// Append time of the newest payload, microseconds since the epoch; `None` for finite inputs.
    pub append_us: Option<i64>,
    /// What is in it.
    pub payloads: Payloads,
}

/// Payloads, decoded or not.
#[derive(Clone, Debug)]
pub enum Payloads {
    /// As they came: decoded on the shard.
    Raw(PayloadBlock),
    /// Decoded before they were journaled. Positions ascend; rejects carry their bytes.
    Rows {
        /// Readings.
        rows: RecordBatch,
        /// One per row.
        positions: Vec<Position>,
        /// Undecodable payloads.
        rejects: Vec<Reject>,
        /// Payload bytes where the receiver keeps them (`keep_raw`).
        raw: Option<PayloadBlock>,
    },
}

impl Payloads {
    /// Bytes that count against the queue's budget.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Raw(block) => {
                let origins = block.origins.iter().flatten().flatten().map(|origin| origin.len()).sum::<usize>();
                let entries = block.entries.len() * size_of::<fieldstream_schemas::PayloadEntry>();
                block.data.len() + entries + origins + rejects_bytes(&block.refused)
            }
            Self::Rows { rows, positions, rejects, raw } => {
                rows.get_array_memory_size()
                    + positions.len() * size_of::<Position>()
                    + rejects_bytes(rejects)
                    + raw.as_ref().map_or(0, |b| b.data.len())
            }
        }
    }
}

fn rejects_bytes(rejects: &[Reject]) -> usize {
    rejects.iter().map(|r| r.payload.len() + 64).sum()
}

impl LogBatch {
    /// Cuts the batch before the payload at log offset `offset`: what lies below it (`None` if nothing does), and the rest.
    #[must_use]
    pub fn split_at(mut self, offset: u64) -> (Option<Self>, Self) {
        let below = match &mut self.payloads {
            Payloads::Raw(block) => block.split_below(offset).map(Payloads::Raw),
            Payloads::Rows { rows, positions, rejects, raw } => {
                let row = positions.partition_point(|p| p.offset < offset);
                let reject = rejects.partition_point(|r| r.position.offset < offset);
                (row + reject > 0).then(|| {
                    let rest = positions.split_off(row);
                    let below_rows = rows.slice(0, row);
                    *rows = rows.slice(row, rest.len());
                    let rest_rejects = rejects.split_off(reject);
                    let below = std::mem::replace(positions, rest);
                    let below_rejects = std::mem::replace(rejects, rest_rejects);
                    Payloads::Rows { rows: below_rows, positions: below, rejects: below_rejects, raw: raw.clone() }
                })
            }
        };
        let below = below.map(|payloads| Self { payloads, next_offset: offset, source: Arc::clone(&self.source), ..self });
        (below, self)
    }
}

impl LogBatch {
    /// Joins consecutive batches of one partition and source into one turn's worth; those that cannot be joined come back as they are.
    #[must_use]
    pub fn join(batches: Vec<Self>) -> Vec<Self> {
        if batches.len() < 2 {
            return batches;
        }
        let Some(payloads) = Payloads::join(&batches) else { return batches };
        let append_us = batches.iter().filter_map(|batch| batch.append_us).max();
        let last = batches.into_iter().next_back();
        last.map(|last| Self { payloads, append_us, ..last }).into_iter().collect()
    }
}

impl Payloads {
    /// Rows and undecodable payloads; payloads where they are not decoded yet.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Self::Raw(block) => block.entries.len() + block.refused.len(),
            Self::Rows { rows, rejects, .. } => rows.num_rows() + rejects.len(),
        }
    }

    fn join(batches: &[LogBatch]) -> Option<Self> {
        let (mut blocks, mut tables) = (Vec::new(), Vec::new());
        let (mut all_positions, mut all_rejects) = (Vec::new(), Vec::new());
        for batch in batches {
            match &batch.payloads {
                Self::Raw(block) => blocks.push(block.clone()),
                Self::Rows { rows, positions, rejects, raw } => {
                    blocks.extend(raw.clone());
                    tables.push(rows);
                    all_positions.extend_from_slice(positions);
                    all_rejects.extend_from_slice(rejects);
                }
            }
        }
        let some_raw = !blocks.is_empty();
        if some_raw && blocks.len() < batches.len() {
            return None;
        }
        let Some(first) = tables.first() else { return PayloadBlock::join(&blocks).map(Self::Raw) };
        if tables.len() < batches.len() {
            return None;
        }
        let rows = concat_batches(&first.schema(), tables.iter().copied()).ok()?;
        let raw = if some_raw { Some(PayloadBlock::join(&blocks)?) } else { None };
        Some(Self::Rows { rows, positions: all_positions, rejects: all_rejects, raw })
    }
}

/// What a log reports.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // moved once per batch, and nearly all events are batches
pub enum LogEvent {
    /// Partitions are now ours: claim, restore and [`Log::seek`] them; nothing is read before the seek.
    Assigned(Vec<Assignment>),
    /// Partitions are no longer ours: end what is being committed of them, then say so by [`Log::released`]. They may have been
    /// unknown to the engine.
    Revoked(Vec<u32>),
    /// Payloads.
    Batch(LogBatch),
    /// Payloads that were acknowledged are lost: the log is damaged. In order with the batches of the partition.
    Lost {
        /// Partition number.
        partition: u32,
        /// First offset after them.
        next_offset: u64,
        /// How many; where damage hides the number, at least as many.
        payloads: u64,
    },
    /// A finite partition has no more payloads.
    EndOfInput {
        /// Partition number.
        partition: u32,
        /// First offset after the end.
        next_offset: u64,
    },
}

/// Why a log cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It will be tried again with backoff.
    #[error("{context}: {cause}")]
    Retry {
        /// What was being done.
        context: String,
        /// The client's own words.
        cause: String,
    },
    /// A person must act.
    #[error("{context}: {cause}")]
    Fatal {
        /// What was being done.
        context: String,
        /// The client's own words.
        cause: String,
    },
    /// The wanted offset is no longer there.
    #[error("partition {partition} begins at offset {first_offset}, but offset {wanted} is needed")]
    Truncated {
        /// Partition number.
        partition: u32,
        /// Offset that was asked for.
        wanted: u64,
        /// Lowest offset there is.
        first_offset: u64,
    },
}

/// An ordered, replayable, partitioned input with an identity. Kafka is one, the journal is one, a set of files is one.
#[async_trait]
pub trait Log: Send {
    /// Waits for the next event. Must be safe to drop and call again (it is raced with other events).
    async fn next(&mut self) -> Result<LogEvent, LogError>;

    /// Where a partition without a checkpoint begins: at its lowest offset, unless the log's options say otherwise.
    fn start_offset(&self, assignment: &Assignment) -> u64 {
        assignment.first_offset
    }

    /// First offset after the end of `partition`, asked for when an owner before has read beyond the end that the assignment
    /// names. `None`: nobody else reads this log, so the assignment is right.
    async fn end_offset(&mut self, partition: u32) -> Result<Option<u64>, LogError> {
        let _ = partition;
        Ok(None)
    }

    /// Reads `partition` from `offset` on. Called once after each assignment, and again on recovery. Does nothing for a partition
    /// whose revocation is on its way.
    async fn seek(&mut self, partition: u32, offset: u64) -> Result<(), LogError>;

    /// Everything below `offset` is in a checkpoint: retention, or group offsets, may follow.
    async fn acknowledge(&mut self, partition: u32, offset: u64) -> Result<(), LogError>;

    /// The engine has given a partition up: nothing of it will be committed any more. True when the log has taken it away, or
    /// will; false when nobody takes partitions from this log.
    fn released(&mut self, _partition: u32) -> bool {
        false
    }

    /// First offset of a partition that has not been looked at, what belongs to other pipelines included; `None` where that is not
    /// known, or while something below it waits to be given.
    fn read_to(&self, partition: u32) -> Option<u64> {
        let _ = partition;
        None
    }

    /// Stops or resumes delivery of a partition whose queue is full.
    fn pause(&mut self, partition: u32, paused: bool);
}

/// Payloads from something that cannot replay.
#[derive(Debug)]
pub struct Received {
    /// Payloads in receive order; offsets in it are placeholders, the journal assigns them.
    pub block: PayloadBlock,
    /// Given back to [`Receiver::acknowledge`] when the payloads are durable.
    pub handle: u64,
}

/// Why a receiver cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// It will be tried again with backoff.
    #[error("{context}: {cause}")]
    Retry {
        /// What was being done.
        context: String,
        /// The client's own words.
        cause: String,
    },
    /// A person must act.
    #[error("{context}: {cause}")]
    Fatal {
        /// What was being done.
        context: String,
        /// The client's own words.
        cause: String,
    },
}

/// Why payloads are not in the log that stands for the journal.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// They are to be appended again, in a moment or when there is room.
    #[error("{context}: {cause}")]
    Retry {
        /// What was being done.
        context: String,
        /// What stands against it.
        cause: String,
    },
    /// A person must act.
    #[error("{context}: {cause}")]
    Fatal {
        /// What was being done.
        context: String,
        /// What stands against it.
        cause: String,
    },
}

/// The end of a log that receivers write to: the journal of the node, or a topic that stands for it.
#[async_trait]
pub trait Append: Send + Sync {
    /// Appends what `source` received and waits until all of it is durable. `now_us` is the append time, microseconds since the
    /// epoch. Calls with one source come one after the other; their order is the order of each device in the log. After an error a part of it
    /// may be in the log. Dropping the future takes nothing back.
    async fn append(&self, source: &str, decoded: &Decoded, now_us: i64) -> Result<(), AppendError>;

    /// Waits until there is room again in a log that had none; for ever where that is not known.
    async fn room(&self) {
        std::future::pending().await
    }
}

/// An input that cannot replay (MQTT, HTTP, ...). The runtime decodes, journals, then acknowledges in receive order.
#[async_trait]
pub trait Receiver: Send {
    /// Waits for payloads; `None` when the input has ended for good. Must be safe to drop and call again.
    async fn next(&mut self) -> Result<Option<Received>, ReceiveError>;

    /// Everything received up to and with `handle` is durable.
    async fn acknowledge(&mut self, handle: u64) -> Result<(), ReceiveError>;
}
