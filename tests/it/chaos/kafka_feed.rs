//! A fleet on Kafka: an idempotent producer that gives no record up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};

use super::readings;
use crate::node::PATIENCE;

/// Devices of the fleet.
pub(crate) const DEVICES: u64 = 60;
/// Each device sends so often.
const EVERY: Duration = Duration::from_millis(200);

/// Counts what the broker has said.
#[derive(Default)]
struct Deliveries {
    good: AtomicU64,
    failed: AtomicU64,
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let count = if result.is_ok() { &self.good } else { &self.failed };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

/// The fleet while it sends.
pub(crate) struct KafkaFeed {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl KafkaFeed {
    pub(crate) fn start(brokers: &str, topic: &'static str, start_ms: u64) -> Self {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("partitioner", "murmur2_random").set("enable.idempotence", "true");
        config.set("linger.ms", "5").set("message.timeout.ms", "0").set("reconnect.backoff.max.ms", "500");
        let producer: ThreadedProducer<Deliveries> = config.create_with_context(Deliveries::default()).expect("a producer");
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut each = 0;
            while !told.load(Ordering::SeqCst) {
                for device in 0..DEVICES {
                    send(&producer, topic, &format!("d{device}"), &readings::payload(start_ms, device, each));
                }
                each += 1;
                std::thread::park_timeout((began + EVERY * each as u32).saturating_duration_since(Instant::now()));
            }
            producer.flush(PATIENCE).expect("all records are acknowledged");
            let (good, failed) = (producer.context().good.load(Ordering::SeqCst), producer.context().failed.load(Ordering::SeqCst));
            assert_eq!((good, failed), (each * DEVICES, 0), "records acknowledged and given up");
            each
        });
        Self { stop, thread }
    }

    /// Ends when all is acknowledged; gives the number of readings of each device.
    pub(crate) fn finish(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        self.thread.join().expect("every record is acknowledged")
    }
}

fn send(producer: &ThreadedProducer<Deliveries>, topic: &str, key: &str, payload: &[u8]) {
    let mut record = BaseRecord::to(topic).key(key).payload(payload);
    // A full queue waits for the broker.
    while let Err((_, back)) = producer.send(record) {
        record = back;
        std::thread::park_timeout(Duration::from_millis(50));
    }
}
