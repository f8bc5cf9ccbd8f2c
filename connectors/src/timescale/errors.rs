//! What a database error asks for: another try, a person, or the refusal of a row.

use fieldstream_engine_api::SinkError;

/// The reaction to an error, by its SQLSTATE (PostgreSQL 15 manual, appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    /// The row is at fault: class 22, class 23, or an index entry that is too large.
    RefuseRow,
    /// Connection, resources, concurrency.
    Retry,
    /// Permission, missing object, configuration.
    Stop,
}

/// The SQLSTATE of an error that the server reported.
pub(crate) fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(|code| code.into_owned())
}

/// How to react to `error`.
pub(crate) fn reaction(error: &sqlx::Error) -> Reaction {
    match code(error) {
        Some(_) if no_partition(error) => Reaction::Retry,
        Some(code) => reaction_to(&code),
        None => match error {
            sqlx::Error::Configuration(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Reaction::Stop,
            _ => Reaction::Retry,
        },
    }
}

/// True for the check violation that names no constraint: the row's day has no partition any more. It is made at the next try.
fn no_partition(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|e| e.code().as_deref() == Some("23514") && e.constraint().is_none())
}

fn reaction_to(code: &str) -> Reaction {
    match code.get(..2).unwrap_or_default() {
        "22" | "23" => Reaction::RefuseRow,
        "54" => Reaction::RefuseRow,
        "08" | "25" | "40" | "53" | "55" | "57" | "58" => Reaction::Retry,
        // Internal errors pass (concurrent DDL), corruption does not.
        "XX" if code == "XX000" => Reaction::Retry,
        _ => Reaction::Stop,
    }
}

/// `error` as the runtime wants it. A row error outside of a COPY has no row to blame, so it stops.
pub(crate) fn sink_error(context: &str, error: &sqlx::Error) -> SinkError {
    let cause = match error.as_database_error() {
        Some(database) => format!("{} (SQLSTATE {})", database.message(), database.code().unwrap_or_default()),
        None => error.to_string(),
    };
    let context = context.to_owned();
    match reaction(error) {
        Reaction::Retry => SinkError::Retry { context, cause },
        Reaction::RefuseRow | Reaction::Stop => SinkError::Fatal { context, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_decide() {
        for (code, expected) in [
            ("22021", Reaction::RefuseRow),
            ("23514", Reaction::RefuseRow),
            ("54000", Reaction::RefuseRow),
            ("08006", Reaction::Retry),
            ("40P01", Reaction::Retry),
            ("53100", Reaction::Retry),
            ("57P01", Reaction::Retry),
            ("XX000", Reaction::Retry),
            ("XX001", Reaction::Stop),
            ("28P01", Reaction::Stop),
            ("42501", Reaction::Stop),
            ("", Reaction::Stop),
        ] {
            assert_eq!(reaction_to(code), expected, "{code}");
        }
    }
}
