//! Options of `validate`, and the checked rules made from them.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, SchemaRef};
use fieldstream_engine_api::{ConfigError, ConfigErrors, Edge, Space};
use fieldstream_schemas::columns::{INGEST_TS, QUALITY, SCORE, SENSOR_ID, SENSOR_TYPE, TS, VALUE, name_type, time_type};
use fieldstream_schemas::{Quality, quality};
use schemars::JsonSchema;
use serde::Deserialize;

use super::convert::Units;
use super::rules::{Check, Names, Otherwise, Rule};
use super::series::{Rate, Stuck};
use crate::expr::Expr;
use crate::options::{Moment, TimeSpan, column_called, column_of_type, pointer_to};

/// Options of `validate`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidateOptions {
    /// Wanted unit of each sensor type: known units are converted, others rejected with code `unit`. A reading without a unit
    /// is taken to be in the wanted one.
    #[serde(default)]
    pub units: BTreeMap<String, String>,
    /// Rules in order; the first that a row fails decides.
    #[serde(default)]
    pub rules: Vec<RuleOptions>,
}

/// One rule: an id and exactly one check.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RuleOptions {
    /// Code of the rows it rejects.
    pub id: String,
    /// Only for readings of this sensor type.
    #[serde(rename = "type")]
    pub sensor_type: Option<String>,
    /// Only for readings of this sensor.
    pub sensor: Option<String>,
    /// SQL condition over the row's columns; a row passes when it is true (not false, not null).
    pub check: Option<String>,
    /// Lowest and highest `value`, both allowed.
    pub range: Option<RangeOptions>,
    /// Limits of `ts`.
    pub timestamp: Option<TimestampOptions>,
    /// Limits of `score` and `quality`.
    pub quality: Option<QualityOptions>,
    /// Columns that must not be null.
    pub required: Option<Vec<String>>,
    /// How fast `value` of a series may change.
    pub rate: Option<RateOptions>,
    /// How long `value` of a series may stay the same.
    pub stuck: Option<StuckOptions>,
    /// What becomes of rows that fail: `reject`, or `{quality: uncertain}` or `{quality: bad}` to keep them with a worse
    /// quality.
    #[serde(default)]
    pub otherwise: OtherwiseOptions,
}

/// What becomes of rows that fail.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OtherwiseOptions {
    /// They leave by `rejected`.
    #[default]
    Reject,
    /// They stay, with at best this quality.
    Quality(WorseQuality),
}

/// A quality that is not good.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorseQuality {
    /// Usable with care.
    Uncertain,
    /// Not usable.
    Bad,
}

/// Closed interval.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RangeOptions {
    /// Lowest value that passes.
    pub min: Option<f64>,
    /// Highest value that passes.
    pub max: Option<f64>,
}

/// Limits of event time. `max_age` and `max_future` compare with the row's ingest time; rows without one pass these two.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimestampOptions {
    /// First moment that passes.
    pub min: Option<Moment>,
    /// First moment that no longer passes.
    pub max: Option<Moment>,
    /// How far before its ingest time a reading may lie.
    pub max_age: Option<TimeSpan>,
    /// How far after its ingest time a reading may lie.
    pub max_future: Option<TimeSpan>,
}

/// Limits of quality.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QualityOptions {
    /// Lowest score that passes; rows without a score pass.
    pub min_score: Option<f64>,
    /// Worst quality that passes.
    pub min: Option<MinQuality>,
}

/// The quality classes.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MinQuality {
    /// Usable.
    Good,
    /// Usable with care.
    Uncertain,
    /// Not usable.
    Bad,
}

/// Limits of change within a series.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateOptions {
    /// Largest difference from the last good reading.
    pub max_step: Option<f64>,
    /// Largest difference from the last good reading per second of event time; older rows are not judged.
    pub max_per_second: Option<f64>,
    /// After so many failures in a row the next reading is taken as the new level.
    #[serde(default = "default_resync")]
    pub resync: u32,
}

fn default_resync() -> u32 {
    5
}

/// When a value counts as stuck.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StuckOptions {
    /// So many equal readings in a row: this one and later ones fail.
    pub count: Option<u32>,
    /// Equal for so long, by event time.
    #[serde(rename = "for")]
    pub lasting: Option<TimeSpan>,
    /// Differences up to this from the first of them count as equal.
    #[serde(default)]
    pub tolerance: f64,
}

/// Checks everything and plans the rules.
pub(super) fn plan(options: &ValidateOptions, input: &Edge) -> Result<(Option<Units>, Vec<Rule>), ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let mut rules = Vec::new();
    let units = if options.units.is_empty() { None } else { Units::plan(&options.units, &input.schema).map_err(|e| errors.extend(e)).ok() };
    for (number, rule) in options.rules.iter().enumerate() {
        match plan_rule(rule, input) {
            Ok(rule) => rules.push(rule),
            Err(found) => errors.extend(found.into_iter().map(|e| e.under(&format!("/rules/{number}")))),
        }
    }
    if options.units.is_empty() && options.rules.is_empty() {
        errors.push(ConfigError::new("", "nothing to validate").hint("write `units` or `rules`"));
    }
    if errors.is_empty() { Ok((units, rules)) } else { Err(errors) }
}

