//! Words of a hot reload: the plan asked for, what became of it, and the trial a new plan has to pass.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::{LogId, Mark};
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use crate::assign::Owned;
use crate::clock::{Clock, within};
use crate::pipeline::Coordinator;
use crate::spec::PipelineParts;

/// Makes a plan's parts anew, to go on where an earlier run of the process stopped.
pub type BuildParts = Arc<dyn Fn() -> Result<PipelineParts, String> + Send + Sync>;

/// A plan with what it takes to run it, again if need be.
#[derive(Clone)]
pub struct Blueprint {
    /// A line `part=hash` for each part of the plan that results depend on.
    pub digest: Arc<str>,
    /// What the plan's receivers are. Between two plans that say the same they go on filling the journal.
    pub receivers: Arc<str>,
    /// Makes the parts.
    pub build: BuildParts,
}

impl fmt::Debug for Blueprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blueprint").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// The wish for another plan.
#[derive(Debug)]
pub struct Reload {
    /// What is to run.
    pub plan: Blueprint,
    /// State that has no place in it may be left out.
    pub accept_state_loss: bool,
    /// Told what became of it.
    pub reply: oneshot::Sender<Verdict>,
}

/// What became of a wish for another plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It runs and has passed its trial.
    Applied,
    /// The old plan runs on: nothing was swapped.
    Refused(String),
    /// The new plan did not pass its trial; the old one was started again.
    Reverted(String),
}

/// The outcome of a reload, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The new plan runs.
    Applied,
    /// The old plan was never stopped, or could not be drained.
    Refused,
    /// The new plan failed its trial, the old one runs again.
    Reverted,
}

impl Outcome {
    /// All of them, with their labels.
    pub const ALL: [(Self, &str); 3] = [(Self::Applied, "applied"), (Self::Refused, "refused"), (Self::Reverted, "reverted")];
}

impl Verdict {
    /// The outcome, and why it is not the one wished for.
    #[must_use]
    pub fn outcome(&self) -> (Outcome, Option<&str>) {
        match self {
            Self::Applied => (Outcome::Applied, None),
            Self::Refused(why) => (Outcome::Refused, Some(why)),
            Self::Reverted(why) => (Outcome::Reverted, Some(why)),
        }
    }
}

/// The newest reload.
#[derive(Clone, Debug, Serialize)]
pub struct LastReload {
    /// When it ended (RFC 3339).
    pub at: String,
    /// Digest of the plan before, in short.
    pub from: String,
    /// Digest of the plan asked for, in short; `None` where the file could not be read as a plan.
    pub to: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it is not `applied`.
    pub why: Option<String>,
}

/// What is shown of a pipeline's plan.
#[derive(Clone, Debug, Default)]
pub struct PlanStatus {
    /// Digest of the plan that runs, in short.
    pub digest: String,
    /// States left out when it was started, as `operator/state: why`.
    pub lost: BTreeSet<String>,
    /// Reloads by outcome.
    pub reloads: BTreeMap<Outcome, u64>,
    /// The newest one.
    pub last: Option<LastReload>,
}

/// On what terms a run takes its partitions over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    /// State that the plan has no place for is left out.
    pub(crate) accept_state_loss: bool,
    /// The logs that the state belongs to; `None`: any.
    pub(crate) logs: Option<BTreeSet<LogId>>,
    /// What has to be shown first.
    pub(crate) trial: Option<Arc<Trial>>,
}

/// How far a plan on trial is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Partitions are being taken over, or some sink has not committed yet.
    Starting,
    /// Every partition is taken over and every sink has committed the change of plan; no row has come through yet.
    Ready,
    /// It is as good as any.
    Passed,
}

/// A new plan's trial. Until it is passed the plan makes no checkpoint: the old one can go back to its own.
#[derive(Debug)]
pub(crate) struct Trial {
    stage: watch::Sender<Stage>,
}

impl Default for Trial {
    fn default() -> Self {
        Self { stage: watch::Sender::new(Stage::Starting) }
    }
}

impl Trial {
    /// True until it is passed.
    pub(crate) fn is_open(&self) -> bool {
        *self.stage.borrow() != Stage::Passed
    }

    /// The coordinator's view: `ready` when all is taken over and every sink has committed, `moved` when rows have come through.
    pub(crate) fn note(&self, ready: bool, moved: bool) {
        if ready && self.is_open() {
            self.stage.send_replace(if moved { Stage::Passed } else { Stage::Ready });
        }
    }

    /// Waits for rows to come through, at most for `patience`. A plan that was ready and had nothing to do passes too.
    ///
    /// # Errors
    /// What had not happened in time.
    pub(crate) async fn judge(&self, clock: &dyn Clock, patience: Duration) -> Result<(), String> {
        let mut stage = self.stage.subscribe();
        // The sender is ours, so waiting ends with the stage or the time.
        drop(within(clock, patience, stage.wait_for(|stage| *stage == Stage::Passed)).await);
        if *stage.borrow() == Stage::Starting {
            return Err(format!("within {patience:?} not every partition was taken over and every sink had committed"));
        }
        self.stage.send_replace(Stage::Passed);
        Ok(())
    }
}

impl Coordinator<'_> {
    /// A plan on trial makes no checkpoint. The end of its input, or being told to stop, is none of the trial's business.
    pub(crate) fn on_trial(&self) -> bool {
        self.terms.trial.as_ref().is_some_and(|trial| trial.is_open())
    }

    /// Tells the trial how far the plan is: every sink must have committed what lay before it when it was taken over, the
    /// change of plan included.
    pub(crate) fn note_trial(&self) {
        let Some(trial) = self.terms.trial.as_ref().filter(|trial| trial.is_open()) else { return };
        let settled = |owned: &Owned| (owned.progress.settled(), owned.taken_at);
        let reached = |(mark, at): (Mark, Mark)| mark.next_offset >= at.next_offset && mark.next_decision >= at.next_decision;
        let ready = self.assigned && self.owned.values().all(|owned| reached(settled(owned)));
        let moved = self.owned.values().map(settled).any(|(mark, at)| mark.next_offset > at.next_offset);
        trial.note(ready, moved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test]
    async fn a_plan_passes_with_its_first_rows_or_with_nothing_to_do() {
        let clock = SystemClock::default();
        let long = Duration::from_secs(600);
        let trial = Trial::default();
        trial.note(false, true);
        assert!(trial.is_open(), "rows through one partition are not enough");
        trial.note(true, true);
        assert_eq!((trial.judge(&clock, long).await, trial.is_open()), (Ok(()), false));
        let idle = Trial::default();
        idle.note(true, false);
        assert!(idle.is_open());
        assert_eq!((idle.judge(&clock, Duration::ZERO).await, idle.is_open()), (Ok(()), false));
        let stuck = Trial::default();
        assert!(stuck.judge(&clock, Duration::ZERO).await.is_err_and(|why| why.contains("every sink")) && stuck.is_open());
    }
}
