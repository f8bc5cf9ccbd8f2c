//! The journal of a node: append, register, read.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use async_trait::async_trait;
use fieldstream_engine_api::{Append, AppendError, Assignment, LogId};
use fieldstream_schemas::{Decoded, PayloadBlock};
use tokio::sync::{mpsc, oneshot};

use crate::frame::LONGEST_HEADER;
use crate::holds::Holds;
use crate::identity::Identity;
use crate::recovery::{DurableFile, recover};
use crate::shared::{Index, Shared};
use crate::stage::stage;
use crate::writer::{Command, Limits, OpenFile, Writer, real_files};
use crate::{JournalError, JournalLog, JournalStats};

/// Sizes of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// Partitions of a new journal. An existing one keeps the count it was made with.
    pub partitions: u32,
    /// Bytes on disk at most. A full journal refuses.
    pub budget_bytes: u64,
    /// A segment is ended at about this size; at most a quarter of the budget.
    pub segment_bytes: u64,
    /// Bytes gathered into one frame at most, if more than one append waits.
    pub group_bytes: usize,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { partitions: 16, budget_bytes: 4 << 30, segment_bytes: 64 << 20, group_bytes: 8 << 20 }
    }
}

/// The journal. Cloning shares it; when the last clone is dropped, what was appended is written and the folder is free.
#[derive(Clone, Debug)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Keeps other processes out.
    _lock: File,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread is gone already when this fails.
        let _ = self.commands.send(Command::Close);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the journal's writer ended in a panic");
        }
    }
}

impl Journal {
    /// Opens the journal in `folder`, making it if need be, and recovers it. Blocks on the disk.
    ///
    /// # Errors
    /// If the folder cannot be used, is open in another process, or holds a journal this program cannot read.
    pub fn open(folder: &Path, options: JournalOptions) -> Result<Self, JournalError> {
        Self::open_with(folder, options, real_files())
    }

    pub(crate) fn open_with(folder: &Path, options: JournalOptions, open: OpenFile) -> Result<Self, JournalError> {
        let inner = Inner::open(folder.to_owned(), options, open);
        let fail = |e: io::Error| JournalError::Open { folder: folder.display().to_string(), cause: e.to_string() };
        Ok(Self { inner: Arc::new(inner.map_err(fail)?) })
    }

    /// Identity of the log.
    #[must_use]
    pub fn log_id(&self) -> LogId {
        self.shared().identity.log_id()
    }

    /// Number of partitions.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.shared().identity.partitions
    }

    /// Appends what `source` received: rows to the partitions of their devices, undecodable payloads to the partition of
    /// their bytes. `raw` are the payloads themselves, where they are to be kept. `now_us` is the append time, microseconds
    /// since the epoch.
    ///
    /// The order of calls is the order in the log, for calls with one source. The future resolves when everything is durable;
    /// dropping it takes nothing back. What waits is kept in memory: callers bound what they have in flight. After
    /// [`JournalError::Full`] a caller with several appends in flight may find a later one accepted.
    pub fn append(
        &self,
        source: &str,
        decoded: Decoded,
        raw: Option<&PayloadBlock>,
        now_us: i64,
    ) -> impl Future<Output = Result<(), JournalError>> + Send + 'static {
        let answer = self.begin_append(source, decoded, raw, now_us);
        async move {
            match answer? {
                None => Ok(()),
                Some(answer) => answer.await.unwrap_or_else(|_| Err(closed())),
            }
        }
    }

    fn begin_append(
        &self,
        source: &str,
        decoded: Decoded,
        raw: Option<&PayloadBlock>,
        now_us: i64,
    ) -> Result<Option<Answer>, JournalError> {
        self.shared().check()?;
        if source.len() > usize::from(u16::MAX) {
            return Err(JournalError::Schema("the source's name is longer than 65535 bytes".to_owned()));
        }
        let staged = stage(source, decoded, raw, now_us, self.partitions())?;
        if staged.runs.is_empty() {
            return Ok(None);
        }
        let (reply, answer) = oneshot::channel();
        self.inner.commands.send(Command::Append(staged, reply)).map_err(|_| closed())?;
        Ok(Some(answer))
    }

    /// True from a refusal, because the budget is used up, the disk is full or there are no file handles, until something could be written again.
    #[must_use]
    pub fn is_full(&self) -> bool {
        *self.shared().full.borrow()
    }

    /// Waits until the journal that refused has room again. Room that other programs make on the disk is not noticed: try
    /// again after some seconds in any case.
    pub async fn wait_for_room(&self) {
        // The sender lives as long as `self`.
        let _ = self.shared().full.subscribe().wait_for(|full| !full).await;
    }

    /// From now on nothing is deleted that `pipeline` has not acknowledged; durable when this returns. A pipeline that is
    /// registered already keeps its hold.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn register(&self, pipeline: &str) -> Result<(), JournalError> {
        self.change_holds(|holds| holds.register(pipeline))
    }

    /// Takes a pipeline's hold away: it will not come back.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn unregister(&self, pipeline: &str) -> Result<(), JournalError> {
        self.change_holds(|holds| holds.unregister(pipeline))?;
        self.retain();
        Ok(())
    }

    fn change_holds(&self, change: impl FnOnce(&mut Holds) -> bool) -> Result<(), JournalError> {
        let shared = self.shared();
        let mut index = shared.index();
        if !change(&mut index.holds) {
            return Ok(());
        }
        let fail = |e: io::Error| JournalError::Failed(format!("cannot write who needs the journal: {e}"));
        index.holds.save(&shared.folder).map_err(fail)
    }

    /// Names of the registered pipelines.
    #[must_use]
    pub fn pipelines(&self) -> Vec<String> {
        self.shared().index().holds.pipelines()
    }

    /// Registers `pipeline` and reads for it what came in through `sources`, in all partitions.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn log(&self, pipeline: &str, sources: &[&str]) -> Result<JournalLog, JournalError> {
        self.register(pipeline)?;
        Ok(JournalLog::new(self.clone(), pipeline, sources))
    }

    /// What there is to read now, by partition.
    #[must_use]
    pub fn assignments(&self) -> Vec<Assignment> {
        let log_id = self.log_id();
        let index = self.shared().index();
        let assignment = |partition| Assignment {
            partition,
            log_id: log_id.clone(),
            first_offset: index.first_offset(partition),
            end_offset: index.next_offset(partition),
        };
        (0..self.partitions()).map(assignment).collect()
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> JournalStats {
        let index = self.shared().index();
        JournalStats { disk_bytes: index.bytes(), segments: index.segments.len() as u64, ..self.shared().counters.read() }
    }

    /// Takes note that `pipeline` needs nothing of `partition` below `offset`, and deletes what nobody needs any more.
    pub(crate) fn acknowledge(&self, pipeline: &str, partition: u32, offset: u64) {
        let shared = self.shared();
        let free = {
            let mut index = shared.index();
            index.holds.acknowledge(pipeline, partition, offset);
            index.deletable() > 0 || (*shared.full.borrow() && index.all_released())
        };
        if free {
            self.retain();
        }
    }

    fn retain(&self) {
        // A writer that is gone deletes nothing, which is safe.
        let _ = self.inner.commands.send(Command::Retain);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }
}

