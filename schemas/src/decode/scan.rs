//! A strict JSON scanner (RFC 8259) over bytes that are known to be UTF-8. It accepts exactly what `serde_json` accepts.

use std::borrow::Cow;

use super::literal::Literal;

/// What is wrong with the text, for a person.
pub(super) type Scan<T> = Result<T, &'static str>;

/// A string as it stands in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a> {
    /// The bytes with both quotes.
    quoted: &'a [u8],
    escaped: bool,
}

impl<'a> Text<'a> {
    /// The string it means. Escapes are rare and full of corners (surrogates), so `serde_json` resolves them.
    pub(super) fn resolve(self) -> Scan<Cow<'a, [u8]>> {
        if self.escaped {
            let text: String = serde_json::from_slice(self.quoted).map_err(|_| "a string with an invalid escape")?;
            return Ok(Cow::Owned(text.into_bytes()));
        }
        Ok(Cow::Borrowed(self.quoted.get(1..self.quoted.len().saturating_sub(1)).unwrap_or_default()))
    }

    /// The bytes as they stand, with both quotes.
    pub(super) fn quoted(self) -> &'a [u8] {
        self.quoted
    }
}

/// A number as it stands in the text, and its value rounded to the nearest double.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number<'a> {
    pub(super) raw: &'a [u8],
    pub(super) value: f64,
}

