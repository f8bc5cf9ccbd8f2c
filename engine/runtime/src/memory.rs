//! The node's memory budget: while the process is above it, nothing new is read or received.
//!
//! What is measured is the resident set of the whole process (`/proc/self/statm`, Linux), since every part of the node shares it. What
//! was read already is still handled, which makes room.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Clock;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// True while the process is above its budget.
pub(crate) type Tight = watch::Receiver<bool>;

/// Watches the process as long as somebody listens. Without a budget memory is never tight.
pub(crate) fn watch_budget(clock: &Arc<dyn Clock>, budget: Option<u64>) -> Tight {
    let (tell, tight) = watch::channel(false);
    if let Some(budget) = budget {
        tokio::spawn(look_on(Arc::clone(clock), budget, tell));
    }
    tight
}

async fn look_on(clock: Arc<dyn Clock>, budget: u64, tell: watch::Sender<bool>) {
    while !tell.is_closed() {
        let Some(resident) = resident_bytes(Path::new("/proc/self/statm")) else {
            tracing::warn!("this system does not tell how much memory a process uses: the memory budget is not kept");
            return;
        };
        let tight = is_tight(*tell.borrow(), resident, budget);
        if tell.send_if_modified(|now| std::mem::replace(now, tight) != tight) {
            if tight {
                tracing::error!(resident, budget, "above the memory budget: nothing new is read until there is room");
            } else {
                tracing::info!(resident, budget, "within the memory budget again");
            }
        }
        clock.sleep(LOOK).await;
    }
}

/// It ends at nine tenths of the budget, so that it does not flutter.
fn is_tight(before: bool, resident: u64, budget: u64) -> bool {
    resident > if before { budget / 10 * 9 } else { budget }
}

fn resident_bytes(statm: &Path) -> Option<u64> {
    const PAGE: u64 = 4096;
    std::fs::read_to_string(statm).ok()?.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn it_begins_above_the_budget_and_ends_well_below_it() {
        let steps = [(900, false), (1001, true), (950, true), (901, true), (900, false), (1000, false)];
        let mut tight = false;
        for (resident, expected) in steps {
            tight = is_tight(tight, resident, 1000);
            assert_eq!(tight, expected, "{resident}");
        }
    }

    #[tokio::test]
    async fn a_budget_below_what_is_used_is_told_and_none_never_is() {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let mut tight = watch_budget(&clock, Some(1));
        let told = tokio::time::timeout(Duration::from_secs(10), tight.wait_for(|tight| *tight)).await;
        assert!(told.is_ok_and(|told| told.is_ok()), "any process uses more than a byte");
        assert!(!*watch_budget(&clock, None).borrow());
    }
}
