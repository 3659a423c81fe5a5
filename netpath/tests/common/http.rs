//! What an agent says over HTTP, asked from within its node's network namespace.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Where the agents of tests listen.
pub(crate) const ADDRESS: &str = "127.0.0.1:9639";

/// An answer: status and text.
pub(crate) fn get(path: &str) -> Option<(u16, String)> {
    let address: SocketAddr = ADDRESS.parse().expect("an address");
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// The value of the one series of this name whose labels hold all of these, in a text of metrics.
#[track_caller]
pub(crate) fn value(metrics: &str, name: &str, labels: &[&str]) -> Option<u64> {
    let is_it = |line: &&str| {
        line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label))
    };
    let found: Vec<&str> = metrics.lines().filter(is_it).collect();
    assert!(found.len() <= 1, "{name} {labels:?}: {found:?}");
    found.first().map(|line| line.rsplit(' ').next().expect("a value").parse().expect("a number"))
}
