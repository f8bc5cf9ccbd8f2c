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
mod worker;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use self::faults::{Chaos, Tally};
use self::field::{Field, READINGS};
use self::kafka_feed::KafkaFeed;
use self::mqtt_feed::MqttFeed;
use self::report::Run;
use self::worker::Worker;
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
    let mut workers =
        [Worker::new(&field, "chaos-mqtt", include_str!("mqtt.yaml")), Worker::new(&field, "chaos-kafka", include_str!("kafka.yaml"))];
    // Until the worker has subscribed the broker keeps nothing for it.
    let probe = format!(r#"{{"id":"probe","sensorId":"t","sensorType":"temperature","timestamp":{start_ms},"value":1,"unit":"Cel"}}"#);
    workers[0].until("the probe", TO_THE_END, |ledger| {
        mqtt_feed::send_one(field.mqtt(), "chaos/probe/telemetry", probe.as_bytes());
        ledger["settled"].as_u64() > Some(0)
    });
    let (mqtt, kafka) = (MqttFeed::start(field.mqtt(), start_ms), KafkaFeed::start(&field.kafka(), READINGS, start_ms));
    for worker in &mut workers {
        worker.until("the first rows", TO_THE_END, |ledger| ledger["settled"].as_u64() > Some(100));
    }
    let began = Instant::now();
    let mut chaos = Chaos { field: &field, feed: &mqtt, workers: &mut workers, dice: Dice::seeded(seed), tally: Tally::default() };
    chaos.rage(began + time);
    let (tally, seconds) = (chaos.tally, began.elapsed().as_secs());
    let (sent, each) = (mqtt.finish(), kafka.finish());
    let rows = oracle::good_of_mqtt(sent.each) + 1;
    let windows = oracle::windows_of_mqtt(start_ms, sent.each) + 1;
    workers[0].until("all rows from MQTT and all their windows", TO_THE_END, |ledger| {
        let told = &ledger["delivered"];
        ledger["settled"] == rows && told["history"] == rows && told["spans"] == windows && ledger["in_flight"] == 0
    });
    let records = each * kafka_feed::DEVICES;
    workers[1].until("all records from Kafka", TO_THE_END, |ledger| ledger["received"] == records && ledger["in_flight"] == 0);
    workers.iter_mut().for_each(in_balance);
    let deaths = workers.iter().flat_map(|w| w.deaths.iter().map(move |words| format!("{}: {words}", w.pipeline))).collect();
    let known = workers.iter().flat_map(|w| w.known.iter().map(move |(reason, n)| (format!("{} {reason}", w.pipeline), *n))).collect();
    let dirs = workers.each_ref().map(|w| w.dir.clone());
    // What MQTT delivers again may come until the very end, so that only the last account is compared.
    let ledgers = workers.map(|worker| drained(&worker.stop()));
    let disk = field.disk.is_some();
    let mqtt = oracle::check_mqtt(&field, &dirs[0], start_ms, sent, &ledgers[0]);
    let kafka = oracle::check_kafka(&field, &dirs[1], start_ms, each, &ledgers[1]);
    let deduplicated = ledgers[0]["deduplicated"].as_u64().unwrap_or_default();
    Run { seed, seconds, disk, tally, mqtt, kafka, sent_again: sent.again, deduplicated, deaths, known }
}

/// Waits until the account balances and the metric says so.
fn in_balance(worker: &mut Worker) {
    worker.until("a balanced ledger", TO_THE_END, |ledger| ledger["balanced"] == true);
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
    assert_eq!((&ledger["balanced"], &ledger["in_flight"]), (&Value::Bool(true), &Value::from(0)), "{ledger}");
    ledger
}
