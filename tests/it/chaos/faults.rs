//! What goes wrong, and when: a schedule of faults by seed, one after the other, with kills of workers in between and within.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::field::{Disk, Field};
use super::mqtt_feed::MqttFeed;
use super::proxy::{Flow, Proxy};
use super::worker::Worker;
use crate::fleet::Dice;
use crate::node::PATIENCE;

/// What may go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL of a worker.
    Kill,
    /// SIGKILL of a worker while it writes a checkpoint.
    KillAtCheckpoint,
    /// SIGKILL of all workers at once.
    KillAll,
    /// SIGKILL of a worker that stays away, so that others of its group take over.
    KillForLong,
    /// SIGKILL of a worker again and again, before it has recovered.
    KillInRecovery,
    /// SIGTERM of a worker.
    Restart,
    /// SIGSTOP and SIGCONT of a worker.
    Freeze,
    /// A service is stopped, killed or frozen, and comes back.
    Service(&'static str, &'static str),
    /// Connections to a service are cut, or hang.
    Network(&'static str, Flow),
    /// The workers' disk is full.
    DiskFull,
}

/// Longer than Kafka's session.
const AWAY: Duration = Duration::from_secs(9);

/// How often each comes, of the sum of all.
const SCHEDULE: &[(u64, Fault)] = &[
    (26, Fault::Kill),
    (14, Fault::KillAtCheckpoint),
    (6, Fault::KillAll),
    (8, Fault::KillInRecovery),
    (6, Fault::KillForLong),
    (8, Fault::Restart),
    (6, Fault::Freeze),
    (3, Fault::Service("stop", "mosquitto")),
    (3, Fault::Service("kill", "mosquitto")),
    (2, Fault::Service("pause", "mosquitto")),
    (2, Fault::Service("stop", "kafka")),
    (3, Fault::Service("kill", "kafka")),
    (2, Fault::Service("pause", "kafka")),
    (3, Fault::Service("stop", "postgres")),
    (4, Fault::Service("kill", "postgres")),
    (3, Fault::Service("pause", "postgres")),
    (3, Fault::Network("postgres", Flow::Cut)),
    (5, Fault::Network("postgres", Flow::Stalled)),
    (3, Fault::Network("mosquitto", Flow::Cut)),
    (3, Fault::Network("mosquitto", Flow::Stalled)),
    (3, Fault::Network("kafka", Flow::Cut)),
    (3, Fault::Network("kafka", Flow::Stalled)),
    (6, Fault::DiskFull),
];

impl Fault {
    fn draw(dice: &mut Dice) -> Self {
        let mut left = dice.below(SCHEDULE.iter().map(|(weight, _)| weight).sum());
        for (weight, fault) in SCHEDULE {
            if left < *weight {
                return *fault;
            }
            left -= weight;
        }
        Self::Kill
    }

    /// As it stands in the report.
    fn name(self) -> String {
        match self {
            Self::Kill => "worker killed".to_owned(),
            Self::KillAtCheckpoint => "worker killed while it wrote a checkpoint".to_owned(),
            Self::KillAll => "all workers killed".to_owned(),
            Self::KillForLong => "worker killed and away for long".to_owned(),
            Self::KillInRecovery => "worker killed again while it recovered".to_owned(),
            Self::Restart => "worker told to stop and started".to_owned(),
            Self::Freeze => "worker frozen".to_owned(),
            Self::Service("stop", service) => format!("{service} stopped and started"),
            Self::Service("kill", service) => format!("{service} killed and started"),
            Self::Service(_, service) => format!("{service} frozen"),
            Self::Network(service, Flow::Cut) => format!("connections to {service} cut"),
            Self::Network(service, _) => format!("connections to {service} stalled"),
            Self::DiskFull => "disk full".to_owned(),
        }
    }
}

/// What happened so far.
#[derive(Default)]
pub(crate) struct Tally {
    /// Times each fault came.
    pub(crate) faults: BTreeMap<String, u64>,
    /// Seconds from the end of a fault (of a kill: from the kill) until every partition of a pipeline was further than before, by fault.
    pub(crate) recovery: BTreeMap<String, Vec<f64>>,
    /// SIGKILLs of workers, those within other faults included.
    pub(crate) kills: u64,
    /// Of these, those that fell into another fault.
    pub(crate) kills_within: u64,
}

/// Everything that faults act on.
pub(crate) struct Chaos<'a> {
    pub(crate) field: &'a Field,
    pub(crate) feed: &'a MqttFeed,
    pub(crate) workers: &'a mut [Worker],
    pub(crate) dice: Dice,
    pub(crate) tally: Tally,
    /// The highest offset reached, by pipeline and partition.
    pub(crate) reached: BTreeMap<Place, u64>,
}

