//! The MQTT source: a task drives the connection, an inbox keeps what came until the engine takes it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use fieldstream_engine_api::{ReceiveError, Received, Receiver};
use fieldstream_schemas::{PayloadBlock, PayloadEntry};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::acks::{Ack, AckBook, Arrival, Qos};
use super::backoff::Backoff;
use super::link::{self, Client, Link, LinkConfig, LinkEvent, Publish};
use super::session::ClientIdGuard;

/// Most messages of one block.
const BLOCK_MESSAGES: usize = 1024;
/// A block is closed when it holds so many bytes.
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes that may wait in the inbox before the connection is left alone. With MQTT's own window full (QoS 1 and 2) it is
/// never reached by small messages; a connection left alone for longer than its keep-alive is closed by the broker, which
/// sends again.
const INBOX_BYTES: usize = 32 << 20;
/// A connection that lived so long was a good one.
const LASTING: Duration = Duration::from_secs(10);
/// What a message costs in the inbox beside its payload.
const MESSAGE_BYTES: usize = 96;
/// Topics whose text is shared; beyond it the table starts again.
const TOPICS: usize = 16_384;

/// A message that waits in the inbox.
#[derive(Debug)]
struct Message {
    topic: Arc<str>,
    payload: Bytes,
    ack: Ack,
    generation: u64,
    received_us: i64,
}

#[derive(Debug, Default)]
struct Inbox {
    messages: VecDeque<Message>,
    bytes: usize,
    book: AckBook,
    topics: HashMap<Bytes, Arc<str>>,
    /// Set once: why the connection's task gave up.
    failed: Option<(String, String)>,
}

#[derive(Debug, Default)]
struct Shared {
    inbox: Mutex<Inbox>,
    arrived: Notify,
    taken: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Nothing panics while it holds the lock, and a half-made change would only be a message more or less to ask for again.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the source subscribes to.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub(crate) topics: Vec<String>,
    pub(crate) qos: Qos,
}

/// The MQTT source.
pub(crate) struct MqttReceiver {
    config: LinkConfig,
    subscription: Subscription,
    shared: Arc<Shared>,
    running: Option<Running>,
}

struct Running {
    client: Client,
    task: JoinHandle<()>,
    _client_id: ClientIdGuard,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl MqttReceiver {
    /// A source that connects when it is first used.
    pub(crate) fn new(config: LinkConfig, subscription: Subscription) -> Self {
        Self { config, subscription, shared: Arc::default(), running: None }
    }

    fn start(&mut self) -> Result<(), ReceiveError> {
        let context = || format!("connect to MQTT broker {}", self.config.broker.address());
        let guard = ClientIdGuard::take(&self.config.broker, &self.config.client_id)
            .map_err(|cause| ReceiveError::Fatal { context: context(), cause })?;
        let (client, link) = link::open(&self.config, true);
        let driver = Driver {
            client: client.clone(),
            link,
            broker: self.config.broker.address(),
            subscription: self.subscription.clone(),
            shared: Arc::clone(&self.shared),
            subscribed: false,
            ever_connected: false,
        };
        self.running = Some(Running { client, task: tokio::spawn(driver.run()), _client_id: guard });
        Ok(())
    }
}

#[async_trait]
impl Receiver for MqttReceiver {
    async fn next(&mut self) -> Result<Option<Received>, ReceiveError> {
        if self.running.is_none() {
            self.start()?;
        }
        loop {
            let arrived = self.shared.arrived.notified();
            {
                let mut inbox = self.shared.lock();
                if let Some(received) = take_block(&mut inbox) {
                    self.shared.taken.notify_one();
                    return Ok(Some(received));
                }
                if let Some((context, cause)) = inbox.failed.clone() {
                    return Err(ReceiveError::Fatal { context, cause });
                }
            }
            arrived.await;
        }
    }

