//! Kafka: a topic as a log, a topic that stands for the journal, and a sink that publishes rows.
//!
//! The source is a member of a consumer group (`cooperative-sticky`), which decides who reads which partition; where reading
//! begins is the engine's decision alone: the group's offsets follow its checkpoints and are for dashboards. The log id is
//! `kafka:<cluster id>:<topic>`, so a topic that is deleted and made again under its name is told apart only by its offsets.

mod block;
mod exactly_once;
#[cfg(test)]
mod exactly_once_tests;
mod group;
mod journal;
mod journal_records;
#[cfg(test)]
mod journal_tests;
#[cfg(test)]
mod live_tests;
mod log;
mod marks;
mod membership;
pub mod options;
mod origin;
#[cfg(test)]
mod origin_tests;
mod outbox;
mod reader;
mod records;
pub mod resend;
mod sink;
#[cfg(test)]
mod sink_tests;
#[cfg(test)]
mod tests;
mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::sync::Arc;

use fieldstream_engine_api::{Built, BuiltLog, ConnectContext, SourceBuild, SourceKind};
use rdkafka::ClientConfig;
use serde_json::Value;

pub use self::journal::JOURNAL;
use self::log::{KafkaLog, LogSettings};
use self::options::{Property, SourceOptions};
pub use self::sink::SINK;
use crate::options::parse;

/// The `kafka` source.
pub const SOURCE: SourceKind = SourceKind {
    name: "kafka",
    about: "Readings from a Kafka topic whose records are keyed by device",
    schema: || schemars::schema_for!(SourceOptions).to_value(),
    check: |value| source_options(value).map(|_| ()),
    log_options: &["topic"],
    build: SourceBuild::Log(build_source),
};

fn source_options(value: &Value) -> Built<SourceOptions> {
    let options: SourceOptions = parse(value)?;
    let errors = options::check(&options.brokers, &options.topic, options.security.as_ref(), &options.properties);
    if errors.is_empty() { Ok(options) } else { Err(errors) }
}

fn build_source(value: &Value, context: &ConnectContext) -> Built<BuiltLog> {
    let options = source_options(value)?;
    let client = options::client_config(&options.brokers, options.security.as_ref(), &options.properties, context);
    let config = consumer_config(client, options.group, options.instance.as_deref(), &options.properties, context);
    let settings = LogSettings {
        topic: options.topic,
        source: Arc::clone(&context.node),
        start: options.start,
        key: options.key,
        origins: options.origins,
        instance: options.instance,
        receivers: None,
    };
    Ok(BuiltLog { log: Box::new(KafkaLog::new(config, settings, context.shared.of())), finite: false })
}

/// The configuration of a member of a consumer group.
fn consumer_config(
    mut config: ClientConfig,
    group: Option<String>,
    instance: Option<&str>,
    properties: &BTreeMap<String, Property>,
    context: &ConnectContext,
) -> ClientConfig {
    let group = group.unwrap_or_else(|| format!("fieldstream-{}", context.pipeline));
    config
        .set("group.id", group)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        .set("isolation.level", "read_committed")
        .set("queued.max.messages.kbytes", "32768");
    // How long a worker may be silent before others take its partitions over, and how soon a member learns of a rebalance.
    for (name, value) in [("session.timeout.ms", "10000"), ("heartbeat.interval.ms", "1000")] {
        if !properties.contains_key(name) {
            config.set(name, value);
        }
    }
    if let Some(instance) = instance {
        config.set("group.instance.id", instance);
    }
    config
}
