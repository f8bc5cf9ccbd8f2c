//! The `timescale` sink: connections, and the calls of the runtime turned into transactions on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fieldstream_engine_api::{
    Built, Committed, ConnectContext, Generation, Guarantee, PartitionKey, Sink, SinkBatch, SinkError, SinkInput, SinkKind,
};
use fieldstream_schemas::encode::json::JsonWriter;
use futures::future::{BoxFuture, join_all};
use serde_json::Value;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::errors::sink_error;
use super::marks::{Durable, Marks};
use super::options::{self, Options, Plan, Server};
use super::plain;
use super::schema::{Layout, prepare};
use super::transaction::{Target, Work, commit};

/// Time between two turns of maintenance on plain PostgreSQL.
const MAINTENANCE: Duration = Duration::from_secs(60);

/// The catalogue line of the `timescale` sink.
pub const KIND: SinkKind = SinkKind {
    name: "timescale",
    about: "TimescaleDB hypertable, or partitioned table of plain PostgreSQL. Exactly once.",
    schema: || schemars::schema_for!(Options).to_value(),
    check: |value, inputs| options::read(value, inputs).map(|_| Guarantee::ExactlyOnce),
    place: |_| None,
    build,
};

fn build(value: &Value, inputs: &[SinkInput], context: &ConnectContext) -> Built<Box<dyn Sink>> {
    Ok(Box::new(Timescale::new(options::read(value, inputs)?, inputs, context)))
}

/// The sink. Work on a connection runs in a task of its own: a caller that stops waiting cannot cut a COPY in half.
pub(super) struct Timescale {
    target: Arc<Target>,
    server: Server,
    timeout: Duration,
    /// Idle connections; a connection that failed is closed, never put back.
    links: Vec<Option<PgConnection>>,
    layout: Option<Layout>,
    /// Days that have a partition, as far as is known.
    days: BTreeSet<i64>,
    owned: BTreeMap<PartitionKey, (Generation, Option<Durable>)>,
    maintenance: Option<JoinHandle<()>>,
    maintained: Option<Instant>,
}

/// Something done on a connection. Borrowed for as long as it takes.
type Job<T> = Box<dyn for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, SinkError>> + Send>;

impl Timescale {
    pub(super) fn new(plan: Plan, inputs: &[SinkInput], context: &ConnectContext) -> Self {
        let marks = Marks { schema: plan.table.schema.clone(), sink: context.node.to_string() };
        let encoders = inputs.iter().map(|input| JsonWriter::new(&input.edge.schema)).collect();
        Self {
            target: Arc::new(Target { table: plan.table, marks, encoders }),
            server: plan.server,
            timeout: plan.timeout,
            links: (0..plan.connections).map(|_| None).collect(),
            layout: None,
            days: BTreeSet::new(),
            owned: BTreeMap::new(),
            maintenance: None,
            maintained: None,
        }
    }

