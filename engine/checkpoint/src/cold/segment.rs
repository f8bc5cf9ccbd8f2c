//! One immutable file of rows, and point reads in it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Int64Type, Schema, SchemaRef};
use arrow::ipc::convert::fb_to_schema;
use arrow::ipc::reader::{FileDecoder, read_footer_length};
use arrow::ipc::{Block, MetadataVersion, root_as_footer, root_as_message};

use super::bloom::hash;
use super::index::Index;
use crate::StoreError;

/// Bytes before a message's metadata: a marker and the metadata's length.
const PREFIX: usize = 8;
/// Bytes of the file before its schema.
const MAGIC: usize = 8;
/// Bytes after the footer: its length and the magic word.
const TRAILER: usize = 10;

/// The columns every row has, in the order in which they come first.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) names: StringArray,
    pub(super) last_seen: Int64Array,
    pub(super) pending: BooleanArray,
}

impl Keys {
    /// The key columns of `rows`.
    ///
    /// # Errors
    /// What does not fit, in words.
    pub(super) fn of(rows: &RecordBatch) -> Result<Self, String> {
        let [names, last_seen, pending, ..] = rows.columns() else { return Err("columns are missing".to_owned()) };
        if [names, last_seen, pending].iter().any(|c| c.null_count() > 0) {
            return Err("there are nulls in device_id, last_seen or pending".to_owned());
        }
        Ok(Self {
            names: names.as_string_opt().ok_or("device_id is no text")?.clone(),
            last_seen: last_seen.as_primitive_opt::<Int64Type>().ok_or("last_seen is no number")?.clone(),
            pending: pending.as_boolean_opt().ok_or("pending is no truth value")?.clone(),
        })
    }

    /// Row of the device with this hash and name; the rows are in the order of segments.
    fn position(&self, key: (u64, &str)) -> Option<usize> {
        let (mut low, mut high) = (0, self.names.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let name = self.names.value(middle);
            match (hash(name), name).cmp(&key) {
                std::cmp::Ordering::Equal => return Some(middle),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }
}

/// Whether rows of this schema can be kept.
pub(super) fn check_schema(schema: &Schema) -> Result<(), String> {
    let expected = [("device_id", DataType::Utf8), ("last_seen", DataType::Int64), ("pending", DataType::Boolean)];
    for (at, (name, kind)) in expected.into_iter().enumerate() {
        if !schema.fields().get(at).is_some_and(|f| f.name() == name && *f.data_type() == kind) {
            return Err(format!("column {at} has to be {name} of {kind}"));
        }
    }
    // An Arrow file has one dictionary a column, which rows from several files do not share.
    match schema.flattened_fields().iter().find(|f| matches!(f.data_type(), DataType::Dictionary(..))) {
        Some(field) => Err(format!("column {} is a dictionary: cast it to its plain type", field.name())),
        None => Ok(()),
    }
}

/// Rows of one block, in the order of (hash, name).
#[derive(Debug, Clone)]
pub(super) struct Rows {
    pub(super) keys: Keys,
    pub(super) batch: RecordBatch,
}

/// Which columns a read gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Columns {
    All,
    /// `device_id`, `last_seen` and `pending`.
    Keys,
}

/// An open segment: a file handle and what its footer says, no rows.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Of the whole file.
    pub(super) crc32: u32,
    pub(super) schema: SchemaRef,
    /// Without `pending_since`, which moves on.
    pub(super) index: Index,
    /// Smallest `last_seen` of the rows of each block that are pending and have not been handled in this process.
    since: Vec<AtomicI64>,
    file: File,
    synced: AtomicBool,
    /// Another has taken its place: whoever holds it last removes the file.
    obsolete: AtomicBool,
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.obsolete.load(Ordering::Relaxed)
            && let Err(cause) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(file = %self.path.display(), %cause, "a merged cold segment could not be removed");
        }
    }
}

/// Where a segment lies, and how long it is.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) bytes: u64,
    /// Checksum of the bytes after the last block.
    pub(super) tail: u32,
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> StoreError {
    let what = format!("{what}; check the disk, and start again from a checkpoint that can be read");
    StoreError::Damaged { key: path.display().to_string(), what }
}

