//! `detect`: judges one number per row against what is known of its series, and tells what is wrong as alerts.
//!
//! Rows go in and stay; alerts come out. A row whose number is null or NaN, or for which `where` is not true, is passed over, and so
//! is an infinite one except by `threshold`. Detectors judge in arrival order and measure delays in event time. A new method is a file
//! here with a `verdict::Method`, a field of [`DetectOptions`] and a line in `build`.

mod alerts;
mod cusum;
mod episode;
mod ewma;
mod flatline;
mod gap;
mod operator;
mod rate;
mod robust;
#[cfg(test)]
mod tests;
mod threshold;
mod verdict;

use arrow::datatypes::SchemaRef;
use fieldstream_engine_api::{BuildContext, ConfigError, ConfigErrors, Edge, Operator, OperatorKind, Output, Space};
use fieldstream_schemas::columns::{TS, VALUE, time_type};
use fieldstream_schemas::records::alert_schema;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

pub use self::cusum::CusumOptions;
pub use self::ewma::EwmaOptions;
pub use self::flatline::FlatlineOptions;
pub use self::gap::GapOptions;
pub use self::rate::RateOptions;
pub use self::robust::RobustOptions;
pub use self::threshold::ThresholdOptions;

use self::alerts::{Alerts, Template};
use self::cusum::Cusum;
use self::episode::Delays;
use self::ewma::Ewma;
use self::flatline::Flatline;
use self::gap::Gap;
use self::operator::{Detect, Telling};
use self::rate::Rate;
use self::robust::Robust;
use self::threshold::Threshold;
use self::verdict::Method;
use crate::expr::Expr;
use crate::options::{Severity, TimeSpan, column_of_type, parse, schema};
use crate::state::Dense;

/// The catalogue line.
pub const KIND: OperatorKind = OperatorKind {
    name: "detect",
    about: "Judges a number per row: threshold, ewma, robust, cusum, rate, flatline or gap; alerts per row or per episode",
    rejects: true,
    schema: schema::<DetectOptions>,
    build,
};

/// Options of `detect`: exactly one method.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DetectOptions {
    /// Above or below a limit.
    threshold: Option<ThresholdOptions>,
    /// Far from an exponentially weighted mean.
    ewma: Option<EwmaOptions>,
    /// Far from the median of the last values.
    robust: Option<RobustOptions>,
    /// A small lasting shift.
    cusum: Option<CusumOptions>,
    /// Changing too fast.
    rate: Option<RateOptions>,
    /// Not changing at all.
    flatline: Option<FlatlineOptions>,
    /// Silent.
    gap: Option<GapOptions>,
    /// What is told.
    #[serde(default)]
    emit: Emit,
    /// It must be wrong for so long, by event time, before an episode is raised.
    on_delay: Option<TimeSpan>,
    /// It must be right for so long, by event time, before an episode is cleared.
    off_delay: Option<TimeSpan>,
    /// How the alarm reads.
    #[serde(default)]
    alarm: Alarm,
}

/// What is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Emit {
    /// One alert per wrong row.
    Row,
    /// One alert when it begins, more when it gets much worse, one when it ends.
    #[default]
    Episode,
}

/// How the alarm reads.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Alarm {
    /// How much it matters.
    #[serde(default)]
    severity: Severity,
    /// Description for a person; `{name}` stands for a column, or for `value`, `limit`, `expected` or `deviation`.
    text: Option<String>,
}

/// What every method needs to become an operator.
struct Frame<'a> {
    options: &'a DetectOptions,
    input: &'a Edge,
    context: &'a BuildContext,
    space: Space,
    ts: usize,
}

