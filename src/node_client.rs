//! Asking a running node over its admin server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A savepoint waits for the sinks.
const LONG_TIMEOUT: Duration = Duration::from_secs(90);

/// More than a device with thousands of series takes.
const MAX_ANSWER: u64 = 64 << 20;

/// The answer of the node at `address` to a request.
///
/// # Errors
/// If nobody answers, or the node says no: then with its reason.
pub(crate) fn request(address: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    let body = body.map(Value::to_string);
    let (status, body) = ask(address, method, path, body.as_deref().map(|text| ("application/json", text)))?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    if !(200..300).contains(&status) {
        let why = ["detail", "title"].iter().find_map(|member| answer.get(member)?.as_str()).unwrap_or("no reason given");
        bail!("the node at {address} answered {status}: {why}");
    }
    Ok(answer)
}

/// Status and body of the answer (HTTP/1.1, RFC 9112; the connection ends with it) to a request, with its body's type and text.
///
/// # Errors
/// If nobody answers.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("no node answers at {address}: is `fieldstream run` up with its admin server there (--admin)?"))?;
    stream.set_read_timeout(Some(if body.is_some() { LONG_TIMEOUT } else { TIMEOUT }))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let about = body.map(|(kind, text)| format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", text.len())).unwrap_or_default();
    let text = body.map_or("", |(_, text)| text);
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\n{about}Connection: close\r\n\r\n{text}");
    stream.write_all(request.as_bytes()).with_context(|| format!("the node at {address} does not listen"))?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).with_context(|| format!("the node at {address} does not answer"))?;
    parse(&answer).with_context(|| format!("what answers at {address} is no fieldstream node"))
}

fn parse(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let head_end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let (head, rest) = answer.split_at(head_end);
    let status = std::str::from_utf8(head).ok()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, rest.get(4..)?.to_vec()))
}

/// Percent-encodes everything but unreserved characters (RFC 3986 section 2.3).
pub(crate) fn encoded(segment: &str) -> String {
    let mut out = String::new();
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_status_and_body() {
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(answer), Some((404, b"{}".to_vec())));
        assert_eq!(parse(b"SSH-2.0-OpenSSH\r\n"), None);
    }

    #[test]
    fn names_become_path_segments() {
        assert_eq!(encoded("hall 1/pump-7"), "hall%201%2Fpump-7");
        assert_eq!(encoded("ä?#"), "%C3%A4%3F%23");
    }
}
