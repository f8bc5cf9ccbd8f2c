//! A pipeline's life across plans: drain the old one, start the new one on trial, go back to the old one where it fails.
//!
//! A swap is a drain, which ends with every sink's mark at the final checkpoint, and a start from there. On trial a plan makes no
//! checkpoint, so that the old one finds its own: what the new one has committed stays, and the marks keep it from coming twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::LogId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::digest::short;
use crate::engine::Engine;
use crate::error::PipelineError;
use crate::input::{self, Intake, Opened, Parted};
use crate::pipeline::{Coordinator, Report};
use crate::reload::{Blueprint, Reload, Terms, Trial, Verdict};
use crate::spec::{Input, PipelineParts, PipelineSpec};
use crate::status::{State, Status};

/// What a drain may take beyond its deadline, and receivers at their end, before they are let go of: they may be stuck where nobody
/// looks at the clock.
const GRACE: Duration = Duration::from_secs(5);

/// Settings of a supervised pipeline.
#[derive(Clone, Copy, Debug)]
pub struct Supervision {
    /// At the start, state that the plan has no place for is left out.
    pub accept_state_loss: bool,
    /// How long a new plan has to show that it works.
    pub trial: Duration,
}

/// Runs a pipeline to its end, or until `stop`, under one plan after the other as `reloads` asks. `parts` are those of `first`.
///
/// # Errors
/// Why the plan that ran last could not go on. Whatever was acknowledged or marked stays true.
pub async fn supervise(
    engine: &Engine,
    first: Blueprint,
    parts: PipelineParts,
    settings: Supervision,
    reloads: mpsc::Receiver<Reload>,
    stop: watch::Receiver<bool>,
    status: Arc<Status>,
) -> Result<Report, PipelineError> {
    let mut supervisor = Supervisor { engine, settings, reloads, stop, status, parts: Some(parts), intake: None };
    let outcome = supervisor.all_plans(first).await;
    if let Some(intake) = supervisor.intake.take() {
        intake.stop(&*engine.clock).await;
    }
    if let Err(error) = &outcome {
        let mut inner = supervisor.status.lock();
        (inner.state, inner.error) = (State::Failed, Some(error.to_string()));
    }
    outcome
}

struct Supervisor<'a> {
    engine: &'a Engine,
    settings: Supervision,
    reloads: mpsc::Receiver<Reload>,
    stop: watch::Receiver<bool>,
    status: Arc<Status>,
    /// Parts made before the start.
    parts: Option<PipelineParts>,
    intake: Option<Kept>,
}

/// Receivers that outlive a change of plan.
struct Kept {
    receivers: Arc<str>,
    intake: Intake,
    stop: watch::Sender<bool>,
}

impl Kept {
    async fn stop(self, clock: &dyn Clock) {
        self.stop.send_replace(true);
        self.intake.ended(clock, GRACE).await;
    }
}

/// A plan, and whether state that has no place in it may be left out.
#[derive(Clone, Debug)]
struct Accepted {
    plan: Blueprint,
    state_loss: bool,
}

/// What a plan that has taken the place of another must still show, and to whom.
struct Candidacy {
    before: Accepted,
    trial: Arc<Trial>,
    reply: oneshot::Sender<Verdict>,
}

/// How a plan's time ended.
struct Ended {
    outcome: Result<Report, PipelineError>,
    /// Still open.
    candidacy: Option<Candidacy>,
    /// What it was drained for.
    reload: Option<Reload>,
}

/// Waits for the end of the process. One that is gone has ended.
async fn told(stop: &mut watch::Receiver<bool>) {
    drop(stop.wait_for(|stop| *stop).await);
}

impl<'a> Supervisor<'a> {
    async fn all_plans(&mut self, first: Blueprint) -> Result<Report, PipelineError> {
        let mut now = Accepted { plan: first, state_loss: self.settings.accept_state_loss };
        let (mut candidacy, mut logs) = (None, None);
        loop {
            let ended = self.one_plan(&now, logs, candidacy.take()).await;
            logs = self.logs();
            match (ended.outcome, ended.candidacy, ended.reload) {
                (Err(error), Some(failed), _) => {
                    self.tell(&failed.before.plan, &now.plan, failed.reply, Verdict::Reverted(error.to_string()));
                    now = failed.before;
                }
                // It has come to its end, or was told to stop, before its time was up.
                (Ok(report), Some(good), _) => {
                    self.tell(&good.before.plan, &now.plan, good.reply, Verdict::Applied);
                    return Ok(report);
                }
                (Ok(report), None, Some(Reload { plan, accept_state_loss, reply })) => {
                    if report.state == State::Finished || *self.stop.borrow() {
                        self.tell(&now.plan, &plan, reply, Verdict::Refused("the pipeline has come to its end".to_owned()));
                        return Ok(report);
                    }
                    let before = std::mem::replace(&mut now, Accepted { plan, state_loss: accept_state_loss });
                    candidacy = Some(Candidacy { before, trial: Arc::default(), reply });
                }
                (Err(error), None, Some(reload)) => {
                    let why = format!("the plan that runs could not be drained, and is started again: {error}");
                    self.tell(&now.plan, &reload.plan, reload.reply, Verdict::Refused(why));
                }
                (outcome, None, None) => return outcome,
            }
        }
    }

