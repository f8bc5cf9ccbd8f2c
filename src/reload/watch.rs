//! `run --watch`: files that change are taken over, files that are wrong are said once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::reload::{Answer, Supervised};

/// Between two looks at a file. A change is taken over when two looks find the same: who writes it may not be done.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// What there was to see of a file.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    modified: Option<SystemTime>,
    text: String,
}

fn look(file: &Path) -> Option<Seen> {
    // One that is away for a moment, as editors do, is no change.
    let text = std::fs::read_to_string(file).ok()?;
    let modified = std::fs::metadata(file).and_then(|about| about.modified()).ok();
    Some(Seen { modified, text })
}

/// Takes changes of `file` over for as long as the process runs. `text` is what was read at the start.
pub(crate) async fn watch(file: PathBuf, mut text: String, pipeline: Arc<Supervised>, accept_state_loss: bool) {
    let mut before: Option<Seen> = None;
    loop {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let path = file.clone();
        // A file on a slow disk must not hold up a thread that has other work.
        let Ok(Some(now)) = tokio::task::spawn_blocking(move || look(&path)).await else { continue };
        let settled = before.as_ref() == Some(&now);
        let changed = settled && now.text != text;
        if !changed {
            before = Some(now);
            continue;
        }
        text.clone_from(&now.text);
        let answer = pipeline.change(&file.display().to_string(), &text, accept_state_loss, true).await;
        say(&file, &pipeline, &answer);
    }
}

fn say(file: &Path, pipeline: &Supervised, answer: &Answer) {
    let (file, name) = (file.display(), &pipeline.name);
    match answer {
        Answer::Unchanged(_) => tracing::info!("{file} was changed, the plan of {name} was not"),
        // The supervisor has said it.
        Answer::Applied(_) | Answer::Refused(_) | Answer::Reverted(_) => {}
        Answer::Invalid(_) => {
            tracing::error!("{file} is wrong, {name} goes on with its old plan:\n{}", answer.why_not().unwrap_or_default())
        }
        Answer::Loses(_) => tracing::error!(
            "{file} is not taken over, {name} goes on with its old plan: {}. Allow it with --accept-state-loss",
            answer.why_not().unwrap_or_default()
        ),
        Answer::NoSuccessor(_) | Answer::Busy | Answer::Ended => {
            tracing::error!("{file} is not taken over: {}", answer.why_not().unwrap_or_default());
        }
    }
}
