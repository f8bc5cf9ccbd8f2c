//! Interleaved rounds on one core, in CPU time: other work on the machine slows both sides alike, and waiting counts for neither.

use std::fmt;

/// CPU nanoseconds this thread has used. Yielding first makes the kernel bring its count up to date.
pub(crate) fn cpu_ns() -> u64 {
    std::thread::yield_now();
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or_else(|| panic!("the kernel does not tell CPU time in schedstat"))
}

/// CPU nanoseconds of `work`, and what it gave.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let start = cpu_ns();
    let value = std::hint::black_box(work());
    (cpu_ns() - start, value)
}

/// Nanoseconds per row of the two sides, by round.
#[derive(Debug, Default)]
pub(crate) struct Rounds(Vec<(f64, f64)>);

impl Rounds {
    /// Adds a round of `rows` rows: the yardstick's and the engine's nanoseconds.
    pub(crate) fn push(&mut self, rows: u64, yardstick: u64, engine: u64) {
        self.0.push((yardstick as f64 / rows as f64, engine as f64 / rows as f64));
    }

    fn sorted(&self, of: impl Fn(&(f64, f64)) -> f64) -> Vec<f64> {
        let mut all: Vec<f64> = self.0.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// Median of the yardstick's time over the engine's, round by round: 1 is as fast.
    pub(crate) fn ratio(&self) -> f64 {
        median(&self.sorted(|r| r.0 / r.1))
    }
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (yardstick, engine, ratio) = (self.sorted(|r| r.0), self.sorted(|r| r.1), self.sorted(|r| r.0 / r.1));
        let (least, most) = (ratio.first().copied().unwrap_or(f64::NAN), ratio.last().copied().unwrap_or(f64::NAN));
        write!(f, "{:>9.2} {:>9.2} {:>7.2}  ({least:.2} .. {most:.2})", median(&yardstick), median(&engine), median(&ratio))
    }
}