/// A place in a text. Positions count from the start of the block, so that spans can be sliced out of it.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Reads `bytes` (UTF-8) from `at` to their end.
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn slice(&self, from: usize) -> &'a [u8] {
        self.bytes.get(from..self.at).unwrap_or_default()
    }

    #[inline(always)]
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline(always)]
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// Steps over `literal` if it stands here.
    #[inline(always)]
    pub(super) fn eat_literal(&mut self, literal: &Literal) -> bool {
        let found = match self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<16>()) {
            // One comparison, since the literals are short and their lengths differ.
            Some(here) if literal.mask != 0 => u128::from_le_bytes(*here) & literal.mask == literal.head,
            _ => self.bytes.get(self.at..self.at + literal.text.len()) == Some(&literal.text),
        };
        self.at += if found { literal.text.len() } else { 0 };
        found
    }

    /// Reads a string without escapes and gives what lies between its quotes. Anything else is left where it is: `None`.
    #[inline(always)]
    pub(super) fn plain_string(&mut self) -> Option<&'a [u8]> {
        if self.peek() != Some(b'"') {
            return None;
        }
        let start = self.at + 1;
        let end = special(self.bytes, start);
        if self.bytes.get(end) != Some(&b'"') {
            return None;
        }
        self.at = end + 1;
        self.bytes.get(start..end)
    }

    /// What stands before the next quote, backslash or control character, which stays where it is.
    #[inline(always)]
    pub(super) fn until_special(&mut self) -> &'a [u8] {
        let start = self.at;
        self.at = special(self.bytes, start);
        self.slice(start)
    }

    /// Steps over `text`, which holds no special character, if it stands here before a quote.
    #[inline(always)]
    pub(super) fn eat_before_quote(&mut self, text: &[u8]) -> Option<&'a [u8]> {
        let end = self.at + text.len();
        let here = self.bytes.get(self.at..end).filter(|here| same(here, text) && self.bytes.get(end) == Some(&b'"'))?;
        self.at = end;
        Some(here)
    }

    /// [`Self::until_special`] where most likely 24 bytes stand: a time in milliseconds. These may hold special characters, which no
    /// time has.
    #[inline(always)]
    pub(super) fn time_or_text(&mut self) -> &'a [u8] {
        if self.bytes.get(self.at + 24) != Some(&b'"') {
            return self.until_special();
        }
        self.at += 24;
        self.slice(self.at - 24)
    }

    /// Reads a number of up to fifteen digits without exponent. Anything else is left where it is: `None`.
    #[inline(always)]
    pub(super) fn plain_number(&mut self) -> Option<f64> {
        let digit = |at: usize| self.bytes.get(at).map(|b| b.wrapping_sub(b'0')).filter(|d| *d <= 9);
        let negative = self.peek() == Some(b'-');
        let start = self.at + usize::from(negative);
        let (mut at, mut mantissa) = (start, 0_u64);
        while let Some(digit) = digit(at) {
            mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
            at += 1;
        }
        let whole = at - start;
        let mut decimals = 0;
        if self.bytes.get(at) == Some(&b'.') {
            at += 1;
            let point = at;
            while let Some(digit) = digit(at) {
                mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
                at += 1;
            }
            decimals = at - point;
            if decimals == 0 {
                return None;
            }
        }
        let leading_zero = whole > 1 && self.bytes.get(start) == Some(&b'0');
        if whole == 0 || leading_zero || whole + decimals > 15 || matches!(self.bytes.get(at), Some(b'e' | b'E')) {
            return None;
        }
        self.at = at;
        // Both sides are exact doubles, so one division rounds once (Clinger, "How to read floating point numbers accurately").
        let value = mantissa as f64 / POWERS[decimals];
        Some(if negative { -value } else { value })
    }

    /// Steps over `literal` if it stands here.
    #[inline]
    pub(super) fn eat_all(&mut self, literal: &[u8]) -> bool {
        let found = self.bytes.get(self.at..self.at + literal.len()) == Some(literal);
        if found {
            self.at += literal.len();
        }
        found
    }

    #[inline(always)]
    pub(super) fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// True when only white space is left.
    pub(super) fn at_end(&mut self) -> bool {
        self.space();
        self.at >= self.bytes.len()
    }

    /// Reads a string; its opening quote stands here.
    #[inline]
    pub(super) fn string(&mut self) -> Scan<Text<'a>> {
        let start = self.at;
        if !self.eat(b'"') {
            return Err("expected a string");
        }
        let mut escaped = false;
        loop {
            self.at = special(self.bytes, self.at);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Text { quoted: self.slice(start), escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return Err("a control character inside a string"),
                None => return Err("the text ends inside a string"),
            }
        }
    }

    fn escape(&mut self) -> Scan<()> {
        self.at += 1;
        let kind = self.peek();
        self.at += 1;
        match kind {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(()),
            Some(b'u') if self.bytes.get(self.at..self.at + 4).is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit)) => {
                self.at += 4;
                Ok(())
            }
            _ => Err("a string with an invalid escape"),
        }
    }

    /// Steps over the digits here, adding them to `mantissa`; how many there were.
    #[inline]
    fn digits(&mut self, mantissa: &mut u64) -> usize {
        let start = self.at;
        while let Some(digit) = self.peek().map(|b| b.wrapping_sub(b'0')).filter(|d| *d <= 9) {
            *mantissa = mantissa.wrapping_mul(10).wrapping_add(u64::from(digit));
            self.at += 1;
        }
        self.at - start
    }

    /// Steps over a number; `None` as value where the short way is not exact.
    #[inline]
    fn number_span(&mut self) -> Scan<Option<f64>> {
        let negative = self.eat(b'-');
        let mut mantissa = 0;
        let leading_zero = self.peek() == Some(b'0');
        let whole = self.digits(&mut mantissa);
        if whole == 0 || leading_zero && whole > 1 {
            return Err("not a number");
        }
        let mut decimals = 0;
        if self.eat(b'.') {
            decimals = self.digits(&mut mantissa);
            if decimals == 0 {
                return Err("not a number");
            }
        }
        let mut exponent = false;
        if matches!(self.peek(), Some(b'e' | b'E')) {
            exponent = true;
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits(&mut 0) == 0 {
                return Err("not a number");
            }
        }
        // Both sides are exact doubles, so one division rounds once (Clinger, "How to read floating point numbers accurately").
        if exponent || whole + decimals > 15 {
            return Ok(None);
        }
        let value = mantissa as f64 / POWERS[decimals];
        Ok(Some(if negative { -value } else { value }))
    }

    /// Reads a number; a digit or minus sign stands here.
    #[inline]
    pub(super) fn number(&mut self) -> Scan<Number<'a>> {
        let start = self.at;
        let short = self.number_span()?;
        let raw = self.slice(start);
        let value = match short {
            Some(value) => value,
            None => fast_float2::parse::<f64, _>(raw).map_err(|_| "not a number")?,
        };
        if value.is_infinite() {
            return Err("a number too large for a double");
        }
        Ok(Number { raw, value })
    }

    /// Reads `true`, `false` or `null` (`None`).
    pub(super) fn word(&mut self) -> Scan<Option<bool>> {
        if self.eat_all(b"true") {
            Ok(Some(true))
        } else if self.eat_all(b"false") {
            Ok(Some(false))
        } else if self.eat_all(b"null") {
            Ok(None)
        } else {
            Err("expected a value")
        }
    }

    /// Steps over a key and its colon, unread.
    fn skip_key(&mut self) -> Scan<()> {
        self.space();
        self.string()?;
        self.colon()
    }

    /// Steps over the colon after a key.
    #[inline]
    pub(super) fn colon(&mut self) -> Scan<()> {
        self.space();
        if self.eat(b':') { Ok(()) } else { Err("expected a colon after a key") }
    }

    /// Steps over one scalar; `None` when a bracket that is not empty opens here.
    fn skip_scalar(&mut self) -> Scan<Option<u8>> {
        self.space();
        match self.peek() {
            Some(b'"') => self.string().map(|_| None),
            Some(b'-' | b'0'..=b'9') => self.number_span().map(|_| None),
            Some(open @ (b'{' | b'[')) => {
                self.at += 1;
                self.space();
                let close = if open == b'{' { b'}' } else { b']' };
                Ok(if self.eat(close) { None } else { Some(close) })
            }
            _ => self.word().map(|_| None),
        }
    }

    /// Steps over any value, however deep: it keeps a list of open brackets, not a call stack.
    pub(super) fn skip_value(&mut self) -> Scan<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            if let Some(close) = self.skip_scalar()? {
                if close == b'}' {
                    self.skip_key()?;
                }
                open.push(close);
                continue;
            }
            loop {
                let Some(close) = open.last().copied() else { return Ok(()) };
                self.space();
                if self.eat(close) {
                    open.pop();
                } else if self.eat(b',') {
                    if close == b'}' {
                        self.skip_key()?;
                    }
                    break;
                } else {
                    return Err("expected a comma or a closing bracket");
                }
            }
        }
    }
}