impl Segment {
    /// The segment of a file that has just been written.
    pub(super) fn new(placed: Placed, schema: SchemaRef, mut index: Index) -> Self {
        let mut whole = crc32fast::Hasher::new_with_initial_len(index.header, index.bounds.first().copied().unwrap_or_default());
        for (bounds, crc) in index.bounds.windows(2).zip(&index.checksums) {
            if let [from, to] = bounds {
                whole.combine(&crc32fast::Hasher::new_with_initial_len(*crc, to - from));
            }
        }
        let end = index.bounds.last().copied().unwrap_or_default();
        whole.combine(&crc32fast::Hasher::new_with_initial_len(placed.tail, placed.bytes.saturating_sub(end)));
        let since = std::mem::take(&mut index.pending_since).into_iter().map(AtomicI64::new).collect();
        let Placed { name, path, file, bytes, .. } = placed;
        Self {
            name,
            path,
            bytes,
            crc32: whole.finalize(),
            schema,
            index,
            since,
            file,
            synced: AtomicBool::new(false),
            obsolete: AtomicBool::new(false),
        }
    }

    /// Opens a file and verifies all but its blocks, whose checksums are verified at each read.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be read, [`StoreError::Damaged`] when it is not what was written.
    pub(super) fn open(folder: &Path, name: &str) -> Result<Self, StoreError> {
        let path = folder.join(name);
        let io = |e: std::io::Error| StoreError::io(format!("reading {}", path.display()), e);
        let wrong = |what: String| damaged(&path, what);
        let file = File::open(&path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let read = |from: u64, to: u64| -> Result<Vec<u8>, StoreError> {
            let mut buffer = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
            file.read_exact_at(&mut buffer, from).map_err(io)?;
            Ok(buffer)
        };
        let short = || wrong("it is too short".to_owned());
        let trailer_at = bytes.checked_sub(TRAILER as u64).ok_or_else(short)?;
        let trailer: [u8; TRAILER] = read(trailer_at, bytes)?.try_into().map_err(|_| short())?;
        let length = read_footer_length(trailer).map_err(|e| wrong(e.to_string()))?;
        let footer_at = trailer_at.checked_sub(length as u64).ok_or_else(short)?;
        let footer = read(footer_at, trailer_at)?;
        let index = Index::from_footer(footer_texts(&footer).map_err(wrong)?).map_err(wrong)?;
        let (start, end) = (index.bounds.first().copied().unwrap_or(0), index.bounds.last().copied().unwrap_or(0));
        if end > footer_at {
            return Err(short());
        }
        // The schema is taken from the beginning of the file, where it has a checksum.
        let header = read(0, start)?;
        if crc32fast::hash(&header) != index.header {
            return Err(wrong("the checksum of its schema is wrong".to_owned()));
        }
        let schema = header_schema(&header).map_err(wrong)?;
        check_schema(&schema).map_err(wrong)?;
        let tail = crc32fast::hash(&read(end, bytes)?);
        Ok(Self::new(Placed { name: name.to_owned(), path, file, bytes, tail }, SchemaRef::new(schema), index))
    }

    /// Another segment has taken its place.
    pub(super) fn retire(&self) {
        self.obsolete.store(true, Ordering::Relaxed);
    }

    /// Gives the file another name.
    ///
    /// # Errors
    /// [`StoreError::Io`]; nothing has changed then.
    pub(super) fn rename(&mut self, folder: &Path, name: String) -> Result<(), StoreError> {
        let path = folder.join(&name);
        std::fs::rename(&self.path, &path).map_err(|e| StoreError::io(format!("naming {}", path.display()), e))?;
        (self.name, self.path) = (name, path);
        Ok(())
    }

    /// The rows of a block.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub(super) fn read(&self, block: usize, columns: Columns) -> Result<Rows, StoreError> {
        let wrong = |what: String| damaged(&self.path, format!("block {block}: {what}"));
        let no_block = || wrong("there is no such block".to_owned());
        let (Some([from, to]), Some(crc)) = (self.index.bounds.get(block..block + 2), self.index.checksums.get(block)) else {
            return Err(no_block());
        };
        let mut bytes = vec![0; usize::try_from(to - from).map_err(|_| no_block())?];
        match self.file.read_exact_at(&mut bytes, *from) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(wrong("the file ends within it".to_owned())),
            done => done.map_err(|e| StoreError::io(format!("reading {}", self.path.display()), e))?,
        }
        if crc32fast::hash(&bytes) != *crc {
            return Err(wrong("its checksum is wrong".to_owned()));
        }
        let length = bytes.get(4..PREFIX).and_then(|l| l.try_into().ok()).map(i32::from_le_bytes);
        let metadata = length.and_then(|l| l.checked_add(8)).filter(|l| usize::try_from(*l).is_ok_and(|l| l <= bytes.len()));
        let metadata = metadata.ok_or_else(|| wrong("it has a wrong length".to_owned()))?;
        let body = bytes.len() as u64 - u64::from(metadata.unsigned_abs());
        let place = Block::new(0, metadata, i64::try_from(body).unwrap_or(0));
        let mut decoder = FileDecoder::new(self.schema.clone(), MetadataVersion::V5);
        if columns == Columns::Keys {
            decoder = decoder.with_projection(vec![0, 1, 2]);
        }
        let batch = decoder.read_record_batch(&place, &Buffer::from_vec(bytes)).map_err(|e| wrong(e.to_string()))?;
        let batch = batch.ok_or_else(|| wrong("it holds no rows".to_owned()))?;
        let keys = Keys::of(&batch).map_err(wrong)?;
        Ok(Rows { keys, batch })
    }

    /// Looks for devices, given with their hashes in the order of segments. `found` gets the number in `sought`, the block,
    /// its rows and the row, for each that is here, in this order. Each block is read once.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub(super) fn locate(
        &self,
        sought: &[(u64, &str)],
        columns: Columns,
        mut found: impl FnMut(usize, usize, &Rows, usize),
    ) -> Result<(), StoreError> {
        let mut held: Option<(usize, Rows)> = None;
        for (number, key) in sought.iter().enumerate() {
            if !self.index.bloom.may_contain(key.0) {
                continue;
            }
            let mut next = self.index.firsts.partition_point(|first| *first <= key.0);
            while let Some(block) = next.checked_sub(1) {
                let (at, rows) = match held.take() {
                    Some((at, rows)) if at == block => (at, rows),
                    _ => (block, self.read(block, columns)?),
                };
                let row = rows.keys.position(*key);
                if let Some(row) = row {
                    found(number, at, &rows, row);
                }
                held = Some((at, rows));
                // Devices with the hash of a block's first may lie in the block before, too.
                if row.is_some() || self.index.firsts.get(block) != Some(&key.0) {
                    break;
                }
                next = block;
            }
        }
        Ok(())
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> usize {
        self.index.firsts.len()
    }

    /// Smallest `last_seen` of the rows of a block that are pending and have not been handled.
    pub(super) fn pending_since(&self, block: usize) -> i64 {
        self.since.get(block).map_or(i64::MAX, |since| since.load(Ordering::Relaxed))
    }

    /// Remembers, until the process ends, that the pending rows of a block below `since` have been handled.
    pub(super) fn handled(&self, block: usize, since: i64) {
        if let Some(held) = self.since.get(block) {
            held.fetch_max(since, Ordering::Relaxed);
        }
    }

    /// Makes the file durable, once. Says whether there was anything to do.
    ///
    /// # Errors
    /// [`StoreError::Io`]: what has been written may be lost.
    pub(super) fn sync(&self) -> Result<bool, StoreError> {
        if self.synced.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.file.sync_all().map_err(|e| StoreError::io(format!("fsync of {}", self.path.display()), e))?;
        self.synced.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// Bytes of memory, without the schema, which segments share.
    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.index.memory_bytes() + self.since.len() * size_of::<AtomicI64>()
    }
}

/// The custom metadata of a file's footer.
fn footer_texts(footer: &[u8]) -> Result<HashMap<String, String>, String> {
    let footer = root_as_footer(footer).map_err(|e| format!("its footer cannot be read: {e}"))?;
    let pairs = footer.custom_metadata().into_iter().flatten();
    Ok(pairs.filter_map(|pair| Some((pair.key()?.to_owned(), pair.value()?.to_owned()))).collect())
}

/// The schema in the bytes before the first block.
fn header_schema(header: &[u8]) -> Result<Schema, String> {
    let message = header.get(MAGIC + PREFIX..).ok_or("it has no schema")?;
    let message = root_as_message(message).map_err(|e| format!("its schema cannot be read: {e}"))?;
    Ok(fb_to_schema(message.header_as_schema().ok_or("it has no schema")?))
}
