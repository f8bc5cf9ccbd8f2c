//! Reading a stretch of the journal for one pipeline. Blocks on the disk; readers of one stretch share the page cache.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::buffer::Buffer;
use arrow::compute::{concat_batches, take_record_batch};
use bytes::BytesMut;
use fieldstream_engine_api::{LogBatch, LogEvent, Payloads, Position};
use fieldstream_schemas::{PayloadBlock, PayloadEntry, Reject, readings_schema};

use crate::frame::{FrameHead, Run, decode_body};
use crate::recovery::JUMP;
use crate::scan::{Found, body_at, frame_at, next_frame};
use crate::shared::Shared;
use crate::tables::{Raw, compact, read_raws, read_rejects, split_positions};

/// A stretch ends when one partition has so many rows, ...
const MOST_ROWS: usize = 8192;
/// ... or so many bytes were read, ...
const MOST_BYTES: u64 = 8 << 20;
/// ... or so many frames were passed.
const MOST_FRAMES: usize = 4096;

/// A place between two frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cursor {
    pub(crate) segment: u64,
    /// 0: the segment's first frame.
    pub(crate) at: u64,
}

/// What a partition wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) cursor: Cursor,
    /// Payloads below it were read already.
    pub(crate) offset: u64,
}

/// What was read for a partition.
#[derive(Debug)]
pub(crate) struct PartitionChunk {
    /// In order: batches, and what is lost between them.
    pub(crate) events: Vec<LogEvent>,
    /// First offset after the stretch, rows of other receivers included.
    pub(crate) next_offset: u64,
}

/// A stretch of the journal.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) end: Cursor,
    /// By partition, those whose cursor was reached.
    pub(crate) partitions: BTreeMap<u32, PartitionChunk>,
}

/// The open segment.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    number: u64,
    file: File,
    schemas: [Buffer; 3],
}

/// Reads on from the lowest cursor in `wanted` (by partition, not empty) until there is enough or no more.
pub(crate) fn read_chunk(
    shared: &Shared,
    sources: &[Arc<str>],
    wanted: &BTreeMap<u32, Wanted>,
    open: &mut Option<OpenSegment>,
) -> io::Result<Chunk> {
    let mut end = wanted.values().map(|w| w.cursor).min().unwrap_or(Cursor { segment: 0, at: 0 });
    let mut gathering: BTreeMap<u32, Gather> = BTreeMap::new();
    let (mut bytes, mut frames) = (0, 0);
    while bytes < MOST_BYTES && frames < MOST_FRAMES && gathering.values().all(|g| g.rows < MOST_ROWS) {
        let Some((head, at)) = next_head(shared, &mut end, open)? else { break };
        frames += 1;
        // Compared with where the frame lies, and not with where the search began: deleted segments and damage are leapt over.
        let here = Cursor { segment: end.segment, at };
        for (partition, want) in wanted.iter().filter(|(_, want)| want.cursor <= here) {
            gathering.entry(*partition).or_insert_with(|| Gather::new(*partition, want.offset));
        }
        for run in &head.runs {
            if let Some(partition) = gathering.get_mut(&run.partition) {
                partition.begin_frame(head.number, run.offsets.start)?;
            }
        }
        let needs = |run: &Run| gathering.get(&run.partition).is_some_and(|g| run.offsets.end > g.next_offset);
        let ours = |run: &Run| head.sources.get(run.source as usize).filter(|s| sources.contains(s));
        if let Some(segment) = open.as_ref()
            && head.runs.iter().any(|run| needs(run) && ours(run).is_some())
        {
            bytes += head.len();
            let body = body_at(&segment.file, at, &head)?;
            match Frame::new(&head, &segment.schemas, body, shared.identity.seed()) {
                Ok(frame) => {
                    for partition in gathering.values_mut() {
                        partition.add(&head, &frame, sources).map_err(io::Error::other)?;
                    }
                }
                Err(why) => {
                    shared.lose(segment.number, at, &why);
                    for run in head.runs.iter().filter(|run| ours(run).is_some()) {
                        if let Some(partition) = gathering.get_mut(&run.partition) {
                            partition.lose(run.offsets.end, run.offsets.end - run.offsets.start.min(run.offsets.end))?;
                        }
                    }
                }
            }
        }
        for run in &head.runs {
            if let Some(partition) = gathering.get_mut(&run.partition) {
                partition.next_offset = partition.next_offset.max(run.offsets.end);
            }
        }
    }
    let finished = gathering.into_iter().map(|(partition, gather)| Ok((partition, gather.finish()?)));
    let partitions = finished.collect::<Result<_, arrow::error::ArrowError>>().map_err(io::Error::other)?;
    Ok(Chunk { end, partitions })
}

