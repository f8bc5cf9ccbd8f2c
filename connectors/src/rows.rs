//! Rows as messages: the envelope, the id and the key that the message sinks have in common.

use std::fmt::Write as _;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use fieldstream_engine_api::{ConfigError, KeyedBatch, PartitionKey, Position, SinkInput};
use fieldstream_schemas::columns::{DEVICE_ID, ID, SENSOR_ID, TS, name_at};
use fieldstream_schemas::encode::cloudevents::EventWriter;
use fieldstream_schemas::encode::json::JsonWriter;
use fieldstream_schemas::records::RecordIds;

/// What a message looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The row as one JSON object; its id as the header `id`.
    Json,
    /// CloudEvents, binary mode: the row as JSON, attributes as headers.
    EventHeaders,
    /// CloudEvents, structured mode: no headers.
    Event,
}

impl Form {
    /// Content type of the message.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json | Self::EventHeaders => "application/json",
            Self::Event => fieldstream_schemas::encode::cloudevents::CONTENT_TYPE,
        }
    }
}

/// Headers of a message.
pub(crate) type Headers = Vec<(&'static str, String)>;

/// Writes the rows of a sink's inputs.
pub(crate) struct RowWriter {
    form: Form,
    inputs: Vec<Input>,
}

struct Input {
    name: String,
    json: JsonWriter,
    event: EventWriter,
}

/// Ids of one partition's rows that bring none, one maker per input.
pub(crate) struct OwnIds(Vec<RecordIds>);

impl RowWriter {
    /// A writer for `inputs` of `pipeline`.
    pub(crate) fn new(form: Form, inputs: &[SinkInput], pipeline: &str) -> Self {
        let inputs = inputs.iter().map(|input| Input {
            name: input.name.to_string(),
            json: JsonWriter::new(&input.edge.schema),
            event: EventWriter::new(&input.edge.schema, format!("/{pipeline}/{}", input.name)),
        });
        Self { form, inputs: inputs.collect() }
    }

    /// The makers of ids for `partition`. Ids depend on where a row was made and not on the sink.
    pub(crate) fn own_ids(&self, partition: &PartitionKey) -> OwnIds {
        let ids = |input: &Input| RecordIds::new(&partition.pipeline, &input.name, &partition.log_id.0, partition.partition);
        OwnIds(self.inputs.iter().map(ids).collect())
    }

    /// Appends row `row` of input `input` to `out` and returns its headers. An input that does not exist writes nothing.
    pub(crate) fn write(&self, ids: &OwnIds, input: usize, batch: &KeyedBatch, row: usize, out: &mut Vec<u8>) -> Headers {
        let (Some(writer), Some(ids)) = (self.inputs.get(input), ids.0.get(input)) else { return Headers::new() };
        let id = own_id(ids, batch, row);
        match self.form {
            Form::Json => {
                writer.json.write_row(&batch.rows, row, out);
                vec![("id", id)]
            }
            Form::EventHeaders => writer.event.write_binary(&batch.rows, row, &id, out),
            Form::Event => {
                writer.event.write_row(&batch.rows, row, &id, out);
                Headers::new()
            }
        }
    }
}

/// The row's id, or one made of where it came from, which is the same after every replay.
fn own_id(ids: &RecordIds, batch: &KeyedBatch, row: usize) -> String {
    if let Some(id) = text_at(&batch.rows, ID, row) {
        return id;
    }
    let mut key = text_at(&batch.rows, DEVICE_ID, row).unwrap_or_default();
    if let Some(sensor) = text_at(&batch.rows, SENSOR_ID, row) {
        key.push('\u{1f}');
        key.push_str(&sensor);
    }
    let ts = batch.rows.column_by_name(TS).and_then(|c| c.as_primitive_opt::<TimestampMicrosecondType>());
    if let Some(ts) = ts.filter(|ts| ts.is_valid(row)) {
        // One row may close several windows of a series, which differ in their time.
        let _ = write!(key, "\u{1f}{}", ts.value(row));
    }
    ids.id(batch.keys.position.get(row).copied().unwrap_or(Position::default()), &key, 0)
}

/// The value of a column as text; `None` for null, or where there is no such column.
pub(crate) fn text_at(batch: &RecordBatch, column: &str, row: usize) -> Option<String> {
    let array = batch.column_by_name(column)?;
    if let Some(name) = name_at(array, row) {
        return Some(name.to_owned());
    }
    if row >= array.len() || array.is_null(row) {
        return None;
    }
    let format = FormatOptions::default();
    ArrayFormatter::try_new(array, &format).ok()?.value(row).try_to_string().ok()
}

/// Rows of different columns cannot be told apart in plain JSON.
pub(crate) fn check_form(form: Form, inputs: &[SinkInput]) -> Option<ConfigError> {
    let columns = |input: &SinkInput| input.edge.schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
    let first = columns(inputs.first()?);
    let mixed = form == Form::Json && inputs.iter().any(|input| columns(input) != first);
    mixed.then(|| {
        ConfigError::new("/envelope", "rows of different columns cannot meet in plain JSON")
            .hint("write `envelope: cloudevents`, which names the kind of each row")
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, DictionaryArray, Float64Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::UInt32Type;
    use fieldstream_engine_api::{Edge, Keys, LogId, Space};

    use super::*;

    fn rows(ids: Option<Vec<Option<&str>>>) -> KeyedBatch {
        let devices: DictionaryArray<UInt32Type> = vec!["pump-1", "pump-2"].into_iter().collect();
        let mut columns: Vec<(&str, ArrayRef)> = vec![
            (DEVICE_ID, Arc::new(devices)),
            (TS, Arc::new(TimestampMicrosecondArray::from(vec![1_000_000, 2_000_000]).with_timezone("UTC"))),
            ("max_c", Arc::new(Float64Array::from(vec![Some(1.5), None]))),
        ];
        if let Some(ids) = ids {
            columns.push((ID, Arc::new(StringArray::from(ids))));
        }
        let mut keys = Keys::default();
        keys.push(0, 0, Position::new(7, 0));
        keys.push(1, 1, Position::new(7, 1));
        KeyedBatch::new(RecordBatch::try_from_iter(columns).expect("equal lengths"), keys)
    }

    fn written(form: Form, batch: &KeyedBatch) -> Vec<(String, Headers)> {
        let input = SinkInput { name: Arc::from("minute"), edge: Edge { schema: batch.rows.schema(), key: Space::Device } };
        let writer = RowWriter::new(form, &[input], "cold-chain");
        let partition = PartitionKey { pipeline: Arc::from("cold-chain"), log_id: LogId(Arc::from("l")), partition: 3 };
        let ids = writer.own_ids(&partition);
        let one = |row| {
            let mut out = Vec::new();
            let headers = writer.write(&ids, 0, batch, row, &mut out);
            (String::from_utf8(out).expect("JSON is UTF-8"), headers)
        };
        (0..batch.len()).map(one).collect()
    }

    #[test]
    fn ids_are_the_rows_own_or_made_of_its_position() {
        let own = written(Form::Json, &rows(Some(vec![Some("a1"), None])));
        assert_eq!(own[0].1, [("id", "a1".to_owned())]);
        let made = written(Form::Json, &rows(None));
        assert_eq!(made[1].1, own[1].1, "null is made too, from the same position");
        assert_ne!(made[0].1, made[1].1);
        assert_eq!(written(Form::Json, &rows(None)), made, "the same again");
        assert!(made[0].0.contains("1.5") && made[0].0.contains("pump-1"), "{}", made[0].0);
    }

    #[test]
    fn events_carry_the_id_in_headers_or_inside() {
        let batch = rows(Some(vec![Some("a1"), Some("a2")]));
        let binary = written(Form::EventHeaders, &batch);
        assert!(binary[0].1.iter().any(|(name, value)| *name == "ce_id" && value == "a1"), "{:?}", binary[0].1);
        let structured = written(Form::Event, &batch);
        let event: serde_json::Value = serde_json::from_str(&structured[1].0).expect("one JSON object");
        assert_eq!((event["id"].as_str(), event["specversion"].as_str()), (Some("a2"), Some("1.0")));
        assert_eq!(event["source"], "/cold-chain/minute");
    }

    #[test]
    fn different_columns_meet_in_an_envelope_only() {
        let batch = rows(None);
        let input = |batch: &KeyedBatch| SinkInput { name: Arc::from("x"), edge: Edge { schema: batch.rows.schema(), key: Space::Device } };
        let mixed = [input(&batch), input(&rows(Some(vec![None, None])))];
        assert!(check_form(Form::Json, &mixed).is_some());
        assert!(check_form(Form::Event, &mixed).is_none());
        assert!(check_form(Form::Json, &mixed[..1]).is_none());
    }
}
