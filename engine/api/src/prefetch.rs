//! A hint to the processor: dense state walked in an order without pattern waits for memory unless it is asked for early.

/// Rows ahead of the one at work whose state is asked for: about as many as fit into the time a load from memory takes.
pub const AHEAD: usize = 16;

/// Asks for the cache lines in which `slice[index]` begins and ends, if there is such an element. It changes nothing but time.
#[inline(always)]
pub fn prefetch<T>(slice: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(element) = slice.get(index) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let first: *const i8 = std::ptr::from_ref(element).cast();
        // SAFETY: the instruction reads nothing the program can see and faults on no address; both lie in the element. SSE is part of
        // every x86-64 processor.
        #[allow(unsafe_code)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(first);
            // An element as large as its alignment lies in one line.
            if size_of::<T>() > align_of::<T>() {
                _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(size_of::<T>() - 1));
            }
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
