//! Arrow columns as columns of a table.

use arrow::datatypes::{DataType, SchemaRef, TimeUnit};

/// Text columns that hold JSON and are stored as such.
const JSON_COLUMNS: [&str; 3] = ["tags", "factors", "actions"];

/// Column types this sink writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PgType {
    /// `text`
    Text,
    /// `jsonb`
    Json,
    /// `timestamptz`
    Time,
    /// `float8`
    Float,
    /// `int8`
    Int,
    /// `bool`
    Bool,
    /// `bytea`
    Bytes,
}

impl PgType {
    /// The type's name as `format_type` prints it.
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "jsonb",
            Self::Time => "timestamp with time zone",
            Self::Float => "double precision",
            Self::Int => "bigint",
            Self::Bool => "boolean",
            Self::Bytes => "bytea",
        }
    }

    fn of(name: &str, data_type: &DataType) -> Option<Self> {
        Some(match data_type {
            DataType::Utf8 if JSON_COLUMNS.contains(&name) => Self::Json,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Self::Text,
            DataType::Dictionary(_, values) if **values == DataType::Utf8 => Self::Text,
            DataType::Timestamp(_, _) => Self::Time,
            DataType::Float64 | DataType::Float32 => Self::Float,
            DataType::Int64 | DataType::Int32 | DataType::Int16 | DataType::Int8 => Self::Int,
            DataType::UInt64 | DataType::UInt32 | DataType::UInt16 | DataType::UInt8 => Self::Int,
            DataType::Boolean => Self::Bool,
            DataType::Binary | DataType::LargeBinary => Self::Bytes,
            _ => return None,
        })
    }
}

/// A column of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    /// Name in Arrow and in the table.
    pub(crate) name: String,
    /// Its type.
    pub(crate) kind: PgType,
    /// Whether it may be null.
    pub(crate) nullable: bool,
}

/// The table columns of a schema, in its order.
///
/// # Errors
/// The column that has no counterpart.
pub(crate) fn plan_columns(schema: &SchemaRef) -> Result<Vec<Column>, String> {
    let column = |field: &arrow::datatypes::FieldRef| {
        let kind = PgType::of(field.name(), field.data_type())
            .ok_or_else(|| format!("column `{}` of type {} cannot be stored in a table", field.name(), field.data_type()))?;
        Ok(Column { name: field.name().clone(), kind, nullable: field.is_nullable() })
    };
    schema.fields().iter().map(column).collect()
}

/// The Arrow type the encoder reads a column in; other types of the same kind are cast to it first.
pub(crate) fn canonical(kind: PgType, data_type: &DataType) -> DataType {
    match kind {
        PgType::Text if matches!(data_type, DataType::Dictionary(_, _)) => fieldstream_schemas::columns::name_type(),
        PgType::Text | PgType::Json => DataType::Utf8,
        // The zone stays: values count from the same moment in all of them, and a cast between zones would need their rules.
        PgType::Time => match data_type {
            DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
            _ => fieldstream_schemas::columns::time_type(),
        },
        PgType::Float => DataType::Float64,
        // A u64 may not fit: the encoder decides row by row.
        PgType::Int if *data_type == DataType::UInt64 => DataType::UInt64,
        PgType::Int => DataType::Int64,
        PgType::Bool => DataType::Boolean,
        PgType::Bytes => DataType::Binary,
    }
}
