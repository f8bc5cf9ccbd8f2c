//! A pipeline that is told to stop goes on at the next start as if nothing had happened: no window closes for it.

use std::path::Path;

use fieldstream_engine_api::{Keys, Received, Receiver, Tick, TickTime};
use fieldstream_journal::JournalOptions;

use super::*;

/// Counts each device's readings and tells the count when the input has ended: a window that only the end closes.
struct Window {
    outputs: Vec<Output>,
    counter: Counter,
}

impl Operator for Window {
    fn space(&self) -> Space {
        Space::Device
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _: &SlotDirectory, out: &mut Emitter) {
        batch.keys.device.iter().for_each(|device| self.counter.counts[*device as usize] += 1);
        out.absorb(batch.len());
    }

    fn on_tick(&mut self, tick: &Tick, devices: &[u32], slots: &SlotDirectory, out: &mut Emitter) {
        assert_eq!(tick.time, TickTime::EndOfInput, "nothing else moves time here");
        let (mut keys, mut names, mut counts) = (Keys::default(), Vec::new(), Vec::new());
        for device in devices {
            // A window that is closed is empty; a second row of a device would be a second window.
            let count = std::mem::take(&mut self.counter.counts[*device as usize]);
            let name = slots.device_name(*device).rsplit('-').next().unwrap().parse::<f64>().unwrap();
            keys.push(*device, u32::MAX, tick.position);
            names.push(name);
            counts.push(count);
        }
        let columns: Vec<ArrayRef> = vec![Arc::new(arrow::array::Float64Array::from(names)), Arc::new(Int64Array::from(counts))];
        out.emit(0, KeyedBatch::new(RecordBatch::try_new(counted_schema(), columns).unwrap(), keys));
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![&mut self.counter]
    }
}

fn window_parts(service: &Arc<Mutex<Service>>, input: Input) -> PipelineParts {
    let mut parts = parts(service, 0, &[]);
    let output = Output { name: "".into(), edge: Edge { schema: counted_schema(), key: Space::Device } };
    let window = move |_: &fieldstream_engine_api::BuildContext| {
        let outputs = vec![output.clone()];
        Ok(Box::new(Window { outputs, counter: Counter { outputs: Vec::new(), counts: Vec::new() } }) as Box<dyn Operator>)
    };
    parts.spec.graph.operators[0].factory = Arc::new(window);
    parts.input = input;
    parts
}

fn log_that_stops(at: Option<(u64, watch::Sender<bool>)>) -> Input {
    let log = MemoryLog { stop: at, ..memory_log(&[]) };
    Input::Log { log: Box::new(log), finite: true }
}

/// Hands out payloads `next..to`, a few at a time; then has ended, or has no more for now.
struct Dealer {
    next: u64,
    to: u64,
    ends: bool,
}

#[async_trait]
impl Receiver for Dealer {
    async fn next(&mut self) -> Result<Option<Received>, fieldstream_engine_api::ReceiveError> {
        if self.next == self.to {
            return if self.ends { Ok(None) } else { std::future::pending().await };
        }
        let to = (self.next + 7).min(self.to);
        let mut block = PayloadBlock::default();
        let mut data = Vec::new();
        for offset in self.next..to {
            let text = payload(0, offset, &[]);
            block.entries.push(PayloadEntry { offset, start: data.len() as u32, len: text.len() as u32, ingest_us: None });
            data.extend_from_slice(text.as_bytes());
        }
        block.data = data.into();
        self.next = to;
        Ok(Some(Received { block, handle: to }))
    }

    async fn acknowledge(&mut self, _: u64) -> Result<(), fieldstream_engine_api::ReceiveError> {
        Ok(())
    }
}

