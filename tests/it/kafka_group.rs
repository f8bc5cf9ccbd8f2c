//! Several workers in one consumer group with one checkpoint store: they join, leave, die and freeze, and each reading is in
//! topic and table once.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fleet::Dice;
use crate::kafka_exact::Copying;
use crate::node::{Node, eventually, fieldstream};
use crate::services;

/// The shortest that brokers allow by default.
const SESSION: Duration = Duration::from_secs(6);

struct Group {
    rig: Copying,
    pipeline: PathBuf,
    started: usize,
}

impl Group {
    fn new() -> Option<Self> {
        let rig = Copying::new()?;
        let pipeline = rig.pipeline(&format!("properties: {{ session.timeout.ms: {} }}", SESSION.as_millis()));
        std::fs::create_dir(rig.dir.path().join("shared")).expect("a folder");
        Some(Self { rig, pipeline, started: 0 })
    }

    /// A worker with a data directory of its own, but for the checkpoints, which all share.
    fn worker(&mut self) -> Node {
        self.started += 1;
        let dir = self.rig.dir.path().join(format!("worker-{}", self.started));
        std::fs::create_dir_all(&dir).expect("a folder");
        self.start(&dir)
    }

    fn start(&self, dir: &Path) -> Node {
        let mut command = fieldstream();
        command.arg("run").arg(&self.pipeline).arg("--state").arg(self.rig.dir.path().join("shared"));
        Node::start(command, &self.rig.name, dir)
    }

    /// Waits until the workers together have received everything and nothing is in flight.
    fn settled(&self, workers: &mut [&mut Node]) -> Vec<Value> {
        let produced = self.rig.produced();
        eventually(&format!("{produced} readings settled"), || {
            let mut ledgers = Vec::new();
            for worker in workers.iter_mut() {
                assert!(!worker.ended(), "a worker ended:\n{}", worker.stderr());
                ledgers.push(worker.ledger()?);
            }
            let received: u64 = ledgers.iter().filter_map(|l| l["received"].as_u64()).sum();
            let done = |l: &Value| l["in_flight"] == 0 && l["balanced"] == true;
            (received == produced && ledgers.iter().all(done)).then_some(ledgers)
        })
    }

    /// Waits until a worker has partitions, and so has received something at some time.
    fn at_work(&self, worker: &mut Node) {
        eventually("the worker has partitions", || {
            assert!(!worker.ended(), "the worker ended:\n{}", worker.stderr());
            worker.ledger().filter(|l| l["received"].as_u64() > Some(0))
        });
    }
}

#[test]
fn workers_that_join_leave_and_die_write_each_row_once() {
    let _services = services::shared();
    let Some(mut group) = Group::new() else { return };
    let mut dice = Dice::thrown();
    group.rig.produce(60);
    let mut first = group.worker();
    group.settled(&mut [&mut first]);
    let mut second = group.worker();
    group.rig.produce(100);
    group.at_work(&mut second);
    group.rig.produce(100);
    group.settled(&mut [&mut first, &mut second]);

    // One leaves in good order while rows are on their way.
    group.rig.produce(150);
    first.stop_unsettled();
    group.settled(&mut [&mut second]);
    let mut first = group.worker();
    group.at_work(&mut first);

    // One is killed, at a random moment of its work.
    for _ in 0..2 {
        let before = group.rig.produced();
        group.rig.produce(150);
        let enough = before + dice.below(1500);
        eventually("some of it", || {
            let sum: u64 = [&first, &second].iter().filter_map(|w| w.ledger()?["received"].as_u64()).sum();
            (sum >= enough).then_some(())
        });
        first.kill();
        let killed = Instant::now();
        group.rig.produce(20);
        group.settled(&mut [&mut second]);
        let taken_over = killed.elapsed();
        eprintln!("from kill -9 of a worker to the take-over, everything settled: {:.1} s", taken_over.as_secs_f64());
        assert!(taken_over < SESSION + Duration::from_secs(40), "{taken_over:?}");
        first = group.worker();
        group.at_work(&mut first);
    }
    group.rig.produce(50);
    group.settled(&mut [&mut first, &mut second]);
    group.rig.check();
    first.stop();
    second.stop();
    group.rig.check();
}

#[test]
fn a_worker_that_was_frozen_beyond_its_session_harms_nothing() {
    let _services = services::shared();
    let Some(mut group) = Group::new() else { return };
    let mut dice = Dice::thrown();
    let (mut first, mut second) = (group.worker(), group.worker());
    group.rig.produce(100);
    group.at_work(&mut first);
    group.rig.produce(100);
    group.at_work(&mut second);
    for _ in 0..3 {
        let before = group.rig.produced();
        group.rig.produce(200);
        let enough = before + dice.below(3000);
        eventually("some of it", || {
            let sum: u64 = [&first, &second].iter().filter_map(|w| w.ledger()?["received"].as_u64()).sum();
            (sum >= enough).then_some(())
        });
        first.signal("STOP");
        let frozen = Instant::now();
        // The other one takes everything over.
        group.settled(&mut [&mut second]);
        eprintln!("from SIGSTOP of a worker to the take-over, everything settled: {:.1} s", frozen.elapsed().as_secs_f64());
        group.rig.produce(50);
        first.signal("CONT");
        group.rig.produce(50);
        group.settled(&mut [&mut first, &mut second]);
        group.rig.check();
        group.rig.produce(30);
        group.at_work(&mut first);
    }
    group.settled(&mut [&mut first, &mut second]);
    group.rig.check();
    first.stop();
    second.stop();
    group.rig.check();
}
