//! A JSON payload to objects: one object, an array of objects, or one of these a line.

use std::ops::Range;

use super::object::ObjectReader;
use super::output::{Output, Payload};
use super::parts::{Checks, Fault};
use super::scan::Cursor;

/// Reads JSON payloads.
#[derive(Debug)]
pub(super) struct JsonReader {
    pub(super) object: ObjectReader,
    pub(super) checks: Checks,
}

impl JsonReader {
    /// Decodes one payload. Lines are taken one by one only when the payload as a whole is no JSON text, so that an object
    /// may be spread over lines; a line's fault then costs that line alone.
    pub(super) fn payload(&mut self, payload: &Payload<'_>, out: &mut Output<'_>) {
        let (start, end) = trim(payload.data, payload.start, payload.end);
        let text = payload.data.get(..end).unwrap_or_default();
        if payload.utf8 && !self.object.wide && text.get(start) == Some(&b'{') && self.one_object(payload, text, start, out) {
            return;
        }
        let lines = memchr::memchr(b'\n', text.get(start..).unwrap_or_default()).is_some();
        if lines && !(payload.utf8 && is_one_value(text, start)) {
            // A broken array is one broken thing, unless its first line is complete.
            let first_line = line_end(text, start);
            let array = text.get(start) == Some(&b'[');
            if !array || is_one_value(text.get(..first_line).unwrap_or_default(), start) {
                return self.lines(payload, start, text, out);
            }
        }
        self.value(&Piece { payload, text, start, bytes: payload.start..payload.end }, out);
    }

    /// Takes the payload for one object, as it nearly always is. False when it is not; nothing is done then.
    #[inline]
    fn one_object(&mut self, payload: &Payload<'_>, text: &[u8], start: usize, out: &mut Output<'_>) -> bool {
        let Output { columns, accounts } = out;
        let mut read = false;
        self.object.read(&mut Cursor::new(text, start), &self.checks, &payload.around, columns, |outcome| {
            read = outcome.is_ok();
            if read {
                accounts.settle(payload, outcome, payload.start, payload.end);
            }
        });
        read
    }

    fn lines(&mut self, payload: &Payload<'_>, start: usize, text: &[u8], out: &mut Output<'_>) {
        let mut at = start;
        while at < text.len() {
            let end = line_end(text, at);
            let (from, to) = trim(text, at, end);
            if from < to {
                let line = text.get(..to).unwrap_or_default();
                let utf8 = payload.utf8 || std::str::from_utf8(line.get(from..).unwrap_or_default()).is_ok();
                self.value(&Piece { payload: &Payload { utf8, ..*payload }, text: line, start: from, bytes: at..end }, out);
            }
            at = end + 1;
        }
    }

    fn value(&mut self, piece: &Piece<'_>, out: &mut Output<'_>) {
        if !piece.payload.utf8 {
            piece.reject("not UTF-8 text", out);
        } else if piece.text.get(piece.start) == Some(&b'[') {
            self.array(piece, out);
        } else {
            self.object(piece, out);
        }
    }

    #[inline]
    fn object(&mut self, piece: &Piece<'_>, out: &mut Output<'_>) {
        let mut cursor = Cursor::new(piece.text, piece.start);
        let Output { columns, accounts } = out;
        self.object.read(&mut cursor, &self.checks, &piece.payload.around, columns, |outcome| {
            accounts.settle(piece.payload, outcome, piece.bytes.start, piece.bytes.end);
        });
    }

    /// An array is checked as a whole first: what is no JSON is rejected whole, so that it can be sent again as it came.
    fn array(&mut self, piece: &Piece<'_>, out: &mut Output<'_>) {
        let mut whole = Cursor::new(piece.text, piece.start);
        let valid = whole.skip_value().and_then(|()| if whole.at_end() { Ok(()) } else { Err("something follows after the array") });
        if let Err(message) = valid {
            return piece.reject(message, out);
        }
        let mut cursor = Cursor::new(piece.text, piece.start + 1);
        let mut empty = true;
        loop {
            cursor.space();
            if cursor.eat(b']') {
                break;
            }
            let start = cursor.at();
            if cursor.skip_value().is_err() {
                break;
            }
            empty = false;
            let text = piece.text.get(..cursor.at()).unwrap_or_default();
            self.object(&Piece { text, start, bytes: start..cursor.at(), ..*piece }, out);
            cursor.space();
            cursor.eat(b',');
        }
        if empty {
            piece.reject("the array holds no reading", out);
        }
    }
}

/// One object or array of a payload.
struct Piece<'a> {
    payload: &'a Payload<'a>,
    /// The block up to the end of the piece.
    text: &'a [u8],
    /// Where it starts, without white space.
    start: usize,
    /// What a reject of it carries: the piece with its white space, as it came.
    bytes: Range<usize>,
}

impl Piece<'_> {
    fn reject(&self, message: &'static str, out: &mut Output<'_>) {
        out.reject(self.payload, Fault::Syntax(message), self.bytes.start, self.bytes.end);
    }
}

fn line_end(text: &[u8], at: usize) -> usize {
    memchr::memchr(b'\n', text.get(at..).unwrap_or_default()).map_or(text.len(), |n| at + n)
}

fn is_one_value(text: &[u8], start: usize) -> bool {
    let mut cursor = Cursor::new(text, start);
    cursor.skip_value().is_ok() && cursor.at_end()
}

/// `start..end` without JSON white space at either side.
fn trim(data: &[u8], mut start: usize, mut end: usize) -> (usize, usize) {
    let space = |at: usize| matches!(data.get(at), Some(b' ' | b'\n' | b'\r' | b'\t'));
    while start < end && space(start) {
        start += 1;
    }
    while start < end && space(end - 1) {
        end -= 1;
    }
    (start, end)
}
