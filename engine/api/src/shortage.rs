//! Failures that pass: the machine is short of something, and nothing has been done.

use std::error::Error;
use std::io;

/// No more file handles in the process (`EMFILE`) and in the system (`ENFILE`): the numbers of POSIX systems, for which
/// [`io::ErrorKind`] has no names.
const HANDLES: [i32; 2] = [24, 23];

/// True when `error`, or what caused it, is a lack of room on the disk or of file handles. Nothing was opened, and what was written
/// may be cut; whoever waits and tries again may succeed.
#[must_use]
pub fn is_shortage(error: &(dyn Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    causes.filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|cause| {
        matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            || cause.raw_os_error().is_some_and(|number| HANDLES.contains(&number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_lack_is_told_from_a_failure_also_below_others() {
        let lacks = [io::ErrorKind::StorageFull.into(), io::Error::from_raw_os_error(24), io::Error::from_raw_os_error(23)];
        lacks.into_iter().for_each(|lack| assert!(is_shortage(&Outer(lack))));
        let failures = [io::ErrorKind::PermissionDenied.into(), io::Error::other("28"), io::Error::from_raw_os_error(5)];
        failures.into_iter().for_each(|failure| assert!(!is_shortage(&failure) && !is_shortage(&Outer(failure))));
    }
}
