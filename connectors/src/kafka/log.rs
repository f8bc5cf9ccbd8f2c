//! The Kafka source as a log: commands to the consumer's thread, events from it.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use async_trait::async_trait;
use fieldstream_engine_api::{Assignment, Log, LogError, LogEvent};
use rdkafka::ClientConfig;
use tokio::sync::oneshot;
use tokio::task::JoinHandle as Task;

use super::block::Wanted;
use super::group::Entrance;
use super::membership::Membership;
use super::options::{Origins, RecordKey, Start};
use super::outbox::Outbox;
use super::reader::{Command, Reader, Source};
use super::topics::{self, TopicError};

/// What the log reads, and how.
#[derive(Clone, Debug)]
pub(crate) struct LogSettings {
    pub(crate) topic: String,
    pub(crate) source: Arc<str>,
    pub(crate) start: Start,
    pub(crate) key: RecordKey,
    pub(crate) origins: Origins,
    /// Name of the member that outlives the process.
    pub(crate) instance: Option<String>,
    /// Sources of the pipeline, where the topic stands for the journal of several.
    pub(crate) receivers: Option<Arc<[Arc<str>]>>,
}

/// A topic that is made before it is read, should it be missing.
pub(crate) struct Make {
    client: ClientConfig,
    partitions: i32,
    /// Under way; it survives when [`Log::next`] is dropped.
    task: Option<Task<Result<(), TopicError>>>,
}

impl Make {
    pub(crate) fn new(client: ClientConfig, partitions: i32) -> Self {
        Self { client, partitions, task: None }
    }

    async fn made(&mut self, topic: &str) -> Result<(), LogError> {
        let task = self.task.get_or_insert_with(|| {
            let (client, topic, partitions) = (self.client.clone(), topic.to_owned(), self.partitions);
            tokio::spawn(async move { topics::make(&client, &topic, partitions, &[("message.timestamp.type", "LogAppendTime")]).await })
        });
        let made = task.await;
        self.task = None;
        let context = format!("use Kafka topic {topic}");
        match made {
            Ok(Ok(())) => Ok(()),
            Ok(Err(TopicError::Fatal(cause))) => Err(LogError::Fatal { context, cause }),
            Ok(Err(TopicError::Retry(cause))) => Err(LogError::Retry { context, cause }),
            Err(error) => Err(LogError::Retry { context, cause: error.to_string() }),
        }
    }
}

/// A Kafka topic as a log.
pub(crate) struct KafkaLog {
    config: ClientConfig,
    settings: LogSettings,
    outbox: Arc<Outbox>,
    membership: Arc<Membership>,
    make: Option<Make>,
    running: Option<Running>,
}

/// What a log of `topic` in the cluster called `cluster` is called.
pub(crate) fn log_id(cluster: &str, topic: &str) -> String {
    format!("kafka:{cluster}:{topic}")
}

/// The cluster of a Kafka log; `None` for another log.
pub(crate) fn cluster_of(log_id: &str) -> Option<&str> {
    // Neither a cluster's id nor a topic's name has a colon.
    Some(log_id.strip_prefix("kafka:")?.rsplit_once(':')?.0)
}

struct Running {
    membership: Arc<Membership>,
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    /// Leaves the group before the log is gone, so that a successor in this process need not wait for the session's timeout.
    fn drop(&mut self) {
        self.membership.leave();
        drop(self.commands.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the Kafka consumer's thread panicked");
        }
    }
}

impl KafkaLog {
    /// A log that connects when it is first used.
    pub(crate) fn new(config: ClientConfig, settings: LogSettings, membership: Arc<Membership>) -> Self {
        Self { config, settings, outbox: Arc::default(), membership, make: None, running: None }
    }

    /// The same log, whose topic is made where it is missing.
    pub(crate) fn making(self, make: Make) -> Self {
        Self { make: Some(make), ..self }
    }

    fn start(&self) -> Result<Running, LogError> {
        let topic = self.settings.topic.clone();
        let context = format!("read Kafka topic {topic}");
        let entrance = Entrance {
            config: self.config.clone(),
            topic: topic.clone(),
            instance: self.settings.instance.clone(),
            outbox: Arc::clone(&self.outbox),
            membership: Arc::clone(&self.membership),
        };
        let consumer = entrance.enter()?;
        let (commands, inbox) = channel();
        let wanted = Wanted { keys: self.settings.key == RecordKey::DeviceId, origins: self.settings.origins == Origins::Deduplicate };
        let receivers = self.settings.receivers.clone();
        let source = Source { topic, name: Arc::clone(&self.settings.source), wanted, receivers };
        let reader = Reader::new(consumer, source, inbox, entrance);
        let thread = std::thread::Builder::new()
            .name("kafka-consumer".into())
            .spawn(move || reader.run())
            .map_err(|error| LogError::Fatal { context, cause: format!("no thread for the consumer: {error}") })?;
        Ok(Running { membership: Arc::clone(&self.membership), commands: Some(commands), thread: Some(thread) })
    }

    /// Sends a command; false when the consumer's thread does not run.
    fn command(&self, command: Command) -> bool {
        self.running.as_ref().and_then(|r| r.commands.as_ref()).is_some_and(|commands| commands.send(command).is_ok())
    }

    fn not_running(&self) -> LogError {
        LogError::Fatal { context: format!("read Kafka topic {}", self.settings.topic), cause: "the consumer's thread has ended".into() }
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn next(&mut self) -> Result<LogEvent, LogError> {
        if self.running.is_none() {
            if let Some(make) = &mut self.make {
                make.made(&self.settings.topic).await?;
            }
            self.running = Some(self.start()?);
        }
        self.outbox.next().await
    }

    fn start_offset(&self, assignment: &Assignment) -> u64 {
        match self.settings.start {
            Start::Earliest => assignment.first_offset,
            Start::Latest => assignment.end_offset,
        }
    }

    async fn end_offset(&mut self, partition: u32) -> Result<Option<u64>, LogError> {
        let (reply, answer) = oneshot::channel();
        if !self.command(Command::End { partition: partition as i32, reply }) {
            return Err(self.not_running());
        }
        answer.await.unwrap_or_else(|_| Err(self.not_running())).map(Some)
    }

    async fn seek(&mut self, partition: u32, offset: u64) -> Result<(), LogError> {
        let (reply, answer) = oneshot::channel();
        if !self.command(Command::Seek { partition: partition as i32, offset, reply }) {
            return Err(self.not_running());
        }
        answer.await.unwrap_or_else(|_| Err(self.not_running()))
    }

    async fn acknowledge(&mut self, partition: u32, offset: u64) -> Result<(), LogError> {
        if self.command(Command::Acknowledge { partition: partition as i32, offset }) { Ok(()) } else { Err(self.not_running()) }
    }

    fn released(&mut self, partition: u32) -> bool {
        self.membership.release(&[partition as i32]);
        true
    }

    fn pause(&mut self, partition: u32, paused: bool) {
        if !self.command(Command::Pause { partition: partition as i32, paused }) {
            tracing::warn!(partition, "a partition of a log that does not run was to be paused");
        }
    }
}