/// A pipeline and a partition of it.
type Place = (&'static str, u32);

impl Chaos<'_> {
    /// Draws and carries out faults until `end`.
    pub(crate) fn rage(&mut self, end: Instant) {
        let began = Instant::now();
        let mut said = began;
        while Instant::now() < end {
            let quiet = Duration::from_millis(200 + self.dice.below(2500));
            self.wait(quiet);
            let fault = Fault::draw(&mut self.dice);
            if fault == Fault::DiskFull && self.field.disk.is_none() {
                continue;
            }
            *self.tally.faults.entry(fault.name()).or_default() += 1;
            self.carry_out(fault);
            if said.elapsed() >= Duration::from_secs(30) {
                said = Instant::now();
                let (faults, offsets): (u64, u64) = (self.tally.faults.values().sum(), self.reached.values().sum());
                let (seconds, kills) = (began.elapsed().as_secs(), self.tally.kills);
                eprintln!("chaos: {seconds} s, {faults} faults, {kills} kills, {offsets} offsets handled, last: {}", fault.name());
            }
        }
    }

    fn carry_out(&mut self, fault: Fault) {
        let number = self.dice.below(self.workers.len() as u64) as usize;
        let began = Instant::now();
        match fault {
            Fault::Kill => self.kill(number),
            Fault::KillAtCheckpoint => {
                self.workers[number].until_checkpoint();
                self.kill(number);
            }
            Fault::KillForLong => {
                self.workers[number].kill(AWAY);
                self.tally.kills += 1;
                self.wait(AWAY);
            }
            Fault::KillAll => (0..self.workers.len()).for_each(|number| self.kill(number)),
            Fault::KillInRecovery => {
                for _ in 0..2 + self.dice.below(2) {
                    self.kill(number);
                    let moment = Duration::from_millis(self.dice.below(900));
                    self.wait(moment);
                }
            }
            Fault::Restart => self.workers[number].restart(),
            Fault::Freeze => {
                self.workers[number].signal("STOP");
                std::thread::park_timeout(Duration::from_millis(500 + self.dice.below(6000)));
                self.workers[number].signal("CONT");
            }
            Fault::Service(verb, name) => self.service(verb, name),
            Fault::Network(name, flow) => {
                self.proxy(name).set(flow);
                self.trouble(500, 9000);
                self.proxy(name).set(Flow::Open);
            }
            Fault::DiskFull => self.disk_full(),
        }
        let from = if matches!(fault, Fault::Kill | Fault::KillAll) { began } else { Instant::now() };
        let everywhere = matches!(fault, Fault::KillAll | Fault::Service(..) | Fault::Network(..) | Fault::DiskFull);
        let hit = (!everywhere).then_some(self.workers[number].pipeline);
        self.recover(fault, from, hit);
    }

    /// Waits until every partition that has had rows is further than ever before. Counts the time of each pipeline, or of `hit` if
    /// that was hit alone.
    fn recover(&mut self, fault: Fault, from: Instant, hit: Option<&'static str>) {
        let deadline = Instant::now() + PATIENCE;
        let before = self.reached.clone();
        let mut waiting: BTreeSet<&'static str> = before.keys().map(|(pipeline, _)| *pipeline).collect();
        while !waiting.is_empty() {
            self.look();
            let stands = |place: &Place, before: &u64| *before > 0 && self.reached.get(place) == Some(before);
            let places: Vec<Place> = before.iter().filter(|(place, before)| stands(place, before)).map(|(place, _)| *place).collect();
            let behind: BTreeSet<&'static str> = places.iter().map(|(pipeline, _)| *pipeline).collect();
            let done = waiting.difference(&behind).filter(|pipeline| hit.is_none_or(|hit| hit == **pipeline)).count();
            let took = from.elapsed().as_secs_f64();
            self.tally.recovery.entry(fault.name()).or_default().extend(std::iter::repeat_n(took, done));
            waiting.retain(|pipeline| behind.contains(pipeline));
            if Instant::now() >= deadline {
                let words: Vec<Option<String>> = self.workers.iter().map(|worker| worker.get("/readyz")).collect();
                let disk = self.field.disk.as_ref().map(Disk::usage).unwrap_or_default();
                panic!("{places:?} did not go on after: {}; {words:?}\n{disk}", fault.name());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn kill(&mut self, number: usize) {
        // Asked last of all, so that what was handled before does not pass for recovery.
        self.look();
        self.workers[number].kill(Duration::ZERO);
        self.tally.kills += 1;
    }

    /// A while within a fault, in which a worker may be killed too.
    fn trouble(&mut self, least_ms: u64, more_ms: u64) {
        let (first, second) = (self.dice.below(more_ms), self.dice.below(more_ms));
        self.wait(Duration::from_millis(least_ms + first.min(second)));
        if self.dice.below(3) == 0 {
            let number = self.dice.below(self.workers.len() as u64) as usize;
            self.kill(number);
            self.tally.kills_within += 1;
        }
        self.wait(Duration::from_millis(first.abs_diff(second)));
    }

    fn service(&mut self, verb: &str, name: &str) {
        let services = &self.field.services;
        services.run(verb, name);
        if verb == "kill" && name == "mosquitto" {
            self.feed.broker_killed(Instant::now());
        }
        self.trouble(200, 6000);
        services.run(if verb == "pause" { "resume" } else { "start" }, name);
    }

    fn disk_full(&mut self) {
        let Some(disk) = &self.field.disk else { return };
        disk.fill();
        self.trouble(500, 8000);
        disk.free();
    }

    fn proxy(&self, name: &str) -> &Proxy {
        match name {
            "postgres" => &self.field.to_postgres,
            "kafka" => &self.field.to_kafka,
            _ => &self.field.to_mqtt,
        }
    }

    /// Waits, and looks after the workers meanwhile.
    fn wait(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            self.look();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::park_timeout(left.min(Duration::from_millis(200)));
        }
    }

    fn look(&mut self) {
        for worker in self.workers.iter_mut() {
            worker.tend();
            for (partition, offset) in worker.reached() {
                let highest = self.reached.entry((worker.pipeline, partition)).or_default();
                *highest = offset.max(*highest);
            }
        }
    }
}