#[async_trait]
impl Append for Journal {
    async fn append(&self, source: &str, decoded: &Decoded, now_us: i64) -> Result<(), AppendError> {
        let context = || "append to the journal".to_owned();
        Self::append(self, source, decoded.clone(), None, now_us).await.map_err(|error| match error {
            passing @ (JournalError::Full { .. } | JournalError::Short(_)) => {
                AppendError::Retry { context: context(), cause: passing.to_string() }
            }
            other => AppendError::Fatal { context: context(), cause: other.to_string() },
        })
    }

    async fn room(&self) {
        self.wait_for_room().await;
    }
}

/// The writer's answer to an append.
type Answer = oneshot::Receiver<Result<(), JournalError>>;

fn closed() -> JournalError {
    JournalError::Failed("the writer has ended".to_owned())
}

impl Inner {
    fn open(folder: PathBuf, options: JournalOptions, open: OpenFile) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        let lock = File::options().write(true).create(true).truncate(false).open(folder.join("lock"))?;
        lock.try_lock().map_err(|e| io::Error::other(format!("another process has it open ({e})")))?;
        let identity = Identity::open(&folder, options.partitions)?;
        let durable = DurableFile::open(&folder)?;
        let found = recover(&folder, &identity, durable.read())?;
        let Some(segment) = found.segments.last().cloned() else {
            return Err(io::Error::other("no segment could be made"));
        };
        let index = Index { segments: found.segments.into(), next: found.next.clone(), holds: Holds::open(&folder)? };
        let shared = Arc::new(Shared::new(folder, identity, options.budget_bytes, index));
        for (segment, at, why) in found.lost {
            shared.lose(segment, at, why);
        }
        let (commands, inbox) = mpsc::unbounded_channel();
        let budget = options.budget_bytes;
        let limits = Limits {
            segment: options.segment_bytes.min(budget / 4),
            group: options.group_bytes.min(usize::try_from(budget / 4).unwrap_or(usize::MAX)),
            // Lengths in a frame are 32 bits wide.
            frame: (budget / 2).min(u64::from(u32::MAX) - LONGEST_HEADER as u64),
        };
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            commands: inbox,
            file: open(&segment.path)?,
            open,
            at: segment.len.load(std::sync::atomic::Ordering::Acquire),
            segment,
            next: found.next,
            next_frame: found.next_frame,
            commit_us: found.commit_us,
            durable,
            limits,
        };
        if found.rotate {
            writer.rotate().map_err(io::Error::other)?;
        }
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run())?;
        Ok(Self { shared, commands, thread: Mutex::new(Some(thread)), _lock: lock })
    }
}
