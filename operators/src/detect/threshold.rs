//! `threshold`: a value above or below a limit, with a dead band that keeps an alarm from chattering.

use fieldstream_engine_api::{ConfigError, ConfigErrors, KeyedState};
use schemars::JsonSchema;
use serde::Deserialize;

use super::verdict::{Level, Method, Verdict};

/// Options of `threshold`: `above` or `below`, or both.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ThresholdOptions {
    /// Column or SQL expression judged; `value` if not given.
    pub column: Option<String>,
    /// Rows for which this SQL condition is not true are passed over.
    #[serde(rename = "where")]
    pub condition: Option<String>,
    /// Wrong when higher than this.
    pub above: Option<f64>,
    /// Wrong when lower than this.
    pub below: Option<f64>,
    /// How far inside the limit the value must come before an episode may end.
    #[serde(default)]
    pub deadband: f64,
}

/// The method; it keeps nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Threshold {
    above: f64,
    below: f64,
    deadband: f64,
}

impl Threshold {
    pub(super) fn new(options: &ThresholdOptions) -> Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        let (above, below) = (options.above.unwrap_or(f64::INFINITY), options.below.unwrap_or(f64::NEG_INFINITY));
        if options.above.is_none() && options.below.is_none() {
            errors.push(ConfigError::new("", "there is no limit").hint("write `above:` or `below:`"));
        }
        if !(options.deadband >= 0.0 && options.deadband.is_finite()) {
            errors.push(ConfigError::new("/deadband", "must be 0 or more"));
        } else if below + options.deadband > above - options.deadband {
            errors
                .push(ConfigError::new("/below", "no value could ever be normal").hint("`below` and `above` must be two dead bands apart"));
        }
        if errors.is_empty() { Ok(Self { above, below, deadband: options.deadband }) } else { Err(errors) }
    }
}

impl Method for Threshold {
    const NAME: &'static str = "threshold";
    const FINITE: bool = false;

    #[inline]
    fn judge(&mut self, _slot: u32, _ts: i64, value: f64) -> Option<Verdict> {
        let (over, under) = (value - self.above, self.below - value);
        if over <= -self.deadband && under <= -self.deadband {
            return None;
        }
        let limit = if over > under { self.above } else { self.below };
        let level = if over > 0.0 || under > 0.0 { Level::Bad } else { Level::Between };
        Some(Verdict { level, limit, deviation: value - limit, confidence: 1.0, ..Verdict::NORMAL })
    }

    #[inline(always)]
    fn all_normal(&self, values: &[f64]) -> bool {
        // Without a jump, so that several values are compared at a time.
        let far = |value: f64| (value - self.above > -self.deadband) | (self.below - value > -self.deadband);
        !values.iter().fold(false, |any, value| any | far(*value))
    }

    fn state(&mut self) -> Option<&mut dyn KeyedState> {
        None
    }
}
