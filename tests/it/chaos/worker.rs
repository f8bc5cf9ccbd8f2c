//! A worker process and who starts it again.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::field::Field;
use crate::node::{Ended, Node, fieldstream};

/// A worker that ended by itself is started again after this.
const RESTART: Duration = Duration::from_millis(500);

/// A worker that ends so soon has not started.
const START: Duration = Duration::from_secs(10);

/// A process that runs one pipeline.
pub(crate) struct Worker {
    pub(crate) name: &'static str,
    pub(crate) pipeline: &'static str,
    file: PathBuf,
    /// Where it works and keeps its state.
    pub(crate) dir: PathBuf,
    logs: PathBuf,
    variables: Vec<(&'static str, String)>,
    node: Option<Node>,
    started: Instant,
    /// When it is to be started, if it does not run.
    start_at: Instant,
    /// Why it ended without being told to.
    pub(crate) deaths: Vec<String>,
    /// Ends for reasons that are known and written down, after which it is started again.
    pub(crate) known: BTreeMap<&'static str, u64>,
}

impl Worker {
    /// Starts the only worker of a pipeline.
    pub(crate) fn alone(field: &Field, pipeline: &'static str, text: &str) -> Self {
        Self::start_as(field, pipeline, pipeline, text)
    }

    /// Starts a worker that shares a pipeline: it has a data directory of its own, but for the checkpoints.
    pub(crate) fn of_group(field: &Field, name: &'static str, pipeline: &'static str, text: &str) -> Self {
        let (checkpoints, data) = (field.shared().join("checkpoints"), field.dir.join("disk").join(name).join("state"));
        std::fs::create_dir_all(&checkpoints).expect("a directory");
        std::fs::create_dir_all(&data).expect("a directory");
        symlink(&checkpoints, data.join("state")).expect("a link");
        Self::start_as(field, name, pipeline, text)
    }

    fn start_as(field: &Field, name: &'static str, pipeline: &'static str, text: &str) -> Self {
        let (dir, logs) = (field.dir.join("disk").join(name), field.dir.join("logs").join(name));
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::create_dir_all(&logs).expect("a directory");
        let file = logs.join("pipeline.yaml");
        std::fs::write(&file, text).expect("a file");
        let mut variables = field.variables();
        variables.push(("CHAOS_INSTANCE", name.to_owned()));
        variables.push(("CHAOS_LETTERS", field.shared().join("dead-letters.ndjson").display().to_string()));
        let (now, deaths, known) = (Instant::now(), Vec::new(), BTreeMap::new());
        let mut worker = Self { name, pipeline, file, dir, logs, variables, node: None, started: now, start_at: now, deaths, known };
        worker.start();
        worker
    }

    fn start(&mut self) {
        let mut command: Command = fieldstream();
        command.arg("run").arg(&self.file).args(["--shards", "2"]).envs(self.variables.iter().cloned());
        self.started = Instant::now();
        self.node = Some(Node::start_logging(command, self.pipeline, &self.dir, &self.logs));
    }

    /// SIGKILL, and a start after `pause`, by [`Self::tend`].
    pub(crate) fn kill(&mut self, pause: Duration) {
        if let Some(node) = self.node.take() {
            node.kill();
        }
        self.start_at = Instant::now() + pause;
        self.tend();
    }

    /// SIGTERM, and a start when it has ended. A drain may take longer than it is allowed while a service is away; it says so.
    pub(crate) fn restart(&mut self) {
        if let Some(node) = self.node.take() {
            let ended = node.stop_now();
            let late = ended.stderr.lines().rev().take(5).any(|line| line.contains("draining took longer"));
            if !ended.status.success() && !late {
                self.deaths.push(format!("after SIGTERM: {}: {}", ended.status, last_words(&ended.stderr)));
            }
        }
        self.start();
    }

    /// Stops it for a while.
    pub(crate) fn signal(&self, name: &str) {
        if let Some(node) = &self.node {
            node.signal(name);
        }
    }

    /// Starts it again if it has ended by itself.
    pub(crate) fn tend(&mut self) {
        let ended = self.node.as_mut().is_some_and(Node::ended);
        if ended {
            let words = self.node.take().map(|node| last_words(&node.stderr())).unwrap_or_default();
            // Without room for its claim it cannot begin. And a network that delivers an older request to join the group after a
            // newer one lets Kafka fence the member that made both; the client library takes that for the end.
            let known = if self.started.elapsed() < START && words.contains("No space left") {
                Some("could not start on the full disk")
            } else {
                words.contains("FencedInstanceId").then_some("was fenced by its own late request to join the group")
            };
            if let Some(reason) = known {
                *self.known.entry(reason).or_default() += 1;
            } else {
                eprintln!("chaos: {} has ended by itself: {words}", self.name);
                self.deaths.push(words);
            }
            self.start_at = Instant::now() + RESTART;
        }
        if self.node.is_none() && Instant::now() >= self.start_at {
            self.start();
        }
    }

    /// Its account, while it answers.
    pub(crate) fn ledger(&self) -> Option<Value> {
        self.node.as_ref()?.ledger()
    }

    /// First offset that is not handled yet, by partition that it has; nothing while it does not answer.
    pub(crate) fn reached(&self) -> Vec<(u32, u64)> {
        let text = self.get(&format!("/v1/pipelines/{}/status", self.pipeline)).unwrap_or_default();
        let status: Value = serde_json::from_str(&text).unwrap_or_default();
        let place = |partition: &Value| {
            let number = u32::try_from(partition["partition"].as_u64()?).ok()?;
            Some((number, partition["complete_to"]["next_offset"].as_u64()?))
        };
        status["partitions"].as_array().into_iter().flatten().filter_map(place).collect()
    }

    /// A body of its admin server, while it answers.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        self.node.as_ref()?.get(path)
    }

    /// Waits until it is about to write a file of its checkpoints.
    pub(crate) fn until_checkpoint(&self) {
        let temporary = self.dir.join("state/state/tmp");
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if std::fs::read_dir(&temporary).is_ok_and(|mut entries| entries.next().is_some()) {
                return;
            }
            std::hint::spin_loop();
        }
    }

    /// Ends it in order; gives its last words.
    pub(crate) fn stop(mut self) -> Ended {
        self.node.take().expect("it runs").stop_now()
    }
}

fn last_words(stderr: &str) -> String {
    let mut lines: Vec<&str> = stderr.lines().rev().filter(|line| !line.trim().is_empty()).take(2).collect();
    lines.reverse();
    lines.join(" / ")
}

/// Waits until the accounts of `workers` are as wanted together; gives them.
pub(crate) fn until(workers: &mut [Worker], what: &str, patience: Duration, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let deadline = Instant::now() + patience;
    loop {
        workers.iter_mut().for_each(Worker::tend);
        let ledgers: Vec<Value> = workers.iter().filter_map(Worker::ledger).collect();
        if ledgers.len() == workers.len() && wanted(&ledgers) {
            return ledgers;
        }
        assert!(Instant::now() < deadline, "waiting for {what}, the last accounts were {ledgers:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// The sum of a count over accounts.
pub(crate) fn sum(ledgers: &[Value], pointer: &str) -> u64 {
    ledgers.iter().filter_map(|ledger| ledger.pointer(pointer)?.as_u64()).sum()
}
