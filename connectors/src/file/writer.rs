//! The blocking half of the `file` sink: append, fsync, then replace the sidecar, all under a lock.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use fieldstream_engine_api::{Committed, Generation, PartitionKey, SinkBatch, SinkError, SinkRows, is_shortage};
use fieldstream_schemas::columns::TS;
use fieldstream_schemas::encode::{CsvWriter, JsonWriter};

use super::sidecar::{Durable, Entry, Sidecar, lock};
use super::template::Template;

/// How rows of one input become lines.
pub(crate) enum Encoder {
    /// JSON objects.
    Json(JsonWriter),
    /// CSV records.
    Csv(CsvWriter),
}

impl Encoder {
    fn write(&self, rows: &RecordBatch, range: Range<usize>, out: &mut Vec<u8>) {
        match self {
            Self::Json(json) => json.write_rows(&rows.slice(range.start, range.len()), out),
            Self::Csv(csv) => csv.write_rows(rows, range, out),
        }
    }
}

/// Writes rows and marks of one sink.
pub(crate) struct Writer {
    /// Name of the sink.
    pub(crate) sink: String,
    /// Where rows go.
    pub(crate) template: Template,
    /// One per input.
    pub(crate) encoders: Vec<Encoder>,
    /// What stands at the top of every file.
    pub(crate) header: Vec<u8>,
    /// True until an earlier run's files and marks have been removed.
    pub(crate) fresh: bool,
    /// What this process owns, and what it last told of it.
    pub(crate) owned: BTreeMap<PartitionKey, (Generation, Option<Durable>)>,
}

fn retry(context: &str, path: &Path, cause: &io::Error) -> SinkError {
    SinkError::Retry { context: format!("{context} {}", path.display()), cause: cause.to_string() }
}

fn fatal(context: &str, path: &Path, cause: &dyn fmt::Display) -> SinkError {
    SinkError::Fatal { context: format!("{context} {}", path.display()), cause: cause.to_string() }
}

/// What the disk or the system refused. On a shortage the old sidecar stands, and what was written behind its lengths is cut at the
/// next try; after any other failure nobody knows what is on disk.
fn refused(context: &str, path: &Path, cause: &io::Error) -> SinkError {
    if is_shortage(cause) { retry(context, path, cause) } else { fatal(context, path, cause) }
}

fn committed(key: &PartitionKey, durable: Durable) -> Committed {
    Committed { partition: key.clone(), mark: durable.mark, delivered: durable.delivered, refused: 0 }
}

impl Writer {
    fn locked(&self) -> Result<(File, PathBuf, Sidecar), SinkError> {
        let guard = self.template.beside("lock");
        let file = lock(&guard).map_err(|e| refused("lock", &guard, &e))?;
        let path = self.template.beside("marks");
        let sidecar = Sidecar::load(&path).map_err(|e| refused("read marks in", &path, &e))?;
        Ok((file, path, sidecar))
    }

    /// Takes a partition for `generation` and cuts what was written but not committed.
    pub(crate) fn open(&mut self, key: &PartitionKey, generation: Generation) -> Result<Option<Committed>, SinkError> {
        let (_guard, path, mut sidecar) = self.locked()?;
        if self.fresh {
            if !self.template.dated() {
                // What lies there goes too, whoever wrote it.
                sidecar.files.insert(self.template.file(None), 0);
            }
            clear(&mut sidecar, &path)?;
            self.fresh = false;
        }
        if !self.template.dated() {
            let file = self.template.file(None);
            adopt(&mut sidecar, &file)?;
            // Output exists even if no row ever comes.
            touch(&file).map_err(|e| refused("create", &file, &e))?;
        }
        for (file, length) in &mut sidecar.files {
            cut_tail(file, length)?;
        }
        if !self.template.dated() && !self.header.is_empty() {
            // A table without rows still has columns.
            append(&mut sidecar, &path, &BTreeMap::from([(self.template.file(None), Vec::new())]), &self.header)?;
        }
        let durable = match sidecar.entry_mut(&self.sink, key) {
            Some(entry) if entry.generation > generation => {
                return Err(SinkError::Fenced { partition: key.clone(), owner: entry.generation });
            }
            Some(entry) => {
                entry.generation = generation;
                entry.durable
            }
            None => {
                sidecar.partitions.push(Entry { sink: self.sink.clone(), key: key.clone(), generation, durable: None });
                None
            }
        };
        sidecar.store(&path).map_err(|e| refused("replace marks in", &path, &e))?;
        self.owned.insert(key.clone(), (generation, durable));
        Ok(durable.map(|d| committed(key, d)))
    }

