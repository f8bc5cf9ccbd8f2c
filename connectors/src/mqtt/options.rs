//! Options of the MQTT source and sink, as a person writes them, and what they mean once checked.

use std::path::PathBuf;
use std::time::Duration;

use fieldstream_engine_api::{Built, ConfigError, ConfigErrors, SinkInput};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use url::Url;

use super::acks::Qos;
use super::topic::TopicTemplate;
use crate::options::duration;
use crate::rows::check_form;
use crate::secret::Secret;

/// MQTT protocol version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 3.1.1.
    #[default]
    V311,
    /// MQTT 5.
    V5,
}

/// TLS of a connection with `mqtts://`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsOptions {
    /// File with the certificates (PEM) of the authorities to trust; the system's where it is missing.
    pub(crate) ca: Option<PathBuf>,
    /// File with the client's certificate chain (PEM); goes with `key`.
    pub(crate) cert: Option<PathBuf>,
    /// File with the client's private key (PEM).
    pub(crate) key: Option<PathBuf>,
}

fn default_qos() -> u8 {
    1
}

fn default_keep_alive() -> Duration {
    Duration::from_secs(30)
}

fn default_receive_maximum() -> u16 {
    4096
}

fn default_session_expiry() -> Duration {
    Duration::from_secs(7 * 86_400)
}

fn default_inflight() -> u16 {
    1024
}

fn default_timeout() -> Duration {
    Duration::from_secs(30)
}

/// Options of the `mqtt` source.
///
/// Readings are acknowledged at the broker only when they are in the journal. With `qos: 0` nothing is acknowledged, and what
/// is sent while nobody listens is lost by MQTT's own rules.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceOptions {
    /// Broker: `mqtt://host:1883` or `mqtts://host:8883`.
    pub(crate) url: String,
    /// Protocol version: `3.1.1` (default) or `5`.
    #[serde(default, deserialize_with = "protocol")]
    #[schemars(schema_with = "protocol_schema")]
    pub(crate) protocol: Protocol,
    /// User name.
    pub(crate) username: Option<String>,
    /// Password.
    pub(crate) password: Option<Secret>,
    /// Client id; must be one of a kind at the broker. Default: made of pipeline and node. A broker keeps the session (and what
    /// it has not delivered) under this name.
    pub(crate) client_id: Option<String>,
    /// Topic filters, `$share/group/...` included.
    pub(crate) topics: Vec<String>,
    /// Quality of service asked for: 0, 1 (default) or 2.
    #[serde(default = "default_qos")]
    pub(crate) qos: u8,
    /// True to start without the broker's session: what came while nobody listened is then lost. Default false.
    #[serde(default)]
    pub(crate) clean_session: bool,
    /// Time between signs of life, at least 5s. Default 30s.
    #[serde(default = "default_keep_alive", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub(crate) keep_alive: Duration,
    /// MQTT 5: how long the broker keeps the session of a client that is away. Default 7d.
    #[serde(default = "default_session_expiry", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub(crate) session_expiry: Duration,
    /// MQTT 5: how many messages may be on their way without acknowledgement. Default 4096. With 3.1.1 the broker decides.
    #[serde(default = "default_receive_maximum")]
    pub(crate) receive_maximum: u16,
    /// TLS, with `mqtts://`.
    pub(crate) tls: Option<TlsOptions>,
}

/// How a row becomes a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Envelope {
    /// The row as one JSON object.
    #[default]
    Json,
    /// A CloudEvents 1.0 object in structured mode, with the row as `data`.
    Cloudevents,
}

/// Options of the `mqtt` sink. Messages come at least once, with the same ids.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SinkOptions {
    /// Broker: `mqtt://host:1883` or `mqtts://host:8883`.
    pub(crate) url: String,
    /// Protocol version: `3.1.1` (default) or `5`.
    #[serde(default, deserialize_with = "protocol")]
    #[schemars(schema_with = "protocol_schema")]
    pub(crate) protocol: Protocol,
    /// User name.
    pub(crate) username: Option<String>,
    /// Password.
    pub(crate) password: Option<Secret>,
    /// Client id; must be one of a kind at the broker. Default: made of pipeline, node and topic.
    pub(crate) client_id: Option<String>,
    /// Topic; `{column}` stands for the row's value, with `%`, `/`, `+`, `#` and control characters in it written `%XX`.
    pub(crate) topic: String,
    /// Quality of service: 0, 1 (default) or 2.
    #[serde(default = "default_qos")]
    pub(crate) qos: u8,
    /// True to let the broker keep the last message of each topic.
    #[serde(default)]
    pub(crate) retain: bool,
    /// `json` (default) or `cloudevents`. Rows of different columns may meet in `cloudevents` only.
    #[serde(default)]
    pub(crate) envelope: Envelope,
    /// Time between signs of life, at least 5s. Default 30s.
    #[serde(default = "default_keep_alive", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub(crate) keep_alive: Duration,
    /// How many messages may be on their way without acknowledgement. Default 1024.
    #[serde(default = "default_inflight")]
    pub(crate) inflight: u16,
    /// How long a commit waits for the broker before it is tried again. Default 30s.
    #[serde(default = "default_timeout", deserialize_with = "duration")]
    #[schemars(with = "String")]
    pub(crate) timeout: Duration,
    /// TLS, with `mqtts://`.
    pub(crate) tls: Option<TlsOptions>,
}

