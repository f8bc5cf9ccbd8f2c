//! What a log has lost, or no longer holds: counted, never silent, and a stop unless a person has said otherwise.

use super::*;

fn parts_of(service: &Arc<Mutex<Service>>, dies_at: u32, log: MemoryLog, finite: bool) -> PipelineParts {
    PipelineParts { input: Input::Log { log: Box::new(log), finite }, ..parts(service, dies_at, &[]) }
}

fn options(dir: &std::path::Path, accept_gap: bool) -> EngineOptions {
    EngineOptions { shards: 2, accept_gap, ..EngineOptions::new(dir.to_owned()) }
}

#[test]
fn payloads_that_the_log_has_lost_are_in_the_account_also_across_crashes() {
    for dies_at in [0, 2, 5] {
        let service = Arc::new(Mutex::new(Service::default()));
        let dir = tempfile::tempdir().unwrap();
        let (mut crashes, lost) = (0, 100..150);
        let report = loop {
            let log = MemoryLog { lost: Some(lost.clone()), ..memory_log(&[]) };
            match on_system(start(dir.path(), parts_of(&service, if crashes < 3 { dies_at } else { 0 }, log, true))).0 {
                Ok(report) => break report,
                Err(PipelineError::Sink { .. }) => crashes += 1,
                Err(other) => panic!("{other}"),
            }
        };
        assert_eq!(report.ledger.dropped["lost"], 50, "after {crashes} crashes");
        assert_eq!((report.ledger.received, report.ledger.balanced), (u64::from(PARTITIONS) * PAYLOADS, true), "{:?}", report.ledger);
        assert_eq!(service.lock().unwrap().rows.len() as u64, u64::from(PARTITIONS) * PAYLOADS - 50);
    }
}

/// Runs until partition 0 is at offset 200 and stops in good order, with a checkpoint there.
fn first_half(service: &Arc<Mutex<Service>>, dir: &std::path::Path) {
    let (stop, stopped) = watch::channel(false);
    let log = MemoryLog { stop: Some((200, stop)), ..memory_log(&[]) };
    let ended = on_system(async {
        let engine = Engine::start(options(dir, false), Arc::new(SystemClock::default())).await.unwrap();
        let ended = run(&engine, parts_of(service, 0, log, true), "digest", stopped, Arc::new(Status::default())).await;
        engine.stop();
        ended
    });
    assert_eq!(ended.unwrap().state, State::Stopped);
}

#[test]
fn a_log_that_no_longer_reaches_back_stops_the_pipeline_until_the_gap_is_accepted() {
    let service = Arc::new(Mutex::new(Service::default()));
    let dir = tempfile::tempdir().unwrap();
    first_half(&service, dir.path());
    let shorter = || MemoryLog { first_offset: 390, ..memory_log(&[]) };
    let refused = on_system(start(dir.path(), parts_of(&service, 0, shorter(), true))).0;
    assert!(matches!(refused, Err(PipelineError::Log(LogError::Truncated { first_offset: 390, .. }))), "{refused:?}");
    // It crashes right after the gap was recorded: a restart needs no second permission and counts nothing twice.
    let died = on_system(start_with(options(dir.path(), true), parts_of(&service, 1, shorter(), true))).0;
    assert!(matches!(died, Err(PipelineError::Sink { .. })), "{died:?}");
    let (report, _) = on_system(start(dir.path(), parts_of(&service, 0, shorter(), true)));
    let ledger = report.unwrap().ledger;
    assert_eq!((ledger.received, ledger.balanced), (u64::from(PARTITIONS) * PAYLOADS, true), "{ledger:?}");
    let given_up = ledger.dropped["accepted_gap"];
    assert!(given_up > 0 && ledger.settled + given_up == ledger.received, "{ledger:?}");
}

#[test]
fn another_log_under_an_old_name_stops_the_pipeline_until_it_may_begin_anew() {
    let service = Arc::new(Mutex::new(Service::default()));
    let dir = tempfile::tempdir().unwrap();
    first_half(&service, dir.path());
    let other = |stop| MemoryLog { id: "other", stop, ..memory_log(&[]) };
    let refused = on_system(start(dir.path(), parts_of(&service, 0, other(None), false))).0;
    let Err(PipelineError::Position { what, .. }) = refused else { panic!("{refused:?}") };
    assert!(what.contains("memory") && what.contains("--accept-gap"), "{what}");
    // The service of the test knows no logs, so a fresh one stands for the new log's marks.
    let service = Arc::new(Mutex::new(Service::default()));
    let (report, _) = on_system(start_with(options(dir.path(), true), parts_of(&service, 0, other(None), false)));
    assert_eq!(report.unwrap().ledger.received, u64::from(PARTITIONS) * PAYLOADS);
    assert_exact(&service.lock().unwrap(), &[]);
    let (again, _) = on_system(start(dir.path(), parts_of(&service, 0, other(None), false)));
    assert!(again.unwrap().ledger.balanced, "it is the pipeline's log now");
}
