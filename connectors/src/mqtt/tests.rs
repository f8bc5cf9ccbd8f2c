//! The source against the real broker `mosquitto`, where it is installed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldstream_engine_api::{ConnectContext, ReceiveError, Received, Receiver, Shared, SourceBuild};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::link::{self, LinkConfig, LinkEvent};
use super::options::{Broker as Address, Protocol};
use super::{SOURCE, acks::Qos};

/// How long a test waits for what must come.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A mosquitto of our own on a free loopback port, with persistence, so that it can be stopped and started again.
pub(super) struct Broker {
    pub(super) dir: TempDir,
    pub(super) port: u16,
    child: Child,
    security: String,
}

fn mosquitto() -> Option<PathBuf> {
    let found =
        ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"].map(PathBuf::from).into_iter().find(|p| p.exists());
    if found.is_none() {
        eprintln!("SKIPPED: mosquitto is not installed, the MQTT tests against a real broker did not run");
    }
    found
}

fn spawn(binary: &Path, dir: &Path, port: u16, security: &str) -> Child {
    let config = format!(
        "listener {port} 127.0.0.1\n{security}\npersistence true\npersistence_location {}/\nmax_inflight_messages 100\n\
         max_queued_messages 0\nset_tcp_nodelay true\n",
        dir.display()
    );
    let file = dir.join("mosquitto.conf");
    std::fs::write(&file, config).expect("configuration is written");
    let mut command = Command::new(binary);
    command.arg("-c").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().expect("mosquitto starts");
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "mosquitto does not listen");
        std::thread::yield_now();
    }
    child
}

impl Broker {
    pub(super) fn start() -> Option<Self> {
        Self::start_with(tempfile::tempdir().expect("a directory"), "allow_anonymous true".into())
    }

    /// A broker with its files in `dir` and these lines on security in its configuration.
    pub(super) fn start_with(dir: TempDir, security: String) -> Option<Self> {
        let binary = mosquitto()?;
        // mosquitto gives up root before it reads and writes its database.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path(), open).expect("permissions are set");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
        let child = spawn(&binary, dir.path(), port, &security);
        Some(Self { dir, port, child, security })
    }

    /// Stops the broker as an operator would: it saves its sessions.
    pub(super) fn stop(&mut self) {
        let pid = self.child.id().to_string();
        let stopped = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(stopped.success());
        self.child.wait().expect("mosquitto ends");
    }

    pub(super) fn start_again(&mut self) {
        let binary = mosquitto().expect("it was there before");
        self.child = spawn(&binary, self.dir.path(), self.port, &self.security);
    }

    pub(super) fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("mosquitto was gone already: {error}");
        }
    }
}

pub(super) fn context() -> ConnectContext {
    ConnectContext { pipeline: Arc::from("p"), node: Arc::from("n"), data_dir: PathBuf::new(), resume: false, shared: Shared::default() }
}

pub(super) fn receiver(options: &Value) -> Box<dyn Receiver> {
    let SourceBuild::Receiver(build) = SOURCE.build else { panic!("mqtt is a receiver") };
    (SOURCE.check)(options).expect("options are good");
    build(options, &context()).expect("options are good")
}

fn options(broker: &Broker, protocol: &str, qos: u8) -> Value {
    json!({ "url": broker.url(), "protocol": protocol, "client_id": format!("source-{protocol}-{qos}"), "topics": ["devices/+/telemetry"], "qos": qos })
}

/// A plain client that publishes, with every message settled by the broker before it returns.
async fn publish(broker: &Broker, messages: &[(&str, &str)], qos: Qos) {
    let config = LinkConfig {
        broker: Address { host: "127.0.0.1".into(), port: broker.port, tls: false },
        protocol: Protocol::V311,
        credentials: None,
        client_id: format!("publisher-{}", uuid::Uuid::new_v4()),
        clean_session: true,
        keep_alive: Duration::from_secs(30),
        session_expiry: Duration::ZERO,
        receive_maximum: 100,
        inflight: 10,
        tls: None,
    };
    let (client, mut link) = link::open(&config, false);
    for (topic, payload) in messages {
        assert!(client.publish((*topic).to_owned(), qos, false, payload.as_bytes().to_vec(), "").await);
    }
    let mut settled = 0;
    while settled < messages.len() {
        if let LinkEvent::Settled = link.poll().await.expect("the broker is there") {
            settled += 1;
        }
    }
}

