//! A pipeline that may change while it runs: what a new text would change, whether that is wanted, and the wish for it.

pub(crate) mod http;
pub(crate) mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use fieldstream_pipelines::{BuildOptions, Catalogue, Change, Environment, Plan, Problems, build, change, digest, load_text, receivers};
use fieldstream_runtime::clock::Clock;
use fieldstream_runtime::reload::{Blueprint, Reload, Verdict};
use fieldstream_runtime::status::{State, Status};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

/// A running pipeline as the node's owner sees it.
pub(crate) struct Supervised {
    /// Name of the pipeline.
    pub(crate) name: Arc<str>,
    /// What is shown of it.
    pub(crate) status: Arc<Status>,
    plan: Mutex<Arc<Plan>>,
    /// Held while a change is looked at and carried out: the next one compares with what came of it.
    changing: AsyncMutex<()>,
    wishes: mpsc::Sender<Reload>,
    /// Its variables, as given at the start.
    environment: Environment,
    data_dir: PathBuf,
    clock: Arc<dyn Clock>,
}

/// What came of a new text.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It says what runs already.
    Unchanged(Change),
    /// It runs.
    Applied(Change),
    /// It is no plan.
    Invalid(Problems),
    /// It cannot take the place of what runs.
    NoSuccessor(Change),
    /// State would be lost, and nobody has accepted that.
    Loses(Change),
    /// Another change is under way.
    Busy,
    /// The pipeline has ended.
    Ended,
    /// It was not tried: the old plan could not be drained, or had come to its end.
    Refused(String),
    /// It was tried and failed; the old plan runs again.
    Reverted(String),
}

impl Answer {
    /// Why nothing was changed; `None` when all is as wished.
    pub(crate) fn why_not(&self) -> Option<String> {
        Some(match self {
            Self::Unchanged(_) | Self::Applied(_) => return None,
            Self::Invalid(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            Self::NoSuccessor(change) => change.refused.join("; "),
            Self::Loses(change) => change.losses.join("; "),
            Self::Busy => "another change is under way".to_owned(),
            Self::Ended => "the pipeline has ended".to_owned(),
            Self::Refused(why) | Self::Reverted(why) => why.clone(),
        })
    }
}

impl Supervised {
    /// A pipeline that runs `plan`, and what its supervisor listens to.
    pub(crate) fn new(plan: Plan, environment: Environment, data_dir: PathBuf, clock: Arc<dyn Clock>) -> (Self, mpsc::Receiver<Reload>) {
        let (wishes, reloads) = mpsc::channel(1);
        let (name, status, plan) = (Arc::clone(&plan.name), Arc::default(), Mutex::new(Arc::new(plan)));
        (Self { name, status, plan, changing: AsyncMutex::default(), wishes, environment, data_dir, clock }, reloads)
    }

    /// The plan that runs.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        Arc::clone(&self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What makes the parts of `plan`, now and after a failed change.
    pub(crate) fn blueprint(&self, plan: &Arc<Plan>) -> Blueprint {
        let (made_of, data_dir) = (Arc::clone(plan), self.data_dir.clone());
        let build = move || {
            let built = build(&made_of, &BuildOptions { data_dir: data_dir.clone(), resume: true });
            built.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
        };
        Blueprint { digest: digest(plan).into(), receivers: receivers(plan).into(), build: Arc::new(build) }
    }

    /// The plan in `text`, the content of `file`, and what it would change.
    ///
    /// # Errors
    /// Everything wrong with the text.
    pub(crate) fn look(&self, file: &str, text: &str) -> Result<(Plan, Change), Problems> {
        let loaded = load_text(file, text, &self.environment, &Catalogue::built_in());
        let (plan, warnings) = loaded.into_result()?;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let found = change(&self.plan(), &plan);
        Ok((plan, found))
    }

    /// Lets the pipeline run what `text`, the content of `file`, says. Ends when it does, or when it is known that it does not.
    /// Where another change is under way, it waits for it only if it is told to be `patient`.
    pub(crate) async fn change(&self, file: &str, text: &str, accept_state_loss: bool, patient: bool) -> Answer {
        let _turn = match self.changing.try_lock() {
            Ok(turn) => turn,
            Err(_) if patient => self.changing.lock().await,
            Err(_) => return Answer::Busy,
        };
        if matches!(self.status.lock().state, State::Finished | State::Stopped | State::Failed) {
            return Answer::Ended;
        }
        let (plan, found) = match self.look(file, text) {
            Ok(found) => found,
            Err(problems) => return self.refused(None, Answer::Invalid(problems)),
        };
        let plan = Arc::new(plan);
        if found.is_nothing() {
            *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
            return Answer::Unchanged(found);
        }
        if !found.refused.is_empty() {
            return self.refused(Some(&plan), Answer::NoSuccessor(found));
        }
        if !found.losses.is_empty() && !accept_state_loss {
            return self.refused(Some(&plan), Answer::Loses(found));
        }
        let (reply, verdict) = oneshot::channel();
        let wish = Reload { plan: self.blueprint(&plan), accept_state_loss, reply };
        if self.wishes.send(wish).await.is_err() {
            return Answer::Ended;
        }
        match verdict.await {
            Ok(Verdict::Applied) => {
                *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
                Answer::Applied(found)
            }
            Ok(Verdict::Refused(why)) => Answer::Refused(why),
            Ok(Verdict::Reverted(why)) => Answer::Reverted(why),
            // The supervisor ends with the pipeline.
            Err(_) => Answer::Ended,
        }
    }

    /// What was refused before anything was drained is counted and shown as well.
    fn refused(&self, plan: Option<&Plan>, answer: Answer) -> Answer {
        let verdict = Verdict::Refused(answer.why_not().unwrap_or_default());
        self.status.note_reload(&digest(&self.plan()), plan.map(digest).as_deref(), &verdict, self.clock.now_us());
        answer
    }
}
