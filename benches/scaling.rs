//! Workers of one consumer group on one topic: how fast a topic that is full already is worked off, by workers and by partitions.
//!
//! `cargo bench --bench scaling -- [readings]` starts a throw-away Kafka with `scripts/service`, fills topics of 1, 4 and 16
//! partitions with the same readings, and runs 1, 2 and 4 workers (validate, EWMA, alerts to Kafka exactly once) on them in
//! interleaved rounds. Kafka shares the machine, so the rate by CPU time of the workers tells more than the rate by the clock.
#![allow(clippy::print_stdout)] // a bench's table belongs on stdout

#[path = "data/lines.rs"]
#[allow(dead_code)] // other benches read blocks and files
mod lines;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use serde_json::Value;

const READINGS: u64 = 2_000_000;
const DEVICES: u64 = 20_000;
const ROUNDS: usize = 3;
/// Partitions and workers.
const CASES: [(i32, usize); 5] = [(1, 1), (4, 1), (16, 1), (16, 2), (16, 4)];
/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// Time between two looks at the workers.
const LOOK: Duration = Duration::from_millis(50);
/// Of the readings, what is not measured: joining the group, first allocations.
const START: f64 = 0.2;
/// Kernel ticks a second, as `/proc/PID/stat` counts CPU time on every Linux.
const TICKS: f64 = 100.0;

/// A Kafka of its own, stopped with its data when it goes out of scope.
struct Kafka {
    script: PathBuf,
    state: tempfile::TempDir,
    brokers: String,
}

impl Kafka {
    fn up() -> Result<Self> {
        let (script, state) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/service"), tempfile::tempdir()?);
        let output = Command::new(&script).args(["up", "kafka"]).env("FIELDSTREAM_TEST_STATE", state.path()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let brokers = text.lines().find_map(|line| line.strip_prefix("export FIELDSTREAM_TEST_KAFKA="));
        let brokers = brokers.with_context(|| format!("no Kafka: {}", String::from_utf8_lossy(&output.stderr)))?.to_owned();
        Ok(Self { script, state, brokers })
    }

    fn create(&self, topic: &str, partitions: i32) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", &self.brokers).create()?;
        let topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1)).set("message.timestamp.type", "LogAppendTime");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let made = runtime.block_on(admin.create_topics([&topic], &AdminOptions::new()))?;
        ensure!(made.iter().all(std::result::Result::is_ok), "{made:?}");
        Ok(())
    }

    /// Fills a topic with lines keyed by their devices.
    fn fill(&self, topic: &str, text: &[u8]) -> Result<()> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("partitioner", "murmur2_random").set("linger.ms", "20");
        config.set("queue.buffering.max.messages", "1000000").set("enable.idempotence", "true");
        let producer: ThreadedProducer<DefaultProducerContext> = config.create()?;
        for (number, line) in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
            let key = format!("device-{:07}", number as u64 % (DEVICES * 2) / 2);
            let mut record = BaseRecord::to(topic).key(&key).payload(line);
            while let Err((error, back)) = producer.send(record) {
                ensure!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
                std::thread::park_timeout(LOOK);
                record = back;
            }
        }
        Ok(producer.flush(PATIENCE)?)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = Command::new(&self.script).arg("down").env("FIELDSTREAM_TEST_STATE", self.state.path()).output();
    }
}

fn pipeline(name: &str, topic: &str, brokers: &str) -> String {
    format!(
        r#"
version: 1
pipeline: {name}
checkpoint: {{ interval: 5s, keep: 2 }}
sources:
  readings:
    kafka: {{ brokers: ["{brokers}"], topic: {topic}, start: earliest }}
    decode: {{ format: json }}
operators:
  clean:
    validate: {{ rules: [{{ id: range, range: {{ min: -40, max: 85 }} }}, {{ id: quality, quality: {{ min: uncertain }} }}] }}
    inputs: [readings]
  outlier: {{ detect: {{ ewma: {{ z: 5 }} }}, inputs: [clean] }}
sinks:
  alerts:
    kafka: {{ brokers: ["{brokers}"], topic: {name}-alerts, key: device_id, delivery: exactly_once }}
    inputs: [outlier]
discard: [readings.rejected, clean.rejected]
"#
    )
}

