//! Texts that are looked for again and again, in a form that one comparison finds.

/// A short text that is looked for again and again.
#[derive(Clone, Debug, Default)]
pub(super) struct Literal {
    pub(super) text: Box<[u8]>,
    /// The text as a number, and the bits that count; no bits where it is empty or longer than sixteen bytes.
    pub(super) head: u128,
    pub(super) mask: u128,
}

impl Literal {
    pub(super) fn new(text: Vec<u8>) -> Self {
        if text.is_empty() || text.len() > 16 {
            return Self { text: text.into(), head: 0, mask: 0 };
        }
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(&text) {
            *to = *from;
        }
        let mask = u128::MAX >> (8 * (16 - text.len()));
        Self { text: text.into(), head: u128::from_le_bytes(bytes), mask }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}
