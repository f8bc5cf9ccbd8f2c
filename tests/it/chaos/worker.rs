//! A worker process and who starts it again.

use std::collections::BTreeMap;
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
    pub(crate) pipeline: &'static str,
    file: PathBuf,
    /// Where it works and keeps its state.
    pub(crate) dir: PathBuf,
    logs: PathBuf,
    variables: Vec<(&'static str, String)>,
    node: Option<Node>,
    started: Instant,
    down_since: Instant,
    /// The highest count of settled readings seen.
    settled: u64,
    /// Why it ended without being told to.
    pub(crate) deaths: Vec<String>,
    /// Ends for reasons that are known and written down, after which it is started again.
    pub(crate) known: BTreeMap<&'static str, u64>,
}

impl Worker {
    pub(crate) fn new(field: &Field, pipeline: &'static str, text: &str) -> Self {
        let (dir, logs) = (field.dir.join("disk").join(pipeline), field.dir.join("logs").join(pipeline));
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::create_dir_all(&logs).expect("a directory");
        let file = logs.join("pipeline.yaml");
        std::fs::write(&file, text).expect("a file");
        let variables = field.variables();
        let (now, deaths) = (Instant::now(), Vec::new());
        let mut worker = Self {
            pipeline,
            file,
            dir,
            logs,
            variables,
            node: None,
            started: now,
            down_since: now,
            settled: 0,
            deaths,
            known: BTreeMap::new(),
        };
        worker.start();
        worker
    }

    fn start(&mut self) {
        let mut command: Command = fieldstream();
        command.arg("run").arg(&self.file).args(["--shards", "2"]).envs(self.variables.iter().cloned());
        self.started = Instant::now();
        self.node = Some(Node::start_logging(command, self.pipeline, &self.dir, &self.logs));
    }

    /// SIGKILL, and a start at once.
    pub(crate) fn kill(&mut self) {
        if let Some(node) = self.node.take() {
            node.kill();
        }
        self.start();
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
                eprintln!("chaos: {} has ended by itself: {words}", self.pipeline);
                self.deaths.push(words);
            }
            self.down_since = Instant::now();
        }
        if self.node.is_none() && self.down_since.elapsed() >= RESTART {
            self.start();
        }
    }

    /// Its account, while it answers.
    pub(crate) fn ledger(&mut self) -> Option<Value> {
        let ledger = self.node.as_ref()?.ledger()?;
        self.settled = self.settled.max(ledger["settled"].as_u64().unwrap_or_default());
        Some(ledger)
    }

    /// A body of its admin server, while it answers.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        self.node.as_ref()?.get(path)
    }

    /// The highest count of settled readings seen so far.
    pub(crate) fn settled(&self) -> u64 {
        self.settled
    }

    /// Waits until its account is as wanted.
    pub(crate) fn until(&mut self, what: &str, patience: Duration, wanted: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + patience;
        let mut last = Value::Null;
        loop {
            self.tend();
            if let Some(ledger) = self.ledger() {
                if wanted(&ledger) {
                    return;
                }
                last = ledger;
            }
            assert!(Instant::now() < deadline, "{}: waiting for {what}, the last account was {last}", self.pipeline);
            std::thread::park_timeout(Duration::from_millis(50));
        }
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