/// The header of the next frame and its place; moves `end` behind it. `None`: no more is durable.
fn next_head(shared: &Shared, end: &mut Cursor, open: &mut Option<OpenSegment>) -> io::Result<Option<(FrameHead, u64)>> {
    loop {
        let (segment, active) = match shared.index().segment_from(end.segment) {
            Some((segment, active)) => (Arc::clone(segment), active),
            None => return Ok(None),
        };
        let number = segment.head.number;
        if number > end.segment || end.at == 0 {
            *end = Cursor { segment: number, at: segment.head.len };
        }
        let limit = segment.len.load(Acquire);
        if open.as_ref().is_none_or(|o| o.number != number) {
            *open = Some(OpenSegment { number, file: File::open(&segment.path)?, schemas: segment.head.schemas.clone() });
        }
        let Some(file) = open.as_ref().map(|o| &o.file) else { return Ok(None) };
        // What is durable can only have become shorter by damage.
        let limit = limit.min(file.metadata()?.len());
        let seed = shared.identity.seed();
        match frame_at(file, end.at, limit, seed)? {
            Found::Frame(head) => {
                let at = end.at;
                end.at += head.len();
                return Ok(Some((head, at)));
            }
            Found::Damage => {
                shared.lose(number, end.at, "a frame's header is damaged");
                end.at = next_frame(file, end.at + 8, limit, seed)?.unwrap_or(limit);
            }
            Found::End if active => return Ok(None),
            Found::End => *end = Cursor { segment: number + 1, at: 0 },
        }
    }
}

/// The tables of a frame.
struct Frame {
    rows: RecordBatch,
    positions: Vec<Position>,
    rejects: Vec<Reject>,
    raws: Vec<Raw>,
}

impl Frame {
    fn new(head: &FrameHead, schemas: &[Buffer; 3], body: Vec<u8>, seed: u32) -> Result<Self, String> {
        let [rows, rejects, raws] = decode_body(head, schemas, body, seed)?;
        let (rows, positions) = split_positions(&rows).map_err(|e| e.to_string())?;
        let frame = Self { rows, positions, rejects: read_rejects(&rejects), raws: read_raws(&raws) };
        let fits = |run: &Run| {
            run.rows.end as usize <= frame.positions.len()
                && run.rejects.end as usize <= frame.rejects.len()
                && run.raws.end as usize <= frame.raws.len()
        };
        if head.runs.iter().all(fits) { Ok(frame) } else { Err("the frame's index does not fit its tables".to_owned()) }
    }
}

/// Rows of one partition and one source, until another source's come.
#[derive(Default)]
struct Piece {
    source: Option<Arc<str>>,
    rows: Vec<RecordBatch>,
    positions: Vec<Position>,
    rejects: Vec<Reject>,
    raws: Vec<Raw>,
    append_us: Option<i64>,
    next_offset: u64,
}

/// Gathers a partition's payloads.
struct Gather {
    partition: u32,
    next_offset: u64,
    rows: usize,
    piece: Piece,
    /// The newest frame with payloads of this partition.
    frame: Option<u64>,
    done: Vec<LogEvent>,
}

impl Gather {
    fn new(partition: u32, next_offset: u64) -> Self {
        Self { partition, next_offset, rows: 0, piece: Piece::default(), frame: None, done: Vec::new() }
    }

    /// A frame's payloads of this partition begin at `offset`. If that is further than expected, frames before it could not be read.
    /// Whose payloads they held is not known either, so every pipeline counts them.
    fn begin_frame(&mut self, number: u64, offset: u64) -> Result<(), io::Error> {
        if self.frame.replace(number) == Some(number) {
            return Ok(());
        }
        match offset.saturating_sub(self.next_offset) {
            0 => Ok(()),
            // After damage that hides how many offsets were given out, numbering has leapt.
            lost => self.lose(offset, (lost % JUMP).max(1)),
        }
    }

    /// Payloads below `next_offset` are lost, `payloads` of them at most.
    fn lose(&mut self, next_offset: u64, payloads: u64) -> Result<(), io::Error> {
        if next_offset > self.next_offset {
            self.close().map_err(io::Error::other)?;
            let payloads = payloads.min(next_offset - self.next_offset);
            self.done.push(LogEvent::Lost { partition: self.partition, next_offset, payloads });
            self.next_offset = next_offset;
        }
        Ok(())
    }

