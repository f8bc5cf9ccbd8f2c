//! The MQTT sink: a commit is done when the broker has acknowledged every message of it.
//!
//! After any trouble the connection is given up and the next attempt makes a new one: what is in doubt is published again,
//! with the same ids.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fieldstream_engine_api::{
    Built, Committed, ConnectContext, Generation, Guarantee, PartitionKey, Sink, SinkBatch, SinkError, SinkInput, SinkKind,
};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::acks::Qos;
use super::link::{self, Client, Link, LinkConfig, LinkEvent};
use super::options::{Broker, Envelope, SinkOptions};
use super::session::{ClientIdGuard, default_client_id};
use super::topic::TopicTemplate;
use super::{credentials, tls_config};
use crate::options::parse;
use crate::rows::{Form, RowWriter};
use crate::tally::counted;

/// The `mqtt` sink.
pub const SINK: SinkKind = SinkKind {
    name: "mqtt",
    about: "Publishes rows to MQTT topics; at least once, with deterministic ids",
    schema: || schemars::schema_for!(SinkOptions).to_value(),
    check: |value, inputs| sink_options(value, inputs).map(|_| Guarantee::AtLeastOnce),
    place: |_| None,
    build,
};

fn sink_options(value: &Value, inputs: &[SinkInput]) -> Built<(SinkOptions, TopicTemplate)> {
    let options: SinkOptions = parse(value)?;
    let template = options.check(inputs)?;
    Ok((options, template))
}

fn build(value: &Value, inputs: &[SinkInput], context: &ConnectContext) -> Built<Box<dyn Sink>> {
    let (options, topic) = sink_options(value, inputs)?;
    let broker = Broker::parse(&options.url).map_err(|error| vec![error])?;
    let form = options.envelope.form();
    let config = LinkConfig {
        tls: tls_config(&broker, options.tls.as_ref())?,
        broker,
        protocol: options.protocol,
        credentials: credentials(options.username.as_deref(), options.password.as_ref()),
        client_id: options.client_id.clone().unwrap_or_else(|| default_client_id(context)),
        clean_session: true,
        keep_alive: options.keep_alive,
        session_expiry: Duration::ZERO,
        receive_maximum: u16::MAX,
        inflight: options.inflight,
    };
    Ok(Box::new(MqttSink {
        writer: RowWriter::new(form, inputs, &context.pipeline),
        qos: options.quality(),
        retain: options.retain,
        timeout: options.timeout,
        config,
        topic,
        form,
        connection: None,
        delivered: BTreeMap::new(),
    }))
}

impl Envelope {
    pub(crate) fn form(self) -> Form {
        match self {
            Self::Json => Form::Json,
            Self::Cloudevents => Form::Event,
        }
    }
}

/// How far the connection is.
#[derive(Debug, Default)]
struct Progress {
    connected: bool,
    /// Messages settled since the connection was made: written (QoS 0), or acknowledged to the end.
    settled: u64,
    failed: Option<Failure>,
}

#[derive(Clone, Debug)]
struct Failure {
    cause: String,
    /// True when trying again is useless.
    fatal: bool,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `done`, or until the connection has failed.
    async fn until(&self, done: impl Fn(&Progress) -> bool) -> Result<(), Failure> {
        loop {
            let changed = self.changed.notified();
            {
                let progress = self.lock();
                if let Some(failure) = &progress.failed {
                    return Err(failure.clone());
                }
                if done(&progress) {
                    return Ok(());
                }
            }
            changed.await;
        }
    }
}