    /// Appends the rows of all batches and moves their marks, in one replacement of the sidecar.
    pub(crate) fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        let (_guard, path, mut sidecar) = self.locked()?;
        let mut buffers = BTreeMap::new();
        let mut done = Vec::with_capacity(batches.len());
        for batch in batches {
            let entry = self.check(batch, &sidecar, &path)?;
            let told = self.owned.get(&batch.partition).and_then(|(_, durable)| *durable);
            // A mark that moved without our having said so is that of a commit whose answer got lost: it holds these rows.
            let durable = match entry.durable {
                Some(durable) if told != Some(durable) && durable.mark >= batch.complete_to => durable,
                Some(durable) if told != Some(durable) => {
                    let cause = format!("it stands at {}, which is inside a batch up to {}", durable.mark, batch.complete_to);
                    return Err(fatal("check the mark in", &path, &cause));
                }
                before => {
                    let rows = self.encode(batch, &mut buffers)?;
                    let mark = before.map_or(batch.complete_to, |d| d.mark.max(batch.complete_to));
                    Durable { mark, delivered: before.map_or(0, |d| d.delivered) + rows }
                }
            };
            done.push((batch.partition.clone(), durable));
        }
        append(&mut sidecar, &path, &buffers, &self.header)?;
        for (key, durable) in &done {
            if let Some(entry) = sidecar.entry_mut(&self.sink, key) {
                entry.durable = Some(*durable);
            }
        }
        sidecar.store(&path).map_err(|e| refused("replace marks in", &path, &e))?;
        for (key, durable) in &done {
            if let Some((_, told)) = self.owned.get_mut(key) {
                *told = Some(*durable);
            }
        }
        Ok(done.iter().map(|(key, durable)| committed(key, *durable)).collect())
    }

    /// The stored entry of a batch's partition, which must be ours.
    fn check<'a>(&self, batch: &SinkBatch, sidecar: &'a Sidecar, path: &Path) -> Result<&'a Entry, SinkError> {
        let key = &batch.partition;
        let (Some(entry), Some((generation, _))) = (sidecar.entry(&self.sink, key), self.owned.get(key)) else {
            return Err(fatal("find the mark in", path, &format!("partition {key} has none: another run may have begun afresh")));
        };
        if entry.generation == *generation {
            return Ok(entry);
        }
        Err(SinkError::Fenced { partition: key.clone(), owner: entry.generation })
    }

    fn encode(&self, batch: &SinkBatch, buffers: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<u64, SinkError> {
        let mut rows = 0;
        for part in &batch.rows {
            self.encode_rows(part, buffers)?;
            rows += part.batch.len() as u64;
        }
        Ok(rows)
    }

    fn encode_rows(&self, part: &SinkRows, buffers: &mut BTreeMap<PathBuf, Vec<u8>>) -> Result<(), SinkError> {
        let rows = &part.batch.rows;
        let Some(encoder) = self.encoders.get(part.input) else {
            return Err(fatal("encode rows for", &self.template.file(None), &format!("there is no input {}", part.input)));
        };
        let times = rows.column_by_name(TS).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
        let time = |row: usize| times.filter(|t| arrow::array::Array::is_valid(*t, row)).map(|t| t.value(row));
        let mut row = 0;
        while row < rows.num_rows() {
            let span = self.template.span(time(row));
            let from = row;
            while row < rows.num_rows() && self.template.span(time(row)) == span {
                row += 1;
            }
            encoder.write(rows, from..row, buffers.entry(self.template.file(span)).or_default());
        }
        Ok(())
    }
}