pub(super) async fn next(receiver: &mut Box<dyn Receiver>) -> Received {
    tokio::time::timeout(PATIENCE, receiver.next()).await.expect("messages come").expect("no error").expect("no end")
}

/// Receives `count` messages: their payloads, and the handles of their blocks.
async fn receive(receiver: &mut Box<dyn Receiver>, count: usize) -> (Vec<String>, Vec<u64>) {
    let (mut payloads, mut handles) = (Vec::new(), Vec::new());
    while payloads.len() < count {
        let received = next(receiver).await;
        let block = received.block;
        assert_eq!(block.topics.as_ref().map(Vec::len), Some(block.entries.len()));
        payloads.extend((0..block.entries.len()).map(|i| String::from_utf8_lossy(block.payload(i)).into_owned()));
        handles.push(received.handle);
    }
    (payloads, handles)
}

/// Waits until the source has its subscription: a marker that is published again and again arrives.
async fn subscribed(broker: &Broker, receiver: &mut Box<dyn Receiver>) {
    subscribed_to(broker, receiver, "devices/x/telemetry").await;
}

/// The same with a topic of the source's.
pub(super) async fn subscribed_to(broker: &Broker, receiver: &mut Box<dyn Receiver>, topic: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the source does not subscribe");
        publish(broker, &[(topic, "marker")], Qos::AtLeast).await;
        if let Ok(received) = tokio::time::timeout(Duration::from_millis(100), receiver.next()).await {
            let handle = received.expect("no error").expect("no end").handle;
            receiver.acknowledge(handle).await.expect("acknowledged");
            break;
        }
    }
    // Markers that are still on their way.
    while let Ok(received) = tokio::time::timeout(Duration::from_millis(200), receiver.next()).await {
        let handle = received.expect("no error").expect("no end").handle;
        receiver.acknowledge(handle).await.expect("acknowledged");
    }
}

fn numbers(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|n| n.to_string()).collect()
}

async fn publish_numbers(broker: &Broker, from: usize, to: usize) {
    publish_with(broker, from, to, Qos::AtLeast).await;
}

async fn publish_with(broker: &Broker, from: usize, to: usize, qos: Qos) {
    let payloads = numbers(from, to);
    let messages: Vec<(&str, &str)> = payloads.iter().map(|p| ("devices/pump-17/telemetry", p.as_str())).collect();
    publish(broker, &messages, qos).await;
}

