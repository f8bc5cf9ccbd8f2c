//! What is simulated: the pipeline, its settings of a seed, and the devices that send.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fieldstream_engine_api::{Emitter, KeyedBatch, KeyedState, Operator, Output, SlotDirectory, Space, Tick};
use fieldstream_pipelines::{Catalogue, Environment, build, load_text};
use fieldstream_runtime::spec::{CheckpointSpec, Gather, PipelineSpec, TurnLimits};
use fieldstream_schemas::Readings;
use fieldstream_schemas::time::format_rfc3339;

use super::broker::Record;
use super::rng::Rng;
use super::world::World;

/// A row of this value makes an operator panic.
const POISON: f64 = 77.125;
/// The operator that panics.
const VICTIM: &str = "once";
/// What the panic says.
pub(super) const PANIC: &str = "simulated poison";
/// Name of the sink that keeps no mark.
const HOOK: &str = "hook";

const PIPELINE: &str = r#"
version: 1
pipeline: simulated
time: { out_of_orderness: 2s, allowed_lateness: 4s, idle_after: 12s, max_future: 30s }
sources:
  readings: { mqtt: { url: "mqtt://localhost:1", topics: [a] }, decode: { format: json } }
operators:
  valid:
    inputs: [readings]
    validate:
      rules:
        - { id: range, range: { min: -50, max: 150 } }
        - { id: stuck, stuck: { count: 4 }, otherwise: { quality: uncertain } }
  once: { inputs: [valid], dedupe: { by: [sensor_id, ts, value], last: 32 } }
  windows:
    inputs: [once]
    window: { tumbling: 10s, by: series, aggregate: { n: { count: "*" }, low: { min: value }, mean: { mean: value } } }
  odd: { inputs: [once], detect: { ewma: { warmup: 4, z: 3 } } }
  high: { inputs: [once], detect: { threshold: { above: 90, deadband: 5 }, on_delay: 1s } }
  silent: { inputs: [once], detect: { gap: { after: 15s } } }
sinks:
  kept: { inputs: [once], blackhole: }
  counted: { inputs: [windows, windows.revised, windows.late], blackhole: }
  alerts: { inputs: [odd, high, silent], blackhole: }
  hook: { inputs: [odd, high, silent], blackhole: }
dead_letter: { blackhole: }
"#;

/// The pipeline as the planner makes it of the YAML; one operator panics at rows of one value.
fn planned() -> &'static PipelineSpec {
    static PLANNED: OnceLock<PipelineSpec> = OnceLock::new();
    PLANNED.get_or_init(|| {
        let loaded = load_text("simulated.yaml", PIPELINE, &Environment::default(), &Catalogue::built_in());
        let mut spec = match loaded.into_result() {
            Ok((plan, _)) => build::spec(&plan),
            Err(problems) => panic!("{problems:?}"),
        };
        for operator in spec.graph.operators.iter_mut().filter(|o| &*o.name == VICTIM) {
            let factory = Arc::clone(&operator.factory);
            operator.factory = Arc::new(move |context| Ok(Box::new(Poisonable(factory(context)?))));
        }
        spec
    })
}

/// The pipeline with sizes and intervals of its own.
pub(super) fn spec(rng: &mut Rng) -> PipelineSpec {
    let mut spec = planned().clone();
    for sink in &mut spec.graph.sinks {
        sink.gather = Gather { max_rows: rng.between(1, 30) as usize, max_bytes: 1 << 20, max_wait: rng.millis(0, 2_000) };
    }
    spec.checkpoint = CheckpointSpec { interval: rng.millis(1_500, 12_000), keep: rng.between(1, 3) as usize };
    spec.turn = TurnLimits { min_rows: rng.between(1, 4) as usize, max_wait: rng.millis(0, 400), max_rows: rng.between(4, 40) as usize };
    spec
}

/// True for the sink that keeps no mark.
pub(super) fn is_hook(spec: &PipelineSpec, sink: usize) -> bool {
    &*spec.graph.sinks[sink].name == HOOK
}

/// An operator that panics at poison and is otherwise the one inside.
struct Poisonable(Box<dyn Operator>);

impl Operator for Poisonable {
    fn space(&self) -> Space {
        self.0.space()
    }

    fn outputs(&self) -> &[Output] {
        self.0.outputs()
    }

    fn on_batch(&mut self, batch: &KeyedBatch, slots: &SlotDirectory, out: &mut Emitter) {
        let poisoned = Readings::new(&batch.rows).is_some_and(|readings| readings.value.iter().flatten().any(|value| value == POISON));
        assert!(!poisoned, "{PANIC}");
        self.0.on_batch(batch, slots, out);
    }

    fn on_tick(&mut self, tick: &Tick, devices: &[u32], slots: &SlotDirectory, out: &mut Emitter) {
        self.0.on_tick(tick, devices, slots, out);
    }

    fn pending(&self, device: u32, slots: &SlotDirectory) -> bool {
        self.0.pending(device, slots)
    }

    fn reject_codes(&self) -> Vec<Arc<str>> {
        self.0.reject_codes()
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        self.0.states()
    }
}

/// True for a payload that makes the victim panic.
pub(super) fn is_poison(payload: &[u8]) -> bool {
    String::from_utf8_lossy(payload).contains(&format!(r#""value":{POISON},"#))
}

/// Devices send until they have sent all; then the log is closed.
pub(super) async fn send_readings(world: Arc<World>) {
    let (count, devices, poison) = {
        let mut rng = world.rng();
        (rng.between(60, 110), rng.between(2, 6), if rng.chance(500) { 15 } else { 0 })
    };
    for _ in 0..count {
        let wait = {
            let mut rng = world.rng();
            if rng.chance(30) { rng.millis(3_000, 25_000) } else { rng.millis(0, 700) }
        };
        world.sleep(wait).await;
        let mut rng = world.rng();
        let device = rng.below(devices);
        let now_us = world.true_us();
        let data = payload(&mut rng, device, now_us, poison);
        // The broker's clock is not perfect either.
        let append_us = now_us - if rng.chance(50) { rng.between(0, 3_000_000) as i64 } else { 0 };
        let times = if rng.chance(80) { 2 } else { 1 };
        drop(rng);
        let mut broker = world.broker();
        let partition = device as u32 % broker.partitions();
        for _ in 0..times {
            broker.append(partition, Record { append_us, data: data.clone() });
        }
    }
    world.pause(0, 20_000).await;
    world.note(format_args!("the log is closed"));
    world.broker().close();
}

fn payload(rng: &mut Rng, device: u64, now_us: i64, poison: u64) -> Vec<u8> {
    if rng.chance(15) {
        return format!("garbage of device {device}").into_bytes();
    }
    let late = if rng.chance(60) { rng.millis(4_000, 30_000) } else { rng.millis(0, 2_500) };
    let ahead = if rng.chance(10) { Duration::from_secs(60) } else { Duration::ZERO };
    let ts = now_us - late.as_micros() as i64 + ahead.as_micros() as i64;
    let value = match rng.below(1000) {
        n if n < poison => POISON,
        n if n < 60 => 400.0,
        n if n < 160 => 95.0,
        n if n < 200 => 60.0,
        n if n < 240 => 20.0,
        _ => 20.0 + rng.below(300) as f64 / 100.0,
    };
    let (sensor, ts) = (rng.below(2), format_rfc3339(ts));
    format!(r#"{{"deviceId":"d{device}","sensorId":"s{sensor}","sensorType":"t","timestamp":"{ts}","value":{value},"quality":0.9}}"#)
        .into_bytes()
}