/// Removes files and marks of an earlier run. Marks go first: a crash in between leaves files that the next run cuts.
fn clear(sidecar: &mut Sidecar, path: &Path) -> Result<(), SinkError> {
    sidecar.partitions.clear();
    for length in sidecar.files.values_mut() {
        *length = 0;
    }
    sidecar.store(path).map_err(|e| refused("replace marks in", path, &e))?;
    for file in std::mem::take(&mut sidecar.files).into_keys() {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fatal("remove", &file, &error)),
            _ => {}
        }
    }
    Ok(())
}

/// Lists a file that the sidecar does not know yet, with the length it has: what is in it stays.
fn adopt(sidecar: &mut Sidecar, file: &Path) -> Result<bool, SinkError> {
    if sidecar.files.contains_key(file) {
        return Ok(false);
    }
    let length = match fs::metadata(file) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(fatal("look at", file, &error)),
    };
    sidecar.files.insert(file.to_owned(), length);
    Ok(true)
}

fn touch(file: &Path) -> io::Result<File> {
    if let Some(directory) = file.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(directory)?;
    }
    File::options().create(true).write(true).truncate(false).open(file)
}

/// Cuts a file to its committed length. A file that was moved away begins anew; one that lost committed bytes is an error.
fn cut_tail(file: &Path, length: &mut u64) -> Result<(), SinkError> {
    let found = match fs::metadata(file) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if *length > 0 {
                tracing::warn!(file = %file.display(), bytes = *length, "committed file is gone, it begins anew");
                *length = 0;
            }
            return Ok(());
        }
        Err(error) => return Err(fatal("look at", file, &error)),
    };
    if found < *length {
        let cause = format!("it has {found} bytes but {length} were committed: restore it, or move it away to begin anew");
        return Err(fatal("go on with", file, &cause));
    }
    if found > *length {
        tracing::info!(file = %file.display(), bytes = found - *length, "cut rows that were never committed");
        touch(file).and_then(|f| f.set_len(*length)).map_err(|e| refused("cut", file, &e))?;
    }
    Ok(())
}

/// Appends what `buffers` holds; a file that is empty begins with `header`.
fn append(sidecar: &mut Sidecar, path: &Path, buffers: &BTreeMap<PathBuf, Vec<u8>>, header: &[u8]) -> Result<(), SinkError> {
    let mut adopted = false;
    for file in buffers.keys() {
        adopted |= adopt(sidecar, file)?;
    }
    if adopted {
        // A file must be listed with its length before it grows, or a torn tail in it could not be told from rows.
        sidecar.store(path).map_err(|e| refused("replace marks in", path, &e))?;
    }
    for (file, bytes) in buffers {
        let length = sidecar.files.entry(file.clone()).or_default();
        cut_tail(file, length)?;
        let handle = touch(file).map_err(|e| retry("open", file, &e))?;
        let top = if *length == 0 { header } else { &[] };
        handle.write_all_at(top, *length).map_err(|e| retry("write", file, &e))?;
        handle.write_all_at(bytes, *length + top.len() as u64).map_err(|e| retry("write", file, &e))?;
        // After a failed fsync the kernel may have dropped the pages: nobody knows what is on disk.
        handle.sync_all().map_err(|e| fatal("fsync", file, &e))?;
        if *length == 0 {
            sync_directory(file).map_err(|e| refused("fsync the directory of", file, &e))?;
        }
        *length += (top.len() + bytes.len()) as u64;
    }
    Ok(())
}

fn sync_directory(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}