struct Connection {
    client: Client,
    shared: Arc<Shared>,
    /// Messages handed to the connection since it was made.
    published: u64,
    task: JoinHandle<()>,
    _client_id: ClientIdGuard,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Drives one connection to its end.
async fn drive(mut link: Link, shared: Arc<Shared>, qos: Qos) {
    loop {
        let polled = link.poll().await;
        let mut progress = shared.lock();
        match polled {
            Ok(LinkEvent::Connected { .. }) => progress.connected = true,
            Ok(LinkEvent::Written) if qos == Qos::AtMost => progress.settled += 1,
            Ok(LinkEvent::Settled) => progress.settled += 1,
            Ok(LinkEvent::Refused(cause)) => {
                progress.failed = Some(Failure { cause: format!("the broker refuses it: {cause}"), fatal: true })
            }
            Ok(_) => continue,
            Err(error) => progress.failed = Some(Failure { fatal: error.refused && !progress.connected, cause: error.cause }),
        }
        let over = progress.failed.is_some();
        drop(progress);
        shared.changed.notify_one();
        if over {
            return;
        }
    }
}

struct MqttSink {
    config: LinkConfig,
    topic: TopicTemplate,
    qos: Qos,
    retain: bool,
    timeout: Duration,
    form: Form,
    writer: RowWriter,
    connection: Option<Connection>,
    delivered: BTreeMap<PartitionKey, u64>,
}

impl MqttSink {
    fn context(&self) -> String {
        format!("publish to MQTT broker {}", self.config.broker.address())
    }

    fn connect(&self) -> Result<Connection, Failure> {
        let guard = ClientIdGuard::take(&self.config.broker, &self.config.client_id).map_err(|cause| Failure { cause, fatal: true })?;
        let (client, link) = link::open(&self.config, false);
        let shared = Arc::<Shared>::default();
        let task = tokio::spawn(drive(link, Arc::clone(&shared), self.qos));
        Ok(Connection { client, shared, published: 0, task, _client_id: guard })
    }

    /// Publishes everything and waits for the broker.
    async fn publish(&self, connection: &mut Connection, batches: &[SinkBatch]) -> Result<(), Failure> {
        connection.shared.until(|progress| progress.connected).await?;
        for batch in batches {
            let ids = self.writer.own_ids(&batch.partition);
            for part in &batch.rows {
                for row in 0..part.batch.len() {
                    let mut payload = Vec::with_capacity(256);
                    self.writer.write(&ids, part.input, &part.batch, row, &mut payload);
                    let topic = self.topic.topic(&part.batch.rows, row);
                    let topic = topic.map_err(|cause| Failure { cause, fatal: true })?;
                    connection.published += 1;
                    if !connection.client.publish(topic, self.qos, self.retain, payload, self.form.content_type()).await {
                        // The connection's task has ended and says why.
                        connection.shared.until(|_| false).await?;
                    }
                }
            }
        }
        let published = connection.published;
        connection.shared.until(|progress| progress.settled >= published).await
    }
}

#[async_trait]
impl Sink for MqttSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    async fn open(&mut self, partition: &PartitionKey, _generation: Generation) -> Result<Option<Committed>, SinkError> {
        self.delivered.insert(partition.clone(), 0);
        Ok(None)
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        // A connection that broke while it was idle is no failure.
        let idle = self.connection.take().filter(|connection| connection.shared.lock().failed.is_none());
        let deadline = Instant::now() + self.timeout;
        let result = match idle.map_or_else(|| self.connect(), Ok) {
            Ok(mut connection) => match timeout_at(deadline, self.publish(&mut connection, batches)).await {
                Ok(Ok(())) => {
                    self.connection = Some(connection);
                    Ok(())
                }
                Ok(Err(failure)) => Err(failure),
                Err(_) => Err(Failure { cause: format!("no answer within {:?}", self.timeout), fatal: false }),
            },
            Err(failure) => Err(failure),
        };
        match result {
            Ok(()) => Ok(batches.iter().map(|batch| counted(&mut self.delivered, batch)).collect()),
            Err(Failure { cause, fatal: true }) => Err(SinkError::Fatal { context: self.context(), cause }),
            Err(Failure { cause, fatal: false }) => Err(SinkError::Retry { context: self.context(), cause }),
        }
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        if let Some(connection) = self.connection.take() {
            connection.client.disconnect();
            // The task ends with an error when the broker closes; an answer is not owed.
            let shared = Arc::clone(&connection.shared);
            if tokio::time::timeout(Duration::from_secs(1), shared.until(|_| false)).await.is_err() {
                tracing::debug!("the MQTT broker did not close the connection");
            }
        }
        Ok(())
    }
}
