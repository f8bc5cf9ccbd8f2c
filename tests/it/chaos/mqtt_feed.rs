//! A fleet on MQTT: QoS 1, each batch sent again until the broker has acknowledged all of it, in order.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::readings;

/// Devices of the fleet.
pub(crate) const DEVICES: u64 = 40;
/// Each device sends so often.
const EVERY: Duration = Duration::from_millis(166);
/// A broker that is silent for so long is left.
const SILENCE: Duration = Duration::from_secs(20);
/// What a broker that is killed may have acknowledged and not yet saved: it saves every second.
const UNSAVED: Duration = Duration::from_secs(10);

/// Topic and payload.
type Message = (String, Vec<u8>);

/// What the fleet shares with the test.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// When the broker was last killed, if its publishers have not been told yet.
    lost: Mutex<Option<Instant>>,
}

/// The fleet while it sends.
pub(crate) struct MqttFeed {
    shared: Arc<Shared>,
    thread: JoinHandle<Sent>,
}

/// What was sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    /// Readings of each device, all acknowledged.
    pub(crate) each: u64,
    /// Messages sent more than once.
    pub(crate) again: u64,
}

impl MqttFeed {
    pub(crate) fn start(broker: SocketAddr, start_ms: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let mut fleet = Fleet { broker, link: None, shared: Arc::clone(&shared), recent: VecDeque::new(), again: 0 };
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut each = 0;
            while !fleet.shared.stop.load(Ordering::SeqCst) {
                let batch = (0..DEVICES).map(|device| (topic(device), readings::payload(start_ms, device, each))).collect();
                fleet.send(batch);
                each += 1;
                std::thread::park_timeout((began + EVERY * each as u32).saturating_duration_since(Instant::now()));
            }
            Sent { each, again: fleet.again }
        });
        Self { shared, thread }
    }

    /// The broker has been killed, and what it had not saved is lost: it is sent again, as a device does that was never told.
    pub(crate) fn broker_killed(&self, at: Instant) {
        *self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// Ends when all that was begun is acknowledged.
    pub(crate) fn finish(self) -> Sent {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        self.thread.join().expect("the fleet does not panic")
    }
}

fn topic(device: u64) -> String {
    format!("chaos/d{device}/telemetry")
}

/// Sends one message until it is acknowledged.
pub(crate) fn send_one(broker: SocketAddr, topic: &str, payload: &[u8]) {
    let mut fleet = Fleet { broker, link: None, shared: Arc::default(), recent: VecDeque::new(), again: 0 };
    fleet.send(vec![(topic.to_owned(), payload.to_vec())]);
}

struct Fleet {
    broker: SocketAddr,
    link: Option<TcpStream>,
    shared: Arc<Shared>,
    /// What was acknowledged lately.
    recent: VecDeque<(Instant, Message)>,
    again: u64,
}

impl Fleet {
    fn send(&mut self, mut pending: Vec<Message>) {
        while !pending.is_empty() {
            if let Err(_broker_is_away) = self.try_send(&mut pending) {
                // Without a connection nothing has been sent yet.
                self.again += self.link.take().map_or(0, |_| pending.len() as u64);
                std::thread::park_timeout(Duration::from_millis(100));
            }
        }
    }

    fn try_send(&mut self, pending: &mut Vec<Message>) -> io::Result<()> {
        let link = match self.link.take() {
            Some(link) => link,
            None => {
                let link = connect(self.broker)?;
                if let Some(killed) = self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner).take() {
                    let unsaved = self.recent.drain(..).filter(|(at, _)| *at + UNSAVED >= killed).map(|(_, message)| message);
                    let unsaved: Vec<Message> = unsaved.collect();
                    self.again += unsaved.len() as u64;
                    pending.splice(0..0, unsaved);
                }
                link
            }
        };
        let link = self.link.insert(link);
        // Few enough at once that neither side waits for the other to read.
        let count = pending.len().min(100);
        let mut packets = Vec::new();
        for (id, (topic, payload)) in pending.iter().take(count).enumerate() {
            write_publish(&mut packets, id as u16 + 1, topic, payload);
        }
        link.write_all(&packets)?;
        for id in 1..=count as u16 {
            let mut answer = [0; 4];
            link.read_exact(&mut answer)?;
            if answer[..2] != [0x40, 2] || answer[2..] != id.to_be_bytes() {
                return Err(io::Error::other(format!("no PUBACK of {id}: {answer:?}")));
            }
            let now = Instant::now();
            self.recent.push_back((now, pending.remove(0)));
            while self.recent.front().is_some_and(|(at, _)| *at + UNSAVED * 2 < now) {
                self.recent.pop_front();
            }
        }
        Ok(())
    }
}

/// MQTT 3.1.1, a session that ends with the connection.
fn connect(broker: SocketAddr) -> io::Result<TcpStream> {
    let mut link = TcpStream::connect_timeout(&broker, Duration::from_secs(2))?;
    link.set_read_timeout(Some(SILENCE))?;
    link.set_nodelay(true)?;
    let mut body = b"\x00\x04MQTT\x04\x02\x00\x00".to_vec();
    write_text(&mut body, &format!("fleet-{}", uuid::Uuid::new_v4().simple()));
    let mut packet = Vec::new();
    write_packet(&mut packet, 0x10, &body);
    link.write_all(&packet)?;
    let mut answer = [0; 4];
    link.read_exact(&mut answer)?;
    if answer == [0x20, 2, 0, 0] { Ok(link) } else { Err(io::Error::other(format!("not welcome: {answer:?}"))) }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn write_publish(out: &mut Vec<u8>, id: u16, topic: &str, payload: &[u8]) {
    let mut body = Vec::new();
    write_text(&mut body, topic);
    body.extend_from_slice(&id.to_be_bytes());
    body.extend_from_slice(payload);
    write_packet(out, 0x32, &body);
}

fn write_packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    let mut rest = body.len();
    loop {
        let more = rest >= 128;
        out.push((rest % 128) as u8 | if more { 128 } else { 0 });
        rest /= 128;
        if !more {
            break;
        }
    }
    out.extend_from_slice(body);
}