/// Builds `detect`.
///
/// # Errors
/// Everything wrong with the options.
pub fn build(options: &Value, input: &Edge, context: &BuildContext) -> Result<Box<dyn Operator>, ConfigErrors> {
    let options: DetectOptions = parse(options)?;
    let space = if input.key == Space::Series { Space::Series } else { Space::Device };
    let ts = column_of_type(&input.schema, TS, &time_type()).map_err(|e| vec![e])?;
    let frame = Frame { options: &options, input, context, space, ts };
    let o = &options;
    let methods = [
        o.threshold.is_some(),
        o.ewma.is_some(),
        o.robust.is_some(),
        o.cusum.is_some(),
        o.rate.is_some(),
        o.flatline.is_some(),
        o.gap.is_some(),
    ];
    if methods.iter().filter(|m| **m).count() != 1 {
        let error = ConfigError::new("", "needs exactly one method");
        return Err(vec![error.hint("threshold, ewma, robust, cusum, rate, flatline or gap")]);
    }
    if o.emit == Emit::Row && (o.on_delay.is_some() || o.off_delay.is_some()) {
        return Err(vec![ConfigError::new("/emit", "rows have no delays").hint("write `emit: episode`, or leave the delays out")]);
    }
    if let Some(o) = &o.threshold {
        frame.detector(Threshold::new(o), "{value} is beyond the limit {limit}", o.column.as_deref(), o.condition.as_deref())
    } else if let Some(o) = &o.ewma {
        frame.detector(Ewma::new(o, space), AWAY, o.column.as_deref(), o.condition.as_deref())
    } else if let Some(o) = &o.robust {
        frame.detector(Robust::new(o, space), AWAY, o.column.as_deref(), o.condition.as_deref())
    } else if let Some(o) = &o.cusum {
        frame.detector(Cusum::new(o, space), "{value}: a lasting shift from {expected}", o.column.as_deref(), o.condition.as_deref())
    } else if let Some(o) = &o.rate {
        frame.detector(
            Rate::new(o, space),
            "changes by {deviation} a second, at most {limit} is possible",
            o.column.as_deref(),
            o.condition.as_deref(),
        )
    } else if let Some(o) = &o.flatline {
        frame.detector(Flatline::new(o, space), "has stood at {expected} for {deviation} s", o.column.as_deref(), o.condition.as_deref())
    } else {
        frame.gap()
    }
}

const AWAY: &str = "{value} is {deviation} deviations from {expected}";

fn under(prefix: &str, errors: ConfigErrors) -> ConfigErrors {
    errors.into_iter().map(|e| e.under(prefix)).collect()
}

impl Frame<'_> {
    fn detector<M: Method + 'static>(
        &self,
        method: Result<M, ConfigErrors>,
        text: &str,
        column: Option<&str>,
        condition: Option<&str>,
    ) -> Result<Box<dyn Operator>, ConfigErrors> {
        let prefix = format!("/{}", M::NAME);
        let mut errors = ConfigErrors::new();
        let mut keep = |path: &str, why: String| errors.push(ConfigError::new(format!("{prefix}/{path}"), why));
        let schema: &SchemaRef = &self.input.schema;
        let column = Expr::number(column.unwrap_or(VALUE), schema).map_err(|why| keep("column", why)).ok();
        let condition = condition.map(|sql| Expr::predicate(sql, schema).map_err(|why| keep("where", why)).ok());
        let method = method.map_err(|e| errors.extend(under(&prefix, e))).ok();
        let alerts = self.alerts(M::NAME, text).map_err(|e| errors.push(e)).ok();
        let (Some(method), Some(column), Some(alerts), true) = (method, column, alerts, errors.is_empty()) else { return Err(errors) };
        let telling = match self.options.emit {
            Emit::Row => Telling::Rows,
            Emit::Episode => {
                let us = |span: Option<TimeSpan>| span.unwrap_or_default().us();
                let delays = Delays { on: us(self.options.on_delay), off: us(self.options.off_delay) };
                Telling::Episodes { delays, state: Dense::new(self.space) }
            }
        };
        let condition = condition.flatten();
        Ok(Box::new(Detect { method, space: self.space, column, condition, ts: self.ts, telling, alerts, outputs: self.outputs() }))
    }

    fn gap(&self) -> Result<Box<dyn Operator>, ConfigErrors> {
        let Some(options) = &self.options.gap else { return Err(ConfigErrors::new()) };
        let after = options.check().map_err(|e| under("/gap", e))?;
        if self.options.on_delay.is_some() || self.options.off_delay.is_some() {
            return Err(vec![ConfigError::new("/gap", "a gap has no delays").hint("`after` is its delay")]);
        }
        let alerts = self.alerts("gap", "silent for {deviation} s").map_err(|e| vec![e])?;
        Ok(Box::new(Gap::new(after, self.space, self.ts, self.options.emit == Emit::Row, alerts, self.outputs())))
    }

    fn alerts(&self, method: &'static str, text: &str) -> Result<Alerts, ConfigError> {
        let alarm = &self.options.alarm;
        let template = Template::parse(alarm.text.as_deref().unwrap_or(text), &self.input.schema).map_err(|e| e.under("/alarm/text"))?;
        let alerts = Alerts::new(self.context, method, alarm.severity, template, self.space, &self.input.schema);
        Ok(alerts.ended(alarm.text.is_none().then_some("back to normal")))
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output { name: "".into(), edge: Edge { schema: alert_schema(), key: self.space } }]
    }
}
