//! Topics that the sink makes for itself where they are missing: the marks, and rows that were refused.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// How long a question to the brokers may take.
const QUESTION: Duration = Duration::from_secs(10);

/// Why a topic cannot be used.
#[derive(Debug)]
pub(crate) enum TopicError {
    /// It may pass.
    Retry(String),
    /// A person must act.
    Fatal(String),
}

fn admin(config: &ClientConfig) -> Result<AdminClient<DefaultClientContext>, TopicError> {
    config.create().map_err(|error| TopicError::Fatal(super::options::creation_cause(&error)))
}

/// Makes topic `name` with one partition and the given settings, unless it exists.
pub(crate) async fn ensure(config: &ClientConfig, name: &str, settings: &[(&str, &str)]) -> Result<(), TopicError> {
    make(config, name, 1, settings).await
}

/// Makes topic `name` with so many partitions, as many replicas as the brokers think right and the given settings, unless it exists.
pub(crate) async fn make(config: &ClientConfig, name: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<(), TopicError> {
    let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(-1));
    for (key, value) in settings {
        topic = topic.set(key, value);
    }
    let admin = admin(config)?;
    let options = AdminOptions::new().request_timeout(Some(QUESTION));
    let made = admin.create_topics([&topic], &options).await.map_err(|error| TopicError::Retry(error.to_string()))?;
    match made.into_iter().next() {
        None | Some(Ok(_) | Err((_, Code::TopicAlreadyExists))) => Ok(()),
        // Who may not make topics may still use this one.
        Some(Err((_, Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed))) => {
            exists(&admin, name, partitions, settings).await
        }
        Some(Err((_, Code::PolicyViolation | Code::InvalidConfig))) => {
            Err(TopicError::Fatal(format!("the brokers do not let us make it; make it with {}", written(partitions, settings))))
        }
        Some(Err((_, code))) => Err(TopicError::Retry(format!("it could not be made: {code}"))),
    }
}

fn written(partitions: i32, settings: &[(&str, &str)]) -> String {
    let settings: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let partitions = if partitions == 1 { "one partition".to_owned() } else { format!("{partitions} partitions") };
    format!("{partitions} and {}", settings.join(", "))
}

async fn exists(
    admin: &AdminClient<DefaultClientContext>,
    name: &str,
    partitions: i32,
    settings: &[(&str, &str)],
) -> Result<(), TopicError> {
    let options = AdminOptions::new().request_timeout(Some(QUESTION));
    let asked = ResourceSpecifier::Topic(name);
    let described = admin.describe_configs([&asked], &options).await.map_err(|error: KafkaError| TopicError::Retry(error.to_string()))?;
    match described.into_iter().next() {
        Some(Err(Code::UnknownTopicOrPartition | Code::UnknownTopic)) | None => {
            Err(TopicError::Fatal(format!("there is no such topic and we may not make it; make it with {}", written(partitions, settings))))
        }
        _ => Ok(()),
    }
}

/// True unless the brokers say that topic `name` forgets the newest record of a key.
pub(crate) async fn is_compacted(config: &ClientConfig, name: &str) -> Result<bool, TopicError> {
    let options = AdminOptions::new().request_timeout(Some(QUESTION));
    let asked = ResourceSpecifier::Topic(name);
    let described = admin(config)?.describe_configs([&asked], &options).await.map_err(|error| TopicError::Retry(error.to_string()))?;
    let Some(Ok(resource)) = described.into_iter().next() else { return Ok(true) };
    let policy = resource.get("cleanup.policy").and_then(|entry| entry.value.clone());
    Ok(policy.is_none_or(|policy| policy == "compact"))
}
