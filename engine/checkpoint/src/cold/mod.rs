//! The cold store of one partition: where the state of passivated devices lies, on the local disk.
//!
//! An append-only map from device to its newest row, so that far more devices than slots pass through in flat memory. Rows
//! are put in bulk, each time as one immutable Arrow file, a *segment*. Newest wins: segments are ordered by when they were
//! put, and a device is looked for from the newest to the oldest. A thread merges runs of small segments into larger ones and
//! drops the rows that have newer ones.
//!
//! A row is one device: `device_id` (`Utf8`), `last_seen` (`Int64`, append time in µs, [`i64::MIN`] = never), `pending`
//! (`Boolean`: a later tick may still change something), then columns of any type but dictionaries, which nobody here
//! interprets. There are no deletions: who holds a device in memory knows that its row here is old.
//!
//! In memory a segment is an open file, 36 bytes for each block of 64 rows (fewer if they are large) and a Bloom filter
//! of 10 to 20 bits a device. Every byte that is believed has a checksum. Nothing is durable before [`ColdStore::segments`]: until a checkpoint names
//! the files, the store is a cache of what the log can bring back.

mod bloom;
mod cursor;
mod gather;
mod index;
mod merge;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;

use self::bloom::hash;
pub use self::cursor::ColdCursor;
use self::gather::Gather;
use self::merge::Merging;
use self::segment::{Columns, Keys, Segment, check_schema};
use self::writer::{SegmentWriter, TEMPORARY, block_rows};
use crate::StoreError;

/// Ending of the names of segments.
const ENDING: &str = ".arrow";
/// Blocks that `find` holds at a time: a few megabytes.
const HELD_BLOCKS: usize = 256;
/// Puts after a failed merge until the next is tried.
const REST: u32 = 16;
/// With so many segments a put waits for the merge that is under way: files and memory stay bounded.
const MOST_SEGMENTS: usize = 64;

/// A file of the store, for a checkpoint.
#[derive(Clone, Debug)]
pub struct ColdSegment {
    /// Its name in the folder.
    pub name: String,
    /// Where it lies. It stays there as long as this value does.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Rows in it, also those that have newer ones in later segments.
    pub rows: u64,
    /// CRC32 of the whole file, as it was written.
    pub crc32: u32,
    /// Keeps the file from being removed after a merge.
    pub(crate) _held: Option<Held>,
}

/// A segment that is in use.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    _segment: Arc<Segment>,
}

impl PartialEq for ColdSegment {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, self.bytes, self.rows, self.crc32) == (&other.name, other.bytes, other.rows, other.crc32)
    }
}

/// Newest rows of passivated devices, in a folder of its own.
pub struct ColdStore {
    folder: PathBuf,
    prefix: String,
    /// Number of the next segment.
    next: u64,
    /// Oldest first.
    segments: Vec<Arc<Segment>>,
    merging: Option<Merging>,
    /// Puts until a merge may start.
    rest: u32,
}

impl fmt::Debug for ColdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ColdStore").field("folder", &self.folder).field("segments", &self.segments.len()).finish_non_exhaustive()
    }
}

impl ColdStore {
    /// An empty store. Makes `folder` if need be and removes the segments that lie in it (`*.arrow`, and temporary files);
    /// the new ones are called `<prefix>-<number>.arrow`.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the folder cannot be made or emptied.
    pub fn create(folder: &Path, prefix: &str) -> Result<Self, StoreError> {
        let io = |e| StoreError::io(format!("emptying {}", folder.display()), e);
        fs::create_dir_all(folder).map_err(io)?;
        for entry in fs::read_dir(folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            let ours = name.to_str().is_some_and(|n| n.ends_with(ENDING) || n.ends_with(&format!("{ENDING}{TEMPORARY}")));
            if ours {
                fs::remove_file(entry.path()).map_err(io)?;
            }
        }
        let (folder, prefix) = (folder.to_owned(), prefix.to_owned());
        Ok(Self { folder, prefix, next: 0, segments: Vec::new(), merging: None, rest: 0 })
    }

    /// Adds a segment, which the caller has linked or copied into the folder as `name`, as the newest so far. The footer and the
    /// schema are verified, the rows at each read.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file cannot be read, [`StoreError::Damaged`] when it is not what was written,
    /// [`StoreError::Exists`] when the segment is there already.
    pub fn attach(&mut self, name: &str) -> Result<(), StoreError> {
        if self.segments.iter().any(|s| s.name == name) {
            return Err(StoreError::Exists(name.to_owned()));
        }
        let mut segment = Segment::open(&self.folder, name)?;
        segment.schema = self.shared(segment.schema.clone());
        let number = name.strip_prefix(&self.prefix).and_then(|n| n.strip_prefix('-')?.strip_suffix(ENDING)?.parse::<u64>().ok());
        // A segment to come must not take its name.
        self.next = number.map_or(self.next, |n| self.next.max(n.saturating_add(1)));
        self.segments.push(Arc::new(segment));
        Ok(())
    }

