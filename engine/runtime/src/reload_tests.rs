//! One plan after the other over one log: what did not change goes on as if nothing had happened, what fails is taken back.

use fieldstream_checkpoint::{CheckpointStore, Decision, Restored};
use fieldstream_engine_api::{ReceiveError, Received, Receiver};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::decisions::PLAN;
use crate::reload::{Blueprint, Outcome, Reload, Verdict};
use crate::supervisor::{Supervision, supervise};

const OLD: &str = "operator count=1\n";
const NEW: &str = "operator count=2\n";
/// Where the old plan is when the new one is wished for.
const AT: u64 = 200;

/// A test's pipeline: its folder, its service, and what it showed.
struct Rig {
    dir: tempfile::TempDir,
    service: Arc<Mutex<Service>>,
    status: Arc<Status>,
    trial: Duration,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, service: Arc::default(), status: Arc::default(), trial: Duration::from_secs(60) }
    }

    /// Parts whose log goes on to its end.
    fn parts(&self) -> PipelineParts {
        parts(&self.service, 0, &[])
    }

    /// Parts whose log gives nothing beyond [`AT`]; says so when it is there.
    fn waiting(&self) -> (PipelineParts, watch::Receiver<bool>) {
        let (reached, there) = watch::channel(false);
        let mut parts = self.parts();
        let log = MemoryLog { stop: Some((AT, reached)), ..memory_log(&[]) };
        parts.input = Input::Log { log: Box::new(log), finite: true };
        (parts, there)
    }

    /// Runs `first`; when `there` says so, wishes for what `next` makes. The old plan is made by `again`, should it come back.
    fn run(
        &self,
        first: PipelineParts,
        mut there: watch::Receiver<bool>,
        again: impl Fn() -> PipelineParts + Send + Sync + 'static,
        next: impl Fn() -> PipelineParts + Send + Sync + 'static,
        accept_state_loss: bool,
    ) -> (Result<Report, PipelineError>, Verdict) {
        let blueprint = |digest: &str, build: Arc<dyn Fn() -> PipelineParts + Send + Sync>| Blueprint {
            digest: digest.into(),
            receivers: "the same".into(),
            build: Arc::new(move || Ok(build())),
        };
        let (old, new) = (blueprint(OLD, Arc::new(again)), blueprint(NEW, Arc::new(next)));
        let settings = Supervision { accept_state_loss: false, trial: self.trial };
        on_system(async {
            let journal = fieldstream_journal::JournalOptions { partitions: PARTITIONS, ..Default::default() };
            let options = EngineOptions { shards: 2, journal, ..EngineOptions::new(self.dir.path().to_owned()) };
            let engine = Engine::start(options, Arc::new(SystemClock::default())).await.unwrap();
            let (wishes, reloads) = mpsc::channel(1);
            let (_stop, stopped) = watch::channel(false);
            let wish = async {
                there.wait_for(|there| *there).await.unwrap();
                let (reply, verdict) = oneshot::channel();
                wishes.send(Reload { plan: new, accept_state_loss, reply }).await.unwrap();
                verdict.await.unwrap()
            };
            let run = supervise(&engine, old, first, settings, reloads, stopped, Arc::clone(&self.status));
            let both = tokio::time::timeout(Duration::from_secs(60), futures::future::join(run, wish)).await;
            engine.stop();
            both.expect("the pipeline ends")
        })
    }

    /// What the store has of a partition: its newest checkpoint, and all decisions since the first one.
    fn stored(&self, partition: u32) -> (Restored, Vec<Decision>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = CheckpointStore::open(&self.dir.path().join("state")).await.unwrap();
            let store = store.partition(&PartitionKey { pipeline: "test".into(), log_id: LogId("memory".into()), partition });
            (store.latest(None).await.unwrap(), store.decisions_from(0).await.unwrap())
        })
    }

    /// (offset, from, to) of every change of plan.
    fn changes(&self, partition: u32) -> Vec<(u64, String, String)> {
        let text = |decision: &Decision, member: &str| decision.payload[member].as_str().unwrap().to_owned();
        let changes = self.stored(partition).1.into_iter().filter(|decision| decision.kind == PLAN);
        changes.map(|d| (d.position.offset, text(&d, "from"), text(&d, "to"))).collect()
    }

    fn outcomes(&self) -> Vec<(Outcome, u64)> {
        self.status.lock().plan.reloads.iter().map(|(outcome, n)| (*outcome, *n)).collect()
    }
}

