//! The journal as a [`Log`]: what one pipeline reads of it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use fieldstream_engine_api::{Log, LogError, LogEvent, is_shortage};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Journal;
use crate::read::{Chunk, Cursor, OpenSegment, Wanted, read_chunk, skip_batch};

/// A pipeline's reader. All partitions belong to it from the start. Rows of receivers it does not name are passed over;
/// where a partition holds nothing else for a whole segment, an empty batch says how far it is, so that it can be
/// acknowledged and the segment deleted.
#[derive(Debug)]
pub struct JournalLog {
    journal: Journal,
    pipeline: String,
    sources: Arc<[Arc<str>]>,
    parts: Vec<Part>,
    /// Batches and losses, with their partitions.
    ready: VecDeque<(u32, LogEvent)>,
    announced: bool,
    committed: watch::Receiver<u64>,
    /// A read under way on a blocking thread. It survives when [`Log::next`] is dropped.
    reading: Option<Reading>,
    open: Option<OpenSegment>,
}

/// Reading state of a partition.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// `None` until the first seek.
    cursor: Option<Cursor>,
    next_offset: u64,
    paused: bool,
    /// Counts seeks: what was read before one does not count after it.
    seeks: u64,
    /// Segment and next offset of the newest batch handed out.
    told: (u64, u64),
}

#[derive(Debug)]
struct Reading {
    /// Partition and its count of seeks.
    wanted: Vec<(u32, u64)>,
    task: JoinHandle<(io::Result<Chunk>, Option<OpenSegment>)>,
}

impl JournalLog {
    pub(crate) fn new(journal: Journal, pipeline: &str, sources: &[&str]) -> Self {
        let committed = journal.shared().committed.subscribe();
        let parts = vec![Part::default(); journal.partitions() as usize];
        let sources = sources.iter().map(|s| Arc::from(*s)).collect();
        let pipeline = pipeline.to_owned();
        Self { journal, pipeline, sources, parts, ready: VecDeque::new(), announced: false, committed, reading: None, open: None }
    }

    fn paused(&self, partition: u32) -> bool {
        self.parts.get(partition as usize).is_none_or(|p| p.paused)
    }

    fn seeks(&self, partition: u32) -> u64 {
        self.parts.get(partition as usize).map_or(0, |p| p.seeks)
    }

    /// The first waiting batch or loss of a partition that is not paused.
    fn pop_ready(&mut self) -> Option<LogEvent> {
        let at = self.ready.iter().position(|(partition, _)| !self.paused(*partition))?;
        self.ready.remove(at).map(|(_, event)| event)
    }

    /// What partitions want that can be read for now.
    fn wanted(&self) -> BTreeMap<u32, Wanted> {
        let open = self.parts.iter().zip(0..).filter(|(part, _)| !part.paused);
        open.filter_map(|(part, i)| Some((i, Wanted { cursor: part.cursor?, offset: part.next_offset }))).collect()
    }

    /// Begins a read on a blocking thread, unless no partition can be read.
    fn begin_reading(&mut self) -> bool {
        let wanted = self.wanted();
        if wanted.is_empty() {
            return false;
        }
        // Seen before the read begins: a frame that comes during it wakes us again.
        self.committed.borrow_and_update();
        let seeks = wanted.keys().map(|p| (*p, self.seeks(*p))).collect();
        let (shared, sources, mut open) = (Arc::clone(self.journal.shared()), Arc::clone(&self.sources), self.open.take());
        let task = tokio::task::spawn_blocking(move || {
            let chunk = read_chunk(&shared, &sources, &wanted, &mut open);
            (chunk, open)
        });
        self.reading = Some(Reading { wanted: seeks, task });
        true
    }