    /// The schema, in the memory of a segment that has the same.
    fn shared(&self, schema: SchemaRef) -> SchemaRef {
        self.segments.iter().rev().find(|s| s.schema == schema).map_or(schema, |s| s.schema.clone())
    }

    fn new_name(&mut self) -> String {
        let name = format!("{}-{:020}{ENDING}", self.prefix, self.next);
        self.next += 1;
        name
    }

    /// Adds rows, in any order, each device at most once, as one new segment that is newer than all others. Takes in a merge
    /// that has finished, and starts one if it is time.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the disk refuses, [`StoreError::Encode`] when the rows are not as the module says. Nothing has
    /// changed then and no file is left.
    pub fn put(&mut self, rows: &RecordBatch) -> Result<(), StoreError> {
        let encode = |cause: String| StoreError::Encode { key: format!("{}-{:020}{ENDING}", self.prefix, self.next), cause };
        check_schema(rows.schema_ref()).map_err(encode)?;
        let keys = Keys::of(rows).map_err(encode)?;
        let mut order: Vec<(u64, &str, u32)> = Vec::with_capacity(rows.num_rows());
        for (row, name) in (0..).zip(keys.names.iter().flatten()) {
            order.push((hash(name), name, row));
        }
        order.sort_unstable();
        if let Some([(_, name, _), _]) = order.array_windows().find(|[a, b]| (a.0, a.1) == (b.0, b.1)) {
            return Err(encode(format!("device {name} is there twice")));
        }
        if order.is_empty() {
            return Ok(());
        }
        let hashes: Vec<u64> = order.iter().map(|(hash, ..)| *hash).collect();
        let order: UInt32Array = order.iter().map(|(.., row)| Some(*row)).collect();
        let sorted = take_record_batch(rows, &order).map_err(|e| encode(e.to_string()))?;
        let name = self.new_name();
        let mut writer = SegmentWriter::create(&self.folder, &name, self.shared(rows.schema()), hashes.len() as u64)?;
        let block_rows = block_rows(hashes.len() as u64, sorted.get_array_memory_size() as u64);
        for (block, hashes) in hashes.chunks(block_rows).enumerate() {
            writer.write(&sorted.slice(block * block_rows, hashes.len()), hashes)?;
        }
        self.segments.push(Arc::new(writer.finish()?));
        self.rest = self.rest.saturating_sub(1);
        self.take_in(self.segments.len() >= MOST_SEGMENTS);
        self.start_merge();
        Ok(())
    }

    /// Starts to merge, if nothing is being merged and it is time.
    fn start_merge(&mut self) {
        let due = merge::due(&self.segments);
        if due == 0 || self.rest > 0 || self.merging.is_some() {
            return;
        }
        let inputs = self.segments.iter().skip(self.segments.len() - due).cloned().collect();
        let name = format!("{}-merging{ENDING}", self.prefix);
        match Merging::start(inputs, &self.folder, name) {
            Ok(merging) => self.merging = Some(merging),
            Err(cause) => self.merge_failed(&cause),
        }
    }

    fn merge_failed(&mut self, cause: &StoreError) {
        tracing::warn!(folder = %self.folder.display(), %cause, "cold segments were not merged; nothing is lost, it is tried again later");
        self.rest = REST;
    }

    /// Puts a merged segment in the place of its inputs, if there is one, or if it is to be waited for.
    fn take_in(&mut self, wait: bool) {
        let Some(mut merging) = self.merging.take_if(|m| wait || m.is_finished()) else { return };
        // Its number says when it came into the list: a checkpoint tells by it what it cannot know of.
        let name = self.new_name();
        let named = merging.join().and_then(|mut merged| merged.rename(&self.folder, name).map(|()| merged));
        let merged = match named {
            Ok(merged) => Arc::new(merged),
            Err(cause) => return self.merge_failed(&cause),
        };
        let first = merging.inputs.first();
        let Some(at) = self.segments.iter().position(|s| first.is_some_and(|f| Arc::ptr_eq(f, s))) else { return };
        self.segments.splice(at..at + merging.inputs.len(), [merged]).for_each(|input| input.retire());
    }

    /// Waits until nothing is left to merge.
    pub fn wait_idle(&mut self) {
        self.start_merge();
        while self.merging.is_some() {
            self.take_in(true);
            self.start_merge();
        }
    }