/// Tells the pipeline to stop when it has handled so many readings: all its partitions then stand where the journal ends.
async fn stop_at(received: u64, status: Arc<Status>, stop: watch::Sender<bool>) {
    while status.ledger().received < received {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stop.send_replace(true);
}

/// Runs until the end or until `stopped` says so.
async fn start_stoppable(dir: &Path, parts: PipelineParts, digest: &str, stopped: watch::Receiver<bool>) -> (Report, Arc<Status>) {
    start_with(dir, parts, digest, stopped, Arc::default()).await
}

async fn start_with(
    dir: &Path,
    parts: PipelineParts,
    digest: &str,
    stopped: watch::Receiver<bool>,
    status: Arc<Status>,
) -> (Report, Arc<Status>) {
    let journal = JournalOptions { partitions: PARTITIONS, ..JournalOptions::default() };
    let engine =
        Engine::start(EngineOptions { shards: 2, journal, ..EngineOptions::new(dir.to_owned()) }, Arc::new(SystemClock::default()));
    let engine = engine.await.unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(60), run(&engine, parts, digest, stopped, Arc::clone(&status))).await;
    engine.stop();
    (outcome.expect("the pipeline ends").unwrap(), status)
}

/// (device, readings in its window) of everything delivered.
fn windows(service: &Mutex<Service>) -> Vec<(u32, u64, i64)> {
    let mut rows = service.lock().unwrap().rows.clone();
    rows.sort_unstable();
    rows
}

fn readings_of(device: u64) -> i64 {
    (0..PAYLOADS).filter(|offset| offset % DEVICES == device).count() as i64
}

#[test]
fn windows_over_a_log_stay_open_when_it_is_told_to_stop() {
    let service = Arc::new(Mutex::new(Service::default()));
    let dir = tempfile::tempdir().unwrap();
    // The last one falls between the last payload and the end of the input.
    for at in [13, 200, 390, PAYLOADS] {
        let (stop, stopped) = watch::channel(false);
        let parts = window_parts(&service, log_that_stops(Some((at, stop))));
        let (report, _) = on_system(start_stoppable(dir.path(), parts, "", stopped));
        assert_eq!(report.state, State::Stopped);
        assert!(report.ledger.balanced, "{:?}", report.ledger);
        assert_eq!(windows(&service), [], "stopped at offset {at}");
    }
    let (_stop, stopped) = watch::channel(false);
    let (report, _) = on_system(start_stoppable(dir.path(), window_parts(&service, log_that_stops(None)), "", stopped));
    assert_eq!((report.state, report.ledger.balanced), (State::Finished, true), "{:?}", report.ledger);
    let expected: Vec<_> = (0..PARTITIONS).flat_map(|p| (0..DEVICES).map(move |d| (p, d, readings_of(d)))).collect();
    assert_eq!(windows(&service), expected);
}

#[test]
fn windows_over_receivers_stay_open_when_they_are_told_to_stop() {
    let service = Arc::new(Mutex::new(Service::default()));
    let dir = tempfile::tempdir().unwrap();
    let mut next = 0;
    for to in [20, 21, 150, 300, PAYLOADS] {
        let (stop, stopped) = watch::channel(false);
        let parts = window_parts(&service, Input::Receivers(vec![(0, Box::new(Dealer { next, to, ends: false }))]));
        let status = Arc::<Status>::default();
        let (report, _) = on_system(async {
            tokio::spawn(stop_at(to, Arc::clone(&status), stop));
            start_with(dir.path(), parts, "", stopped, Arc::clone(&status)).await
        });
        assert_eq!(report.state, State::Stopped);
        assert!(report.ledger.balanced, "{:?}", report.ledger);
        assert_eq!(windows(&service), [], "stopped after {to} payloads");
        next = to;
    }
    let (_stop, stopped) = watch::channel(false);
    let last = Dealer { next, to: next, ends: true };
    let (report, _) =
        on_system(start_stoppable(dir.path(), window_parts(&service, Input::Receivers(vec![(0, Box::new(last))])), "", stopped));
    assert_eq!((report.state, report.ledger.balanced), (State::Finished, true), "{:?}", report.ledger);
    assert_eq!(report.ledger.received, PAYLOADS);
    // Which partition of the journal a device is in does not matter here.
    let mut found: Vec<_> = windows(&service).into_iter().map(|(_, device, count)| (device, count)).collect();
    found.sort_unstable();
    assert_eq!(found, (0..DEVICES).map(|d| (d, readings_of(d))).collect::<Vec<_>>());
}

