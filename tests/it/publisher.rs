//! An MQTT client that publishes with QoS 1 and knows what the broker has acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use rumqttc::{Client, Event, MqttOptions, Packet, QoS};

use crate::node::eventually;

/// One message: topic and payload.
pub(crate) type Message = (String, Vec<u8>);

/// Messages on their way.
pub(crate) struct Publishing {
    total: u64,
    acknowledged: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

/// Publishes `messages` in their order, in the background. Reconnects and sends again what was not acknowledged.
pub(crate) fn publish(url: &str, messages: Vec<Message>) -> Publishing {
    let (host, port) = url.trim_start_matches("mqtt://").split_once(':').expect("mqtt://host:port");
    let mut options = MqttOptions::new(format!("it-{}", uuid::Uuid::new_v4().simple()), host, port.parse().expect("a port"));
    // With a session of its own, a broker that comes back takes up where it was.
    // The library refuses packets of more than 10 KiB unless told otherwise.
    options.set_clean_session(false).set_inflight(50).set_max_packet_size(4 << 20, 4 << 20);
    let (client, mut connection) = Client::new(options, 100);
    let total = messages.len() as u64;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&acknowledged);
    let driver = std::thread::spawn(move || {
        for event in connection.iter() {
            match event {
                Ok(Event::Incoming(Packet::PubAck(_))) if counter.fetch_add(1, Ordering::SeqCst) + 1 >= total => break,
                Ok(_) => {}
                // The broker is away: the iterator connects again when asked for the next event.
                Err(_) => std::thread::park_timeout(std::time::Duration::from_millis(50)),
            }
        }
    });
    let feeder = std::thread::spawn(move || {
        for (topic, payload) in messages {
            client.publish(topic, QoS::AtLeastOnce, false, payload).expect("the connection is driven");
        }
        // The client must outlive the last acknowledgement.
        driver.join().expect("the driver does not panic");
    });
    Publishing { total, acknowledged, threads: vec![feeder] }
}

impl Publishing {
    /// Waits until the broker has acknowledged everything.
    pub(crate) fn finish(self) {
        eventually("all publishes to be acknowledged", || (self.acknowledged.load(Ordering::SeqCst) >= self.total).then_some(()));
        self.threads.into_iter().for_each(|thread| thread.join().expect("publishing works"));
    }
}
