//! Stores, and statements on them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt as _;

use crate::tables::{self, Table};
use crate::{QueryError, render};

/// Memory that statements may take, in bytes; sorts and groups beyond it go to temporary files or end with an error.
const MEMORY: usize = 1 << 30;

/// Limits of one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of the statement in bytes.
    pub statement: usize,
    /// Rows of the answer; what comes after them is left out.
    pub rows: usize,
    /// Time until the answer is complete.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { statement: 64 << 10, rows: 10_000, timeout: Duration::from_secs(60) }
    }
}

/// What a statement returned.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The columns, also where there are no rows.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// True when there were more rows than the limit.
    pub truncated: bool,
}

impl Answer {
    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// The answer as text, see [`render`](crate::render()).
    ///
    /// # Errors
    /// If a value has no text, which is a defect.
    pub fn render(&self, format: render::Format) -> Result<String, QueryError> {
        render::render(self, format)
    }
}

/// The stores at or below one directory, as they were when opened.
pub struct Store {
    ctx: SessionContext,
    tables: Vec<Table>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("tables", &self.tables).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens a directory that a `parquet` sink writes to, or one that holds several of them.
    ///
    /// # Errors
    /// [`QueryError::NoStore`] where there is none; [`QueryError::Store`] when it cannot be read.
    pub async fn open(path: &Path) -> Result<Self, QueryError> {
        let no_store = || QueryError::NoStore { path: path.display().to_string() };
        let root = path.canonicalize().map_err(|_| no_store())?;
        let roots = tables::find(&root);
        if roots.is_empty() {
            return Err(no_store());
        }
        let failed = |e: datafusion::error::DataFusionError| QueryError::store("start DataFusion", QueryError::statement(&e));
        let runtime = RuntimeEnvBuilder::new().with_memory_limit(MEMORY, 1.0).build_arc().map_err(failed)?;
        let config = SessionConfig::new().with_information_schema(true);
        let ctx = SessionContext::new_with_config_rt(config, Arc::clone(&runtime));
        let tables = tables::register(&ctx, &roots).await?;
        Ok(Self { ctx, tables })
    }

    /// The tables, by name.
    #[must_use]
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// Answers one statement: SELECT, WITH, VALUES, EXPLAIN, DESCRIBE or SHOW. Nothing can be changed.
    ///
    /// # Errors
    /// [`QueryError::Statement`] when the statement is wrong, too long or would change something, or a file cannot be read;
    /// [`QueryError::Timeout`] when it takes too long.
    pub async fn query(&self, sql: &str, limits: Limits) -> Result<Answer, QueryError> {
        if sql.len() > limits.statement {
            return Err(QueryError::Statement(format!("the statement is longer than {} bytes", limits.statement)));
        }
        let answer = tokio::time::timeout(limits.timeout, self.collect(sql, limits.rows)).await;
        answer.map_err(|_| QueryError::Timeout(limits.timeout))?
    }

    async fn collect(&self, sql: &str, limit: usize) -> Result<Answer, QueryError> {
        let failed = |e: datafusion::error::DataFusionError| QueryError::statement(&e);
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let rows = self.ctx.sql_with_options(sql, read_only).await.map_err(failed)?;
        let mut stream = rows.execute_stream().await.map_err(failed)?;
        let mut answer = Answer { schema: stream.schema(), batches: Vec::new(), truncated: false };
        let mut room = limit;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(failed)?;
            if batch.num_rows() > room {
                answer.batches.push(batch.slice(0, room));
                answer.truncated = true;
                break;
            }
            room -= batch.num_rows();
            answer.batches.push(batch);
        }
        Ok(answer)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