    /// Runs a plan until it ends, is drained for another one, or fails its trial.
    async fn one_plan(&mut self, now: &Accepted, logs: Option<BTreeSet<LogId>>, mut candidacy: Option<Candidacy>) -> Ended {
        let trial = candidacy.as_ref().map(|candidacy| Arc::clone(&candidacy.trial));
        let terms = Terms { accept_state_loss: now.state_loss, logs, trial: trial.clone() };
        let (halt, halted) = watch::channel(false);
        let mut coordinator = match self.start(&now.plan, terms, halted).await {
            Ok(coordinator) => coordinator,
            Err(error) => return Ended { outcome: Err(error), candidacy, reload: None },
        };
        let engine = self.engine;
        let patience = self.settings.trial;
        let mut judgement = Box::pin(async move {
            match trial {
                Some(trial) => trial.judge(&*engine.clock, patience).await,
                None => std::future::pending().await,
            }
        });
        let (mut reload, mut overdue) = (None, None);
        let mut work = Box::pin(coordinator.work());
        let outcome = loop {
            let left = overdue.map(|at: Duration| at.saturating_sub(engine.clock.monotonic()));
            // In a fixed order, as the coordinator's: a plan that has ended needs no judgement.
            tokio::select! {
                biased;
                outcome = &mut work => break outcome,
                judged = &mut judgement, if candidacy.is_some() => match (judged, candidacy.take()) {
                    (Ok(()), Some(good)) => self.tell(&good.before.plan, &now.plan, good.reply, Verdict::Applied),
                    (Err(why), failed) => {
                        candidacy = failed;
                        break Err(PipelineError::GivenUp(why));
                    }
                    (Ok(()), None) => {}
                },
                () = told(&mut self.stop), if !*halt.borrow() => {
                    overdue = Some(engine.clock.monotonic() + engine.options.drain_deadline + GRACE);
                    halt.send_replace(true);
                    // After the line above: receivers that were told to stop have not ended.
                    if let Some(kept) = &self.intake {
                        kept.stop.send_replace(true);
                    }
                }
                Some(wish) = self.reloads.recv(), if candidacy.is_none() && !*halt.borrow() => {
                    reload = Some(wish);
                    overdue = Some(engine.clock.monotonic() + engine.options.drain_deadline + GRACE);
                    halt.send_replace(true);
                }
                () = engine.clock.sleep(left.unwrap_or_default()), if left.is_some() => {
                    break Err(PipelineError::GivenUp("it did not drain in time".to_owned()));
                }
            }
        };
        drop(work);
        Ended { outcome: coordinator.end(outcome).await, candidacy, reload }
    }

    async fn start(&mut self, plan: &Blueprint, terms: Terms, halted: watch::Receiver<bool>) -> Result<Coordinator<'a>, PipelineError> {
        let parts = self.parts.take().map_or_else(|| (plan.build)(), Ok).map_err(PipelineError::Parts)?;
        let PipelineParts { spec, input, sinks } = parts;
        let opened = self.open(plan, &spec, input).await?;
        Ok(Coordinator::start(self.engine, spec, sinks, opened, (&plan.digest, terms), halted, Arc::clone(&self.status)))
    }

    /// Receivers of the plan before are kept where they are the same; others end before the new ones begin, which may have their
    /// names at a broker.
    async fn open(&mut self, plan: &Blueprint, spec: &PipelineSpec, input: Input) -> Result<Opened, PipelineError> {
        if let Some(other) = self.intake.take_if(|kept| kept.receivers != plan.receivers) {
            other.stop(&*self.engine.clock).await;
        }
        let (receivers, topic) = match input::part(input, spec) {
            Parted::Ready(opened) => return Ok(opened),
            Parted::Received(receivers, topic) => (receivers, topic),
        };
        let kept = match &mut self.intake {
            Some(kept) => kept,
            none => {
                let (stop, stopped) = watch::channel(false);
                let intake = Intake::start(self.engine, spec, receivers, &stopped, &self.status).await?;
                none.insert(Kept { receivers: Arc::clone(&plan.receivers), intake, stop })
            }
        };
        Ok(kept.intake.open(self.engine, spec, topic).await?)
    }

    /// The logs whose state the pipeline has, as far as its partitions are here.
    fn logs(&self) -> Option<BTreeSet<LogId>> {
        let logs: BTreeSet<LogId> = self.status.lock().partitions.values().map(|partition| partition.log_id.clone()).collect();
        (!logs.is_empty()).then_some(logs)
    }

    fn tell(&self, from: &Blueprint, to: &Blueprint, reply: oneshot::Sender<Verdict>, verdict: Verdict) {
        let (before, after) = (short(&from.digest), short(&to.digest));
        match &verdict {
            Verdict::Applied => tracing::info!(from = before, to = after, "the plan was changed"),
            Verdict::Refused(why) => tracing::error!(from = before, to = after, "the plan was not changed: {why}"),
            Verdict::Reverted(why) => tracing::error!(from = before, to = after, "the new plan failed, back to the old one: {why}"),
        }
        self.status.note_reload(&from.digest, Some(&to.digest), &verdict, self.engine.clock.now_us());
        // Who asked may have gone away; the log and the status have it.
        let _ = reply.send(verdict);
    }
}