    async fn acknowledge(&mut self, handle: u64) -> Result<(), ReceiveError> {
        let Some(running) = &self.running else { return Ok(()) };
        // The lock is held while the requests go out: between two connections the driver empties the channel under the same
        // lock, so that no acknowledgement of the old connection can slip into the new one.
        let mut inbox = self.shared.lock();
        for ack in inbox.book.durable(handle) {
            if !running.client.acknowledge(ack) {
                tracing::warn!(packet = ack.packet, "an acknowledgement found no connection; the broker will send again");
                break;
            }
        }
        Ok(())
    }
}

/// Takes what is ready, of one connection, up to the limits of a block.
fn take_block(inbox: &mut Inbox) -> Option<Received> {
    let generation = inbox.messages.front()?.generation;
    let mut data = Vec::new();
    let mut entries = Vec::new();
    let mut topics = Vec::new();
    let mut acks = Vec::new();
    while let Some(message) = inbox.messages.front() {
        let full = entries.len() == BLOCK_MESSAGES || (!data.is_empty() && data.len() + message.payload.len() > BLOCK_BYTES);
        if full || message.generation != generation {
            break;
        }
        let Some(message) = inbox.messages.pop_front() else { break };
        inbox.bytes -= message.payload.len() + MESSAGE_BYTES;
        // Payloads are at most 256 MiB (the protocol's limit), so that positions in a block fit.
        entries.push(PayloadEntry {
            offset: entries.len() as u64,
            start: data.len() as u32,
            len: message.payload.len() as u32,
            ingest_us: Some(message.received_us),
        });
        data.extend_from_slice(&message.payload);
        topics.push(message.topic);
        acks.push(message.ack);
    }
    let handle = inbox.book.passed_on(generation, acks);
    let block = PayloadBlock { data: Bytes::from(data), entries, topics: Some(topics), ..PayloadBlock::default() };
    Some(Received { block, handle })
}

/// Drives the connection and reconnects. Owns the library's event loop, which must not be dropped half-way through a poll.
struct Driver {
    client: Client,
    link: Link,
    broker: String,
    subscription: Subscription,
    shared: Arc<Shared>,
    subscribed: bool,
    ever_connected: bool,
}

impl Driver {
    async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        let mut last_cause = String::new();
        let mut connected_at: Option<Instant> = None;
        loop {
            wait_for_room(&self.shared).await;
            match self.link.poll().await {
                Ok(LinkEvent::Connected { session_present }) => {
                    tracing::info!(broker = %self.broker, session_present, "connected to the MQTT broker");
                    connected_at = Some(Instant::now());
                    last_cause.clear();
                    self.connected(session_present);
                }
                Ok(event) => {
                    if let Err((context, cause)) = self.handle(event) {
                        return self.give_up(context, cause);
                    }
                }
                Err(error) => {
                    self.disconnected();
                    if error.refused && !self.ever_connected {
                        return self.give_up(format!("connect to MQTT broker {}", self.broker), error.cause);
                    }
                    if error.cause != last_cause {
                        tracing::warn!(broker = %self.broker, cause = %error.cause, "MQTT broker not connected; trying again");
                        last_cause = error.cause;
                    }
                    // A connection that does not last (two clients with one id, say) is no reason to hurry.
                    if connected_at.take().is_some_and(|at| at.elapsed() > LASTING) {
                        backoff.reset();
                    }
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    fn give_up(&self, context: String, cause: String) {
        self.shared.lock().failed = Some((context, cause));
        self.shared.arrived.notify_one();
    }

    fn connected(&mut self, session_present: bool) {
        self.ever_connected = true;
        {
            let mut inbox = self.shared.lock();
            inbox.book.connected(session_present);
            if session_present {
                forget_unread(&mut inbox);
            }
        }
        if session_present && self.subscription.qos == Qos::Exactly {
            self.link.welcome_releases();
        }
        // The first time the filters may be new even to an old session.
        if (!session_present || !self.subscribed) && !self.client.subscribe(&self.subscription.topics, self.subscription.qos) {
            tracing::error!(broker = %self.broker, "the subscription found no connection");
        }
    }

    fn handle(&mut self, event: LinkEvent) -> Result<(), (String, String)> {
        match event {
            LinkEvent::Publish(publish) => self.arrived(publish),
            LinkEvent::Released(packet) => self.shared.lock().book.released(packet),
            LinkEvent::Granted(grants) => {
                for (topic, grant) in self.subscription.topics.iter().zip(grants) {
                    let context = || format!("subscribe to {topic} at MQTT broker {}", self.broker);
                    let granted = grant.map_err(|cause| (context(), cause))?;
                    if granted < self.subscription.qos {
                        tracing::warn!(%topic, ?granted, "the MQTT broker grants less than was asked for");
                    }
                }
                self.subscribed = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn arrived(&self, publish: Publish) {
        let mut inbox = self.shared.lock();
        if let Arrival::Answer(ack) = inbox.book.arrived(publish.ack, publish.again) {
            if !self.client.acknowledge(ack) {
                tracing::debug!(packet = ack.packet, "an answer found no connection");
            }
            return;
        }
        let topic = shared_topic(&mut inbox.topics, &publish.topic);
        let generation = inbox.book.generation();
        inbox.bytes += publish.payload.len() + MESSAGE_BYTES;
        inbox.messages.push_back(Message { topic, payload: publish.payload, ack: publish.ack, generation, received_us: now_us() });
        drop(inbox);
        self.shared.arrived.notify_one();
    }

    fn disconnected(&mut self) {
        for event in self.link.leftover() {
            // What had come by the old connection is passed on; only its acknowledgement is void. QoS 0 is not sent again.
            if let LinkEvent::Publish(publish) = event
                && publish.ack.qos == Qos::AtMost
            {
                self.arrived(publish);
            }
        }
        let mut inbox = self.shared.lock();
        self.link.forget_requests();
        inbox.book.disconnected();
    }
}

async fn wait_for_room(shared: &Shared) {
    loop {
        let taken = shared.taken.notified();
        if shared.lock().bytes < INBOX_BYTES {
            return;
        }
        taken.await;
    }
}

/// Drops what came by an older connection, was taken by nobody yet, and is sent again by the broker that kept the session.
fn forget_unread(inbox: &mut Inbox) {
    let generation = inbox.book.generation();
    inbox.messages.retain(|message| message.ack.qos == Qos::AtMost || message.generation == generation);
    inbox.bytes = inbox.messages.iter().map(|m| m.payload.len() + MESSAGE_BYTES).sum();
}

fn shared_topic(topics: &mut HashMap<Bytes, Arc<str>>, topic: &Bytes) -> Arc<str> {
    if let Some(text) = topics.get(topic) {
        return Arc::clone(text);
    }
    if topics.len() >= TOPICS {
        topics.clear();
    }
    let text: Arc<str> = Arc::from(String::from_utf8_lossy(topic));
    // A copy: the bytes share the buffer of the whole packet, which would be kept alive.
    topics.insert(Bytes::copy_from_slice(topic), Arc::clone(&text));
    text
}

/// Receive time. The journal decides what is recorded.
fn now_us() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}
