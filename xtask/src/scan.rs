//! A small Rust scanner: enough to count lines of functions and to see code without comments and strings.

/// `text` with comments, strings and character literals blanked; line numbers stay as they are.
pub(crate) fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if end == at {
            out.push(bytes[at]);
            at += 1;
        } else {
            out.extend(bytes[at..end].iter().map(|&b| if b == b'\n' { b'\n' } else { b' ' }));
            at = end;
        }
    }
    // Only ASCII delimiters were cut at, so this is UTF-8 still.
    String::from_utf8_lossy(&out).into_owned()
}

/// End of the comment or literal that begins at `at`; `at` itself where none begins.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let inside_word = at > 0 && is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => at + rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => at + block_comment(rest),
        [b'"', ..] => at + quoted(rest, b'"'),
        [b'\'', b'\\', ..] => at + quoted(rest, b'\''),
        [b'\'', ..] => at + char_literal(rest),
        [b'r' | b'b' | b'c', ..] if !inside_word => at + prefixed(rest),
        _ => at,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        match rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// `'x'` is a literal, `'a` a lifetime.
fn char_literal(rest: &[u8]) -> usize {
    let close = rest.iter().take(6).skip(2).position(|&b| b == b'\'').map_or(0, |p| p + 3);
    if close > 3 && rest[1].is_ascii() { 0 } else { close }
}

/// Strings that begin with a letter: `r"`, `r#"`, `b"`, `br#"`, `c"`, `b'`.
fn prefixed(rest: &[u8]) -> usize {
    let letters = rest.iter().take_while(|b| matches!(b, b'r' | b'b' | b'c')).count();
    let hashes = rest.iter().skip(letters).take_while(|&&b| b == b'#').count();
    let begin = letters + hashes;
    match rest.get(begin) {
        Some(b'"') if rest[..letters].contains(&b'r') => {
            let mut end = vec![b'"'];
            end.resize(hashes + 1, b'#');
            let body = &rest[begin + 1..];
            body.windows(end.len()).position(|w| w == end).map_or(rest.len(), |p| begin + 1 + p + end.len())
        }
        Some(b'"') if hashes == 0 => letters + quoted(&rest[letters..], b'"'),
        Some(b'\'') if rest[..letters] == *b"b" && hashes == 0 => 1 + quoted(&rest[1..], b'\''),
        _ => 0,
    }
}

/// A function and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Line of `fn`, from 1.
    pub(crate) line: usize,
    /// From `fn` to the closing brace.
    pub(crate) lines: usize,
}

/// All functions with a body in `code` (see [`code_only`]), inner ones too.
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if at > 0 && is_word(code.as_bytes()[at - 1]) {
            continue;
        }
        let name: String = code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if let Some(open) = (!name.is_empty()).then(|| body_start(code, at)).flatten() {
            let lines = code[at..block_end(code, open)].lines().count();
            found.push(Function { name, line: line_of(code, at), lines });
        }
    }
    found
}

fn line_of(code: &str, at: usize) -> usize {
    1 + code[..at].matches('\n').count()
}

/// The `{` of the item that begins at `at`; `None` when a `;` comes first.
fn body_start(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0i32;
    for (offset, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

/// First byte after the block whose `{` lies at `open`.
fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0i32;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return offset + 1;
        }
    }
    code.len()
}

/// `code` without its `#[cfg(test)] mod x { .. }` blocks; other lines keep their numbers.
pub(crate) fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut from = 0;
    for (at, _) in code.match_indices("#[cfg(test)]") {
        let is_module = code[at..].lines().nth(1).is_some_and(|line| line.trim_start().starts_with("mod ") && line.contains('{'));
        if at < from || !is_module {
            continue;
        }
        out.push_str(&code[from..at]);
        from = body_start(code, at + "#[cfg(test)]".len()).map_or(code.len(), |open| block_end(code, open));
    }
    out.push_str(&code[from..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lines_kept() {
        let text = "let a = \"fn x() {\"; // fn y() {\n/* fn z() { /* */ } */ let b = 'x'; let c: &'static str = r#\"a\"b{\"#;\nlet d = b'{'; let e = '\\''; let f = br\"{\";";
        let code = code_only(text);
        assert_eq!(code.lines().count(), 3);
        assert!(!code.contains('{') && !code.contains("fn"), "{code}");
        for kept in ["let a =", "let b =", "&'static str =", "let d =", "let e =", "let f ="] {
            assert!(code.contains(kept), "{kept}: {code}");
        }
    }

    #[test]
    fn names_that_begin_like_prefixes_are_no_strings() {
        let code = code_only("let bar = crab(\"{\"); let c = 'é'; fn f<'b>(r: &'b str) {}");
        assert_eq!(code.matches('{').count(), 1, "{code}");
        assert!(code.contains("let bar = crab(") && code.contains("<'b>(r: &'b str)"), "{code}");
    }

    #[test]
    fn functions_are_measured_from_fn_to_brace() {
        let code = code_only(
            "trait T { fn no_body(&self) -> [u8; 3]; }\nfn long(\n    a: u8,\n) -> u8 {\n    let f = |x| { x };\n    f(a)\n}\nfn one() {}\n",
        );
        let found: Vec<_> = functions(&code).into_iter().map(|f| (f.name, f.line, f.lines)).collect();
        assert_eq!(found, [("long".to_owned(), 2, 6), ("one".to_owned(), 8, 1)]);
    }

    #[test]
    fn test_modules_do_not_count() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(test)]\nmod more;\n";
        let rest = without_tests(code);
        assert!(!rest.contains("fn b") && rest.contains("fn c") && rest.contains("mod more"), "{rest}");
    }
}
