//! A random sequence that is the same on every machine and in every release: a seed given today must give the same fleet in a year.

/// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014). Eight bytes a device.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    /// The sequence of `stream` under `seed`; streams of one seed are unrelated.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream.wrapping_add(0x9E37_79B9_7F4A_7C15))))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Evenly distributed in `[0, 1)`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly distributed in `[low, high)`.
    pub(super) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// A number below `count`; 0 when `count` is 0.
    pub(super) fn below(&mut self, count: usize) -> usize {
        ((self.unit() * count as f64) as usize).min(count.saturating_sub(1))
    }

    /// -1 or 1.
    pub(super) fn sign(&mut self) -> f64 {
        if self.next() & 1 == 0 { -1.0 } else { 1.0 }
    }

    /// Normally distributed, mean 0 and deviation 1, by the sum of four even numbers: never beyond 3.5, as a sensor's noise is.
    pub(super) fn noise(&mut self) -> f64 {
        let sum: f64 = (0..4).map(|_| self.unit()).sum();
        (sum - 2.0) * 3f64.sqrt()
    }

    /// Time until the next event of a process with `mean` between events.
    pub(super) fn waiting(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_promised_shape() {
        let mut rng = Rng::new(1, 2);
        let noise: Vec<f64> = (0..20_000).map(|_| rng.noise()).collect();
        let mean = noise.iter().sum::<f64>() / noise.len() as f64;
        let variance = noise.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / noise.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
        assert!(noise.iter().all(|x| x.abs() < 3.5));
        let waits = (0..20_000).map(|_| rng.waiting(60.0)).sum::<f64>() / 20_000.0;
        assert!((waits - 60.0).abs() < 2.0, "{waits}");
        assert_eq!(rng.below(0), 0);
        assert!((0..1000).map(|_| rng.below(3)).all(|n| n < 3));
    }

    #[test]
    fn streams_of_a_seed_differ_and_a_stream_repeats() {
        let first = |seed, stream| Rng::new(seed, stream).next();
        assert_eq!(first(1, 1), first(1, 1));
        assert_ne!(first(1, 1), first(1, 2));
        assert_ne!(first(1, 1), first(2, 1));
    }
}
