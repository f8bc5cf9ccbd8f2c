//! One producer's transactions: blocking calls of the client library, off the runtime and with an end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldstream_engine_api::SinkError;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::Producer as _;

use super::membership::Proof;
use super::options::creation_cause;
use super::records::{Callbacks, Producer};

/// How long the brokers may take to end what an earlier producer of the same name has left open.
const INIT: Duration = Duration::from_secs(20);
/// How long they may take to end a transaction.
const END: Duration = Duration::from_secs(10);

/// Why a transaction did not hold.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: SinkError,
    /// The commit was asked for: only the marks know whether it happened.
    pub(crate) in_doubt: bool,
}

/// A producer of transactions.
#[derive(Clone)]
pub(crate) struct Transactions {
    pub(crate) producer: Arc<Producer>,
    context: String,
}

impl Transactions {
    /// Makes the producer called `id`, and ends whatever an earlier one of that name has begun; that one can do nothing more.
    pub(crate) async fn begin_as(config: &ClientConfig, id: &str, context: &str) -> Result<Self, SinkError> {
        let mut config = config.clone();
        config.set("transactional.id", id);
        let made = config.create_with_context::<_, Producer>(Callbacks::default());
        let fatal = |error: &KafkaError| SinkError::Fatal { context: context.to_owned(), cause: creation_cause(error) };
        let this = Self { producer: Arc::new(made.map_err(|error| fatal(&error))?), context: context.to_owned() };
        let producer = Arc::clone(&this.producer);
        let begun = blocking(context, move || producer.init_transactions(INIT)).await?;
        match begun {
            Ok(()) => Ok(this),
            Err(error) => {
                let error = this.sink_error("get a transactional producer", &error);
                this.discard().await;
                Err(error)
            }
        }
    }

    /// Begins a transaction.
    pub(crate) fn begin(&self) -> Result<(), Failure> {
        self.producer.begin_transaction().map_err(|error| self.failure("begin a transaction", &error))
    }

    /// Puts the proof of ownership into the transaction: from here on it cannot be committed by who does not own its partitions.
    pub(crate) async fn prove(&self, proof: Proof) -> Result<(), Failure> {
        let producer = Arc::clone(&self.producer);
        let sent = blocking(&self.context, move || producer.send_offsets_to_transaction(&proof.offsets, &proof.group, END)).await;
        let sent = sent.map_err(|error| Failure { error, in_doubt: false })?;
        sent.map_err(|error| self.failure("send the group's offsets", &error))
    }

    /// Commits. After an error the outcome is in doubt.
    pub(crate) async fn commit(&self) -> Result<(), Failure> {
        let producer = Arc::clone(&self.producer);
        let asked = move || {
            let deadline = Instant::now() + END;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match producer.commit_transaction(left.max(Duration::from_millis(100))) {
                    Err(KafkaError::Transaction(error)) if error.is_retriable() && !left.is_zero() => {}
                    outcome => return outcome,
                }
            }
        };
        let outcome = blocking(&self.context, asked).await.map_err(|error| Failure { error, in_doubt: true })?;
        outcome.map_err(|error| Failure { in_doubt: true, ..self.failure("commit", &error) })
    }

    /// Takes back what was begun; false when only a new producer can go on.
    pub(crate) async fn abort(&self) -> bool {
        let producer = Arc::clone(&self.producer);
        let aborted = blocking(&self.context, move || {
            let deadline = Instant::now() + END;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match producer.abort_transaction(left.max(Duration::from_millis(100))) {
                    Err(KafkaError::Transaction(error)) if error.is_retriable() && !left.is_zero() => {}
                    outcome => return outcome,
                }
            }
        });
        match aborted.await {
            Ok(Ok(())) => self.producer.client().fatal_error().is_none(),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the transaction could not be taken back; a new producer will");
                false
            }
            Err(_) => false,
        }
    }

    /// Ends the producer without waiting for the brokers.
    pub(crate) async fn discard(self) {
        let context = self.context.clone();
        // Its end joins a thread.
        if let Err(error) = blocking(&context, move || drop(self)).await {
            tracing::debug!(%error, "the producer's end");
        }
    }

    /// A record did not arrive.
    pub(crate) fn undelivered(&self, code: Code) -> Failure {
        let complaint = self.producer.client().context().take_complaint();
        Failure { error: delivery_error(&self.context, code, complaint), in_doubt: false }
    }

    fn failure(&self, what: &str, error: &KafkaError) -> Failure {
        Failure { error: self.sink_error(what, error), in_doubt: false }
    }

    fn sink_error(&self, what: &str, error: &KafkaError) -> SinkError {
        let code = match error {
            KafkaError::Transaction(error) => Some(error.code()),
            other => other.rdkafka_error_code(),
        };
        let cause = match error {
            KafkaError::Transaction(error) => format!("{what}: {}", error.string()),
            other => format!("{what}: {other}"),
        };
        let context = self.context.clone();
        match code {
            Some(Code::InvalidTransactionTimeout) => {
                let cause = "`timeout` is longer than the brokers' transaction.max.timeout.ms; make it shorter".to_owned();
                SinkError::Fatal { context, cause }
            }
            Some(
                Code::TransactionalIdAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::UnsupportedFeature,
            ) => SinkError::Fatal { context, cause },
            _ => SinkError::Retry { context, cause },
        }
    }
}

/// What a failed delivery means.
pub(crate) fn delivery_error(context: &str, code: Code, complaint: Option<String>) -> SinkError {
    let context = context.to_owned();
    let cause = match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic => "there is no such topic; create it".to_owned(),
        other => complaint.map_or_else(|| other.to_string(), |c| format!("{other}: {c}")),
    };
    match code {
        Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::MessageSizeTooLarge
        | Code::InvalidRecord
        | Code::InvalidTopic => SinkError::Fatal { context, cause },
        _ => SinkError::Retry { context, cause },
    }
}

/// Runs a call that blocks where it harms nobody.
pub(crate) async fn blocking<T: Send + 'static>(context: &str, call: impl FnOnce() -> T + Send + 'static) -> Result<T, SinkError> {
    let ended = tokio::task::spawn_blocking(call).await;
    ended.map_err(|error| SinkError::Retry { context: context.to_owned(), cause: error.to_string() })
}
