//! The `file` sink: newline-delimited JSON or CSV, exactly once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use fieldstream_engine_api::{
    Built, Committed, ConfigError, ConnectContext, Generation, Guarantee, PartitionKey, Sink, SinkBatch, SinkError, SinkInput, SinkKind,
};
use fieldstream_schemas::columns::{TS, time_type};
use fieldstream_schemas::encode::{CsvWriter, JsonWriter};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::template::Template;
use super::writer::{Encoder, Writer};
use crate::options;

/// The catalogue line of the `file` sink.
pub const KIND: SinkKind = SinkKind {
    name: "file",
    about: "Files of newline-delimited JSON or CSV, by event time if wanted. Exactly once.",
    schema: || schemars::schema_for!(Options).to_value(),
    check: |value, inputs| read_options(value, inputs).map(|_| Guarantee::ExactlyOnce),
    place: |value| options::parse::<Options>(value).ok().map(|o| PathBuf::from(o.path)),
    build,
};

/// Options of the `file` sink.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Path of the file; `%Y`, `%m`, `%d` and `%H` are the row's event time in UTC. Relative to the working directory.
    path: String,
    /// How rows are written.
    #[serde(default)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    /// One JSON object a line.
    #[default]
    Ndjson,
    /// Records with a header at the top of each file, for rows of one schema. Null and empty text are empty fields.
    Csv,
}

/// Checked options.
#[derive(Debug)]
struct Plan {
    template: Template,
    format: Format,
}

fn read_options(value: &Value, inputs: &[SinkInput]) -> Built<Plan> {
    let options: Options = options::parse(value)?;
    let template = Template::parse(&options.path).map_err(|message| vec![ConfigError::new("/path", message)])?;
    if let (Format::Csv, Some(first)) = (options.format, inputs.first())
        && let Some(other) = inputs.iter().find(|i| i.edge.schema.fields() != first.edge.schema.fields())
    {
        let message = format!("`{}` and `{}` have different columns, but a CSV file has one header", first.name, other.name);
        return Err(vec![ConfigError::new("/format", message).hint("give each its own file sink, or write ndjson")]);
    }
    let timeless = |input: &&SinkInput| input.edge.schema.field_with_name(TS).map_or(true, |f| *f.data_type() != time_type());
    match inputs.iter().find(timeless) {
        Some(input) if template.dated() => {
            let error = ConfigError::new("/path", format!("takes the event time, but `{}` has no column `{TS}`", input.name));
            Err(vec![error.hint("write a path without %Y, %m, %d and %H")])
        }
        _ => Ok(Plan { template, format: options.format }),
    }
}

fn build(value: &Value, inputs: &[SinkInput], context: &ConnectContext) -> Built<Box<dyn Sink>> {
    Ok(Box::new(FileSink::new(read_options(value, inputs)?, inputs, context)))
}

/// The writer works on the blocking pool; it is shared so that a dropped `commit` leaves it whole.
struct FileSink {
    writer: Arc<Mutex<Writer>>,
}

impl FileSink {
    fn new(plan: Plan, inputs: &[SinkInput], context: &ConnectContext) -> Self {
        let encoder = |input: &SinkInput| match plan.format {
            Format::Ndjson => Encoder::Json(JsonWriter::new(&input.edge.schema)),
            Format::Csv => Encoder::Csv(CsvWriter::new(&input.edge.schema)),
        };
        let encoders: Vec<Encoder> = inputs.iter().map(encoder).collect();
        let header = match encoders.first() {
            Some(Encoder::Csv(csv)) => csv.header(),
            _ => Vec::new(),
        };
        let writer = Writer {
            sink: context.node.to_string(),
            template: plan.template,
            encoders,
            header,
            fresh: !context.resume,
            owned: BTreeMap::new(),
        };
        Self { writer: Arc::new(Mutex::new(writer)) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer) -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let writer = Arc::clone(&self.writer);
        let task = spawn_blocking(move || work(&mut writer.lock().unwrap_or_else(PoisonError::into_inner)));
        task.await.map_err(|e| SinkError::Fatal { context: "write files".to_owned(), cause: e.to_string() })?
    }
}

#[async_trait]
impl Sink for FileSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&mut self, partition: &PartitionKey, generation: Generation) -> Result<Option<Committed>, SinkError> {
        let key = partition.clone();
        self.blocking(move |writer| writer.open(&key, generation)).await
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        let batches = batches.to_vec();
        self.blocking(move |writer| writer.commit(&batches)).await
    }
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
