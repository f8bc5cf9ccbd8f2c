//! What a simulated world consists of: time, chance, the log's broker, the tables, the object store, and the trace of it all.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fieldstream_runtime::spec::PipelineSpec;
use object_store::memory::InMemory;

use super::broker::Broker;
use super::mutants::Mutant;
use super::rng::Rng;
use super::sink::Table;
use super::time::{Sleep, VirtualTime};

/// Wall time at the beginning of every world, microseconds since the epoch.
pub(super) const START_US: i64 = 1_795_428_000_000_000;

/// How likely things go wrong, per mille of the operations concerned. A seed draws its own mixture.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// A process dies at an operation, before or after it took effect.
    pub(super) crash: u64,
    /// The object store fails before it does anything.
    pub(super) store_fails: u64,
    /// The object store has done it, and the answer is lost.
    pub(super) store_mute: u64,
    /// A sink's service fails before it does anything.
    pub(super) sink_fails: u64,
    /// A sink's service has committed, and the answer is lost.
    pub(super) sink_mute: u64,
    /// A sink's service takes up to a minute.
    pub(super) sink_stalls: u64,
    /// The log cannot be read just now.
    pub(super) log_fails: u64,
}

impl Faults {
    fn draw(rng: &mut Rng) -> Self {
        let mut rate = |most: u64| if rng.chance(500) { rng.between(1, most) } else { 0 };
        Self {
            crash: rate(4),
            store_fails: rate(8),
            store_mute: rate(8),
            sink_fails: rate(60),
            sink_mute: rate(120),
            sink_stalls: rate(20),
            log_fails: rate(40),
        }
    }
}

/// Everything that outlives the processes of a run.
pub(super) struct World {
    pub(super) seed: u64,
    pub(super) time: Arc<VirtualTime>,
    pub(super) spec: PipelineSpec,
    pub(super) faults: Faults,
    pub(super) mutant: Option<Mutant>,
    pub(super) broker: Mutex<Broker>,
    pub(super) tables: Vec<Mutex<Table>>,
    pub(super) objects: Arc<InMemory>,
    /// Decisions and adoption records, also those that were deleted since: what the oracle reads.
    pub(super) history: Arc<InMemory>,
    rng: Mutex<Rng>,
    calm: AtomicBool,
    trace: Mutex<Trace>,
    violations: Mutex<Vec<String>>,
}

/// What happened: a hash of every line, and the lines where they are wanted.
#[derive(Debug)]
struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
}

impl World {
    pub(super) fn new(seed: u64, mutant: Option<Mutant>, spec: PipelineSpec, partitions: u32, keep_lines: bool) -> Arc<Self> {
        let mut rng = Rng::new(seed);
        let faults = Faults::draw(&mut rng);
        let tables = spec.graph.sinks.iter().map(|_| Mutex::default()).collect();
        Arc::new(Self {
            seed,
            time: Arc::default(),
            spec,
            faults,
            mutant,
            broker: Mutex::new(Broker::new(partitions)),
            tables,
            objects: Arc::default(),
            history: Arc::default(),
            rng: Mutex::new(rng),
            calm: AtomicBool::new(false),
            trace: Mutex::new(Trace { hash: 0xcbf2_9ce4_8422_2325, lines: keep_lines.then(Vec::new) }),
            violations: Mutex::default(),
        })
    }

    pub(super) fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock().unwrap()
    }

    pub(super) fn broker(&self) -> MutexGuard<'_, Broker> {
        self.broker.lock().unwrap()
    }

    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(super) fn sleep(&self, wait: Duration) -> Sleep {
        self.time.sleep(wait)
    }

    /// A wait of `low` to `high` milliseconds.
    pub(super) fn pause(&self, low: u64, high: u64) -> Sleep {
        let wait = self.rng().millis(low, high);
        self.sleep(wait)
    }

    /// Wall time without anybody's error, microseconds since the epoch.
    pub(super) fn true_us(&self) -> i64 {
        START_US + self.time.now().as_micros() as i64
    }

    /// From now on nothing goes wrong any more.
    pub(super) fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// True when a fault of this likelihood strikes.
    pub(super) fn strikes(&self, per_mille: u64) -> bool {
        !self.is_calm() && self.rng().chance(per_mille)
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, what: std::fmt::Arguments<'_>) {
        let mut line = String::new();
        let _ = write!(line, "{:>12} {what}", self.time.now().as_micros());
        let mut trace = self.trace.lock().unwrap();
        for byte in line.bytes() {
            trace.hash = (trace.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if let Some(lines) = &mut trace.lines {
            lines.push(line);
        }
    }

    /// Something that must not happen.
    pub(super) fn violation(&self, what: String) {
        self.note(format_args!("VIOLATION {what}"));
        self.violations.lock().unwrap().push(what);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// Hash of all that happened.
    pub(super) fn trace_hash(&self) -> u64 {
        self.trace.lock().unwrap().hash
    }

    /// The lines of the trace, if they were kept.
    pub(super) fn trace_lines(&self) -> Vec<String> {
        self.trace.lock().unwrap().lines.clone().unwrap_or_default()
    }
}
