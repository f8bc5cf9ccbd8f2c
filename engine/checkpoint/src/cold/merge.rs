//! Segments side by side in the order of their rows: for merging several into one, and for going over all devices.

use std::cmp::Ordering;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{self, AtomicBool};
use std::thread::{self, JoinHandle};

use arrow::datatypes::SchemaRef;

use super::bloom::hash;
use super::gather::Gather;
use super::segment::{Columns, Rows, Segment};
use super::writer::{SegmentWriter, block_rows};
use crate::StoreError;

/// Fewest segments that are merged.
const FAN_IN: usize = 4;

/// Where a segment is being read: one block at a time.
#[derive(Debug)]
struct Stream {
    segment: Arc<Segment>,
    /// The next block to be read.
    block: usize,
    /// None at the end.
    rows: Option<Rows>,
    hashes: Vec<u64>,
    row: usize,
    /// Number of `rows` in the gatherer.
    source: Option<usize>,
}

impl Stream {
    fn load(&mut self, columns: Columns) -> Result<(), StoreError> {
        self.row = 0;
        self.source = None;
        self.hashes.clear();
        self.rows = None;
        if self.block < self.segment.blocks() {
            let rows = self.segment.read(self.block, columns)?;
            self.hashes.extend(rows.keys.names.iter().flatten().map(hash));
            self.rows = Some(rows);
            self.block += 1;
        }
        Ok(())
    }

    fn key(&self) -> Option<(u64, &str)> {
        Some((*self.hashes.get(self.row)?, self.rows.as_ref()?.keys.names.value(self.row)))
    }
}

/// Every device of several segments once, with its newest row, in the order of segments. Holds one block of each.
#[derive(Debug)]
pub(super) struct Newest {
    columns: Columns,
    /// Oldest segment first.
    streams: Vec<Stream>,
    /// The streams that stand at the device to be given next; the last has its newest row.
    at: Vec<usize>,
}

impl Newest {
    /// Begins; the segments are given oldest first.
    ///
    /// # Errors
    /// As of [`Segment::read`].
    pub(super) fn new(segments: &[Arc<Segment>], columns: Columns) -> Result<Self, StoreError> {
        let mut streams = Vec::with_capacity(segments.len());
        for segment in segments {
            let segment = segment.clone();
            let mut stream = Stream { segment, block: 0, rows: None, hashes: Vec::new(), row: 0, source: None };
            stream.load(columns)?;
            streams.push(stream);
        }
        let mut newest = Self { columns, streams, at: Vec::new() };
        newest.find_least();
        Ok(newest)
    }

    fn find_least(&mut self) {
        self.at.clear();
        let mut least: Option<(u64, &str)> = None;
        for (number, stream) in self.streams.iter().enumerate() {
            let Some(key) = stream.key() else { continue };
            match least.map_or(Ordering::Less, |least| key.cmp(&least)) {
                Ordering::Less => {
                    least = Some(key);
                    self.at.clear();
                    self.at.push(number);
                }
                Ordering::Equal => self.at.push(number),
                Ordering::Greater => {}
            }
        }
    }

    fn newest(&self) -> Option<&Stream> {
        self.streams.get(*self.at.last()?)
    }

    /// Hash and name of the device to be given next.
    pub(super) fn key(&self) -> Option<(u64, &str)> {
        self.newest()?.key()
    }

    /// Goes on to the next device.
    ///
    /// # Errors
    /// As of [`Segment::read`].
    pub(super) fn advance(&mut self) -> Result<(), StoreError> {
        for number in &self.at {
            let Some(stream) = self.streams.get_mut(*number) else { continue };
            stream.row += 1;
            if stream.row >= stream.hashes.len() {
                stream.load(self.columns)?;
            }
        }
        self.find_least();
        Ok(())
    }

    /// Picks the newest row of the device to be given next.
    fn pick(&mut self, gather: &mut Gather) {
        let Some(stream) = self.at.last().and_then(|number| self.streams.get_mut(*number)) else { return };
        let Some(rows) = &stream.rows else { return };
        let source = *stream.source.get_or_insert_with(|| gather.source(&rows.batch));
        gather.pick(source, stream.row);
    }

