//! A client of a node's admin server, as small as what commands ask.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

const TIMEOUT: Duration = Duration::from_secs(10);

/// More than a device with thousands of series takes.
const MAX_ANSWER: u64 = 64 << 20;

/// Status and body of the answer (HTTP/1.1, RFC 9112; the connection ends with it). `yaml` goes along as the body.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str, yaml: Option<&str>) -> Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("no node answers at {address}: is `fieldstream run` up with its admin server there (--admin)?"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let body = yaml.map(|yaml| format!("Content-Type: application/yaml\r\nContent-Length: {}\r\n", yaml.len())).unwrap_or_default();
    let yaml = yaml.unwrap_or_default();
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nAccept: application/json\r\n{body}Connection: close\r\n\r\n{yaml}");
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
