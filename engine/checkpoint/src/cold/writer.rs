//! Writes one segment: under a temporary name until it is complete.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::MetadataVersion;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions};

use super::bloom::Bloom;
use super::index::Index;
use super::segment::{Keys, Placed, Segment};
use crate::StoreError;

/// Most rows of a block.
const BLOCK_ROWS: u64 = 64;
/// Fewest rows of a block, however large they are: the index must stay small beside them.
const FEW_ROWS: u64 = 8;
/// Bytes that a block should not have more of: a few pages for a point read.
const BLOCK_BYTES: u64 = 32 << 10;
/// Ending of files that are not complete.
pub(super) const TEMPORARY: &str = ".tmp";

/// Rows of a block, where `rows` of them take `bytes`.
pub(super) fn block_rows(rows: u64, bytes: u64) -> usize {
    let fit = BLOCK_BYTES.saturating_mul(rows) / bytes.max(1);
    usize::try_from(fit.clamp(FEW_ROWS, BLOCK_ROWS)).unwrap_or(1)
}

/// Counts and sums what goes through it.
#[derive(Debug)]
struct Summed {
    out: BufWriter<File>,
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl Summed {
    /// Checksum since the last call, and bytes since the beginning.
    fn cut(&mut self) -> (u32, u64) {
        (std::mem::take(&mut self.crc).finalize(), self.bytes)
    }
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.crc.update(bytes.get(..written).unwrap_or_default());
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Removes the file when dropped, unless it has got its name.
#[derive(Debug)]
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.0);
        }
    }
}

/// A segment that is being written.
pub(super) struct SegmentWriter {
    name: String,
    path: PathBuf,
    out: FileWriter<Summed>,
    schema: SchemaRef,
    index: Index,
    unfinished: Unfinished,
}

impl SegmentWriter {
    /// Begins the file; `most` is the greatest number of rows it may get.
    ///
    /// # Errors
    /// [`StoreError::Io`] when the file cannot be made, [`StoreError::Encode`] when Arrow has no form for the schema.
    pub(super) fn create(folder: &Path, name: &str, schema: SchemaRef, most: u64) -> Result<Self, StoreError> {
        let path = folder.join(name);
        let temporary = folder.join(format!("{name}{TEMPORARY}"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&temporary);
        let file = file.map_err(|e| StoreError::io(format!("creating {}", temporary.display()), e))?;
        let unfinished = Unfinished(temporary);
        let out = Summed { out: BufWriter::with_capacity(64 << 10, file), crc: crc32fast::Hasher::new(), bytes: 0 };
        // Eight bytes suffice for all but 128 bit numbers, and small blocks have little to align.
        let options = IpcWriteOptions::try_new(8, false, MetadataVersion::V5).map_err(|e| refused(&path, e))?;
        let mut out = FileWriter::try_new_with_options(out, &schema, options).map_err(|e| refused(&path, e))?;
        let (header, start) = out.get_mut().cut();
        let index = Index {
            rows: 0,
            pending: 0,
            header,
            bounds: vec![start],
            firsts: Vec::new(),
            checksums: Vec::new(),
            pending_since: Vec::new(),
            bloom: Bloom::for_devices(most),
        };
        Ok(Self { name: name.to_owned(), path, out, schema, index, unfinished })
    }

    /// Appends a block. The rows have these hashes and follow the rows before in the order of (hash, name).
    ///
    /// # Errors
    /// As of [`Self::create`].
    pub(super) fn write(&mut self, rows: &RecordBatch, hashes: &[u64]) -> Result<(), StoreError> {
        let Some(first) = hashes.first() else { return Ok(()) };
        let encode = |cause| StoreError::Encode { key: self.path.display().to_string(), cause };
        let keys = Keys::of(rows).map_err(encode)?;
        self.out.write(rows).map_err(|e| refused(&self.path, e))?;
        let (crc, end) = self.out.get_mut().cut();
        let pending = keys.pending.values().set_indices();
        let since = pending.map(|row| keys.last_seen.value(row)).min().unwrap_or(i64::MAX);
        self.index.rows += hashes.len() as u64;
        self.index.pending += keys.pending.true_count() as u64;
        self.index.bounds.push(end);
        self.index.firsts.push(*first);
        self.index.checksums.push(crc);
        self.index.pending_since.push(since);
        hashes.iter().for_each(|hash| self.index.bloom.add(*hash));
        Ok(())
    }

    /// Writes the footer and gives the file its name. It is not durable yet.
    ///
    /// # Errors
    /// As of [`Self::create`]; nothing is left of the file then.
    pub(super) fn finish(self) -> Result<Segment, StoreError> {
        let Self { name, path, mut out, schema, mut index, mut unfinished } = self;
        index.bloom.fold(index.rows);
        index.shrink();
        for (key, value) in index.to_footer() {
            out.write_metadata(key, value);
        }
        let mut out = out.into_inner().map_err(|e| refused(&path, e))?;
        let (tail, bytes) = out.cut();
        let io = |e: io::Error| StoreError::io(format!("writing {}", path.display()), e);
        let file = out.out.into_inner().map_err(|e| io(e.into_error()))?;
        fs::rename(&unfinished.0, &path).map_err(io)?;
        unfinished.0.clear();
        Ok(Segment::new(Placed { name, path, file, bytes, tail }, schema, index))
    }
}

fn refused(path: &Path, cause: ArrowError) -> StoreError {
    match cause {
        ArrowError::IoError(_, cause) => StoreError::io(format!("writing {}", path.display()), cause),
        other => StoreError::Encode { key: path.display().to_string(), cause: other.to_string() },
    }
}
