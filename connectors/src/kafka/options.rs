//! Options of the Kafka source and sink, and the client configuration made of them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use fieldstream_engine_api::{ConfigError, ConfigErrors, ConnectContext};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{IsError, KafkaError};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use crate::options::duration;
use crate::secret::Secret;

/// Properties of the client library that are ours to set, and what to write instead.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "brokers"),
    ("metadata.broker.list", "brokers"),
    ("group.id", "group"),
    ("group.instance.id", "instance"),
    ("group.protocol", ""),
    ("partition.assignment.strategy", ""),
    ("auto.offset.reset", "start"),
    ("enable.auto.commit", ""),
    ("enable.auto.offset.store", ""),
    ("enable.partition.eof", ""),
    ("enable.idempotence", ""),
    ("transactional.id", ""),
    ("transaction.timeout.ms", "timeout"),
    ("isolation.level", ""),
    ("acks", ""),
    ("request.required.acks", ""),
    ("partitioner", ""),
    ("delivery.timeout.ms", "timeout"),
    ("message.timeout.ms", "timeout"),
    ("linger.ms", "linger"),
    ("queue.buffering.max.ms", "linger"),
    ("compression.type", "compression"),
    ("compression.codec", "compression"),
    ("security.protocol", "security: {protocol: ...}"),
    ("sasl.mechanism", "security: {mechanism: ...}"),
    ("sasl.mechanisms", "security: {mechanism: ...}"),
    ("sasl.username", "security: {username: ...}"),
    ("sasl.password", "security: {password: ...}"),
    ("ssl.ca.location", "security: {ca: ...}"),
    ("ssl.certificate.location", "security: {cert: ...}"),
    ("ssl.key.location", "security: {key: ...}"),
    ("ssl.key.password", "security: {key_password: ...}"),
];

/// How the connection is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecurityProtocol {
    /// Neither encrypted nor authenticated.
    Plaintext,
    /// TLS.
    Ssl,
    /// User name and password without TLS.
    SaslPlaintext,
    /// User name and password over TLS.
    SaslSsl,
}

/// How user name and password are proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Mechanism {
    /// As they are; use it over TLS only.
    #[serde(rename = "PLAIN")]
    Plain,
    /// RFC 7677.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// SCRAM with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

