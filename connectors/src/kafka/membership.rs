//! What the sinks of a pipeline must know of its source's place in the consumer group: which partitions are ours, and the
//! proof of it that a broker accepts.
//!
//! A partition is **held** from the seek until the engine has given it up, or until the group has taken it away without asking.
//! A transaction gets its proof (the group's metadata) only while every partition in it is held. The group's coordinator
//! refuses a proof of an older generation, and a member stays in its generation until the callback that takes a partition away
//! has returned: so no proof outlives the ownership it speaks of, however long a process is stopped at whatever moment.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::group::GroupContext;

/// The source's place in its group. Made by whoever asks first, filled by the source.
#[derive(Debug, Default)]
pub(crate) struct Membership {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    member: Option<Member>,
    /// Partitions that are held, and the offset that the group is told of: that of the oldest checkpoint.
    held: BTreeMap<i32, u64>,
    /// The log ends: nobody gives anything up any more.
    leaving: bool,
}

#[derive(Clone)]
struct Member {
    consumer: Weak<BaseConsumer<GroupContext>>,
    topic: String,
    instance: Option<String>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("topic", &self.topic).field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// What shows a group's coordinator that partitions are ours.
pub(crate) struct Proof {
    /// Goes with the offsets; the coordinator refuses it when the member is not in the group's generation.
    pub(crate) group: ConsumerGroupMetadata,
    /// Offsets of the partitions.
    pub(crate) offsets: TopicPartitionList,
}

/// Why there is no proof.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotHeld {
    /// This partition is no longer ours.
    Partition(u32),
    /// The member is not in its group at the moment.
    Member,
}

impl Membership {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source begins to read `topic` as the member that `consumer` is.
    pub(crate) fn enter(&self, consumer: &Arc<BaseConsumer<GroupContext>>, topic: &str, instance: Option<&str>) {
        let member = Member { consumer: Arc::downgrade(consumer), topic: topic.to_owned(), instance: instance.map(str::to_owned) };
        *self.lock() = State { member: Some(member), ..State::default() };
    }

    /// The source ends: whoever waits for partitions to be given up waits no longer.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.held.clear();
        state.leaving = true;
        self.changed.notify_all();
    }

    /// The name of the member that outlives its process, if it has one.
    pub(crate) fn instance(&self) -> Option<String> {
        self.lock().member.as_ref()?.instance.clone()
    }

    /// True when the pipeline's source is a member of a group.
    pub(crate) fn is_member(&self) -> bool {
        self.lock().member.is_some()
    }

    /// The engine reads `partition` from `offset` on.
    pub(crate) fn hold(&self, partition: i32, offset: u64) {
        let mut state = self.lock();
        if !state.leaving {
            state.held.entry(partition).or_insert(offset);
        }
    }

    /// The group is to be told of `offset`.
    pub(crate) fn note(&self, partition: i32, offset: u64) {
        if let Some(noted) = self.lock().held.get_mut(&partition) {
            *noted = offset;
        }
    }

    /// These are no longer ours: no proof is given any more.
    pub(crate) fn release(&self, partitions: &[i32]) {
        let mut state = self.lock();
        for partition in partitions {
            state.held.remove(partition);
        }
        self.changed.notify_all();
    }

    /// Waits until none of `partitions` is held, for at most `patience`. What is held then is released all the same.
    pub(crate) fn wait_released(&self, partitions: &[i32], patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let late: Vec<i32> = partitions.iter().copied().filter(|p| state.held.contains_key(p)).collect();
            if late.is_empty() || state.leaving {
                return;
            }
            if left.is_zero() {
                tracing::warn!(?late, ?patience, "partitions were not given up in time; what is not committed yet will not be");
                for partition in &late {
                    state.held.remove(partition);
                }
                return;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The proof that `partitions` are ours. Asks the client library's thread, so it may block for a moment.
    pub(crate) fn prove(&self, partitions: &[u32]) -> Result<Proof, NotHeld> {
        let member = self.lock().member.clone().ok_or(NotHeld::Member)?;
        // Dropped after the lock: the last owner closes the consumer, whose callbacks lock.
        let consumer = member.consumer.upgrade().ok_or(NotHeld::Member)?;
        let state = self.lock();
        let mut offsets = TopicPartitionList::new();
        for partition in partitions {
            let offset = *state.held.get(&(*partition as i32)).ok_or(NotHeld::Partition(*partition))?;
            let added = offsets.add_partition_offset(&member.topic, *partition as i32, Offset::Offset(offset as i64));
            added.map_err(|_| NotHeld::Partition(*partition))?;
        }
        let group = consumer.group_metadata().ok_or(NotHeld::Member)?;
        // A member that is thrown out loses its id and its generation, and a broker does not check who has neither. It is
        // marked as lost before, and stays so until the callback, which cannot release what we have locked.
        if consumer.assignment_lost() {
            return Err(NotHeld::Member);
        }
        drop(state);
        Ok(Proof { group, offsets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(20);

    #[test]
    fn what_is_not_given_up_in_time_is_released_all_the_same() {
        let membership = Membership::default();
        membership.hold(1, 5);
        membership.hold(2, 5);
        membership.wait_released(&[1, 3], MOMENT);
        assert_eq!(membership.lock().held.keys().copied().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn the_callback_waits_for_the_engine_and_no_longer() {
        let membership = Arc::new(Membership::default());
        membership.hold(1, 5);
        let engine = {
            let membership = Arc::clone(&membership);
            std::thread::spawn(move || membership.release(&[1]))
        };
        let before = Instant::now();
        membership.wait_released(&[1], Duration::from_secs(60));
        assert!(before.elapsed() < Duration::from_secs(30));
        engine.join().expect("released");
        membership.hold(1, 5);
        membership.leave();
        membership.wait_released(&[1], Duration::from_secs(60));
        membership.hold(2, 5);
        assert!(membership.lock().held.is_empty(), "nothing is held by one who leaves");
    }

    #[test]
    fn nobody_proves_without_a_member() {
        assert_eq!(Membership::default().prove(&[0]).err(), Some(NotHeld::Member));
    }
}
