//! The `file` source: a finite log of files, each file one partition, with byte offsets of lines as offsets.

use std::collections::BTreeMap;
use std::fs::File;
use std::future::{Future as _, poll_fn};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use fieldstream_engine_api::{
    Assignment, Built, BuiltLog, ConfigError, ConnectContext, Log, LogBatch, LogError, LogEvent, Payloads, SourceBuild, SourceKind,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::blocks::Lines;
use super::inputs::Inputs;
use super::rows::{Rows, count};
use crate::options;

/// Partitions that are read ahead at the same time, one block each. The others wait for their turn.
const READ_AHEAD: usize = 64;

/// Upper limit of `max_line`: a block that holds such a line still counts its bytes in 32 bits.
const MAX_LINE_LIMIT: u64 = 2 << 30;

/// The catalogue line of the `file` source.
pub const KIND: SourceKind = SourceKind {
    name: "file",
    about: "Finite log of files: newline-delimited JSON, CSV or Parquet, each file one partition.",
    schema: || schemars::schema_for!(Options).to_value(),
    check: |value| read_options(value).map(|_| ()),
    log_options: &[],
    build: SourceBuild::Log(build),
};

/// Options of the `file` source.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// A file, a directory (all of its files with the format's ending), or a pattern with `*` and `?`; or a list of these.
    path: Paths,
    /// What is in the files.
    #[serde(default)]
    format: Format,
    /// Longest line, such as `16MiB`; a longer one stops the pipeline.
    #[serde(default = "default_max_line", deserialize_with = "options::size")]
    #[schemars(with = "String")]
    max_line: u64,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a path or a list of paths")]
enum Paths {
    One(String),
    Many(Vec<String>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// One JSON value a line.
    #[default]
    Ndjson,
    /// One record a line, or several lines where a quoted field holds line breaks.
    Csv,
    /// Readings by column name; the offset is the row's number. `decode` does not apply.
    Parquet,
}

impl Format {
    fn endings(self) -> &'static [&'static str] {
        match self {
            Self::Ndjson => &["ndjson", "jsonl", "json"],
            Self::Csv => &["csv"],
            Self::Parquet => &["parquet"],
        }
    }
}

fn default_max_line() -> u64 {
    16 << 20
}

fn read_options(value: &Value) -> Built<Options> {
    let options: Options = options::parse(value)?;
    let mut errors = Vec::new();
    if options.max_line == 0 || options.max_line > MAX_LINE_LIMIT {
        errors.push(ConfigError::new("/max_line", "must be between 1 byte and 2GiB"));
    }
    if matches!(&options.path, Paths::Many(list) if list.is_empty()) {
        errors.push(ConfigError::new("/path", "names no file").hint("give a file, a directory or a pattern such as in/*.ndjson"));
    }
    if errors.is_empty() { Ok(options) } else { Err(errors) }
}

fn build(value: &Value, context: &ConnectContext) -> Built<BuiltLog> {
    let log = FileLog::new(read_options(value)?, context);
    Ok(BuiltLog { log: Box::new(log), finite: true })
}

/// Files as a log. Blocks are read on the blocking pool, one ahead per partition, and handed out in turn.
struct FileLog {
    options: Options,
    source: Arc<str>,
    record: PathBuf,
    resume: bool,
    finding: Option<JoinHandle<Result<Found, LogError>>>,
    parts: Vec<Part>,
    turn: usize,
}

/// The log id and, by partition, path and length.
type Found = (Inputs, BTreeMap<u32, u64>);

struct Part {
    partition: u32,
    path: PathBuf,
    end: u64,
    paused: bool,
    state: State,
}

enum State {
    /// Assigned, not yet sought; or at its end.
    Still,
    /// Sought; its turn to be read has not come.
    Waiting(u64),
    /// The next block is being read, or lies ready.
    Reading(JoinHandle<Read>),
}

/// A block with the reader that goes on after it; `None` at the end.
type Read = Result<Option<(LogBatch, Reader)>, LogError>;

/// An open file.
enum Reader {
    Lines(Lines),
    Rows(Rows),
}

impl FileLog {
    fn new(options: Options, context: &ConnectContext) -> Self {
        let record = context.data_dir.join("file-logs").join(format!("{}.{}.json", context.pipeline, context.node));
        Self { options, source: Arc::clone(&context.node), record, resume: context.resume, finding: None, parts: Vec::new(), turn: 0 }
    }

    /// Finds the files once. The task is kept while it runs, so that a dropped `next` does not start a second one.
    fn poll_assigned(&mut self, cx: &mut Context<'_>) -> Poll<Result<LogEvent, LogError>> {
        let finding = self.finding.get_or_insert_with(|| {
            let (options, record, resume) = (self.options.clone(), self.record.clone(), self.resume);
            spawn_blocking(move || find(&options, &record, resume))
        });
        let Poll::Ready(found) = Pin::new(finding).poll(cx) else { return Poll::Pending };
        self.finding = None;
        let (inputs, lengths) = found.map_err(|e| panicked("find input files", &e))??;
        let length = |partition: &u32| lengths.get(partition).copied().unwrap_or_default();
        let assignment = |partition: &u32| Assignment {
            partition: *partition,
            log_id: inputs.log_id.clone(),
            first_offset: 0,
            end_offset: length(partition),
        };
        let assigned = inputs.files.keys().map(assignment).collect();
        let part = |(partition, path): (&u32, &PathBuf)| Part {
            partition: *partition,
            path: path.clone(),
            end: length(partition),
            paused: false,
            state: State::Still,
        };
        self.parts = inputs.files.iter().map(part).collect();
        Poll::Ready(Ok(LogEvent::Assigned(assigned)))
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<LogEvent, LogError>> {
        if self.parts.is_empty() {
            return self.poll_assigned(cx);
        }
        self.start_waiting();
        let count = self.parts.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let part = &mut self.parts[index];
            let State::Reading(handle) = &mut part.state else { continue };
            if part.paused {
                continue;
            }
            let Poll::Ready(read) = Pin::new(handle).poll(cx) else { continue };
            part.state = State::Still;
            self.turn = index + 1;
            let read = read.map_err(|e| panicked("read a file", &e))?;
            return Poll::Ready(read.map(|block| self.hand_over(index, block)));
        }
        Poll::Pending
    }

    fn start_waiting(&mut self) {
        let mut reading = self.parts.iter().filter(|p| matches!(p.state, State::Reading(_))).count();
        for part in &mut self.parts {
            if reading == READ_AHEAD {
                return;
            }
            if let State::Waiting(offset) = part.state {
                part.state = State::Reading(part.open(offset, &self.options, &self.source));
                reading += 1;
            }
        }
    }

    fn hand_over(&mut self, index: usize, block: Option<(LogBatch, Reader)>) -> LogEvent {
        let part = &mut self.parts[index];
        let Some((batch, reader)) = block else {
            return LogEvent::EndOfInput { partition: part.partition, next_offset: part.end };
        };
        let (source, path, partition) = (Arc::clone(&self.source), part.path.clone(), part.partition);
        part.state = State::Reading(spawn_blocking(move || read_on(reader, &source, &path, partition)));
        LogEvent::Batch(batch)
    }

    fn part(&mut self, partition: u32) -> Option<&mut Part> {
        self.parts.iter_mut().find(|p| p.partition == partition)
    }
}

impl Part {
    fn open(&self, at: u64, options: &Options, source: &Arc<str>) -> JoinHandle<Read> {
        let (path, source, partition, end) = (self.path.clone(), Arc::clone(source), self.partition, self.end);
        let (max_line, format) = (options.max_line as usize, options.format);
        spawn_blocking(move || {
            let failed = |e: &dyn std::error::Error| fatal(format!("read {}", path.display()), e);
            let file = File::open(&path).map_err(|e| fatal(format!("open {}", path.display()), &e))?;
            let reader = if format == Format::Parquet {
                Reader::Rows(Rows::open(file, at).map_err(|e| failed(&e))?)
            } else {
                let lines = Lines { file, at, end, max_line, quoted: format == Format::Csv };
                lines.check_start().map_err(|e| failed(&e))?;
                Reader::Lines(lines)
            };
            read_on(reader, &source, &path, partition)
        })
    }
}

fn read_on(mut reader: Reader, source: &Arc<str>, path: &Path, partition: u32) -> Read {
    let failed = |e: &dyn std::error::Error| fatal(format!("read {}", path.display()), e);
    let read = match &mut reader {
        Reader::Lines(lines) => {
            let block = lines.next_block().map_err(|e| failed(&e))?;
            block.map(|block| (lines.at, Payloads::Raw(block)))
        }
        Reader::Rows(rows) => rows.next_rows().map_err(|e| failed(&e))?.map(|payloads| (rows.at, payloads)),
    };
    Ok(read.map(|(next_offset, payloads)| {
        (LogBatch { partition, source: Arc::clone(source), next_offset, append_us: None, payloads }, reader)
    }))
}

/// First offset after the end of a file.
fn length(path: &Path, format: Format) -> Result<u64, LogError> {
    let failed = |e: &dyn std::error::Error| fatal(format!("open {}", path.display()), e);
    if format == Format::Parquet {
        let file = File::open(path).map_err(|e| failed(&e))?;
        return count(file).map_err(|e| failed(&e));
    }
    Ok(path.metadata().map_err(|e| failed(&e))?.len())
}

fn find(options: &Options, record: &Path, resume: bool) -> Result<Found, LogError> {
    let patterns = match &options.path {
        Paths::One(path) => std::slice::from_ref(path),
        Paths::Many(list) => list,
    };
    let context = || "find input files".to_owned();
    let inputs = Inputs::find(patterns, options.format.endings(), record, resume).map_err(|e| fatal(context(), &e))?;
    let mut lengths = BTreeMap::new();
    for (partition, path) in &inputs.files {
        lengths.insert(*partition, length(path, options.format)?);
    }
    Ok((inputs, lengths))
}

fn fatal(context: String, cause: &dyn std::error::Error) -> LogError {
    LogError::Fatal { context, cause: cause.to_string() }
}

fn panicked(context: &str, error: &JoinError) -> LogError {
    fatal(context.to_owned(), error)
}

#[async_trait]
impl Log for FileLog {
    async fn next(&mut self) -> Result<LogEvent, LogError> {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    async fn seek(&mut self, partition: u32, offset: u64) -> Result<(), LogError> {
        let context = format!("seek to offset {offset} of partition {partition}");
        let Some(part) = self.part(partition) else {
            return Err(LogError::Fatal { context, cause: "no such partition".to_owned() });
        };
        if offset > part.end {
            let cause = format!("{} ends at {}: it is not the file that was read before", part.path.display(), part.end);
            return Err(LogError::Fatal { context, cause });
        }
        part.state = State::Waiting(offset);
        Ok(())
    }

    async fn acknowledge(&mut self, _partition: u32, _offset: u64) -> Result<(), LogError> {
        Ok(())
    }

    fn pause(&mut self, partition: u32, paused: bool) {
        if let Some(part) = self.part(partition) {
            part.paused = paused;
        }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