/// TLS and SASL.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Security {
    /// `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`. Default: `sasl_ssl` with a user name, else `ssl`.
    pub(crate) protocol: Option<SecurityProtocol>,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512` (default).
    pub(crate) mechanism: Option<Mechanism>,
    /// User name.
    pub(crate) username: Option<String>,
    /// Password.
    pub(crate) password: Option<Secret>,
    /// File with the certificates (PEM) of the authorities to trust; the system's where it is missing.
    pub(crate) ca: Option<PathBuf>,
    /// File with the client's certificate chain (PEM); goes with `key`.
    pub(crate) cert: Option<PathBuf>,
    /// File with the client's private key (PEM).
    pub(crate) key: Option<PathBuf>,
    /// Password of the key file.
    pub(crate) key_password: Option<Secret>,
}

/// The value of a property of the client library: text, number or boolean. It may be a secret, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Property(String);

impl<'de> Deserialize<'de> for Property {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(input)? {
            serde_json::Value::String(text) => Ok(Self(text)),
            value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => Ok(Self(value.to_string())),
            _ => Err(serde::de::Error::custom("a property is text, a number or a boolean")),
        }
    }
}

impl fmt::Debug for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a pipeline without a checkpoint begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// At the oldest record.
    #[default]
    Earliest,
    /// Behind the newest record.
    Latest,
}

/// What record keys mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecordKey {
    /// The key is the device id: a row of another device is rejected, since order per device could not be kept.
    #[default]
    DeviceId,
    /// Keys are not looked at. Producers must still send all rows of a device to one partition.
    Any,
}

/// What becomes of records that say where they come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origins {
    /// It is not looked at.
    #[default]
    Ignore,
    /// What a forwarder (`delivery: exactly_once_at_reader`) has sent before is left out and counted as deduplicated. Records
    /// that do not say it pass; where it cannot be read, the record is a dead letter with the code `origin`.
    Deduplicate,
}

/// Options of the `kafka` source.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceOptions {
    /// Brokers to start from, `host:port` each.
    pub(crate) brokers: Vec<String>,
    /// Topic to read.
    pub(crate) topic: String,
    /// Consumer group. Default: made of the pipeline's name.
    pub(crate) group: Option<String>,
    /// Name of this member of the group. With it a restart within the session timeout moves no partition.
    pub(crate) instance: Option<String>,
    /// Where a pipeline without a checkpoint begins: `earliest` (default) or `latest`.
    #[serde(default)]
    pub(crate) start: Start,
    /// What record keys mean: `device_id` (default) or `any`.
    #[serde(default)]
    pub(crate) key: RecordKey,
    /// What becomes of readings that forwarders repeat: `ignore` (default, they are taken again) or `deduplicate`.
    #[serde(default)]
    pub(crate) origins: Origins,
    /// TLS and SASL.
    pub(crate) security: Option<Security>,
    /// Further properties of the client library (librdkafka), such as `fetch.min.bytes`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(crate) properties: BTreeMap<String, Property>,
}

/// How a row becomes a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Envelope {
    /// The row as one JSON object, its id in the header `id`.
    #[default]
    Json,
    /// CloudEvents 1.0, binary mode: the row as JSON, the attributes in `ce_` headers.
    Cloudevents,
    /// CloudEvents 1.0, structured mode: one JSON object with the row as `data`.
    CloudeventsJson,
}

/// Compression of record batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// None.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    #[default]
    Zstd,
}

impl Compression {
    /// As the client library calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

fn default_partitions() -> i32 {
    16
}

/// Options of `journal: kafka`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JournalOptions {
    /// Brokers to start from, `host:port` each.
    pub(crate) brokers: Vec<String>,
    /// Topic that stands for the journal: one record per reading in the canonical JSON, keyed by device. It is made where it is missing.
    pub(crate) topic: String,
    /// Partitions of a topic that is made. Default 16.
    #[serde(default = "default_partitions")]
    pub(crate) partitions: i32,
    /// Consumer group that shares the partitions. Default: made of the pipeline's name.
    pub(crate) group: Option<String>,
    /// Name of this member of the group. With it a restart within the session timeout moves no partition.
    pub(crate) instance: Option<String>,
    /// Compression: `none`, `gzip`, `snappy`, `lz4` or `zstd` (default).
    #[serde(default)]
    pub(crate) compression: Compression,
    /// TLS and SASL.
    pub(crate) security: Option<Security>,
    /// Further properties of the client library (librdkafka), such as `message.max.bytes`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(crate) properties: BTreeMap<String, Property>,
}

fn default_linger() -> Duration {
    Duration::from_millis(5)
}

fn default_marks() -> String {
    "fieldstream-marks".to_owned()
}

/// How records are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Rows and marks in one transaction: those who read with `isolation.level=read_committed` see each row once.
    #[default]
    ExactlyOnce,
    /// Without transactions: after a crash rows may come again, with the same ids.
    AtLeastOnce,
    /// Without transactions, with where each reading comes from in a header: a `kafka` source with `origins: deduplicate` takes each
    /// once, also behind a mirror that keeps keys and headers. For readings, not for what windows and detectors make of them.
    ExactlyOnceAtReader,
}

/// Options of the `kafka` sink.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SinkOptions {
    /// Brokers to start from, `host:port` each.
    pub(crate) brokers: Vec<String>,
    /// Topic to write. It must exist.
    pub(crate) topic: String,
    /// Column whose value is the record key. Default: `device_id` where the rows have it. Records are partitioned by it like
    /// Kafka's own Java clients do (`murmur2_random`).
    pub(crate) key: Option<String>,
    /// `json` (default), `cloudevents` (attributes in headers) or `cloudevents_json`. Rows of different columns may meet in
    /// the last two only.
    #[serde(default)]
    pub(crate) envelope: Envelope,
    /// Compression: `none`, `gzip`, `snappy`, `lz4` or `zstd` (default).
    #[serde(default)]
    pub(crate) compression: Compression,
    /// How long records wait for others to share a request. Default 5ms.
    #[serde(default = "default_linger", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub(crate) linger: Duration,
    /// `exactly_once` (default), `at_least_once` or `exactly_once_at_reader`.
    #[serde(default)]
    pub(crate) delivery: Delivery,
    /// Compacted topic for the marks of exactly-once delivery; it is made where it is missing. Default `fieldstream-marks`.
    #[serde(default = "default_marks")]
    pub(crate) marks: String,
    /// Topic for rows that are too large for a record: position, size and first bytes of each. Made when it is first needed.
    /// Default: the topic with `.rejects` behind it.
    pub(crate) rejects: Option<String>,
    /// How long a commit may take before it is taken back and tried again, and so how long a killed worker's transaction may hold
    /// up those who read only what is committed. Default 8s; 30s without
    /// transactions.
    #[serde(default, deserialize_with = "optional_duration")]
    #[schemars(with = "Option<String>")]
    pub(crate) timeout: Option<Duration>,
    /// TLS and SASL.
    pub(crate) security: Option<Security>,
    /// Further properties of the client library (librdkafka), such as `message.max.bytes`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub(crate) properties: BTreeMap<String, Property>,
}

impl SinkOptions {
    /// How long a commit may take.
    pub(crate) fn timeout(&self) -> Duration {
        let default = match self.delivery {
            Delivery::ExactlyOnce => 8,
            Delivery::AtLeastOnce | Delivery::ExactlyOnceAtReader => 30,
        };
        self.timeout.unwrap_or(Duration::from_secs(default))
    }
}

fn optional_duration<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    duration(input).map(Some)
}

/// What is wrong with a topic's name.
pub(crate) fn check_topic(path: &str, topic: &str) -> Option<ConfigError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let wrong = topic.is_empty() || topic.len() > 249 || !topic.chars().all(legal) || topic == "." || topic == "..";
    wrong.then(|| ConfigError::new(path, "a topic name is 1 to 249 letters, digits, dots, underscores and hyphens"))
}

/// Everything wrong with what source and sink have in common.
pub(crate) fn check(brokers: &[String], topic: &str, security: Option<&Security>, properties: &BTreeMap<String, Property>) -> ConfigErrors {
    let mut errors = Vec::new();
    if brokers.is_empty() {
        errors.push(ConfigError::new("/brokers", "at least one broker is needed").hint("write brokers: [localhost:9092]"));
    }
    for (index, broker) in brokers.iter().enumerate() {
        let host_and_port = broker.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if host_and_port.is_none() || broker.contains([',', '/', '@']) || broker.contains(char::is_whitespace) {
            errors.push(ConfigError::new(format!("/brokers/{index}"), "no broker address").hint("write host:port"));
        }
    }
    errors.extend(check_topic("/topic", topic));
    errors.extend(security.map(check_security).unwrap_or_default());
    for (name, value) in properties {
        errors.extend(check_property(name, value));
    }
    errors
}

fn check_security(security: &Security) -> ConfigErrors {
    let mut errors = Vec::new();
    if security.cert.is_some() != security.key.is_some() {
        errors.push(ConfigError::new("/security", "`cert` and `key` go together"));
    }
    if security.username.is_some() != security.password.is_some() {
        errors.push(ConfigError::new("/security", "`username` and `password` go together"));
    }
    let sasl = matches!(security.protocol, Some(SecurityProtocol::SaslPlaintext | SecurityProtocol::SaslSsl));
    if sasl && security.username.is_none() {
        errors.push(ConfigError::new("/security", "this protocol needs `username` and `password`"));
    }
    if security.protocol.is_some() && !sasl && security.username.is_some() {
        errors.push(ConfigError::new("/security/protocol", "this protocol sends no user name").hint("write sasl_ssl"));
    }
    errors
}

fn check_property(name: &str, value: &Property) -> Option<ConfigError> {
    let path = format!("/properties/{}", name.replace('~', "~0").replace('/', "~1"));
    if let Some((_, instead)) = RESERVED.iter().find(|(reserved, _)| *reserved == name) {
        let error = ConfigError::new(path, format!("`{name}` is set by the connector"));
        return Some(if instead.is_empty() { error } else { error.hint(format!("write `{instead}`")) });
    }
    let mut probe = ClientConfig::new();
    probe.set(name, &value.0);
    match probe.create_native_config() {
        Err(KafkaError::ClientConfig(result, ..)) if result.is_error() => {
            let unknown = result == rdkafka::types::RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN;
            let message = if unknown { format!("librdkafka knows no property `{name}`") } else { format!("bad value of `{name}`") };
            Some(ConfigError::new(path, message).hint("see librdkafka's CONFIGURATION.md"))
        }
        Err(_) => Some(ConfigError::new(path, format!("bad value of `{name}`"))),
        Ok(_) => None,
    }
}

/// Client configuration that source and sink have in common.
pub(crate) fn client_config(
    brokers: &[String],
    security: Option<&Security>,
    properties: &BTreeMap<String, Property>,
    context: &ConnectContext,
) -> ClientConfig {
    let mut config = ClientConfig::new();
    for (name, value) in properties {
        config.set(name, &value.0);
    }
    config
        .set("bootstrap.servers", brokers.join(","))
        .set("client.id", format!("fieldstream-{}-{}", context.pipeline, context.node))
        .set("reconnect.backoff.ms", "100")
        .set("reconnect.backoff.max.ms", "5000")
        .set_log_level(RDKafkaLogLevel::Info);
    if let Some(security) = security {
        secure(&mut config, security);
    }
    config
}

fn secure(config: &mut ClientConfig, security: &Security) {
    let default = if security.username.is_some() { SecurityProtocol::SaslSsl } else { SecurityProtocol::Ssl };
    let protocol = match security.protocol.unwrap_or(default) {
        SecurityProtocol::Plaintext => "plaintext",
        SecurityProtocol::Ssl => "ssl",
        SecurityProtocol::SaslPlaintext => "sasl_plaintext",
        SecurityProtocol::SaslSsl => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if let (Some(username), Some(password)) = (&security.username, &security.password) {
        let mechanism = match security.mechanism.unwrap_or(Mechanism::ScramSha512) {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        };
        config.set("sasl.mechanism", mechanism).set("sasl.username", username).set("sasl.password", password.expose());
    }
    let files = [("ssl.ca.location", &security.ca), ("ssl.certificate.location", &security.cert), ("ssl.key.location", &security.key)];
    for (name, file) in files {
        if let Some(file) = file {
            config.set(name, file.to_string_lossy());
        }
    }
    if let Some(password) = &security.key_password {
        config.set("ssl.key.password", password.expose());
    }
}

/// A client that cannot be made, without the values of its properties (they may be secret).
pub(crate) fn creation_cause(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, _, name, _) => format!("bad value of `{name}`"),
        KafkaError::ClientCreation(cause) => cause.clone(),
        other => other.to_string(),
    }
}