#[test]
fn a_pipeline_ends_when_the_rest_of_the_journal_belongs_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let run_as = |name: &str, to: u64| {
        let service = Arc::new(Mutex::new(Service::default()));
        let mut parts = window_parts(&service, Input::Receivers(vec![(0, Box::new(Dealer { next: 0, to, ends: true }))]));
        (parts.spec.name, parts.spec.sources[0].name) = (name.into(), name.into());
        let (_stop, stopped) = watch::channel(false);
        let (report, _) = on_system(start_stoppable(dir.path(), parts, "", stopped));
        (report.state, report.ledger.received, report.ledger.balanced)
    };
    assert_eq!(run_as("one", 50), (State::Finished, 50, true));
    assert_eq!(run_as("two", 20), (State::Finished, 20, true));
    assert_eq!(run_as("one", 0), (State::Finished, 50, true), "what follows is of the other one");
}

#[test]
fn rows_that_were_durable_before_a_replay_are_counted_to_the_last() {
    let service = Arc::new(Mutex::new(Service::default()));
    for _ in 0..8 {
        // The checkpoints are lost, the marks are not: everything is read again and nothing is delivered twice.
        let dir = tempfile::tempdir().unwrap();
        service.lock().unwrap().owner.clear();
        let (_stop, stopped) = watch::channel(false);
        let (report, _) = on_system(start_stoppable(dir.path(), parts(&service, 0, &[]), "", stopped));
        assert_exact(&service.lock().unwrap(), &[]);
        assert!(report.ledger.balanced, "{:?}", report.ledger);
        assert_eq!(report.ledger.delivered["out"], u64::from(PARTITIONS) * PAYLOADS);
    }
}

#[test]
fn a_changed_plan_goes_on_with_its_state_and_says_what_changed() {
    let service = Arc::new(Mutex::new(Service::default()));
    let dir = tempfile::tempdir().unwrap();
    let counting = |stop| PipelineParts { input: log_that_stops(stop), ..parts(&service, 0, &[]) };
    let changes = |digest: &str, stop: Option<u64>| {
        let (sender, stopped) = watch::channel(false);
        let (keep, stop) = (sender.clone(), stop.map(|at| (at, sender)));
        let (_, status) = on_system(start_stoppable(dir.path(), counting(stop), digest, stopped));
        drop(keep);
        status.lock().plan_changes.clone()
    };
    assert_eq!(changes("time=1\noperator count=1\n", Some(100)), None, "the first start has nothing to compare with");
    assert_eq!(changes("time=1\noperator count=1\n", Some(200)), None);
    let told = changes("time=1\noperator count=2\noperator new=1\n", Some(300));
    assert_eq!(told.as_deref(), Some("operator count changed, operator new is new"));
    assert_eq!(changes("time=1\noperator count=2\noperator new=1\n", None), None, "the last checkpoint knows the new plan");
    assert_exact(&service.lock().unwrap(), &[]);
}

#[test]
fn old_checkpoints_are_gone_when_a_run_has_ended() {
    let service = Arc::new(Mutex::new(Service::default()));
    let dir = tempfile::tempdir().unwrap();
    let (_stop, stopped) = watch::channel(false);
    on_system(start_stoppable(dir.path(), parts(&service, 0, &[]), "", stopped));
    for partition in 0..PARTITIONS {
        let manifests = dir.path().join(format!("state/manifests/test/memory/{partition}"));
        let kept = std::fs::read_dir(&manifests).unwrap_or_else(|e| panic!("{}: {e}", manifests.display())).count();
        assert!((1..=2).contains(&kept), "{kept} checkpoints of partition {partition}");
    }
}