    /// The newest row of each device of `names` that is here, once, in no order: one batch for each schema.
    ///
    /// # Errors
    /// [`StoreError::Io`] when a segment cannot be read, [`StoreError::Damaged`] when it is not what was written.
    pub fn find(&self, names: &[&str]) -> Result<Vec<RecordBatch>, StoreError> {
        let mut sought: Vec<(u64, &str)> = names.iter().map(|name| (hash(name), *name)).collect();
        sought.sort_unstable();
        sought.dedup();
        let mut found: Vec<(SchemaRef, Vec<RecordBatch>)> = Vec::new();
        for segment in self.segments.iter().rev() {
            if sought.is_empty() {
                break;
            }
            let parts = find_in(segment, &mut sought)?;
            match found.iter_mut().find(|(schema, _)| *schema == segment.schema) {
                Some((_, all)) => all.extend(parts),
                None if parts.is_empty() => {}
                None => found.push((segment.schema.clone(), parts)),
            }
        }
        let join = |(schema, parts): &(SchemaRef, Vec<RecordBatch>)| match parts.as_slice() {
            [one] => Ok(one.clone()),
            parts => concat_batches(schema, parts),
        };
        found.iter().map(join).collect::<Result<_, _>>().map_err(|e| cannot_copy(&self.folder, &e))
    }

    /// Goes over all devices that are here now, each once. Devices that are put again meanwhile are not given again.
    ///
    /// # Errors
    /// As of [`Self::find`].
    pub fn cursor(&self) -> Result<ColdCursor, StoreError> {
        ColdCursor::all(&self.segments)
    }

    /// Goes over the devices whose newest row is now `pending` and was seen at `seen_at_most` or before, and that no earlier
    /// cursor has given and gone on from. After a merge some may be given again.
    #[must_use]
    pub fn cursor_pending(&self, seen_at_most: i64) -> ColdCursor {
        ColdCursor::pending(&self.segments, seen_at_most)
    }

    /// All segments, oldest first, durable. The order is that of this list, not that of the names: [`Self::attach`] them in it.
    ///
    /// # Errors
    /// [`StoreError::Io`] when an fsync fails: the files must not be named by a checkpoint then, nor this store be asked again.
    pub fn segments(&self) -> Result<Vec<ColdSegment>, StoreError> {
        let mut synced = false;
        for segment in &self.segments {
            synced |= segment.sync()?;
        }
        if synced {
            let folder = File::open(&self.folder).and_then(|folder| folder.sync_all());
            folder.map_err(|e| StoreError::io(format!("fsync of {}", self.folder.display()), e))?;
        }
        let file = |s: &Arc<Segment>| {
            let (name, path) = (s.name.clone(), s.path.clone());
            let held = Some(Held { _segment: Arc::clone(s) });
            ColdSegment { name, path, bytes: s.bytes, rows: s.index.rows, crc32: s.crc32, _held: held }
        };
        Ok(self.segments.iter().map(file).collect())
    }

    /// Bytes on disk, without a merge that is under way.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// Rows on disk, with those that have newer ones.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.segments.iter().map(|s| s.index.rows).sum()
    }

    /// Bytes of memory: indexes and filters.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.segments.iter().map(|s| s.memory_bytes()).sum::<usize>()
    }
}

/// The rows of one segment; what has been found is taken out of `sought`.
fn find_in(segment: &Segment, sought: &mut Vec<(u64, &str)>) -> Result<Vec<RecordBatch>, StoreError> {
    let mut parts = Vec::new();
    let mut failed = None;
    let mut gather = Gather::default();
    let mut here = vec![false; sought.len()];
    // Block and number of the source picked from last.
    let mut last = (usize::MAX, 0);
    segment.locate(sought, Columns::All, |number, block, rows, row| {
        if last.0 != block {
            if gather.sources() >= HELD_BLOCKS {
                gather.take().map_or_else(|e| failed = Some(e), |part| parts.extend(part));
            }
            last = (block, gather.source(&rows.batch));
        }
        gather.pick(last.1, row);
        if let Some(here) = here.get_mut(number) {
            *here = true;
        }
    })?;
    gather.take().map_or_else(|e| failed = Some(e), |part| parts.extend(part));
    if let Some(cause) = failed {
        return Err(cannot_copy(&segment.path, &cause));
    }
    let mut here = here.into_iter();
    sought.retain(|_| here.next() == Some(false));
    Ok(parts)
}

fn cannot_copy(path: &Path, cause: &ArrowError) -> StoreError {
    StoreError::Encode { key: path.display().to_string(), cause: format!("rows cannot be copied out of it: {cause}") }
}