/// No checkpoint but the first and the last, so that decisions stay to be looked at.
fn rarely(mut parts: PipelineParts) -> PipelineParts {
    parts.spec.checkpoint = CheckpointSpec { interval: Duration::from_secs(3600), keep: 1000 };
    parts
}

#[test]
fn a_swap_goes_on_where_every_mark_and_the_last_checkpoint_are() {
    let rig = Rig::new();
    let (first, there) = rig.waiting();
    let service = Arc::clone(&rig.service);
    let marks = Arc::new(Mutex::new(BTreeMap::new()));
    let seen = Arc::clone(&marks);
    let next = move || {
        // The old plan is drained here, and the new one does not run yet.
        *seen.lock().unwrap() = service.lock().unwrap().marks.clone();
        rarely(parts(&service, 0, &[]))
    };
    let (report, verdict) = rig.run(rarely(first), there, || panic!("the old plan does not come back"), next, false);
    let report = report.unwrap();
    assert_eq!((verdict, report.state, rig.outcomes()), (Verdict::Applied, State::Finished, vec![(Outcome::Applied, 1)]));
    assert_exact(&rig.service.lock().unwrap(), &[]);
    assert!(report.ledger.balanced, "{:?}", report.ledger);
    assert_eq!(report.ledger.received, u64::from(PARTITIONS) * PAYLOADS);
    let (mark, _) = marks.lock().unwrap()[&0];
    assert_eq!(mark.next_offset, AT + 8, "whole batches of 13");
    let (restored, _) = rig.stored(0);
    assert_eq!(restored.kept.first().map(|(_, at)| *at), Some(mark), "the sink's mark is that of the last checkpoint of the old plan");
    assert_eq!(rig.changes(0), [(AT + 8, OLD.to_owned(), NEW.to_owned())]);
    assert_eq!(restored.checkpoint.unwrap().data.plan_digest, NEW);
}

#[test]
fn a_plan_whose_sink_fails_is_taken_back_and_nothing_is_lost_or_doubled() {
    let rig = Rig::new();
    let (first, there) = rig.waiting();
    let (again, next) = (Arc::clone(&rig.service), Arc::clone(&rig.service));
    let (report, verdict) = rig.run(rarely(first), there, move || rarely(parts(&again, 0, &[])), move || parts(&next, 1, &[]), false);
    assert!(matches!(&verdict, Verdict::Reverted(why) if why.contains("told to die")), "{verdict:?}");
    assert_exact(&rig.service.lock().unwrap(), &[]);
    let report = report.unwrap();
    assert!(report.ledger.balanced, "{:?}", report.ledger);
    assert_eq!(rig.outcomes(), [(Outcome::Reverted, 1)]);
    let (old, new) = (OLD.to_owned(), NEW.to_owned());
    let changes = rig.changes(0);
    assert_eq!(changes.first(), Some(&(AT + 8, old.clone(), new.clone())));
    // Behind what the failed plan has decided, which may be the end of the input.
    assert_eq!(changes.last().map(|(_, from, to)| (from, to)), Some((&new, &old)), "history knows of both changes");
    let inner = rig.status.lock();
    assert_eq!((inner.state, inner.plan.digest.as_str()), (State::Finished, crate::digest::short(OLD).as_str()));
}

/// A sink that cannot be reached, or can and never gets a commit through.
struct Stuck {
    opens: bool,
}

#[async_trait]
impl Sink for Stuck {
    fn guarantee(&self) -> Guarantee {
        Guarantee::None
    }

    async fn open(&mut self, _: &PartitionKey, _: Generation) -> Result<Option<Committed>, SinkError> {
        if self.opens { Ok(None) } else { Err(SinkError::Retry { context: "connect".into(), cause: "nobody listens".into() }) }
    }

