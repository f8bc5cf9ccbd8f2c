//! What the consumer's thread has for the engine: batches in bytes, and events between them.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fieldstream_engine_api::{LogBatch, LogError, LogEvent};
use tokio::sync::Notify;

#[derive(Debug)]
enum Item {
    Batch { batch: LogBatch, bytes: usize },
    Event(Result<LogEvent, LogError>),
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    paused: BTreeSet<u32>,
}

/// The queue between the consumer's thread and the engine.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    ready: Notify,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a batch.
    pub(crate) fn push_batch(&self, batch: LogBatch) {
        let bytes = batch.payloads.bytes();
        self.lock().items.push_back(Item::Batch { batch, bytes });
        self.ready.notify_one();
    }

    /// Appends an event or an error.
    pub(crate) fn push(&self, event: Result<LogEvent, LogError>) {
        self.lock().items.push_back(Item::Event(event));
        self.ready.notify_one();
    }

    /// Drops the batches of a partition that is read from elsewhere, or no longer ours.
    pub(crate) fn forget(&self, partition: u32) {
        self.lock().items.retain(|item| !matches!(item, Item::Batch { batch, .. } if batch.partition == partition));
    }

    /// The group takes a partition away. Nobody may claim it any more because of an assignment that still waits here: a later
    /// claim counts more, and would overtake the next owner's.
    pub(crate) fn take_back(&self, partition: u32) {
        self.forget(partition);
        self.lock().items.retain_mut(|item| {
            let Item::Event(Ok(LogEvent::Assigned(assignments))) = item else { return true };
            assignments.retain(|assignment| assignment.partition != partition);
            !assignments.is_empty()
        });
    }

    /// Bytes that wait for an engine that could take them. What is held back for paused partitions does not count: it must
    /// not stop the others, and is little, since a paused partition is not read further.
    pub(crate) fn bytes(&self) -> usize {
        let state = self.lock();
        let waiting = |item: &Item| match item {
            Item::Batch { batch, bytes } if !state.paused.contains(&batch.partition) => *bytes,
            _ => 0,
        };
        state.items.iter().map(waiting).sum()
    }

    /// Holds batches of a partition back, or lets them go again.
    pub(crate) fn pause(&self, partition: u32, paused: bool) {
        let mut state = self.lock();
        if paused {
            state.paused.insert(partition);
        } else if state.paused.remove(&partition) {
            self.ready.notify_one();
        }
    }

    fn take(&self) -> Option<Result<LogEvent, LogError>> {
        let mut state = self.lock();
        let State { items, paused } = &mut *state;
        let deliverable = |item: &Item| !matches!(item, Item::Batch { batch, .. } if paused.contains(&batch.partition));
        let index = items.iter().position(deliverable)?;
        if let Some(Item::Event(Ok(LogEvent::Assigned(assignments)))) = items.get_mut(index)
            && assignments.len() > 1
        {
            // Taking a partition over takes time, in which the next one may be taken back.
            return Some(Ok(LogEvent::Assigned(vec![assignments.remove(0)])));
        }
        match items.remove(index)? {
            Item::Batch { batch, .. } => Some(Ok(LogEvent::Batch(batch))),
            Item::Event(event) => Some(event),
        }
    }

    /// Waits for what the engine may have now. Safe to drop and call again.
    pub(crate) async fn next(&self) -> Result<LogEvent, LogError> {
        loop {
            let ready = self.ready.notified();
            if let Some(event) = self.take() {
                return event;
            }
            ready.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use fieldstream_engine_api::{Assignment, LogId, Payloads};
    use fieldstream_schemas::PayloadBlock;

    use super::*;

    fn batch(partition: u32, next_offset: u64) -> LogBatch {
        let block = PayloadBlock { data: Bytes::from_static(b"0123456789"), ..Default::default() };
        LogBatch { partition, source: Arc::from("s"), next_offset, append_us: None, payloads: Payloads::Raw(block) }
    }

    fn offsets(outbox: &Outbox) -> Vec<(u32, u64)> {
        let next = || match outbox.take()?.expect("no error") {
            LogEvent::Batch(batch) => Some((batch.partition, batch.next_offset)),
            other => panic!("{other:?}"),
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn a_paused_partition_is_held_back_in_order_and_stops_nobody() {
        let outbox = Outbox::default();
        for (partition, offset) in [(0, 1), (1, 1), (0, 2), (1, 2)] {
            outbox.push_batch(batch(partition, offset));
        }
        assert_eq!(outbox.bytes(), 40);
        outbox.pause(0, true);
        assert_eq!(outbox.bytes(), 20);
        assert_eq!(offsets(&outbox), [(1, 1), (1, 2)]);
        outbox.pause(0, false);
        assert_eq!(offsets(&outbox), [(0, 1), (0, 2)]);
    }

    #[test]
    fn assignments_come_one_by_one_unless_they_are_taken_back() {
        let outbox = Outbox::default();
        let assignment = |partition| Assignment { partition, log_id: LogId("l".into()), first_offset: 0, end_offset: 9 };
        outbox.push(Ok(LogEvent::Assigned((0..3).map(assignment).collect())));
        outbox.push(Ok(LogEvent::Assigned(vec![assignment(3)])));
        let next = || match outbox.take()?.expect("no error") {
            LogEvent::Assigned(assignments) => Some(assignments.into_iter().map(|a| a.partition).collect::<Vec<_>>()),
            other => panic!("{other:?}"),
        };
        assert_eq!(next(), Some(vec![0]));
        outbox.take_back(1);
        outbox.take_back(3);
        assert_eq!((next(), next()), (Some(vec![2]), None));
    }

    #[test]
    fn forgetting_a_partition_leaves_the_others() {
        let outbox = Outbox::default();
        for (partition, offset) in [(0, 1), (1, 1), (0, 2)] {
            outbox.push_batch(batch(partition, offset));
        }
        outbox.forget(0);
        assert_eq!(offsets(&outbox), [(1, 1)]);
    }
}
