//! Options of `window`, and the checked plan made from them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use fieldstream_engine_api::{BuildContext, ConfigError, ConfigErrors, Edge, Space};
use fieldstream_schemas::columns::{DEVICE_ID, SENSOR_ID, TS, name_type, time_type};
use schemars::JsonSchema;
use serde::Deserialize;

use super::cells::{Layout, Reading};
use crate::expr::Expr;
use crate::options::{TimeSpan, pointer_to};

/// First event time of the window.
pub const WINDOW_START: &str = "window_start";
/// First event time after the window.
pub const WINDOW_END: &str = "window_end";

/// Longest size, gap or disorder: a thousand years, so that adding them to a checked time cannot overflow.
const LONGEST_US: i64 = 1000 * 366 * 86_400_000_000;

/// Options of `window`. Exactly one of `tumbling`, `hopping` and `session`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WindowOptions {
    /// Windows of this size, one after the other, aligned with the epoch.
    tumbling: Option<TimeSpan>,
    /// Windows of `size` that start `every` so often, aligned with the epoch.
    hopping: Option<Hopping>,
    /// Windows that last until nothing comes for `gap`.
    session: Option<Session>,
    /// Whose windows: each series has its own (default for readings), or all series of a device share one.
    by: Option<By>,
    /// Result columns by name.
    aggregate: BTreeMap<String, Aggregate>,
    /// Most windows one series (or device) may have open or kept at once; rows that need more are rejected with code `window_limit`.
    #[serde(default = "default_max_open")]
    max_open: usize,
}

fn default_max_open() -> usize {
    1024
}

/// Overlapping windows.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Hopping {
    /// Length of a window.
    size: TimeSpan,
    /// Distance between the starts of two windows.
    every: TimeSpan,
}

/// Windows by activity.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Session {
    /// A row this long after the last one opens a new window.
    gap: TimeSpan,
}

/// Whose windows.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum By {
    /// One per device and sensor.
    Series,
    /// One per device.
    Device,
}

/// A result column: what is computed of a column or SQL expression. Null and NaN count as no value.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Aggregate {
    /// Number of rows (`{}` or `"*"`), or of values.
    Count(CountOf),
    /// Smallest value.
    Min(String),
    /// Largest value.
    Max(String),
    /// Sum in row order.
    Sum(String),
    /// Sum by count.
    Mean(String),
    /// Sample standard deviation; null below two values.
    Stddev(String),
    /// Value with the lowest event time; the first to come among equals.
    First(String),
    /// Value with the highest event time; the last to come among equals.
    Last(String),
    /// Quantile with a relative error of at most 1 %.
    Quantile(Quantile),
}

/// What `count` counts.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
enum CountOf {
    /// A column or expression, or `*`.
    Of(String),
    /// Rows.
    Rows(Nothing),
}

/// `{}`
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// A quantile.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Quantile {
    /// Column or expression.
    of: String,
    /// Between 0 and 1.
    q: f64,
}

/// How event times are cut.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shape {
    /// Each row falls into `size / every` windows, rounded up. Tumbling windows have `size == every`.
    Aligned {
        size: i64,
        every: i64,
    },
    Session {
        gap: i64,
    },
}

/// A result column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Outcome {
    /// Number of the input.
    pub(super) input: usize,
    /// What is read of it.
    pub(super) reading: Reading,
}

/// Everything `window` needs to run.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) shape: Shape,
    pub(super) space: Space,
    pub(super) out_of_orderness: i64,
    pub(super) allowed_lateness: i64,
    pub(super) max_open: usize,
    /// Expressions to evaluate; `None` counts rows.
    pub(super) inputs: Vec<Option<Expr>>,
    pub(super) results: Vec<Outcome>,
    pub(super) layout: Arc<Layout>,
    pub(super) schema: SchemaRef,
    /// Column number of `ts` in the input.
    pub(super) ts: usize,
}

