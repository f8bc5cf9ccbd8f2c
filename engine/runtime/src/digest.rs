//! What has changed between two digests of a plan, by their lines `part=hash`.

use std::collections::BTreeMap;

/// The parts that differ, for a person; `None` when nothing does, or one of them is empty because nobody said what the plan was.
#[must_use]
pub fn changes(saved: &str, now: &str) -> Option<String> {
    if saved == now || saved.is_empty() || now.is_empty() {
        return None;
    }
    let parts = |digest: &'_ str| -> BTreeMap<String, String> {
        digest.lines().filter_map(|line| line.split_once('=')).map(|(part, hash)| (part.to_owned(), hash.to_owned())).collect()
    };
    let (old, new) = (parts(saved), parts(now));
    let mut said: Vec<String> = Vec::new();
    said.extend(
        new.iter().filter(|(part, hash)| old.get(*part).is_some_and(|before| before != *hash)).map(|(p, _)| format!("{p} changed")),
    );
    said.extend(new.keys().filter(|part| !old.contains_key(*part)).map(|p| format!("{p} is new")));
    said.extend(old.keys().filter(|part| !new.contains_key(*part)).map(|p| format!("{p} is gone")));
    Some(if said.is_empty() { "the order of its parts changed".to_owned() } else { said.join(", ") })
}

/// A digest in one word, for a person and for comparing: 16 hexadecimal digits.
#[must_use]
pub fn short(digest: &str) -> String {
    format!("{:016x}", fnv1a(digest.as_bytes()))
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): the same in every process, which the hasher of the standard
/// library does not promise. It finds changes; it keeps nobody from making two plans of one hash.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_by_what_became_of_them() {
        let saved = "time=1\noperator a=1\noperator b=1\noperator c=1\n";
        let now = "time=1\noperator a=2\noperator c=1\noperator d=1\n";
        assert_eq!(changes(saved, now).as_deref(), Some("operator a changed, operator d is new, operator b is gone"));
        assert_eq!(changes(saved, saved), None);
        assert_eq!(changes("", now), None, "a checkpoint of an older program");
        assert_eq!(changes("a=1\nb=1\n", "b=1\na=1\n").as_deref(), Some("the order of its parts changed"));
        assert_eq!(changes("one", "another").as_deref(), Some("the order of its parts changed"));
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!((fnv1a(b""), fnv1a(b"a")), (0xcbf2_9ce4_8422_2325, 0xaf63_dc4c_8601_ec8c));
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
