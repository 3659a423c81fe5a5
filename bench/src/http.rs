//! The least of an HTTP server that stands in for an API server.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use serde_json::{Value, json};

/// Listens on the loopback of the network namespace that the caller is in, and answers each request with what `answer` says
/// to its first line: status and body, or nothing where it has done all that a connection is for. The threads end with the
/// process.
pub(crate) fn serve<F>(answer: F) -> io::Result<SocketAddr>
where
    F: Fn(&str, &mut TcpStream) -> io::Result<Option<(u16, Value)>> + Send + Sync + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (address, answer) = (listener.local_addr()?, Arc::new(answer));
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            // Who has gone away needs no answer.
            thread::spawn(move || connection(socket, &*answer).ok());
        }
    });
    Ok(address)
}

/// How a server is found, as a kubeconfig.
pub(crate) fn kubeconfig(server: SocketAddr) -> String {
    json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "u", "user": {"token": "x"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]})
    .to_string()
}

fn connection(
    mut socket: TcpStream,
    answer: &impl Fn(&str, &mut TcpStream) -> io::Result<Option<(u16, Value)>>,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let (mut bytes, mut chunk) = (Vec::new(), [0; 16 << 10]);
    loop {
        let got = socket.read(&mut chunk)?;
        if got == 0 {
            return Ok(());
        }
        bytes.extend_from_slice(&chunk[..got]);
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        if bytes.len() < end + 4 + length(&head) {
            continue;
        }
        bytes.clear();
        let Some((status, body)) = answer(head.lines().next().unwrap_or_default(), &mut socket)? else {
            return Ok(());
        };
        let body = body.to_string();
        // One write: the second would wait for a delayed acknowledgement.
        let head = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all((head + &body).as_bytes())?;
    }
}

/// Of the body behind a head.
fn length(head: &str) -> usize {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(key, _)| key.eq_ignore_ascii_case("content-length"));
    lengths.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_as_long_as_its_head_says() {
        assert_eq!(length("PATCH /x HTTP/1.1\r\nhost: a:1\r\ncontent-LENGTH: 42"), 42);
        assert_eq!(length("GET /x HTTP/1.1"), 0);
    }
}
