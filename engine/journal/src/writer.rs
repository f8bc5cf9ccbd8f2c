//! The writer thread: gathers appends, writes one frame for all of them, syncs once, answers.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::Instant;

use fieldstream_engine_api::is_shortage;
use tokio::sync::{mpsc, oneshot};

use crate::JournalError;
use crate::frame::{self, Encoded};
use crate::recovery::{DurableFile, create};
use crate::segment::{Segment, sync_folder};
use crate::shared::Shared;
use crate::stage::Staged;

/// Appends in one frame at most, which bounds the frame's index.
const MOST_APPENDS: usize = 1024;

/// What the writer is asked to do.
pub(crate) enum Command {
    Append(Staged, oneshot::Sender<Result<(), JournalError>>),
    /// Delete what nobody needs.
    Retain,
    Close,
}

/// Answers owed to the appends of a group.
type Replies = Vec<oneshot::Sender<Result<(), JournalError>>>;

/// The file being written. A trait, so that tests can let a disk be full or fail.
pub(crate) trait SegmentFile: Send {
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()>;
    fn sync(&self) -> io::Result<()>;
    fn truncate(&self, len: u64) -> io::Result<()>;
}

impl SegmentFile for File {
    fn write_at(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(data, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}

/// Opens an existing segment for writing.
pub(crate) type OpenFile = Box<dyn Fn(&Path) -> io::Result<Box<dyn SegmentFile>> + Send>;

/// Opens real files.
pub(crate) fn real_files() -> OpenFile {
    Box::new(|path| Ok(Box::new(File::options().write(true).open(path)?)))
}

/// Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) segment: u64,
    pub(crate) group: usize,
    pub(crate) frame: u64,
}

/// State of the writer thread.
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) open: OpenFile,
    pub(crate) file: Box<dyn SegmentFile>,
    pub(crate) segment: Arc<Segment>,
    /// Durable length of the segment.
    pub(crate) at: u64,
    /// First offset after the end, by partition.
    pub(crate) next: Vec<u64>,
    pub(crate) next_frame: u64,
    pub(crate) commit_us: i64,
    pub(crate) durable: DurableFile,
    pub(crate) limits: Limits,
}

impl Writer {
    /// Works until the journal is closed.
    pub(crate) fn run(mut self) {
        let mut waiting = VecDeque::new();
        loop {
            let command = match waiting.pop_front() {
                Some(command) => command,
                None => match self.commands.blocking_recv() {
                    Some(command) => command,
                    None => return,
                },
            };
            match command {
                Command::Append(staged, reply) => {
                    let (group, replies) = self.gather(staged, reply, &mut waiting);
                    self.commit(group, replies);
                }
                Command::Retain => self.retain(),
                Command::Close => return,
            }
        }
    }

    /// Everything that came in while the last frame was written, up to the limits.
    fn gather(
        &mut self,
        staged: Staged,
        reply: oneshot::Sender<Result<(), JournalError>>,
        waiting: &mut VecDeque<Command>,
    ) -> (Vec<Staged>, Replies) {
        let mut bytes = staged.bytes;
        let mut group = vec![(staged, reply)];
        while group.len() < MOST_APPENDS && bytes < self.limits.group {
            match self.commands.try_recv() {
                Ok(Command::Append(staged, reply)) => {
                    bytes += staged.bytes;
                    group.push((staged, reply));
                }
                Ok(other) => {
                    waiting.push_back(other);
                    break;
                }
                Err(_) => break,
            }
        }
        // Appends of different sources have no order; side by side, the rows of one source stay in long runs.
        group.sort_by(|(a, _), (b, _)| a.source.cmp(&b.source));
        group.into_iter().unzip()
    }

    fn commit(&mut self, group: Vec<Staged>, replies: Replies) {
        let appends = group.len() as u64;
        let done = self.shared.check().and_then(|()| self.write(group));
        match &done {
            Ok(()) => self.shared.counters.appends.fetch_add(appends, Relaxed),
            Err(_) => self.shared.counters.refused.fetch_add(appends, Relaxed),
        };
        for reply in replies {
            // The caller may have stopped waiting; the readings are durable all the same.
            let _ = reply.send(done.clone());
        }
    }