fn one(error: ConfigError) -> ConfigErrors {
    vec![error]
}

fn plan_rule(rule: &RuleOptions, input: &Edge) -> Result<Rule, ConfigErrors> {
    if rule.id.trim().is_empty() {
        return Err(one(ConfigError::new("/id", "must not be empty")));
    }
    let (check, message) = plan_check(rule, input)?;
    let otherwise = match rule.otherwise {
        OtherwiseOptions::Reject => Otherwise::Reject,
        OtherwiseOptions::Quality(WorseQuality::Uncertain) => Otherwise::Quality(Quality::Uncertain),
        OtherwiseOptions::Quality(WorseQuality::Bad) => Otherwise::Quality(Quality::Bad),
    };
    let mut only = Vec::new();
    for (option, column, name) in [("/type", SENSOR_TYPE, &rule.sensor_type), ("/sensor", SENSOR_ID, &rule.sensor)] {
        if let Some(name) = name {
            let column = column_of_type(&input.schema, column, &name_type()).map_err(|e| one(e.under(option)))?;
            only.push(Names { column, name: name.clone() });
        }
    }
    let quality_column = match otherwise {
        Otherwise::Reject => 0,
        Otherwise::Quality(_) => column_of_type(&input.schema, QUALITY, &quality::data_type()).map_err(|e| one(e.under("/otherwise")))?,
    };
    Ok(Rule { id: rule.id.as_str().into(), message, check, only, otherwise, quality_column })
}

/// The one check of a rule, and what to tell about rows that fail it.
fn plan_check(rule: &RuleOptions, input: &Edge) -> Result<(Check, String), ConfigErrors> {
    let schema = &input.schema;
    let mut found: Vec<Result<(Check, String), ConfigErrors>> = Vec::new();
    if let Some(sql) = &rule.check {
        let condition = Expr::predicate(sql, schema).map_err(|e| one(ConfigError::new("/check", e)));
        found.push(condition.map(|condition| (Check::Condition(condition), format!("not true: {sql}"))));
    }
    found.extend(rule.range.map(|range| plan_range(&range, schema).map_err(|e| one(e.under("/range")))));
    found.extend(rule.timestamp.map(|limits| plan_timestamp(&limits, schema).map_err(|e| one(e.under("/timestamp")))));
    found.extend(rule.quality.map(|limits| plan_quality(&limits, schema).map_err(|e| one(e.under("/quality")))));
    found.extend(rule.required.as_ref().map(|columns| plan_required(columns, schema)));
    found.extend(rule.rate.map(|rate| plan_rate(&rate, input).map_err(|e| one(e.under("/rate")))));
    found.extend(rule.stuck.map(|stuck| plan_stuck(&stuck, input).map_err(|e| one(e.under("/stuck")))));
    let count = found.len();
    match (found.pop(), count) {
        (Some(check), 1) => check,
        (None, _) => Err(one(
            ConfigError::new("", "the rule has no check").hint("write one of check, range, timestamp, quality, required, rate, stuck")
        )),
        _ => Err(one(ConfigError::new("", "the rule has more than one check").hint("write a rule for each"))),
    }
}

fn plan_range(range: &RangeOptions, schema: &SchemaRef) -> Result<(Check, String), ConfigError> {
    let column = column_of_type(schema, VALUE, &DataType::Float64)?;
    let told = match (range.min, range.max) {
        (None, None) => return Err(ConfigError::new("", "there is no limit").hint("write `min`, `max` or both")),
        (Some(min), None) => format!("value is below {min}"),
        (None, Some(max)) => format!("value is above {max}"),
        (Some(min), Some(max)) if min <= max => format!("value is not in [{min}, {max}]"),
        (Some(min), Some(max)) => return Err(ConfigError::new("", format!("`min` {min} is above `max` {max}"))),
    };
    let (min, max) = (range.min.unwrap_or(f64::NEG_INFINITY), range.max.unwrap_or(f64::INFINITY));
    Ok((Check::Range { column, min, max }, told))
}

