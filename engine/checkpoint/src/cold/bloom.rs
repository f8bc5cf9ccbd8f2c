//! The hash that orders devices in segments, and a Bloom filter over it.

/// Bits of a filter for each device: with seven probes, 8 in 1000 strangers pass.
const BITS: u64 = 10;
/// Probes for each device.
const PROBES: u64 = 7;
/// A new filter has a multiple of this many words, so that it can be folded in half four times.
const FOLDS: usize = 16;

/// FNV-1a over the bytes, then the finaliser of `MurmurHash3`. Files are sorted by it: it must never change.
pub(super) fn hash(name: &str) -> u64 {
    let step = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    state = (state ^ (state >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    state ^ (state >> 33)
}

/// Says for certain that a hash was never added, or that it may have been.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bloom(Vec<u64>);

impl Bloom {
    /// An empty filter for `devices` hashes.
    pub(super) fn for_devices(devices: u64) -> Self {
        let words = usize::try_from((devices * BITS).div_ceil(64)).unwrap_or(usize::MAX / 64);
        Self(vec![0; words.max(1).next_multiple_of(FOLDS)])
    }

    /// The filter with these words, if there is at least one.
    pub(super) fn from_words(words: Vec<u64>) -> Option<Self> {
        (!words.is_empty()).then_some(Self(words))
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.0
    }

    /// Word and bit of each probe.
    fn probes(&self, hash: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        let bits = self.0.len() as u64 * 64;
        let stride = hash.rotate_left(32) | 1;
        (0..PROBES).map(move |i| {
            let bit = hash.wrapping_add(i.wrapping_mul(stride)) % bits;
            (usize::try_from(bit / 64).unwrap_or(usize::MAX), 1 << (bit % 64))
        })
    }

    pub(super) fn add(&mut self, hash: u64) {
        for (word, bit) in self.probes(hash) {
            if let Some(word) = self.0.get_mut(word) {
                *word |= bit;
            }
        }
    }

    pub(super) fn may_contain(&self, hash: u64) -> bool {
        self.probes(hash).all(|(word, bit)| self.0.get(word).is_some_and(|w| w & bit != 0))
    }

    /// Halves the filter as long as it has room for `devices`: a merge learns only at its end how many there are.
    pub(super) fn fold(&mut self, devices: u64) {
        while self.0.len().is_multiple_of(2) && self.0.len() as u64 * 32 >= devices * BITS {
            let upper = self.0.split_off(self.0.len() / 2);
            self.0.iter_mut().zip(upper).for_each(|(word, other)| *word |= other);
        }
        self.0.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_files_were_written_with() {
        assert_eq!(hash(""), 0xefd0_1f60_ba99_2926);
        assert_eq!(hash("pump-17"), 15_672_770_744_601_548_153);
    }

    #[test]
    fn members_pass_and_few_others_also_after_folding() {
        let mut bloom = Bloom::for_devices(40_000);
        let name = |i: u32| hash(&format!("device-{i}"));
        (0..10_000).for_each(|i| bloom.add(name(i)));
        let before = bloom.words().len();
        bloom.fold(10_000);
        assert_eq!(bloom.words().len(), before / 4);
        assert!((0..10_000).all(|i| bloom.may_contain(name(i))));
        let strangers = (10_000..110_000).filter(|i| bloom.may_contain(name(*i))).count();
        assert!(strangers < 1_200, "{strangers} of 100000");
    }
}