    /// Starts `job` on connection `number`.
    fn start<T: Send + 'static>(&mut self, number: usize, job: Job<T>) -> JoinHandle<(Option<PgConnection>, Result<T, SinkError>)> {
        let link = self.links.get_mut(number).and_then(Option::take);
        let (server, limit) = (self.server.clone(), self.timeout);
        tokio::spawn(async move { perform(link, &server, limit, job).await })
    }

    /// Does `job` on the first connection.
    async fn once<T: Send + 'static>(&mut self, job: Job<T>) -> Result<T, SinkError> {
        let task = self.start(0, job);
        self.finish(0, task.await)
    }

    fn finish<T>(
        &mut self,
        number: usize,
        done: Result<(Option<PgConnection>, Result<T, SinkError>), tokio::task::JoinError>,
    ) -> Result<T, SinkError> {
        let (link, result) = done.map_err(|e| SinkError::Fatal { context: "talk to the database".to_owned(), cause: e.to_string() })?;
        if let Some(place) = self.links.get_mut(number) {
            *place = link;
        }
        result
    }

    /// The table's layout; makes tables and policies at the first call.
    async fn layout(&mut self) -> Result<Layout, SinkError> {
        if let Some(layout) = self.layout {
            return Ok(layout);
        }
        let target = Arc::clone(&self.target);
        let made = self.once(Box::new(move |conn| {
            Box::pin(async move {
                let layout = prepare(conn, &target.table, &target.marks).await;
                let layout = layout.map_err(|e| e.into_sink_error("prepare tables"))?;
                let days = match layout {
                    Layout::Daily => plain::partitions(conn, &target.table).await.map_err(|e| sink_error("list partitions", &e))?,
                    Layout::Hypertable | Layout::Heap => BTreeSet::new(),
                };
                Ok((layout, days))
            })
        }));
        let (layout, days) = made.await?;
        self.days = days;
        self.layout = Some(layout);
        Ok(layout)
    }

    async fn make_partitions(&mut self, batches: &[SinkBatch]) -> Result<(), SinkError> {
        let mut wanted = BTreeSet::new();
        batches.iter().flat_map(|b| &b.rows).for_each(|part| plain::days(&part.batch.rows, &mut wanted));
        let missing: BTreeSet<i64> = wanted.difference(&self.days).copied().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let (target, days) = (Arc::clone(&self.target), missing.clone());
        let made = self.once(Box::new(move |conn| {
            Box::pin(async move {
                let made = plain::make_partitions(conn, &target.table, &days).await;
                made.map_err(|e| sink_error("make partitions", &e))
            })
        }));
        made.await?;
        self.days.extend(missing);
        Ok(())
    }

    /// Shares the batches among the connections: a partition always goes to the same one.
    fn shares(&self, batches: &[SinkBatch]) -> Result<Vec<Vec<Work>>, SinkError> {
        let mut shares: Vec<Vec<Work>> = self.links.iter().map(|_| Vec::new()).collect();
        for batch in batches {
            let key = &batch.partition;
            let Some((generation, told)) = self.owned.get(key) else {
                let cause = format!("partition {key} was not opened");
                return Err(SinkError::Fatal { context: "commit".to_owned(), cause });
            };
            let number = key.partition as usize % shares.len().max(1);
            if let Some(share) = shares.get_mut(number) {
                share.push(Work { batch: batch.clone(), generation: *generation, told: *told });
            }
        }
        Ok(shares)
    }

    async fn store(&mut self, layout: Layout, batches: &[SinkBatch]) -> Result<Vec<(PartitionKey, Durable)>, SinkError> {
        let mut numbers = Vec::new();
        let mut tasks = Vec::new();
        for (number, share) in self.shares(batches)?.into_iter().enumerate().filter(|(_, share)| !share.is_empty()) {
            let target = Arc::clone(&self.target);
            numbers.push(number);
            tasks.push(self.start(number, Box::new(move |conn| Box::pin(async move { commit(conn, &target, layout, &share).await }))));
        }
        let mut moved = Vec::new();
        let mut first_error = None;
        for (number, done) in numbers.into_iter().zip(join_all(tasks).await) {
            match self.finish(number, done) {
                Ok(part) => moved.extend(part),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        // What the other connections did store is found by its marks when the batches come again.
        first_error.map_or(Ok(moved), Err)
    }

    /// Rollups and retention of plain PostgreSQL, in the background on a connection of their own.
    fn maintain(&mut self) {
        let due = self.maintained.is_none_or(|at| at.elapsed() >= MAINTENANCE);
        if !due || self.maintenance.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.maintained = Some(Instant::now());
        let (target, server, limit) = (Arc::clone(&self.target), self.server.clone(), self.timeout);
        self.maintenance = Some(tokio::spawn(async move {
            if let Err(error) = maintain_once(target, &server, limit).await {
                tracing::warn!(%error, "maintenance failed, the next turn tries again");
            }
        }));
    }
}

async fn maintain_once(target: Arc<Target>, server: &Server, limit: Duration) -> Result<(), SinkError> {
    let job: Job<()> = Box::new(move |conn| {
        Box::pin(async move { plain::maintain(conn, &target.table).await.map_err(|e| sink_error("maintain tables", &e)) })
    });
    // Rollups of a long backlog take their time.
    let (link, result) = perform(None, server, limit * 10, job).await;
    if let Some(link) = link {
        let _ = link.close().await;
    }
    result
}

/// Connects if need be and does `job`. The connection comes back only if all went well: after an error, or when the
/// time is up, it is closed, which also ends its transaction on the server.
async fn perform<T>(
    link: Option<PgConnection>,
    server: &Server,
    limit: Duration,
    job: Job<T>,
) -> (Option<PgConnection>, Result<T, SinkError>) {
    let late = |context: &str| SinkError::Retry { context: context.to_owned(), cause: format!("no answer within {limit:?}") };
    let mut link = match link {
        Some(link) => link,
        None => match timeout(limit.min(Duration::from_secs(15)), server.0.clone().disable_statement_logging().connect()).await {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return (None, Err(sink_error(&format!("connect to {server:?}"), &error))),
            Err(_) => return (None, Err(late(&format!("connect to {server:?}")))),
        },
    };
    match timeout(limit, job(&mut link)).await {
        Ok(Ok(done)) => (Some(link), Ok(done)),
        Ok(Err(error)) => (None, Err(error)),
        Err(_) => (None, Err(late("talk to the database"))),
    }
}

#[async_trait]
impl Sink for Timescale {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&mut self, partition: &PartitionKey, generation: Generation) -> Result<Option<Committed>, SinkError> {
        self.layout().await?;
        let (target, key) = (Arc::clone(&self.target), partition.clone());
        let taken = self.once(Box::new(move |conn| {
            Box::pin(async move {
                let failed = |e: sqlx::Error| sink_error("take a partition", &e);
                match target.marks.take(conn, &key, generation).await.map_err(failed)? {
                    Some(stored) => Ok(stored),
                    None => {
                        let owner = target.marks.owner(conn, &key).await.map_err(failed)?;
                        Err(SinkError::Fenced { partition: key, owner })
                    }
                }
            })
        }));
        let stored = taken.await?;
        self.owned.insert(partition.clone(), (generation, stored.durable));
        Ok(stored.durable.map(|durable| committed(partition, durable)))
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        let layout = self.layout().await?;
        if layout == Layout::Daily {
            self.make_partitions(batches).await?;
        }
        let moved = match self.store(layout, batches).await {
            Ok(moved) => moved,
            Err(error) => {
                // A partition may have been dropped by another worker's retention: look again before the next try.
                self.days.clear();
                return Err(error);
            }
        };
        for (key, durable) in &moved {
            if let Some((_, told)) = self.owned.get_mut(key) {
                *told = Some(*durable);
            }
        }
        if layout == Layout::Daily {
            self.maintain();
        }
        Ok(moved.iter().map(|(key, durable)| committed(key, *durable)).collect())
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        if let Some(task) = self.maintenance.take() {
            let _ = task.await;
        }
        if self.layout == Some(Layout::Daily) {
            maintain_once(Arc::clone(&self.target), &self.server, self.timeout).await?;
        }
        for link in self.links.iter_mut().filter_map(Option::take) {
            let _ = link.close().await;
        }
        Ok(())
    }
}

fn committed(key: &PartitionKey, durable: Durable) -> Committed {
    Committed { partition: key.clone(), mark: durable.mark, delivered: durable.delivered, refused: durable.refused }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
