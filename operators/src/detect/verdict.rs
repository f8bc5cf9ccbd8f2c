//! What a detection method says of one value, and what all methods have in common.

use fieldstream_engine_api::KeyedState;

/// Where a value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// As it should be.
    Normal,
    /// Not wrong, but not far enough from wrong to end an episode.
    Between,
    /// Wrong.
    Bad,
    /// Wrong for so long that the method takes it for the new normal: an episode ends here.
    Shifted,
}

/// A judgement. Numbers that a method does not have are NaN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    pub(super) level: Level,
    /// The limit passed.
    pub(super) limit: f64,
    /// The method's centre.
    pub(super) expected: f64,
    /// The method's scale.
    pub(super) spread: f64,
    /// The method's score: how far the value is off, in units of the scale where there is one.
    pub(super) deviation: f64,
    /// Between 0 and 1.
    pub(super) confidence: f64,
}

impl Verdict {
    /// Nothing to say, for example while a method still learns.
    pub(super) const NORMAL: Self =
        Self { level: Level::Normal, limit: f64::NAN, expected: f64::NAN, spread: f64::NAN, deviation: f64::NAN, confidence: f64::NAN };
}

/// A detection method over one number per slot.
pub(super) trait Method: Send {
    /// Its name in options and alerts.
    const NAME: &'static str;
    /// True when infinite values cannot be judged; they are passed over then, as NaN always is.
    const FINITE: bool = true;

    /// Judges a value, then learns from it. Called in row order. `None` is normal, as nearly every value is.
    fn judge(&mut self, slot: u32, ts: i64, value: f64) -> Option<Verdict>;

    /// True when nothing could be said of any of these values but that it is normal, and nothing is learned from them. NaN is not
    /// judged and does not count.
    #[inline(always)]
    fn all_normal(&self, values: &[f64]) -> bool {
        let _ = values;
        false
    }

    /// Asks for the state of a slot, which a later row needs.
    #[inline]
    fn prefetch(&self, slot: u32) {
        let _ = slot;
    }

    /// What it keeps per slot.
    fn state(&mut self) -> Option<&mut dyn KeyedState>;
}

/// How sure a score of `deviation` standard deviations makes: 1 less Chebyshev's bound, which holds for any distribution.
pub(super) fn chebyshev(deviation: f64) -> f64 {
    let share = 1.0 - 1.0 / (deviation * deviation);
    if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }
}