    /// Takes this partition's payloads of a frame, from sources that are read.
    fn add(&mut self, head: &FrameHead, frame: &Frame, sources: &[Arc<str>]) -> Result<(), arrow::error::ArrowError> {
        let mut order: Vec<u32> = Vec::new();
        let (mut from, partition) = (self.next_offset, self.partition);
        for run in head.runs.iter().filter(|r| r.partition == partition) {
            let Some(source) = head.sources.get(run.source as usize).filter(|s| sources.contains(s)) else { continue };
            if run.offsets.end <= from {
                continue;
            }
            if self.piece.source.as_ref() != Some(source) {
                self.take_rows(frame, &mut order)?;
                self.close()?;
                self.piece.source = Some(Arc::clone(source));
            }
            let wanted = |row: &u32| frame.positions.get(*row as usize).is_some_and(|p| p.offset >= from);
            let rows = run.rows.clone().filter(wanted);
            order.extend(rows.clone());
            self.piece.positions.extend(rows.filter_map(|row| frame.positions.get(row as usize)));
            let rejects = frame.rejects.get(run.rejects.start as usize..run.rejects.end as usize).unwrap_or_default();
            self.piece.rejects.extend(rejects.iter().filter(|r| r.position.offset >= from).cloned());
            let raws = frame.raws.get(run.raws.start as usize..run.raws.end as usize).unwrap_or_default();
            self.piece.raws.extend(raws.iter().filter(|r| r.offset >= from).cloned());
            self.piece.append_us = self.piece.append_us.max(Some(head.commit_us));
            self.piece.next_offset = run.offsets.end;
            self.rows += run.rows.len() + run.rejects.len();
            from = run.offsets.end;
        }
        self.take_rows(frame, &mut order)
    }

    /// Copies the gathered rows out of the frame, so that it is not kept alive by them.
    fn take_rows(&mut self, frame: &Frame, order: &mut Vec<u32>) -> Result<(), arrow::error::ArrowError> {
        if !order.is_empty() {
            let rows = UInt32Array::from(std::mem::take(order));
            self.piece.rows.push(compact(&take_record_batch(&frame.rows, &rows)?)?);
        }
        Ok(())
    }

    /// Makes a batch of what was gathered from one source.
    fn close(&mut self) -> Result<(), arrow::error::ArrowError> {
        let piece = std::mem::take(&mut self.piece);
        let Some(source) = piece.source else { return Ok(()) };
        let rows = match piece.rows.as_slice() {
            [one] => one.clone(),
            many => compact(&concat_batches(&readings_schema(), many)?)?,
        };
        let raw = (!piece.raws.is_empty()).then(|| block_of(&piece.raws));
        let payloads = Payloads::Rows { rows, positions: piece.positions, rejects: piece.rejects, raw };
        let (partition, next_offset, append_us) = (self.partition, piece.next_offset, piece.append_us);
        self.done.push(LogEvent::Batch(LogBatch { partition, source, next_offset, append_us, payloads }));
        Ok(())
    }

    fn finish(mut self) -> Result<PartitionChunk, arrow::error::ArrowError> {
        self.close()?;
        if let Some(LogEvent::Batch(last)) = self.done.last_mut() {
            last.next_offset = self.next_offset;
        }
        Ok(PartitionChunk { events: self.done, next_offset: self.next_offset })
    }
}

/// Kept payloads as a block.
fn block_of(raws: &[Raw]) -> PayloadBlock {
    let mut data = BytesMut::with_capacity(raws.iter().map(|r| r.payload.len()).sum());
    let mut entries = Vec::with_capacity(raws.len());
    for raw in raws {
        let (start, len) = (data.len() as u32, raw.payload.len() as u32);
        entries.push(PayloadEntry { offset: raw.offset, start, len, ingest_us: raw.ingest_us });
        data.extend_from_slice(&raw.payload);
    }
    PayloadBlock { data: data.freeze(), entries, ..PayloadBlock::default() }
}

/// An empty batch that moves a partition past payloads of other receivers.
pub(crate) fn skip_batch(partition: u32, source: &Arc<str>, next_offset: u64) -> LogBatch {
    let rows = RecordBatch::new_empty(readings_schema());
    let payloads = Payloads::Rows { rows, positions: Vec::new(), rejects: Vec::new(), raw: None };
    LogBatch { partition, source: Arc::clone(source), next_offset, append_us: None, payloads }
}
