//! Callbacks of the client library: what the group gives and takes, and what the library has to say.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fieldstream_engine_api::{LogError, LogEvent};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, ClientContext};

use super::membership::Membership;
use super::options::creation_cause;
use super::outbox::Outbox;

/// How long the group waits for the engine to give a partition up: for the transactions under way, and no longer for a sink
/// that cannot commit. The group itself would wait for `max.poll.interval.ms`, and so would all its members.
const GIVE_UP: Duration = Duration::from_secs(5);

/// How the source becomes a member of its group.
pub(crate) struct Entrance {
    pub(crate) config: ClientConfig,
    pub(crate) topic: String,
    /// Name of the member that outlives the process.
    pub(crate) instance: Option<String>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) membership: Arc<Membership>,
}

impl Entrance {
    /// A new member.
    ///
    /// # Errors
    /// [`LogError::Fatal`] when the library refuses the settings.
    pub(crate) fn enter(&self) -> Result<Arc<BaseConsumer<GroupContext>>, LogError> {
        let fatal =
            |error: KafkaError| LogError::Fatal { context: format!("read Kafka topic {}", self.topic), cause: creation_cause(&error) };
        let callbacks = GroupContext::new(Arc::clone(&self.outbox), Arc::clone(&self.membership));
        let consumer: Arc<BaseConsumer<GroupContext>> = Arc::new(self.config.create_with_context(callbacks).map_err(fatal)?);
        self.membership.enter(&consumer, &self.topic, self.instance.as_deref());
        consumer.subscribe(&[&self.topic]).map_err(fatal)?;
        Ok(consumer)
    }
}

/// What the consumer group decided.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// These partitions are ours.
    Assigned(Vec<i32>),
    /// These are no longer.
    Revoked(Vec<i32>),
}

/// The consumer's context. Callbacks run on the thread that polls.
#[derive(Debug)]
pub(crate) struct GroupContext {
    changes: Mutex<Vec<Change>>,
    outbox: Arc<Outbox>,
    membership: Arc<Membership>,
}

impl GroupContext {
    pub(crate) fn new(outbox: Arc<Outbox>, membership: Arc<Membership>) -> Self {
        Self { changes: Mutex::default(), outbox, membership }
    }

    /// Changes since the last call.
    pub(crate) fn take_changes(&self) -> Vec<Change> {
        std::mem::take(&mut *self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ConsumerContext for GroupContext {
    /// The group's decision is answered at once, but with no partition: one is taken into the assignment only when the engine
    /// seeks it, with an explicit offset. So nothing can be delivered before the seek, and no reset policy is ever asked.
    ///
    /// What is taken away is answered when the engine has given it up, so that nobody else begins before our last transaction has
    /// ended; what is lost already is somebody else's, and is dropped at once.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let numbers: Vec<i32> = partitions.elements().iter().map(|e| e.partition()).collect();
        let (change, answered) = if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            (Change::Assigned(numbers), consumer.incremental_assign(&TopicPartitionList::new()))
        } else {
            numbers.iter().for_each(|number| self.outbox.take_back(*number as u32));
            self.outbox.push(Ok(LogEvent::Revoked(numbers.iter().map(|number| *number as u32).collect())));
            if consumer.assignment_lost() {
                self.membership.release(&numbers);
            } else {
                self.membership.wait_released(&numbers, GIVE_UP);
            }
            (Change::Revoked(numbers), release(consumer, partitions))
        };
        if let Err(error) = answered {
            tracing::warn!(%error, "the answer to a group rebalance was refused");
        }
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(change);
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "group offsets were not committed; they are for dashboards only");
        }
    }
}

/// Takes those of `partitions` that are read out of the assignment, which must name no others.
fn release(consumer: &BaseConsumer<GroupContext>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    let assigned = consumer.assignment()?;
    let mut read = TopicPartitionList::new();
    for partition in partitions.elements() {
        if assigned.find_partition(partition.topic(), partition.partition()).is_some() {
            read.add_partition(partition.topic(), partition.partition());
        }
    }
    consumer.incremental_unassign(&read)
}
