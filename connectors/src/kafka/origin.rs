//! Records that say where they come from, so that a reader takes each once however often they are sent.
//!
//! The reader drops what is not above the highest position it has of a stream. So a stream must arrive in the order of its positions and
//! must never have a gap that is filled later: *rows again, never rows left out*. A stream is what one sink sends of one partition of
//! its log, by one of its inputs, to one partition of the topic: Kafka keeps the order in there, and a mirror does that
//! spreads the records over another number of partitions by their keys.

use std::sync::Arc;

use fieldstream_engine_api::{ConfigError, PartitionKey, Position, SinkBatch, SinkError, SinkInput, partition_of};
use fieldstream_schemas::{origin, readings_schema};
use rdkafka::ClientConfig;
use rdkafka::producer::Producer as _;

use super::options::SinkOptions;
use super::records::Producer;
use super::transactions::blocking;

/// How long the brokers may take to say how many partitions the topic has.
const QUESTION: std::time::Duration = std::time::Duration::from_secs(10);
/// Properties that decide whether records keep their order.
const OURS: &[&str] =
    &["max.in.flight", "max.in.flight.requests.per.connection", "retries", "message.send.max.retries", "enable.gapless.guarantee"];

/// What cannot be sent so.
pub(crate) fn check(options: &SinkOptions, inputs: &[SinkInput]) -> Vec<ConfigError> {
    let ours = OURS.iter().filter(|name| options.properties.contains_key(**name));
    let mut errors: Vec<ConfigError> = ours
        .map(|name| ConfigError::new(format!("/properties/{name}"), format!("`{name}` is set by the connector with this delivery")))
        .collect();
    for input in inputs.iter().filter(|input| input.edge.schema != readings_schema()) {
        let message = format!("`{}` carries no readings: only their positions order them", input.name);
        errors.push(ConfigError::new("/delivery", message).hint("write `delivery: exactly_once`"));
    }
    errors
}

/// Settings of a producer that leaves no gap: one request at a time and no end to its attempts. Whoever gives up discards it.
pub(crate) fn leave_no_gap(config: &mut ClientConfig) {
    config
        .set("max.in.flight.requests.per.connection", "1")
        .set("message.send.max.retries", "2147483647")
        .set("message.timeout.ms", "0")
        .set("enable.gapless.guarantee", "true");
}

/// Names of the sink and of its inputs.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) sink: Arc<str>,
    pub(crate) inputs: Vec<Arc<str>>,
}

/// Marks the records of one producer.
#[derive(Clone, Debug)]
pub(crate) struct Stamp {
    names: Names,
    /// Partitions of the topic as this producer goes by.
    partitions: u32,
}

impl Stamp {
    /// Asks the brokers how many partitions the topic has.
    pub(crate) async fn new(names: Names, producer: &Arc<Producer>, topic: &str, context: &str) -> Result<Self, SinkError> {
        let (asking, name) = (Arc::clone(producer), topic.to_owned());
        let answer = blocking(context, move || asking.client().fetch_metadata(Some(&name), QUESTION)).await?;
        let retry = |cause: String| SinkError::Retry { context: context.to_owned(), cause };
        let metadata = answer.map_err(|error| retry(error.to_string()))?;
        let partitions = metadata.topics().iter().find(|t| t.name() == topic && t.error().is_none()).map_or(0, |t| t.partitions().len());
        match u32::try_from(partitions) {
            Ok(partitions) if partitions > 0 => Ok(Self { names, partitions }),
            _ => Err(retry("there is no such topic; create it".to_owned())),
        }
    }

    /// The partition of the topic for a record, and its header.
    pub(crate) fn of(&self, from: &PartitionKey, input: usize, position: Position, key: Option<&str>) -> (i32, (&'static str, String)) {
        let to = partition_of(key.unwrap_or_default().as_bytes(), self.partitions);
        let PartitionKey { pipeline, log_id, partition } = from;
        let input = self.names.inputs.get(input).map(|name| &**name).unwrap_or_default();
        let stream = format!("{log_id}/{partition}/{pipeline}/{}/{input}/{to}", self.names.sink);
        (to.cast_signed(), (origin::HEADER, origin::write(position, &stream)))
    }
}

/// Whether the rows of each input lie at ascending positions of their own: others would be dropped by the reader.
pub(crate) fn check_order(batch: &SinkBatch) -> Result<(), String> {
    let mut last: Vec<Option<Position>> = Vec::new();
    for part in &batch.rows {
        if last.len() <= part.input {
            last.resize(part.input + 1, None);
        }
        let Some(last) = last.get_mut(part.input) else { continue };
        for position in &part.batch.keys.position {
            if position.tick > 0 || last.is_some_and(|last| last >= *position) {
                return Err(format!(
                    "offset {} row {} of partition {} comes twice or is made by a tick; readings must come to this sink by one path for each input, or \
                     with `delivery: exactly_once`",
                    position.offset, position.row, batch.partition
                ));
            }
            *last = Some(*position);
        }
    }
    Ok(())
}