const POWERS: [f64; 16] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The first quote, backslash or control character at or after `at`, or the end. Eight bytes at a step; the lowest marked
/// byte of a step is always a true one (Hacker's Delight, 6-1).
#[inline(always)]
fn special(bytes: &[u8], mut at: usize) -> usize {
    while let Some(chunk) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let quote = word ^ (ONES * u64::from(b'"'));
        let slash = word ^ (ONES * u64::from(b'\\'));
        let found =
            (quote.wrapping_sub(ONES) & !quote | slash.wrapping_sub(ONES) & !slash | word.wrapping_sub(ONES * 0x20) & !word) & HIGHS;
        if found != 0 {
            return at + (found.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    while let Some(byte) = bytes.get(at) {
        if matches!(byte, b'"' | b'\\' | 0..=0x1f) {
            break;
        }
        at += 1;
    }
    at.min(bytes.len())
}

/// Equality of texts that are short and mostly equal: no call, and two overlapping words where they fit.
#[inline(always)]
fn same(a: &[u8], b: &[u8]) -> bool {
    let word = |chunk: &[u8; 8]| u64::from_le_bytes(*chunk);
    match (a.first_chunk::<8>(), b.first_chunk::<8>(), a.last_chunk::<8>(), b.last_chunk::<8>()) {
        (Some(a1), Some(b1), Some(a2), Some(b2)) if a.len() <= 16 => word(a1) == word(b1) && word(a2) == word(b2) && a.len() == b.len(),
        _ => a == b,
    }
}

/// True where a text holds a character that no plain string has.
pub(super) fn has_special(text: &[u8]) -> bool {
    special(text, 0) < text.len()
}

/// Copies JSON without the white space between its tokens, so that it stays on one line.
pub(crate) fn compact(json: &[u8], out: &mut Vec<u8>) {
    let (mut quoted, mut escaped) = (false, false);
    for byte in json {
        if quoted {
            quoted = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
        } else if byte.is_ascii_whitespace() {
            continue;
        } else {
            quoted = *byte == b'"';
        }
        out.push(*byte);
    }
}

/// True when `text` is exactly one JSON value.
pub(crate) fn is_json(text: &str) -> bool {
    let mut cursor = Cursor::new(text.as_bytes(), 0);
    cursor.skip_value().is_ok() && cursor.at_end()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_the_nearest_doubles(text in "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?") {
            let expected: f64 = text.parse().unwrap();
            match Cursor::new(text.as_bytes(), 0).number() {
                Ok(number) => prop_assert_eq!(number.value.to_bits(), expected.to_bits()),
                Err(_) => prop_assert!(expected.is_infinite()),
            }
        }

        #[test]
        fn the_short_ways_agree_with_the_long_ones(text in "-?[0-9]{0,18}(\\.[0-9]{0,4})?[eE,}]?|\"[a-z\\\\\"\u{1}\u{e9}]{0,20}\"?[,}]?") {
            let (mut short, mut long) = (Cursor::new(text.as_bytes(), 0), Cursor::new(text.as_bytes(), 0));
            if let Some(value) = short.plain_number() {
                prop_assert_eq!(long.number().map(|n| n.value.to_bits()), Ok(value.to_bits()));
                prop_assert_eq!(short.at(), long.at());
            } else if let Some(value) = short.plain_string() {
                let resolved = long.string().and_then(Text::resolve);
                prop_assert_eq!(resolved, Ok(Cow::Borrowed(value)));
                prop_assert_eq!(short.at(), long.at());
            } else {
                prop_assert_eq!(short.at(), 0);
            }
        }

        #[test]
        fn literals_are_found_where_they_stand(text in "[ab\":]{0,40}", literal in "[ab\":]{0,20}", at in 0usize..40) {
            let at = at.min(text.len());
            let mut cursor = Cursor::new(text.as_bytes(), at);
            let stands = text[at..].starts_with(&literal);
            prop_assert_eq!(cursor.eat_literal(&Literal::new(literal.clone().into_bytes())), stands);
            prop_assert_eq!(cursor.at(), at + if stands { literal.len() } else { 0 });
        }

        #[test]
        fn what_is_json_is_what_serde_json_says(text in "[\\[\\]{},:\"\\\\u0-9eE.+\\- truefalsn\u{1}\u{e9}]{0,24}") {
            let valid = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(is_json(&text), valid);
        }

        #[test]
        fn specials_are_found_wherever_they_lie(bytes in proptest::collection::vec(any::<u8>(), 0..40), at in 0usize..40) {
            let at = at.min(bytes.len());
            let plain = bytes[at..].iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f));
            prop_assert_eq!(special(&bytes, at), plain.map_or(bytes.len(), |n| at + n));
        }
    }
}