    /// Takes over what was read. True when anything moved.
    fn take_chunk(&mut self, wanted: &[(u32, u64)], chunk: Chunk) -> bool {
        let mut moved = false;
        let end = chunk.end;
        for (number, read) in chunk.partitions {
            let seeks = wanted.iter().find(|(p, _)| *p == number).map(|(_, seeks)| *seeks);
            let Some(part) = self.parts.get_mut(number as usize).filter(|p| Some(p.seeks) == seeks) else { continue };
            moved |= part.cursor.is_none_or(|c| c < end);
            part.cursor = Some(end);
            part.next_offset = read.next_offset;
            let (segment, offset) = part.told;
            if !read.events.is_empty() {
                part.told = (end.segment, read.next_offset);
                self.ready.extend(read.events.into_iter().map(|event| (number, event)));
            } else if end.segment > segment && read.next_offset > offset {
                part.told = (end.segment, read.next_offset);
                let skip = |source| (number, LogEvent::Batch(skip_batch(number, source, read.next_offset)));
                self.ready.extend(self.sources.first().map(skip));
            }
        }
        moved
    }
}

fn fatal(context: &str, cause: impl std::fmt::Display) -> LogError {
    LogError::Fatal { context: context.to_owned(), cause: cause.to_string() }
}

/// A read that failed; nothing has moved, so that it can be tried again.
fn unread(error: &io::Error) -> LogError {
    let (context, cause) = ("read the journal".to_owned(), error.to_string());
    if is_shortage(error) { LogError::Retry { context, cause } } else { LogError::Fatal { context, cause } }
}

#[async_trait]
impl Log for JournalLog {
    async fn next(&mut self) -> Result<LogEvent, LogError> {
        if !self.announced {
            self.announced = true;
            return Ok(LogEvent::Assigned(self.journal.assignments()));
        }
        loop {
            if let Some(event) = self.pop_ready() {
                return Ok(event);
            }
            if self.reading.is_none() && !self.begin_reading() {
                // Every partition is paused, or waits for its seek; the caller changes that between two calls.
                std::future::pending::<()>().await;
            }
            let Some(reading) = &mut self.reading else { continue };
            let (chunk, open) = (&mut reading.task).await.map_err(|e| fatal("read the journal", e))?;
            let wanted = self.reading.take().map(|r| r.wanted).unwrap_or_default();
            self.open = open;
            let moved = self.take_chunk(&wanted, chunk.map_err(|e| unread(&e))?);
            // A partition that was let go or sought while the read was under way has not been looked at.
            let all = self.wanted().keys().all(|p| wanted.contains(&(*p, self.seeks(*p))));
            if !moved && all {
                self.committed.changed().await.map_err(|_| fatal("read the journal", "it was closed"))?;
            }
        }
    }

    async fn seek(&mut self, partition: u32, offset: u64) -> Result<(), LogError> {
        let cursor = {
            let index = self.journal.shared().index();
            let (first_offset, end) = (index.first_offset(partition), index.next_offset(partition));
            if offset < first_offset {
                return Err(LogError::Truncated { partition, wanted: offset, first_offset });
            }
            if offset > end {
                let what = format!(
                    "partition {partition} ends at offset {end}, but offset {offset} is needed: the journal is older than the state"
                );
                return Err(fatal("seek in the journal", what));
            }
            index.segment_of(partition, offset).map(|s| Cursor { segment: s.head.number, at: s.head.len })
        };
        let part =
            self.parts.get_mut(partition as usize).ok_or_else(|| fatal("seek in the journal", format!("no partition {partition}")))?;
        part.seeks += 1;
        part.told = (cursor.map_or(0, |c| c.segment), offset);
        part.cursor = cursor;
        part.next_offset = offset;
        self.ready.retain(|(of, _)| *of != partition);
        Ok(())
    }

    async fn acknowledge(&mut self, partition: u32, offset: u64) -> Result<(), LogError> {
        self.journal.acknowledge(&self.pipeline, partition, offset);
        Ok(())
    }

    fn read_to(&self, partition: u32) -> Option<u64> {
        let waits = self.ready.iter().any(|(of, _)| *of == partition);
        self.parts.get(partition as usize).filter(|_| !waits).map(|part| part.next_offset)
    }

    fn pause(&mut self, partition: u32, paused: bool) {
        if let Some(part) = self.parts.get_mut(partition as usize) {
            part.paused = paused;
        }
    }
}