impl Plan {
    /// Checks options against the input.
    pub(super) fn new(options: &WindowOptions, input: &Edge, context: &BuildContext) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        let shape = shape(options, &mut errors);
        let space = match options.by {
            Some(By::Device) => Space::Device,
            Some(By::Series) if input.key != Space::Series => {
                errors.push(ConfigError::new("/by", "the rows have no series").hint("write `by: device`"));
                Space::Device
            }
            Some(By::Series) => Space::Series,
            None if input.key == Space::Series => Space::Series,
            None => Space::Device,
        };
        let ts = input.schema.index_of(TS).ok().filter(|at| *input.schema.field(*at).data_type() == time_type());
        if ts.is_none() {
            errors.push(ConfigError::new("", "the rows have no time column `ts`").hint("keep `ts` in the map before this window"));
        }
        if !(1..=1_000_000).contains(&options.max_open) {
            errors.push(ConfigError::new("/max_open", "must lie between 1 and 1000000"));
        }
        let (inputs, results) = inputs(options, input, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let kinds: Vec<(bool, Vec<Reading>)> = inputs
            .iter()
            .enumerate()
            .map(|(n, expr)| (expr.is_some(), results.iter().filter(|r| r.input == n).map(|r| r.reading).collect()))
            .collect();
        let schema = output_schema(options, space, &results);
        Ok(Self {
            shape: shape.unwrap_or(Shape::Session { gap: 1 }),
            space,
            out_of_orderness: TimeSpan(context.time.out_of_orderness).us().min(LONGEST_US),
            allowed_lateness: TimeSpan(context.time.allowed_lateness).us().min(LONGEST_US),
            max_open: options.max_open,
            inputs,
            results,
            layout: Arc::new(Layout::new(&kinds)),
            schema,
            ts: ts.unwrap_or_default(),
        })
    }

    /// What an open window is a window of. Under other words it must not be taken over.
    pub(super) fn meaning(&self) -> HashMap<String, String> {
        let shape = match self.shape {
            Shape::Aligned { size, every } if size == every => format!("tumbling {:?}", Duration::from_micros(size.unsigned_abs())),
            Shape::Aligned { size, every } => {
                let [size, every] = [size, every].map(|us| Duration::from_micros(us.unsigned_abs()));
                format!("hopping {size:?} every {every:?}")
            }
            // Open sessions have their end, which a later row may move by the new gap.
            Shape::Session { .. } => "session".to_owned(),
        };
        let inputs: Vec<&str> = self.inputs.iter().map(|input| input.as_ref().map_or("*", Expr::sql)).collect();
        HashMap::from([("windows".to_owned(), shape), ("inputs".to_owned(), inputs.join(", "))])
    }
}

fn span(path: &str, span: TimeSpan, errors: &mut ConfigErrors) -> i64 {
    if !(1..=LONGEST_US).contains(&span.us()) {
        errors.push(ConfigError::new(path, "must be longer than nothing and at most a thousand years"));
    }
    span.us()
}

fn shape(options: &WindowOptions, errors: &mut ConfigErrors) -> Option<Shape> {
    match (options.tumbling, &options.hopping, &options.session) {
        (Some(size), None, None) => {
            let size = span("/tumbling", size, errors);
            Some(Shape::Aligned { size, every: size })
        }
        (None, Some(hopping), None) => {
            let (size, every) = (span("/hopping/size", hopping.size, errors), span("/hopping/every", hopping.every, errors));
            if every > size {
                errors.push(ConfigError::new("/hopping/every", "longer than `size`: rows between two windows would be lost"));
            } else if size / every.max(1) > options.max_open as i64 {
                errors
                    .push(ConfigError::new("/hopping/every", "a row would fall into more windows than `max_open`").hint("hop less often"));
            }
            Some(Shape::Aligned { size, every })
        }
        (None, None, Some(session)) => Some(Shape::Session { gap: span("/session/gap", session.gap, errors) }),
        _ => {
            errors.push(ConfigError::new("", "needs exactly one of `tumbling`, `hopping` and `session`"));
            None
        }
    }
}

