//! What a log no longer holds: a clear stop, or, when a person has said so, a recorded loss.

use fieldstream_checkpoint::{Decision, PartitionStore, Restored};
use fieldstream_engine_api::{Assignment, Committed, Generation, LogError, Mark};

use crate::assign::or_overtaken;
use crate::decisions::{self, Gap, gap_of};
use crate::error::PipelineError;
use crate::pipeline::Coordinator;
use crate::queue::Work;

/// What the partition needs of its log, or had in others.
pub(crate) struct Wanted {
    /// The first offset whose output or state is not safe elsewhere.
    from: u64,
    /// Logs that the pipeline has state for instead.
    other_logs: Vec<String>,
}

impl Wanted {
    /// Without a checkpoint all that is left is what sinks have: whatever none of them lacks is safe, if without its state.
    pub(crate) fn new(restored: &Restored, start: Mark, marks: &[Option<Committed>], other_logs: Vec<String>) -> Self {
        let stored = marks.iter().flatten().map(|committed| committed.mark.next_offset).min();
        let stored = stored.filter(|_| restored.checkpoint.is_none());
        Self { from: stored.map_or(start.next_offset, |stored| stored.min(start.next_offset)), other_logs }
    }
}

impl Coordinator<'_> {
    /// Logs that the pipeline has state for, when this one is none of them.
    ///
    /// # Errors
    /// [`PipelineError::Position`] unless gaps are accepted: the state would silently begin anew. A finite input is another log at
    /// each fresh start.
    pub(crate) async fn other_logs(&self, store: &PartitionStore, assignment: &Assignment) -> Result<Vec<String>, PipelineError> {
        if self.finite {
            return Ok(Vec::new());
        }
        let logs = store.logs().await?;
        let log = &assignment.log_id;
        if logs.is_empty() || logs.contains(&log.to_string()) {
            return Ok(Vec::new());
        }
        if self.engine.options.accept_gap {
            return Ok(logs);
        }
        let what = format!(
            "the pipeline has state for the log {}, but this is the log {log}: positions of one mean nothing in the other. Point it at the \
             log it had, start under another pipeline name, or begin anew on this log with --accept-gap",
            logs.join(", ")
        );
        Err(PipelineError::Position { partition: assignment.partition, what })
    }

    /// The log has lost payloads that it had acknowledged: the account says so.
    pub(crate) fn on_lost(&mut self, partition: u32, next_offset: u64, payloads: u64) {
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        tracing::error!(pipeline = %self.spec.name, partition, payloads, "the log is damaged before offset {next_offset}: acknowledged payloads are lost");
        owned.enqueue_to(next_offset);
        if owned.queue.push(Work::Lost { next_offset, payloads }) {
            self.send_token(partition);
        }
    }

    /// The offset below which some sink may have output, or state is saved.
    ///
    /// # Errors
    /// [`PipelineError::Position`] when the log ends before it: it is not the log it was.
    pub(crate) async fn check_end(
        &mut self,
        assignment: &mut Assignment,
        start: Mark,
        marks: &[Option<Committed>],
    ) -> Result<u64, PipelineError> {
        let partition = assignment.partition;
        let furthest = marks.iter().flatten().map(|m| m.mark.next_offset).max().unwrap_or_default().max(start.next_offset);
        if furthest > assignment.end_offset {
            // Until it was fenced, the owner before went on with what came after this assignment.
            assignment.end_offset = self.log.end_offset(partition).await?.unwrap_or_default().max(assignment.end_offset);
        }
        if furthest > assignment.end_offset {
            let what = format!(
                "output was committed up to offset {furthest}, but the log ends at {}; it is not the log it was. Point the pipeline at the right log, or start anew with another pipeline name",
                assignment.end_offset
            );
            return Err(PipelineError::Position { partition, what });
        }
        Ok(furthest)
    }

    /// Writes down that this owner goes on from `start`, and gives the decisions to replay. A loss that was accepted is the last of them.
    ///
    /// # Errors
    /// If the store fails, or the log no longer reaches back and that may not be.
    pub(crate) async fn adopt(
        &self,
        store: &PartitionStore,
        generation: Generation,
        restored: &Restored,
        assignment: &Assignment,
        start: Mark,
        wanted: Wanted,
    ) -> Result<Vec<Decision>, PipelineError> {
        let mut decisions = or_overtaken(store, generation, store.decisions_in(&restored.lineage, start.next_decision).await).await?;
        let accepted = restored.accept_gap || self.engine.options.accept_gap;
        let gap = gap(assignment, wanted, &decisions, accepted)?;
        let decided = start.next_decision + decisions.len() as u64;
        store.adopt(generation, &restored.lineage, restored.checkpoint.as_ref().map(|c| c.id), decided).await?;
        if let Some(gap) = gap {
            let Gap { from, to, payloads, .. } = gap;
            tracing::error!(
                pipeline = %self.spec.name,
                partition = assignment.partition,
                "offsets {from} to {to} are not in the log any more: {payloads} payloads are given up, as was asked for"
            );
            let decision = decisions::gap(&gap);
            store.append_decision(generation, decided, &decision).await?;
            decisions.push(decision);
        }
        Ok(decisions)
    }
}

