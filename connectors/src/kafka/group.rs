//! Callbacks of the client library: what the group gives and takes, and what the library has to say.

use std::sync::{Mutex, PoisonError};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

/// What the consumer group decided.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// These partitions are ours.
    Assigned(Vec<i32>),
    /// These are no longer.
    Revoked(Vec<i32>),
}

/// The consumer's context. Callbacks run on the thread that polls.
#[derive(Debug, Default)]
pub(crate) struct GroupContext {
    changes: Mutex<Vec<Change>>,
}

impl GroupContext {
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
    fn rebalance(&self, consumer: &BaseConsumer<Self>, error: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let numbers = partitions.elements().iter().map(|e| e.partition()).collect();
        let (change, answered) = if error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            (Change::Assigned(numbers), consumer.incremental_assign(&TopicPartitionList::new()))
        } else {
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