fn plan_timestamp(limits: &TimestampOptions, schema: &SchemaRef) -> Result<(Check, String), ConfigError> {
    let ts = column_of_type(schema, TS, &time_type())?;
    let mut told = Vec::new();
    told.extend(limits.min.map(|min| format!("from {min}")));
    told.extend(limits.max.map(|max| format!("before {max}")));
    let relative = limits.max_age.is_some() || limits.max_future.is_some();
    let ingest = if relative { Some(column_of_type(schema, INGEST_TS, &time_type())?) } else { None };
    told.extend(limits.max_age.map(|age| format!("at most {:?} old", age.0)));
    told.extend(limits.max_future.map(|future| format!("at most {:?} ahead", future.0)));
    if told.is_empty() {
        return Err(ConfigError::new("", "there is no limit").hint("write `min`, `max`, `max_age` or `max_future`"));
    }
    let (min, max) = (limits.min.map_or(i64::MIN, |m| m.0), limits.max.map(|m| m.0));
    if max.is_some_and(|max| min >= max) {
        return Err(ConfigError::new("", "`min` is not before `max`"));
    }
    let max_age = limits.max_age.map_or(i64::MAX, TimeSpan::us);
    let max_future = limits.max_future.map_or(i64::MAX, TimeSpan::us);
    Ok((Check::Timestamp { ts, ingest, min, max, max_age, max_future }, format!("ts is not {}", told.join(", "))))
}

fn plan_quality(limits: &QualityOptions, schema: &SchemaRef) -> Result<(Check, String), ConfigError> {
    let mut told = Vec::new();
    let mut score = None;
    if let Some(min) = limits.min_score {
        score = Some((column_of_type(schema, SCORE, &DataType::Float64)?, min));
        told.push(format!("score is below {min}"));
    }
    let mut class = None;
    if let Some(min) = limits.min {
        let min = match min {
            MinQuality::Good => Quality::Good,
            MinQuality::Uncertain => Quality::Uncertain,
            MinQuality::Bad => Quality::Bad,
        };
        class = Some((column_of_type(schema, QUALITY, &quality::data_type())?, min));
        told.push(format!("quality is below {}", min.name()));
    }
    if told.is_empty() {
        return Err(ConfigError::new("", "there is no limit").hint("write `min_score`, `min` or both"));
    }
    Ok((Check::Quality { score, class }, told.join(" or ")))
}

fn plan_required(columns: &[String], schema: &SchemaRef) -> Result<(Check, String), ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let mut numbers = Vec::new();
    for (number, name) in columns.iter().enumerate() {
        match column_called(schema, name) {
            Ok(index) => numbers.push(index),
            Err(error) => errors.push(error.under(&format!("/required/{number}"))),
        }
    }
    if columns.is_empty() {
        errors.push(ConfigError::new("/required", "there is no column"));
    }
    if errors.is_empty() { Ok((Check::Required(numbers), format!("missing: one of {}", columns.join(", ")))) } else { Err(errors) }
}

/// The columns of checks that follow a series.
fn series_columns(input: &Edge) -> Result<(usize, usize), ConfigError> {
    if input.key != Space::Series {
        return Err(ConfigError::new("", "these rows have no series to follow"));
    }
    Ok((column_of_type(&input.schema, VALUE, &DataType::Float64)?, column_of_type(&input.schema, TS, &time_type())?))
}

fn plan_rate(rate: &RateOptions, input: &Edge) -> Result<(Check, String), ConfigError> {
    let (value, ts) = series_columns(input)?;
    for (name, limit) in [("max_step", rate.max_step), ("max_per_second", rate.max_per_second)] {
        if limit.is_some_and(|limit| !limit.is_finite() || limit < 0.0) {
            return Err(ConfigError::new(pointer_to(name), "must be 0 or more"));
        }
    }
    let told = match (rate.max_step, rate.max_per_second) {
        (None, None) => return Err(ConfigError::new("", "there is no limit").hint("write `max_step` or `max_per_second`")),
        (Some(step), None) => format!("value moved by more than {step}"),
        (None, Some(speed)) => format!("value moved by more than {speed} a second"),
        (Some(step), Some(speed)) => format!("value moved by more than {step}, or {speed} a second"),
    };
    if rate.resync == 0 {
        return Err(ConfigError::new("/resync", "must be at least 1"));
    }
    Ok((Check::Rate { value, ts, rate: Rate::new(rate) }, told))
}

fn plan_stuck(stuck: &StuckOptions, input: &Edge) -> Result<(Check, String), ConfigError> {
    let (value, ts) = series_columns(input)?;
    if stuck.count.is_some_and(|count| count < 2) {
        return Err(ConfigError::new("/count", "must be at least 2"));
    }
    if !stuck.tolerance.is_finite() || stuck.tolerance < 0.0 {
        return Err(ConfigError::new("/tolerance", "must be 0 or more"));
    }
    let told = match (stuck.count, stuck.lasting) {
        (None, None) => return Err(ConfigError::new("", "there is no limit").hint("write `count` or `for`")),
        (Some(count), None) => format!("value is the same for {count} readings"),
        (None, Some(lasting)) => format!("value is the same for {:?}", lasting.0),
        (Some(count), Some(lasting)) => format!("value is the same for {count} readings or {:?}", lasting.0),
    };
    Ok((Check::Stuck { value, ts, stuck: Stuck::new(stuck) }, told))
}