    async fn commit(&mut self, _: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        Err(SinkError::Retry { context: "commit".into(), cause: "nobody answers".into() })
    }
}

#[test]
fn a_plan_that_does_not_come_up_in_time_is_taken_back() {
    for opens in [false, true] {
        let rig = Rig { trial: Duration::from_millis(500), ..Rig::new() };
        let (first, there) = rig.waiting();
        let (again, next, seen) = (Arc::clone(&rig.service), Arc::clone(&rig.service), Arc::clone(&rig.service));
        let next = move || {
            let mut parts = parts(&next, 0, &[]);
            parts.sinks[1] = SinkBox(Box::new(Stuck { opens }));
            parts
        };
        let rows = Arc::new(Mutex::new(0));
        let before = Arc::clone(&rows);
        let again = move || {
            *before.lock().unwrap() = seen.lock().unwrap().rows.len() as u64;
            parts(&again, 0, &[])
        };
        let (report, verdict) = rig.run(first, there, again, next, false);
        assert!(matches!(&verdict, Verdict::Reverted(why) if why.contains("every partition")), "{verdict:?}");
        assert_exact(&rig.service.lock().unwrap(), &[]);
        assert!(report.unwrap().ledger.balanced);
        // What the failed plan's other sink has committed stays (how much that is depends on the machine), and the old plan's replay
        // does not bring it again.
        assert!(opens || *rows.lock().unwrap() == AT + 8, "a plan that never came up has committed nothing");
    }
}

/// The operator under another name: its state has no place.
fn renamed(mut parts: PipelineParts) -> PipelineParts {
    parts.spec.graph.operators[0].name = "recount".into();
    parts
}

#[test]
fn state_without_a_place_is_left_out_only_where_that_is_accepted() {
    let rig = Rig::new();
    let (first, there) = rig.waiting();
    let (again, next) = (Arc::clone(&rig.service), Arc::clone(&rig.service));
    let (report, verdict) = rig.run(first, there, move || parts(&again, 0, &[]), move || renamed(parts(&next, 0, &[])), false);
    assert!(matches!(&verdict, Verdict::Reverted(why) if why.contains("state would be lost: count/0")), "{verdict:?}");
    assert_exact(&rig.service.lock().unwrap(), &[]);
    assert!(report.unwrap().ledger.balanced);

    let rig = Rig::new();
    let (first, there) = rig.waiting();
    let next = Arc::clone(&rig.service);
    let next = move || rarely(renamed(parts(&next, 0, &[])));
    let (report, verdict) = rig.run(rarely(first), there, || panic!("the old plan does not come back"), next, true);
    assert_eq!(verdict, Verdict::Applied);
    assert!(report.unwrap().ledger.balanced);
    let lost: Vec<String> = rig.status.lock().plan.lost.iter().cloned().collect();
    assert_eq!(lost, ["count/0: the pipeline has no such state any more"]);
    let (_, decisions) = rig.stored(0);
    let change = decisions.iter().find(|decision| decision.kind == PLAN).unwrap();
    assert_eq!(change.payload["lost"], serde_json::json!(lost), "history says it too");
    // Counting began anew at the swap.
    let from = AT + 8;
    let service = rig.service.lock().unwrap();
    let first_after = service.rows.iter().find(|(partition, offset, _)| (*partition, *offset) == (0, from)).unwrap();
    assert_eq!(first_after.2, 1);
    let last_before = service.rows.iter().filter(|(partition, offset, _)| *partition == 0 && *offset < from).count();
    assert_eq!(last_before as u64, from);
}

