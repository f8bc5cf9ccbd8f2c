//! MQTT 3.1.1 and 5: a source that acknowledges what is durable, and a sink that publishes rows.
//!
//! The source keeps a session at the broker (`clean_session: false`) under a stable client id. A message is acknowledged only
//! when the engine says that it is durable, in receive order, and only on the connection it came by; what was not acknowledged
//! comes again after a reconnect. So a message may come twice, and none is lost with QoS 1 or 2.

mod acks;
mod backoff;
mod link;
pub mod options;
mod receiver;
#[cfg(test)]
mod security_tests;
mod session;
mod sink;
#[cfg(test)]
mod sink_tests;
#[cfg(test)]
mod tests;
mod tls;
mod topic;

use std::sync::Arc;

use fieldstream_engine_api::{Built, ConfigError, ConnectContext, Receiver, SourceBuild, SourceKind};
use serde_json::Value;

use self::link::LinkConfig;
use self::options::{Broker, SourceOptions, TlsOptions};
use self::receiver::{MqttReceiver, Subscription};
use self::session::default_client_id;
pub use self::sink::SINK;
use crate::options::parse;
use crate::secret::Secret;

/// The `mqtt` source.
pub const SOURCE: SourceKind = SourceKind {
    name: "mqtt",
    about: "Readings from an MQTT 3.1.1 or 5 broker, acknowledged when they are durable",
    schema: || schemars::schema_for!(SourceOptions).to_value(),
    check: |value| source_options(value).map(|_| ()),
    log_options: &[],
    build: SourceBuild::Receiver(build_source),
};

fn source_options(value: &Value) -> Built<SourceOptions> {
    let options: SourceOptions = parse(value)?;
    let errors = options.check();
    if errors.is_empty() { Ok(options) } else { Err(errors) }
}

fn build_source(value: &Value, context: &ConnectContext) -> Built<Box<dyn Receiver>> {
    let options = source_options(value)?;
    let broker = Broker::parse(&options.url).map_err(|error| vec![error])?;
    let config = LinkConfig {
        tls: tls_config(&broker, options.tls.as_ref())?,
        broker,
        protocol: options.protocol,
        credentials: credentials(options.username.as_deref(), options.password.as_ref()),
        client_id: options.client_id.clone().unwrap_or_else(|| default_client_id(context)),
        clean_session: options.clean_session,
        keep_alive: options.keep_alive,
        session_expiry: options.session_expiry,
        receive_maximum: options.receive_maximum,
        inflight: 1,
    };
    let subscription = Subscription { qos: options.quality(), topics: options.topics };
    Ok(Box::new(MqttReceiver::new(config, subscription)))
}

fn tls_config(broker: &Broker, options: Option<&TlsOptions>) -> Built<Option<Arc<rustls::ClientConfig>>> {
    if !broker.tls {
        return Ok(None);
    }
    let options = options.cloned().unwrap_or_default();
    tls::client_config(&options).map(Some).map_err(|message| vec![ConfigError::new("/tls", message)])
}

fn credentials(username: Option<&str>, password: Option<&Secret>) -> Option<(String, String)> {
    let password = password.map_or("", Secret::expose);
    match username {
        None if password.is_empty() => None,
        username => Some((username.unwrap_or_default().to_owned(), password.to_owned())),
    }
}
