//! `predict`: what will happen, and how a device is, as predictions.
//!
//! Rows go in and stay; predictions come out. A row whose number is null, NaN or infinite, or for which `where` is not true, is
//! passed over. A new method is a file here, a field of [`PredictOptions`] and a line in [`build`].

mod buckets;
mod health;
mod output;
mod rows;
mod student;
#[cfg(test)]
mod tests;
mod trend;

use fieldstream_engine_api::{BuildContext, ConfigError, ConfigErrors, Edge, Operator, OperatorKind, Output, Space};
use fieldstream_schemas::records::prediction_schema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

pub use self::health::HealthOptions;
pub use self::trend::{Direction, TrendOptions};

use self::buckets::Buckets;
use self::health::Health;
use self::output::Predictions;
use self::rows::Rows;
use self::trend::{Line, Trend};
use crate::options::{parse, schema};

/// The catalogue line.
pub const KIND: OperatorKind = OperatorKind {
    name: "predict",
    about: "Foretells when a trend crosses a limit, or scores the health of a device",
    rejects: true,
    schema: schema::<PredictOptions>,
    build,
};

/// Options of `predict`: exactly one method.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PredictOptions {
    /// When a value will cross a limit.
    trend_to_limit: Option<TrendOptions>,
    /// A score from 0 to 100 for a device.
    health: Option<HealthOptions>,
    /// What to do about it, as told with every prediction.
    #[serde(default)]
    actions: Vec<String>,
}

/// Builds `predict`.
///
/// # Errors
/// Everything wrong with the options.
pub fn build(options: &Value, input: &Edge, context: &BuildContext) -> Result<Box<dyn Operator>, ConfigErrors> {
    let options: PredictOptions = parse(options)?;
    let space = if input.key == Space::Series { Space::Series } else { Space::Device };
    let predictions = Predictions::new(context, &options.actions);
    let outputs = |key| vec![Output { name: "".into(), edge: Edge { schema: prediction_schema(), key } }];
    match (&options.trend_to_limit, &options.health) {
        (Some(trend), None) => {
            let rows = Rows::new(trend.column.as_deref(), trend.condition.as_deref(), &input.schema);
            let (line, rows) = both(Line::new(trend), rows, "/trend_to_limit")?;
            let buckets = Buckets::new(space, trend.buckets, trend.lookback.0);
            Ok(Box::new(Trend { line, space, rows, buckets, predictions, outputs: outputs(space) }))
        }
        (None, Some(health)) => {
            let rows = Rows::new(health.column.as_deref(), health.condition.as_deref(), &input.schema);
            let rows = rows.map_err(|errors| under("/health", errors))?;
            let health =
                Health::new(health, space, rows, predictions, outputs(Space::Device)).map_err(|errors| under("/health", errors))?;
            Ok(Box::new(health))
        }
        _ => Err(vec![ConfigError::new("", "needs exactly one method").hint("trend_to_limit or health")]),
    }
}

fn under(prefix: &str, errors: ConfigErrors) -> ConfigErrors {
    errors.into_iter().map(|e| e.under(prefix)).collect()
}

/// Both results, or the errors of both.
fn both<A, B>(a: Result<A, ConfigErrors>, b: Result<B, ConfigErrors>, prefix: &str) -> Result<(A, B), ConfigErrors> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (a, b) => Err(under(prefix, a.err().into_iter().chain(b.err()).flatten().collect())),
    }
}