/// The distinct inputs, and the results that read them.
fn inputs(options: &WindowOptions, edge: &Edge, errors: &mut ConfigErrors) -> (Vec<Option<Expr>>, Vec<Outcome>) {
    let mut inputs: Vec<Option<Expr>> = Vec::new();
    let mut results = Vec::new();
    if options.aggregate.is_empty() {
        errors.push(
            ConfigError::new("/aggregate", "nothing is aggregated").hint("write, for example, `aggregate: { highest: { max: value } }`"),
        );
    }
    for (name, aggregate) in &options.aggregate {
        let path = format!("/aggregate{}", pointer_to(name));
        if [DEVICE_ID, SENSOR_ID, TS, WINDOW_START, WINDOW_END].contains(&name.as_str()) {
            errors.push(ConfigError::new(&path, format!("`{name}` is a column of every window")).hint("choose another name"));
        }
        let (of, reading, key) = match aggregate {
            Aggregate::Count(CountOf::Rows(_)) => ("*", Reading::Count, "/count"),
            Aggregate::Count(CountOf::Of(of)) => (of.trim(), Reading::Count, "/count"),
            Aggregate::Min(of) => (of.as_str(), Reading::Min, "/min"),
            Aggregate::Max(of) => (of.as_str(), Reading::Max, "/max"),
            Aggregate::Sum(of) => (of.as_str(), Reading::Sum, "/sum"),
            Aggregate::Mean(of) => (of.as_str(), Reading::Mean, "/mean"),
            Aggregate::Stddev(of) => (of.as_str(), Reading::Stddev, "/stddev"),
            Aggregate::First(of) => (of.as_str(), Reading::First, "/first"),
            Aggregate::Last(of) => (of.as_str(), Reading::Last, "/last"),
            Aggregate::Quantile(quantile) => {
                if !(0.0..=1.0).contains(&quantile.q) {
                    errors.push(ConfigError::new(format!("{path}/quantile/q"), "must lie between 0 and 1"));
                }
                (quantile.of.as_str(), Reading::Quantile(quantile.q), "/quantile/of")
            }
        };
        let rows = of == "*" && reading == Reading::Count;
        let known = inputs.iter().position(|input| input.as_ref().map_or(rows, |expr| expr.sql() == of));
        let input = known.unwrap_or_else(|| {
            let expr = match reading {
                Reading::Count if rows => Ok(None),
                // Anything that is not null can be counted.
                Reading::Count => Expr::number(of, &edge.schema)
                    .or_else(|_| {
                        Expr::parse(of, &edge.schema)
                            .and_then(|_| Expr::number(&format!("CASE WHEN ({of}) IS NOT NULL THEN 1.0 END"), &edge.schema))
                    })
                    .map(Some),
                _ => Expr::number(of, &edge.schema).map(Some),
            };
            inputs.push(expr.unwrap_or_else(|why| {
                errors.push(ConfigError::new(format!("{path}{key}"), why));
                None
            }));
            inputs.len() - 1
        });
        results.push(Outcome { input, reading });
    }
    (inputs, results)
}

fn output_schema(options: &WindowOptions, space: Space, results: &[Outcome]) -> SchemaRef {
    let mut fields = vec![Field::new(DEVICE_ID, name_type(), false)];
    if space == Space::Series {
        fields.push(Field::new(SENSOR_ID, name_type(), false));
    }
    fields.extend([TS, WINDOW_START, WINDOW_END].map(|name| Field::new(name, time_type(), false)));
    for (name, result) in options.aggregate.keys().zip(results) {
        let counts = result.reading == Reading::Count;
        fields.push(Field::new(name, if counts { DataType::Int64 } else { DataType::Float64 }, !counts));
    }
    Arc::new(Schema::new(fields))
}