#[test]
fn sinks_that_come_and_go_leave_the_account_balanced() {
    let rig = Rig::new();
    let (first, there) = rig.waiting();
    let more: Arc<Mutex<Service>> = Arc::default();
    let (next, other) = (Arc::clone(&rig.service), Arc::clone(&more));
    let next = move || {
        let mut parts = parts(&next, 0, &[]);
        let mut twin = parts.spec.graph.sinks[0].clone();
        twin.name = "more".into();
        // Before the others: every sink has another number now.
        parts.spec.graph.sinks.insert(0, twin);
        let sink = MemorySink { service: Arc::clone(&other), owned: BTreeMap::new(), dies_at: 0, commits: 0 };
        parts.sinks.insert(0, SinkBox(Box::new(sink)));
        parts
    };
    let (report, verdict) = rig.run(first, there, || panic!("the old plan does not come back"), next, false);
    let ledger = report.unwrap().ledger;
    assert_eq!(verdict, Verdict::Applied);
    assert!(ledger.balanced, "{ledger:?}");
    let all = u64::from(PARTITIONS) * PAYLOADS;
    assert_eq!((ledger.delivered["out"], ledger.delivered["more"]), (all, all - AT - 8), "the new one has what came after the swap");
    assert_exact(&rig.service.lock().unwrap(), &[]);
    assert_eq!(more.lock().unwrap().rows.len() as u64, all - AT - 8);
}

#[test]
fn another_log_is_not_read() {
    let rig = Rig::new();
    let (first, there) = rig.waiting();
    let (again, next) = (Arc::clone(&rig.service), Arc::clone(&rig.service));
    let next = move || {
        let receivers: Vec<(usize, Box<dyn Receiver>)> = vec![(0, Box::new(Paced { from: 0, to: 10, go: None }))];
        PipelineParts { input: Input::Receivers(receivers), ..parts(&next, 0, &[]) }
    };
    let (report, verdict) = rig.run(first, there, move || parts(&again, 0, &[]), next, false);
    assert!(matches!(&verdict, Verdict::Reverted(why) if why.contains("another pipeline name")), "{verdict:?}");
    assert_exact(&rig.service.lock().unwrap(), &[]);
    assert!(report.unwrap().ledger.balanced);
}

/// Hands out payloads; where there is a `go`, half of them, then the rest when it says so.
struct Paced {
    from: u64,
    to: u64,
    go: Option<(watch::Sender<bool>, watch::Receiver<bool>)>,
}

#[async_trait]
impl Receiver for Paced {
    async fn next(&mut self) -> Result<Option<Received>, ReceiveError> {
        if self.from == self.to {
            return Ok(None);
        }
        if self.from == self.to / 2
            && let Some((half, go)) = &mut self.go
        {
            half.send_replace(true);
            go.wait_for(|go| *go).await.unwrap();
        }
        let text = payload(0, self.from, &[]);
        let entry = PayloadEntry { offset: self.from, start: 0, len: text.len() as u32, ingest_us: None };
        let block = PayloadBlock { data: text.into(), entries: vec![entry], ..PayloadBlock::default() };
        self.from += 1;
        Ok(Some(Received { block, handle: self.from }))
    }

    async fn acknowledge(&mut self, _: u64) -> Result<(), ReceiveError> {
        Ok(())
    }
}

#[test]
fn receivers_go_on_while_the_plan_is_swapped() {
    let rig = Rig::new();
    let (half, there) = watch::channel(false);
    let (go, gone) = watch::channel(false);
    let to = 100;
    let receiver = Paced { from: 0, to, go: Some((half, gone)) };
    let first = PipelineParts { input: Input::Receivers(vec![(0, Box::new(receiver))]), ..rig.parts() };
    let next = Arc::clone(&rig.service);
    let next = move || {
        // The rest comes when nobody reads.
        go.send_replace(true);
        let idle: Box<dyn Receiver> = Box::new(Paced { from: 0, to: 0, go: None });
        PipelineParts { input: Input::Receivers(vec![(0, idle)]), ..parts(&next, 0, &[]) }
    };
    let (report, verdict) = rig.run(first, there, || panic!("the old plan does not come back"), next, false);
    let report = report.unwrap();
    assert_eq!((verdict, report.ledger.received, report.ledger.balanced), (Verdict::Applied, to, true));
    let mut offsets: Vec<u64> = rig.service.lock().unwrap().rows.iter().map(|(_, value, _)| *value).collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (0..to).collect::<Vec<_>>());
}