/// What was not acknowledged comes again after the source was replaced; what was acknowledged does not.
async fn redelivery(protocol: &str, qos: u8) {
    let Some(broker) = Broker::start() else { return };
    let options = options(&broker, protocol, qos);
    let mut first = receiver(&options);
    subscribed(&broker, &mut first).await;
    publish_numbers(&broker, 0, 10).await;
    let (payloads, handles) = receive(&mut first, 10).await;
    assert_eq!(payloads, numbers(0, 10));
    for handle in handles {
        first.acknowledge(handle).await.expect("acknowledged");
    }
    publish_numbers(&broker, 10, 20).await;
    let (payloads, _) = receive(&mut first, 10).await;
    assert_eq!(payloads, numbers(10, 20));
    // A round trip through the broker behind the acknowledgements: they have been sent.
    publish(&broker, &[("other", "x")], Qos::AtLeast).await;
    drop(first);

    let mut second = receiver(&options);
    publish_numbers(&broker, 20, 25).await;
    let (payloads, handles) = receive(&mut second, 15).await;
    assert_eq!(payloads, numbers(10, 25), "unacknowledged first, in order, then what came while nobody listened");
    for handle in handles {
        second.acknowledge(handle).await.expect("acknowledged");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unacknowledged_messages_come_again_qos_1() {
    redelivery("3.1.1", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unacknowledged_messages_come_again_qos_1_mqtt_5() {
    redelivery("5", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_restarts_loses_nothing() {
    let Some(mut broker) = Broker::start() else { return };
    let mut source = receiver(&options(&broker, "3.1.1", 1));
    subscribed(&broker, &mut source).await;
    publish_numbers(&broker, 0, 50).await;
    let (payloads, stale) = receive(&mut source, 50).await;
    assert_eq!(payloads, numbers(0, 50));
    broker.stop();
    broker.start_again();
    publish_numbers(&broker, 50, 60).await;
    let (payloads, fresh) = receive(&mut source, 60).await;
    assert_eq!(payloads, numbers(0, 60), "the old ones again, in order, then the new ones");
    // Acknowledging what came by the old connection must not touch what came again by the new one.
    for handle in stale {
        source.acknowledge(handle).await.expect("ignored");
    }
    publish_numbers(&broker, 60, 61).await;
    receive(&mut source, 1).await;
    drop(source);
    let mut source = receiver(&options(&broker, "3.1.1", 1));
    let (payloads, handles) = receive(&mut source, 61).await;
    assert_eq!(payloads, numbers(0, 61), "no stale acknowledgement was sent");
    assert!(!fresh.is_empty());
    for handle in handles {
        source.acknowledge(handle).await.expect("acknowledged");
    }
}

/// QoS 2 with a session: messages that are durable but not released survive a restart of the broker and of the source.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_2_survives_restarts() {
    for protocol in ["3.1.1", "5"] {
        let Some(mut broker) = Broker::start() else { return };
        let mut source = receiver(&options(&broker, protocol, 2));
        subscribed(&broker, &mut source).await;
        publish_with(&broker, 0, 20, Qos::Exactly).await;
        let (payloads, handles) = receive(&mut source, 20).await;
        assert_eq!(payloads, numbers(0, 20));
        source.acknowledge(handles[0]).await.expect("acknowledged");
        broker.stop();
        broker.start_again();
        publish_with(&broker, 20, 30, Qos::Exactly).await;
        let mut seen = std::collections::BTreeSet::<usize>::new();
        while !(20..30).all(|n: usize| seen.contains(&n)) {
            let received = next(&mut source).await;
            seen.extend(
                (0..received.block.entries.len())
                    .filter_map(|i| std::str::from_utf8(received.block.payload(i)).ok()?.parse::<usize>().ok()),
            );
            source.acknowledge(received.handle).await.expect("acknowledged");
        }
        drop(source);
        let mut source = receiver(&options(&broker, protocol, 2));
        publish_with(&broker, 30, 31, Qos::Exactly).await;
        loop {
            let received = next(&mut source).await;
            let last = received.block.payload(received.block.entries.len() - 1).to_vec();
            source.acknowledge(received.handle).await.expect("acknowledged");
            if last == b"30" {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_connections_with_one_client_id_are_refused_at_once() {
    let Some(broker) = Broker::start() else { return };
    let options = options(&broker, "3.1.1", 1);
    let mut first = receiver(&options);
    subscribed(&broker, &mut first).await;
    let mut second = receiver(&options);
    let error = second.next().await.expect_err("the id is taken");
    assert!(matches!(&error, ReceiveError::Fatal { cause, .. } if cause.contains("client_id")), "{error}");
}

#[test]
fn wrong_options_are_all_found_at_once() {
    let wrong = json!({ "url": "http://u:secret@host", "topics": ["a/#/b"], "qos": 3, "keep_alive": "1s", "tls": { "cert": "c.pem" } });
    let errors = (SOURCE.check)(&wrong).expect_err("wrong");
    let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(paths, ["/url", "/qos", "/keep_alive", "/tls", "/topics/0"]);
    assert!(!errors.iter().any(|e| e.to_string().contains("secret")), "no secret in an error");

    let errors = (SOURCE.check)(&json!({ "url": "mqtt://h", "topic": ["a"] })).expect_err("unknown field");
    assert!(errors[0].message.contains("unknown field `topic`"), "{}", errors[0].message);

    let good =
        json!({ "url": "mqtts://h:8884", "topics": ["$share/g/devices/+/t"], "protocol": 5, "password": "x", "session_expiry": "1h" });
    assert_eq!((SOURCE.check)(&good), Ok(()));
    let schema = (SOURCE.schema)();
    assert_eq!(schema["properties"]["protocol"]["enum"], json!(["3.1.1", "5", 5]));
    assert_eq!(schema["required"], json!(["url", "topics"]));
}
