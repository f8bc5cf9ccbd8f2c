//! The fleet as MQTT clients see it: one connection that publishes every device's telemetry with QoS 1.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fieldstream_connectors::generator::Sample;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use tokio::task::JoinHandle;

/// How far publishing may run ahead of the pipeline, in readings: a few megabytes, a small part of what the broker keeps.
pub(super) const LEAD_READINGS: u64 = 20_000;

/// Messages waiting for their acknowledgement at most.
const INFLIGHT: u16 = 100;
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(50);
const MAX_PACKET: usize = 1 << 20;

/// Publishes telemetry and counts acknowledgements.
pub(super) struct Publisher {
    client: AsyncClient,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
    /// Messages handed to the client.
    pub(super) messages: u64,
    /// Readings in them.
    pub(super) readings: u64,
    payload: String,
}

#[derive(Debug, Default)]
struct Shared {
    acknowledged: AtomicU64,
    connected: AtomicBool,
    broken: AtomicBool,
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Publisher {
    /// Connects; waits until the broker, which may just be starting, has accepted.
    ///
    /// # Errors
    /// If the broker does not answer in time.
    pub(super) async fn connect(broker: SocketAddr) -> Result<Self> {
        let mut options = MqttOptions::new("fieldstream-demo-fleet", broker.ip().to_string(), broker.port());
        options.set_inflight(INFLIGHT);
        options.set_max_packet_size(MAX_PACKET, MAX_PACKET);
        options.set_keep_alive(Duration::from_secs(60));
        let (client, connection) = AsyncClient::new(options, usize::from(INFLIGHT));
        let shared = Arc::<Shared>::default();
        let task = tokio::spawn(drive(connection, Arc::clone(&shared)));
        let publisher = Self { client, shared, task, messages: 0, readings: 0, payload: String::new() };
        let connected = async {
            while !publisher.shared.connected.load(Ordering::Acquire) {
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::time::timeout(CONNECT_DEADLINE, connected).await.context("the demo's MQTT broker does not answer")?;
        Ok(publisher)
    }

    /// Publishes the readings of one device as one message: a JSON array.
    ///
    /// # Errors
    /// If the connection is gone.
    pub(super) async fn publish(&mut self, samples: &[Sample]) -> Result<()> {
        let Some(first) = samples.first() else { return Ok(()) };
        self.payload.clear();
        for sample in samples {
            self.payload.push(if self.payload.is_empty() { '[' } else { ',' });
            sample.write_json(&mut self.payload);
        }
        self.payload.push(']');
        self.check()?;
        self.client.publish(&*first.topic, QoS::AtLeastOnce, false, self.payload.as_bytes()).await.context("publish telemetry")?;
        self.messages += 1;
        self.readings += samples.len() as u64;
        Ok(())
    }

    /// True when the broker has acknowledged every message.
    pub(super) fn all_acknowledged(&self) -> bool {
        self.shared.acknowledged.load(Ordering::Acquire) >= self.messages
    }

    /// # Errors
    /// If the connection is gone: what was lost with it cannot be told, so the demo would count wrong.
    pub(super) fn check(&self) -> Result<()> {
        if self.shared.broken.load(Ordering::Acquire) {
            bail!("the fleet lost its connection to the demo's MQTT broker");
        }
        Ok(())
    }
}

/// Drives the connection. Until the first success the broker may still be starting; after that an error is the end.
async fn drive(mut connection: EventLoop, shared: Arc<Shared>) {
    loop {
        match connection.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => shared.connected.store(true, Ordering::Release),
            Ok(Event::Incoming(Packet::PubAck(_))) => drop(shared.acknowledged.fetch_add(1, Ordering::AcqRel)),
            Ok(_) => {}
            Err(_) if !shared.connected.load(Ordering::Acquire) => tokio::time::sleep(RETRY).await,
            Err(error) => {
                tracing::error!("the fleet's connection: {error}");
                shared.broken.store(true, Ordering::Release);
                return;
            }
        }
    }
}

/// The readings of one beat, cut where the device changes.
pub(super) fn by_device(samples: &[Sample]) -> impl Iterator<Item = &[Sample]> {
    samples.chunk_by(|a, b| Arc::ptr_eq(&a.device, &b.device))
}

/// A duration as people say it: `12 h`, `90 s`.
pub(super) fn spoken(us: i64) -> String {
    let mut out = String::new();
    let seconds = us / 1_000_000;
    // Writing to a String cannot fail.
    let _ = match seconds {
        s if s >= 3_600 => write!(out, "{:.1} h", s as f64 / 3_600.0),
        s if s >= 60 => write!(out, "{} min", s / 60),
        s => write!(out, "{s} s"),
    };
    out
}