/// A worker, killed when it goes out of scope.
struct Worker {
    child: Child,
    admin: SocketAddr,
}

impl Worker {
    fn start(folder: &Path, file: &Path, number: usize) -> Result<Self> {
        let admin = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = File::create(folder.join(format!("worker-{number}.log")))?;
        let child = Command::new(env!("CARGO_BIN_EXE_fieldstream"))
            .arg("run")
            .arg(file)
            .args(["--shards", "1", "--data-dir"])
            .arg(folder.join(format!("worker-{number}")))
            .arg("--state")
            .arg(folder.join("shared"))
            .args(["--admin", &admin.to_string()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        Ok(Self { child, admin })
    }

    fn ledger(&self, pipeline: &str) -> Option<Value> {
        let mut stream = TcpStream::connect_timeout(&self.admin, LOOK).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET /v1/pipelines/{pipeline}/ledger HTTP/1.0\r\nHost: worker\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()
    }

    /// CPU seconds that it has used.
    fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit_once(") ").context("a process")?.1.split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).context("a time");
        Ok((ticks(11)? + ticks(12)?) / TICKS)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Gone already when it failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Readings a second by the clock and by the workers' CPU time.
#[derive(Clone, Copy, Debug)]
struct Rate {
    clock: f64,
    cpu: f64,
}

fn run(kafka: &Kafka, topic: &str, workers: usize, readings: u64, name: &str) -> Result<Rate> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("scaling.yaml");
    std::fs::write(&file, pipeline(name, topic, &kafka.brokers))?;
    std::fs::create_dir(folder.path().join("shared"))?;
    let workers = (0..workers).map(|number| Worker::start(folder.path(), &file, number)).collect::<Result<Vec<_>>>()?;
    let cpu = || workers.iter().map(Worker::cpu).sum::<Result<f64>>();
    let (began, mut start) = (Instant::now(), None);
    loop {
        ensure!(began.elapsed() < PATIENCE, "{name} is not done after {PATIENCE:?}");
        std::thread::park_timeout(LOOK);
        let ledgers: Vec<Value> = workers.iter().filter_map(|worker| worker.ledger(name)).collect();
        let sum = |field: &str| ledgers.iter().filter_map(|l| l[field].as_u64()).sum::<u64>();
        let received = sum("received");
        match start {
            None if received as f64 >= readings as f64 * START => start = Some((Instant::now(), received, cpu()?)),
            Some((at, from, used)) if received >= readings && sum("in_flight") == 0 => {
                // A partition that moves is replayed by its new owner, who counts what the old one had counted.
                let done = (readings - from) as f64;
                return Ok(Rate { clock: done / at.elapsed().as_secs_f64(), cpu: done / (cpu()? - used) });
            }
            _ => {}
        }
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() -> Result<()> {
    let readings = std::env::args().skip(1).find(|a| !a.starts_with("--")).map_or(Ok(READINGS), |a| a.parse())?;
    let kafka = Kafka::up()?;
    let text = lines::lines(readings, DEVICES);
    for partitions in [1, 4, 16] {
        kafka.create(&format!("readings-{partitions}"), partitions)?;
        kafka.fill(&format!("readings-{partitions}"), &text)?;
    }
    drop(text);
    let mut rates: BTreeMap<(i32, usize), Vec<Rate>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for (partitions, workers) in CASES {
            let name = format!("scaling-{partitions}-{workers}-{round}");
            let rate = run(&kafka, &format!("readings-{partitions}"), workers, readings, &name)?;
            rates.entry((partitions, workers)).or_default().push(rate);
        }
    }
    println!("{readings} readings of {DEVICES} devices, {ROUNDS} rounds, median (least .. most)");
    println!("partitions  workers   readings/s by the clock          readings/CPU-second of the workers");
    for ((partitions, workers), rates) in rates {
        let column = |pick: fn(&Rate) -> f64| {
            let all: Vec<f64> = rates.iter().map(pick).collect();
            let (least, most) = all.iter().fold((f64::MAX, 0.0_f64), |(l, m), x| (l.min(*x), m.max(*x)));
            format!("{:>9.0} ({least:.0} .. {most:.0})", median(all))
        };
        println!("{partitions:>10}  {workers:>7}   {:<32} {}", column(|r| r.clock), column(|r| r.cpu));
    }
    Ok(())
}