/// What lies between where the partition goes on and where the log begins, and has not been given up before.
///
/// # Errors
/// [`LogError::Truncated`] when something does, and it may not be given up.
fn gap(assignment: &Assignment, wanted: Wanted, decisions: &[Decision], accepted: bool) -> Result<Option<Gap>, PipelineError> {
    let (from, to, other_logs) = (wanted.from, assignment.first_offset, wanted.other_logs);
    let given_up = decisions.iter().filter_map(gap_of);
    let known: u64 = given_up.map(|gap| gap.to.min(to).saturating_sub(gap.from.max(from))).sum();
    let payloads = to.saturating_sub(from).saturating_sub(known);
    if payloads > 0 && !accepted {
        return Err(LogError::Truncated { partition: assignment.partition, wanted: from, first_offset: to }.into());
    }
    let gap = Gap { from, to, payloads, other_logs };
    Ok((gap.payloads > 0 || !gap.other_logs.is_empty()).then_some(gap))
}

#[cfg(test)]
mod tests {
    use fieldstream_checkpoint::Lineage;
    use fieldstream_engine_api::{LogId, PartitionKey};

    use super::*;

    #[test]
    fn what_was_given_up_before_is_not_given_up_again() {
        let log = |first_offset| Assignment { partition: 0, log_id: LogId("l".into()), first_offset, end_offset: 900 };
        let from = |from| Wanted { from, other_logs: Vec::new() };
        assert_eq!(gap(&log(5), from(5), &[], false).unwrap(), None);
        assert!(gap(&log(9), from(5), &[], false).is_err());
        let first = gap(&log(9), from(5), &[], true).unwrap().unwrap();
        assert_eq!((first.from, first.to, first.payloads), (5, 9, 4));
        let decided = [decisions::gap(&first)];
        assert_eq!(gap(&log(9), from(5), &decided, false).unwrap(), None, "a restart needs no second permission");
        assert!(gap(&log(20), from(5), &decided, false).is_err(), "more is gone");
        assert_eq!(gap(&log(20), from(3), &decided, true).unwrap().unwrap().payloads, 13);
    }

    #[test]
    fn without_a_checkpoint_the_sink_that_has_least_says_where_a_gap_begins() {
        let at = |next_offset| Mark { next_offset, next_decision: 0 };
        let partition = PartitionKey { pipeline: "p".into(), log_id: LogId("l".into()), partition: 0 };
        let stored = |offset| Some(Committed { partition: partition.clone(), mark: at(offset), delivered: 0, refused: 0 });
        let none = Restored {
            lineage: Lineage::default(),
            checkpoint: None,
            layers: Vec::new(),
            kept: Vec::new(),
            accept_gap: false,
            notes: Vec::new(),
        };
        let wanted = |begin, marks: &[Option<Committed>]| Wanted::new(&none, at(begin), marks, Vec::new()).from;
        assert_eq!(wanted(700, &[None, None]), 700, "nothing was ever stored: it begins where the log does");
        assert_eq!(wanted(700, &[stored(500), None, stored(900)]), 500, "500 to 700 are nowhere");
        assert_eq!(wanted(700, &[stored(800), stored(900)]), 700, "all that is gone is stored");
    }
}
