//! Chaos: the real binary between real services, all of them killed, stopped, frozen, cut off and starved by a schedule of faults,
//! while two fleets send. In the end input must equal tables plus dead letters, exactly.
//!
//! `cargo xtask chaos --minutes M [--seed N] [--report FILE]`; plain `cargo test` runs it for three minutes.

mod faults;
mod field;
mod kafka_feed;
mod mqtt_feed;
mod oracle;
mod proxy;
mod readings;
mod report;
mod soak;
mod stall;
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use self::faults::{Chaos, Tally};
use self::field::{Field, READINGS};
use self::kafka_feed::KafkaFeed;
use self::mqtt_feed::MqttFeed;
use self::report::Run;
use self::worker::{Worker, sum, until};
use crate::fleet::Dice;
use crate::node::{Ended, eventually};
use crate::services::service;

/// How long the end may take: whatever waits must be stored.
const TO_THE_END: Duration = Duration::from_secs(300);

/// A setting of the run.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} cannot be read")))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_millis() as u64
}

/// A directory that is left for the curious when the test fails.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("fieldstream-chaos-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(path.join("logs")).expect("a directory");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("chaos: the logs are in {}", self.0.join("logs").display());
        } else {
            // What stays behind costs disk and nothing else.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

#[test]
fn chaos() {
    let Some(script) = service("FIELDSTREAM_TEST_CTL") else { return };
    let minutes: f64 = setting("FIELDSTREAM_CHAOS_MINUTES").unwrap_or(3.0);
    let seed = setting("FIELDSTREAM_CHAOS_SEED").unwrap_or_else(now_ms);
    eprintln!("chaos: {minutes} minutes, seed {seed}");
    let folder = Folder::new();
    let run = rage(Path::new(&script), &folder.0, Duration::from_secs_f64(minutes * 60.0), seed);
    run.tell(setting::<PathBuf>("FIELDSTREAM_CHAOS_REPORT").as_deref());
    assert_eq!(run.deaths, Vec::<String>::new(), "no worker ends by itself");
}

fn rage(script: &Path, dir: &Path, time: Duration, seed: u64) -> Run {
    let field = Field::new(script, dir);
    let start_ms = now_ms() - 3_600_000;
    let of_group = |name| Worker::of_group(&field, name, "chaos-kafka", include_str!("kafka.yaml"));
    let mut workers =
        [Worker::alone(&field, "chaos-mqtt", include_str!("mqtt.yaml")), of_group("chaos-kafka-one"), of_group("chaos-kafka-two")];
    // Until the worker has subscribed the broker keeps nothing for it.
    let probe = format!(r#"{{"id":"probe","sensorId":"t","sensorType":"temperature","timestamp":{start_ms},"value":1,"unit":"Cel"}}"#);
    until(&mut workers[..1], "the probe", TO_THE_END, |ledgers| {
        mqtt_feed::send_one(field.mqtt(), "chaos/probe/telemetry", probe.as_bytes());
        sum(ledgers, "/settled") > 0
    });
    let (mqtt, kafka) = (MqttFeed::start(field.mqtt(), start_ms), KafkaFeed::start(&field.kafka(), READINGS, start_ms));
    until(&mut workers, "the first rows", TO_THE_END, |ledgers| ledgers.iter().all(|l| l["settled"].as_u64() > Some(100)));
    let began = Instant::now();
    let (dice, reached) = (Dice::seeded(seed), BTreeMap::new());
    let mut chaos = Chaos { field: &field, feed: &mqtt, workers: &mut workers, dice, tally: Tally::default(), reached };
    chaos.rage(began + time);
    let (tally, seconds) = (chaos.tally, began.elapsed().as_secs());
    let (sent, each) = (mqtt.finish(), kafka.finish());
    let rows = oracle::good_of_mqtt(sent.each) + 1;
    let windows = oracle::windows_of_mqtt(start_ms, sent.each) + 1;
    until(&mut workers[..1], "all rows from MQTT and all their windows", TO_THE_END, |ledgers| {
        let done = ["/settled", "/delivered/history", "/delivered/spans", "/in_flight"].map(|pointer| sum(ledgers, pointer));
        done == [rows, rows, windows, 0]
    });
    let records = each * kafka_feed::DEVICES;
    let group = until(&mut workers[1..], "all records from Kafka", TO_THE_END, |ledgers| {
        let balanced = ledgers.iter().all(|ledger| ledger["balanced"] == true);
        sum(ledgers, "/received") == records && sum(ledgers, "/in_flight") == 0 && balanced
    });
    workers.iter_mut().for_each(in_balance);
    let deaths = workers.iter().flat_map(|w| w.deaths.iter().map(move |words| format!("{}: {words}", w.name))).collect();
    let known = workers.iter().flat_map(|w| w.known.iter().map(move |(reason, n)| (format!("{} {reason}", w.name), *n))).collect();
    let dir = workers[0].dir.clone();
    // What MQTT delivers again may come until the very end, so that its last account is compared. That of a group's member also
    // has the partitions of those that ended before it.
    let [ledger, ..] = workers.map(|worker| drained(&worker.stop()));
    let disk = field.disk.is_some();
    let mqtt = oracle::check_mqtt(&field, &dir, start_ms, sent, &ledger);
    let kafka = oracle::check_kafka(&field, start_ms, each, &group);
    let deduplicated = ledger["deduplicated"].as_u64().unwrap_or_default();
    Run { seed, seconds, disk, tally, mqtt, kafka, sent_again: sent.again, deduplicated, deaths, known }
}

/// Waits until the metric says that the account balances.
fn in_balance(worker: &mut Worker) {
    let metric = format!("fieldstream_ledger_imbalance{{pipeline=\"{}\"}} 0", worker.pipeline);
    eventually(&metric, || worker.get("/metrics")?.lines().any(|line| line == metric).then_some(()));
}

/// The account of a worker that ended in order.
fn drained(ended: &Ended) -> Value {
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    // Processes died, disks did not: whatever is written must be whole, and nothing may say otherwise.
    let damaged: Vec<&str> = ended.stderr.lines().filter(|line| line.contains("damaged")).take(10).collect();
    assert!(damaged.is_empty(), "something was found damaged: {damaged:#?}");
    let ledger = ended.account()["ledger"].clone();
    assert_eq!(ledger["balanced"], true, "{ledger}");
    ledger
}