    fn write(&mut self, group: Vec<Staged>) -> Result<(), JournalError> {
        let commit_us = group.iter().map(|s| s.now_us).fold(self.commit_us, i64::max);
        let seed = self.shared.identity.seed();
        let encoded = frame::encode(group, &self.next, self.next_frame, commit_us, seed);
        let encoded = encoded.map_err(|e| JournalError::Schema(e.to_string()))?;
        let len = encoded.bytes.len() as u64;
        if len > self.limits.frame {
            return Err(JournalError::TooLarge { bytes: len, limit: self.limits.frame });
        }
        let header = if self.ends_with(len) { self.segment.head.len } else { 0 };
        self.make_room(len + header)?;
        if self.ends_with(len) {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_at(&encoded.bytes, self.at) {
            return Err(self.refused_by_disk(&error));
        }
        let started = Instant::now();
        if let Err(error) = self.file.sync() {
            // After a failed fsync the kernel may have dropped the pages: nothing about this file can be trusted any more.
            return Err(self.failed("sync", &error));
        }
        self.shared.counters.fsync(started.elapsed());
        self.publish(encoded, commit_us);
        Ok(())
    }

    /// True when a frame of `len` bytes belongs into a new segment.
    fn ends_with(&self, len: u64) -> bool {
        self.at + len > self.limits.segment && self.at > self.segment.head.len
    }

    fn publish(&mut self, encoded: Encoded, commit_us: i64) {
        self.at += encoded.bytes.len() as u64;
        self.next = encoded.next;
        self.next_frame += 1;
        self.commit_us = commit_us;
        if let Err(error) = self.durable.write(self.segment.head.number, self.at) {
            tracing::warn!(%error, "cannot note the journal's durable length; a damaged last frame could pass for a torn one");
        }
        let counters = &self.shared.counters;
        counters.frames.fetch_add(1, Relaxed);
        counters.rows.fetch_add(encoded.rows, Relaxed);
        counters.rejects.fetch_add(encoded.rejects, Relaxed);
        counters.written_bytes.fetch_add(encoded.bytes.len() as u64, Relaxed);
        {
            let mut index = self.shared.index();
            index.next.clone_from(&self.next);
            self.segment.len.store(self.at, Release);
        }
        self.shared.full.send_if_modified(std::mem::take);
        self.shared.committed.send_modify(|frames| *frames += 1);
    }

    /// Sees that `len` more bytes fit the budget, deleting what nobody needs.
    fn make_room(&mut self, len: u64) -> Result<(), JournalError> {
        let over = |writer: &Self| {
            let used = writer.shared.index().bytes();
            (used + len > writer.shared.budget).then_some(used)
        };
        if over(self).is_none() {
            return Ok(());
        }
        self.delete_released()?;
        if over(self).is_some() && self.all_released() {
            self.rotate()?;
            self.delete_released()?;
        }
        match over(self) {
            None => Ok(()),
            Some(used) => {
                self.shared.full.send_replace(true);
                Err(JournalError::Full { used, budget: self.shared.budget })
            }
        }
    }

    /// True when the segment being written has frames and nobody needs them.
    fn all_released(&self) -> bool {
        self.at > self.segment.head.len && self.shared.index().all_released()
    }

    fn retain(&mut self) {
        if self.shared.check().is_err() {
            return;
        }
        // A full journal whose contents all lie in the segment being written must let go of that one, too.
        let full = *self.shared.full.borrow();
        let rotated = if full && self.all_released() { self.rotate() } else { Ok(()) };
        if let Err(error) = rotated.and_then(|()| self.delete_released()) {
            tracing::warn!(%error, "cannot delete what nobody needs from the journal");
        }
    }

    fn delete_released(&mut self) -> Result<(), JournalError> {
        let gone: Vec<Arc<Segment>> = {
            let mut index = self.shared.index();
            let count = index.deletable();
            index.segments.drain(..count).collect()
        };
        if gone.is_empty() {
            return Ok(());
        }
        let removed = gone.iter().try_for_each(|segment| match fs::remove_file(&segment.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        let done =
            removed.and_then(|()| sync_folder(&self.shared.folder)).and_then(|()| self.shared.index().holds.save(&self.shared.folder));
        match done {
            // The files are gone. Nothing is read wrongly where this is not known after a crash, and the next deletion writes it down.
            Err(error) if is_shortage(&error) => tracing::warn!(%error, "cannot note which segments of the journal were deleted"),
            done => done.map_err(|e| self.failed("delete segments of", &e))?,
        }
        self.shared.full.send_if_modified(std::mem::take);
        Ok(())
    }

    /// Ends the segment and begins the next one.
    pub(crate) fn rotate(&mut self) -> Result<(), JournalError> {
        let number = self.segment.head.number + 1;
        let made = create(&self.shared.folder, &self.shared.identity, number, self.next_frame, self.commit_us, &self.next);
        let segment = match made {
            Ok(segment) => Arc::new(segment),
            Err(error) => return Err(self.refused_by_disk(&error)),
        };
        self.file = match (self.open)(&segment.path) {
            Ok(file) => file,
            Err(error) => {
                // The segment before goes on, and a head above its frames would contradict them.
                fs::remove_file(&segment.path).map_err(|e| self.failed("take back a segment of", &e))?;
                return Err(self.refused_by_disk(&error));
            }
        };
        self.at = segment.head.len;
        self.segment = Arc::clone(&segment);
        self.shared.index().segments.push_back(segment);
        Ok(())
    }

    /// What passes is taken back as if nothing had been written; any other failure is final.
    fn refused_by_disk(&mut self, error: &io::Error) -> JournalError {
        if !is_shortage(error) && error.kind() != io::ErrorKind::FileTooLarge {
            return self.failed("write", error);
        }
        if let Err(error) = self.file.truncate(self.at) {
            return self.failed("take back a write on the full disk of", &error);
        }
        tracing::warn!(folder = %self.shared.folder.display(), %error, "the journal cannot be written for now");
        self.shared.full.send_replace(true);
        JournalError::Short(error.to_string())
    }

    fn failed(&self, what: &str, error: &io::Error) -> JournalError {
        let what = format!("cannot {what} the journal: {error}");
        self.shared.fail(&what);
        JournalError::Failed(what)
    }
}