/// YAML reads an unquoted `5` as a number; both ways of writing mean the same.
fn protocol<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Protocol, D::Error> {
    let value = serde_json::Value::deserialize(input)?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match text.as_str() {
        "3.1.1" | "4" => Ok(Protocol::V311),
        "5" | "5.0" => Ok(Protocol::V5),
        _ => Err(serde::de::Error::custom(format!("unknown protocol `{text}`; write 3.1.1 or 5"))),
    }
}

fn protocol_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ["3.1.1", "5", 5] })
}

/// A broker's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broker {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

impl Broker {
    /// Reads `mqtt://host[:port]` or `mqtts://host[:port]`. The URL is never repeated in the error: it may hold a password.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong = |message: &str| ConfigError::new("/url", message).hint("write mqtt://host:1883 or mqtts://host:8883");
        let url = Url::parse(text).map_err(|error| wrong(&format!("no URL: {error}")))?;
        let tls = match url.scheme() {
            "mqtt" | "tcp" => false,
            "mqtts" | "ssl" => true,
            other => return Err(wrong(&format!("unknown scheme `{other}`"))),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ConfigError::new("/url", "a URL must not carry credentials").hint("use `username` and `password`"));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("a broker's URL ends after the port"));
        }
        let host = url.host_str().filter(|h| !h.is_empty()).ok_or_else(|| wrong("no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: url.port().unwrap_or(if tls { 8883 } else { 1883 }), tls })
    }

    /// `host:port` for messages.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Checks what source and sink have in common.
fn check_connection(url: &str, qos: u8, keep_alive: Duration, tls: Option<&TlsOptions>, errors: &mut ConfigErrors) {
    let broker = Broker::parse(url);
    if let (Ok(broker), Some(_)) = (&broker, tls)
        && !broker.tls
    {
        errors.push(ConfigError::new("/tls", "the URL asks for no TLS").hint("write mqtts:// in `url`"));
    }
    errors.extend(broker.err());
    if qos > 2 {
        errors.push(ConfigError::new("/qos", format!("{qos} is no quality of service")).hint("write 0, 1 or 2"));
    }
    if keep_alive < Duration::from_secs(5) || keep_alive > Duration::from_secs(u64::from(u16::MAX)) {
        errors.push(ConfigError::new("/keep_alive", "must lie between 5s and 18h"));
    }
    if let Some(tls) = tls
        && tls.cert.is_some() != tls.key.is_some()
    {
        errors.push(ConfigError::new("/tls", "`cert` and `key` go together"));
    }
}

fn check_client_id(client_id: Option<&str>, errors: &mut ConfigErrors) {
    let bad = |id: &str| id.is_empty() || id.len() > 256 || id.chars().any(char::is_control);
    if client_id.is_some_and(bad) {
        errors.push(ConfigError::new("/client_id", "must be 1 to 256 bytes without control characters"));
    }
}

fn check_credentials(username: Option<&str>, password: Option<&Secret>, protocol: Protocol, errors: &mut ConfigErrors) {
    if password.is_some() && username.is_none() && protocol == Protocol::V311 {
        errors.push(ConfigError::new("/password", "MQTT 3.1.1 allows a password only with a `username`"));
    }
}

impl SourceOptions {
    /// Everything wrong with the options.
    pub(crate) fn check(&self) -> ConfigErrors {
        let mut errors = Vec::new();
        check_connection(&self.url, self.qos, self.keep_alive, self.tls.as_ref(), &mut errors);
        check_client_id(self.client_id.as_deref(), &mut errors);
        check_credentials(self.username.as_deref(), self.password.as_ref(), self.protocol, &mut errors);
        if self.topics.is_empty() {
            errors.push(ConfigError::new("/topics", "at least one topic filter is needed"));
        }
        for (index, filter) in self.topics.iter().enumerate() {
            if let Err(message) = super::topic::check_filter(filter) {
                errors.push(ConfigError::new(format!("/topics/{index}"), message));
            }
        }
        if self.receive_maximum == 0 {
            errors.push(ConfigError::new("/receive_maximum", "must be at least 1"));
        }
        errors
    }

    /// The wanted quality of service.
    pub(crate) fn quality(&self) -> Qos {
        quality(self.qos)
    }
}

impl SinkOptions {
    /// The topic template, or everything wrong with the options for `inputs`.
    pub(crate) fn check(&self, inputs: &[SinkInput]) -> Built<TopicTemplate> {
        let mut errors = Vec::new();
        check_connection(&self.url, self.qos, self.keep_alive, self.tls.as_ref(), &mut errors);
        check_client_id(self.client_id.as_deref(), &mut errors);
        check_credentials(self.username.as_deref(), self.password.as_ref(), self.protocol, &mut errors);
        if self.inflight == 0 {
            errors.push(ConfigError::new("/inflight", "must be at least 1"));
        }
        let template = TopicTemplate::parse(&self.topic).map_err(|message| ConfigError::new("/topic", message));
        if let Ok(template) = &template {
            for input in inputs {
                errors.extend(template.check(&input.edge.schema, &input.name).err().map(|m| ConfigError::new("/topic", m)));
            }
        }
        errors.extend(check_form(self.envelope.form(), inputs));
        match template {
            Ok(template) if errors.is_empty() => Ok(template),
            Ok(_) => Err(errors),
            Err(error) => {
                errors.push(error);
                Err(errors)
            }
        }
    }

    /// The wanted quality of service.
    pub(crate) fn quality(&self) -> Qos {
        quality(self.qos)
    }
}

fn quality(number: u8) -> Qos {
    match number {
        0 => Qos::AtMost,
        1 => Qos::AtLeast,
        _ => Qos::Exactly,
    }
}