    /// Forgets the sources of a gatherer that has been emptied.
    fn forget_sources(&mut self) {
        self.streams.iter_mut().for_each(|stream| stream.source = None);
    }
}

/// Writes the newest row of every device of `inputs`, oldest segment first, into one segment.
fn merge(inputs: &[Arc<Segment>], schema: SchemaRef, folder: &Path, name: &str, stop: &AtomicBool) -> Result<Segment, StoreError> {
    let encode = |cause: arrow::error::ArrowError| StoreError::Encode { key: name.to_owned(), cause: cause.to_string() };
    let rows = inputs.iter().map(|s| s.index.rows).sum();
    let block_rows = block_rows(rows, inputs.iter().map(|s| s.bytes).sum());
    let mut writer = SegmentWriter::create(folder, name, schema, rows)?;
    let mut newest = Newest::new(inputs, Columns::All)?;
    let mut gather = Gather::default();
    let mut hashes = Vec::with_capacity(block_rows);
    loop {
        let hash = newest.key().map(|(hash, _)| hash);
        if hash.is_none() || hashes.len() == block_rows {
            if let Some(rows) = gather.take().map_err(encode)? {
                writer.write(&rows, &hashes)?;
            }
            hashes.clear();
            newest.forget_sources();
            if stop.load(atomic::Ordering::Relaxed) {
                return Err(StoreError::io(format!("merging into {name}"), "the store was closed"));
            }
        }
        let Some(hash) = hash else { break };
        hashes.push(hash);
        newest.pick(&mut gather);
        newest.advance()?;
    }
    writer.finish()
}

/// How many of the newest segments should be merged: the longest run of at least [`FAN_IN`] with one schema, whose rows
/// together are at least [`FAN_IN`] times those of its largest. So a row is copied once for each time its segment gets
/// that much larger, and the number of segments stays logarithmic.
pub(super) fn due(segments: &[Arc<Segment>]) -> usize {
    let (mut largest, mut sum, mut due) = (0, 0, 0);
    for (number, segment) in segments.iter().rev().enumerate() {
        if segments.last().is_some_and(|newest| newest.schema != segment.schema) {
            break;
        }
        largest = largest.max(segment.index.rows);
        sum += segment.index.rows;
        if number + 1 >= FAN_IN && sum >= largest * FAN_IN as u64 {
            due = number + 1;
        }
    }
    due
}

/// A merge in a thread of its own, on files that nobody changes.
#[derive(Debug)]
pub(super) struct Merging {
    /// Oldest first.
    pub(super) inputs: Vec<Arc<Segment>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Segment, StoreError>>>,
}

impl Merging {
    /// Starts to merge `inputs`, which have one schema, into `name`.
    ///
    /// # Errors
    /// [`StoreError::Io`] when there can be no more threads.
    pub(super) fn start(inputs: Vec<Arc<Segment>>, folder: &Path, name: String) -> Result<Self, StoreError> {
        let schema = inputs.last().map(|s| s.schema.clone()).unwrap_or_else(|| Arc::new(arrow::datatypes::Schema::empty()));
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, folder, stopped) = (inputs.clone(), folder.to_owned(), stop.clone());
        let work = move || merge(&theirs, schema, &folder, &name, &stopped);
        let thread = thread::Builder::new().name("cold-merge".to_owned()).spawn(work);
        let thread = thread.map_err(|e| StoreError::io("starting a thread that merges cold segments", e))?;
        Ok(Self { inputs, stop, thread: Some(thread) })
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the merged segment.
    ///
    /// # Errors
    /// Whatever reading or writing gave.
    pub(super) fn join(&mut self) -> Result<Segment, StoreError> {
        let joined = self.thread.take().map(JoinHandle::join);
        joined.and_then(Result::ok).unwrap_or_else(|| Err(StoreError::io("merging cold segments", "the thread panicked")))
    }
}

impl Drop for Merging {
    /// The thread stops at its next block and leaves no file.
    fn drop(&mut self) {
        self.stop.store(true, atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
