//! A hint to the processor: dense state walked in an order without pattern waits for memory unless it is asked for early.

/// Asks for the cache line of `slice[index]`, if there is such an element. It changes nothing but time.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(element) = slice.get(index) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: the instruction reads no memory the program can see, faults on no address, and the address is a reference's.
        // SSE is part of every x86-64 processor.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(element).cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (slice, index);
}

#[cfg(test)]
mod tests {
    use super::prefetch;

    #[test]
    fn any_index_will_do_and_nothing_changes() {
        let state = vec![1_u64, 2, 3];
        for index in [0, 2, 3, usize::MAX] {
            prefetch(&state, index);
        }
        prefetch::<[u8; 0]>(&[[]], 0);
        prefetch::<u8>(&[], 0);
        assert_eq!(state, [1, 2, 3]);
    }
}
